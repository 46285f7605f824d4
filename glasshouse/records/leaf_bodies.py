"""What each kind of ledger leaf says; the ledger adds serial and time.

Fields stand in camelCase in the leaf (canonical.record_json). The types hold where a published leaf is read,
strictly: publishing/published_log.py adds serial and time to these bodies and checks them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from pydantic import Field

from glasshouse.schema import Code, Count, Day, Hex64, Id, RunId, Text

JourneyId = Annotated[str, Field(pattern=r"^20\d{6}-[a-z2-7]{6}$")]
LogKey = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Seed = Annotated[int, Field(ge=0, le=2**53 - 1)]
BudgetSec = Annotated[int, Field(ge=1, le=86_400)]


@dataclass(frozen=True)
class PlanBody:
    """A run is planned, under the envelope of this SHA-256."""

    kind: Literal["plan"] = field(default="plan", kw_only=True)
    run: RunId
    plan_sha256: Hex64


@dataclass(frozen=True)
class RowBody:
    """The plan at plan_serial ended as this row. bundle_sha256: of bundle.dsse.json, if there is one."""

    kind: Literal["row"] = field(default="row", kw_only=True)
    run: RunId
    row: Id
    status: Code
    plan_serial: Count
    record_sha256: Hex64
    bundle_sha256: Hex64 | None


@dataclass(frozen=True)
class ReportedBody:
    """A row that others reported is published, with an artifact of this SHA-256."""

    kind: Literal["reported"] = field(default="reported", kw_only=True)
    row: Id
    artifact_sha256: Hex64


@dataclass(frozen=True)
class RetractBody:
    """A row is withdrawn. date: as YYYY-MM-DD."""

    kind: Literal["retract"] = field(default="retract", kw_only=True)
    row: Id
    date: Day
    reason: Text


@dataclass(frozen=True)
class SupersedeBody:
    """A row is replaced by another. date: as YYYY-MM-DD."""

    kind: Literal["supersede"] = field(default="supersede", kw_only=True)
    row: Id
    by: Id
    date: Day
    reason: Text


@dataclass(frozen=True)
class KeyBody:
    """A key of this machine is added, or retired: from this entry on it signs nothing more."""

    kind: Literal["key"] = field(default="key", kw_only=True)
    keyid: Hex64
    role: Code
    state: Literal["added", "retired"]


@dataclass(frozen=True)
class JourneyBody:
    """A kit is about to leave. budget_sec: seconds; commitment: id of the key that will sign its log."""

    kind: Literal["journey"] = field(default="journey", kw_only=True)
    journey: JourneyId
    seed: Seed
    budget_sec: BudgetSec
    commitment: Hex64


@dataclass(frozen=True)
class JourneyLogBody:
    """This log is a journey's, announced at open_serial of the log opened_in. budget_sec: seconds."""

    kind: Literal["journey-log"] = field(default="journey-log", kw_only=True)
    journey: JourneyId
    seed: Seed
    budget_sec: BudgetSec
    opened_in: LogKey
    open_serial: Count


@dataclass(frozen=True)
class JourneyEndBody:
    """The journey announced at open_serial came back, with a log of this size (leaves) and root (hex)."""

    kind: Literal["journey-end"] = field(default="journey-end", kw_only=True)
    journey: JourneyId
    open_serial: Count
    size: Count
    root: Hex64
    checkpoint_sha256: Hex64


AboutRow = ReportedBody | RetractBody | SupersedeBody
LeafBody = PlanBody | RowBody | AboutRow | KeyBody | JourneyBody | JourneyLogBody | JourneyEndBody
KINDS: tuple[str, ...] = tuple(body.kind for body in get_args(LeafBody))
