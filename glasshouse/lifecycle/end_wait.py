"""How long the end of a job that was asked to end is waited for, by what is heard from its leg meanwhile."""

from __future__ import annotations

from collections.abc import Collection

from glasshouse.codes import Code
from glasshouse.errors import LegError
from glasshouse.runtime.params import GRACE_SEC, LATE_SEC

SLACK_SEC = 30.0  # beyond the pod's own bound, so that its reason wins over ours
QUIET_SEC = 180.0  # without an event: it reports every few seconds while it seals, and then clears away


class EndWait:
    """One such wait, from `began` on; times are monotonic seconds.

    The job has its moment, and its trainer its own to end what did not heed that (runtime/job_end.py). What
    is sealed then may take long, but not without a word: a machine that says nothing is not paid for long.
    """

    def __init__(self, began: float) -> None:
        self._began = self._heard = began
        self._over = False  # the job's processes are gone

    def heard(self, kinds: Collection[str], now: float) -> None:
        """Events of these types came in by `now`, perhaps none. LegError (lost-leg) where it does not end."""
        if kinds:
            self._heard = now
            self._over = self._over or "trained" in kinds
        if not self._over and now - self._began > GRACE_SEC + LATE_SEC + SLACK_SEC:
            raise LegError("the job did not end when it was asked to", code=Code.LOST_LEG)
        if self._over and now - self._heard > QUIET_SEC:
            raise LegError("the leg says nothing any more", code=Code.LOST_LEG)
