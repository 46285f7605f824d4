"""Whether a job will be done by its ceiling, as far as its own steps tell: looked at as it runs, said once.

It is said only where the ceiling will not do, and then in three numbers that end in a public event: how many
steps it is to make, how long one takes, and all of it. They are what the result of a job that came to its end
says of it (`disclosure.py`).
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

from glasshouse.runtime.on_import import when_imported
from glasshouse.runtime.session import Report

TRAINER = "transformers.trainer_callback"
LEAD_STEPS = 2  # which compile, fill caches and wait for the first data, and say nothing of the others
MIN_STEPS = 5
MIN_SEC, MIN_SHARE = 20.0, 0.02  # from the lead on; of a short ceiling its share
SLACK = 1.05  # what a job may be late by, as far as a few of its steps can tell


class Forecast:
    """Looks at the steps of one job. `ceiling_sec` from its start; 0.0: it has none."""

    def __init__(self, ceiling_sec: float) -> None:
        self._ceiling, self._made = ceiling_sec, time.monotonic()
        self._lead: tuple[float, int] | None = None  # seconds and steps at the end of the lead
        self._said = False

    def look(self, elapsed_sec: float, steps: int | None, total: int | None) -> dict[str, Any]:
        """What a progress report says besides: `{"forecast": {...}}`, once, where the ceiling will not do.

        steps, total: made by now, and to be made in all; None where nobody knows.
        """
        if self._said or not self._ceiling or steps is None or total is None or not steps < total:
            return {}
        if self._lead is None:
            if steps >= LEAD_STEPS:
                self._lead = elapsed_sec, steps
            return {}
        took, made = elapsed_sec - self._lead[0], steps - self._lead[1]
        if made < MIN_STEPS or took < min(MIN_SEC, MIN_SHARE * self._ceiling):
            return {}
        needs = elapsed_sec + (total - steps) * took / made
        if needs <= SLACK * self._ceiling:
            return {}
        self._said = True
        return {"forecast": {"total": total, "stepSec": _digits(took / made), "needsSec": _digits(needs)}}

    def of_units(self, report: Report, per_unit: int, total: int) -> Report:
        """A session's `report`, whose progress says so besides. It makes `total` steps, `per_unit` in a unit.

        Its ceiling counts from the making of this forecast.
        """

        def send(kind: str, body: object) -> None:
            if kind == "progress" and isinstance(body, dict) and body["phase"] == "measure":
                done = int(body["units"] * per_unit)
                body = {**body, **self.look(time.monotonic() - self._made, done, total)}
            report(kind, body)

        return send


def _digits(seconds: float) -> float:
    return float(f"{seconds:.4g}")


def when_a_trainer_begins(told: Callable[[int], None]) -> None:
    """Call `told`, as a training of transformers' Trainer begins, with how many steps it is still to make.

    Source: trainer_callback.py of transformers 5.23: on_train_begin is called with the state, whose max_steps
    and global_step (more than 0 where it resumes) are set by then. No exception of ours reaches the project.
    """
    when_imported(TRAINER, functools.partial(_hook, told))


def _hook(told: Callable[[int], None], module: ModuleType) -> None:
    handler: Any = getattr(module, "CallbackHandler", None)
    begin = getattr(handler, "on_train_begin", None)
    if begin is None:
        return

    @functools.wraps(begin)
    def on_train_begin(self: Any, *given: Any, **named: Any) -> Any:
        with contextlib.suppress(Exception):
            state = named["state"] if "state" in named else given[1]
            told(int(state.max_steps) - int(state.global_step))
        return begin(self, *given, **named)

    handler.on_train_begin = on_train_begin
