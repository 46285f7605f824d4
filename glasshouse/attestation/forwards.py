"""Whose connection it is, before a word of its request was read.

Pods reach the broker through SSH forwards, so all of them come from loopback, and a shared broker cannot tell
one machine's connections from another's by address. What carries them is the operator's own program: it opens
a forward for one launch, and writes a line in front of everything that the pod sends through it
(http_message.py). The line's label is a hash of the launch's ticket, which the broker issued and the operator
holds; no process of the pod but the supervisor, which is given the ticket, could make it, and none can write
in front of it. The broker counts connections by what the label stands for: the allocation of a run.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from glasshouse.attestation.http_message import OPENING
from glasshouse.canonical import domain_hash

FORWARD = "glasshouse/forward/v1"  # the form of the label, as a broker's card names it
MAX_FORWARDS = 4096  # launches that a broker knows by their label; the oldest is forgotten first


def forward_label(ticket: bytes) -> str:
    """The label (64 hex digits) of the forward for a ticket (32 bytes)."""
    return domain_hash(FORWARD, [ticket]).hex()


def opening_line(ticket: bytes) -> bytes:
    """What the forward for this ticket's launch (32 bytes) writes in front of each connection."""
    return OPENING + forward_label(ticket).encode("ascii") + b"\r\n"


class Forwards:
    """The allocations behind the labels of the tickets last issued; thread-safe, bounded."""

    def __init__(self, most: int = MAX_FORWARDS) -> None:
        self._most = most
        self._known: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, ticket: bytes, run: str, allocation_id: str) -> None:
        """Know the forward for a ticket (32 bytes) as one of this run's allocation."""
        with self._lock:
            # Together: a run has one owner, so nobody uses up what another operator's machine may open.
            self._known[forward_label(ticket)] = f"{run} {allocation_id}"
            while len(self._known) > self._most:
                self._known.popitem(last=False)

    def find(self, label: str) -> str | None:
        """The run and allocation behind a label, as one string; None for one that is not known (any more)."""
        with self._lock:
            return self._known.get(label)
