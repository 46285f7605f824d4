"""Judging what the pod recorded of itself: was it one machine, and was a slot left in peace?

The pod samples (runtime/machine.py); here the samples are judged, from the bundle. Everything judged is
self-reported by the pod. Values arrive as nvidia-smi prints them, so numbers may be strings, and "N/A" means
that the device does not say. What a record does not have was not read: no default stands for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from glasshouse.schema import Machine, Sample

# nvmlClocksEventReasons, NVML API reference: HW slowdown, SW thermal, HW thermal, HW power brake.
# Not counted: idle (0x1), application clocks (0x2), software power cap (0x4, normal at full load),
# sync boost (0x10), display clock (0x100).
THROTTLE_MASK = 0x8 | 0x20 | 0x40 | 0x80

_SAME = (
    ("boot_id", "boot-id"),
    ("allocation", "allocation"),
    ("gpu_uuids", "gpu-uuid"),
    ("pci_bus_ids", "pci-bus-id"),
    ("driver", "driver"),
    ("cpu_model", "cpu-model"),
)
_REQUIRED = ("boot_id", "allocation")


@dataclass(frozen=True)
class Limits:
    """When a slot counts as disturbed. Shares are of the slot's samples.

    clock_drop_pct below the slot's own median clock, in at least clock_drop_share of the samples and in two
    of them; CPU limits, in percent of the whole machine and as means over the slot, apply only
    where there is no GPU: a container sees its whole host in /proc/stat, neighbours included.
    """

    clock_drop_pct: float = 15.0
    clock_drop_share: float = 0.1
    others_pct: float = 50.0
    steal_pct: float = 5.0


def same_machine(machines: Sequence[Machine]) -> list[str]:
    """Why these machine records, in order of time, are not proof of one machine; [] when they are.

    Each is recorded at a slot's edge: boot id, allocation, GPU UUIDs, PCI bus ids, driver and CPU must
    be equal in all; uptime and uncorrected ECC counts must not fall. Fewer than two records, or one
    without boot id or allocation, prove nothing.
    """
    if len(machines) < 2:
        return ["machine-records-missing"]
    failures = [
        f"{name}-missing"
        for field, name in _SAME
        if field in _REQUIRED and not all(machine.said(field) for machine in machines)
    ]
    first = machines[0]
    failures += [
        f"{name}-changed"
        for field, name in _SAME
        if any(machine.said(field) != first.said(field) for machine in machines[1:])
    ]
    if not _non_decreasing([machine.uptime_sec for machine in machines]):
        failures.append("uptime-decreased")
    counters = [[_number(count) for count in machine.ecc_uncorrected] for machine in machines]
    if not all(_non_decreasing(column) for column in zip(*counters, strict=False)):
        failures.append("ecc-count-decreased")
    return failures


def disturbed(
    samples: Sequence[Sample],
    machines: Sequence[Machine] = (),
    limits: Limits = Limits(),
) -> list[str]:
    """Why a slot's telemetry says that it was disturbed; [] when it was not, or nothing was sampled.

    samples: those of the measured stretch; machines: the records at the slot's two edges.
    Reasons: throttled, clock-drop, other-gpu-process, cpu-contended, cpu-steal, ecc-error.
    """
    reasons = []
    gpus = [gpu for sample in samples for gpu in sample.gpu]
    if any(_bits(gpu.throttle) & THROTTLE_MASK for gpu in gpus):
        reasons.append("throttled")
    if _clock_dropped(samples, limits):
        reasons.append("clock-drop")
    if any(sample.other_processes > 0 for sample in samples):
        reasons.append("other-gpu-process")
    if not gpus:
        for field, limit, reason in (
            ("others_pct", limits.others_pct, "cpu-contended"),
            ("steal_pct", limits.steal_pct, "cpu-steal"),
        ):
            values = [value for sample in samples if (value := _number(sample.said(field))) is not None]
            if values and math.fsum(values) / len(values) > limit:
                reasons.append(reason)
    if _ecc_rose(machines):
        reasons.append("ecc-error")
    return reasons


def _clock_dropped(samples: Sequence[Sample], limits: Limits) -> bool:
    """Whether some GPU of the slot ran well below its own median clock for part of the slot."""
    clocks: dict[int, list[float]] = {}
    for sample in samples:
        for index, gpu in enumerate(sample.gpu):
            value = _number(gpu.sm_mhz)
            if value is not None:
                clocks.setdefault(index, []).append(value)
    for series in clocks.values():
        floor = median(series) * (1.0 - limits.clock_drop_pct / 100.0)
        low = sum(value < floor for value in series)
        if low >= 2 and low >= limits.clock_drop_share * len(series):
            return True
    return False


def _ecc_rose(machines: Sequence[Machine]) -> bool:
    if len(machines) < 2:
        return False
    before, after = machines[0].ecc_uncorrected, machines[-1].ecc_uncorrected
    pairs = [(_number(one), _number(other)) for one, other in zip(before, after, strict=False)]
    return any(one is not None and other is not None and other > one for one, other in pairs)


def _non_decreasing(values: Sequence[float | None]) -> bool:
    known = [value for value in values if value is not None]
    return all(one <= other for one, other in pairwise(known))


def _number(value: object) -> float | None:
    """A finite number from a number or its decimal text; None for anything else ("N/A")."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _bits(value: object) -> int:
    """A bit mask from an integer or its text ("0x0000000000000004"); 0 when the device does not say."""
    if isinstance(value, int):
        return int(value)
    try:
        return int(str(value), 0)
    except ValueError:
        return 0
