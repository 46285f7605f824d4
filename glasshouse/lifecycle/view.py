"""What is shown while slots run: a phase a leg for one pair, one redrawn line for a block design.

In a block design no rate and no interval is shown before the last slot is done: whoever sees one
half-way may stop there, and a stopped design no longer covers what it says. A stream that cannot
redraw gets one line a block.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from glasshouse.lifecycle.ui import Screen
from glasshouse.measurement.schedule import Slot


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

    def done(self, slot: Slot, result: dict[str, Any]) -> None:
        """Say how a slot ended: of a pair its rate, of a design only that a block is done."""
        if not self._blocks:
            self._screen.note(result_line(result))
            return
        following = self._schedule[slot.index + 1 : slot.index + 2]
        ended = slot.block is not None and not (following and following[0].block == slot.block)
        if ended and not self._screen.live:
            self._screen.note(
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


def read_progress(body: object) -> dict[str, Any]:
    """Return of a progress report what may be shown: phase, elapsedSec, units; {} where it is none.

    The pod wrote it, and it goes to the operator's terminal.
    """
    if not isinstance(body, dict):
        return {}
    numbers = {name: body.get(name) for name in ("elapsedSec", "units")}
    if any(isinstance(item, bool) or not isinstance(item, int | float) for item in numbers.values()):
        return {}
    return {"phase": str(body.get("phase")), **numbers}


def result_line(result: dict[str, Any]) -> str:
    """One line on a leg of a pair: its work, time, rate and last loss."""
    elapsed = float(result["elapsedSec"])
    rate = result["units"] / elapsed if elapsed else 0.0
    done = f"{result['units']} {result['unit']} in {elapsed:.1f} s"
    loss = result["finalLoss"]
    return f"{done}: {rate:.2f} /s" + ("" if loss is None else f", loss {loss:.4f}")
