from __future__ import annotations

import math

import pytest

from glasshouse.measurement.controls import expected_delay_pct, judge_aa, judge_delay
from glasshouse.measurement.estimate import Block, Estimate, SlotRate, estimate_blocks, log_from_overhead

from .test_estimate import with_difference


def around(overhead_pct: float, spread: float) -> Estimate:
    centre = log_from_overhead(overhead_pct)
    noise = [-1.5, -1.0, -0.5, -0.2, 0.0, 0.0, 0.2, 0.5, 1.0, 1.5]
    return estimate_blocks([with_difference("ABBA", centre + spread * z) for z in noise], 2.0)


def test_expected_delay() -> None:
    assert expected_delay_pct(3.0) == pytest.approx(2.912621359)
    assert expected_delay_pct(100.0) == 50.0
    assert log_from_overhead(expected_delay_pct(3.0)) == pytest.approx(-math.log(1.03))


@pytest.mark.parametrize(
    ("overhead", "spread", "outcome"),
    [(0.1, 0.005, "passed"), (0.5, 0.0005, "passed"), (2.5, 0.005, "failed"), (-3.0, 0.005, "failed"),
     (0.0, 0.08, "inconclusive")],
)  # fmt: skip
def test_aa(overhead: float, spread: float, outcome: str) -> None:
    result = judge_aa(around(overhead, spread))
    assert (result.kind, result.outcome) == ("aa", outcome)
    assert result.observed_pct == pytest.approx(overhead, abs=1e-6)


@pytest.mark.parametrize(
    ("overhead", "spread", "outcome"),
    [(2.9, 0.005, "passed"), (2.0, 0.005, "failed"), (0.0, 0.005, "failed"), (1.5, 0.06, "inconclusive")],
)
def test_delay(overhead: float, spread: float, outcome: str) -> None:
    assert judge_delay(around(overhead, spread), 3.0).outcome == outcome


def test_a_pair_is_no_control() -> None:
    slots = SlotRate(0, "raw", 100.0, 1.0), SlotRate(1, "protected", 97.0, 1.0)
    pair = estimate_blocks([Block(slots)], 2.0)
    assert judge_aa(pair).outcome == judge_delay(pair, 3.0).outcome == "inconclusive"
