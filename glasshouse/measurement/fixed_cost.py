"""Overhead as a function of run length: fixed seconds and a steady-state percentage together.

Training itself runs unencrypted, so near the end of a long run the steady state is all that is left;
a short run pays mostly for sealing, attestation and zeroization.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median

STEPS = ("sealSec", "uploadSec", "startSec", "attestSec", "releaseSec", "unsealSec", "zeroizeSec", "fetchSec")
ONCE = ("sealSec", "uploadSec", "fetchSec")  # of these, what a run does once, however many launches it has


def fixed_cost(launches: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Median seconds of each lifecycle step over protected launches, and their sum as `totalSec`.

    launches: the `timings` of launch.json; steps that no launch has are left out, and so are keys
    that are no step of the lifecycle.
    """
    found = {
        step: median(values)
        for step in STEPS
        if (values := [float(timings[step]) for timings in launches if step in timings])
    }
    return {**found, "totalSec": math.fsum(found.values())}


def overhead_at(run_sec: float, fixed_sec: float, steady_pct: float) -> float:
    """Overhead in percent of a run that would train for run_sec > 0 seconds unprotected.

    Protected it takes fixed_sec + run_sec / (1 - steady_pct/100); the share of throughput lost is
    100 (1 - run_sec / that). steady_pct below 100.
    """
    protected = fixed_sec + run_sec / (1.0 - steady_pct / 100.0)
    return 100.0 * (1.0 - run_sec / protected)
