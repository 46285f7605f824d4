"""What may go on without its controller, until when, and what is said of it. Pure."""

from __future__ import annotations

import time

from glasshouse.providers.money import DEAD_MAN_MARGIN_SEC, cost_ceiling, price, rental_deadline_sec
from glasshouse.spec import Job, RunSpec


def allowed(spec: RunSpec) -> bool:
    """Whether a run of this spec may go on without a controller: a private job that is not told to stop."""
    private = spec.order == "protected-only" and spec.payload == "private"
    return private and isinstance(spec.model, Job) and spec.model.unattended == "finish"


def until_from(spec: RunSpec, now: float) -> float:
    """Until when that may be, in Unix seconds, of a machine that is asked for at `now`: its budgeted time."""
    return round(now + rental_deadline_sec(spec), 3)


def clock(moment: float) -> str:
    """A moment in Unix seconds as a person reads it: the hour of today, with the day of any other, in UTC."""
    then, now = time.gmtime(moment), time.gmtime()
    form = "%H:%M UTC" if then[:3] == now[:3] else "%Y-%m-%d %H:%M UTC"
    return time.strftime(form, then)


def first_lines(spec: RunSpec, until: float) -> list[str]:
    """What a run says as it begins: that it needs nobody, until when its outputs wait, what waiting costs."""
    words = (
        f"its outputs can be fetched until {clock(until)}: the job goes on where this terminal is closed or "
        "this computer sleeps (`glasshouse reap` fetches them then); Ctrl-C ends it"
    )
    lines, hourly = [words], price(spec)
    if hourly is not None:
        lines.append(
            f"until somebody fetches them its machine waits, for up to {hourly:.2f} USD an hour and "
            f"{cost_ceiling(spec):.2f} USD in all"
        )
    return lines


def planned_lines(spec: RunSpec) -> list[str]:
    """What `plan` says of a run that may go on without its controller; nothing of any other."""
    if not allowed(spec):
        return []
    hours = rental_deadline_sec(spec) / 3600
    words = (
        "it goes on to its end without a controller (model.unattended=finish); what it sealed waits for "
        f"`glasshouse reap`, no longer than {hours:.2f} h after the create"
    )
    lines, hourly = [words], price(spec)
    if hourly is not None:
        lines.append(
            f"a machine that waits costs up to {hourly:.2f} USD an hour; with nobody awake here, its own "
            f"timer is all that ends it, {DEAD_MAN_MARGIN_SEC / 60:.0f} min after that time"
        )
    return lines
