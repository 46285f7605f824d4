"""When a session of a private job is to end before its work is done: at its ceiling, or when asked to.

It is asked between units of work, and what it has by then is sealed. The ceiling counts from here on, with
the building of the session in it: a machine is paid for by the hour, whatever it does meanwhile.
"""

from __future__ import annotations

import select
import time
from dataclasses import replace

from glasshouse.runtime.channel import Channel
from glasshouse.runtime.results import JobExit, LegResult

LOOK_SEC = 0.05


class SessionEnd:
    """Of one session; its trainer hears the supervisor on `channel`. `seconds` from now; 0.0: no ceiling."""

    def __init__(self, channel: Channel, seconds: float) -> None:
        self._channel = channel
        self._began = self._looked = time.monotonic()
        self._seconds = seconds
        self._begun = False
        self._asked = False
        self._late = False

    def __call__(self) -> bool:
        """Whether it is to end now; called before each unit, and looks only so often.

        Not before the first one: what has done nothing has no loss, and nothing to return.
        """
        now = time.monotonic()
        if not self._begun:
            self._begun = True
            return False
        if not (self._late or self._asked) and now - self._looked >= LOOK_SEC:
            self._looked = now
            self._late = bool(self._seconds) and now - self._began >= self._seconds
            self._asked = _told_to_end(self._channel)
        return self._late or self._asked

    def stated(self, result: LegResult) -> LegResult:
        """The result, with how it ended where its ceiling ended it."""
        return replace(result, exit=JobExit(None, None, False, True)) if self._late else result


def _told_to_end(channel: Channel) -> bool:
    """Whether the supervisor says that it is to end."""
    if not select.select([channel.fileno()], [], [], 0)[0]:
        return False
    channel.expect("end", timeout=60)
    return True
