"""The event chain: one canonical JSON line an event, linked by hash, signed by the event key.

    {"seq": int, "prev": hex, "type": str, "tMs": int, "body": {...}, "sig": base64url}

`prev` of the first event is the SHA-256 of the grant token; later, of the whole previous line.
`sig` is Ed25519 over domain_hash("glasshouse/event/v1", [canonical JSON without sig]).
`tMs` counts milliseconds on the supervisor's monotonic clock since it started.
"""

from __future__ import annotations

import os
import time
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from glasshouse.canonical import (
    CanonicalError,
    b64u,
    b64u_decode,
    canonical_json,
    domain_hash,
    parse_canonical,
    sha256_hex,
)
from glasshouse.codes import Code
from glasshouse.errors import LegError

EVENT_TYPES = (
    "released",
    "unsealed",
    "trainer-hardened",
    "progress",
    "checkpoint-sealed",
    "watched",
    "trained",
    "sealed-outputs",
    "execs-counted",
    "zeroized",
    "failed",
)
FINAL_TYPES = ("zeroized", "failed")
MAX_EVENT_BYTES = 1 << 20


def event_hash(line: bytes) -> str:
    """Return the hash that the next event links to: SHA-256 hex of the line without its newline."""
    return sha256_hex(line)


def first_link(grant: str) -> str:
    """Return `prev` of the first event: the hash of the grant token as received."""
    return sha256_hex(grant.encode("ascii"))


def _digest(core: object) -> bytes:
    return domain_hash("glasshouse/event/v1", [canonical_json(core)])


def check_line(line: bytes, public_key: Ed25519PublicKey) -> dict[str, Any]:
    """Parse one line and check its form and signature; raise CanonicalError naming what is wrong."""
    event = parse_canonical(line, max_bytes=MAX_EVENT_BYTES)
    if not isinstance(event, dict) or set(event) != {"seq", "prev", "type", "tMs", "body", "sig"}:
        raise CanonicalError("event has not exactly the fields seq prev type tMs body sig")
    if event["type"] not in EVENT_TYPES or not isinstance(event["body"], dict):
        raise CanonicalError("event of unknown type")
    for name in ("seq", "tMs"):
        if not isinstance(event[name], int) or isinstance(event[name], bool) or event[name] < 0:
            raise CanonicalError(f"event {name} is not a count")
    signature = b64u_decode(event.pop("sig"), size=64)
    try:
        public_key.verify(signature, _digest(event))
    except InvalidSignature as error:
        raise CanonicalError("event signature does not verify") from error
    return event


class EventWriter:
    """Appends signed events to a file; only the supervisor holds one."""

    def __init__(self, descriptor: int, key: Ed25519PrivateKey, started: float) -> None:
        self._descriptor = descriptor
        self._key: Ed25519PrivateKey | None = key
        self._started = started
        self._prev: str | None = None
        self.count = 0

    @property
    def head(self) -> str | None:
        """Hash of the newest event."""
        return self._prev if self.count else None

    def begin(self, grant: str) -> None:
        """Tie the chain to the grant; nothing can be appended before."""
        self._prev = first_link(grant)

    def append(self, kind: str, body: dict[str, Any]) -> None:
        """Sign and write one event. Raises LegError("event-too-large") and OSError, nothing signed lost."""
        if self._key is None or self._prev is None:
            raise ValueError("the chain is not open")
        core = {
            "seq": self.count,
            "prev": self._prev,
            "type": kind,
            "tMs": int((time.monotonic() - self._started) * 1000),
            "body": body,
        }
        line = canonical_json({**core, "sig": b64u(self._key.sign(_digest(core)))})
        if len(line) > MAX_EVENT_BYTES:
            raise LegError("an event is too large", code=Code.EVENT_TOO_LARGE)
        rest = memoryview(line + b"\n")
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        self._prev = event_hash(line)
        self.count += 1

    def destroy_key(self) -> None:
        """Drop the event key, last of all: nothing can be signed after it."""
        self._key = None
