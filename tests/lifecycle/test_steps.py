"""A step shows its words and gives its reason code to what fails inside and brings none."""

from __future__ import annotations

from pathlib import Path

import pytest

from glasshouse.codes import Code
from glasshouse.errors import (
    GlasshouseError,
    LegError,
    ProviderError,
    RemoteError,
    RentalOver,
    SealError,
    UsageError,
)
from glasshouse.lifecycle.live_run import LiveRun, StepFailed, create
from glasshouse.lifecycle.screen import Screen
from tests.specs import make_spec


@pytest.fixture
def live(tmp_path: Path) -> LiveRun:
    return create(make_spec(), tmp_path, Screen(), [])


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (UsageError("no key file", field="provider.key", value="/x"), Code.SEAL_FAILED),
        (RemoteError("no such file"), Code.SEAL_FAILED),
        (ProviderError("none left", code=Code.NO_CAPACITY), Code.NO_CAPACITY),
        (RentalOver(), Code.RENTAL_DEADLINE),
        (LegError("another GPU", code=Code.GPU_NOT_AS_ASKED), Code.GPU_NOT_AS_ASKED),
        # What a container was refused for says less of a run than the step in which it was.
        (SealError("not a container", codes=[Code.CONTAINER_MALFORMED]), Code.SEAL_FAILED),
    ],
)
def test_a_step_is_the_reason_of_what_brings_none(
    live: LiveRun, error: GlasshouseError, reason: Code, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        pytest.raises(StepFailed) as failed,
        live.step(Code.LEG_FAILED),  # the inner step's reason stands
        live.step(Code.SEAL_FAILED, "sealing"),
    ):
        raise error
    assert failed.value.reason == reason
    assert failed.value.line() == error.line()
    assert failed.value.exit_code == error.exit_code
    said = capsys.readouterr().err
    assert "… sealing" in said
    assert "✓" not in said


def test_an_interrupt_passes_and_a_step_without_words_shows_nothing(
    live: LiveRun, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt), live.step(Code.SEAL_FAILED):
        raise KeyboardInterrupt
    with live.step(Code.JOURNAL_FAILED):
        pass
    assert capsys.readouterr().err == ""


def test_a_run_keeps_each_failure_once_and_the_highest_exit_code(live: LiveRun) -> None:
    live.fail(Code.NO_CAPACITY, "error: none left", 3)
    live.fail(Code.NO_CAPACITY, "error: again", 1)
    live.fail(Code.CONTROLLER_KILLED)
    assert live.ending.failures == [Code.NO_CAPACITY, Code.CONTROLLER_KILLED]
    assert live.ending.messages == ["error: none left", "error: again"]
    assert live.ending.exit_code == 3
    assert list(live.folder.saved().failures) == live.ending.failures
