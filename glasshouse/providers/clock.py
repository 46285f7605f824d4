"""The clock of the paid providers' clients: real, or simulated where a test lets hours pass at once."""

from __future__ import annotations

import time


class Clock:
    """What time it is, and waiting. A simulated one replaces all three: only its own waits pass time."""

    def now(self) -> float:
        """Unix seconds: for what is written down, since another process must understand it."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds from an arbitrary begin, which no correction of the wall clock moves."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait; a negative or zero time is none."""
        if seconds > 0:
            time.sleep(seconds)
