"""Finish what must be finished, and let a person end only what is waiting."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from glasshouse.errors import UsageError
from glasshouse.lifecycle.screen import Screen
from glasshouse.providers.base import Waits
from glasshouse.providers.journal import Journal

_FRESH_SEC = 60.0  # what was said earlier goes on no more


class Finishing:
    """What is said to whoever asks for the end of what must be finished: what goes on, and for how long."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._last, self._last_at = "", 0.0
        self._said = 0.0

    def progress(self, text: str) -> None:
        """Show what goes on."""
        self._last, self._last_at = text, time.monotonic()
        self._screen.progress(text)

    def answer(self) -> None:
        """Answer one Ctrl-C, at most once a second."""
        at = time.monotonic()
        if at - self._said > 1:
            self._said = at
            now = self._last if at - self._last_at < _FRESH_SEC else ""
            now = now or "seconds, where all answer"
            self._screen.warn(
                "finishing first: giving back what is known of, and recording; a machine that may yet appear "
                f"is waited for no longer ({now})"
            )


@contextmanager
def uninterrupted(screen: Screen) -> Iterator[Waits]:
    """Answer Ctrl-C and SIGTERM with a word inside; only the wait for the end of a doubt ends for one."""
    finishing, asked = Finishing(screen), []

    def hold(number: int, _frame: object) -> None:
        asked.append(number)
        finishing.answer()

    waits = Waits(finishing.progress, lambda: bool(asked))
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


def journaling(waits: Waits, journal: Journal, name: str, ids: str | None) -> Waits:
    """The same, and what comes to light of `name` beside `ids` (with commas between) goes to the journal."""
    known = set(filter(None, (ids or "").split(",")))

    def found(machine_id: str) -> None:
        known.add(machine_id)
        # A journal that fails must not keep a machine from its end.
        with contextlib.suppress(UsageError):
            journal.created(name, ",".join(sorted(known)))

    return replace(waits, found=found)
