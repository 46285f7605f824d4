from __future__ import annotations

import pytest
import scipy  # its parts load where they are used: every worker of a test run collects this file

from glasshouse.measurement.stats import mean, regularised_beta, sample_sd, t_quantile, t_tail

DEGREES = [1, 2, 3, 4, 7, 9, 19, 38, 99, 499, 5000]


@pytest.mark.parametrize("df", DEGREES)
def test_tail_and_quantile_agree_with_scipy(df: int) -> None:
    for t in (-30.0, -4.0, -1.0, -1e-3, 0.0, 1e-6, 0.3, 1.0, 2.2, 5.0, 12.0, 60.0):
        assert t_tail(t, df) == pytest.approx(float(scipy.stats.t.sf(t, df)), rel=1e-9, abs=1e-300)
    for p in (1e-6, 0.005, 0.025, 0.05, 0.2, 0.499, 0.5, 0.6, 0.8, 0.9, 0.95, 0.975, 0.995, 0.999999):
        assert t_quantile(p, df) == pytest.approx(float(scipy.stats.t.ppf(p, df)), rel=1e-9, abs=1e-12)


def test_incomplete_beta_agrees_with_scipy() -> None:
    for a in (0.5, 1.0, 2.5, 40.0):
        for b in (0.5, 1.0, 3.0, 17.0):
            for x in (0.0, 1e-9, 0.01, 0.3, 0.5, 0.77, 0.999, 1.0):
                assert regularised_beta(x, a, b) == pytest.approx(
                    float(scipy.special.betainc(a, b, x)), rel=1e-9, abs=1e-15
                )


def test_tabulated_quantiles() -> None:
    """NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2, critical values of Student's t."""
    table = {(0.975, 9): 2.262, (0.95, 9): 1.833, (0.975, 1): 12.706, (0.95, 4): 2.132, (0.995, 19): 2.861}
    for (p, df), value in table.items():
        assert round(t_quantile(p, df), 3) == value


def test_closed_forms() -> None:
    # One degree of freedom is Cauchy: tail(1) = 1/4. Two: quantile has an algebraic form.
    assert t_tail(1.0, 1) == pytest.approx(0.25, abs=1e-14)
    p = 0.9
    assert t_quantile(p, 2) == pytest.approx((2 * p - 1) / (2 * p * (1 - p)) ** 0.5, rel=1e-12)
    assert mean([1.0, 2.0, 6.0]) == 3.0
    assert sample_sd([1.0, 2.0, 6.0]) == pytest.approx(7**0.5)


@pytest.mark.parametrize(("p", "df"), [(0.0, 3), (1.0, 3), (0.4, 0), (float("nan"), 3)])
def test_quantile_refuses_nonsense(p: float, df: float) -> None:
    with pytest.raises(ValueError, match="t_quantile needs"):
        t_quantile(p, df)
