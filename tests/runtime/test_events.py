"""The event chain's form: each line signed and linked, every change of any byte found."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from glasshouse.canonical import CanonicalError, b64u, canonical_json, domain_hash, sha256_hex
from glasshouse.errors import LegError
from glasshouse.runtime.events import MAX_EVENT_BYTES, EventWriter, check_line, event_hash, first_link

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def write(path: Path, *bodies: dict) -> tuple[EventWriter, list[bytes]]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    writer = EventWriter(descriptor, KEY, time.monotonic())
    writer.begin("a.b.c")
    for body in bodies:
        writer.append("progress", body)
    os.close(descriptor)
    return writer, path.read_bytes().splitlines()


def test_the_chain_begins_with_the_grant_and_links_whole_lines(tmp_path: Path) -> None:
    writer, lines = write(tmp_path / "e", {"units": 1}, {"units": 2}, {"units": 3})
    events = [check_line(line, KEY.public_key()) for line in lines]
    assert [event["seq"] for event in events] == [0, 1, 2]
    assert events[0]["prev"] == first_link("a.b.c") == sha256_hex(b"a.b.c")
    assert events[1]["prev"] == event_hash(lines[0]) == sha256_hex(lines[0])
    assert events[2]["prev"] == event_hash(lines[1])
    assert writer.head == event_hash(lines[2])
    assert writer.count == 3


def test_the_signature_is_ed25519_over_a_domain_and_the_canonical_core(tmp_path: Path) -> None:
    _, (line,) = write(tmp_path / "e", {"units": 1})
    core = json.loads(line)
    signature = core.pop("sig")
    message = domain_hash("glasshouse/event/v1", [canonical_json(core)])
    assert signature == b64u(KEY.sign(message))  # Ed25519 is deterministic (RFC 8032)


@settings(max_examples=150)
@given(place=st.integers(0, 9999), bits=st.integers(1, 255))
def test_any_changed_byte_is_found(tmp_path_factory: pytest.TempPathFactory, place: int, bits: int) -> None:
    # The line holds a time, so its length differs from one example to the next.
    _, (line,) = write(tmp_path_factory.mktemp("e") / "e", {"units": 1, "phase": "measure"})
    at = place % len(line)
    changed = line[:at] + bytes([line[at] ^ bits]) + line[at + 1 :]
    with pytest.raises(CanonicalError):
        check_line(changed, KEY.public_key())


def _resign(core: dict) -> bytes:
    signature = KEY.sign(domain_hash("glasshouse/event/v1", [canonical_json(core)]))
    return canonical_json({**core, "sig": b64u(signature)})


@pytest.mark.parametrize(
    "change",
    [
        {"type": "celebrated"}, {"type": 3}, {"seq": -1}, {"seq": True}, {"seq": 1.5}, {"tMs": "0"},
        {"body": []}, {"extra": 1}, {"seq": None},
    ],
)  # fmt: skip
def test_a_well_signed_line_of_another_form_is_refused(change: dict) -> None:
    core = {"seq": 0, "prev": "0" * 64, "type": "progress", "tMs": 0, "body": {}}
    assert check_line(_resign(core), KEY.public_key())["seq"] == 0
    with pytest.raises(CanonicalError):
        check_line(_resign({**core, **change}), KEY.public_key())


def test_another_key_and_another_layout_are_refused(tmp_path: Path) -> None:
    _, (line,) = write(tmp_path / "e", {"units": 1})
    with pytest.raises(CanonicalError):
        check_line(line, Ed25519PrivateKey.generate().public_key())
    with pytest.raises(CanonicalError):
        check_line(json.dumps(json.loads(line)).encode(), KEY.public_key())
    with pytest.raises(CanonicalError):
        check_line(line + b" ", KEY.public_key())


def test_nothing_is_signed_before_the_grant_or_after_the_key_is_gone(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "e", os.O_WRONLY | os.O_CREAT, 0o600)
    writer = EventWriter(descriptor, KEY, time.monotonic())
    with pytest.raises(ValueError, match="not open"):
        writer.append("released", {})
    assert writer.head is None
    writer.begin("a.b.c")
    writer.append("released", {})
    writer.destroy_key()
    with pytest.raises(ValueError, match="not open"):
        writer.append("zeroized", {})
    os.close(descriptor)
    assert len((tmp_path / "e").read_bytes().splitlines()) == 1


def test_an_event_too_large_to_read_is_not_written(tmp_path: Path) -> None:
    writer, _ = write(tmp_path / "e")
    descriptor = os.open(tmp_path / "e", os.O_WRONLY | os.O_APPEND)
    writer._descriptor = descriptor
    with pytest.raises(LegError) as caught:
        writer.append("trained", {"x": "y" * MAX_EVENT_BYTES})
    assert caught.value.code == "event-too-large"
    # The chain goes on: the leg can still sign that it failed.
    writer.append("failed", {"code": "event-too-large"})
    os.close(descriptor)
    (line,) = (tmp_path / "e").read_bytes().splitlines()
    assert check_line(line, KEY.public_key())["seq"] == 0
