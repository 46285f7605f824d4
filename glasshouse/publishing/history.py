"""The importer of the history: figures published before this software existed become `reported` rows.

They carry no evidence bundle, so they are a type of their own (`ReportedRow`, made only here), never
verified, and counted apart. Every overhead is recomputed by the rule that the figures' own file
states, and compared to two decimals; a disagreement stops the import.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from glasshouse.canonical import parse_json
from glasshouse.codes import Code
from glasshouse.errors import VerificationError
from glasshouse.judgement.caveats import Observed, caveats_of
from glasshouse.publishing.artifact import (
    Artifact,
    Check,
    Cleanup,
    Exclusion,
    Id,
    Observation,
    Order,
    Overhead,
    Public,
    Reported,
    Text,
)
from glasshouse.publishing.artifact import (
    Code as CodeWord,
)

_FIGURES: Final = frozenset(
    """
    id source date label role model unit gpu gpuModel provider providerTier providerInstanceId sameAllocation
    durationSec warmupSec order steps targetSteps settings overheadPct attestation runtimeState cleanup
    protectedEpochsPerSec protectedStepsPerSec protectedEpochs protectedSteps protectedElapsedSec
    protectedTrainElapsedSec protectedSetupSec protectedFinalLoss protectedAdapterSha256
    rawEpochsPerSec rawStepsPerSec rawEpochs rawSteps rawElapsedSec
    rawTrainElapsedSec rawSetupSec rawFinalLoss rawAdapterSha256
    finalLoss adapterSha256 trainableAdapterParams totalParams reasonCodes supersededBy inferred
    """.split()  # noqa: SIM905 - fifty names read better as a paragraph than one a line
)
_TABLES: Final = ("rows", "smoke", "excluded")
_MAKER: Final = object()


class ReportedRow:
    """One row of the published history. Only `import_history` makes one."""

    def __init__(self, artifact: Artifact, *, maker: object) -> None:
        if maker is not _MAKER or artifact.evidence_tier != "reported":
            raise TypeError("only the history importer makes reported rows")
        self.artifact: Final = artifact


class Remark(Public):
    """Something a reader should know about named rows, or about the whole history (no rows named)."""

    code: CodeWord
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


def figures_only(reference: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the figures of a reference document and drop its prose; what the repository holds."""
    return {
        table: [{key: value for key, value in row.items() if key in _FIGURES} for row in reference[table]]
        for table in _TABLES
    }


def figures_bytes(figures: Mapping[str, Any]) -> bytes:
    """The figures as reviewable JSON: one key a line, in source order."""
    return (json.dumps(figures, indent=1, ensure_ascii=False) + "\n").encode()


def recompute(row: Mapping[str, Any]) -> Recomputed | None:
    """Recompute the overhead: count over elapsed where both are given, else the two published rates.

    100 x (1 - protected / raw), the definition of a single pair. None when no raw leg is there.
    """
    arms: list[float] = []
    for arm in ("protected", "raw"):
        elapsed = row.get(f"{arm}ElapsedSec") or row.get(f"{arm}TrainElapsedSec")
        count = row.get(f"{arm}Steps") or row.get(f"{arm}Epochs") or row.get("steps")
        if elapsed and count:
            arms.append(count / elapsed)
    if len(arms) == 2:
        return Recomputed(100 * (1 - arms[0] / arms[1]), "counts-and-elapsed")
    for unit in ("Epochs", "Steps"):
        protected, raw = row.get(f"protected{unit}PerSec"), row.get(f"raw{unit}PerSec")
        if protected and raw:
            return Recomputed(100 * (1 - protected / raw), "rates")
    return None


def import_history(figures: Mapping[str, Any], remarks: Remarks) -> tuple[ReportedRow, ...]:
    """Turn the figures into reported rows, in source order.

    Raises VerificationError listing every row whose published overhead does not follow from its own
    figures, every id used twice, and every remark about a row that is not there.
    """
    artifacts = [_artifact(row, table, remarks) for table in _TABLES for row in figures[table]]
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
    figures = parse_json((folder / "published-rows.json").read_bytes())
    return import_history(figures, read_remarks(folder))


def _arithmetic_holds(artifact: Artifact) -> bool:
    return all(check.ok for check in artifact.checks if check.code.endswith("-recomputed"))


def _artifact(row: Mapping[str, Any], table: str, remarks: Remarks) -> Artifact:
    order: Order | None = "protected-only" if table == "smoke" else row.get("order")
    computed = recompute(row) if table == "rows" else None
    published = row.get("overheadPct") if table == "rows" else None
    model = str(row["model"])
    observations = tuple(Observation(code=item.code, text=item.text) for item in remarks.about(row["id"]))
    exclusion = None
    if table == "excluded":
        exclusion = Exclusion(codes=tuple(row["reasonCodes"]), observed=remarks.exclusions[row["id"]])
    cleanup = row.get("cleanup")
    return Artifact(
        schema_version=1,
        id=row["id"],
        date=row.get("date", row["source"]),
        status="excluded" if exclusion else "reported",
        evidence_tier="reported",
        provider=row["provider"],
        provider_tier=row.get("providerTier"),
        provider_instance_id=row.get("providerInstanceId"),
        gpu=row.get("gpu"),
        gpu_model=row.get("gpuModel"),
        model=model,
        unit=row.get("unit", "epochs" if model == "mlp" else "steps"),
        order=order,
        control="none",
        duration_sec=row.get("durationSec"),
        warmup_sec=row.get("warmupSec"),
        target_steps=row.get("targetSteps"),
        steps=row.get("steps"),
        protected_epochs_per_sec=row.get("protectedEpochsPerSec"),
        raw_epochs_per_sec=row.get("rawEpochsPerSec"),
        protected_steps_per_sec=row.get("protectedStepsPerSec"),
        raw_steps_per_sec=row.get("rawStepsPerSec"),
        protected_epochs=row.get("protectedEpochs"),
        raw_epochs=row.get("rawEpochs"),
        protected_steps=row.get("protectedSteps"),
        raw_steps=row.get("rawSteps"),
        protected_elapsed_sec=row.get("protectedElapsedSec"),
        raw_elapsed_sec=row.get("rawElapsedSec"),
        protected_train_elapsed_sec=row.get("protectedTrainElapsedSec"),
        raw_train_elapsed_sec=row.get("rawTrainElapsedSec"),
        protected_setup_sec=row.get("protectedSetupSec"),
        raw_setup_sec=row.get("rawSetupSec"),
        protected_final_loss=row.get("protectedFinalLoss", row.get("finalLoss")),
        raw_final_loss=row.get("rawFinalLoss"),
        protected_adapter_sha256=row.get("protectedAdapterSha256", row.get("adapterSha256")),
        raw_adapter_sha256=row.get("rawAdapterSha256"),
        trainable_params=row.get("trainableAdapterParams"),
        total_params=row.get("totalParams"),
        settings=row.get("settings"),
        overhead_pct=published,
        overhead=_single_pair() if published is not None else None,
        fixed_cost_sec=None,
        cleanup=Cleanup(proof="reported", active=cleanup["activePods"]) if cleanup else None,
        attestation=row.get("attestation"),
        runtime_state=row.get("runtimeState"),
        same_allocation=row.get("sameAllocation"),
        caveats=_caveats(row, order, published),
        checks=_checks(row, computed, published),
        exclusion=exclusion,
        superseded_by=row.get("supersededBy"),
        retracted=None,
        evidence=None,
        command=None,
        reported=Reported(
            source=row["source"],
            label=row.get("label"),
            role=row.get("role"),
            published_overhead_pct=published,
            recomputed_overhead_pct=round(computed.overhead_pct, 4) if computed else None,
            recomputed_from=computed.source if computed else None,
            inferred=tuple(row.get("inferred", ())),
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


def _checks(
    row: Mapping[str, Any], computed: Recomputed | None, published: float | None
) -> tuple[Check, ...]:
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
    for arm in ("protected", "raw"):
        count, elapsed = row.get(f"{arm}Epochs"), row.get(f"{arm}ElapsedSec")
        rate = row.get(f"{arm}EpochsPerSec")
        if count and elapsed and rate:
            again = count / elapsed
            checks.append(
                Check(
                    code=Code(f"{arm}-rate-recomputed"),
                    ok=abs(again - rate) < 0.001,
                    detail=f"published {rate} epochs/s, {count} epochs in {elapsed} s give {again:.3f}",
                )
            )
    digests = row.get("protectedAdapterSha256"), row.get("rawAdapterSha256")
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


def _caveats(row: Mapping[str, Any], order: Order | None, published: float | None) -> tuple[str, ...]:
    """The same rules as for rows of ours, over what the figures tell."""
    return caveats_of(
        Observed(
            tier="reported",
            overhead_pct=published,
            samples=None if published is None else 1,
            measured_sec=row.get("durationSec") or row.get("rawElapsedSec") or row.get("rawTrainElapsedSec"),
            warmup_sec=row.get("warmupSec"),
            order=order,
            order_clear=order is not None,
            synthetic_workload=row["model"] == "mlp",
            provider=row["provider"],
        )
    )
