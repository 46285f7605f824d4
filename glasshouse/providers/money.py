"""What a run may cost at most, from config alone, and the cap it must fit under before any create."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

from glasshouse.errors import UsageError
from glasshouse.measurement.schedule import build_schedule
from glasshouse.schema import Slot
from glasshouse.spec import MAX_HOURS, PAID_PROVIDERS, CloudProvider, Job, RunSpec

ATTEMPTS = 2  # one allocation and one replacement; both may be billed until their boot deadline
DEAD_MAN_MARGIN_SEC = 900.0  # the timer in the pod only acts when nobody else did
JOB_GRACE_SEC = 60.0  # from asking a job to end to its end (runtime/jobs.py waits for half of that)
RELEASE_SEC = 300.0  # for the end of one machine: a release insists for three minutes, and looks twice
CAP_VARIABLE = "GLASSHOUSE_MAX_USD"


def price(spec: RunSpec) -> float | None:
    """USD an hour that one allocation may cost at most: conf's price x GPUs; None when free or unknown."""
    if not spec.paid:
        return None
    per_gpu = spec.gpu.max_usd_per_hour.get(spec.provider.kind)
    return None if per_gpu is None else per_gpu * spec.gpu.count


def ceiling_sec(spec: RunSpec) -> float | None:
    """Seconds after which a private job is asked to end, from its start; None of a run that measures.

    That is model.max_hours. Not given, it is what `duration` says and leg_deadline_extra_sec to start in, or
    the longest that there is.
    """
    if not spec.job:
        return None
    hours = spec.model.max_hours if isinstance(spec.model, Job) else None
    if hours is None and spec.duration is not None:
        return spec.duration + spec.measure.leg_deadline_extra_sec
    return (MAX_HOURS if hours is None else hours) * 3600.0


def leg_deadline_sec(spec: RunSpec, slot: Slot) -> float:
    """Seconds that one launch of `slot` may take, after which the leg is ended.

    Of a job: its ceiling, a moment to save, and extra. Of a run that measures: what it is planned to take x
    factor + extra; where the work is fixed, a step may take `step_ceiling_sec`, which is a ceiling already.
    """
    measure = spec.measure
    ceiling = ceiling_sec(spec)
    if ceiling is not None:
        return ceiling + JOB_GRACE_SEC + measure.leg_deadline_extra_sec
    timed = slot.warmup_sec + (slot.measured_sec or 0.0)
    fixed = 0.0 if slot.measured_sec is not None else (slot.steps or 0) * measure.step_ceiling_sec
    return measure.leg_deadline_factor * timed + fixed + measure.leg_deadline_extra_sec


def leg_deadlines_sec(spec: RunSpec) -> float:
    """Seconds that all legs together may take: the deadlines of every slot of the schedule.

    Raises UsageError where the spec has no schedule (fewer steps than slots).
    """
    return sum(leg_deadline_sec(spec, slot) for slot in build_schedule(spec))


def rental_deadline_sec(spec: RunSpec) -> float:
    """Seconds after which nothing of this run may still be rented: every boot attempt, then all legs.

    What comes between them (connecting, installing, uploads, new launches) has no time of its own: it takes
    what boots and legs leave, and ends with the rest (remote.pod.Pod's deadline).
    """
    return ATTEMPTS * spec.provider.boot_deadline_sec + leg_deadlines_sec(spec)


def dead_man_sec(spec: RunSpec) -> float:
    """Seconds from its start after which a rented machine asks for its own end."""
    return rental_deadline_sec(spec) + DEAD_MAN_MARGIN_SEC


def cost_ceiling(spec: RunSpec) -> float:
    """US dollars that the run can cost at most; 0.0 on a free provider.

    Raises UsageError when a paid provider has no price in conf/gpu: nothing unknown is rented.
    """
    if not spec.paid:
        return 0.0
    hourly = price(spec)
    if hourly is None or not hourly > 0:
        raise UsageError(
            "no price to budget with",
            field=f"gpu.max_usd_per_hour.{spec.provider.kind}",
            value="nothing" if hourly is None else hourly,
            remedy=f"give the dearest hourly price you accept for gpu={spec.gpu.name}"
            if spec.provider.kind in spec.gpu.provider_names
            else f"gpu={spec.gpu.name} names nothing to rent there: choose one that does, such as gpu=h100",
        )
    return hourly * rental_deadline_sec(spec) / 3600


def machines(spec: RunSpec) -> int:
    """How many machines a job may rent, one after the other: those that were taken away are replaced."""
    provider, model = spec.provider, spec.model
    if not (spec.job and isinstance(provider, CloudProvider) and provider.interruptible):
        return 1
    return 1 + (model.max_resumes if isinstance(model, Job) else 0)


def beside_usd(spec: RunSpec) -> float:
    """US dollars that one machine can cost beside the budgeted one, made by a create that did not say so; 0.0
    on a free provider.

    It is looked for at the latest from the end of the other's boot until the doubt is over, and destroyed
    when it shows: so it bills no longer than a boot, the doubt, and an insisting release.
    """
    hourly = price(spec)
    if hourly is None or not isinstance(spec.provider, CloudProvider):
        return 0.0
    seconds = spec.provider.boot_deadline_sec + spec.provider.doubt_sec + RELEASE_SEC
    return hourly * seconds / 3600


def parse_usd(text: str, field: str = CAP_VARIABLE) -> float:
    """Read an amount of US dollars: plain digits with at most two decimals, above 0, up to 100000."""
    if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,2})?", text) is None or not 0 < float(text) <= 100_000:
        raise UsageError(
            "not an amount in US dollars", field=field, value=text[:40], remedy="write it like 25 or 12.50"
        )
    return float(text)


def cap_usd(specs: Sequence[RunSpec], environ: Mapping[str, str] | None = None) -> float | None:
    """The cap in force: the lowest of GLASSHOUSE_MAX_USD and every cell's spend.max_usd, if any."""
    caps = [spec.spend.max_usd for spec in specs if spec.spend.max_usd is not None]
    if text := (os.environ if environ is None else environ).get(CAP_VARIABLE):
        caps.append(parse_usd(text))
    return min(caps) if caps else None


def check_budget(specs: Sequence[RunSpec], cap: float | None) -> float:
    """Return the cost ceiling of all machines of all cells together.

    Raises UsageError (exit 2) where it does not fit under `cap`. Call it with the whole sweep before the
    first create.
    """
    total = sum(cost_ceiling(spec) * machines(spec) for spec in specs)
    if not any(spec.provider.kind in PAID_PROVIDERS for spec in specs):
        return 0.0
    if cap is None:
        raise UsageError(
            f"a paid provider needs a cost cap (this could cost up to {total:.2f} USD)",
            field="environment",
            value=CAP_VARIABLE,
            remedy=f"export {CAP_VARIABLE}, or give spend.max_usd=",
        )
    if total > cap:
        raise UsageError(
            f"this could cost up to {total:.2f} USD, more than the cap",
            field="cap",
            value=f"{cap:.2f}",
            remedy=f"shorten or drop cells, or raise {CAP_VARIABLE}",
        )
    return total
