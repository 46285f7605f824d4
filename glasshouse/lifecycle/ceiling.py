"""What a person is told, and asked, where a job's ceiling will not do: stop it now, or let it go on.

The job's machine says so (runtime/forecast.py). Nothing raises a ceiling, or a cap, of a run that was
planned: what goes on beyond it is another run (`from=RUN`), with a plan and a price of its own.
"""

from __future__ import annotations

import math
import os
import select
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from glasshouse.canonical import MAX_SAFE_INTEGER
from glasshouse.lifecycle.screen import Screen
from glasshouse.schema import steps_words
from glasshouse.spec import MAX_HOURS, Job, RunSpec

ROOM = 1.1  # of what a job seems to need, for a ceiling that would do
MAX_ANSWER = 1024
LEAST_SEC, MOST_SEC = 1e-9, 1e12  # whoever says less of a step, or more in all, says nothing
STOP = ("stop", "s", "yes", "y")


@dataclass(frozen=True)
class Late:
    """What a machine says of a job that will not be done: its steps, a step's seconds, and those of all."""

    total: int
    step_sec: float
    needs_sec: float

    @classmethod
    def read(cls, report: object) -> Late | None:
        """Read it out of a progress report; None where it says no such thing, or one that cannot be."""
        found = report.get("forecast") if isinstance(report, Mapping) else None
        if not isinstance(found, Mapping):
            return None
        values: list[Any] = [found.get(name) for name in ("total", "stepSec", "needsSec")]
        if not all(_is_number(value) for value in values):
            return None
        total, step, needs = values
        if not (1 <= total <= MAX_SAFE_INTEGER and LEAST_SEC <= step <= needs <= MOST_SEC):
            return None
        return cls(int(total), float(step), float(needs))

    def lines(self, spec: RunSpec, ceiling_sec: float) -> list[str]:
        """What to say of it: what it needs, where it ends, and what would do."""
        lacking = min(max((self.needs_sec - ceiling_sec) / self.step_sec, 1), self.total)
        reached = max(int(self.total - lacking), 0)
        hours = spec.model.max_hours if isinstance(spec.model, Job) else None
        whole = hours is not None and math.isclose(hours * 3600, ceiling_sec)
        named = f"model.max_hours={hours:g}" if whole else f"its ceiling of {_hours(ceiling_sec)}"
        wanted = _rounded_up(ROOM * self.needs_sec / 3600)
        would = f"model.max_hours={wanted:g}" if wanted <= MAX_HOURS else "no ceiling that there is"
        needs = (
            f"at {self.step_sec:.2g} s a step {steps_words(self.total)} need about {_hours(self.needs_sec)}"
        )
        choice = (
            f"{would} would do, which takes another run: nothing raises what was planned. Stop it now, or "
            "let it go on to its ceiling, have what it has then, and continue with from=RUN"
        )
        return [f"{needs}; {named} ends it at about step {reached}", choice]


class Ceiling:
    """Of one launch: takes what its reports say, and asks once. `ceiling_sec`: when it is asked to end."""

    def __init__(self, screen: Screen, spec: RunSpec, ceiling_sec: float) -> None:
        self._screen = screen
        self._spec = spec
        self._ceiling = ceiling_sec
        self._told = False
        self._asking = False

    def heard(self, report: object) -> None:
        """Take a progress report."""
        late = None if self._told or not self._ceiling else Late.read(report)
        if late is None:
            return
        self._told = True
        for line in late.lines(self._spec, self._ceiling):
            self._screen.warn(line)
        self._asking = self._screen.asks and _at_a_terminal()
        self._screen.say(
            "type stop and Enter to end it now; without an answer it goes on"
            if self._asking
            else "it goes on"
        )

    def settled(self) -> None:
        """It ends already: nothing is asked any more, and no answer counts."""
        self._told, self._asking = True, False

    def answered(self) -> None:
        """Raise KeyboardInterrupt where a person answered that it is to stop; waits for no answer."""
        if not self._asking or not _typed():
            return
        answer = os.read(sys.stdin.fileno(), MAX_ANSWER).decode("utf-8", "replace").strip().lower()
        self._asking = False
        if answer in STOP:
            raise KeyboardInterrupt
        self._screen.say("it goes on")


def _at_a_terminal() -> bool:
    """Whether somebody sits there who can answer: a background job would be stopped by reading."""
    try:
        terminal = sys.stdin.isatty() and sys.stderr.isatty()
        return terminal and os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (AttributeError, OSError, ValueError):  # closed, or none of its own
        return False


def _typed() -> bool:
    return _at_a_terminal() and bool(select.select([sys.stdin.fileno()], [], [], 0)[0])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.3g} min"


def _rounded_up(hours: float) -> float:
    """To two digits, such as 14 or 0.35."""
    step = 10.0 ** (math.floor(math.log10(hours)) - 1)
    return float(f"{math.ceil(round(hours / step, 6)) * step:.2g}")
