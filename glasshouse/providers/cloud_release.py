"""Destroy what is ours at a paid provider, and prove that none of it is left.

    every known id:  look it up (seconds at most), then DELETE, also where it is not to be seen
    then look:       the whole list; what shows under our name gets its DELETE at once
    and again, until every id's end is confirmed, no create is in doubt any more, and two looks found nothing

An answer without a machine is no proof about a machine that a request of ours may have made: lists,
look-ups and refusals lag. So `zero` needs, after the last doubt is over, two looks of which every read went
well and none showed anything of ours; and of every id that a create returned or that showed under our name, a
DELETE that was accepted while an answer showed the machine, and one after it that found none of this id. One
that no answer showed at its DELETE, or whose end is accepted again and again, is in doubt for `lag_sec`,
whatever the DELETE was answered: yes to the end of what nobody sees says nothing. Nor is
such a one gone, or nothing made by a create that was not answered, or not yet out of doubt, while the whole
account seems empty that held machines of others before (`EMPTIED_SEC`).

Only machines whose name is the allocation's own are ever destroyed, and known ids of which nothing can be
read or that have no name. One that a readable answer shows under another name is left alone, and never zero;
so is a machine that came with or after our creates under a name that is nearly ours, or without any name
where a create returned no id (`stranger`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from glasshouse.errors import ProviderError
from glasshouse.providers.base import UNWATCHED, ReleaseProof, Waits
from glasshouse.providers.cloud_api import CloudApi, Machine
from glasshouse.providers.cloud_http import ApiError
from glasshouse.providers.creates import Before, Creates
from glasshouse.remote.sweep_script import NAME

_RENAMED = "a machine that was created for this run is there under another name"
_ALIKE = "a machine is listed whose name is nearly this run's, and it may be its own"
_UNNAMED = "a machine without a name has come since this run asked for one, and it may be its own"
EMPTIED = "the list is empty, and every other machine of the account has vanished with this run's"
EMPTIED_SEC = 86400.0  # since the list that showed them: for how long that is no proof
CUT_NAME = len("gh20260")  # letters and digits that a name of ours has at least when it was cut short
MANY = 4  # rounds that go wrong, or returns of a machine, before the time that has passed decides
_DENIED = (401, 403)  # the key: asking again for longer than an insisting release does not help


def check_name(name: str) -> None:
    """Raise ProviderError for what is no allocation name: "" would match every machine of the account."""
    if NAME.match(name) is None:
        raise ProviderError("not an allocation name", field="name", value=name)


def is_ours(found: str, name: str) -> bool:
    """Whether a machine called `found` belongs to allocation `name`: the whole name, or a replacement's."""
    return found == name or owner(found) == name


def owner(found: str) -> str:
    """The allocation that a machine called `found` would belong to: its name, less a replacement's ending."""
    return re.sub(r"-r[2-9]\Z", "", found)


def before(listed: Sequence[Machine], name: str, at: float) -> Before:
    """What a list shows that is not allocation `name`'s, for when its creates have been sent."""
    others = [machine for machine in listed if not is_ours(machine.name, name)]
    ids = frozenset(machine.id for machine in others)
    return Before(at, ids, frozenset(machine.id for machine in others if not machine.name.startswith("gh-")))


def stranger(listed: Sequence[Machine], name: str, creates: Creates) -> str:
    """What keeps a list from proving anything about allocation `name` although none of it is called so, in
    words; "" where nothing does.

    What was listed before the first create is none of ours. Without a name, a machine that came later is
    suspect where a create returned no id, and only where that earlier list is known.
    """
    earlier = frozenset() if creates.before is None else creates.before.ids
    for machine in listed:
        if machine.id in creates.ids or machine.id in earlier or is_ours(machine.name, name):
            continue
        if _nearly(machine.name, name):
            return _ALIKE
        if _nameless(machine) and creates.before is not None and creates.unclear_until:
            return _UNNAMED
    return ""


def emptied(listed: Sequence[Machine], creates: Creates) -> bool:
    """Whether a list shows nothing of others' although machines that come and go with no run of ours were
    there before the first create: an account that seems empty tells nothing about ours either.
    """
    others = frozenset() if creates.before is None else creates.before.lasting
    return bool(others) and not {machine.id for machine in listed} - creates.ids


def _nameless(machine: Machine) -> bool:
    """Whether what it is called is no name: nothing, blanks, or a program's word for nothing."""
    return machine.name.strip().casefold() in ("", "none", "null")


def _nearly(found: str, name: str) -> bool:
    """Whether `found` holds the run's id or is an end of `name`, and is not another allocation's name."""
    low, own = found.casefold(), name.casefold()
    run = own.removeprefix("gh-").rpartition("-")[0] or own
    if re.fullmatch(rf"gh-{re.escape(run)}-[0-9a-f]{{8}}(-r[2-9])?", found) and owner(found) != name:
        return False
    # Whatever became of what stands between letters and digits.
    low, own, run = (re.sub(r"[^a-z0-9]", "", each) for each in (low, own, run))
    cut = len(low) >= CUT_NAME and (own.startswith(low) or own.endswith(low))
    return run in low or cut


@dataclass
class _Round:
    """One round of a release: what is ours and there, how many machines the account has, what failed."""

    ours: dict[str, Machine] = field(default_factory=dict)
    total: int | None = None
    failed: str = ""
    denied: bool = False  # whether all that failed did so because of the key

    def fails(self, words: str, error: ApiError | None = None) -> None:
        """Note what keeps this round from proving anything."""
        self.denied = (self.denied or not self.failed) and error is not None and error.status in _DENIED
        self.failed = words if error is None else f"{words}: {error}"


@dataclass(frozen=True)
class Released:
    """How a release ended: its proof, what is known now, and whether the key was refused to the last."""

    proof: ReleaseProof
    creates: Creates
    key_refused: bool


class Release:
    """One release of allocation `name`; `run` it once.

    `creates`: what is known of its create calls. `lag_sec()`: how long an answer may be behind the truth.
    `strange_sec()`: how long from now creates that nobody knows of may make machines; None where there are
    none. Both are asked again each time: only an answer says whether this is a fake, with short times.
    `insist`: whether to go on for `timing.release_sec` where nothing can be read. `keep`: an id that stays,
    and of which the proof says nothing.
    """

    def __init__(
        self,
        api: CloudApi,
        name: str,
        creates: Creates,
        *,
        lag_sec: Callable[[], float],
        strange_sec: Callable[[], float] | None = None,
        keep: str | None = None,
        insist: bool = True,
        waits: Waits = UNWATCHED,
    ) -> None:
        check_name(name)
        self._api = api
        self._clock = api.http.clock
        self._name = name
        self._creates = creates
        self._lag_sec = lag_sec
        self._strange_sec = strange_sec
        self._began = api.http.clock.now()
        self._keep = keep
        self._insist = insist
        self._waits = waits
        self._accepted = set(creates.gone)  # ids shown at their accepted DELETE, or whose end was shown
        self._settled = set(creates.gone)  # those that need no further DELETE unless they show again
        self._came_back = 0  # times that one was shown again
        self._absent_since: dict[str, float] = {}  # the others, since nothing shows them (Unix)
        self._elsewhere: set[str] = set()  # ids that an answer shows under another name
        self._others = frozenset() if creates.before is None else creates.before.lasting  # ever listed

    def run(self) -> Released:
        """Destroy it and prove it; insists, and never raises for remote faults."""
        clock = self._clock
        began, failing_since = clock.monotonic(), None
        proven: list[float] = []
        attempt = 0
        while True:
            attempt += 1
            at, before = clock.now(), self._doubt_until()
            found = self._round()
            now, ends = clock.now(), self._doubt_until()
            timing = self._api.http.timing
            longest = timing.release_sec + (self._lag_sec() if self._absent_since else 0.0)
            spent = clock.monotonic() - began - max(0.0, self._made_until() - self._began) - longest
            clean = not found.ours and not found.failed
            # A look counts if nothing was in doubt when it began, nor is since.
            proven = [*proven[:1], now] if clean and max(before, ends) <= at else []
            if len(proven) == 2:
                return self._ended(self._zero(found, proven))
            if not found.ours and ends > now and self._waits.stopped():
                return self._ended(self._unknown(found, self._left(ends, stopped=True)))
            if proven:
                clock.sleep(timing.proof_gap_sec)
            elif clean:
                if spent > 0 and self._came_back > MANY:
                    return self._ended(self._unknown(found, self._left(ends, stopped=True)))
                attempt, failing_since = 0, None
                self._waits.progress(f"{self._api.label}: {self._left(ends)}")
                self._watch(min(timing.watch_sec, max(ends - now, 0.0)))
            else:
                failing_since = clock.monotonic() if failing_since is None else failing_since
                insisted = timing.release_sec if self._insist else 0.0
                if (spent >= 0 and attempt > MANY) or (
                    found.denied and clock.monotonic() >= failing_since + insisted
                ):
                    return self._ended(self._not_proven(found), key_refused=found.denied)
                said = found.failed or ("still there" if found.ours else "its end is not confirmed")
                most = max(0, round(-spent))
                ends_in = f"for up to {most // 60} min {most % 60:02d} s"
                self._waits.progress(f"{self._api.label}: {said}; trying again, {ends_in}")
                clock.sleep(min(timing.backoff_sec * 2 ** min(attempt, 5), timing.backoff_max_sec))

    def _watch(self, seconds: float) -> None:
        """Wait for the next look, in pieces: whoever asks for the wait to end is heard within a second."""
        clock = self._clock
        end = clock.monotonic() + seconds
        while (left := end - clock.monotonic()) > 0 and not self._waits.stopped():
            clock.sleep(min(left, 1.0))

    def _doubt_until(self) -> float:
        """When nothing is in doubt any more (Unix seconds): creates, and ids said not to exist."""
        lag_sec = self._lag_sec()
        absent = [since + lag_sec for machine_id, since in self._absent_since.items()]
        if self._creates.strange_at:  # that one list leaves out what another showed proves nothing yet
            absent.append(self._creates.strange_at + lag_sec)
        return max([self._made_until(), *absent])

    def _made_until(self) -> float:
        """Until when creates may yet make a machine, in Unix seconds."""
        strange = 0.0 if self._strange_sec is None else self._began + self._strange_sec()
        return max(self._creates.doubtful_until, strange)

    def _round(self) -> _Round:
        """DELETE for every known id first, then look; what comes to light gets its DELETE at once."""
        found = _Round()
        for machine_id in sorted(self._creates.ids - {self._keep}):
            self._end_known(machine_id, found)
        try:
            with self._api.http.within(self._api.http.timing.look_sec):
                listed = [machine for machine in self._api.machines() if machine.state != "gone"]
        except ApiError as error:
            found.fails("the list cannot be read", error)
            return found
        found.total = len(listed)
        self._judge(listed, found)
        for machine in listed:
            known = machine.id in self._creates.ids
            if machine.id == self._keep or machine.id in found.ours:
                continue
            if is_ours(machine.name, self._name) or (known and not machine.name):
                if not known:
                    self._waits.found(machine.id)
                self._creates = self._creates.seen([machine.id])
                found.ours[machine.id] = machine
                self._delete(machine.id, found, shown=not known)  # a known one's look-up denied it just now
            elif known:
                self._elsewhere.add(machine.id)
                found.fails(_RENAMED)
        return found

    def _judge(self, listed: Sequence[Machine], found: _Round) -> None:
        """Whether this list can prove anything."""
        if self._creates.before is None:
            # Nobody looked before the first create: what has no name by now is taken for somebody else's.
            unnamed = frozenset(machine.id for machine in listed if _nameless(machine))
            self._creates = replace(self._creates, before=Before(self._began, unnamed))
        assert self._creates.before is not None
        before_at = self._creates.before.at
        if words := stranger(listed, self._name, self._creates):
            found.fails(words)
            self._creates = replace(self._creates, strange_at=self._clock.now())
        unseen = self._absent_since or self._creates.unsettled(self._began)
        nothing = self._others and not {each.id for each in listed} - self._creates.ids
        if unseen and nothing and self._clock.now() < before_at + EMPTIED_SEC:
            left = round((before_at + EMPTIED_SEC - self._clock.now()) / 3600)
            found.fails(
                f"{EMPTIED}; once it shows another machine, or in {left} h, `glasshouse reap` can tell"
            )
        others = before([each for each in listed if each.id not in self._creates.ids], self._name, 0.0)
        self._others |= others.lasting

    def _end_known(self, machine_id: str, found: _Round) -> None:
        """Look one machine up and ask for its end, unless it carries another name or its end is settled."""
        machine = None
        try:
            with self._api.http.within(self._api.http.timing.quick_sec):
                machine = self._api.machine(machine_id)
        except ApiError as error:
            found.fails("a machine cannot be read", error)
        if machine is not None and machine.state == "gone":
            self._accepted.add(machine_id)
            self._settled.add(machine_id)
            self._absent_since.pop(machine_id, None)
            return
        if machine is not None and machine.name and not is_ours(machine.name, self._name):
            self._elsewhere.add(machine_id)
        elif machine is not None:
            self._elsewhere.discard(machine_id)
            found.ours[machine_id] = machine
        if machine_id in self._elsewhere:
            found.fails(_RENAMED)
        elif machine is not None or machine_id not in self._settled:
            self._delete(machine_id, found, shown=machine is not None)

    def _delete(self, machine_id: str, found: _Round, *, shown: bool) -> None:
        """Ask once for its end. What was accepted once is asked for again, in case that was only said: that
        there is none of this id is its confirmation.

        `shown`: whether the last answer before this that could show the machine did.
        """
        try:
            with self._api.http.within(self._api.http.timing.quick_sec):
                accepted = self._api.destroy(machine_id)
        except ApiError as error:
            found.fails("destroying failed", error)
            return
        if machine_id in self._accepted and accepted is False:
            self._settled.add(machine_id)  # there was one, its end was accepted, and now there is none
            self._absent_since.pop(machine_id, None)
        elif machine_id not in self._accepted and accepted and shown:
            self._accepted.add(machine_id)
            self._absent_since.pop(machine_id, None)
        elif machine_id in found.ours:  # one answer shows it, another has none such
            self._came_back += self._absent_since.pop(machine_id, None) is not None
        else:
            # Also yes once more to the end of what nothing shows: either that or the answer before is untrue.
            self._absent_since.setdefault(machine_id, self._clock.now())

    def _left(self, ends: float, *, stopped: bool = False) -> str:
        left = max(0, round(ends - self._clock.now()))
        words = "a machine that was asked for may yet appear"
        if stopped:
            return f"{words}, for another {left // 60} min {left % 60:02d} s: the wait for that was ended"
        return f"nothing is left to be seen, but {words}: looking for {left // 60} min {left % 60:02d} s more"

    def _ended(self, proof: ReleaseProof, *, key_refused: bool = False) -> Released:
        creates = self._creates
        if proof.proof == "zero":
            creates = replace(creates.ended(creates.ids - {self._keep}), told=self._clock.now())
        return Released(proof, creates, key_refused)

    def _zero(self, found: _Round, moments: list[float]) -> ReleaseProof:
        return ReleaseProof(
            proof="zero", active=0, detail="the whole list and every known machine, read twice: none of ours",
            account_total=found.total, checked_at=tuple(round(moment, 3) for moment in moments),
        )  # fmt: skip

    def _not_proven(self, found: _Round) -> ReleaseProof:
        """`nonzero` when the last look saw something of ours, else `unknown`."""
        if not found.ours:
            return self._unknown(found, found.failed)
        states = ", ".join(sorted({machine.said for machine in found.ours.values()}))
        return ReleaseProof(
            proof="nonzero", active=len(found.ours),
            detail=f"{len(found.ours)} of ours still there ({states}): {self._page}",
            account_total=found.total, checked_at=self._moment, doubt_until=self._open_doubt(),
        )  # fmt: skip

    def _unknown(self, found: _Round, why: str) -> ReleaseProof:
        """The public detail holds no id."""
        return ReleaseProof(
            proof="unknown", active=None, detail=f"{why}: {self._page}", account_total=found.total,
            checked_at=self._moment, doubt_until=self._open_doubt(),
        )  # fmt: skip

    @property
    def _page(self) -> str:
        return f"look at {self._api.console_page}"

    @property
    def _moment(self) -> tuple[float, ...]:
        return (round(self._clock.now(), 3),)

    def _open_doubt(self) -> float | None:
        until = self._doubt_until()
        return until if until > self._clock.now() else None
