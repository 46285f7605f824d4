"""The figures of a record: rates, overhead, fixed cost, interval. Pure.

Two prices are stated, always: the fixed cost in seconds a protected launch pays once, and the
steady-state overhead in percent of throughput; measurement/fixed_cost.py joins them for a length.
Values are rounded here, once, so that a record comes out the same on every machine.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from glasshouse.canonical import MAX_SAFE_INTEGER
from glasshouse.judgement.facts import RunFacts, SlotFacts
from glasshouse.judgement.resources import resources_of
from glasshouse.measurement.controls import expected_delay_pct, judge_aa, judge_delay
from glasshouse.measurement.estimate import Block, Estimate, SlotRate, estimate_blocks, pair_overhead_pct
from glasshouse.measurement.fixed_cost import fixed_cost
from glasshouse.measurement.roofline import Roofline, roofline, work
from glasshouse.schema import Result

DIGITS = 6


def rounded(value: float | None) -> float | None:
    """Round to the record's digits; minus zero becomes zero, and what JSON cannot carry exactly None."""
    if value is None or not abs(value) <= MAX_SAFE_INTEGER:
        return None
    return round(value, DIGITS) + 0.0


def figures_of(facts: RunFacts) -> dict[str, Any]:
    """Every figure of the record as JSON values; null where it cannot be said."""
    protected, raw = facts.results("protected"), facts.results("raw")
    estimate = estimate_of(facts)
    gaps = [life.max_gap_sec for _, _, life in facts.lifecycles if life.max_gap_sec is not None]
    roof = roofline_of(facts)
    some = next(iter((*protected, *raw)), None)
    arms = {"protected": _arm(protected), "raw": _arm(raw)}
    return {
        "order": facts.spec.order,
        "unit": some.unit if some else None,
        **arms,
        **{f"{name}PerSec": None if arm is None else arm["perSec"] for name, arm in arms.items()},
        "overheadPct": rounded(overhead_pct(facts, estimate)),
        "overhead": None if estimate is None else _estimate_json(estimate),
        "control": _control_json(facts, estimate),
        "fixedCostSec": fixed_sec(facts),
        "rawUploadSec": raw_upload_sec(facts),
        "resources": resources_of(facts),
        "roofline": None
        if roof is None
        else {
            "bound": roof.bound,
            "attainablePerSec": rounded(roof.attainable_units_per_sec),
            "share": rounded(roof.fraction),
        },
        "maxEventGapSec": rounded(max(gaps)) if gaps else None,
        "launches": sum(len(slot.launches) for slot in facts.slots),
        "relaunched": relaunched(facts),
        "slots": [_slot(slot) for slot in facts.slots],
        "unitInfo": dict(some.unit_info) if some else {},
        **(
            {"heldSec": rounded(held_sec(facts)), "costUsd": rounded(cost_usd(facts))}
            if facts.spec.paid
            else {}
        ),
    }


def held_sec(facts: RunFacts) -> float | None:
    """Seconds from before the create call to the look that found nothing left; None where not proven."""
    release = facts.release
    rented_at = facts.rented_at if facts.allocation is None else facts.allocation.rented_at
    if release is None or release.proof != "zero" or rented_at is None or release.looked_at is None:
        return None
    return max(0.0, release.looked_at - rented_at)


def cost_usd(facts: RunFacts) -> float | None:
    """US dollars at the provider's hourly price for the time held; None where either is not known.

    A bound from above: it counts the time before billing began, and a replacement at its own price. Of a
    machine that never became usable no price was recorded: the dearest that would have been accepted counts.
    """
    held = held_sec(facts)
    if facts.allocation is None:
        per_gpu = facts.spec.gpu.max_usd_per_hour.get(facts.spec.provider.kind)
        price = None if per_gpu is None else per_gpu * facts.spec.gpu.count
    else:
        price = facts.allocation.usd_per_hour
    return None if held is None or price is None else price * held / 3600


def overhead_pct(facts: RunFacts, estimate: Estimate | None) -> float | None:
    """Steady-state overhead in percent of raw throughput; None without both arms, whole.

    One pair: (raw - protected) / raw, as published. Blocks: that of `estimate`, the run's own.
    """
    if facts.spec.order == "protected-only":
        return None
    if facts.spec.order == "abba":
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
    try:
        return estimate_blocks(blocks, facts.spec.measure.margin_pct)
    except (OverflowError, ValueError):
        return None  # rates further apart than a float's logarithm reaches: nothing that was measured


def _rate(slot: SlotFacts) -> SlotRate:
    result = slot.result
    if result is None:  # no work: the estimator drops the block as incomplete
        return SlotRate(slot.plan.position, slot.plan.arm, 0.0, 0.0)
    # Only a block among others can be left out; a disturbed pair is shown, with its caveat.
    disturbed = slot.plan.block is not None and bool(slot.disturbed)
    return SlotRate(slot.plan.position, slot.plan.arm, result.units, result.elapsed_sec, disturbed)


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


def _control_json(facts: RunFacts, estimate: Estimate | None) -> dict[str, Any] | None:
    """What a control run shows about the method; None for a run that is no control."""
    if facts.spec.control == "none":
        return None
    if estimate is None:
        delayed = facts.spec.control == "delay"
        return {
            "kind": facts.spec.control,
            "outcome": "inconclusive",
            "expectedPct": rounded(expected_delay_pct(facts.spec.measure.delay_pct)) if delayed else 0.0,
            "reason": "no figure to compare",
        }
    if facts.spec.control == "aa":
        result = judge_aa(estimate)
    else:
        result = judge_delay(estimate, facts.spec.measure.delay_pct)
    return {
        "kind": result.kind,
        "outcome": result.outcome,
        "expectedPct": rounded(result.expected_pct),
        "reason": result.reason,
    }


def _arm(results: Sequence[Result]) -> dict[str, Any] | None:
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
        "disturbed": list(slot.disturbed),
    }


def fixed_sec(facts: RunFacts) -> dict[str, float] | None:
    """Seconds that one protected launch pays once, by step, and in total; None when none completed."""
    timings = [
        slot.final.timings
        for slot in facts.slots
        if slot.plan.lifecycle and slot.complete and slot.final is not None
    ]
    cost = fixed_cost(timings)
    return {name: round(value, DIGITS) for name, value in cost.items()} if len(cost) > 1 else None


def raw_upload_sec(facts: RunFacts) -> float | None:
    """Seconds that a raw launch pays for getting the same bytes there, median: not protection's price."""
    values = [
        slot.final.timings["uploadSec"]
        for slot in facts.slots
        if not slot.plan.lifecycle and slot.complete and slot.final and "uploadSec" in slot.final.timings
    ]
    return round(statistics.median(values), DIGITS) if values else None


def relaunched(facts: RunFacts) -> int:
    """Launches beyond the first of their slot."""
    return sum(max(0, len(slot.launches) - 1) for slot in facts.slots)


def roofline_of(facts: RunFacts) -> Roofline | None:
    """How far the raw arm (else the protected one) stayed below the GPU's roofs; None when unknown."""
    results = facts.results("raw") or facts.results("protected")
    amount = work(facts.spec.model)
    elapsed = sum(result.elapsed_sec for result in results)
    if amount is None or elapsed <= 0:
        return None
    return roofline(amount, facts.spec.gpu, sum(result.units for result in results) / elapsed)
