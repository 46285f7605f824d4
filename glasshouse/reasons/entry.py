"""The form of an entry of the catalogue of reasons."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Place(Enum):
    """Where a reason can arise; the value completes "it arises ..."."""

    CONTROLLER = "in the controlling process"
    PROVIDER = "at the provider"
    BOOT = "while the machine comes up"
    CONNECTION = "on the connection to the machine"
    SETUP = "while the machine is made ready"
    SEALING = "where something is sealed or opened"
    UPLOAD = "while the package is uploaded"
    LAUNCH = "at the launch of a leg"
    ATTESTATION = "in the exchange with the key broker"
    LEG = "in a leg on the machine"
    EVENTS = "in a leg's events"
    WIPE = "at the wipe"
    RELEASE = "when the machine is given back"
    RESUME = "where a job goes on from a checkpoint"
    RECORD = "when the run is recorded"
    JUDGEMENT = "in the judgement of a run"
    HEADLINE = "where rows are pooled"
    BUNDLE = "in the verification of a bundle"
    LEDGER = "in a ledger"
    PUBLICATION = "in what is published"
    JOURNEY = "in what a journey brings home"


@dataclass(frozen=True)
class Reason:
    """What a reason code says to a person, and where it can arise.

    title: a few words. text: what a reader of a row page needs, in whole sentences; of a check that can also
    hold, what it looks at. exit_status: with which `glasshouse` exits when it ends on this. demand: of a
    rule, the condition that was not met, as a clause; "" for all else. waits_for: the method or the open
    issue that it belongs to, where nothing raises it yet; until: the decision since which nothing does, where
    older records may hold it.
    """

    title: str
    text: str
    places: tuple[Place, ...]
    exit_status: int = 1
    demand: str = ""
    waits_for: str = ""
    until: str = ""


def explained(
    title: str, text: str, *places: Place, exit_status: int = 1, waits_for: str = "", until: str = ""
) -> Reason:
    """Make an entry."""
    return Reason(title, text, places, exit_status, waits_for=waits_for, until=until)


def demanded(title: str, demand: str, *places: Place, exit_status: int = 1) -> Reason:
    """Make the entry of a rule."""
    return Reason(title, f"Not met: {demand}.", places, exit_status, demand)
