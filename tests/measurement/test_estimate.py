from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import scipy  # its parts load where they are used: every worker of a test run collects this file

from glasshouse.measurement.estimate import (
    Block,
    SlotRate,
    estimate_blocks,
    log_from_overhead,
    overhead_from_log,
    pair_overhead_pct,
    verdict,
)
from glasshouse.measurement.schedule import PATTERNS


def block(pattern: str, logs: list[float]) -> Block:
    """A block whose slots have the given log rates, each over 10 seconds."""
    slots = [
        SlotRate(position, arm, 10.0 * math.exp(y), 10.0)
        for position, (arm, y) in enumerate(zip(PATTERNS[pattern], logs, strict=True))
    ]
    return Block(tuple(slots))


def with_difference(pattern: str, d: float) -> Block:
    base = [d if arm == "protected" else 0.0 for arm in PATTERNS[pattern]]
    return block(pattern, base)


def test_transformations_are_inverse() -> None:
    for percent in (-50.0, -2.0, 0.0, 1e-6, 3.0, 90.0):
        assert overhead_from_log(log_from_overhead(percent)) == pytest.approx(percent, abs=1e-12)
    assert overhead_from_log(math.log(0.97)) == pytest.approx(3.0)


def test_pair_is_the_published_formula() -> None:
    slots = SlotRate(0, "raw", 1000.0, 10.0), SlotRate(1, "protected", 940.0, 10.0)
    estimate = estimate_blocks([Block(slots)], 2.0)
    assert estimate.overhead_pct == pytest.approx(6.0)
    assert pair_overhead_pct(100.0, 94.0) == pytest.approx(6.0)
    assert (estimate.method, estimate.n, estimate.verdict) == ("single-pair", 1, "inconclusive")
    assert estimate.ci_low_pct is None
    assert estimate.order_effect_pct is None
    assert estimate.randomisation_p is None
    assert estimate.leave_one_out == ()


def test_interval_is_the_paired_t_interval() -> None:
    """Oracle: scipy's one-sample t on the d, ends transformed; standard deviation by hand."""
    d = [-0.031, -0.028, -0.035, -0.022, -0.030, -0.041, -0.027, -0.033, -0.029, -0.026]
    patterns = ["ABBA", "BAAB"] * 5
    got = estimate_blocks([with_difference(p, x) for p, x in zip(patterns, d, strict=True)], 2.0)
    test = scipy.stats.ttest_1samp(d, 0.0)
    for level, low, high in (
        (0.95, got.ci_low_pct, got.ci_high_pct),
        (0.90, got.tost_low_pct, got.tost_high_pct),
    ):
        interval = test.confidence_interval(level)
        assert low == pytest.approx(100 * (1 - math.exp(interval.high)), abs=1e-9)
        assert high == pytest.approx(100 * (1 - math.exp(interval.low)), abs=1e-9)
    assert got.overhead_pct == pytest.approx(100 * (1 - math.exp(sum(d) / 10)))
    assert got.n == got.blocks == 10
    assert got.method == "t-blocks"
    assert got.verdict == "exceeds"
    assert got.randomisation_p == 2 / 252
    error = scipy.stats.sem(d)
    mde = (scipy.stats.t.ppf(0.975, 9) + scipy.stats.t.ppf(0.8, 9)) * error
    assert got.mde80_pct == pytest.approx(100 * (1 - math.exp(-mde)))
    upper = scipy.stats.ttest_1samp(d, math.log(0.98), alternative="greater").pvalue
    lower = scipy.stats.ttest_1samp(d, math.log(1.02), alternative="less").pvalue
    assert got.tost_p == pytest.approx(max(upper, lower))
    without_first = 100 * (1 - math.exp(sum(d[1:]) / 9))
    assert got.leave_one_out[0] == pytest.approx(without_first)
    assert len(got.leave_one_out) == 10


def test_students_sleep_data() -> None:
    """W. S. Gosset, The Probable Error of a Mean, Biometrika 6 (1908), as in R's `sleep`: the mean
    difference is 1.58 hours, t = 4.0621, 95% interval 0.70 to 2.46 (R documentation, ?t.test, paired).
    """
    hours = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
    scale = 100.0  # d must be a plausible log ratio; the t interval scales with it
    got = estimate_blocks([with_difference("ABBA", h / scale) for h in hours], 2.0)
    assert got.mean_log == pytest.approx(1.58 / scale)
    assert got.sd_log is not None
    assert got.mean_log is not None
    assert got.mean_log / (got.sd_log / math.sqrt(10)) == pytest.approx(4.0621, abs=5e-5)
    assert got.ci_high_pct is not None
    assert got.ci_low_pct is not None
    assert log_from_overhead(got.ci_high_pct) * scale == pytest.approx(0.7001142, abs=1e-6)
    assert log_from_overhead(got.ci_low_pct) * scale == pytest.approx(2.4598858, abs=1e-6)


def test_linear_drift_cancels_exactly() -> None:
    """Rates drift linearly in log over the whole run; every block's d is still the true one."""
    true = log_from_overhead(4.0)
    for slope in (-0.05, 0.02, 0.3):
        blocks = []
        for index, pattern in enumerate(["ABBA", "BAAB", "BAAB", "ABBA", "ABBA", "BAAB", "ABBA", "BAAB"]):
            logs = [
                slope * (4 * index + position) + (true if arm == "protected" else 0.0)
                for position, arm in enumerate(PATTERNS[pattern])
            ]
            blocks.append(block(pattern, logs))
        got = estimate_blocks(blocks, 2.0)
        assert got.overhead_pct == pytest.approx(4.0, abs=1e-9)
        assert got.sd_log == pytest.approx(0.0, abs=1e-12)
        # The second of two neighbours is faster by the slope.
        assert got.order_effect_pct == pytest.approx(overhead_from_log(slope), abs=1e-9)


def test_curved_drift_cancels_between_the_kinds_of_block() -> None:
    curve = [0.0, 0.01, 0.04, 0.09]
    blocks = [block("ABBA", curve), block("BAAB", curve)] * 4
    assert estimate_blocks(blocks[:1], 2.0).overhead_pct != pytest.approx(0.0, abs=0.1)
    assert estimate_blocks(blocks, 2.0).overhead_pct == pytest.approx(0.0, abs=1e-12)


def test_slot_order_in_the_block_does_not_matter() -> None:
    one = block("ABBA", [0.0, 0.1, 0.3, 0.2])
    two = Block(tuple(reversed(one.slots)))
    assert estimate_blocks([one, one], 2.0) == estimate_blocks([two, two], 2.0)


def test_disturbed_blocks_go_whole_and_are_counted_by_arm() -> None:
    good = [with_difference("ABBA", -0.01 * i) for i in range(6)]
    first = good[0].slots
    hit = Block((replace(first[0], disturbed=True), first[1], replace(first[2], disturbed=True), first[3]))
    short = Block(first[:3])
    idle = Block((replace(first[0], units=0.0), *first[1:]))
    nonsense = Block((replace(first[0], elapsed_sec=math.nan), *first[1:]))
    got = estimate_blocks([hit, *good, short, idle, nonsense], 2.0)
    assert got.dropped.blocks == (0, 7, 8, 9)
    assert (got.dropped.protected, got.dropped.raw, got.dropped.incomplete) == (1, 1, 3)
    clean = estimate_blocks(good, 2.0)
    assert replace(got, dropped=clean.dropped) == clean


def test_nothing_left_is_still_an_estimate() -> None:
    for blocks in ([], [Block(())]):
        got = estimate_blocks(blocks, 2.0)
        assert (got.overhead_pct, got.n, got.method, got.verdict) == (None, 0, "none", "inconclusive")


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((-1.9, 1.9), "within"), ((-0.1, 2.0), "inconclusive"), ((2.1, 3.0), "exceeds"),
        ((-4.0, -2.5), "exceeds"), ((1.0, 5.0), "inconclusive"), ((-9.0, 9.0), "inconclusive"),
        (None, "inconclusive"),
    ],
)  # fmt: skip
def test_verdict(interval: tuple[float, float] | None, expected: str) -> None:
    assert verdict(interval, 2.0) == expected


def test_verdict_and_tost_p_agree() -> None:
    rng = random.Random(5)
    seen = set()
    for _ in range(200):
        centre, spread = rng.uniform(-0.03, 0.03), rng.uniform(0.001, 0.03)
        blocks = [with_difference("ABBA", rng.gauss(centre, spread)) for _ in range(10)]
        got = estimate_blocks(blocks, 2.0)
        assert got.tost_p is not None
        assert (got.verdict == "within") == (got.tost_p < 0.05)
        seen.add(got.verdict)
    assert seen == {"within", "exceeds", "inconclusive"}


def test_identical_blocks_have_no_width() -> None:
    got = estimate_blocks([with_difference("ABBA", 0.0), with_difference("BAAB", 0.0)] * 4, 2.0)
    assert (got.ci_low_pct, got.ci_high_pct, got.tost_p, got.verdict) == (0.0, 0.0, 0.0, "within")
    assert got.randomisation_p == 1.0
