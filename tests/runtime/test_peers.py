"""Waiting for what is said, and for the death of whoever says it; with pidfds and without."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from glasshouse.errors import LegError
from glasshouse.runtime.channel import ChannelClosedError, channel_pair
from glasshouse.runtime.peers import PeerDiedError, Peers


@pytest.fixture(params=["pidfd", "none"], autouse=True)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "none":
        monkeypatch.delattr(os, "pidfd_open")


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as one:
        yield one
        one.kill()


@pytest.mark.parametrize("reaped", [True, False])
def test_a_death_ends_the_wait(process: subprocess.Popen[bytes], reaped: bool) -> None:
    peers = Peers()
    peers.watch("sleeper", process.pid)
    assert not peers.wait(None, 0.01)
    process.kill()
    if reaped:
        process.wait()
    with pytest.raises(PeerDiedError, match="sleeper"):
        peers.wait(None, 30)
    peers.forget("sleeper")
    assert not peers.wait(None, 0.01)


def test_who_is_gone_before_it_is_watched_is_dead(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    peers = Peers()
    peers.watch("sleeper", process.pid)
    with pytest.raises(PeerDiedError):
        peers.wait(None, 30)


def test_what_was_said_before_a_death_is_heard_and_then_the_channel_is_closed(
    process: subprocess.Popen[bytes],
) -> None:
    """The other end stays open, as in a child that the dead process had forked."""
    ours, theirs = channel_pair()
    ours.peers = Peers()
    ours.peers.watch("sleeper", process.pid)
    theirs.send("progress", {"units": 3})
    theirs.send("failed", {"code": "workload-error"})
    process.kill()
    process.wait()
    assert ours.receive(30).body == {"units": 3}
    assert ours.receive(30).kind == "failed"
    with pytest.raises(ChannelClosedError):
        ours.receive(30)
    with pytest.raises(ChannelClosedError):
        ours.receive_descriptors(30)
    theirs.close()
    ours.close()


def test_a_living_peer_does_not_make_a_wait_longer(process: subprocess.Popen[bytes]) -> None:
    ours, theirs = channel_pair()
    ours.peers = Peers()
    ours.peers.watch("sleeper", process.pid)
    with pytest.raises(LegError):
        ours.receive(0.05)
    theirs.close()
    ours.close()


def test_work_gives_what_it_returns_or_raises_and_is_left_behind_at_a_death(
    process: subprocess.Popen[bytes],
) -> None:
    peers = Peers()
    peers.watch("sleeper", process.pid)
    assert peers.during(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        peers.during(lambda: 1 // 0)
    read_end, write_end = os.pipe()

    def deaf() -> bytes:
        process.kill()
        return os.read(read_end, 1)

    with pytest.raises(PeerDiedError):
        peers.during(deaf)
    os.close(write_end)
    os.close(read_end)
