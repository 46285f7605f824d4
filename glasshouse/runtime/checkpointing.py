"""Checkpoints of a session: what it goes on from, written into its scratch folder for the keeper to seal.

    checkpoint-N/state.safetensors    the tensors of its `state()` (session.py), after N optimizer steps
    checkpoint-N/state.json           its values; under RESERVED our own, {"steps": N, "random": states}
    checkpoint-N/made.json            of this run's own: units, and seconds that they took, at most

N counts what was made under our eyes, also by the legs that this one goes on from; whatever the session's own
values say, they are its own. The random states are the process's (randomness.py).

No pickle. Written under another name and renamed into place, so that what has its name is whole; the one
before goes then. Training stands still for that copy, into memory, and for no more: sealing is the keeper's.
A session that has no `state()`, or whose state cannot be written, trains on without.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import time
from pathlib import Path
from typing import Any

from glasshouse.canonical import canonical_json
from glasshouse.remote.sweep_script import remove
from glasshouse.runtime import harness, randomness
from glasshouse.runtime.params import SAID
from glasshouse.runtime.session import RESERVED, Session, restorable
from glasshouse.sealing.packing import write_all

FOLDER = "checkpoints"  # in the scratch folder
WRITING = "writing"  # in that, until it is renamed
UNABLE = "unable"  # there where one was due, and none can be written
TRIES = 3  # one after the other for which there is no room, before no more are made
TENSORS, VALUES, MADE = "state.safetensors", "state.json", "made.json"
_NAME = re.compile(r"checkpoint-(0|[1-9][0-9]{0,15})\Z")


class Checkpointed:
    """A session that writes a checkpoint every `every` seconds, after a unit, and a last one when it is told
    that training is over; in all else the session.

    before: optimizer steps that were made by what it goes on from.
    """

    def __init__(self, session: Session, folder: Path, every: float, before: int = 0) -> None:
        self._session, self._folder, self._every, self._before = session, folder, every, before
        self._next = time.monotonic() + every
        self._units = self._beside = self._failed = 0  # _beside: steps that made no unit
        self._began: float | None = None  # a moment after the clock of the measured stretch

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._session, name)
        return self._run_steps if name == "run_steps" else found

    def run_unit(self) -> None:
        """Do one unit, and write a checkpoint where one is due."""
        if self._began is None:
            self._began = time.monotonic()
        self._session.run_unit()
        self._units += 1
        if time.monotonic() >= self._next:
            self._try()

    def last(self) -> None:
        """Training is over, whatever ended it: write one of its end, unless none can be written."""
        if (self._units or self._beside) and self._next != float("inf") and restorable(self._session):
            self._try()

    def _run_steps(self, count: int) -> None:
        if self._began is None:
            self._began = time.monotonic()
        self._session.run_steps(count)  # type: ignore[attr-defined]  # optional, and asked for before
        self._beside += count

    def _try(self) -> None:
        try:
            if not restorable(self._session):
                raise TypeError("its session has no state() and restore()")
            self._write()
        except Exception as error:  # noqa: BLE001  a state() may be anybody's: training goes on
            self._failed += 1
            remove(self._folder / WRITING)
            if self._failed >= TRIES or not isinstance(error, OSError):  # memory may be free by the next
                self._give_up(f"{type(error).__name__}: {error}")
                return
        else:
            self._failed = 0
        self._next = time.monotonic() + self._every

    def _give_up(self, why: str) -> None:
        self._next = float("inf")
        remove(self._folder)
        with contextlib.suppress(OSError):
            self._folder.mkdir(mode=0o700)
            (self._folder / UNABLE).touch()
        print(f"{SAID}no checkpoints are made of it: {why}", flush=True)  # noqa: T201  the sealed log

    def _write(self) -> None:
        session: Any = self._session
        session.synchronize()
        assert self._began is not None
        elapsed = time.monotonic() - self._began
        made = {"elapsedSec": math.floor(1000 * elapsed) / 1000, "units": self._units}
        tensors, values = session.state()
        if RESERVED in values:
            raise ValueError(f"its state has a value named {RESERVED}, which is ours")
        steps = self._before + self._units * session.steps_per_unit + self._beside
        values = {**values, RESERVED: {"steps": steps, "random": randomness.taken()}}
        place = self._folder / WRITING
        remove(place)
        place.mkdir(parents=True, mode=0o700)
        described = {
            name: (harness.dtype_name(tensor), list(tensor.shape), tensor.numel() * tensor.element_size())
            for name, tensor in tensors.items()
        }
        head, order = harness.safetensors_layout(described)
        with (place / TENSORS).open("xb", buffering=0) as file:
            write_all(file, head)
            for name in order:
                view, host = harness.tensor_bytes(tensors[name])
                try:
                    write_all(file, view)
                finally:
                    harness.wipe_copy(tensors[name], host)
        (place / VALUES).write_bytes(canonical_json(values))
        (place / MADE).write_bytes(canonical_json(made))
        # A rename within the tick in which it was filled would not be seen as one (looking.py).
        os.utime(place, ns=(0, 0))
        before = [path for path in self._folder.iterdir() if _NAME.match(path.name)]
        final = self._folder / f"checkpoint-{steps}"
        if final in before:  # of a session that made no step meanwhile: as it was
            remove(place)
            return
        place.rename(final)
        for path in before:
            remove(path)


def is_written(name: str) -> bool:
    """Whether what lies in the folder under this relative path is no longer being written."""
    return name.partition("/")[0] not in (WRITING, UNABLE)


def steps_in(folder: Path) -> int | None:
    """After how many steps the newest checkpoint there was written; None: there is none."""
    try:
        found = [int(match[1]) for name in os.listdir(folder) if (match := _NAME.match(name))]  # noqa: PTH208
    except OSError:
        return None
    return max(found, default=None)


def due_in(folder: Path, every: float, since: float) -> float:
    """Seconds until a session writes the next one; `since`: when it began (monotonic seconds)."""
    try:
        waited = time.time() - folder.stat().st_mtime  # of the last rename in it
    except OSError:
        waited = time.monotonic() - since
    return max(0.0, every - waited)
