"""Across allocations: random effects on the log rate ratios, Hartung-Knapp, prediction interval.

One allocation says what protection costs on one rented machine. What a reader wants is the mean over
machines of that kind, and what their next machine may show: the prediction interval. n is the
number of known-distinct allocations, never the number of slots.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from glasshouse.measurement.estimate import overhead_from_log
from glasshouse.measurement.stats import mean, t_quantile, t_tail

_MAX_ITERATIONS = 1000
_CONVERGED = 1e-14


@dataclass(frozen=True)
class Pooled:
    """The pooled mean of k effects on their own scale (log rate ratios), with 95% intervals.

    se: standard error after Hartung and Knapp, never below the plain one; tau2: variance between
    allocations; i2_pct: share of the variation that is between them; q: Cochran's statistic.
    ci_* and pi_* are None for k = 1, where nothing can be said beyond the one effect.
    """

    k: int
    mean: float
    se: float
    tau2: float
    q: float
    i2_pct: float
    p: float | None
    ci_low: float | None
    ci_high: float | None
    pi_low: float | None
    pi_high: float | None

    def overhead_pct(self) -> tuple[float, tuple[float, float] | None, tuple[float, float] | None]:
        """(centre, confidence interval, prediction interval) as overhead in percent."""
        return (
            overhead_from_log(self.mean),
            _percent(self.ci_low, self.ci_high),
            _percent(self.pi_low, self.pi_high),
        )


def pool(effects: Sequence[float], errors: Sequence[float]) -> Pooled:
    """Pool effects with standard errors (> 0), one pair an allocation.

    tau2 by restricted maximum likelihood; the standard error scaled by sqrt(max(1, q*)), q* the
    weighted residual variance (Hartung and Knapp, Stat. Med. 20 (2001) 3875; the floor of 1 is the
    modification that Roever, Knapp and Friede, BMC Med. Res. Methodol. 15 (2015) 99, recommend for few
    studies of unequal precision); t with k - 1 degrees of freedom for both intervals (IntHout,
    Ioannidis and Borm, BMC Med. Res. Methodol. 14 (2014) 25; prediction: IntHout et al., BMJ Open 6
    (2016) e010247).
    Raises ValueError when lengths differ, nothing is given, or an error is not positive and finite.
    """
    k = len(effects)
    if k == 0 or k != len(errors):
        raise ValueError("pool needs as many standard errors as effects, and at least one")
    if not all(math.isfinite(y) for y in effects):
        raise ValueError("an effect is not finite")
    if not all(math.isfinite(error) and error > 0 for error in errors):
        raise ValueError("a standard error is not positive and finite")
    variances = [error * error for error in errors]
    fixed_weights = [1.0 / variance for variance in variances]
    q = _weighted_squares(effects, fixed_weights)
    if k == 1:
        return Pooled(1, effects[0], errors[0], 0.0, 0.0, 0.0, None, None, None, None, None)
    tau2 = reml_tau2(effects, variances)
    weights = [1.0 / (variance + tau2) for variance in variances]
    centre = _weighted_mean(effects, weights)
    scale = _weighted_squares(effects, weights) / (k - 1)
    se = math.sqrt(max(1.0, scale) / math.fsum(weights))
    t = t_quantile(0.975, k - 1)
    spread = t * math.sqrt(tau2 + se * se)
    typical = (
        (k - 1)
        * math.fsum(fixed_weights)
        / (math.fsum(fixed_weights) ** 2 - math.fsum(w * w for w in fixed_weights))
    )
    return Pooled(
        k=k,
        mean=centre,
        se=se,
        tau2=tau2,
        q=q,
        i2_pct=100.0 * tau2 / (tau2 + typical),
        p=2 * t_tail(abs(centre) / se, k - 1),
        ci_low=centre - t * se,
        ci_high=centre + t * se,
        pi_low=centre - spread,
        pi_high=centre + spread,
    )


def reml_tau2(effects: Sequence[float], variances: Sequence[float]) -> float:
    """The between-study variance by restricted maximum likelihood, at least 0, for k >= 2.

    Fixed-point iteration of Viechtbauer, J. Educ. Behav. Stat. 30 (2005) 261, equation 13:
    tau2 = sum w^2 ((y - mu)^2 - v) / sum w^2 + 1 / sum w, w = 1 / (v + tau2), truncated at 0.
    """
    tau2 = max(
        0.0, math.fsum((y - mean(effects)) ** 2 for y in effects) / (len(effects) - 1) - mean(variances)
    )
    scale = tau2 + max(variances)
    for _ in range(_MAX_ITERATIONS):
        weights = [1.0 / (variance + tau2) for variance in variances]
        centre = _weighted_mean(effects, weights)
        squares = [w * w for w in weights]
        excess = math.fsum(
            s * ((y - centre) ** 2 - v) for s, y, v in zip(squares, effects, variances, strict=True)
        )
        updated = max(0.0, excess / math.fsum(squares) + 1.0 / math.fsum(weights))
        if abs(updated - tau2) <= _CONVERGED * scale:
            return updated
        tau2 = updated
    return tau2


def _weighted_mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return math.fsum(w * y for w, y in zip(weights, values, strict=True)) / math.fsum(weights)


def _weighted_squares(values: Sequence[float], weights: Sequence[float]) -> float:
    centre = _weighted_mean(values, weights)
    return math.fsum(w * (y - centre) ** 2 for w, y in zip(weights, values, strict=True))


def _percent(low: float | None, high: float | None) -> tuple[float, float] | None:
    if low is None or high is None:
        return None
    return overhead_from_log(high), overhead_from_log(low)
