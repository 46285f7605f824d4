"""What is known of the create calls of one allocation: machines that they made, or may yet make.

A create that was answered with an id made that machine, and may have made a second one: what stands between
us and the provider may send a request twice. Of every other create nobody knows what it made: its answer was
lost, or unreadable, or a refusal, and all of these were seen with a machine behind them that appeared later.
All of that is a doubt. It ends by time alone, since neither a list without the machine nor a 404 proves that
none will come. It is opened before the create is sent, so that whoever reads the journal of a killed
controller knows of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from glasshouse.providers.cloud_http import ApiError

Answered = Literal["not", "refused", "made"]


@dataclass(frozen=True)
class Doubt:
    """A create that may yet make a machine, or a second one. Unix seconds: `since` it was sent (0.0: by
    another process), and `until` it is over. `answered`: not (or not by the provider), with a clear no, or
    with the id of what it made.
    """

    since: float
    until: float
    answered: Answered = "not"


@dataclass(frozen=True)
class Before:
    """What the whole list showed before the first create, `at` Unix seconds: ids, none of them ours.

    `lasting`: those whose name is none that this program gives. Its machines come and go with their runs.
    """

    at: float
    ids: frozenset[str]
    lasting: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Creates:
    """The creates of one allocation so far.

    `ids`: machines that a create returned, or that a list showed under our full name. `gone`: those of them
    whose end was proven. `doubts`: in the order in which they were sent; ended ones stay, to say that there
    were any. `sent`: whether any create was, or may have been by another process. `before`: None where nobody
    has looked. `strange_at`: when a list last showed a machine that may be ours under a name that is not
    (Unix): the next one may leave it out. `told`: when lists that can tell last showed that no create made
    anything more (Unix).
    """

    ids: frozenset[str] = frozenset()
    gone: frozenset[str] = frozenset()
    doubts: tuple[Doubt, ...] = ()
    sent: bool = False
    before: Before | None = None
    told: float = 0.0
    strange_at: float = 0.0

    def sending(self, now: float, seconds: float) -> Creates:
        """A create is about to be sent; nothing is known of its outcome for so many seconds."""
        return replace(self, doubts=(*self.doubts, Doubt(now, now + seconds)), sent=True)

    def made(self, machine_id: str, now: float, seconds: float) -> Creates:
        """The create that was sent last made this machine; a second one would show in so many seconds."""
        return replace(self.seen([machine_id]), doubts=self._answered("made", now + seconds))

    def unclear(self, now: float, seconds: float, *, refused: bool) -> Creates:
        """The create that was sent last ended now without an id: in doubt for so many seconds more."""
        return replace(self, doubts=self._answered("refused" if refused else "not", now + seconds))

    def _answered(self, how: Answered, until: float) -> tuple[Doubt, ...]:
        return (*self.doubts[:-1], Doubt(self.doubts[-1].since, until, how))

    def seen(self, ids: Iterable[str]) -> Creates:
        """These are ours; what was there before the first create is not, whoever says so."""
        earlier = frozenset() if self.before is None else self.before.ids
        return replace(self, ids=self.ids.union(ids) - earlier)

    def ended(self, ids: Iterable[str]) -> Creates:
        """The end of these was proven."""
        return replace(self, gone=self.gone.union(ids))

    def open(self, now: float, *answered: Answered) -> int:
        """How many creates that were answered in one of these ways are in doubt."""
        return sum(doubt.until > now and doubt.answered in answered for doubt in self.doubts)

    def unsettled(self, since: float) -> bool:
        """Whether any create was not answered, or was in doubt `since` then, or was another process's, or was
        refused and no list told after its doubt: lists from then on are all there is to tell what it made.
        """
        return any(
            doubt.answered == "not"
            or not doubt.since
            or doubt.until > (min(since, self.told) if doubt.answered == "refused" else since)
            for doubt in self.doubts
        )

    @property
    def unclear_until(self) -> float:
        """When the last doubt of a create that returned no id is over, in Unix seconds; 0.0 without any."""
        return max((doubt.until for doubt in self.doubts if doubt.answered != "made"), default=0.0)

    @property
    def doubtful_until(self) -> float:
        """When the last doubt is over, in Unix seconds; 0.0 without any."""
        return max((doubt.until for doubt in self.doubts), default=0.0)

    def note(self) -> str:
        """What another process has to know beside the ids and the end of the doubt; "" for nothing."""
        if self.before is None:
            return ""
        seen = {"at": self.before.at, "ids": sorted(self.before.ids), "lasting": sorted(self.before.lasting)}
        note = {"before": seen, "unclear": self.unclear_until}
        if self.strange_at:
            note["strange"] = self.strange_at
        return json.dumps(note, separators=(",", ":"))

    def noted(self, note: str | None, doubt_until: float | None) -> Creates:
        """The same, with what another process wrote down of its creates; what cannot be read says nothing.

        Where it did not say how they were answered, they count as not answered.
        """
        unclear, before, strange_at = doubt_until or 0.0, self.before, self.strange_at
        try:
            written = json.loads(note or "{}")
            if "before" in written:
                found = written["before"]
                ids, lasting = (frozenset(map(str, found[key])) for key in ("ids", "lasting"))
                before = before or Before(float(found["at"]), ids, lasting)
                unclear = float(written["unclear"])
                strange_at = max(strange_at, float(written.get("strange", 0.0)))
        except (ValueError, TypeError, KeyError, RecursionError):
            pass
        doubts = [Doubt(0.0, unclear)] if unclear else []
        if doubt_until is not None and doubt_until > unclear:
            doubts.append(Doubt(0.0, doubt_until, "made"))
        known = (*self.doubts, *doubts)
        noted = replace(self, doubts=known, before=before, sent=True, strange_at=strange_at)
        return noted.seen(())


def refused(error: ApiError) -> bool:
    """Whether a create was answered with a clear no: a status of its own, read whole, not from a gateway.

    What a clear no has made all the same is there already and shows as soon as the lists catch up; what was
    not answered may still be under way at the provider.
    """
    return 400 <= error.status < 500 and error.status not in (408, 425)
