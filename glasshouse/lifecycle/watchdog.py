"""The dead man's switch on the operator's side: a process that outlives a killed controller.

It holds the read end of a pipe. The controller writes one byte when it has released and recorded;
if the pipe closes without it, the controller died, and the watchdog reaps the run. If neither has happened by
the time that was budgeted for a rental, the controller is stopped or hangs: its machine is given back for it.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from glasshouse.paths import Workspace

DONE = b"d"
_SLICE_SEC = 20.0  # of a wait: it is not known whether a wait counts the time that this machine sleeps


class Watchdog:
    """Started when a run is registered; told when the run has released its allocation."""

    def __init__(self, folder: Path) -> None:
        read_end, self._write_end = os.pipe()
        self._stays = False
        log = folder / "watchdog.log"
        try:
            with log.open("wb") as out:
                # Its own session: neither Ctrl-C nor a closed terminal reaches it.
                # -P: a module of the current folder's is none of ours, whatever its name.
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "glasshouse", "reap", "--watch", str(folder.resolve())],
                    env=_environment(),
                    stdin=read_end,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                )
        finally:
            os.close(read_end)

    def __enter__(self) -> Self:
        return self

    def stay(self) -> None:
        """Leave it the rest: it goes on with the release when the controller has ended, as after a death."""
        self._stays = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        over = kind is None and not self._stays
        if over:
            # A watchdog that died has nothing left to be told; the run itself is in order.
            with contextlib.suppress(BrokenPipeError):
                os.write(self._write_end, DONE)
        os.close(self._write_end)
        if over:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=30)


def _environment() -> dict[str, str]:
    """This process's, and a source tree that may have been found by the current folder alone."""
    workspace = Workspace.find()
    if not workspace.source:
        return dict(os.environ)
    places = [str(workspace.root), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(places)}


def wait_for_end(seconds: float = math.inf) -> Literal["done", "died", "overdue"]:
    """Wait on stdin until the controller says done or dies, or neither for so long."""
    end = _now() + seconds
    while (left := end - _now()) > 0:
        if select.select([0], [], [], min(left, _SLICE_SEC))[0]:
            return "done" if os.read(0, 1) == DONE else "died"
    return "overdue"


def _now() -> float:
    """Seconds that go on while this machine sleeps, as a rental does."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
