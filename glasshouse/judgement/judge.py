"""`judge(facts)`: rules, figures and caveats joined into what the record says. Pure."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from glasshouse.judgement.caveats import Observed, caveats_of
from glasshouse.judgement.facts import RunFacts
from glasshouse.judgement.figures import figures_of, relaunched, roofline_of
from glasshouse.judgement.nothing_to_check import of_a_project
from glasshouse.judgement.record import CheckLine, Excluded, Figures, Record, Status
from glasshouse.judgement.rules import METHOD, OPEN, Check, check_rules, equal_outputs, method_of
from glasshouse.measurement.roofline import host_bound
from glasshouse.runtime.cadence import heads_every
from glasshouse.schema import Hardened
from glasshouse.spec import LoraModel, RunSpec, WithheldModel


@dataclass(frozen=True)
class Judgement:
    """What a run amounts to: status, why not, what to know, the figures, and every check."""

    method: int
    run: str
    row: str
    status: Status
    exclusion: tuple[Check, ...]
    caveats: tuple[str, ...]
    figures: Figures
    checks: tuple[Check, ...]

    @property
    def overhead_pct(self) -> float | None:
        """Steady-state overhead in percent; null also for excluded rows, which count for nothing."""
        return self.figures.overhead_pct if self.status == "verified" else None

    def as_record(self) -> Record:
        """Return what record.json says."""
        return Record(
            method=self.method,
            run=self.run,
            id=self.row,
            status=self.status,
            exclusion=None
            if self.status == "verified"
            else Excluded(
                codes=tuple(check.code for check in self.exclusion),
                observed="; ".join(check.detail for check in self.exclusion),
            ),
            caveats=self.caveats,
            figures=self.figures,
            # What a check that holds demands is the method's text, not the record's; that there was
            # nothing to check, or something else, is this run's.
            checks=tuple(
                CheckLine(
                    code=check.code,
                    ok=check.ok,
                    detail=check.detail if check.vacuous or check.reworded or not check.ok else "",
                )
                for check in self.checks
            ),
        )

    def record(self) -> bytes:
        """Return record.json's bytes: what is compared when the bundle is verified."""
        return self.as_record().to_bytes()


def judge(facts: RunFacts, method: int | None = None) -> Judgement:
    """Decide, by the rules of a method number (None: today's). Total: any facts give a judgement."""
    method = method_of(facts.spec) if method is None else method
    checks = check_rules(facts, method)
    failed = tuple(check for check in checks if not check.ok)
    figures = figures_of(facts)
    return Judgement(
        method=method,
        run=facts.run,
        row=row_id(facts.run, facts.spec),
        status="excluded" if failed else "verified",
        exclusion=failed,
        caveats=caveats_of(observed(facts, figures, method), method),
        figures=figures,
        checks=checks,
    )


def observed(facts: RunFacts, figures: Figures, method: int = METHOD) -> Observed:
    """Reduce a run to what the caveats look at."""
    spec, lives = facts.spec, [life for _, _, life in facts.lifecycles]
    arms = [facts.results(arm) for arm in ("protected", "raw")]
    job = of_a_project(facts)  # of which nothing was measured
    measured = [sum(result.elapsed_sec for result in results) for results in arms if results and not job]
    cold = job or (spec.payload == "private" and method >= OPEN)  # a job warms up nothing
    warmups = [result.warmup_sec for results in arms for result in results if not cold]
    reports = [life.zeroization for life in lives if life.zeroization is not None]
    needles = [needle for report in reports for needle in report.needles]
    gaps = [life.max_gap_sec for life in lives if life.max_gap_sec is not None]
    overhead = figures.overhead
    return Observed(
        tier="simulated" if facts.simulated else "signed",
        overhead_pct=figures.overhead_pct,
        samples=None if overhead is None else overhead.n,
        measured_sec=min(measured) if measured else None,
        warmup_sec=min(warmups) if warmups else None,
        order=spec.order,
        order_clear=_order_clear(facts),
        synthetic_workload=spec.workload in ("mlp", "lora"),
        random_weights=isinstance(spec.model, LoraModel | WithheldModel) and spec.model.weights == "random",
        host_bound=host_bound(roofline_of(facts)),
        is_control=spec.control != "none",
        raw_disclosed=any(not slot.plan.lifecycle and slot.launches for slot in facts.slots),
        unproven_host_key=facts.allocation is not None and facts.allocation.unproven_host_key,
        max_gap_sec=max(gaps) if gaps else None,
        head_interval_sec=_head_interval(facts, method),
        witnessed=bool(facts.witnesses),
        provider=spec.provider.kind,
        dropped_blocks=0 if overhead is None else overhead.dropped_blocks,
        disturbed=_disturbed(facts),
        relaunched=relaunched(facts),
        residue_scanned=_scanned(facts) if reports else None,
        residue_left=tuple(sorted({needle.name for needle in needles if needle.after})),
        file_barrier=_weakest([life.file_barrier for life in lives if life.file_barrier]),
        swap_kib=max((life.swap_kib for life in lives if life.swap_kib is not None), default=None),
        job=job,
        checkpoints_missing=any(report.keeper is not None and report.keeper.fell_short for report in reports),
        network_open=any(told.network not in ("namespace", "seccomp") for told in _hardened(facts)),
        reads_unconfined=any(told.reads in (None, "none") for told in _hardened(facts)),
        exec_in_leg=_execs_in_leg(facts),
        unattended=facts.taken_up_at is not None,
        self_counted=job and any(result.steps for _, result in facts.all_results),
        checkpoint_unwitnessed=spec.continues is not None and not spec.continues.witnessed,
        bit_identical=any(explained for _, _, explained in equal_outputs(facts, method)),
    )


def _head_interval(facts: RunFacts, method: int) -> float:
    """How far apart heads are countersigned: those of a private job the farther, the longer it runs."""
    every = facts.spec.measure.head_interval_sec
    if facts.spec.payload == "public" or method < OPEN:
        return every
    launches = [launch.record for slot in facts.slots for launch in slot.launches]
    return heads_every(max((each.ended_at - each.started_at for each in launches), default=0.0), every)


def _disturbed(facts: RunFacts) -> tuple[str, ...]:
    """Reasons for which legs that still count were disturbed: those of a pair, which has no block to drop."""
    if facts.spec.order == "abba" or of_a_project(facts):
        return ()
    return tuple(sorted({reason for slot in facts.slots for reason in slot.disturbed}))


def _hardened(facts: RunFacts) -> list[Hardened]:
    """What a project's legs said of their confinement; of any other workload it is not asked."""
    told = [life.hardened for _, _, life in facts.lifecycles if life.hardened is not None]
    return told if of_a_project(facts) else []


def _execs_in_leg(facts: RunFacts) -> bool:
    """Whether a project's leg started programs, or came to its end without showing that it started none."""
    if not of_a_project(facts):
        return False
    lives = [life for _, _, life in facts.lifecycles]
    unsaid = any(life.execs is None and life.zeroization is not None for life in lives)
    return unsaid or any(life.execs is not None and not life.execs.shown_none for life in lives)


def _weakest(barriers: list[str]) -> str | None:
    return None if not barriers else "none" if "none" in barriers else barriers[0]


def _scanned(facts: RunFacts) -> bool:
    """Whether after every wipe memory was searched, for nothing that was not also found while live.

    Bytes taken from a device need not have been in host memory, so no search could find them live. There it
    rests on the read-back of what was overwritten, and on the driver having taken freed memory back. That
    holds of a leg that trained on a GPU; of any other, what is said of a device counts like the rest.
    """
    for _, launch, life in facts.lifecycles:
        report = life.zeroization
        if report is None:
            continue
        result = launch.result
        on_gpu = result is not None and result.device == "cuda" and bool(result.machine_start.gpu_uuids)
        sought = [needle for needle in report.needles if not (on_gpu and needle.on_device)]
        live = {needle.name for needle in sought if needle.positive_control > 0}
        if report.residue != "scanned" or not live or live != {needle.name for needle in sought}:
            return False
        if on_gpu and report.device_cache != "released":
            return False
    return True


def _order_clear(facts: RunFacts) -> bool:
    """Whether slots ran one after the other, in the planned order, by the controller's clock."""
    finals = [slot.final.record for slot in facts.slots if slot.final is not None]
    return all(later.started_at >= earlier.ended_at for earlier, later in itertools.pairwise(finals))


def row_id(run: str, spec: RunSpec) -> str:
    """The row's permanent id, from the run id and the spec: never reused, since run ids are not.

    Like the published ones (`2026-05-16-runpod-h100-mlp-30m-protected-first`), with the run's own
    last part behind.
    """
    day, _, rest = run.partition("-")
    date = f"{day[:4]}-{day[4:6]}-{day[6:8]}"
    if spec.workload == "project":
        length = "job"
    elif spec.duration is not None:
        seconds = spec.duration
        whole = seconds > 60 and seconds % 60 == 0
        length = f"{int(seconds // 60)}m" if whole else f"{seconds:g}s"
    else:
        length = f"{spec.steps}steps" if spec.epochs is None else f"{spec.epochs}epochs"
    control = "" if spec.control == "none" else f"-{spec.control}"
    tail = rest.rpartition("-")[2].lower()
    return (
        f"{date}-{spec.provider.kind}-{spec.gpu.name}-{spec.model.name}-{length}-{spec.order}{control}-{tail}"
    )
