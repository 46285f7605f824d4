"""What is shown while slots run: a phase a leg for one pair, one redrawn line for a block design.

`LegView` follows a run from slot to slot, `LegProgress` one launch from report to report.

In a block design no rate and no interval is shown before the last slot is done: whoever sees one
half-way may stop there, and a stopped design no longer covers what it says. A stream that cannot
redraw gets one line a block.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from glasshouse.lifecycle.screen import Screen
from glasshouse.schema import Result, Slot, steps_words

PHASES = {
    "measure": "measuring", "warmup": "warming up", "setup": "setting up",
    "job": "running", "sealing": "sealing its outputs",
}  # fmt: skip
JOB_PHASES = {**PHASES, "measure": "training"}  # of a private job, where nothing is measured


class LegView:
    """Follows one run's slots on a screen and says how long the rest will take."""

    def __init__(self, screen: Screen, schedule: Sequence[Slot]) -> None:
        self._screen = screen
        self._schedule = schedule
        self._took: dict[bool, list[float]] = {True: [], False: []}  # by lifecycle: wall seconds a slot
        self._blocks = 1 + max((slot.block for slot in schedule if slot.block is not None), default=-1)
        self._began = time.monotonic()

    @contextmanager
    def legs(self) -> Iterator[None]:
        """Wrap all slots; a block design is one phase."""
        if not self._blocks:
            yield
            return
        with self._screen.phase(f"measuring {self._blocks} blocks, {len(self._schedule)} slots"):
            yield

    @contextmanager
    def slot(self, slot: Slot) -> Iterator[str]:
        """Wrap one slot; yield the label under which its progress is shown."""
        label = self.label(slot)
        began = time.monotonic()
        if not self._blocks:
            with self._screen.phase(label):
                yield label
            return
        self._screen.progress(label, plain=False)
        yield label
        self._took[slot.lifecycle].append(time.monotonic() - began)

    def done(self, slot: Slot, result: Result) -> None:
        """Say how a slot ended: of a pair its rate, of a design only that a block is done."""
        if not self._blocks:
            self._screen.say(result_line(result))
            return
        following = self._schedule[slot.index + 1 : slot.index + 2]
        ended = slot.block is not None and not (following and following[0].block == slot.block)
        if ended and not self._screen.live:
            self._screen.say(
                f"block {(slot.block or 0) + 1} of {self._blocks} done{self._left(slot.index + 1)}"
            )

    def label(self, slot: Slot) -> str:
        """Name a slot: its block, its arm, and how long the rest will take."""
        arm = slot.arm if slot.lifecycle or slot.arm == "raw" else "raw in the protected role"
        if not self._blocks:
            return f"{arm} leg"
        where = "burn-in" if slot.block is None else f"block {slot.block + 1} of {self._blocks}"
        return f"{where}, slot {slot.index + 1} of {len(self._schedule)} ({arm}){self._left(slot.index)}"

    def _left(self, index: int) -> str:
        """Time for the slots from `index` on: as their like took so far, else as planned."""
        seconds = 0.0
        for slot in self._schedule[index:]:
            took = self._took[slot.lifecycle]
            seconds += statistics.median(took) if took else slot.warmup_sec + (slot.measured_sec or 0.0)
        if not seconds:
            return ""
        return f", about {seconds:.0f} s left" if seconds < 90 else f", about {seconds / 60:.0f} min left"


@dataclass(frozen=True)
class Progress:
    """A progress report as it may be shown: the phase by the pod's word, seconds and units in it so far."""

    phase: str
    elapsed_sec: float
    units: float


def read_progress(body: object) -> Progress | None:
    """Read a progress report; None where it is none.

    The pod wrote it, and it goes to the operator's terminal.
    """
    if not isinstance(body, dict):
        return None
    elapsed, units = body.get("elapsedSec"), body.get("units")
    if isinstance(elapsed, bool) or not isinstance(elapsed, int | float):
        return None
    if isinstance(units, bool) or not isinstance(units, int | float):
        return None
    return Progress(str(body.get("phase")), elapsed, units)


class LegProgress:
    """Shows one launch while it goes on, under its label."""

    def __init__(self, screen: Screen, slot: Slot, label: str, *, job: bool = False) -> None:
        self._screen = screen
        self._label = label
        self._phases = JOB_PHASES if job else PHASES
        self._counted = slot.block is None and not slot.burn_in  # no peeking before a design is done
        self._began = time.monotonic()
        self._last: Progress | None = None

    def show(self, kind: str = "", body: object = None) -> None:
        """Show an event of the leg; without one, that time passes."""
        if kind == "progress":
            self._last = read_progress(body)
        last = self._last
        phase = self._phases.get(last.phase if last else "", kind.replace("-", " ") or "starting")
        if last is None or last.phase not in ("warmup", "measure"):
            # Nothing to count yet: that time passes is all there is to say.
            waited = time.monotonic() - self._began
            self._screen.progress(f"{self._label}: {phase}, {waited:.0f} s so far")
        elif not self._counted:
            self._screen.progress(f"{self._label}: {phase}", plain=False)
        else:
            rate = f", {last.units / last.elapsed_sec:.1f} /s" if last.units and last.elapsed_sec > 0 else ""
            done = f"{last.elapsed_sec:.0f} s, {last.units} units{rate}"
            self._screen.progress(f"{self._label}: {phase} {done}")


def result_line(result: Result) -> str:
    """One line on a leg of a pair: its work, time, rate and last loss."""
    if result.exit is not None and result.unit == "job":
        counted = f"; {steps_words(result.steps)}" if result.steps else ""
        return f"the command {result.exit.words} after {result.elapsed_sec:.1f} s{counted}"
    rate = result.units / result.elapsed_sec
    done = f"{result.units} {result.unit} in {result.elapsed_sec:.1f} s: {rate:.2f} /s"
    if result.exit is not None:
        done = f"it {result.exit.words}, with {steps_words(result.steps)}: {done}"
    return done if result.final_loss is None else f"{done}, loss {result.final_loss:.4f}"
