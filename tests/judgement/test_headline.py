from __future__ import annotations

import math
from typing import Any

import pytest

from glasshouse.judgement.caveats import CAVEATS
from glasshouse.judgement.headline import BARRED_BY, MIN_ALLOCATIONS, Candidate, headlines
from glasshouse.measurement.estimate import overhead_from_log
from glasshouse.measurement.pooling import pool
from glasshouse.measurement.stats import t_quantile


def row(number: int, **changes: Any) -> Candidate:
    """A qualifying row with d = -0.01 - number/1000 and a standard error of 0.002 over ten blocks."""
    d, half = -0.01 - number / 1000, t_quantile(0.975, 9) * 0.002
    values = {
        "id": f"2026-11-0{number}-row", "gpu": "h100", "model": "mlp-large", "allocation": f"pod{number}",
        "overhead_pct": overhead_from_log(d), "low_pct": overhead_from_log(d + half),
        "high_pct": overhead_from_log(d - half), "n": 10, "caveats": ("not-a-tee", "payload-disclosed"),
    }  # fmt: skip
    return Candidate(**(values | changes))


def test_the_standard_error_comes_back_out_of_the_published_interval() -> None:
    assert row(1).error == pytest.approx(0.002, rel=1e-12)


def test_three_allocations_make_a_headline_pooled_by_random_effects() -> None:
    (found,) = headlines([row(3), row(1), row(2)])
    assert found.stands
    assert found.rows == ("2026-11-01-row", "2026-11-02-row", "2026-11-03-row")
    pooled = pool([-0.011, -0.012, -0.013], [0.002] * 3)
    centre, ci, prediction = pooled.overhead_pct()
    assert found.overhead_pct == pytest.approx(centre, rel=1e-9)
    assert found.ci_pct == pytest.approx(ci, rel=1e-6)
    assert found.prediction_pct == pytest.approx(prediction, rel=1e-6)
    assert found.ci_pct is not None
    assert found.prediction_pct is not None
    assert found.prediction_pct[0] <= found.ci_pct[0] < centre < found.ci_pct[1] <= found.prediction_pct[1]
    assert found.verdict == "within"


def test_below_three_allocations_nothing_is_said() -> None:
    (found,) = headlines([row(1), row(2)])
    assert MIN_ALLOCATIONS == 3
    assert (found.stands, found.allocations, found.verdict, found.ci_pct) == (False, 2, None, None)


@pytest.mark.parametrize("code", BARRED_BY)
def test_every_barring_caveat_keeps_a_row_out_and_says_so(code: str) -> None:
    (found,) = headlines([row(1), row(2), row(3, caveats=("not-a-tee", code))])
    assert not found.stands
    assert found.barred == (("2026-11-03-row", (code,)),)


def test_barring_codes_are_caveats() -> None:
    assert set(BARRED_BY) <= {caveat.code for caveat in CAVEATS}


def test_one_allocation_counts_once_by_its_earliest_row() -> None:
    (found,) = headlines([row(1), row(2), row(3, allocation="pod1"), row(4, allocation=None)])
    assert found.rows == ("2026-11-01-row", "2026-11-02-row")
    assert dict(found.barred) == {
        "2026-11-03-row": ("allocation-counted",),
        "2026-11-04-row": ("allocation-unknown",),
    }


def test_a_row_without_an_interval_is_barred() -> None:
    (found,) = headlines([row(1), row(2), row(3, low_pct=None, high_pct=None)])
    assert found.barred == (("2026-11-03-row", ("no-interval",)),)
    (found,) = headlines([row(1), row(2), row(3, low_pct=1.0, high_pct=1.0)])
    assert found.barred[0][1] == ("no-interval",)


def test_gpus_and_models_are_never_mixed_and_order_of_input_does_not_matter() -> None:
    rows = [row(1), row(2, gpu="a4000"), row(3, model="mlp"), row(4)]
    found = headlines(rows)
    assert [(one.gpu, one.model, one.allocations) for one in found] == [
        ("a4000", "mlp-large", 1), ("h100", "mlp", 1), ("h100", "mlp-large", 2),
    ]  # fmt: skip
    assert headlines(reversed(rows)) == found


def test_machines_that_disagree_widen_the_headline() -> None:
    def at(number: int, d: float) -> Candidate:
        half = t_quantile(0.975, 9) * 0.002
        ends = {"low_pct": overhead_from_log(d + half), "high_pct": overhead_from_log(d - half)}
        return row(number, overhead_pct=overhead_from_log(d), **ends)

    (found,) = headlines([at(1, -0.06), at(2, 0.0), at(3, 0.03)])
    assert found.ci_pct is not None
    assert found.ci_pct[0] < -5
    assert found.ci_pct[1] > 5
    assert found.verdict == "inconclusive"
    assert math.isfinite(found.overhead_pct or math.nan)
