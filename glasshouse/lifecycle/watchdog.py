"""The dead man's switch on the operator's side: a process that outlives a killed controller.

Both hold one end of a socket pair. The watchdog writes a byte when it could finish the run; until then
nothing is rented. The controller writes one when it has released and recorded; if the socket closes without
it, the controller died, and the watchdog reaps the run. If neither has happened by the time that was budgeted
for a rental, the controller is stopped or hangs: its machine is given back for it. A watchdog that dies is
replaced.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from glasshouse.codes import Code
from glasshouse.errors import ProviderError
from glasshouse.lifecycle.screen import Screen
from glasshouse.paths import PACKAGE

_BEGINNING = Path(__file__).with_name("watchdog_start.py")
READY, DONE = b"r", b"d"
READY_SEC = 90.0  # for a Python to start and import what reaping needs, on a machine that is busy besides
REPLACEMENTS = 3
_SLICE_SEC = 20.0  # of a wait: it is not known whether a wait counts the time that this machine sleeps
_LOOK_SEC = 0.2
_END_SEC = 30.0


class Watchdog:
    """Started before a run rents; told when the run has released its allocation."""

    def __init__(self, folder: Path, screen: Screen) -> None:
        self._folder = folder.resolve()
        self._screen = screen
        self._stays = False
        self._line: socket.socket | None = None
        self._over = threading.Event()
        self._swap = threading.Lock()
        self._watcher = threading.Thread(target=self._watch, name="watchdog-watcher", daemon=True)

    def start(self) -> None:
        """Start it, and wait until it could finish this run. Raises ProviderError (watchdog-not-started)."""
        self._line = self._started()
        self._watcher.start()

    def __enter__(self) -> Self:
        return self

    def stay(self) -> None:
        """Leave it the rest: it goes on with the release when the controller has ended, as after a death."""
        self._stays = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._swap:
            self._over.set()
            line = self._line
        if line is None:
            return
        # A watchdog that died has nothing left to be told; the run itself is in order.
        with contextlib.suppress(OSError):
            if kind is None and not self._stays:
                line.sendall(DONE)
            else:
                line.shutdown(socket.SHUT_RDWR)
        # It ends when the watchdog does, or at once where that goes on without us.
        if self._watcher.ident is not None:
            self._watcher.join(_END_SEC)
        line.close()

    def _watch(self) -> None:
        """Start another one for each that dies while the run goes on."""
        for _ in range(REPLACEMENTS):
            self._wait_for_end()
            if self._over.is_set():
                return
            self._screen.warn("the watchdog of this run died (see watchdog.log); starting another")
            try:
                line = self._started()
            except ProviderError as error:
                why = error.line()
                break
            with self._swap:
                if self._over.is_set():
                    line.close()
                    return
                assert self._line is not None
                self._line.close()
                self._line = line
            self._screen.record("another watchdog is ready")
        else:
            self._wait_for_end()
            why = f"{REPLACEMENTS + 1} of them died"
        if not self._over.is_set():
            self._screen.alarm(
                f"THIS RUN HAS NO WATCHDOG ANY MORE ({why}): should this process be killed, its machine "
                "stays rented until you run `glasshouse reap`"
            )

    def _wait_for_end(self) -> None:
        assert self._line is not None
        with contextlib.suppress(OSError):
            while self._line.recv(1):
                pass

    def _started(self) -> socket.socket:
        """Start one and wait for its word; our end of the line to it."""
        ours, theirs = socket.socketpair()
        log = self._folder / "watchdog.log"
        command = [sys.executable, "-I", *(["-B"] if sys.dont_write_bytecode else [])]
        words = [str(_BEGINNING), str(self._folder), str(PACKAGE), *_places()]
        try:
            with theirs, log.open("ab") as out:
                # Its own session: neither Ctrl-C nor a closed terminal reaches it.
                first = subprocess.Popen(
                    [*command, *words], stdin=theirs.fileno(), stdout=out, stderr=out, start_new_session=True
                )
            try:
                self._wait_for_word(ours)
            finally:
                first.kill()  # where all is well it has long forked and ended (watchdog_start.py)
                first.wait()
        except OSError as error:
            ours.close()
            raise _not_started(error.strerror or type(error).__name__) from error
        except BaseException:
            ours.close()
            raise
        return ours

    def _wait_for_word(self, line: socket.socket) -> None:
        end = _now() + READY_SEC
        line.settimeout(_LOOK_SEC)
        while _now() < end:
            with contextlib.suppress(TimeoutError):
                if line.recv(1) == READY:
                    line.settimeout(None)
                    return
                raise _not_started("it ended at once, see watchdog.log in the run's folder")
            if self._over.is_set():
                raise _not_started("the run is over")
        raise _not_started(f"not within {READY_SEC:.0f} s")


def _not_started(why: str) -> ProviderError:
    return ProviderError(
        f"the watchdog of this run did not start ({why}); nothing is rented without one",
        code=Code.WATCHDOG_NOT_STARTED,
    )


def _places() -> list[str]:
    """Where this process finds modules, apart from its working folder: what lies there is not ours to run."""
    here = ""
    with contextlib.suppress(OSError):  # it may be gone
        here = str(Path.cwd())
    return [place for place in sys.path if Path(place).is_absolute() and str(Path(place).resolve()) != here]


def tell_ready() -> None:
    """Tell the controller behind stdin that its run can be finished from here; one that died is no matter."""
    with contextlib.suppress(OSError):
        os.write(0, READY)


def wait_for_end(seconds: float = math.inf) -> Literal["done", "died", "overdue"]:
    """Wait on stdin until the controller says done or dies, or neither for so long."""
    end = _now() + seconds
    while (left := end - _now()) > 0:
        if select.select([0], [], [], min(left, _SLICE_SEC))[0]:
            with contextlib.suppress(OSError):  # reset: it died before it read our word
                return "done" if os.read(0, 1) == DONE else "died"
            return "died"
    return "overdue"


def _now() -> float:
    """Seconds that go on while this machine sleeps, as a rental does."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
