"""A session that notes how it stands, for whoever watches: lines of JSON in memory that the keeper reads.

    {"step": 40, "loss": 0.31, "learning_rate": 0.001, "tokens_per_sec": 8123.4, "total_steps": 400}

Where nobody is to watch, nothing is noted and no loss is read for it.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from typing import Any

from glasshouse.runtime.ring import Ring
from glasshouse.runtime.session import Session

NOTE_SEC = 2.0
NOTE_SHARE = 0.0005  # of what it took so far: reading a loss stalls the device


class Noted:
    """A session that notes how it stands every few seconds, after a unit; in all else the session."""

    def __init__(self, session: Session, notes: Ring, total_steps: int | None) -> None:
        self._session: Any = session
        self._notes, self._total = notes, total_steps
        self._steps = 0
        self._noted = -1
        self._began = self._last = time.monotonic()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._session, name)
        return self._run_steps if name == "run_steps" else found

    def run_unit(self) -> None:
        """Do one unit, and note it where that is due."""
        self._session.run_unit()
        self._steps += self._session.steps_per_unit
        now = time.monotonic()
        if now - self._last >= max(NOTE_SEC, NOTE_SHARE * (now - self._began)):
            self._note(now)

    def _run_steps(self, count: int) -> None:
        self._session.run_steps(count)
        self._steps += count

    def synchronize(self) -> None:
        """Wait for the device, as at the end of all units: note how it ended."""
        self._session.synchronize()
        if self._steps and self._noted < self._steps:
            self._note(time.monotonic())

    def _note(self, now: float) -> None:
        self._last, self._noted = now, self._steps
        loss = self._session.loss()
        said: dict[str, Any] = {"step": self._steps, "loss": loss if math.isfinite(loss) else None}
        with contextlib.suppress(AttributeError, LookupError, TypeError, ValueError):
            said["learning_rate"] = float(self._session.optimizer.param_groups[0]["lr"])
        tokens = self._session.info.get("tokensPerUnit")
        if isinstance(tokens, int | float) and now > self._began:
            units = self._steps / self._session.steps_per_unit
            said["tokens_per_sec"] = round(tokens * units / (now - self._began), 1)
        if self._total is not None:
            said["total_steps"] = self._total
        self._notes.write(json.dumps(said).encode() + b"\n")
