"""What is known of the create calls of one allocation: machines that they made, or may yet make.

A create that was answered with an id made that machine. Every other create is a doubt: its answer was lost,
or unreadable, or a refusal, and all of these were seen with a machine behind them that appeared later. A
doubt ends by time alone, since neither a list without the machine nor a 404 proves that none will come. It
is opened before the create is sent, so that whoever reads the journal of a killed controller knows of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from glasshouse.providers.cloud_http import ApiError


@dataclass(frozen=True)
class Doubt:
    """A create that may yet make a machine. Unix seconds: `since` it was sent (0.0: by another process), and
    `until` it is over.
    """

    since: float
    until: float


@dataclass(frozen=True)
class Creates:
    """The creates of one allocation so far.

    `ids`: machines that a create returned, or that a list showed under our full name. `gone`: those of them
    whose end was proven. `doubts`: in the order in which they were sent; ended ones stay, to say that there
    were any. `sent`: whether any create was.
    """

    ids: frozenset[str] = frozenset()
    gone: frozenset[str] = frozenset()
    doubts: tuple[Doubt, ...] = ()
    sent: bool = False

    def sending(self, now: float, seconds: float) -> Creates:
        """A create is about to be sent; nothing is known of its outcome for so many seconds."""
        return replace(self, doubts=(*self.doubts, Doubt(now, now + seconds)), sent=True)

    def made(self, machine_id: str) -> Creates:
        """The create that was sent last made this machine: nothing about it is in doubt any more."""
        return replace(self.seen([machine_id]), doubts=self.doubts[:-1])

    def unclear(self, now: float, seconds: float) -> Creates:
        """The create that was sent last ended now without an id: in doubt for so many seconds more."""
        return replace(self, doubts=(*self.doubts[:-1], Doubt(self.doubts[-1].since, now + seconds)))

    def seen(self, ids: Iterable[str]) -> Creates:
        """These are ours."""
        return replace(self, ids=self.ids.union(ids))

    def ended(self, ids: Iterable[str]) -> Creates:
        """The end of these was proven."""
        return replace(self, gone=self.gone.union(ids))

    def open(self, now: float) -> int:
        """How many creates may yet make a machine."""
        return sum(doubt.until > now for doubt in self.doubts)

    @property
    def doubtful_until(self) -> float:
        """When the last doubt is over, in Unix seconds; 0.0 without any."""
        return max((doubt.until for doubt in self.doubts), default=0.0)


def refused(error: ApiError) -> bool:
    """Whether a create was answered with a clear no: a status of its own, read whole, not from a gateway.

    What a clear no has made all the same is there already and shows as soon as the lists catch up; what was
    not answered may still be under way at the provider.
    """
    return 400 <= error.status < 500 and error.status not in (408, 425)
