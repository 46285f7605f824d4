"""The tamper suite at the turn of a second: whole seconds in tokens must not make an outcome depend on when.

Broker and attester cut their clocks to whole seconds. Here the broker's clock moves only when it is read, and
the attester's not at all, so that a second turns exactly where a test says.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from glasshouse.attestation import client
from glasshouse.attestation.scenarios import SCENARIOS
from glasshouse.attestation.stage import Clock, Scenario, Stage
from glasshouse.attestation.tamper_suite import run_suite

NOON = 1_800_000_000
# What reads the clock more than once between two things that are compared, and what sets it.
OF_TIME = {
    "evidence-relayed",
    "stale-timestamp",
    "future-timestamp",
    "challenge-expired",
    "ticket-expired",
    "jwt-claim-mismatch",
    "challenge-superseded",
    "request-relayed",
    "ear-mismatch",
    "ear-not-yet-valid",
    "grant-info-mismatch",
}


@dataclass
class Turning(Clock):
    """A second passes before each reading."""

    start: float = NOON
    readings: int = 0

    def __call__(self) -> float:
        self.readings += 1
        return self.start + self.readings + self.shift


@dataclass
class TurnsOnce(Turning):
    """A millisecond before a full second, until it was read `before` times; then a millisecond after it."""

    before: int = 0

    def __call__(self) -> float:
        self.readings += 1
        return self.start + self.shift + (-0.001 if self.readings <= self.before else 0.001)


@pytest.fixture(autouse=True)
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """The attester's clock stands: it adds nothing to the broker's time, however slow this machine."""
    monkeypatch.setattr(client, "time", SimpleNamespace(monotonic=lambda: 1000.0, time=lambda: float(NOON)))


@pytest.mark.parametrize(
    "chosen",
    [
        pytest.param(tuple(item for item in SCENARIOS if item.code in OF_TIME), id="of-time"),
        pytest.param(SCENARIOS, id="all", marks=pytest.mark.soak),
    ],
)
def test_a_second_that_turns_between_any_two_steps_changes_nothing(chosen: tuple[Scenario, ...]) -> None:
    assert {item.code for item in SCENARIOS} >= OF_TIME
    report = run_suite(chosen, Turning())
    assert [(row.code, row.reason_codes) for row in report.scenarios if not row.ok] == []


def test_relayed_evidence_is_refused_alike_wherever_a_second_turns() -> None:
    """It deviated where one turned between the other pod's challenge and ours."""
    relayed = tuple(item for item in SCENARIOS if item.code == "evidence-relayed")
    counted = Turning()
    run_suite(relayed, counted)
    for before in range(counted.readings + 1):
        report = run_suite(relayed, TurnsOnce(before=before))
        assert [(before, row.code, row.reason_codes) for row in report.scenarios if not row.ok] == []


def test_the_stage_s_clock_is_the_one_that_attesters_reckon_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wall clock that is set back while the suite runs makes nothing stale."""
    with Stage(tmp_path) as stage:
        before = stage.clock()
        monkeypatch.setattr(time, "time", lambda: 0.0)
        assert stage.clock() >= before
        stage.launch().honest()
