"""The public row artifact: one canonical JSON object a row, in three evidence tiers.

`signed` artifacts are built from a bundle that verified, `reported` ones by the history importer
only, `simulated` ones come from the fake provider and are never published as measured. Field names
are those published before this software existed, and stay. The schema is an allow-list: a key that
is not named here cannot be published.

Units are in the names: Sec seconds, Pct percent, PerSec a rate over measured seconds.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from glasshouse.canonical import CanonicalError, canonical_json, parse_canonical, sha256_hex
from glasshouse.codes import Code
from glasshouse.errors import VerificationError
from glasshouse.schema import Day, Hex64, Id, RunId, Text, Written

SCHEMA_VERSION = 1
SCHEMA_PATH = "schema/row-artifact-v1.schema.json"
MAX_ARTIFACT_BYTES = 512 << 10

Tier = Literal["signed", "reported", "simulated"]
Status = Literal["verified", "excluded", "reported"]
Order = Literal["raw-first", "protected-first", "abba", "protected-only"]

Slug = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9\-]{1,63}$")]
Word = Annotated[str, Field(max_length=120, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._/+()\-]*$")]
Point = Annotated[tuple[float, ...], Field(min_length=2, max_length=2)]
Curve = Annotated[tuple[Point, ...], Field(max_length=200)]


class Public(BaseModel):
    """Base of all published values: strict, frozen, camelCase outside, no unknown keys."""

    model_config = Written.model_config


class Overhead(Public):
    """The steady-state overhead and how far it can be trusted. Ends of the interval are percent."""

    ci_low_pct: float | None
    ci_high_pct: float | None
    n: int = Field(ge=1, description="independent differences behind the figure: blocks, or 1 for one pair")
    method: Slug
    verdict: Literal["within", "exceeds", "inconclusive"] | None
    margin_pct: float | None
    mde80_pct: float | None
    order_effect_pct: float | None
    order_effect_low_pct: float | None = None
    order_effect_high_pct: float | None = None
    randomization_p: float | None = Field(default=None, ge=0, le=1)
    block_pct: tuple[float, ...] = Field(default=(), max_length=200)
    dropped_blocks: int | None = Field(default=None, ge=0)


class LegResources(Public):
    """Where a launch of one arm spent its time: medians over launches."""

    cpu_share: float | None = Field(default=None, ge=0, description="processor seconds per measured second")
    cpu_sec: float | None = Field(default=None, ge=0)
    wall_sec: dict[Slug, Annotated[float, Field(ge=0)]]


class Resources(Public):
    """Both arms' resources, side by side; a protected-only row has no raw ones."""

    protected: LegResources | None = None
    raw: LegResources | None = None


class Cleanup(Public):
    """What is known of the allocation's end; `reported` is another's word for it, not a proof."""

    proof: Literal["zero", "nonzero", "unknown", "reported"]
    active: int | None = Field(ge=0)


class Exclusion(Public):
    """Why a row counts for nothing, and what was seen."""

    codes: tuple[Slug, ...] = Field(min_length=1)
    observed: Annotated[str, Field(max_length=8000)]


class Chain(Public):
    """What a private job went on from: a checkpoint of the last of the runs before it."""

    runs: tuple[RunId, ...] = Field(min_length=1, max_length=1000, description="the first one first")
    leg: Slug
    launch: int = Field(ge=1)
    number: int | None = Field(ge=1, description="of the checkpoint, in its leg; null: the leg's outputs")
    sha256: Hex64 = Field(description="of its ciphertext, as that leg signed it")
    steps: int | None = Field(
        ge=0, description="optimizer steps of all runs, this one included; of a project at most"
    )
    witnessed: bool = Field(description="each checkpoint of the chain was made while a controller watched")


class Retraction(Public):
    """A withdrawn row keeps its page; this says when and why."""

    date: Day
    reason: Text = Field(min_length=1)


class Evidence(Public):
    """What the verify command is anchored in."""

    plan_sha256: Hex64
    bundle_sha256: Hex64
    signer: Hex64 = Field(description="key id: SHA-256 of the operator's raw Ed25519 public key")


class Check(Public):
    """One named check of the judgement or of the importer."""

    code: Slug
    ok: bool
    detail: Text
    vacuous: bool = Field(
        default=False,
        exclude_if=lambda value: not value,
        description="it holds because there was nothing to look at, as its detail says",
    )


class LegCurves(Public):
    """Curves of one arm: loss over work units, work units over seconds."""

    loss: Curve = ()
    throughput: Curve = ()


class Curves(Public):
    """Both arms' curves; a protected-only row has no raw ones."""

    protected: LegCurves | None = None
    raw: LegCurves | None = None


class Observation(Public):
    """Something a reader of the source should know."""

    code: Slug
    text: Text


class Reported(Public):
    """What is known about a row that was published before this software existed."""

    source: Day
    label: Word | None = None
    role: Slug | None = None
    published_overhead_pct: float | None = None
    recomputed_overhead_pct: float | None = None
    recomputed_from: Literal["counts-and-elapsed", "rates"] | None = None
    inferred: tuple[Word, ...] = ()
    observations: tuple[Observation, ...] = ()


Setting = int | float | bool | Annotated[str, Field(max_length=200)]

# Always present, null when unknown: readers of the JSON need not guess which keys exist.
ALWAYS = frozenset(
    """
    schemaVersion id date status evidenceTier provider providerTier providerInstanceId gpu gpuModel model unit
    order control durationSec warmupSec overheadPct overhead fixedCostSec cleanup attestation runtimeState
    sameAllocation caveats exclusion supersededBy retracted evidence command
    """.split()  # noqa: SIM905 - thirty names read better as a paragraph than one a line
)


class Artifact(Public):
    """One published row."""

    schema_version: Literal[1]
    id: Id
    run: Slug | None = Field(default=None, description="run id; reported rows have none")
    date: Day
    status: Status
    evidence_tier: Tier

    provider: Slug | None
    provider_tier: Word | None
    provider_instance_id: Word | None
    gpu: Slug | None
    gpu_model: Word | None
    model: Word
    unit: Slug
    order: Order | None
    control: Literal["none", "aa", "delay"]
    control_outcome: Literal["passed", "failed", "inconclusive"] | None = None
    duration_sec: float | None = Field(gt=0, description="measured seconds an arm; null for fixed-step rows")
    warmup_sec: float | None = Field(ge=0)
    target_steps: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=1)

    protected_epochs_per_sec: float | None = Field(default=None, gt=0)
    raw_epochs_per_sec: float | None = Field(default=None, gt=0)
    protected_steps_per_sec: float | None = Field(default=None, gt=0)
    raw_steps_per_sec: float | None = Field(default=None, gt=0)
    protected_units_per_sec: float | None = Field(default=None, gt=0)
    raw_units_per_sec: float | None = Field(default=None, gt=0)
    protected_epochs: float | None = Field(default=None, ge=0)
    raw_epochs: float | None = Field(default=None, ge=0)
    protected_steps: int | None = Field(default=None, ge=0)
    raw_steps: int | None = Field(default=None, ge=0)
    protected_elapsed_sec: float | None = Field(default=None, gt=0)
    raw_elapsed_sec: float | None = Field(default=None, gt=0)
    protected_train_elapsed_sec: float | None = Field(default=None, gt=0)
    raw_train_elapsed_sec: float | None = Field(default=None, gt=0)
    protected_setup_sec: float | None = Field(default=None, ge=0)
    raw_setup_sec: float | None = Field(default=None, ge=0)
    protected_final_loss: float | None = None
    raw_final_loss: float | None = None
    protected_output_sha256: Hex64 | None = None
    raw_output_sha256: Hex64 | None = None
    protected_adapter_sha256: Hex64 | None = None
    raw_adapter_sha256: Hex64 | None = None
    trainable_params: int | None = Field(default=None, ge=0)
    total_params: int | None = Field(default=None, ge=0)
    settings: dict[Word, Setting] | None = None

    overhead_pct: float | None
    overhead: Overhead | None
    fixed_cost_sec: dict[Slug, Annotated[float, Field(ge=0)]] | None
    cost_usd: float | None = Field(
        default=None, ge=0, description="US dollars: the provider's hourly price for the time held"
    )
    resources: Resources | None = None
    cleanup: Cleanup | None
    attestation: Slug | None
    runtime_state: Slug | None
    same_allocation: bool | None
    caveats: tuple[Slug, ...]
    controls: tuple[Id, ...] = Field(default=(), description="control rows of its kind, passed or not")
    checks: tuple[Check, ...] = ()
    exclusion: Exclusion | None
    superseded_by: Id | None
    retracted: Retraction | None
    evidence: Evidence | None
    withheld: tuple[Word, ...] = Field(
        default=(),
        max_length=8,
        exclude_if=lambda value: not value,
        description="what of the run is published as salted digests, so that no command repeats it",
    )
    command: Annotated[str, Field(max_length=800)] | None
    chain: Chain | None = Field(default=None, description="of a job that went on from a checkpoint")
    curves: Curves | None = None
    reported: Reported | None = None

    @model_validator(mode="after")
    def _tiers(self) -> Artifact:
        """A tier's promises, so that no file can claim a tier it cannot carry."""
        signed = self.evidence_tier == "signed"
        if signed != (self.evidence is not None):
            raise ValueError("evidence is present exactly in signed rows")
        if (self.evidence_tier == "reported") != (self.reported is not None):
            raise ValueError("reported is present exactly in reported rows")
        if self.evidence_tier == "reported" and self.status not in ("reported", "excluded"):
            raise ValueError("a reported row is never verified")
        if self.evidence_tier != "reported" and self.status == "reported":
            raise ValueError("only the history importer reports")
        if (self.status == "excluded") != (self.exclusion is not None):
            raise ValueError("exclusion is present exactly in excluded rows")
        if self.order == "protected-only" and self.overhead_pct is not None:
            raise ValueError("a protected-only row has no overhead")
        if self.status == "excluded" and self.overhead_pct is not None and not signed:
            raise ValueError("an excluded reported row has no overhead")
        return self


def artifact_bytes(artifact: Artifact) -> bytes:
    """The canonical JSON of an artifact: what is written, hashed and served."""
    full = artifact.model_dump(mode="json", by_alias=True)
    lean = {key: value for key, value in full.items() if key in ALWAYS or value not in (None, [])}
    return canonical_json(lean)


def parse_artifact(data: bytes, *, name: str = "artifact") -> Artifact:
    """Read one artifact strictly. Raises VerificationError naming every field at fault."""
    if len(data) > MAX_ARTIFACT_BYTES:
        raise VerificationError(f"{name} is over {MAX_ARTIFACT_BYTES} bytes", codes=[Code.ARTIFACT_TOO_LARGE])
    try:
        parse_canonical(data)
        artifact = Artifact.model_validate_json(data)
    except CanonicalError as error:
        what = f"{name} is not canonical JSON: {error}"
        raise VerificationError(what, codes=[Code.ARTIFACT_NOT_CANONICAL]) from error
    except ValidationError as error:
        fields = ", ".join(sorted({field_path(item["loc"]) for item in error.errors()}))
        raise VerificationError(
            f"{name} breaks the schema at {fields}", codes=[Code.ARTIFACT_SCHEMA]
        ) from error
    if artifact_bytes(artifact) != data:
        raise VerificationError(f"{name} does not survive a round trip", codes=[Code.ARTIFACT_NOT_CANONICAL])
    return artifact


def field_path(location: tuple[int | str, ...]) -> str:
    """Render a pydantic error location as `overhead.ciLowPct`; the object itself is `(row)`."""
    return ".".join(str(part) for part in location) or "(row)"


def artifact_sha256(artifact: Artifact) -> str:
    """SHA-256 of the artifact's canonical bytes, as hex."""
    return sha256_hex(artifact_bytes(artifact))


def artifact_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of the public row artifact, as served under /schema/."""
    schema = Artifact.model_json_schema(by_alias=True, mode="validation")
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["$id"] = "tag:glasshouse,2026:schema/row-artifact-v1"
    schema["title"] = "Glasshouse public row artifact, version 1"
    schema["required"] = sorted(ALWAYS)
    return schema
