"""The time that a fake provider lives in: this machine's, or a simulated one that nobody waits for."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from glasshouse.providers.clock import Clock

Steps = Iterator[float]  # something that happens by itself: yields the seconds until its next step


class LivingClock(Protocol):
    """A `Clock` by which things happen while others wait."""

    def now(self) -> float:
        """Unix seconds."""

    def monotonic(self) -> float:
        """Seconds from an arbitrary begin."""

    def sleep(self, seconds: float) -> None:
        """Wait."""

    def start(self, steps: Steps) -> None:
        """Let the steps happen, each when its time has come, whoever waits meanwhile."""

    def close(self) -> None:
        """Let nothing more happen. Idempotent."""


class WallClock(Clock):
    """`LivingClock` in real time: a thread for each thing that happens by itself."""

    def __init__(self) -> None:
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, steps: Steps) -> None:
        """Run the steps in a thread of their own."""
        thread = threading.Thread(target=self._run, args=(steps,), daemon=True, name="fake-pod")
        self._threads.append(thread)
        thread.start()

    def close(self) -> None:
        """End every thread at its next wait. Idempotent."""
        self._closing.set()
        for thread in self._threads:
            thread.join(30.0)

    def _run(self, steps: Steps) -> None:
        for seconds in steps:
            if self._closing.wait(seconds):
                return


class SimulatedClock(Clock):
    """`LivingClock` whose waits take no time: what would happen meanwhile happens, in order. For one thread.

    `alarm` is called, once, in the wait during which `alarm_at` (monotonic seconds) comes. It may raise, so
    that a process is killed or interrupted in mid-wait.
    """

    BEGIN: Final = 1_800_000_000.0  # Unix seconds

    def __init__(self) -> None:
        self._since = 0.0
        self._events: list[tuple[float, int, Steps]] = []
        self._number = itertools.count()
        self.alarm: Callable[[], None] | None = None
        self.alarm_at = 0.0

    def now(self) -> float:
        """Unix seconds."""
        return self.BEGIN + self._since

    def monotonic(self) -> float:
        """Seconds since this clock was made."""
        return self._since

    def sleep(self, seconds: float) -> None:
        """Go forward at once. Raises the alarm when its time comes."""
        until = self._since + max(0.0, seconds)
        if self.alarm is not None and self.alarm_at <= until:
            alarm, self.alarm = self.alarm, None
            self._pass(max(self._since, self.alarm_at))
            alarm()
        self._pass(until)

    def _pass(self, until: float) -> None:
        while self._events and self._events[0][0] <= until:
            moment, _, steps = heapq.heappop(self._events)
            self._since = max(self._since, moment)
            self._step(steps)
        self._since = until

    def start(self, steps: Steps) -> None:
        """Do the first step now, and the others as time passes."""
        self._step(steps)

    def close(self) -> None:
        """Forget what has not happened."""
        self._events.clear()

    def _step(self, steps: Steps) -> None:
        for seconds in steps:
            if seconds > 0:
                heapq.heappush(self._events, (self._since + seconds, next(self._number), steps))
                return
