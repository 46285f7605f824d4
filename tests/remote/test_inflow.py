"""What came over a channel: every byte once, in order, however it comes and is read."""

from __future__ import annotations

import os
import socket
import threading
import time

import paramiko
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paramiko.buffered_pipe import PipeTimeout

from glasshouse.remote.inflow import Inflow
from glasshouse.remote.watchdog import READ_AHEAD, HeardSocket


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=12),
    st.lists(st.tuples(st.integers(1, 60), st.booleans()), min_size=1, max_size=5),
)
def test_every_byte_comes_once_and_in_order(pieces: list[bytes], reads: list[tuple[int, bool]]) -> None:
    inflow, got, number = Inflow(1 << 20), b"", 0

    def feed() -> None:
        for piece in pieces:
            inflow.feed(piece)
        inflow.close()

    thread = threading.Thread(target=feed)
    thread.start()
    while True:
        size, into = reads[number % len(reads)]
        number += 1
        if into:
            inflow.read_into(memoryview(bytearray(size)))
        data = bytes(inflow.read(size, 10))
        assert len(data) <= size
        got += data
        if not data:
            break
        assert not into or len(data) == size or not len(inflow)
    thread.join()
    assert got == b"".join(pieces)
    assert not inflow.read_ready()


def test_a_reader_gets_what_there_is_when_its_time_is_over() -> None:
    inflow, view = Inflow(100), memoryview(bytearray(10))
    for _ in range(2):
        inflow.read_into(view)
        with pytest.raises(PipeTimeout):
            inflow.read(10, 0.0)
    with pytest.raises(PipeTimeout):
        inflow.read(1, 0.0)
    inflow.feed(b"abc")
    inflow.read_into(view)
    assert inflow.read(10, 0.0) == b"abc"
    inflow.feed(b"defghijklmnop")
    inflow.read_into(view)
    assert (inflow.read(10, 0.0), inflow.read(9, 0.0), len(inflow)) == (b"defghijklm", b"nop", 0)


def test_it_holds_no_more_than_it_may() -> None:
    inflow = Inflow(10)
    inflow.feed(bytes(10))
    with pytest.raises(paramiko.SSHException, match="more than it was allowed"):
        inflow.feed(b"x")
    assert len(inflow) == 10


def test_an_event_is_set_while_there_is_something() -> None:
    inflow, event = Inflow(10), threading.Event()
    inflow.set_event(event)
    assert not event.is_set()
    inflow.feed(b"ab")
    assert event.is_set()
    inflow.read(1, 0)
    assert event.is_set()
    inflow.read(1, 0)
    assert not event.is_set()
    inflow.close()
    assert event.is_set()
    assert inflow.read(1, 0) == b""


def test_a_socket_that_reads_ahead_gives_the_same_bytes_and_the_end() -> None:
    near, far = socket.socketpair()
    data = os.urandom(2 * READ_AHEAD + 12345)
    with HeardSocket(fileno=near.detach()) as sock, far:
        sock.settimeout(10)
        thread = threading.Thread(target=lambda: (far.sendall(data), far.shutdown(socket.SHUT_WR)))
        thread.start()
        got, number = b"", 0
        while piece := sock.recv((1, 16, 4096, 1 << 20)[number % 4]):
            got += piece
            number += 1
        thread.join()
        assert got == data
        assert sock.heard <= time.monotonic()
