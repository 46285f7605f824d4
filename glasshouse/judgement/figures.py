"""The figures of a record: rates, overhead, fixed cost, interval. Pure.

Two prices are stated, always: the fixed cost in seconds a protected launch pays once, and the
steady-state overhead in percent of throughput; measurement/fixed_cost.py joins them for a length.
Values are rounded here, once, so that a record comes out the same on every machine.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from glasshouse.canonical import MAX_SAFE_INTEGER
from glasshouse.judgement.facts import RunFacts, SlotFacts
from glasshouse.judgement.nothing_to_check import of_a_project
from glasshouse.judgement.record import (
    ArmFigures,
    ChainFigures,
    ControlFigures,
    Figures,
    OverheadFigures,
    RooflineFigures,
    SlotFigures,
)
from glasshouse.judgement.resources import resources_of
from glasshouse.measurement.controls import expected_delay_pct, judge_aa, judge_delay
from glasshouse.measurement.estimate import Block, Estimate, SlotRate, estimate_blocks, pair_overhead_pct
from glasshouse.measurement.fixed_cost import fixed_cost
from glasshouse.measurement.roofline import Roofline, roofline, work
from glasshouse.schema import EXECS_COUNTED, Execs, Result, Weights

DIGITS = 6


def rounded(value: float | None) -> float | None:
    """Round to the record's digits; minus zero becomes zero, and what JSON cannot carry exactly None."""
    if value is None or not abs(value) <= MAX_SAFE_INTEGER:
        return None
    return round(value, DIGITS) + 0.0


def figures_of(facts: RunFacts) -> Figures:
    """Every figure of the record."""
    protected, raw = facts.results("protected"), facts.results("raw")
    estimate = estimate_of(facts)
    gaps = [life.max_gap_sec for _, _, life in facts.lifecycles if life.max_gap_sec is not None]
    roof = roofline_of(facts)
    some = next(iter((*protected, *raw)), None)
    arms = (_arm(protected), _arm(raw))
    figures = Figures(
        order=facts.spec.order,
        unit=some.unit if some else None,
        protected=arms[0],
        raw=arms[1],
        protected_per_sec=None if arms[0] is None or of_a_project(facts) else arms[0].per_sec,
        raw_per_sec=None if arms[1] is None else arms[1].per_sec,
        overhead_pct=rounded(overhead_pct(facts, estimate)),
        overhead=None if estimate is None else _overhead(estimate),
        control=_control(facts, estimate),
        fixed_cost_sec=fixed_sec(facts),
        raw_upload_sec=raw_upload_sec(facts),
        resources=resources_of(facts),
        roofline=None
        if roof is None
        else RooflineFigures(
            bound=roof.bound,
            attainable_per_sec=rounded(roof.attainable_units_per_sec),
            share=rounded(roof.fraction),
        ),
        max_event_gap_sec=rounded(max(gaps)) if gaps else None,
        launches=sum(len(slot.launches) for slot in facts.slots),
        relaunched=relaunched(facts),
        slots=tuple(_slot(slot) for slot in facts.slots),
        unit_info=some.unit_info if some else {},
    )
    if (execs := execs_of(facts)) is not None:
        figures = figures.model_copy(update={"execs": execs})
    if (weights := weights_of(facts)) is not None:
        figures = figures.model_copy(update={"weights": weights})
    if (chain := chain_of(facts)) is not None:
        figures = figures.model_copy(update={"chain": chain})
    if not facts.spec.paid:
        return figures
    rented = {"held_sec": rounded(held_sec(facts)), "cost_usd": rounded(cost_usd(facts))}
    return figures.model_copy(update=rented)


def execs_of(facts: RunFacts) -> Execs | None:
    """The programs that a project started by itself; None where no leg says it."""
    said = [life.execs for _, _, life in facts.lifecycles if life.execs is not None]
    if not said or not of_a_project(facts):
        return None
    weakest = min((one.counted for one in said), key=EXECS_COUNTED.index)
    return Execs(
        started=min(sum(one.started for one in said), MAX_SAFE_INTEGER),
        refused=min(sum(one.refused for one in said), MAX_SAFE_INTEGER),
        counted=weakest,
    )


def weights_of(facts: RunFacts) -> Weights | None:
    """Digests of what a project trained; None where it counted no step."""
    if not of_a_project(facts):
        return None
    return next((result.weights for _, result in facts.all_results if result.weights is not None), None)


def chain_of(facts: RunFacts) -> ChainFigures | None:
    """What a job went on from, and the steps of all its runs; None where it began anew."""
    before = facts.spec.continues
    if before is None:
        return None
    made = sum(result.steps for result in facts.results("protected"))
    return ChainFigures(
        runs=before.runs,
        leg=before.leg,
        launch=before.launch,
        number=before.number,
        sha256=before.sha256,
        steps=None if before.steps is None else min(before.steps + made, MAX_SAFE_INTEGER),
        witnessed=before.witnessed,
    )


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


def _overhead(estimate: Estimate) -> OverheadFigures:
    return OverheadFigures(
        ci_low_pct=rounded(estimate.ci_low_pct),
        ci_high_pct=rounded(estimate.ci_high_pct),
        n=estimate.n,
        method=estimate.method,
        verdict=estimate.verdict if estimate.ci_low_pct is not None else None,
        margin_pct=rounded(estimate.margin_pct),
        mde80_pct=rounded(estimate.mde80_pct),
        tost_low_pct=rounded(estimate.tost_low_pct),
        tost_high_pct=rounded(estimate.tost_high_pct),
        order_effect_pct=rounded(estimate.order_effect_pct),
        order_effect_low_pct=rounded(estimate.order_effect_low_pct),
        order_effect_high_pct=rounded(estimate.order_effect_high_pct),
        randomization_p=rounded(estimate.randomisation_p),
        leave_one_out_pct=tuple(rounded(value) for value in estimate.leave_one_out),
        blocks=estimate.blocks,
        dropped_blocks=len(estimate.dropped.blocks),
        dropped_protected=estimate.dropped.protected,
        dropped_raw=estimate.dropped.raw,
    )


def _control(facts: RunFacts, estimate: Estimate | None) -> ControlFigures | None:
    """What a control run shows about the method; None for a run that is no control."""
    kind = facts.spec.control
    if kind == "none":
        return None
    if estimate is None:
        expected = rounded(expected_delay_pct(facts.spec.measure.delay_pct)) if kind == "delay" else 0.0
        return ControlFigures(
            kind=kind, outcome="inconclusive", expected_pct=expected, reason="no figure to compare"
        )
    result = judge_aa(estimate) if kind == "aa" else judge_delay(estimate, facts.spec.measure.delay_pct)
    return ControlFigures(
        kind=result.kind,
        outcome=result.outcome,
        expected_pct=rounded(result.expected_pct),
        reason=result.reason,
    )


def _arm(results: Sequence[Result]) -> ArmFigures | None:
    if not results:
        return None
    elapsed = sum(result.elapsed_sec for result in results)
    units = sum(result.units for result in results)
    last = results[-1]
    return ArmFigures(
        slots=len(results),
        units=rounded(units),
        steps=sum(result.steps for result in results),
        elapsed_sec=rounded(elapsed),
        per_sec=rounded(units / elapsed if elapsed > 0 else 0.0),
        setup_sec=rounded(statistics.median(result.setup_sec for result in results)),
        warmup_sec=rounded(min(result.warmup_sec for result in results)),
        final_loss=last.final_loss,
        output_sha256=last.output_sha256,
    )


def _slot(slot: SlotFacts) -> SlotFigures:
    result, plan = slot.result, slot.plan
    return SlotFigures(
        leg=slot.name,
        block=plan.block,
        burn_in=plan.burn_in,
        launches=len(slot.launches),
        units=None if result is None else rounded(result.units),
        elapsed_sec=None if result is None else rounded(result.elapsed_sec),
        per_sec=None if result is None else rounded(result.per_sec),
        disturbed=slot.disturbed,
    )


def fixed_sec(facts: RunFacts) -> dict[str, float] | None:
    """Seconds that one protected launch pays once, by step, and in total; None when none completed."""
    timings = [slot.timings for slot in facts.slots if slot.plan.lifecycle and slot.complete]
    cost = fixed_cost(timings)
    return {name: round(value, DIGITS) for name, value in cost.items()} if len(cost) > 1 else None


def raw_upload_sec(facts: RunFacts) -> float | None:
    """Seconds that a raw launch pays for getting the same bytes there, median: not protection's price."""
    values = [
        slot.timings["uploadSec"]
        for slot in facts.slots
        if not slot.plan.lifecycle and slot.complete and "uploadSec" in slot.timings
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
