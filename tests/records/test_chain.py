from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from glasshouse.canonical import canonical_json, parse_json
from glasshouse.records.chain import Chain, check_chain, sign_head
from glasshouse.records.keys import KeyEntry, keyid, public_bytes
from glasshouse.runtime.events import EventWriter, event_hash

from .factory import write_events

EVENT_KEY = Ed25519PrivateKey.generate()
OPERATOR = Ed25519PrivateKey.generate()
ENTRY = KeyEntry(keyid(public_bytes(OPERATOR)), "operator", public_bytes(OPERATOR), "operator")
GRANT = "header.claims.signature"
LEG = ("20260101-000000-aaaaaa", "s001", 1)
KINDS = (
    "released",
    "unsealed",
    "trainer-hardened",
    "progress",
    "progress",
    "trained",
    "sealed-outputs",
    "zeroized",
)


def events(kinds: Sequence[str] = KINDS, *, key: Ed25519PrivateKey = EVENT_KEY, grant: str = GRANT) -> bytes:
    return write_events(key, grant, [(kind, {"n": number}) for number, kind in enumerate(kinds)])


def heads(
    data: bytes,
    times: Sequence[float] | None = None,
    *,
    seqs: Sequence[int] | None = None,
    leg: tuple[str, str, int] = LEG,
    key: Ed25519PrivateKey = OPERATOR,
) -> bytes:
    lines = data.splitlines()
    chosen = list(range(len(lines))) if seqs is None else list(seqs)
    at = [100.0 + seq for seq in chosen] if times is None else list(times)
    return b"".join(
        sign_head(
            key, run=leg[0], leg=leg[1], launch=leg[2], seq=seq, head=event_hash(lines[seq]), time=moment
        )
        + b"\n"
        for seq, moment in zip(chosen, at, strict=True)
    )


def found(data: bytes, signed: bytes | None = None, **changes: Any) -> Chain:
    arguments: dict[str, Any] = {
        "event_key": public_bytes(EVENT_KEY),
        "grant": GRANT,
        "operator": ENTRY,
        "leg": LEG,
        "released_at": 100.0,
        "ended_at": 200.0,
    }
    return check_chain(data, heads(data) if signed is None else signed, **(arguments | changes))


def test_a_whole_chain() -> None:
    chain = found(events())
    assert (chain.codes, chain.whole) == ((), True)
    assert chain.zeroized == b'{"n":7}'
    assert chain.result is None  # its event says none
    assert chain.max_gap_sec == 1.0


@pytest.mark.parametrize("length", range(1, 7))
def test_a_failed_chain_is_sound_but_not_whole(length: int) -> None:
    chain = found(events([*KINDS[:length], "failed"]))
    assert (chain.codes, chain.whole) == ((), False)


def test_programs_that_were_started_are_told_once_before_the_end() -> None:
    counted = [*KINDS[:7], "execs-counted", "zeroized"]
    chain = found(events(counted))
    assert (chain.codes, chain.whole, chain.execs) == ((), True, b'{"n":7}')
    assert found(events()).execs is None
    for length in (3, 4, 6, 7):
        failed = found(events([*KINDS[:length], "execs-counted", "failed"]))
        assert (failed.codes, failed.whole) == ((), False)


@pytest.mark.parametrize(
    "kinds",
    [
        [*KINDS[:2], "execs-counted", *KINDS[2:]],
        [*KINDS[:6], "execs-counted", *KINDS[6:]],
        [*KINDS[:7], "execs-counted", "execs-counted", "zeroized"],
        [*KINDS, "execs-counted"],
        [*KINDS[:2], "execs-counted", "failed"],
    ],
)
def test_told_elsewhere_they_break_the_order(kinds: list[str]) -> None:
    chain = found(events(kinds))
    assert "event-order" in chain.codes
    assert not chain.whole


@pytest.mark.parametrize("kind", ["checkpoint-sealed", "watched"])
def test_what_is_sealed_while_it_trains_is_told_then_and_at_no_other_time(kind: str) -> None:
    for at in (3, 4, 5):
        chain = found(events([*KINDS[:at], kind, kind, *KINDS[at:]]))
        assert (chain.codes, chain.whole) == ((), True)
        failed = found(events([*KINDS[:at], kind, "failed"]))
        assert (failed.codes, failed.whole) == ((), False)
    for at in (0, 1, 2, 6, 7, 8):
        chain = found(events([*KINDS[:at], kind, *KINDS[at:]]))
        assert "event-order" in chain.codes
        assert not chain.whole


def test_outputs_that_take_long_to_seal_say_so_between_training_and_their_seal() -> None:
    whole = [*KINDS[:6], "progress", "progress", *KINDS[6:]]
    assert (found(events(whole)).codes, found(events(whole)).whole) == ((), True)
    for end in (["failed"], ["execs-counted", "failed"]):
        assert found(events([*KINDS[:6], "progress", *end])).codes == ()
    for at in (7, 8):
        assert "event-order" in found(events([*KINDS[:at], "progress", *KINDS[at:]])).codes


def test_retries_of_hardening_and_no_progress_are_legal() -> None:
    kinds = (
        "released",
        "unsealed",
        "trainer-hardened",
        "trainer-hardened",
        "trained",
        "sealed-outputs",
        "zeroized",
    )
    assert found(events(kinds)).whole


@pytest.mark.parametrize(
    "kinds",
    [
        KINDS[1:],
        KINDS[:-1],
        (*KINDS[:2], *KINDS[3:]),
        (*KINDS, "failed"),
        (*KINDS, "progress"),
        (*KINDS[:5], *KINDS[6:]),
        (*KINDS[:6], "zeroized"),
        ("released", "released", *KINDS[1:]),
        ("failed",),
    ],
)
def test_illegal_orders(kinds: Sequence[str]) -> None:
    assert "event-order" in found(events(kinds)).codes


def edit(data: bytes, change: Callable[[list[bytes]], list[bytes]]) -> bytes:
    return b"".join(line + b"\n" for line in change(data.splitlines()))


def swap(lines: list[bytes]) -> list[bytes]:
    return [*lines[:3], lines[4], lines[3], *lines[5:]]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda lines: lines[1:], "event-link"),
        (lambda lines: [*lines[:3], *lines[4:]], "event-link"),
        (lambda lines: [*lines[:3], *lines[4:]], "event-sequence"),
        (swap, "event-link"),
        (lambda lines: [*lines, lines[-1]], "event-sequence"),
        (lambda lines: [*lines[:2], b"{}", *lines[2:]], "event-invalid"),
        (lambda lines: [*lines[:2], lines[2].replace(b'"n":2', b'"n":9'), *lines[3:]], "event-invalid"),
        (lambda lines: [*lines[:2], lines[2] + b" ", *lines[3:]], "event-invalid"),
        (lambda lines: [], "events-missing"),
    ],
)
def test_dropped_reordered_repeated_or_edited_events(
    change: Callable[[list[bytes]], list[bytes]], code: str
) -> None:
    data = events()
    assert code in found(edit(data, change), heads(data)).codes


def test_events_of_another_key_or_grant() -> None:
    assert "event-invalid" in found(events(key=Ed25519PrivateKey.generate())).codes
    assert "event-link" in found(events(grant="another.grant.token")).codes


def test_a_last_line_without_end_is_a_fault() -> None:
    assert "event-invalid" in found(events()[:-1], heads(events())).codes
    data = events()
    assert "head-invalid" in found(data, heads(data)[:-1]).codes


def test_a_chain_rebuilt_after_a_countersigned_head_is_seen() -> None:
    first = events()
    signed = heads(first, seqs=[0, 3])
    rebuilt = write_events(EVENT_KEY, GRANT, [(kind, {"forged": True}) for kind in KINDS])
    assert found(rebuilt, heads(rebuilt)).codes == ()  # the pod's own keys make a sound chain ...
    tail = heads(rebuilt, seqs=[7])
    assert found(rebuilt, signed + tail).codes == ("head-mismatch",)  # ... that does not fit what was signed


def test_time_on_the_pod_does_not_go_back() -> None:
    with tempfile.TemporaryFile() as file:
        writer = EventWriter(file.fileno(), EVENT_KEY, time.monotonic() - 50)
        writer.begin(GRANT)
        writer.append("released", {})
        writer._started = time.monotonic()  # as a supervisor with a clock that jumps would
        writer.append("failed", {})
        file.seek(0)
        data = file.read()
    assert "event-time" in found(data).codes


def test_gaps_count_from_the_release_and_between_heads() -> None:
    data = events()
    assert found(data, heads(data, times=[107, 108, 109, 110, 111, 112, 113, 114])).max_gap_sec == 7
    assert found(data, heads(data, times=[101, 102, 103, 104, 140.5, 141, 142, 143])).max_gap_sec == 36.5
    assert found(data, b"").max_gap_sec is None


@pytest.mark.parametrize(
    ("signed", "code"),
    [
        (lambda data: b"", "heads-incomplete"),
        (lambda data: heads(data, seqs=[0, 3]), "heads-incomplete"),
        (lambda data: heads(data, times=[101, 102, 103, 104, 103.5, 106, 107, 108]), "head-time"),
        (lambda data: heads(data, times=[90, 102, 103, 104, 105, 106, 107, 108]), "head-time"),
        (lambda data: heads(data, times=[101, 102, 103, 104, 105, 106, 107, 208]), "head-time"),
        (lambda data: heads(data, seqs=[3, 1, 7]), "head-mismatch"),
        (lambda data: heads(data, leg=(LEG[0], "s002", 1)), "head-other-leg"),
        (lambda data: heads(data, leg=(LEG[0], "s001", 2)), "head-other-leg"),
        (lambda data: heads(data, key=Ed25519PrivateKey.generate()), "head-signature"),
        (lambda data: heads(data).replace(b'"time":103', b'"time":104'), "head-signature"),
        (lambda data: heads(data) + b"{}\n", "head-invalid"),
        (lambda data: heads(data).replace(b'"seq":0', b'"seq": 0'), "head-invalid"),
        (lambda data: heads(data) + b"\n", "head-invalid"),
    ],
)
def test_heads(signed: Callable[[bytes], bytes], code: str) -> None:
    data = events()
    assert code in found(data, signed(data)).codes


def test_a_head_beyond_the_events_is_a_mismatch() -> None:
    data = events()
    shorter = b"".join(line + b"\n" for line in data.splitlines()[:5])
    assert "head-mismatch" in found(shorter, heads(data)).codes


def test_a_head_of_another_form_is_invalid() -> None:
    data = events()
    more = canonical_json(parse_json(heads(data).splitlines()[0]) | {"note": "x"}) + b"\n"
    assert "head-invalid" in found(data, more + heads(data)).codes
