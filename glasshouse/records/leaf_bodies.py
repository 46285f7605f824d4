"""What each kind of ledger leaf says, as it is written; the ledger adds serial, kind and time.

Fields stand in camelCase in the leaf (canonical.record_json), as publishing/published_log.py reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args


@dataclass(frozen=True)
class PlanBody:
    """A run is planned, under the envelope of this SHA-256."""

    kind: ClassVar[str] = "plan"
    run: str
    plan_sha256: str


@dataclass(frozen=True)
class RowBody:
    """The plan at plan_serial ended as this row. bundle_sha256: of bundle.dsse.json, if there is one."""

    kind: ClassVar[str] = "row"
    run: str
    row: str
    status: str
    plan_serial: int
    record_sha256: str
    bundle_sha256: str | None


@dataclass(frozen=True)
class ReportedBody:
    """A row that others reported is published, with an artifact of this SHA-256."""

    kind: ClassVar[str] = "reported"
    row: str
    artifact_sha256: str


@dataclass(frozen=True)
class RetractBody:
    """A row is withdrawn. date: as YYYY-MM-DD."""

    kind: ClassVar[str] = "retract"
    row: str
    date: str
    reason: str


@dataclass(frozen=True)
class SupersedeBody:
    """A row is replaced by another. date: as YYYY-MM-DD."""

    kind: ClassVar[str] = "supersede"
    row: str
    by: str
    date: str
    reason: str


@dataclass(frozen=True)
class KeyBody:
    """A key is added or retired."""

    kind: ClassVar[str] = "key"
    keyid: str
    role: str
    state: Literal["added", "retired"]


@dataclass(frozen=True)
class JourneyBody:
    """A kit is about to leave. budget_sec: seconds; commitment: id of the key that will sign its log."""

    kind: ClassVar[str] = "journey"
    journey: str
    seed: int
    budget_sec: int
    commitment: str


@dataclass(frozen=True)
class JourneyLogBody:
    """This log is a journey's, announced at open_serial of the log opened_in. budget_sec: seconds."""

    kind: ClassVar[str] = "journey-log"
    journey: str
    seed: int
    budget_sec: int
    opened_in: str
    open_serial: int


@dataclass(frozen=True)
class JourneyEndBody:
    """The journey announced at open_serial came back, with a log of this size (leaves) and root (hex)."""

    kind: ClassVar[str] = "journey-end"
    journey: str
    open_serial: int
    size: int
    root: str
    checkpoint_sha256: str


AboutRow = ReportedBody | RetractBody | SupersedeBody
LeafBody = PlanBody | RowBody | AboutRow | KeyBody | JourneyBody | JourneyLogBody | JourneyEndBody
KINDS: tuple[str, ...] = tuple(body.kind for body in get_args(LeafBody))
