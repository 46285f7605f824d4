"""Student's t and the normal distribution, without scipy: a verifier should need little.

Accuracy against scipy is held to 1e-9 by the tests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

_TINY = 1e-300
_EPSILON = 1e-16
_MAX_ITERATIONS = 10_000


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean of at least one value, summed without rounding error (math.fsum)."""
    return math.fsum(values) / len(values)


def sample_sd(values: Sequence[float]) -> float:
    """Sample standard deviation of at least two values, divisor n - 1."""
    centre = mean(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1))


def regularised_beta(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta function I_x(a, b) for 0 <= x <= 1, a > 0, b > 0.

    Continued fraction of NIST DLMF (https://dlmf.nist.gov) 8.17.22, evaluated by Lentz's method as
    modified by Thompson and Barnett (J. Comput. Phys. 64, 1986), with the symmetry 8.17.4 where
    the fraction converges slowly.
    """
    if x <= 0.0:
        return 0.0
    if x >= 1.0:
        return 1.0
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    if x < (a + 1.0) / (a + b + 2.0):
        return front * _beta_fraction(x, a, b) / a
    return 1.0 - front * _beta_fraction(1.0 - x, b, a) / b


def _beta_fraction(x: float, a: float, b: float) -> float:
    def floor(value: float) -> float:
        return value if abs(value) > _TINY else _TINY

    c = 1.0
    d = 1.0 / floor(1.0 - (a + b) * x / (a + 1.0))
    result = d
    for m in range(1, _MAX_ITERATIONS):
        even = m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0))
        for term in (even, odd):
            d = 1.0 / floor(1.0 + term * d)
            c = floor(1.0 + term / c)
            result *= c * d
        if abs(c * d - 1.0) < _EPSILON:
            break
    return result


def t_tail(t: float, df: float) -> float:
    """P(T > t) for Student's t with df > 0 degrees of freedom (DLMF 8.17; Abramowitz and Stegun 26.7.1)."""
    square = t * t
    if square < 1.0:  # near zero df / (df + t^2) rounds to 1; its complement keeps every digit
        half = 0.5 - 0.5 * regularised_beta(square / (df + square), 0.5, 0.5 * df)
    else:
        half = 0.5 * regularised_beta(df / (df + square), 0.5 * df, 0.5)
    return half if t >= 0 else 1.0 - half


def t_quantile(p: float, df: float) -> float:
    """The t with P(T <= t) = p, for 0 < p < 1 and df > 0; by bisection on the upper tail.

    Raises ValueError outside that range.
    """
    if not (0.0 < p < 1.0) or not df > 0:
        raise ValueError("t_quantile needs 0 < p < 1 and df > 0")
    if p == 0.5:
        return 0.0
    tail = min(p, 1.0 - p)
    low, high = 0.0, 1.0
    while t_tail(high, df) > tail:
        low, high = high, high * 2.0
    while True:
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        if t_tail(middle, df) > tail:
            low = middle
        else:
            high = middle
    return high if p > 0.5 else -high
