"""Verify an event chain as a whole: signatures, links, order, and the operator's countersigned heads.

The event key lives on the pod until the end of a leg, so whoever holds the pod could write the
chain anew. The operator countersigns its head while the leg runs, with the operator's own clock;
a chain rebuilt after a countersigned head no longer matches it. What remains is the longest
stretch between two heads, which is computed here and published.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import ValidationError

from glasshouse.canonical import (
    CanonicalError,
    b64u,
    b64u_decode,
    canonical_json,
    domain_hash,
    parse_canonical,
)
from glasshouse.codes import Code
from glasshouse.records.keys import KeyEntry
from glasshouse.runtime.events import FINAL_TYPES, MAX_EVENT_BYTES, check_line, event_hash, first_link
from glasshouse.schema import Head

HEAD_DOMAIN = "glasshouse/head/v1"
MAX_HEAD_BYTES = 2048

# Legal orders, by the letters of _LETTERS: a leg goes this far, and may fail at any point. A job whose
# outputs take a while to seal says that it goes on; its keeper has ended by then. The row page has the same
# two (site/assets/verify/launches.js).
_LETTERS = {
    "released": "r",
    "unsealed": "u",
    "trainer-hardened": "h",
    "progress": "p",
    "checkpoint-sealed": "c",
    "watched": "w",
    "trained": "t",
    "sealed-outputs": "o",
    "execs-counted": "x",
    "zeroized": "z",
    "failed": "f",
}
_WHOLE = re.compile(r"ruh+[pcw]*tp*ox?z\Z")
_FAILED = re.compile(r"r(u(h+([pcw]*(tp*o?)?)?x?)?)?f\Z")


@dataclass(frozen=True)
class Chain:
    """A chain as found: codes of every fault (empty: whole), and what its events say.

    max_gap_sec: longest stretch, by the operator's clock, from the release to the first head and
    between heads; None without heads. whole: it ends in `zeroized`. What the runtime signed, as
    canonical JSON, None where no event says it: zeroized, its report of the wipe; result, the leg's;
    hardened, how its trainer was confined; execs, the programs that a project started.
    """

    codes: tuple[str, ...]
    whole: bool
    max_gap_sec: float | None
    zeroized: bytes | None = None
    result: bytes | None = None
    hardened: bytes | None = None
    execs: bytes | None = None


def check_chain(
    events: bytes,
    heads: bytes,
    *,
    event_key: bytes,
    grant: str,
    operator: KeyEntry,
    leg: tuple[str, str, int],
    released_at: float,
    ended_at: float,
) -> Chain:
    """Check a leg's events.jsonl against its heads.jsonl, listing every fault.

    event_key: raw key of the appraised evidence. grant: the token that opens the chain. leg: run,
    leg id, launch number. Times are Unix seconds of the broker's and the controller's clock.
    Codes: events-missing, event-invalid, event-sequence, event-link, event-time, event-order,
    head-invalid, head-other-leg, head-signature, head-time, head-mismatch, heads-incomplete.
    """
    codes: list[Code] = []
    parsed, hashes = _events(events, event_key, grant, codes)
    order = "".join(_LETTERS[event["type"]] for event in parsed)
    whole = _WHOLE.match(order) is not None
    if parsed and not whole and _FAILED.match(order) is None:
        codes.append(Code.EVENT_ORDER)
    if not parsed:
        codes.append(Code.EVENTS_MISSING)
    times = _heads(heads, hashes, operator, leg, codes)
    if any(time < released_at - 1 or time > ended_at + 1 for time in times):
        codes.append(Code.HEAD_TIME)  # a second of slack: the broker signs whole seconds
    if parsed and (not times or not _covers_last(heads, len(hashes) - 1)):
        codes.append(Code.HEADS_INCOMPLETE)
    edges = [released_at, *times]
    gaps = [max(0.0, later - earlier) for earlier, later in itertools.pairwise(edges)]
    said = {event["type"]: event["body"] for event in parsed}
    result = said.get("trained", {}).get("result")
    return Chain(
        tuple(dict.fromkeys(codes)),
        whole,
        round(max(gaps), 3) if gaps else None,
        zeroized=canonical_json(said["zeroized"]) if "zeroized" in said else None,
        result=None if result is None else canonical_json(result),
        hardened=canonical_json(said["trainer-hardened"]) if "trainer-hardened" in said else None,
        execs=canonical_json(said["execs-counted"]) if "execs-counted" in said else None,
    )


def _events(
    data: bytes, event_key: bytes, grant: str, codes: list[Code]
) -> tuple[list[dict[str, Any]], list[str]]:
    lines = _lines(data, Code.EVENT_INVALID, codes)
    parsed: list[dict[str, Any]] = []
    hashes: list[str] = []
    previous, clock = first_link(grant), 0
    key = Ed25519PublicKey.from_public_bytes(event_key)
    for number, line in enumerate(lines):
        try:
            event = check_line(line, key)
        except CanonicalError:
            codes.append(Code.EVENT_INVALID)
            return parsed, hashes  # what follows hangs on a line that nobody signed
        if event["seq"] != number:
            codes.append(Code.EVENT_SEQUENCE)
        if event["prev"] != previous:
            codes.append(Code.EVENT_LINK)
        if event["tMs"] < clock:
            codes.append(Code.EVENT_TIME)
        if parsed and parsed[-1]["type"] in FINAL_TYPES:
            codes.append(Code.EVENT_ORDER)
        previous, clock = event_hash(line), event["tMs"]
        parsed.append(event)
        hashes.append(previous)
    return parsed, hashes


def _heads(
    data: bytes, hashes: list[str], operator: KeyEntry, leg: tuple[str, str, int], codes: list[Code]
) -> list[float]:
    times: list[float] = []
    last_seq = -1
    for line in _lines(data, Code.HEAD_INVALID, codes):
        try:
            core = parse_canonical(line, max_bytes=MAX_HEAD_BYTES)
            head = Head.model_validate_json(line)
            signature = b64u_decode(core.pop("sig"), size=64)
        except (CanonicalError, ValidationError):
            codes.append(Code.HEAD_INVALID)
            continue
        if (head.run, head.leg, head.launch) != leg:
            codes.append(Code.HEAD_OTHER_LEG)
        if not operator.check(signature, head_digest(core)):
            codes.append(Code.HEAD_SIGNATURE)
        if times and head.time < times[-1]:
            codes.append(Code.HEAD_TIME)
        if head.seq < last_seq or head.seq >= len(hashes) or hashes[head.seq] != head.head:
            codes.append(Code.HEAD_MISMATCH)
        last_seq = head.seq
        times.append(head.time)
    return times


def _covers_last(heads: bytes, last: int) -> bool:
    try:
        return bool(parse_canonical(heads.rstrip(b"\n").rpartition(b"\n")[2])["seq"] == last)
    except (CanonicalError, KeyError, TypeError):
        return False


def _lines(data: bytes, code: Code, codes: list[Code]) -> list[bytes]:
    if data and not data.endswith(b"\n"):
        codes.append(code)
    lines = data.split(b"\n")[:-1]
    if any(len(line) > MAX_EVENT_BYTES for line in lines):
        codes.append(code)
        return []
    return lines


def head_digest(core: Mapping[str, Any]) -> bytes:
    """What an operator signs of a head: the object without `sig`, under its own domain."""
    return domain_hash(HEAD_DOMAIN, [canonical_json(core)])


def sign_head(
    key: Ed25519PrivateKey, *, run: str, leg: str, launch: int, seq: int, head: str, time: float
) -> bytes:
    """Countersign a chain's head; returns the line of heads.jsonl, without newline.

    The caller signs only what extends the last head it signed.
    """
    core = {"run": run, "leg": leg, "launch": launch, "seq": seq, "head": head, "time": round(time, 3)}
    return canonical_json({**core, "sig": b64u(key.sign(head_digest(core)))})
