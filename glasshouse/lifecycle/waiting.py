"""Finish what must be finished, and let a person end only what is waiting."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from glasshouse.lifecycle.screen import Screen
from glasshouse.providers.base import Waits


@contextmanager
def uninterrupted(screen: Screen) -> Iterator[Waits]:
    """Answer Ctrl-C and SIGTERM with a word inside; only the wait for the end of a doubt ends for one."""
    said, asked = [0.0], []

    def hold(number: int, _frame: object) -> None:
        asked.append(number)
        if time.monotonic() - said[0] > 1:
            said[0] = time.monotonic()
            screen.warn("finishing: releasing and recording; one moment")

    waits = Waits(screen.progress, lambda: bool(asked))
    try:
        before = [(number, signal.signal(number, hold)) for number in (signal.SIGINT, signal.SIGTERM)]
    except ValueError:  # not the main thread: a launcher's worker, which has its own ways
        yield waits
        return
    try:
        yield waits
    finally:
        for number, handler in before:
            signal.signal(number, handler)
        sys.stderr.flush()
