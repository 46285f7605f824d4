from __future__ import annotations

from dataclasses import replace

import pytest

from glasshouse.judgement.facts import RunFacts
from glasshouse.judgement.resources import resources_of

from .facts import facts, ssh_spec, with_launches, with_result


def timed(found: RunFacts, index: int, timings: dict[str, float]) -> RunFacts:
    launch = found.slots[index].launches[0]
    record = launch.record.model_copy(update={"timings": timings})
    return with_launches(found, index, replace(launch, record=record))


def test_steps_and_what_no_step_accounts_for_add_up_to_the_launch() -> None:
    found = facts()  # raw first: set-up 0.5 s, warm-up 5 s, measured 1800 s in either arm
    raw = {"uploadSec": 3.0, "startSec": 1.0, "totalSec": 1812.0}
    protected = {
        "sealSec": 4.0, "uploadSec": 9.0, "startSec": 1.0, "attestSec": 0.25, "unsealSec": 0.5,
        "sealOutputsSec": 0.25, "zeroizeSec": 2.0, "fetchSec": 0.5, "totalSec": 1811.0,
    }  # fmt: skip
    found = timed(timed(found, 0, raw), 1, protected)
    found = with_result(found, 0, cpu_sec=900.0, total_cpu_sec=903.0)
    arms = resources_of(with_result(found, 1, cpu_sec=1800.0, total_cpu_sec=1802.5))
    assert (arms.raw.cpu_share, arms.raw.cpu_sec) == (0.5, 903.0)
    assert (arms.protected.cpu_share, arms.protected.cpu_sec) == (1.0, 1802.5)
    wall = arms.raw.wall_sec
    assert list(wall) == [
        "uploadSec", "startSec", "setupSec", "warmupSec", "measuredSec", "otherSec", "totalSec",
    ]  # fmt: skip
    assert wall["otherSec"] == pytest.approx(1812.0 - 3.0 - 1.0 - 0.5 - 5.0 - 1800.0)
    # Sealing and the sealed package's upload happen before the launch whose timings carry them.
    wall = arms.protected.wall_sec
    assert wall["otherSec"] == pytest.approx(1811.0 - 1.0 - 0.25 - 0.5 - 0.5 - 5.0 - 1800.0 - 2.75)
    assert wall["sealSec"] == 4.0


def test_figures_are_medians_over_the_launches_of_an_arm() -> None:
    found = facts(ssh_spec(order="abba", duration=3200.0))
    slots = [slot.plan.index for slot in found.of("protected")]
    for nth, index in enumerate(slots):
        found = timed(found, index, {"startSec": float(nth), "totalSec": 300.0})
    wall = resources_of(found).protected.wall_sec
    assert wall["startSec"] == 7.5  # of 0 to 15
    assert "zeroizeSec" not in wall


def test_what_was_not_measured_is_not_made_up() -> None:
    arms = resources_of(facts())
    assert arms.raw.cpu_share is None
    assert "otherSec" not in arms.raw.wall_sec
    assert resources_of(facts(ssh_spec(order="protected-only"))).raw is None
