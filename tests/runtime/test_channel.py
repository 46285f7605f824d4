"""The channel between roles: whole messages, descriptors, and peers that are gone, silent or hostile."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glasshouse.errors import LegError
from glasshouse.runtime.channel import (
    MAX_DESCRIPTORS,
    MAX_FRAME,
    Channel,
    ChannelClosedError,
    channel_pair,
    failure_code,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


def pair() -> tuple[Channel, Channel]:
    """Two connected ends, closed when the test is over."""
    ends = channel_pair()
    _opened.extend(ends)
    return ends


_opened: list[Channel] = []


@pytest.fixture(autouse=True)
def close_all() -> Iterator[None]:
    yield
    while _opened:
        _opened.pop().close()


@given(st.text(max_size=20), st.dictionaries(st.text(max_size=8), JSON, max_size=5), st.binary(max_size=4096))
def test_a_message_arrives_as_it_was_sent(kind: str, body: dict, raw: bytes) -> None:
    left, right = pair()
    left.send(kind, body, raw=bytearray(raw))
    left.send("next")
    assert right.receive(5) == (kind, body, bytearray(raw))
    assert right.receive(5) == ("next", {}, bytearray())
    left.close()
    right.close()


def test_large_raw_parts_pass_both_ways() -> None:
    left, right = pair()
    data = bytearray(os.urandom(MAX_FRAME))
    sender = threading.Thread(target=left.send, args=("raw", {}, data))
    sender.start()
    assert right.receive(10)[2] == data
    sender.join()


def test_descriptors_arrive_open_and_not_inheritable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("through the channel")
    left, right = pair()
    with (tmp_path / "file").open("rb") as stream:
        left.send_descriptors([stream.fileno(), stream.fileno()])
        left.send("after")
    found = right.receive_descriptors(5)
    assert len(found) == 2
    assert os.pread(found[0], 7, 0) == b"through"
    assert not os.get_inheritable(found[0])
    # Not one byte of the next message was swallowed.
    assert right.receive(5)[0] == "after"
    for descriptor in found:
        os.close(descriptor)
    left.send_descriptors([])
    assert right.receive_descriptors(5) == []


@pytest.mark.parametrize("count", [-1, MAX_DESCRIPTORS + 1, 2**62, "2", None])
def test_an_absurd_count_of_descriptors_is_refused(count: object) -> None:
    left, right = pair()
    left.send("descriptors", {"count": count})
    with pytest.raises(ChannelClosedError):
        right.receive_descriptors(1)


def test_announced_descriptors_that_do_not_come_time_out() -> None:
    left, right = pair()
    left.send("descriptors", {"count": 1})
    with pytest.raises(LegError) as caught:
        right.receive_descriptors(0.1)
    assert caught.value.code == "runtime-timeout"


def test_a_silent_peer_times_out_and_a_later_send_does_not() -> None:
    left, right = pair()
    with pytest.raises(LegError) as caught:
        right.receive(0.05)
    assert caught.value.code == "runtime-timeout"
    # The receive's leftover time must not cut a send short that waits for a busy peer.
    data = bytearray(MAX_FRAME)
    sender = threading.Thread(target=right.send, args=("raw", {}, data))
    sender.start()
    time.sleep(0.3)
    assert len(left.receive(10)[2]) == MAX_FRAME
    sender.join()


def test_a_peer_that_drips_meets_the_deadline() -> None:
    left, right = pair()
    done = threading.Event()

    def drip() -> None:
        while not done.wait(0.02):
            left.sock.send(b"\0")

    thread = threading.Thread(target=drip)
    thread.start()
    left.sock.send(struct.pack(">I", 1000))
    began = time.monotonic()
    with pytest.raises(LegError):
        right.receive(0.3)
    assert time.monotonic() - began < 2
    done.set()
    thread.join()


def test_a_closed_peer_is_one_error_for_both_sides() -> None:
    left, right = pair()
    left.close()
    with pytest.raises(ChannelClosedError):
        right.receive(1)
    with pytest.raises(ChannelClosedError):
        right.send("anyone", {"x": "y" * 100_000})


def test_a_peer_that_dies_in_mid_message() -> None:
    left, right = pair()
    left.sock.send(struct.pack(">I", 100) + b'{"kind"')
    left.close()
    with pytest.raises(ChannelClosedError):
        right.receive(1)


@pytest.mark.parametrize(
    "frame",
    [
        b"", b"[]", b"null", b"{", b"\xff\xfe", b"[" * 100_000, b'{"kind":"x"}',
        b'{"kind":1,"body":{},"nbytes":0}', b'{"kind":"x","body":[],"nbytes":0}',
        b'{"kind":"x","body":{},"nbytes":-1}', b'{"kind":"x","body":{},"nbytes":true}',
        b'{"kind":"x","body":{},"nbytes":"1"}', b'{"kind":"x","body":{},"nbytes":1e3}',
        b'{"kind":"x","body":{},"nbytes":99999999999}',
    ],
)  # fmt: skip
def test_a_malformed_frame_closes_the_channel(frame: bytes) -> None:
    left, right = pair()
    sender = threading.Thread(target=left.sock.sendall, args=(struct.pack(">I", len(frame)) + frame,))
    sender.start()
    with pytest.raises(ChannelClosedError):
        right.receive(2)
    sender.join()


def test_an_oversized_frame_is_refused_before_it_is_read_or_sent() -> None:
    left, right = pair()
    left.sock.send(struct.pack(">I", MAX_FRAME + 1))
    with pytest.raises(ChannelClosedError):
        right.receive(1)
    with pytest.raises(LegError) as caught:
        left.send("x", {"x": "y" * MAX_FRAME})
    assert caught.value.code == "message-too-large"


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_any_bytes_give_a_message_or_one_of_two_errors(data: bytes) -> None:
    left, right = socket.socketpair()
    with left, right:
        left.sendall(data)
        left.shutdown(socket.SHUT_WR)
        try:
            kind, body, raw = Channel(right).receive(1)
        except (ChannelClosedError, LegError):
            return
        assert isinstance(kind, str)
        assert isinstance(body, dict)
        assert isinstance(raw, bytearray)


@given(st.text(max_size=60))
def test_a_failure_is_a_code_and_nothing_else(text: str) -> None:
    left, right = pair()
    left.send("failed", {"code": text})
    with pytest.raises(LegError) as caught:
        right.expect("ready", 1)
    code = caught.value.code
    assert code in (text, "runtime-error")
    assert set(code) <= set("abcdefghijklmnopqrstuvwxyz-")
    left.close()
    right.close()


def test_codes_of_ours_pass() -> None:
    for code in ("workload-error", "non-finite-loss", "workload-lacks-steps-per-unit"):
        assert failure_code(json.loads(json.dumps({"code": code}))) == code
    assert failure_code({}) == failure_code({"code": None}) == "runtime-error"


def test_another_kind_than_expected_is_an_error() -> None:
    left, right = pair()
    left.send("other")
    with pytest.raises(LegError):
        right.expect("ready", 1)
