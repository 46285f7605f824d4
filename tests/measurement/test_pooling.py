from __future__ import annotations

import math

import numpy as np
import pytest
import scipy  # its parts load where they are used: every worker of a test run collects this file

from glasshouse.measurement.pooling import pool, reml_tau2

# 13 trials of the BCG vaccine: TB positive and negative, vaccinated then control. Colditz et al.,
# JAMA 271 (1994) 698, as `dat.bcg` of the R package metafor; expected values from the README of
# github.com/wviechtb/metafor: rma(yi, vi, data=dat, test="knha"), log risk ratios, REML.
BCG = [
    (4, 119, 11, 128), (6, 300, 29, 274), (3, 228, 11, 209), (62, 13536, 248, 12619), (33, 5036, 47, 5761),
    (180, 1361, 372, 1079), (8, 2537, 10, 619), (505, 87886, 499, 87892), (29, 7470, 45, 7232),
    (17, 1699, 65, 1600), (186, 50448, 141, 27197), (5, 2493, 3, 2338), (27, 16886, 29, 17825),
]  # fmt: skip


def bcg() -> tuple[list[float], list[float]]:
    effects, errors = [], []
    for a, b, c, d in BCG:
        effects.append(math.log((a / (a + b)) / (c / (c + d))))
        errors.append(math.sqrt(1 / a - 1 / (a + b) + 1 / c - 1 / (c + d)))
    return effects, errors


def test_metafor_readme() -> None:
    effects, errors = bcg()
    assert effects[12] == pytest.approx(-0.0173, abs=5e-5)
    got = pool(effects, errors)
    assert got.k == 13
    assert got.tau2 == pytest.approx(0.3132, abs=5e-5)
    assert got.i2_pct == pytest.approx(92.22, abs=5e-3)
    assert got.q == pytest.approx(152.2330, abs=5e-5)
    assert got.mean == pytest.approx(-0.7145, abs=5e-5)
    assert got.se == pytest.approx(0.1808, abs=5e-5)
    assert got.mean / got.se == pytest.approx(-3.9522, abs=5e-5)
    assert got.p == pytest.approx(0.0019, abs=5e-5)
    assert got.ci_low == pytest.approx(-1.1084, abs=5e-5)
    assert got.ci_high == pytest.approx(-0.3206, abs=5e-5)
    assert got.pi_low is not None
    assert got.pi_high is not None
    assert math.exp(got.pi_low) == pytest.approx(0.14, abs=5e-3)
    assert math.exp(got.pi_high) == pytest.approx(1.76, abs=5e-3)


def reml_objective(tau2: float, y: np.ndarray, v: np.ndarray) -> float:
    w = 1 / (v + tau2)
    mu = (w * y).sum() / w.sum()
    return float(0.5 * (np.log(v + tau2).sum() + math.log(w.sum()) + (w * (y - mu) ** 2).sum()))


@pytest.mark.parametrize("seed", range(12))
def test_reml_agrees_with_direct_maximisation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    k = int(rng.integers(2, 9))
    v = rng.uniform(0.5, 4, k) * 1e-5
    y = rng.normal(-0.01, math.sqrt([0.0, 2e-5, 2e-4][seed % 3]) + 0.003, k)
    best = scipy.optimize.minimize_scalar(
        reml_objective, bounds=(0, 1e-2), args=(y, v), method="bounded", options={"xatol": 1e-13}
    )
    ours = reml_tau2(list(y), list(v))
    assert reml_objective(ours, y, v) <= best.fun + 1e-9
    assert ours == pytest.approx(best.x, rel=1e-3, abs=1e-8)


def test_equal_precision_is_the_t_interval_of_the_means() -> None:
    """With equal errors below the spread, Hartung-Knapp is exactly the one-sample t on the effects."""
    effects = [-0.010, 0.004, -0.031, -0.022]
    got = pool(effects, [0.002] * 4)
    interval = scipy.stats.ttest_1samp(effects, 0.0).confidence_interval(0.95)
    assert got.ci_low == pytest.approx(interval.low)
    assert got.ci_high == pytest.approx(interval.high)
    assert got.tau2 == pytest.approx(np.var(effects, ddof=1) - 0.002**2)
    centre, ci, pi = got.overhead_pct()
    assert ci is not None
    assert pi is not None
    assert pi[0] < ci[0] < centre < ci[1] < pi[1]
    assert ci[0] == pytest.approx(100 * (1 - math.exp(interval.high)))


def test_agreeing_allocations_are_not_made_surer_than_their_own_errors() -> None:
    got = pool([-0.01, -0.01, -0.01], [0.01] * 3)
    assert got.tau2 == 0.0
    assert got.se == pytest.approx(0.01 / math.sqrt(3))


def test_one_allocation_has_no_interval() -> None:
    got = pool([-0.02], [0.01])
    assert (got.k, got.mean, got.ci_low, got.pi_high, got.p) == (1, -0.02, None, None, None)


@pytest.mark.parametrize(
    ("effects", "errors"),
    [([], []), ([0.1], []), ([0.1], [0.0]), ([0.1, math.nan], [1.0, 1.0]), ([0.1], [math.inf])],
)
def test_nonsense_is_refused(effects: list[float], errors: list[float]) -> None:
    with pytest.raises(ValueError, match=r"standard error|finite"):
        pool(effects, errors)
