"""From a verified bundle to its public artifact. Pure: equal rows give equal artifacts.

Only a `VerifiedRow` comes in, and only `records.verify` makes those, so nothing can be published as
signed that did not verify.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from glasshouse.codes import Code
from glasshouse.judgement.caveats import with_controls, with_registration
from glasshouse.judgement.facts import RunFacts
from glasshouse.judgement.headline import Candidate
from glasshouse.judgement.record import ArmFigures, OverheadFigures, ResourceFigures
from glasshouse.judgement.rules import Check as Judged
from glasshouse.measurement.schedule import lead_sec
from glasshouse.publishing.artifact import (
    Artifact,
    Chain,
    Check,
    Cleanup,
    Curve,
    Curves,
    Evidence,
    Exclusion,
    LegCurves,
    LegResources,
    Overhead,
    Resources,
    Setting,
)
from glasshouse.records.verify import VerifiedRow
from glasshouse.records.withheld import places
from glasshouse.schema import Result, UnitInfo
from glasshouse.spec import LoraModel, RunSpec, WithheldModel

CURVE_POINTS = 60
MAX_OBSERVED = 4000
# Settings of conf/measure that decide what the figures mean; the rest is in the command.
_PUBLISHED = frozenset(
    {"warmup_sec", "discard_sec", "blocks", "burn_in_slots", "margin_pct", "delay_pct", "head_interval_sec"}
)
# Of the interval, what is published.
_OVERHEAD = (
    *("ci_low_pct", "ci_high_pct", "n", "method", "verdict", "margin_pct", "mde80_pct"),
    *("order_effect_pct", "order_effect_low_pct", "order_effect_high_pct"),
    *("randomization_p", "dropped_blocks"),
)


def artifact_from_verified(row: VerifiedRow) -> Artifact:
    """Build the public artifact of a verified row.

    Figures are those of the recomputed record. An excluded row publishes its legs and its reasons,
    and no overhead: it counts for nothing.
    """
    facts, judgement, figures = row.facts, row.judgement, row.judgement.figures
    spec, machine, release = facts.spec, facts.allocation, facts.release
    protected, raw = (
        _arm(values, figures.unit, lora=spec.workload == "lora")
        for values in (figures.protected, figures.raw)
    )
    verified = judgement.status == "verified"
    overhead = judgement.overhead_pct
    released = any(life.released for _, _, life in facts.lifecycles)
    return Artifact(
        schema_version=1,
        id=row.id,
        run=row.run,
        date=f"{row.run[:4]}-{row.run[4:6]}-{row.run[6:8]}",
        status=judgement.status,
        evidence_tier="simulated" if facts.simulated else "signed",
        provider=spec.provider.kind,
        provider_tier=None if machine is None else machine.tier,
        provider_instance_id=None if machine is None else machine.instance_id,
        gpu=spec.gpu.name,
        gpu_model=None if machine is None else machine.gpu_model,
        model=spec.model.model_id if isinstance(spec.model, LoraModel) else spec.model.name,
        unit=figures.unit or _unit(spec),
        order=spec.order,
        control=spec.control,
        control_outcome=None if figures.control is None else figures.control.outcome,
        duration_sec=spec.duration,
        warmup_sec=lead_sec(spec),
        target_steps=spec.total_steps,
        settings=_settings(spec),
        overhead_pct=overhead,
        overhead=_overhead(figures.overhead, facts) if overhead is not None else None,
        fixed_cost_sec=_fixed(figures.fixed_cost_sec),
        resources=_resources(figures.resources),
        cost_usd=figures.cost_usd,
        cleanup=None if release is None else Cleanup(proof=release.proof, active=release.active),
        attestation=_attestation(row, released=released),
        runtime_state=_runtime_state(row, released=released),
        same_allocation=_holds(row, Code.SAME_MACHINE_NOT_PROVEN) if figures.launches else None,
        caveats=judgement.caveats,
        checks=tuple(_check(check, facts) for check in judgement.checks),
        exclusion=None
        if verified
        else Exclusion(
            codes=tuple(dict.fromkeys(check.code for check in judgement.exclusion)),
            observed=_clip("; ".join(check.detail for check in judgement.exclusion), MAX_OBSERVED),
        ),
        superseded_by=None,
        retracted=None,
        # A simulated row is anchored in nothing: its evidence shows that code ran, not a measurement.
        evidence=None
        if facts.simulated
        else Evidence(plan_sha256=row.plan_sha256, bundle_sha256=row.bundle_sha256, signer=row.signer.keyid),
        withheld=(hidden := places(spec, figures.unit_info)),
        command=None if hidden else command(spec),
        chain=None if figures.chain is None else Chain(**figures.chain.model_dump()),
        curves=_curves(facts),
        protected_epochs_per_sec=protected.epochs_per_sec,
        raw_epochs_per_sec=raw.epochs_per_sec,
        protected_steps_per_sec=protected.steps_per_sec,
        raw_steps_per_sec=raw.steps_per_sec,
        protected_units_per_sec=protected.units_per_sec,
        raw_units_per_sec=raw.units_per_sec,
        protected_epochs=protected.epochs,
        raw_epochs=raw.epochs,
        protected_steps=protected.steps,
        raw_steps=raw.steps,
        protected_elapsed_sec=protected.elapsed_sec,
        raw_elapsed_sec=raw.elapsed_sec,
        protected_setup_sec=protected.setup_sec,
        raw_setup_sec=raw.setup_sec,
        protected_final_loss=protected.final_loss,
        raw_final_loss=raw.final_loss,
        protected_output_sha256=protected.output_sha256,
        raw_output_sha256=raw.output_sha256,
        protected_adapter_sha256=protected.adapter_sha256,
        raw_adapter_sha256=raw.adapter_sha256,
        trainable_params=_count(figures.unit_info.get("trainableParams")),
        total_params=_count(figures.unit_info.get("totalParams")),
    )


# What a control must share with the rows that rely on it, apart from its own arms and delay.
_MEASURED_ALIKE = ("warmup_sec", "discard_sec", "blocks", "burn_in_slots", "margin_pct", "threads")


def control_kind(row: Artifact) -> tuple[object, ...]:
    """What a control and the rows that rely on it have in common: machine, work, and how it was timed."""
    settings = row.settings or {}
    return (
        *(row.provider, row.provider_tier, row.gpu, row.gpu_model, row.model),
        *(row.order, row.duration_sec, row.target_steps),
        *(settings.get(name) for name in _MEASURED_ALIKE),
    )


def with_registration_caveat(row: Artifact, *, late: bool) -> Artifact:
    """The row with or without `registered-late`: which of the two the published logs say (logs.py: late)."""
    if row.evidence_tier != "signed":
        return row
    return row.model_copy(update={"caveats": with_registration(row.caveats, late=late)})


def with_control_caveats(row: Artifact, published: Sequence[Artifact]) -> Artifact:
    """The row with its published controls named, and the caveats that they leave or add.

    A control counts when it is signed, verified, not retracted and of the same kind (control_kind).
    Both an A/A and a delay control must have passed to lift `no-control`; one that failed downgrades
    the row, whatever others say, so that no control can be repeated until it passes. For the same reason
    one that was registered late does not pass.
    """
    if row.evidence_tier != "signed" or row.control != "none" or row.overhead_pct is None:
        return row
    kind = control_kind(row)
    beside = [
        other
        for other in published
        if other.evidence_tier == "signed"
        and other.control != "none"
        and other.status == "verified"
        and other.retracted is None
        and control_kind(other) == kind
    ]
    passed = {
        other.control
        for other in beside
        if other.control_outcome == "passed" and "registered-late" not in other.caveats
    } == {"aa", "delay"}
    failed = any(other.control_outcome == "failed" for other in beside)
    return row.model_copy(
        update={
            "controls": tuple(sorted(other.id for other in beside)),
            "caveats": with_controls(row.caveats, passed=passed, failed=failed),
        }
    )


def candidates(rows: Iterable[Artifact]) -> list[Candidate]:
    """The rows among which the rule of the headline decides (judgement/headline.py)."""
    return [
        Candidate(
            id=row.id,
            gpu=row.gpu_model,
            model=row.model,
            allocation=None
            if row.provider_instance_id is None
            else f"{row.provider}/{row.provider_instance_id}",
            overhead_pct=row.overhead_pct,
            low_pct=row.overhead.ci_low_pct,
            high_pct=row.overhead.ci_high_pct,
            n=row.overhead.n,
            caveats=row.caveats,
        )
        for row in rows
        if row.evidence_tier == "signed"
        and row.status == "verified"
        and row.retracted is None
        and row.superseded_by is None
        and row.control == "none"
        and row.order == "abba"
        and row.gpu_model is not None
        and row.overhead is not None
        and row.overhead_pct is not None
    ]


def command(spec: RunSpec) -> str:
    """The command that repeats the run: its groups by name, then every setting that decides it.

    Where the machine was is not published, nor what a private job trained: both stand in capitals.
    """
    words = ["python -m glasshouse", f"provider={spec.provider.kind}"]
    if (threads := _threads(spec)) is not None:
        words += [f"provider.threads={threads}"]
    if spec.provider.kind == "ssh":
        words += ["provider.host=HOST", "provider.user=USER", "provider.key=KEY"]
    model = "MODEL" if isinstance(spec.model, WithheldModel) else spec.model.name
    words += [f"gpu={spec.gpu.name}", f"model={model}", f"policy={spec.policy.name}"]
    if spec.continues is not None:
        words += [f"from={spec.continues.given}"]
    words += [f"order={spec.order}"]
    duration = "null" if spec.duration is None else f"{spec.duration:g}"
    words += [f"duration={duration}"]
    words += [f"{name}={value}" for name in ("steps", "epochs") if (value := getattr(spec, name)) is not None]
    words += [
        f"control={spec.control}",
        f"payload={spec.payload}",
        f"seed={spec.seed}",
        f"repeat={spec.repeat}",
    ]
    words += [f"measure.{name}={value:g}" for name, value in spec.measure.model_dump().items()]
    return " ".join(words)


def _settings(spec: RunSpec) -> dict[str, Setting]:
    """How it was timed, and on how many threads where that was set."""
    found: dict[str, Setting] = {
        name: value for name, value in spec.measure.model_dump().items() if name in _PUBLISHED
    }
    threads = _threads(spec)
    return found if threads is None else found | {"threads": threads}


def _threads(spec: RunSpec) -> int | None:
    return spec.provider.threads if spec.provider.kind == "local" else None


def _check(check: Judged, facts: RunFacts) -> Check:
    """The check as it is shown; one that had nothing to look at says so."""
    gpu = facts.spec.gpu
    if check.ok and check.code == Code.GPU_NOT_AS_ASKED and not gpu.provider_names and gpu.name != "cpu":
        # `gpu=auto` takes what is there. Records do not mark this; here it follows from the plan.
        return Check(code=check.code, ok=True, detail="no GPU was asked for: nothing to check", vacuous=True)
    return Check(code=check.code, ok=check.ok, detail=_clip(check.detail), vacuous=check.vacuous)


def _overhead(estimate: OverheadFigures | None, facts: RunFacts) -> Overhead | None:
    if estimate is None:
        return None
    values = {name: getattr(estimate, name) for name in _OVERHEAD}
    return Overhead(**values, block_pct=_blocks(facts))


def _blocks(facts: RunFacts) -> tuple[float, ...]:
    """Overhead of each whole, undisturbed block, in percent: what the interval is made of."""
    logs: dict[int, dict[str, list[float]]] = {}
    broken: set[int] = set()
    for slot in facts.slots:
        block, result = slot.plan.block, slot.result
        if block is None or slot.plan.burn_in:
            continue
        if result is None or slot.disturbed or result.per_sec <= 0:
            broken.add(block)
            continue
        logs.setdefault(block, {}).setdefault(slot.plan.arm, []).append(math.log(result.per_sec))
    return tuple(
        round(100 * (1 - math.exp(_mean(arms["protected"]) - _mean(arms["raw"]))), 4)
        for block, arms in sorted(logs.items())
        if block not in broken and {"protected", "raw"} <= arms.keys()
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


@dataclass(frozen=True)
class _Arm:
    """One arm under the names published before: epochs for the MLP, steps and adapters for LoRA."""

    epochs_per_sec: float | None = None
    steps_per_sec: float | None = None
    units_per_sec: float | None = None
    epochs: float | None = None
    steps: int | None = None
    elapsed_sec: float | None = None
    setup_sec: float | None = None
    final_loss: float | None = None
    output_sha256: str | None = None
    adapter_sha256: str | None = None


def _arm(values: ArmFigures | None, unit: str | None, *, lora: bool) -> _Arm:
    """Name an arm's figures; nothing where the arm has none."""
    if values is None:
        return _Arm()
    rate = values.per_sec or None
    return _Arm(
        epochs_per_sec=rate if unit == "epochs" else None,
        steps_per_sec=rate if unit == "steps" else None,
        units_per_sec=rate if unit not in ("epochs", "steps") else None,
        epochs=values.units if unit == "epochs" else None,
        steps=values.steps,
        elapsed_sec=values.elapsed_sec or None,
        setup_sec=values.setup_sec,
        final_loss=values.final_loss,
        output_sha256=None if lora else values.output_sha256,
        adapter_sha256=values.output_sha256 if lora else None,
    )


def _count(value: UnitInfo) -> int | None:
    """A count that a workload gave of itself, if it gave one."""
    return value if isinstance(value, int) else None


def _unit(spec: RunSpec) -> str:
    return "epochs" if spec.workload == "mlp" else "steps"


def _fixed(cost: dict[str, float] | None) -> dict[str, float] | None:
    """`sealSec` becomes `seal`: the field's own name says Sec."""
    if cost is None:
        return None
    return {name.removesuffix("Sec"): value for name, value in cost.items()}


def _resources(found: ResourceFigures) -> Resources | None:
    arms = {
        arm: LegResources(
            cpu_share=values.cpu_share,
            cpu_sec=values.cpu_sec,
            wall_sec={_step(name): value for name, value in values.wall_sec.items()},
        )
        for arm, values in (("protected", found.protected), ("raw", found.raw))
        if values is not None
    }
    return Resources(**arms) if arms else None


def _step(name: str) -> str:
    """`sealOutputsSec` becomes `seal-outputs`."""
    return "".join(f"-{char.lower()}" if char.isupper() else char for char in name.removesuffix("Sec"))


def _holds(row: VerifiedRow, code: Code) -> bool:
    return all(check.ok for check in row.judgement.checks if check.code == code)


def _attestation(row: VerifiedRow, *, released: bool) -> str:
    if not row.facts.lifecycles:
        return "not-reached"
    if not released:
        return "refused"
    return "verified" if _holds(row, Code.ATTESTATION_NOT_VERIFIED) else "not-verified"


def _runtime_state(row: VerifiedRow, *, released: bool) -> str:
    if not released:
        return "not-released"
    return "zeroized" if _holds(row, Code.RUNTIME_NOT_ZEROIZED) else "not-zeroized"


def _curves(facts: RunFacts) -> Curves | None:
    """Curves of the first complete slot of each arm; one slot stands for its like."""
    found = {arm: _leg(results[0]) for arm in ("protected", "raw") if (results := facts.results(arm))}
    return Curves(**found) if found else None


def _leg(result: Result) -> LegCurves:
    losses = [(float(units), float(loss)) for units, loss in result.loss_curve if loss is not None]
    finite = [point for point in losses if math.isfinite(point[1])]
    return LegCurves(
        loss=_curve(finite),
        throughput=_curve([(float(sec), float(units)) for sec, units in result.throughput_curve]),
    )


def _curve(points: Sequence[tuple[float, float]]) -> Curve:
    """At most CURVE_POINTS points, six significant digits: enough to draw, small enough to review."""
    count = len(points)
    if count > CURVE_POINTS:
        points = [points[round(i * (count - 1) / (CURVE_POINTS - 1))] for i in range(CURVE_POINTS)]
    return tuple((float(f"{x:.6g}"), float(f"{y:.6g}")) for x, y in points)


def _clip(text: str, limit: int = 2000) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"
