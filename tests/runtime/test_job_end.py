"""A trainer that its job stopped, or that says nothing any more: real processes, and what ends them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from glasshouse.runtime import job_end
from glasshouse.runtime.channel import Channel, channel_pair
from glasshouse.runtime.job_end import JobEnd


def forked(*, stops: bool) -> int:
    """A child that stops itself and ends with 5 once it was woken; or that does nothing at all."""
    pid = os.fork()
    if pid == 0:
        if stops:
            os.kill(os.getpid(), signal.SIGSTOP)
            os._exit(5)
        while True:
            time.sleep(60)
    return pid


def ended(pid: int) -> int:
    """How it ended. It is killed where it does not end by itself."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        which, status = os.waitpid(pid, os.WNOHANG)
        if which:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError("it did not end")


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    ours, theirs = channel_pair()
    yield ours, theirs
    ours.close()
    theirs.close()


def test_a_stopped_trainer_is_woken_and_goes_on(tmp_path: Path, ends: tuple[Channel, Channel]) -> None:
    pid = forked(stops=True)
    ender = JobEnd(tmp_path / "end", ends[0], pid, 0.0)
    ender.start()
    assert ended(pid) == 5
    ender.stop()
    assert not ender.gave_up


@pytest.mark.parametrize("asked", [True, False])
def test_one_that_says_nothing_past_its_moment_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: tuple[Channel, Channel], asked: bool
) -> None:
    monkeypatch.setattr(job_end, "GRACE_SEC", 0.1)
    monkeypatch.setattr(job_end, "LATE_SEC", 0.1)
    pid = forked(stops=False)
    ender = JobEnd(tmp_path / "end", ends[0], pid, 0.0 if asked else 0.1)
    ender.start()
    if asked:
        (tmp_path / "end").touch()
    else:
        ender.begun()  # its own time ends it
    assert ended(pid) == -signal.SIGKILL
    ender.stop()
    assert ender.gave_up
    if asked:
        assert ends[1].receive(5).kind == "end"


def test_one_that_said_what_became_of_its_job_has_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: tuple[Channel, Channel]
) -> None:
    monkeypatch.setattr(job_end, "GRACE_SEC", 0.0)
    monkeypatch.setattr(job_end, "LATE_SEC", 0.0)
    pid = forked(stops=False)
    ender = JobEnd(tmp_path / "end", ends[0], pid, 0.0)
    ender.start()
    ender.stop()
    (tmp_path / "end").touch()
    assert not ender.is_alive()
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    os.kill(pid, signal.SIGKILL)
    assert ended(pid) == -signal.SIGKILL
