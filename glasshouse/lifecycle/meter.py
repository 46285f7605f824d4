"""How far a long step with many bytes is, how fast it goes and how long it will still take."""

from __future__ import annotations

import time
from collections.abc import Callable

RECENT_SEC = 10.0  # the rate is that of the last so many seconds: a link that slowed down is seen


class Meter:
    """Call it with (bytes done, bytes in total); it shows `word`, both, rate and time left."""

    def __init__(
        self, word: str, show: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._word, self._show, self._clock = word, show, clock
        self._seen: list[tuple[float, int]] = []  # (when, bytes done), oldest first

    def __call__(self, done: int, total: int) -> None:
        """Show where it is now. Fewer bytes than before: it began anew."""
        if total < 1e6:
            return  # over before anybody could read it, and "0 of 0 MB" says nothing
        now = self._clock()
        if self._seen and done < self._seen[-1][1]:
            self._seen.clear()
        self._seen.append((now, done))
        while len(self._seen) > 2 and self._seen[1][0] < now - RECENT_SEC:
            self._seen.pop(0)
        whole = f"{size(total, total)} {unit(total)}"
        self._show(f"{self._word} {size(done, total)} of {whole}{self._pace(total)}")

    def _pace(self, total: int) -> str:
        (first, before), (last, done) = self._seen[0], self._seen[-1]
        if last - first < 0.5 or done <= before:
            return ""
        rate = (done - before) / (last - first)
        return f", {rate / 1e6:.0f} MB/s, {seconds((total - done) / rate)} left"


def unit(total: int) -> str:
    """MB, or GB from one on: both numbers in the total's unit."""
    return "MB" if total < 1e9 else "GB"


def size(count: int, total: int) -> str:
    """Bytes in `unit(total)`."""
    return f"{count / 1e6:.0f}" if total < 1e9 else f"{count / 1e9:.2f}"


def seconds(left: float) -> str:
    """Time left in words: 40 s, 3 min 20 s, 2 h 5 min."""
    whole = round(left)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
