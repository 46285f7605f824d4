"""When a session is ended before its work is done: between two units, and never once it is done."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from glasshouse.runtime import harness
from glasshouse.runtime.channel import Channel, channel_pair
from glasshouse.runtime.job_end import JobEnd
from glasshouse.runtime.results import JobExit
from glasshouse.runtime.session_end import SessionEnd


class Counted:
    """A session of three steps a unit, of so many seconds."""

    steps_per_unit = 3

    def __init__(self, unit_sec: float = 0.0) -> None:
        self.unit_sec, self.steps = unit_sec, 0

    def run_unit(self) -> None:
        time.sleep(self.unit_sec)
        self.steps += 3

    def run_steps(self, steps: int) -> None:
        self.steps += steps

    def synchronize(self) -> None:
        pass


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    ours, theirs = channel_pair()
    yield ours, theirs
    ours.close()
    theirs.close()


def stretch(session: Counted, end: SessionEnd, steps: int) -> float:
    units, _ = harness._stretch(session, None, steps, report=lambda *_: None, phase="measure", ended=end)
    return units


@dataclass(frozen=True)
class Had:
    """As much of a result as is looked at."""

    exit: JobExit | None = None


def said(end: SessionEnd) -> JobExit | None:
    return end.stated(Had()).exit  # type: ignore[arg-type]


def test_a_ceiling_ends_it_between_two_units_and_is_stated(ends: tuple[Channel, Channel]) -> None:
    session, end = Counted(0.05), SessionEnd(ends[1], 0.3)
    units = stretch(session, end, 3001)
    assert 1 <= units < 20
    assert session.steps == 3 * units  # and the step that was left is not made either
    assert said(end) == JobExit(code=None, signal=None, out_of_memory=False, out_of_time=True)


def test_what_has_done_nothing_yet_does_one_unit(ends: tuple[Channel, Channel]) -> None:
    session, end = Counted(), SessionEnd(ends[1], 1e-6)
    time.sleep(0.1)
    assert stretch(session, end, 10**9) >= 1
    assert said(end) is not None


@pytest.mark.parametrize("steps", [9, 10])
def test_what_is_done_by_then_is_not_said_to_have_been_ended(
    ends: tuple[Channel, Channel], steps: int
) -> None:
    session, end = Counted(0.01), SessionEnd(ends[1], 60.0)
    stretch(session, end, steps)
    assert (session.steps, said(end)) == (steps, None)


def test_who_asks_ends_it_and_it_is_not_its_ceiling(tmp_path: Path, ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    ender = JobEnd(tmp_path / "end", ours, os.getpid(), 0.0, kills=False)
    ender.start()
    (tmp_path / "end").touch()
    session, end = Counted(0.05), SessionEnd(theirs, 0.0)
    assert 1 <= stretch(session, end, 3 * 10**6) < 1000
    ender.stop()
    assert (said(end), ender.gave_up) == (None, False)
