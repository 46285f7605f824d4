"""What goes wrong at a fake provider: planned faults, each a number of times, or random ones at a rate."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterable
from typing import Final

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
    "read-5xx": "a read answers 503",
    "read-429": "a read is rate-limited, in plain text",
    "read-drop": "the connection of a read is cut",
    "read-one-5xx": "reading a single machine answers 503",
    "list-410": "the list is gone for good",
    "list-hides": "the list leaves out what is ours",
    "list-repeats": "Vast.ai: pages of the list repeat for ever",
    "list-short": "Vast.ai: the list ends early and counts more than it shows",
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
    "delete-noop": "the delete says yes and does nothing",
    "delete-5xx": "the delete answers 500; nothing happens",
    "delete-drop": "the delete works, and its answer is lost",
    "auth": "the key is refused",
}


class FaultPlan:
    """Which faults strike next. Thread-safe."""

    def __init__(self, *, seed: int = 0, rate: float = 0.0, kinds: Iterable[str] = ()) -> None:
        """Make a plan that is empty, or strikes at random with probability `rate` per chance for `kinds`."""
        self._lock = threading.Lock()
        self._planned: Counter[str] = Counter()
        self._struck: Counter[str] = Counter()
        self._random = random.Random(seed)  # noqa: S311  faults, not secrets
        self._rate = rate
        self._kinds = frozenset(kinds)
        for kind in self._kinds:
            self._known(kind)

    @staticmethod
    def _known(kind: str) -> None:
        if kind not in KINDS:
            raise ValueError(f"no such fault: {kind}")

    def add(self, kind: str, times: int = 1) -> None:
        """Let `kind` strike the next `times` times that it could."""
        self._known(kind)
        with self._lock:
            self._planned[kind] += times

    def clear(self) -> None:
        """Forget what is planned and strike no more at random."""
        with self._lock:
            self._planned.clear()
            self._rate = 0.0

    def take(self, kind: str) -> bool:
        """Whether `kind` strikes now; uses up one planned time."""
        self._known(kind)
        with self._lock:
            if self._planned[kind] > 0:
                self._planned[kind] -= 1
            elif kind not in self._kinds or self._random.random() >= self._rate:
                return False
            self._struck[kind] += 1
            return True

    def struck(self) -> dict[str, int]:
        """How often each fault has struck."""
        with self._lock:
            return dict(self._struck)
