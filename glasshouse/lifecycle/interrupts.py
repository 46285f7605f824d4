"""What Ctrl-C, SIGTERM and a closed terminal do to a run, and how a sweep's end reaches one of its cells.

The first one ends what goes on, where that is allowed; what must be finished is finished: each further one is
answered with a word. So a second Ctrl-C can neither cut off the release nor the note on why the run ended.
A terminal that closes (SIGHUP) ends no run that may go on unattended.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

from glasshouse.lifecycle.screen import Screen
from glasshouse.lifecycle.waiting import Finishing
from glasshouse.providers.base import Waits

_LOOK_SEC = 0.5
_ENDING = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def once_more() -> Iterator[None]:
    """Let a further Ctrl-C or SIGTERM end what goes on inside, as KeyboardInterrupt; the next is answered."""
    before: list[tuple[int, Any]] = []

    def restore() -> None:
        while before:
            signal.signal(*before.pop())

    def heard(_signal: int, _frame: FrameType | None) -> None:
        restore()
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        heeded = [each for each in _ENDING if signal.getsignal(each) is not signal.SIG_IGN]
        before += [(number, signal.getsignal(number)) for number in heeded]
        for number in heeded:
            signal.signal(number, heard)
    try:
        yield
    finally:
        restore()


class Interrupts:
    """In force from the plan to the record. `stopped` says why the run's sweep is to end, "" if it is not.
    `stays`: a terminal that closes ends nothing; what would be shown goes to the run's log alone.

    Outside of the main thread no signal arrives; there the run asks `stopped` itself.
    """

    def __init__(self, screen: Screen, stopped: Callable[[], str], *, stays: bool = False) -> None:
        self._stopped = stopped
        self._screen, self._stays = screen, stays
        self._terminals: list[int] = []
        self._raising = False
        self._heard_count = 0
        self._finishing = Finishing(screen)
        self._before: list[tuple[int, Any]] = []

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _ENDING:
                # Who ignores Ctrl-C was started so: in the background, or as one of many workers.
                if signal.getsignal(number) is not signal.SIG_IGN or number == signal.SIGTERM:
                    self._before.append((number, signal.signal(number, self._heard)))
            if self._stays and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
                self._terminals = [number for number in (0, 1, 2) if os.isatty(number)]
                self._before.append((signal.SIGHUP, signal.signal(signal.SIGHUP, self._hung_up)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before:
            signal.signal(number, handler)
        sys.stderr.flush()

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Let what goes on inside be interrupted, once; what was asked for before counts."""
        over = threading.Event()
        if self._before:
            threading.Thread(target=self._watch, args=(over,), name="sweep-watcher", daemon=True).start()
        self._raising = True
        try:
            if self._heard_count:
                raise KeyboardInterrupt
            yield
        finally:
            self._raising = False
            over.set()

    def waits(self) -> Waits:
        """What a release is told: only a signal from now on ends its wait for the end of a doubt."""
        before = self._heard_count
        return Waits(self._finishing.progress, lambda: self._heard_count > before)

    def _heard(self, _signal: int, _frame: FrameType | None) -> None:
        self._heard_count += 1
        if self._raising:
            self._raising = False
            raise KeyboardInterrupt
        self._finishing.answer()

    def _hung_up(self, _signal: int, _frame: FrameType | None) -> None:
        """The terminal is gone: nothing is read from it or written to it any more."""
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for number in self._terminals:
            os.dup2(null, number)
        os.close(null)
        self._screen.record("the terminal was closed; the run goes on")

    def _watch(self, over: threading.Event) -> None:
        while not over.wait(_LOOK_SEC):
            if self._stopped():
                if not over.is_set():
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
                return
