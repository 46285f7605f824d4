"""Checkpoints of a session: what it goes on from, written into its scratch folder for the keeper to seal.

    checkpoint-N/state.safetensors    the tensors of its `state()` (session.py), after N optimizer steps
    checkpoint-N/state.json           its values

No pickle. Written under another name and renamed into place, so that what has its name is whole; the one
before goes then. Training stands still for that copy, into memory, and for no more: sealing is the keeper's.
A session that has no `state()`, or whose state cannot be written, trains on without.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

from glasshouse.canonical import canonical_json
from glasshouse.runtime import harness
from glasshouse.runtime.params import SAID
from glasshouse.runtime.session import Session, restorable
from glasshouse.sealing.packing import write_all

FOLDER = "checkpoints"  # in the scratch folder
WRITING = "writing"  # in that, until it is renamed
UNABLE = "unable"  # there where one was due, and none can be written
TRIES = 3  # one after the other for which there is no room, before no more are made
TENSORS, VALUES = "state.safetensors", "state.json"
_NAME = re.compile(r"checkpoint-(0|[1-9][0-9]{0,15})\Z")


class Checkpointed:
    """A session that writes a checkpoint every `every` seconds, after a unit, and a last one when it is told that
    training is over; in all else the session.
    """

    def __init__(self, session: Session, folder: Path, every: float) -> None:
        self._session, self._folder, self._every = session, folder, every
        self._next = time.monotonic() + every
        self._units = self._beside = self._failed = 0  # _beside: steps that made no unit

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._session, name)
        return self._run_steps if name == "run_steps" else found

    def run_unit(self) -> None:
        """Do one unit, and write a checkpoint where one is due."""
        self._session.run_unit()
        self._units += 1
        if time.monotonic() >= self._next:
            self._try()

    def last(self) -> None:
        """Training is over, whatever ended it: write one of its end, unless none can be written."""
        if (self._units or self._beside) and self._next != float("inf") and restorable(self._session):
            self._try()

    def _run_steps(self, count: int) -> None:
        self._session.run_steps(count)  # type: ignore[attr-defined]  # optional, and asked for before
        self._beside += count

    def _try(self) -> None:
        try:
            if not restorable(self._session):
                raise TypeError("its session has no state() and restore()")
            self._write()
        except Exception as error:  # noqa: BLE001  a state() may be anybody's: training goes on
            self._failed += 1
            shutil.rmtree(self._folder / WRITING, ignore_errors=True)
            if self._failed >= TRIES or not isinstance(error, OSError):  # memory may be free by the next
                self._give_up(f"{type(error).__name__}: {error}")
                return
        else:
            self._failed = 0
        self._next = time.monotonic() + self._every

    def _give_up(self, why: str) -> None:
        self._next = float("inf")
        shutil.rmtree(self._folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._folder.mkdir(mode=0o700)
            (self._folder / UNABLE).touch()
        print(f"{SAID}no checkpoints are made of it: {why}", flush=True)  # noqa: T201  the sealed log

    def _write(self) -> None:
        session: Any = self._session
        session.synchronize()
        tensors, values = session.state()
        steps = values.get("steps")
        if type(steps) is not int or steps < 0:
            steps = self._units * session.steps_per_unit + self._beside
        place = self._folder / WRITING
        shutil.rmtree(place, ignore_errors=True)
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
        # A rename within the tick in which it was filled would not be seen as one (looking.py).
        os.utime(place, ns=(0, 0))
        before = [path for path in self._folder.iterdir() if _NAME.match(path.name)]
        final = self._folder / f"checkpoint-{steps}"
        if final in before:  # of a session that made no step meanwhile: as it was
            shutil.rmtree(place)
            return
        place.rename(final)
        for path in before:
            shutil.rmtree(path)


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
