"""Faults of a provider drawn from a seed, five together: data, and in words what was drawn."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal

from glasshouse.providers.fakes.faults import Fault

TOGETHER: Final = 5  # faults of one seed; where lists and look-ups go wrong together, that is one
REQUEST_SEC: Final = 30.0  # the client's time-out, conf/provider's own default
# How long after its create a machine may appear, where no answer came (all such faults of a seed together),
# and where a refusal did; and for how long lists and look-ups may leave it out after that, likewise.
# Together they stay below the doubt that provider.doubt_sec and provider.lag_sec state: what takes longer
# than that, nobody can tell from a machine that never was.
LATE_SEC: Final = 200.0
LATE_AFTER_REFUSAL_SEC: Final = 45.0
HIDDEN_SEC: Final = 60.0
ENDING_SEC: Final = 4.0  # less than passes between the two looks of a proof
SPELL_SEC: Final = 60.0  # how long a spell of anything else lasts at most
LOST_KEY_SEC: Final = 600.0
EMPTY_SEC: Final = 600.0
EARLY_SEC: Final = 40.0  # with HIDDEN_SEC before the end of a doubt that begins with the first create
PARTS: Final = ("list-doubles", "list-cursor", "list-errors", "list-link", "unknown-keys")

Random = random.Random


@dataclass(frozen=True)
class Stop:
    """How the controller ends before its time.

    killed: at once. interrupted: as by Ctrl-C, so that it releases. `by`: in second `number`; once request
    `number` was handled, and before it hears the answer; or `number` seconds after its first create was sent.
    """

    how: Literal["killed", "interrupted"]
    by: Literal["second", "request", "create"]
    number: float

    def __str__(self) -> str:
        when = {
            "second": "in second",
            "request": "at request",
            "create": "after sending a create, by seconds",
        }
        return f"the controller is {self.how} {when[self.by]} {self.number:g}"


@dataclass(frozen=True)
class Drawn:
    """One seed's story.

    `used_sec`: how long the run uses a machine that it got. `beside`: for how many more the cap holds.
    `page_size`: of Vast.ai's list.
    """

    kind: str
    seed: int
    faults: tuple[Fault, ...]
    stop: Stop | None
    used_sec: float
    beside: int
    page_size: int

    @property
    def truthful(self) -> bool:
        """Whether every create is answered, with the truth, within the client's time-out."""
        if any(fault.kind == "create-hangs" and fault.amount >= REQUEST_SEC - 1 for fault in self.faults):
            return False
        untrue = {"create-made", "create-fails", "create-contract", "create-doubles"}
        return self.stop is None and not any(fault.kind in untrue for fault in self.faults)

    @property
    def recovered_at(self) -> float:
        """Seconds of the clock by which every fault that lasts a while is over."""
        ends = [fault.end for fault in self.faults if fault.end < math.inf]
        return max([0.0, *ends])

    def __str__(self) -> str:
        lines = [str(fault) for fault in self.faults]
        lines.append(f"the run uses its machine for {self.used_sec:g} s, the cap holds for {1 + self.beside}")
        if self.kind == "vastai":
            lines.append(f"the list has {self.page_size} machines a page")
        if self.stop is not None:
            lines.append(str(self.stop))
        return "\n".join(f"  - {line}" for line in lines)


def draw(kind: str, seed: int) -> Drawn:
    """What seed number `seed` does to a rental at `kind`: a pure function of both."""
    rng = Random(f"{kind} {seed}")
    creates, hidden = _Creates(), _Hidden()
    menu: list[Callable[[Random], list[Fault]]]
    menu = [*creates.menu, *_OTHERS, *_OTHERS, *hidden.menu, *hidden.menu]
    first = [rng.choice(creates.menu if rng.random() < 0.75 else menu)]
    chosen = first + [rng.choice(menu) for _ in range(TOGETHER - 1)]
    faults = tuple(_tellable([fault for make in chosen for fault in make(rng)]))
    stop = _stop(rng)
    if kind == "vastai" and stop is None and creates.answered and rng.random() < 0.1:
        # Not where nobody hears the answer: what it names has no label, and can be found by nothing else.
        faults += (Fault("create-contract"),)
    if rng.random() < 0.1:
        names = ("name-longer", "name-cut", "name-none") if kind == "vastai" else ("name-longer", "name-cut")
        faults += (Fault(rng.choice(names), rng.choice((1, 2))),)
    if rng.random() < 0.1:
        faults += (Fault("account-empty", None, round(rng.uniform(5, 120), 1), _sec(rng, EMPTY_SEC)),)
    used_sec = rng.choice((0.0, round(rng.uniform(1, 300))))
    return Drawn(kind, seed, faults, stop, used_sec, rng.choice((0, 0, 0, 1)), rng.choice((2, 25, 25, 25)))


def _tellable(faults: list[Fault]) -> list[Fault]:
    """The same, less what nobody can tell.

    A machine that is hidden ends soon after an accepted delete: else it looks like one that has ended, and a
    replacement may come beside it. A second machine of an answered create is hidden early or not at all:
    else it may be so at both looks for it, where nothing could be read before.
    """
    if any(fault.kind == "create-doubles" for fault in faults):
        early = (replace(fault, begin=min(fault.begin, EARLY_SEC)) for fault in faults)
        spells = ("list-hides", "list-flaps")
        faults = [each if each.kind in spells else fault for each, fault in zip(early, faults, strict=True)]
    if not any(fault.kind.endswith(("-hides", "-flaps", "-lags")) for fault in faults):
        return faults
    soon = (replace(fault, amount=min(fault.amount, ENDING_SEC)) for fault in faults)
    return [each if each.kind == "delete-slow" else fault for each, fault in zip(soon, faults, strict=True)]


def _stop(rng: Random) -> Stop | None:
    if rng.random() < 0.6:
        return None
    how: Literal["killed", "interrupted"] = rng.choice(("killed", "killed", "interrupted"))
    by: Literal["second", "request", "create"] = rng.choice(("second", "request", "create"))
    number = {
        "second": round(rng.uniform(0, 120), 1),
        "request": rng.randint(1, 25),
        "create": _sec(rng, 60.0),
    }
    return Stop(how, by, number[by])


def _sec(rng: Random, most: float) -> float:
    """Seconds, short ones as often as long ones."""
    return round(float(most ** rng.random()), 1)


def _times(rng: Random) -> int:
    return rng.choice((1, 1, 1, 2, 3, 5))


class _Creates:
    """What can happen to creates, with LATE_SEC for all of them."""

    def __init__(self) -> None:
        self._left = LATE_SEC
        self.answered = True  # by the fake's own answer, whatever that is
        self.menu = (self._made, self._made, self._fails, self._hangs, self._doubles)

    def _some(self, rng: Random, most: float) -> float:
        sec = _sec(rng, max(1.0, min(most, self._left)))
        self._left -= sec
        return sec

    def _made(self, rng: Random) -> list[Fault]:
        self.answered = False
        form, times = rng.choice(_FORMS), rng.choice((1, 1, 2, 4))
        most = LATE_AFTER_REFUSAL_SEC if form in ("402", "429") else LATE_SEC
        return [Fault("create-made", times, form=form, amount=rng.choice((0.0, self._some(rng, most))))]

    def _doubles(self, rng: Random) -> list[Fault]:
        return [Fault("create-doubles", rng.choice((1, 2)), amount=self._some(rng, LATE_AFTER_REFUSAL_SEC))]

    def _fails(self, rng: Random) -> list[Fault]:
        return [Fault("create-fails", _times(rng), form=rng.choice(_FORMS))]

    def _hangs(self, rng: Random) -> list[Fault]:
        self.answered = False
        return [Fault("create-hangs", rng.choice((1, 2)), amount=self._some(rng, 120.0))]


_FORMS: Final = ("402", "429", "500", "504", "cut", "hang", "html", "truncated")


def _spell(
    kind: str, rng: Random, *, most: float = SPELL_SEC, form: str = "500", amount: float = 0.0
) -> Fault:
    begin = 0.0 if rng.random() < 0.1 else round(rng.uniform(0, 120), 1)
    return Fault(kind, None, begin, _sec(rng, most), form, amount)


def _misread(rng: Random) -> list[Fault]:
    kind = rng.choice(("read-answers", "list-answers", "look-answers"))
    forms = ("429", "500", "503", "cut", "hang", "html", "truncated")
    form = rng.choice((*forms, "410") if kind == "list-answers" else forms)
    if rng.random() < 0.5:
        return [_spell(kind, rng, form=form)]
    return [Fault(kind, _times(rng), rng.choice((0.0, round(rng.uniform(0, 120), 1))), form=form)]


def _boot(rng: Random) -> list[Fault]:
    kinds = (
        ("boot-stuck",), ("boot-unassigned",), ("boot-error",), ("boot-exit",), ("boot-vanish",),
        ("boot-no-ssh",), ("boot-no-port",), ("start-ignored", "log-lies"), ("start-ignored", "log-empty"),
        ("wrong-gpu",), ("price-high",),
    )  # fmt: skip
    times = rng.choice((1, 1, 2))
    return [Fault(kind, times) for kind in rng.choice(kinds)]


_OTHERS: Final[tuple[Callable[[Random], list[Fault]], ...]] = (
    _misread,
    _misread,
    _boot,
    lambda rng: [_spell(rng.choice(PARTS), rng, most=600.0)],
    lambda rng: [_spell(rng.choice(PARTS), rng, most=600.0)],
    lambda rng: [_spell(rng.choice(("list-stale", "look-stale")), rng, most=120.0, amount=_sec(rng, 60.0))],
    lambda rng: [_spell("answer-drips", rng, amount=_sec(rng, 150.0))],
    lambda rng: [_spell("price-moves", rng, amount=rng.choice((0.5, 1.1, 3.0, 10.0)))],
    lambda rng: [_spell("auth", rng, most=LOST_KEY_SEC)],
    lambda rng: [_spell("create-balance", rng), _spell("read-429", rng)],
    lambda rng: [
        Fault(
            "delete-fails", _times(rng), form=rng.choice(("404", "429", "500", "503", "cut", "hang", "html"))
        )
    ],
    lambda rng: [
        Fault("delete-done", _times(rng), form=rng.choice(("404", "500", "504", "cut", "hang", "html")))
    ],
    lambda rng: [Fault("delete-slow", None, amount=_sec(rng, 90.0))],
)


class _Hidden:
    """Faults that hide a machine, with HIDDEN_SEC for all of them."""

    def __init__(self) -> None:
        self._left = HIDDEN_SEC
        self.menu = (self._lags, self._vanishes, self._flaps)

    def _some(self, rng: Random) -> float:
        sec = _sec(rng, max(1.0, self._left))
        self._left -= sec
        return sec

    @staticmethod
    def _where(rng: Random) -> tuple[str, ...]:
        return rng.choice((("list", "look"), ("list", "look"), ("list",), ("look",)))

    @staticmethod
    def _ignored(rng: Random) -> list[Fault]:
        return [Fault("delete-ignored", None)] if rng.random() < 0.4 else []

    def _lags(self, rng: Random) -> list[Fault]:
        sec = self._some(rng)
        return [Fault(f"{by}-lags", None, amount=sec) for by in self._where(rng)] + self._ignored(rng)

    def _vanishes(self, rng: Random) -> list[Fault]:
        begin, sec = round(rng.uniform(0, 120), 1), self._some(rng)
        return [Fault(f"{by}-hides", None, begin, sec) for by in self._where(rng)] + self._ignored(rng)

    def _flaps(self, rng: Random) -> list[Fault]:
        begin, sec, amount = round(rng.uniform(0, 120), 1), self._some(rng), round(rng.uniform(1, 15), 1)
        flaps = [Fault(f"{by}-flaps", None, begin, sec, amount=amount) for by in self._where(rng)]
        return flaps + self._ignored(rng)
