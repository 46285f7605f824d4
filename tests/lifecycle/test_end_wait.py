"""A job that was asked to end: how long it is waited for, and what a further Ctrl-C does."""

from __future__ import annotations

import os
import signal

import pytest

from glasshouse.codes import Code
from glasshouse.errors import LegError
from glasshouse.lifecycle.end_wait import QUIET_SEC, SLACK_SEC, EndWait
from glasshouse.lifecycle.interrupts import Interrupts, once_more
from glasshouse.lifecycle.screen import Screen
from glasshouse.runtime.params import GRACE_SEC, LATE_SEC

MOST = GRACE_SEC + LATE_SEC + SLACK_SEC


def test_a_job_that_does_not_end_is_not_waited_for_though_it_reports() -> None:
    wait = EndWait(100.0)
    wait.heard(["progress"], 100.0 + MOST)
    with pytest.raises(LegError) as raised:
        wait.heard(["progress"], 101.0 + MOST)
    assert raised.value.code == Code.LOST_LEG


def test_what_is_sealed_is_waited_for_as_long_as_events_come() -> None:
    wait = EndWait(0.0)
    wait.heard(["progress", "trained"], MOST)
    for turn in range(1, 50):
        wait.heard(["progress"], MOST + turn * QUIET_SEC)
    wait.heard([], MOST + 50 * QUIET_SEC - 1)
    with pytest.raises(LegError) as raised:
        wait.heard([], MOST + 50 * QUIET_SEC + 1)
    assert raised.value.code == Code.LOST_LEG


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_further_one_ends_the_wait_and_the_next_is_answered(
    number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with Interrupts(Screen(), lambda: "") as interrupts:
        with pytest.raises(KeyboardInterrupt), interrupts.allowed():
            os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert "finishing first" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt), once_more():
            os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # and no exception
