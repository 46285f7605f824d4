"""How a job's end is brought about from outside: its trainer is told, woken where it was stopped, and ended.

A job may stop or delay its trainer where the kernel has no scope for signals (linux.scope_signals), and then
nobody would end the job, nor seal what it left. The supervisor does not wait for that.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from pathlib import Path

from glasshouse.runtime.channel import Channel, ChannelClosedError
from glasshouse.runtime.params import GRACE_SEC, LATE_SEC

LOOK_SEC = 0.5


class JobEnd(threading.Thread):
    """Passes on, once, that whoever follows the leg has asked for its end: there is a file `path` then.

    From that moment on, or from the end of the job's own time (`seconds` from `begun`; 0.0: it has none), the
    trainer has GRACE_SEC + LATE_SEC to say what became of the job, or is killed. The thread alone speaks to
    the trainer until `stop`; and until then the trainer must not be reaped. Without `kills`, none is killed.
    """

    def __init__(
        self, path: Path, channel: Channel, trainer: int, seconds: float, *, kills: bool = True
    ) -> None:
        super().__init__(name="job-end", daemon=True)
        self._path = path
        self._channel = channel
        self._trainer = trainer
        self._seconds = seconds
        self._kills = kills
        self._over = threading.Event()
        self._at = math.inf  # when it is to end
        self._asked = False
        self.gave_up = False

    def begun(self) -> None:
        """The job begins about now."""
        if self._seconds and self._at == math.inf:
            self._at = time.monotonic() + self._seconds

    def stop(self) -> None:
        """Nothing is to be ended any more. Idempotent."""
        self._over.set()
        if self.is_alive():
            self.join()

    def run(self) -> None:
        """Look until stopped, or until there is nothing left to do."""
        while not self._over.wait(LOOK_SEC):
            if _stopped(self._trainer):
                _signal(self._trainer, signal.SIGCONT)
            if not self._asked and self._path.exists():
                self._asked = True
                self._at = min(self._at, time.monotonic())
                with contextlib.suppress(ChannelClosedError):
                    self._channel.send("end")
            if self._kills and time.monotonic() >= self._at + GRACE_SEC + LATE_SEC:
                self.gave_up = True
                _signal(self._trainer, signal.SIGKILL)
                return


def _stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"T"
    except (OSError, IndexError):
        return False


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
