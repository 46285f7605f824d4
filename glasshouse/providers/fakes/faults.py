"""What goes wrong at a fake provider: faults as data, and the plan that says which of them strikes now.

A fault strikes a number of times, or whenever it could while it lasts; a plan can also strike at random.
"""

from __future__ import annotations

import math
import random
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

# `{form}` and `{amount}` are the fault's own.
KINDS: Final = {
    "create-timeout": "the create hangs until the client gives up; nothing is made",
    "create-timeout-created": "the create hangs until the client gives up, and the machine is made",
    "create-5xx": "the create answers 500; nothing is made",
    "create-5xx-created": "the create answers 502, and the machine is made",
    "create-5xx-created-late": "as before, and the list shows the machine only a moment later",
    "create-5xx-created-later": "as before, and later than anybody waits for it",
    "create-slow": "the create takes its time, and is made whoever still waits",
    "create-garbage-created": "the create answers 2xx with a body that is not JSON; the machine is made",
    "create-429": "the create is rate-limited, in plain text and without Retry-After",
    "create-429-wait": "the create is rate-limited with Retry-After: 1",
    "create-capacity": "no capacity for this candidate",
    "create-forbidden": "403 for this candidate",
    "create-balance": "no money left",
    "create-invalid": "the request is refused for good",
    "create-contract": "Vast.ai: an error reply that names the contract it made",
    "create-doubles": "a second machine of that name appears {amount} s after the first",
    "create-made": "the create answers {form}, and the machine appears {amount} s later",
    "create-fails": "the create answers {form}; nothing is made",
    "create-hangs": "the create is answered after {amount} s, and the machine appears then",
    "read-5xx": "a read answers 503",
    "read-429": "a read is rate-limited, in plain text",
    "read-drop": "the connection of a read is cut",
    "read-one-5xx": "reading a single machine answers 503",
    "read-answers": "a read answers {form}",
    "list-410": "the list is gone for good",
    "list-answers": "the list answers {form}",
    "list-hides": "the list leaves out what is ours",
    "list-lags": "the list shows a machine {amount} s after it appeared",
    "list-stale": "the list goes on showing a machine {amount} s after its end",
    "list-flaps": "the list leaves out what is ours for {amount} s, shows it for {amount} s, and so on",
    "list-doubles": "the list shows every machine twice",
    "list-cursor": "the list ends early, and its cursor says so (Vast.ai: its last page is empty)",
    "list-errors": "the list leaves out what is ours, and names an error",
    "list-link": "the list leaves out what is ours, and a header says that more follows",
    "list-repeats": "Vast.ai: pages of the list repeat for ever",
    "list-short": "Vast.ai: the list ends early and counts more than it shows",
    "look-answers": "a look-up answers {form}",
    "look-hides": "a look-up says 404 for what is ours",
    "look-lags": "a look-up says 404 until {amount} s after the machine appeared",
    "look-stale": "a look-up goes on showing a machine {amount} s after its end",
    "look-flaps": "a look-up says 404 for {amount} s, then the truth for {amount} s, and so on",
    "account-empty": "once it was listed, the account seems to hold nothing, whatever is asked",
    "name-longer": "a new machine's name goes on after ours",
    "name-cut": "a new machine's name is cut short",
    "name-none": "a new machine has no name",
    "unknown-keys": "every document has keys that nobody knows",
    "answer-drips": "an answer comes in pieces, for {amount} s in all",
    "boot-stuck": "the machine never gets past starting",
    "boot-unassigned": "the machine never gets a host",
    "boot-error": "the machine fails while it starts",
    "boot-exit": "the container exits while it starts",
    "boot-vanish": "the machine vanishes while it starts",
    "boot-no-ssh": "the machine runs, but nothing listens",
    "boot-no-port": "the machine runs, but its SSH port is never mapped",
    "start-ignored": "the start script of the create call is not run: another host key than ours",
    "log-empty": "the log says nothing",
    "log-lies": "the log holds the fingerprint of another key",
    "wrong-gpu": "another GPU than asked for, whose name begins alike",
    "price-high": "dearer than listed",
    "price-moves": "every price is {amount} times what it was",
    "delete-noop": "the delete says yes and does nothing",
    "delete-ignored": "a delete says yes and does nothing, where the look-up before it said 404",
    "delete-5xx": "the delete answers 500; nothing happens",
    "delete-drop": "the delete works, and its answer is lost",
    "delete-fails": "the delete answers {form}; nothing happens",
    "delete-done": "the delete works, and answers {form}",
    "delete-slow": "the delete says yes, and the machine ends {amount} s later",
    "auth": "the key is refused",
}
# What can come instead of the true answer.
FORMS: Final = {
    "402": "402",
    "404": "404",
    "410": "410",
    "429": "429 in plain text",
    "500": "500",
    "503": "503",
    "504": "504",
    "cut": "nothing: the connection is cut",
    "hang": "nothing for as long as the client waits",
    "html": "200 with an HTML page",
    "truncated": "the beginning of the true answer",
}


@dataclass(frozen=True)
class Fault:
    """One way to misbehave.

    It strikes at most `times` (None: every time) from `begin` on for `lasts` seconds of the fake's life.
    `form` and `amount` (seconds, or for a price a factor) mean something to the kinds whose text has them.
    """

    kind: str
    times: int | None = 1
    begin: float = 0.0
    lasts: float = math.inf
    form: str = "500"
    amount: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"no such fault: {self.kind}")
        if self.form not in FORMS:
            raise ValueError(f"no such form of an answer: {self.form}")

    @property
    def end(self) -> float:
        """Seconds of the fake's life after which it strikes no more."""
        return self.begin + self.lasts

    def __str__(self) -> str:
        text = KINDS[self.kind].format(form=FORMS[self.form], amount=f"{self.amount:g}")
        often = "" if self.times is None else " once" if self.times == 1 else f" {self.times} times"
        when = f" from second {self.begin:g}" if self.begin else ""
        until = f" to second {self.end:g}" if self.lasts < math.inf else ""
        return f"{text} ({self.kind}{often}{when}{until})"


@dataclass
class _Planned:
    fault: Fault
    left: float  # times that it may still strike


class FaultPlan:
    """Which faults strike next. Thread-safe."""

    def __init__(
        self, faults: Iterable[Fault] = (), *, seed: int = 0, rate: float = 0.0, kinds: Iterable[str] = ()
    ) -> None:
        """Plan `faults`, and strike at random with probability `rate` per chance for `kinds`."""
        self._lock = threading.Lock()
        self._planned: dict[str, list[_Planned]] = {}
        self._struck: Counter[str] = Counter()
        self._random = random.Random(seed)  # noqa: S311  faults, not secrets
        self._rate = rate
        self._kinds = {kind: Fault(kind) for kind in kinds}
        for fault in faults:
            self.plan(fault)

    def plan(self, fault: Fault) -> None:
        """Let `fault` strike when its time comes."""
        with self._lock:
            left = math.inf if fault.times is None else fault.times
            self._planned.setdefault(fault.kind, []).append(_Planned(fault, left))

    def add(self, kind: str, times: int = 1) -> None:
        """Let `kind` strike the next `times` times that it could."""
        self.plan(Fault(kind, times))

    def clear(self) -> None:
        """Forget what is planned and strike no more at random."""
        with self._lock:
            self._planned.clear()
            self._rate = 0.0

    def take(self, kind: str, age: float = 0.0) -> Fault | None:
        """The fault of this kind that strikes now, `age` seconds into the fake's life; one time is used."""
        if kind not in KINDS:
            raise ValueError(f"no such fault: {kind}")
        if kind not in self._planned and kind not in self._kinds:
            return None
        with self._lock:
            found = self._strikes(kind, age)
            if found is not None:
                self._struck[kind] += 1
            return found

    def struck(self) -> dict[str, int]:
        """How often each fault has struck."""
        with self._lock:
            return dict(self._struck)

    def _strikes(self, kind: str, age: float) -> Fault | None:
        for planned in self._planned.get(kind, ()):
            if planned.left > 0 and planned.fault.begin <= age < planned.fault.end:
                planned.left -= 1
                return planned.fault
        return self._kinds[kind] if kind in self._kinds and self._random.random() < self._rate else None
