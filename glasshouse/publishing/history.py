"""The importer of the history: figures published before this software existed become `reported` rows.

They carry no evidence bundle, so they are a type of their own (`ReportedRow`, made only here), never
verified, and counted apart. Every overhead is recomputed by the rule that the figures' own file
states, and compared to two decimals; a disagreement stops the import.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from glasshouse.codes import Code
from glasshouse.errors import VerificationError
from glasshouse.judgement.caveats import Observed, caveats_of
from glasshouse.publishing.artifact import (
    Artifact,
    Check,
    Cleanup,
    Exclusion,
    Observation,
    Order,
    Overhead,
    Public,
    Reported,
    Setting,
    Slug,
)
from glasshouse.schema import Day, Id, Text

Table = Literal["rows", "smoke", "excluded"]
Number = int | float  # as published: words about it repeat it digit for digit
_MAKER: Final = object()


class ReportedRow:
    """One row of the published history. Only `import_history` makes one."""

    def __init__(self, artifact: Artifact, *, maker: object) -> None:
        if maker is not _MAKER or artifact.evidence_tier != "reported":
            raise TypeError("only the history importer makes reported rows")
        self.artifact: Final = artifact


class PublishedCleanup(Public):
    """What the source says of the end of the rental."""

    active_pods: int


class PublishedRow(Public):
    """One row as it was published, under the names used then; None where the source does not say.

    `steps`, `final_loss` and `adapter_sha256` are of rows that name one leg alone.
    """

    id: Id
    source: Day
    date: Day | None = None
    label: str | None = None
    role: str | None = None
    model: str
    unit: str | None = None
    gpu: str | None = None
    gpu_model: str | None = None
    provider: str | None
    provider_tier: str | None = None
    provider_instance_id: str | None = None
    same_allocation: bool | None = None
    duration_sec: Number | None = None
    warmup_sec: Number | None = None
    order: Order | None = None
    steps: int | None = None
    target_steps: int | None = None
    settings: dict[str, Setting] | None = None
    overhead_pct: Number | None = None
    attestation: str | None = None
    runtime_state: str | None = None
    cleanup: PublishedCleanup | None = None
    protected_epochs_per_sec: Number | None = None
    protected_steps_per_sec: Number | None = None
    protected_epochs: Number | None = None
    protected_steps: int | None = None
    protected_elapsed_sec: Number | None = None
    protected_train_elapsed_sec: Number | None = None
    protected_setup_sec: Number | None = None
    protected_final_loss: Number | None = None
    protected_adapter_sha256: str | None = None
    raw_epochs_per_sec: Number | None = None
    raw_steps_per_sec: Number | None = None
    raw_epochs: Number | None = None
    raw_steps: int | None = None
    raw_elapsed_sec: Number | None = None
    raw_train_elapsed_sec: Number | None = None
    raw_setup_sec: Number | None = None
    raw_final_loss: Number | None = None
    raw_adapter_sha256: str | None = None
    final_loss: Number | None = None
    adapter_sha256: str | None = None
    trainable_adapter_params: int | None = None
    total_params: int | None = None
    reason_codes: tuple[str, ...] = ()
    superseded_by: Id | None = None
    inferred: tuple[str, ...] = ()


class PublishedFigures(Public):
    """conf/history/published-rows.json: the figures that were published, by the table they stood in."""

    rows: tuple[PublishedRow, ...]
    smoke: tuple[PublishedRow, ...]
    excluded: tuple[PublishedRow, ...]

    @property
    def tables(self) -> tuple[tuple[Table, tuple[PublishedRow, ...]], ...]:
        """Every table with its rows, in source order."""
        return (("rows", self.rows), ("smoke", self.smoke), ("excluded", self.excluded))


class Remark(Public):
    """Something a reader should know about named rows, or about the whole history (no rows named)."""

    code: Slug
    title: Text
    text: Text
    rows: tuple[Id, ...] = ()


class Remarks(Public):
    """Our words on the figures: remarks, and what each published exclusion showed."""

    remarks: tuple[Remark, ...]
    exclusions: dict[Id, Text]

    def about(self, row: str) -> tuple[Remark, ...]:
        """The remarks about one row id, in reading order."""
        return tuple(remark for remark in self.remarks if row in remark.rows)


@dataclass(frozen=True)
class Recomputed:
    """An overhead recomputed from published figures, in percent, and what it was computed from."""

    overhead_pct: float
    source: Literal["counts-and-elapsed", "rates"]

    def agrees(self, published: float) -> bool:
        """Whether it equals the published figure to two decimals."""
        return f"{self.overhead_pct:.2f}" == f"{published:.2f}"


def recompute(row: PublishedRow | Artifact) -> Recomputed | None:
    """Recompute the overhead: count over elapsed where both are given, else the two published rates.

    100 x (1 - protected / raw), the definition of a single pair. None when no raw leg is there.
    """
    protected = _rate(
        row.protected_elapsed_sec or row.protected_train_elapsed_sec,
        row.protected_steps or row.protected_epochs or row.steps,
    )
    raw = _rate(
        row.raw_elapsed_sec or row.raw_train_elapsed_sec, row.raw_steps or row.raw_epochs or row.steps
    )
    if protected is not None and raw is not None:
        return Recomputed(100 * (1 - protected / raw), "counts-and-elapsed")
    for one, other in (
        (row.protected_epochs_per_sec, row.raw_epochs_per_sec),
        (row.protected_steps_per_sec, row.raw_steps_per_sec),
    ):
        if one and other:
            return Recomputed(100 * (1 - one / other), "rates")
    return None


def _rate(elapsed: float | None, count: float | None) -> float | None:
    return count / elapsed if elapsed and count else None


def import_history(figures: PublishedFigures, remarks: Remarks) -> tuple[ReportedRow, ...]:
    """Turn the figures into reported rows, in source order.

    Raises VerificationError listing every row whose published overhead does not follow from its own
    figures, every id used twice, and every remark about a row that is not there.
    """
    artifacts = [_artifact(row, table, remarks) for table, rows in figures.tables for row in rows]
    codes = [f"{Code.ARITHMETIC_DISAGREES}:{item.id}" for item in artifacts if not _arithmetic_holds(item)]
    ids = [item.id for item in artifacts]
    codes += sorted({f"{Code.ID_USED_TWICE}:{item}" for item in ids if ids.count(item) > 1})
    mentioned = {row for remark in remarks.remarks for row in remark.rows} | set(remarks.exclusions)
    codes += sorted(f"{Code.REMARK_WITHOUT_ROW}:{row}" for row in mentioned - set(ids))
    if codes:
        raise VerificationError("the published history does not import", codes=codes)
    return tuple(ReportedRow(item, maker=_MAKER) for item in artifacts)


def read_remarks(folder: Path) -> Remarks:
    """Read our remarks (remarks.json) from a folder of history data."""
    return Remarks.model_validate_json((folder / "remarks.json").read_bytes())


def read_history(folder: Path) -> tuple[ReportedRow, ...]:
    """Import published-rows.json with remarks.json from a folder of history data (conf/history)."""
    figures = PublishedFigures.model_validate_json((folder / "published-rows.json").read_bytes())
    return import_history(figures, read_remarks(folder))


def _arithmetic_holds(artifact: Artifact) -> bool:
    return all(check.ok for check in artifact.checks if check.code.endswith("-recomputed"))


def _artifact(row: PublishedRow, table: Table, remarks: Remarks) -> Artifact:
    order: Order | None = "protected-only" if table == "smoke" else row.order
    computed = recompute(row) if table == "rows" else None
    published = row.overhead_pct if table == "rows" else None
    model = row.model
    observations = tuple(Observation(code=item.code, text=item.text) for item in remarks.about(row.id))
    exclusion = None
    if table == "excluded":
        exclusion = Exclusion(codes=row.reason_codes, observed=remarks.exclusions[row.id])
    cleanup = row.cleanup
    return Artifact(
        schema_version=1,
        id=row.id,
        date=row.date or row.source,
        status="excluded" if exclusion else "reported",
        evidence_tier="reported",
        provider=row.provider,
        provider_tier=row.provider_tier,
        provider_instance_id=row.provider_instance_id,
        gpu=row.gpu,
        gpu_model=row.gpu_model,
        model=model,
        unit=row.unit or ("epochs" if model == "mlp" else "steps"),
        order=order,
        control="none",
        duration_sec=row.duration_sec,
        warmup_sec=row.warmup_sec,
        target_steps=row.target_steps,
        steps=row.steps,
        protected_epochs_per_sec=row.protected_epochs_per_sec,
        raw_epochs_per_sec=row.raw_epochs_per_sec,
        protected_steps_per_sec=row.protected_steps_per_sec,
        raw_steps_per_sec=row.raw_steps_per_sec,
        protected_epochs=row.protected_epochs,
        raw_epochs=row.raw_epochs,
        protected_steps=row.protected_steps,
        raw_steps=row.raw_steps,
        protected_elapsed_sec=row.protected_elapsed_sec,
        raw_elapsed_sec=row.raw_elapsed_sec,
        protected_train_elapsed_sec=row.protected_train_elapsed_sec,
        raw_train_elapsed_sec=row.raw_train_elapsed_sec,
        protected_setup_sec=row.protected_setup_sec,
        raw_setup_sec=row.raw_setup_sec,
        protected_final_loss=row.final_loss if row.protected_final_loss is None else row.protected_final_loss,
        raw_final_loss=row.raw_final_loss,
        protected_adapter_sha256=row.protected_adapter_sha256 or row.adapter_sha256,
        raw_adapter_sha256=row.raw_adapter_sha256,
        trainable_params=row.trainable_adapter_params,
        total_params=row.total_params,
        settings=row.settings,
        overhead_pct=published,
        overhead=_single_pair() if published is not None else None,
        fixed_cost_sec=None,
        cleanup=Cleanup(proof="reported", active=cleanup.active_pods) if cleanup else None,
        attestation=row.attestation,
        runtime_state=row.runtime_state,
        same_allocation=row.same_allocation,
        caveats=_caveats(row, order, published),
        checks=_checks(row, computed, published),
        exclusion=exclusion,
        superseded_by=row.superseded_by,
        retracted=None,
        evidence=None,
        command=None,
        reported=Reported(
            source=row.source,
            label=row.label,
            role=row.role,
            published_overhead_pct=published,
            recomputed_overhead_pct=round(computed.overhead_pct, 4) if computed else None,
            recomputed_from=computed.source if computed else None,
            inferred=row.inferred,
            observations=observations,
        ),
    )


def _single_pair() -> Overhead:
    return Overhead(
        ci_low_pct=None,
        ci_high_pct=None,
        n=1,
        method="single-pair",
        verdict=None,
        margin_pct=None,
        mde80_pct=None,
        order_effect_pct=None,
    )


def _checks(row: PublishedRow, computed: Recomputed | None, published: float | None) -> tuple[Check, ...]:
    checks: list[Check] = []
    if computed is not None and published is not None:
        basis = "work over seconds" if computed.source == "counts-and-elapsed" else "the two rates"
        checks.append(
            Check(
                code=Code.OVERHEAD_RECOMPUTED,
                ok=computed.agrees(published),
                detail=f"published {published:.2f}%, recomputed {computed.overhead_pct:.4f}% from {basis}",
            )
        )
    for arm, count, elapsed, rate in (
        ("protected", row.protected_epochs, row.protected_elapsed_sec, row.protected_epochs_per_sec),
        ("raw", row.raw_epochs, row.raw_elapsed_sec, row.raw_epochs_per_sec),
    ):
        if count and elapsed and rate:
            again = count / elapsed
            checks.append(
                Check(
                    code=Code(f"{arm}-rate-recomputed"),
                    ok=abs(again - rate) < 0.001,
                    detail=f"published {rate} epochs/s, {count} epochs in {elapsed} s give {again:.3f}",
                )
            )
    digests = (row.protected_adapter_sha256, row.raw_adapter_sha256)
    if all(digests):
        differ = digests[0] != digests[1]
        word = "distinct" if differ else "equal"
        checks.append(Check(code=Code.ADAPTERS_DIFFER, ok=differ, detail=f"the published digests are {word}"))
    checks.append(
        Check(
            code=Code.EVIDENCE_BUNDLE, ok=False, detail="none was published: nothing can be verified offline"
        )
    )
    return tuple(checks)


def _caveats(row: PublishedRow, order: Order | None, published: float | None) -> tuple[str, ...]:
    """The same rules as for rows of ours, over what the figures tell."""
    return caveats_of(
        Observed(
            tier="reported",
            overhead_pct=published,
            samples=None if published is None else 1,
            measured_sec=row.duration_sec or row.raw_elapsed_sec or row.raw_train_elapsed_sec,
            warmup_sec=row.warmup_sec,
            order=order,
            order_clear=order is not None,
            synthetic_workload=row.model == "mlp",
            provider=row.provider,
        )
    )
