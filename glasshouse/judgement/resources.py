"""Where a leg's time went: processor time and wall time by step, for each arm. Pure.

An overhead is explained, not only stated: the same steps stand beside each other for both arms, as
medians over launches, and what no step accounts for is `otherSec` (polls, process ends, waiting).
Copies between host and device are not counted: a profiler that sees them slows what it looks at.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping

from glasshouse.judgement.facts import RunFacts
from glasshouse.judgement.record import ArmResources, ResourceFigures
from glasshouse.schema import Result

# Steps by the names in launch.json, in the order in which a launch takes them; an arm has its own ones.
_BEFORE = ("sealSec", "uploadSec", "startSec", "attestSec", "releaseSec", "unsealSec")
_AFTER = ("sealOutputsSec", "zeroizeSec", "fetchSec")
DIGITS = 6


def resources_of(facts: RunFacts) -> ResourceFigures:
    """Processor time and wall time by step, of both arms."""
    return ResourceFigures(protected=_arm(facts, "protected"), raw=_arm(facts, "raw"))


def _arm(facts: RunFacts, arm: str) -> ArmResources | None:
    launches = [(slot.result, slot.timings) for slot in facts.of(arm) if slot.result is not None]
    if not launches:
        return None
    measured = [result for result, _ in launches if result.cpu_sec is not None]
    elapsed = math.fsum(result.elapsed_sec for result in measured)
    share = math.fsum(result.cpu_sec or 0.0 for result in measured) / elapsed if elapsed > 0 else None
    total = [result.total_cpu_sec for result, _ in launches if result.total_cpu_sec is not None]
    return ArmResources(
        cpu_share=None if share is None else round(share, DIGITS),
        cpu_sec=round(statistics.median(total), DIGITS) if total else None,
        wall_sec=_wall([_steps(result, timings) for result, timings in launches]),
    )


def _steps(result: Result, timings: Mapping[str, float]) -> dict[str, float]:
    found = {name: float(timings[name]) for name in _BEFORE if name in timings}
    found |= {
        "setupSec": result.setup_sec,
        "warmupSec": result.warmup_sec,
        "measuredSec": result.elapsed_sec,
    }
    found |= {name: float(timings[name]) for name in _AFTER if name in timings}
    if "totalSec" in timings:
        # Sealing, and the upload of a sealed package, came before the launch and are booked on the first.
        within = math.fsum(
            value
            for name, value in found.items()
            if not ("sealSec" in timings and name in ("sealSec", "uploadSec"))
        )
        found["otherSec"] = max(0.0, float(timings["totalSec"]) - within)
        found["totalSec"] = float(timings["totalSec"])
    return found


def _wall(launches: list[dict[str, float]]) -> dict[str, float]:
    """Medians over the launches that took a step, in the order of the steps."""
    names = dict.fromkeys(name for steps in launches for name in steps)
    order = (*_BEFORE, "setupSec", "warmupSec", "measuredSec", *_AFTER, "otherSec", "totalSec")
    return {
        name: round(statistics.median(steps[name] for steps in launches if name in steps), DIGITS)
        for name in order
        if name in names
    }
