"""record.json: what a run amounts to, as one frozen model. Written from it, read into it, handed on as it.

Units are in the names: Sec seconds, Pct percent, PerSec units of work a measured second, Usd US dollars. None
is a figure that cannot be said. A record of an older version may lack figures that came later.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from glasshouse.schema import Execs, Hex64, Report, RunId, UnitInfo, Weights

Status = Literal["verified", "excluded"]


class ArmFigures(Report):
    """Totals of one arm over its slots; loss and digest are those of its last slot.

    setup_sec is the median over the slots, warmup_sec the shortest.
    """

    slots: int
    units: float | None
    steps: int
    elapsed_sec: float | None
    per_sec: float | None
    setup_sec: float | None
    warmup_sec: float | None
    final_loss: float | None
    output_sha256: str | None


class OverheadFigures(Report):
    """The interval about the overhead, and how it came about (measurement/estimate.py: Estimate)."""

    ci_low_pct: float | None
    ci_high_pct: float | None
    n: int
    method: str
    verdict: Literal["within", "exceeds", "inconclusive"] | None = None
    margin_pct: float | None = None
    mde80_pct: float | None = None
    tost_low_pct: float | None = None
    tost_high_pct: float | None = None
    order_effect_pct: float | None = None
    order_effect_low_pct: float | None = None
    order_effect_high_pct: float | None = None
    randomization_p: float | None = None
    leave_one_out_pct: tuple[float | None, ...] = ()
    blocks: int
    dropped_blocks: int
    dropped_protected: int = 0
    dropped_raw: int = 0


class ControlFigures(Report):
    """What a control run shows about the method (measurement/controls.py)."""

    kind: Literal["aa", "delay"]
    outcome: Literal["passed", "failed", "inconclusive"]
    expected_pct: float | None
    reason: str


class RooflineFigures(Report):
    """How near a run came to what its GPU allows (measurement/roofline.py)."""

    bound: str
    attainable_per_sec: float | None
    share: float | None


class SlotFigures(Report):
    """One planned slot; `disturbed` holds the reasons of measurement/telemetry.py."""

    leg: str
    block: int | None
    burn_in: bool
    launches: int
    units: float | None
    elapsed_sec: float | None
    per_sec: float | None
    disturbed: tuple[str, ...]


class ArmResources(Report):
    """Where a launch of one arm spent its time: medians over launches.

    cpu_share: processor seconds per measured second. wall_sec: seconds by step.
    """

    cpu_share: float | None
    cpu_sec: float | None
    wall_sec: dict[str, float]


class ResourceFigures(Report):
    """Both arms' resources; None for an arm that completed nothing."""

    protected: ArmResources | None = None
    raw: ArmResources | None = None


class ChainFigures(Report):
    """What a run went on from, as its plan says: the runs before it, the first one first, and a checkpoint of
    the last of them, by its number in its leg and the SHA-256 of its ciphertext, as that leg signed it.
    number None: the outputs that a project's leg left at its end.

    steps: optimizer steps of all runs of the chain, up to that checkpoint and in this one; None: not known.
    Of a project at most so many: those after its last save are counted, and made again.
    witnessed: each checkpoint of the chain was made while a controller watched.
    """

    runs: tuple[RunId, ...]
    leg: str
    launch: int
    number: int | None
    sha256: Hex64
    steps: int | None
    witnessed: bool


class Figures(Report):
    """Every figure of a record.

    fixed_cost_sec: seconds that a protected launch pays once, by step, and in total. held_sec and cost_usd
    stand in records of rented machines alone, execs, summed over the legs,
    and weights in those of projects, chain in those of jobs that went on from a checkpoint.
    """

    order: str
    unit: str | None
    protected: ArmFigures | None
    raw: ArmFigures | None
    protected_per_sec: float | None = None
    raw_per_sec: float | None = None
    overhead_pct: float | None
    overhead: OverheadFigures | None
    control: ControlFigures | None
    fixed_cost_sec: dict[str, float] | None
    raw_upload_sec: float | None = None
    resources: ResourceFigures = ResourceFigures()
    roofline: RooflineFigures | None = None
    max_event_gap_sec: float | None = None
    launches: int
    relaunched: int
    slots: tuple[SlotFigures, ...] = ()
    unit_info: dict[str, UnitInfo] = Field(default_factory=dict)
    held_sec: float | None = None
    cost_usd: float | None = None
    execs: Execs | None = None
    weights: Weights | None = None
    chain: ChainFigures | None = None


class Excluded(Report):
    """Why a run counts for nothing: the codes of the rules that failed, and what was seen."""

    codes: tuple[str, ...]
    observed: str


class CheckLine(Report):
    """How one rule came out.

    `detail` is what was found, that there was nothing to check, or what was demanded instead of its text.
    """

    code: str
    ok: bool
    detail: str

    @property
    def vacuous(self) -> bool:
        """Whether it holds because there was nothing to look at: judgement/nothing_to_check.py says it so."""
        return self.ok and self.detail.endswith(": nothing to check")


class Record(Report):
    """record.json. `method` is the number of the rules by which it was judged (judgement/rules.py)."""

    method: int
    run: str
    id: str
    status: Status
    exclusion: Excluded | None
    caveats: tuple[str, ...]
    figures: Figures
    checks: tuple[CheckLine, ...]

    @property
    def reasons(self) -> tuple[str, ...]:
        """Codes for which the run is excluded, none where it is verified."""
        return () if self.exclusion is None else self.exclusion.codes
