"""Who presses Ctrl-C while something must be finished is told what, and for how long."""

from __future__ import annotations

import os
import signal

import pytest

from glasshouse.lifecycle.interrupts import Interrupts
from glasshouse.lifecycle.screen import Screen
from glasshouse.lifecycle.waiting import uninterrupted
from glasshouse.providers.base import Waits

WORDS = "RunPod: the list cannot be read: 503: maintenance; trying again, for up to 2 min 30 s"


def asked(waits: Waits, capsys: pytest.CaptureFixture[str]) -> str:
    assert not waits.stopped()
    waits.progress(WORDS)
    os.kill(os.getpid(), signal.SIGINT)
    assert waits.stopped()
    return " ".join(capsys.readouterr().err.split())


def test_a_reap_that_is_asked_to_end_says_what_it_finishes_and_for_how_long(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with uninterrupted(Screen()) as waits:
        said = asked(waits, capsys)
    assert f"({WORDS})" in said
    assert "moment" not in said


def test_so_does_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    with Interrupts(Screen(), lambda: "") as interrupts:
        said = asked(interrupts.waits(), capsys)
        assert f"({WORDS})" in said
        assert not interrupts.waits().stopped()  # what is released next waits until it is asked itself


def test_without_a_word_of_progress_it_is_a_matter_of_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    with uninterrupted(Screen()) as waits:
        os.kill(os.getpid(), signal.SIGINT)
        assert waits.stopped()
    assert "(seconds, where all answer)" in capsys.readouterr().err
