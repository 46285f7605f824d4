from __future__ import annotations

import pytest

from glasshouse.measurement.fixed_cost import fixed_cost, overhead_at


def test_overhead_of_a_run_by_hand() -> None:
    # An hour of work, 5% fewer units a second: 3789.47 s, and 40 s around it.
    assert overhead_at(3600.0, 40.0, 5.0) == pytest.approx(100 * (1 - 3600 / (3600 / 0.95 + 40)))
    assert overhead_at(40.0, 40.0, 0.0) == pytest.approx(50.0)
    assert overhead_at(1e12, 40.0, 5.0) == pytest.approx(5.0)
    assert overhead_at(600.0, 0.0, -3.0) == pytest.approx(-3.0)


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
