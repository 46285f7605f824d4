"""Controls: does the harness see nothing where there is nothing, and 3% where there is 3%?

An A/A run compares raw with raw through the identical code; a delay run lengthens the raw legs in the
protected role by a known share. A row that relies on a control which failed, or on none, is
downgraded by judgement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from glasshouse.measurement.estimate import Estimate

Outcome = Literal["passed", "failed", "inconclusive"]


@dataclass(frozen=True)
class ControlResult:
    """What a control run says: expected and observed overhead in percent, and why it passed or not."""

    kind: Literal["aa", "delay"]
    outcome: Outcome
    expected_pct: float
    observed_pct: float | None
    reason: str


def expected_delay_pct(delay_pct: float) -> float:
    """Overhead in percent that steps longer by delay_pct percent must show: 100 (1 - 1 / (1 + p))."""
    return 100.0 * (1.0 - 1.0 / (1.0 + delay_pct / 100.0))


def judge_aa(estimate: Estimate) -> ControlResult:
    """Judge an A/A run by its equivalence verdict, not by a test that 5% of sound runs fail.

    passed: within the margin; failed: the 95% interval excludes zero and the run is not within;
    inconclusive: too wide to say.
    """
    low, high = estimate.ci_low_pct, estimate.ci_high_pct
    if low is None or high is None:
        return _result("aa", "inconclusive", 0.0, estimate, "no interval")
    if estimate.verdict == "within":
        return _result("aa", "passed", 0.0, estimate, f"within {estimate.margin_pct:g}% of no difference")
    if low > 0.0 or high < 0.0:
        return _result("aa", "failed", 0.0, estimate, "a difference between identical arms")
    return _result("aa", "inconclusive", 0.0, estimate, f"interval wider than {estimate.margin_pct:g}%")


def judge_delay(estimate: Estimate, delay_pct: float) -> ControlResult:
    """Judge a delay run: its 95% interval must hold the expected overhead and exclude zero.

    failed: the interval misses the expected overhead; inconclusive: it holds zero as well.
    """
    expected = expected_delay_pct(delay_pct)
    low, high = estimate.ci_low_pct, estimate.ci_high_pct
    if low is None or high is None:
        return _result("delay", "inconclusive", expected, estimate, "no interval")
    if not low <= expected <= high:
        return _result("delay", "failed", expected, estimate, "the known delay is outside the interval")
    if low <= 0.0 <= high:
        return _result("delay", "inconclusive", expected, estimate, "the interval holds zero as well")
    return _result("delay", "passed", expected, estimate, "the known delay is inside the interval")


def _result(
    kind: Literal["aa", "delay"], outcome: Outcome, expected: float, estimate: Estimate, reason: str
) -> ControlResult:
    return ControlResult(kind, outcome, expected, estimate.overhead_pct, reason)
