"""The figures of a record: rates, overhead, fixed cost, interval. Pure.

Two prices are stated, always: the fixed cost in seconds a protected launch pays once, and the
steady-state overhead in percent of throughput. `overhead_at` joins them for a run length.
Values are rounded here, once, so that a record comes out the same on every machine.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from glasshouse.judgement.facts import LegResult, RunFacts, SlotFacts
from glasshouse.measurement.estimate import Block, Estimate, SlotRate, estimate_blocks, pair_overhead_pct

DIGITS = 6
# Phases of a protected launch that a raw one does not have, by their names in launch timings.
FIXED_PHASES = ("seal", "upload", "attest", "release", "unseal", "zeroize")


def rounded(value: float | None) -> float | None:
    """Round to the record's digits; minus zero becomes zero."""
    return None if value is None else round(value, DIGITS) + 0.0


def figures_of(facts: RunFacts) -> dict[str, Any]:
    """Every figure of the record as JSON values; null where it cannot be said."""
    protected, raw = facts.results("protected"), facts.results("raw")
    estimate = estimate_of(facts)
    gaps = [life.max_gap_sec for _, _, life in facts.lifecycles if life.max_gap_sec is not None]
    some = next(iter((*protected, *raw)), None)
    return {
        "unit": some.unit if some else None,
        "protected": _arm(protected),
        "raw": _arm(raw),
        "overheadPct": rounded(overhead_pct(facts)),
        "overhead": None if estimate is None else _estimate_json(estimate),
        "fixedCostSec": fixed_cost(facts),
        "rawFixedCostSec": raw_fixed_cost(facts),
        "roofShare": rounded(roof_share(facts)),
        "maxEventGapSec": rounded(max(gaps)) if gaps else None,
        "launches": sum(len(slot.launches) for slot in facts.slots),
        "relaunched": relaunched(facts),
        "slots": [_slot(slot) for slot in facts.slots],
        "unitInfo": dict(some.unit_info) if some else {},
    }


def overhead_pct(facts: RunFacts) -> float | None:
    """Steady-state overhead in percent of raw throughput; None without both arms, whole.

    One pair: (raw - protected) / raw, as published. Blocks: the estimator's.
    """
    if facts.spec.order == "protected-only":
        return None
    if facts.spec.order == "abba":
        estimate = estimate_of(facts)
        return None if estimate is None else estimate.overhead_pct
    protected, raw = facts.results("protected"), facts.results("raw")
    if len(protected) != 1 or len(raw) != 1 or raw[0].per_sec <= 0:
        return None
    return pair_overhead_pct(raw[0].per_sec, protected[0].per_sec)


def estimate_of(facts: RunFacts) -> Estimate | None:
    """The block estimate of an abba run or a pair; None when an arm has nothing."""
    if facts.spec.order == "protected-only" or not facts.results("raw") or not facts.results("protected"):
        return None
    groups: dict[int | None, list[SlotFacts]] = {}
    for slot in facts.slots:
        if not slot.plan.burn_in:
            groups.setdefault(slot.plan.block, []).append(slot)
    blocks = [Block(tuple(_rate(slot) for slot in slots)) for slots in groups.values()]
    return estimate_blocks(blocks, facts.spec.measure.margin_pct)


def _rate(slot: SlotFacts) -> SlotRate:
    result = slot.result
    if result is None:  # no work: the estimator drops the block as incomplete
        return SlotRate(slot.plan.position, slot.plan.arm, 0.0, 0.0)
    return SlotRate(
        slot.plan.position, slot.plan.arm, result.units, result.elapsed_sec, disturbed=bool(result.disturbed)
    )


def _estimate_json(estimate: Estimate) -> dict[str, Any]:
    return {
        "ciLowPct": rounded(estimate.ci_low_pct),
        "ciHighPct": rounded(estimate.ci_high_pct),
        "n": estimate.n,
        "method": estimate.method,
        "verdict": estimate.verdict if estimate.ci_low_pct is not None else None,
        "marginPct": rounded(estimate.margin_pct),
        "mde80Pct": rounded(estimate.mde80_pct),
        "tostLowPct": rounded(estimate.tost_low_pct),
        "tostHighPct": rounded(estimate.tost_high_pct),
        "orderEffectPct": rounded(estimate.order_effect_pct),
        "orderEffectLowPct": rounded(estimate.order_effect_low_pct),
        "orderEffectHighPct": rounded(estimate.order_effect_high_pct),
        "randomizationP": rounded(estimate.randomisation_p),
        "leaveOneOutPct": [rounded(value) for value in estimate.leave_one_out],
        "blocks": estimate.blocks,
        "droppedBlocks": len(estimate.dropped.blocks),
        "droppedProtected": estimate.dropped.protected,
        "droppedRaw": estimate.dropped.raw,
    }


def _arm(results: Sequence[LegResult]) -> dict[str, Any] | None:
    """Totals of one arm over its slots; loss and digest are those of its last slot."""
    if not results:
        return None
    elapsed = sum(result.elapsed_sec for result in results)
    units = sum(result.units for result in results)
    last = results[-1]
    return {
        "slots": len(results),
        "units": rounded(units),
        "steps": sum(result.steps for result in results),
        "elapsedSec": rounded(elapsed),
        "perSec": rounded(units / elapsed if elapsed > 0 else 0.0),
        "setupSec": rounded(statistics.median(result.setup_sec for result in results)),
        "warmupSec": rounded(min(result.warmup_sec for result in results)),
        "finalLoss": last.final_loss,
        "outputSha256": last.output_sha256,
    }


def _slot(slot: SlotFacts) -> dict[str, Any]:
    result, plan = slot.result, slot.plan
    return {
        "leg": slot.name,
        "block": plan.block,
        "burnIn": plan.burn_in,
        "launches": len(slot.launches),
        "units": None if result is None else rounded(result.units),
        "elapsedSec": None if result is None else rounded(result.elapsed_sec),
        "perSec": None if result is None else rounded(result.per_sec),
        "disturbed": [] if result is None else list(result.disturbed),
    }


def fixed_cost(facts: RunFacts) -> dict[str, float] | None:
    """Seconds that one protected launch pays once, by phase: medians over complete launches.

    `total` is the sum of the phases shown; a phase that nobody timed is absent, not zero.
    """
    timings = [
        slot.final.timings
        for slot in facts.slots
        if slot.plan.lifecycle and slot.complete and slot.final is not None
    ]
    return _phases(timings, FIXED_PHASES)


def raw_fixed_cost(facts: RunFacts) -> dict[str, float] | None:
    """Seconds that one raw launch pays for getting the same bytes there: what protection replaces."""
    timings = [
        slot.final.timings
        for slot in facts.slots
        if not slot.plan.lifecycle and slot.complete and slot.final is not None
    ]
    return _phases(timings, ("upload", "load"))


def _phases(timings: Sequence[Mapping[str, float]], names: Sequence[str]) -> dict[str, float] | None:
    found = {}
    for name in names:
        values = [item[f"{name}Sec"] for item in timings if f"{name}Sec" in item]
        if values:
            found[name] = statistics.median(values)
    if not found:
        return None
    found["total"] = sum(found.values())
    return {name: round(value, DIGITS) for name, value in found.items()}


def overhead_at(seconds: float, steady_pct: float, fixed_sec: float) -> float:
    """Overhead in percent for work that takes `seconds` (above 0) unprotected, fixed cost included.

    The work takes seconds / (1 - steady) protected, plus the fixed seconds; the overhead is the
    share of throughput lost over all of it.
    """
    protected = seconds / (1 - steady_pct / 100) + fixed_sec
    return 100 * (1 - seconds / protected)


def relaunched(facts: RunFacts) -> int:
    """Launches beyond the first of their slot."""
    return sum(max(0, len(slot.launches) - 1) for slot in facts.slots)


def roof_share(facts: RunFacts) -> float | None:
    """Achieved share of the nearer roof, arithmetic or memory, on the raw arm (else the protected).

    Work per unit comes from unitInfo (flopsPerUnit, bytesPerUnit), roofs from the config's GPU
    (S. Williams, A. Waterman, D. Patterson, Roofline, CACM 52(4), 2009). None when either is unknown.
    """
    results = facts.results("raw") or facts.results("protected")
    gpu = facts.spec.gpu
    if not results:
        return None
    elapsed = sum(result.elapsed_sec for result in results)
    rate = sum(result.units for result in results) / elapsed if elapsed > 0 else 0.0
    info = results[0].unit_info
    shares = []
    for name, roof in (
        ("flopsPerUnit", (gpu.peak_bf16_tflops or 0) * 1e12),
        ("bytesPerUnit", (gpu.memory_gbps or 0) * 1e9),
    ):
        work = info.get(name)
        if roof and isinstance(work, int | float) and not isinstance(work, bool):
            shares.append(rate * work / (roof * gpu.count))
    return max(shares) if shares else None
