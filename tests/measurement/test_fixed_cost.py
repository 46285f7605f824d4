from __future__ import annotations

import pytest

from glasshouse.measurement.fixed_cost import fixed_cost, overhead_at, overhead_curve, run_length_for


def test_overhead_of_a_run_by_hand() -> None:
    # An hour of work, 5% fewer units a second: 3789.47 s, and 40 s around it.
    assert overhead_at(3600.0, 40.0, 5.0) == pytest.approx(100 * (1 - 3600 / (3600 / 0.95 + 40)))
    assert overhead_at(40.0, 40.0, 0.0) == pytest.approx(50.0)
    assert overhead_at(1e12, 40.0, 5.0) == pytest.approx(5.0)
    assert overhead_at(600.0, 0.0, -3.0) == pytest.approx(-3.0)


def test_run_length_is_the_inverse() -> None:
    for fixed, steady, target in ((40.0, 0.0, 1.0), (12.0, 1.5, 2.0), (100.0, -2.0, -1.0)):
        length = run_length_for(target, fixed, steady)
        assert length is not None
        assert overhead_at(length, fixed, steady) == pytest.approx(target)
    assert run_length_for(2.0, 40.0, 2.0) is None
    assert run_length_for(2.0, 40.0, 3.0) is None
    assert run_length_for(2.0, 0.0, 1.0) == 0.0
    assert run_length_for(2.0, 0.0, 3.0) is None


def test_curve_falls_towards_the_steady_state() -> None:
    values = [overhead for _, overhead in overhead_curve(30.0, 1.0)]
    assert values == sorted(values, reverse=True)
    assert values[0] > 30.0
    assert 1.0 < values[-1] < 1.1


def test_fixed_cost_takes_medians_by_step() -> None:
    got = fixed_cost(
        [
            {"sealSec": 1.0, "attestSec": 0.5, "totalSec": 90.0},
            {"sealSec": 9.0, "attestSec": 0.1},
            {"sealSec": 2.0, "zeroizeSec": 0.25},
        ]
    )
    assert got == {"sealSec": 2.0, "attestSec": pytest.approx(0.3), "zeroizeSec": 0.25, "totalSec": 2.55}
    assert fixed_cost([]) == {"totalSec": 0.0}
