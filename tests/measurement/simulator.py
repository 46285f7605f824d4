"""A rented machine that misbehaves on purpose, and what each way of measuring makes of it.

    python -m tests.measurement.simulator        prints the table of the site's method page as JSON

Every scenario makes log rates for 40 slots in order of time and adds a known effect to the protected
ones. Three methods then look at the same kind of machine for the same time:

    abba        10 blocks, registered shuffle of ABBA and BAAB, a fresh process a slot, t on blocks
    fixed-abba  the same without the shuffle: every block ABBA
    one-launch  the same shuffle, but one process an arm for the whole run
    single-pair raw for 20 slots, then protected for 20; Welch's t interval over the slots, the
                step-level interval that published pairs invite

The estimator is computed for all repetitions at once here; test_simulator.py holds it equal to
glasshouse.measurement.estimate.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import scipy  # its parts load where they are used: every worker of a test run collects this file
from numpy.typing import NDArray

from glasshouse.measurement.estimate import log_from_overhead
from glasshouse.measurement.schedule import PATTERNS, block_patterns

Array = NDArray[np.float64]
BLOCKS = 10
SLOTS = 4 * BLOCKS
METHODS = ("abba", "fixed-abba", "one-launch", "single-pair")
TRUTH_PCT = 4.0
MARGIN_PCT = 2.0
REPETITIONS = 4000
SEED = 20260301


@dataclass(frozen=True)
class Scenario:
    """One kind of trouble. All sizes are in log rate, so 0.01 is about one percent.

    noise: deviation of a slot; tail_df: Student's t noise with so many degrees of freedom instead of
    normal; drift: total linear change over the run; wander: deviation a slot of a random walk; wave:
    amplitude of a slow oscillation of random phase; slot_bias: what each position of a block adds
    (a pair's second leg gets the last one); luck: deviation of a process's own rate; burst_rate:
    share of slots hit by a neighbour, who takes up to burst_size; seen: share of the bursts that
    telemetry sees, so that their blocks are dropped.
    """

    name: str
    what: str
    noise: float = 0.01
    tail_df: float | None = None
    drift: float = 0.0
    wander: float = 0.0
    wave: float = 0.0
    slot_bias: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    luck: float = 0.0
    burst_rate: float = 0.0
    burst_size: float = 0.0
    seen: float = 0.0


SCENARIOS = (
    Scenario("quiet", "independent noise of 1% a slot, nothing else"),
    Scenario("drift", "the machine slows by 8% over the run", drift=-0.08),
    Scenario("wandering", "a random walk and a slow oscillation", wander=0.01, wave=0.03),
    Scenario("slot-bias", "positions within a block differ by up to 3%", slot_bias=(-0.03, 0.0, 0.0, 0.01)),
    Scenario("launch-luck", "each process is faster or slower by 3% for life", luck=0.03),
    Scenario("bursts", "one slot in ten loses up to 25% to a neighbour", burst_rate=0.1, burst_size=0.25),
    Scenario(
        "bursts-seen",
        "the same, and telemetry sees four in five",
        burst_rate=0.1,
        burst_size=0.25,
        seen=0.8,
    ),
    Scenario("heavy-tails", "slot noise of Student's t with 2.5 degrees of freedom", tail_df=2.5),
    Scenario(
        "everything",
        "all of the above together",
        tail_df=4.0,
        drift=-0.05,
        wander=0.004,
        wave=0.01,
        slot_bias=(-0.015, 0.0, 0.0, 0.005),
        luck=0.015,
        burst_rate=0.05,
        burst_size=0.15,
        seen=0.5,
    ),
)


@cache
def arrangements() -> Array:
    """Every way of dealing +1 (ABBA) to half of the blocks: (252, BLOCKS)."""
    rows = np.full((0, BLOCKS), -1.0)
    for chosen in itertools.combinations(range(BLOCKS), BLOCKS // 2):
        row = np.full((1, BLOCKS), -1.0)
        row[0, list(chosen)] = 1.0
        rows = np.vstack([rows, row])
    return rows


@cache
def registered_signs(count: int = 1000) -> Array:
    """Signs of real registered shuffles, seeds 0..count-1: (count, BLOCKS)."""
    return np.array([[1.0 if p == "ABBA" else -1.0 for p in block_patterns(BLOCKS, s)] for s in range(count)])


def protected_mask(signs: Array) -> NDArray[np.bool_]:
    """(repetitions, BLOCKS, 4): whether a slot is protected."""
    shape = np.array([1.0 if arm == "protected" else -1.0 for arm in PATTERNS["ABBA"]])
    mask: NDArray[np.bool_] = signs[:, :, None] * shape > 0
    return mask


def machine(
    scenario: Scenario, rng: np.random.Generator, repetitions: int
) -> tuple[Array, NDArray[np.bool_]]:
    """Log rates without any effect, and which slots telemetry flags: both (repetitions, SLOTS)."""
    shape = (repetitions, SLOTS)
    if scenario.tail_df is None:
        y = scenario.noise * rng.standard_normal(shape)
    else:
        y = scenario.noise * rng.standard_t(scenario.tail_df, shape)
    time = np.linspace(0.0, 1.0, SLOTS)
    y += scenario.drift * time
    y += np.cumsum(scenario.wander * rng.standard_normal(shape), axis=1)
    y += scenario.wave * np.sin(2 * np.pi * (1.5 * time + rng.random((repetitions, 1))))
    hit = rng.random(shape) < scenario.burst_rate
    y += hit * np.log1p(-scenario.burst_size * rng.random(shape))
    return y, hit & (rng.random(shape) < scenario.seen)


def blocked(
    scenario: Scenario, rng: np.random.Generator, repetitions: int, effect: float, method: str = "abba"
) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Simulate one of the block designs: y (repetitions, BLOCKS, 4), signs, blocks kept."""
    if method == "fixed-abba":
        signs = np.ones((repetitions, BLOCKS))
    else:
        signs = registered_signs()[rng.integers(0, len(registered_signs()), repetitions)]
    protected = protected_mask(signs)
    rates, flagged = machine(scenario, rng, repetitions)
    y = rates.reshape(repetitions, BLOCKS, 4) + np.array(scenario.slot_bias) + effect * protected
    if method == "one-launch":
        luck = scenario.luck * rng.standard_normal((repetitions, 2))
        y += np.where(protected, luck[:, :1, None], luck[:, 1:, None])
    else:
        y += scenario.luck * rng.standard_normal(y.shape)
    kept: NDArray[np.bool_] = np.logical_not(flagged.reshape(repetitions, BLOCKS, 4).any(axis=2))
    return y, signs, kept


@dataclass(frozen=True)
class Intervals:
    """Centres and 95% and 90% half widths in log rate: (repetitions,) each."""

    centre: Array
    half95: Array
    half90: Array

    def covers(self, value: float) -> float:
        """Share of 95% intervals that hold `value`."""
        return float(np.mean(np.abs(self.centre - value) <= self.half95))

    def within(self, margin_pct: float) -> float:
        """Share of 90% intervals inside the margin: the TOST verdict `within`."""
        low, high = log_from_overhead(margin_pct), log_from_overhead(-margin_pct)
        inside = (self.centre - self.half90 > low) & (self.centre + self.half90 < high)
        return float(np.mean(inside))


def differences(y: Array, signs: Array) -> Array:
    """Each block's d: (repetitions, BLOCKS)."""
    protected = protected_mask(signs)
    total = np.where(protected, y, 0.0).sum(axis=2) - np.where(protected, 0.0, y).sum(axis=2)
    result: Array = total / 2.0
    return result


def block_intervals(d: Array, kept: NDArray[np.bool_]) -> Intervals:
    """Student's t on the d of the blocks kept; an infinite width where fewer than two are."""
    n = np.maximum(kept.sum(axis=1), 1)
    centre = np.where(kept, d, 0.0).sum(axis=1) / n
    squares = np.where(kept, (d - centre[:, None]) ** 2, 0.0).sum(axis=1)
    error = np.where(n > 1, np.sqrt(squares / np.maximum(n - 1, 1) / n), np.inf)
    df = np.maximum(n - 1, 1)
    return Intervals(centre, scipy.stats.t.ppf(0.975, df) * error, scipy.stats.t.ppf(0.95, df) * error)


def randomisation_p(d: Array, signs: Array) -> Array:
    """Exact p over the 252 arrangements, for repetitions without dropped blocks: (repetitions,)."""
    sums = np.abs((signs * d) @ arrangements().T)
    observed = np.abs(d.sum(axis=1))
    result: Array = (sums >= observed[:, None] - 1e-12).mean(axis=1)
    return result


def pair_intervals(
    scenario: Scenario, rng: np.random.Generator, repetitions: int, effect: float
) -> Intervals:
    """A raw-first pair of the same total length, with Welch's interval over its slots."""
    rates, _ = machine(scenario, rng, repetitions)
    half = SLOTS // 2
    luck = scenario.luck * rng.standard_normal((repetitions, 2))
    raw = rates[:, :half] + luck[:, :1] + scenario.slot_bias[0]
    protected = rates[:, half:] + luck[:, 1:] + scenario.slot_bias[3] + effect
    parts = [np.var(leg, axis=1, ddof=1) / half for leg in (protected, raw)]
    error = np.sqrt(parts[0] + parts[1])
    df = (parts[0] + parts[1]) ** 2 / ((parts[0] ** 2 + parts[1] ** 2) / (half - 1))
    centre = protected.mean(axis=1) - raw.mean(axis=1)
    return Intervals(centre, scipy.stats.t.ppf(0.975, df) * error, scipy.stats.t.ppf(0.95, df) * error)


def intervals(
    scenario: Scenario, method: str, effect_pct: float, repetitions: int = REPETITIONS, seed: int = SEED
) -> Intervals:
    """Simulate `method` on `scenario` with a known overhead in percent."""
    rng = np.random.default_rng([seed, METHODS.index(method), round(1000 * effect_pct)])
    effect = log_from_overhead(effect_pct)
    if method == "single-pair":
        return pair_intervals(scenario, rng, repetitions, effect)
    y, signs, kept = blocked(scenario, rng, repetitions, effect, method)
    return block_intervals(differences(y, signs), kept)


def null_p(scenario: Scenario, repetitions: int = REPETITIONS, seed: int = SEED) -> Array:
    """Randomisation p-values where there is no effect (nothing dropped)."""
    rng = np.random.default_rng([seed, 99])
    y, signs, _ = blocked(scenario, rng, repetitions, 0.0)
    return randomisation_p(differences(y, signs), signs)


def table(repetitions: int = REPETITIONS, seed: int = SEED) -> dict[str, Any]:
    """The figures of the method page: per scenario and method, as shares and percentages."""

    def percent(values: Array, of: Callable[[Array], Any]) -> float:
        return round(float(of(-100.0 * np.expm1(values))), 3)

    rows = []
    for scenario in SCENARIOS:
        methods = {}
        for method in METHODS:
            known = intervals(scenario, method, TRUTH_PCT, repetitions, seed)
            null = intervals(scenario, method, 0.0, repetitions, seed)
            at_margin = intervals(scenario, method, MARGIN_PCT, repetitions, seed)
            methods[method] = {
                "coverage": round(known.covers(log_from_overhead(TRUTH_PCT)), 4),
                "falsePositive": round(1.0 - null.covers(0.0), 4),
                "falseWithin": round(at_margin.within(MARGIN_PCT), 4),
                "meanPct": percent(known.centre, np.mean),
                "lowest95Pct": percent(known.centre, lambda v: np.quantile(v, 0.025)),
                "highest95Pct": percent(known.centre, lambda v: np.quantile(v, 0.975)),
                "medianHalfWidthPct": round(100.0 * float(np.median(known.half95)), 3),
            }
        rows.append(
            {
                "name": scenario.name,
                "what": scenario.what,
                "randomisationFalsePositive": round(
                    float(np.mean(null_p(scenario, repetitions, seed) <= 0.05)), 4
                ),
                "methods": methods,
            }
        )
    return {
        "truthPct": TRUTH_PCT,
        "marginPct": MARGIN_PCT,
        "blocks": BLOCKS,
        "repetitions": repetitions,
        "seed": seed,
        "scenarios": rows,
    }


if __name__ == "__main__":
    json.dump(table(), sys.stdout, indent=1)
    sys.stdout.write("\n")
