from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from glasshouse.canonical import canonical_json, sha256_hex
from glasshouse.errors import VerificationError
from glasshouse.publishing.artifact import (
    ALWAYS,
    Artifact,
    artifact_bytes,
    artifact_schema,
    artifact_sha256,
    parse_artifact,
)
from glasshouse.publishing.from_bundle import artifact_from_verified, with_control_caveats
from glasshouse.records.verify import VerifiedRow

# What others read by name: what was published before, and what this software added.
PUBLISHED_NAMES = """
    provider gpuModel durationSec order protectedEpochsPerSec rawEpochsPerSec overheadPct attestation
    runtimeState sameAllocation providerInstanceId
"""
LORA_NAMES = """
    protectedSteps rawSteps protectedElapsedSec rawElapsedSec protectedTrainElapsedSec protectedSetupSec
    protectedFinalLoss protectedAdapterSha256 rawTrainElapsedSec rawSetupSec rawFinalLoss rawAdapterSha256
    steps targetSteps trainableParams totalParams
"""
ADDED_NAMES = """
    schemaVersion id status evidenceTier gpu model unit providerTier warmupSec overhead fixedCostSec cleanup
    caveats exclusion supersededBy retracted evidence command
"""


def changed(artifact: Artifact, **changes: Any) -> bytes:
    return canonical_json(json.loads(artifact_bytes(artifact)) | changes)


def test_schema_names_every_field_that_others_rely_on() -> None:
    properties = artifact_schema()["properties"]
    assert not [
        name for name in (PUBLISHED_NAMES + LORA_NAMES + ADDED_NAMES).split() if name not in properties
    ]


def test_every_artifact_has_the_common_fields_and_satisfies_the_served_schema(
    reported: tuple[Artifact, ...], signed: Artifact, abba: tuple[Path, VerifiedRow]
) -> None:
    validator = jsonschema.Draft202012Validator(artifact_schema())
    for artifact in (*reported, signed, artifact_from_verified(abba[1])):
        public = json.loads(artifact_bytes(artifact))
        assert public.keys() >= ALWAYS
        validator.validate(public)


def test_bytes_are_canonical_and_survive_a_round_trip(
    reported: tuple[Artifact, ...], signed: Artifact
) -> None:
    for artifact in (*reported, signed):
        data = artifact_bytes(artifact)
        assert canonical_json(json.loads(data)) == data
        assert parse_artifact(data) == artifact
        assert artifact_sha256(artifact) == sha256_hex(data)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"host": "198.51.100.7"}, "host"),
        ({"overheadPct": "2.58"}, "overheadPct"),
        ({"evidenceTier": "gold"}, "evidenceTier"),
        ({"gpuModel": "x; rm -rf"}, "gpuModel"),
        ({"id": "../escape"}, "id"),
        ({"durationSec": -1}, "durationSec"),
        ({"sameAllocation": 1}, "sameAllocation"),
    ],
)
def test_schema_is_an_allow_list_that_names_the_field(signed: Artifact, changes: Any, field: str) -> None:
    with pytest.raises(VerificationError, match=field) as caught:
        parse_artifact(changed(signed, **changes))
    assert caught.value.codes == ("artifact-schema",)


def test_bytes_that_are_not_canonical_are_refused(signed: Artifact) -> None:
    data = artifact_bytes(signed)
    for other in (data + b"\n", b" " + data, data.replace(b'":', b'": ', 1)):
        with pytest.raises(VerificationError) as caught:
            parse_artifact(other)
        assert caught.value.codes == ("artifact-not-canonical",)
    with pytest.raises(VerificationError) as caught:  # a default written out: two files for one row
        parse_artifact(changed(signed, curves=None, reported=None))
    assert caught.value.codes == ("artifact-not-canonical",)


def test_a_tier_cannot_be_claimed_without_what_it_stands_on(
    reported: tuple[Artifact, ...], signed: Artifact
) -> None:
    row = reported[0]
    refused = [
        changed(row, status="verified"),
        changed(row, evidenceTier="signed"),
        changed(signed, evidence=None),
        changed(signed, evidenceTier="reported"),
        changed(signed, status="reported"),
        changed(signed, status="excluded"),
        changed(signed, order="protected-only"),
        changed(signed, evidenceTier="simulated"),
    ]
    for data in refused:
        with pytest.raises(VerificationError):
            parse_artifact(data)


def test_signed_artifact_says_what_the_record_says(pair: tuple[Path, VerifiedRow]) -> None:
    row = pair[1]
    artifact = artifact_from_verified(row)
    figures = row.judgement.figures
    assert (artifact.status, artifact.attestation, artifact.runtime_state) == (
        "verified",
        "verified",
        "zeroized",
    )
    assert artifact.overhead_pct == figures.overhead_pct == pytest.approx(2.0, abs=1e-6)
    assert artifact.same_allocation is True
    assert artifact.cleanup is not None
    assert (artifact.cleanup.proof, artifact.cleanup.active) == ("zero", 0)
    assert artifact.evidence is not None
    assert artifact.evidence.bundle_sha256 == sha256_hex((pair[0] / "bundle.dsse.json").read_bytes())
    assert artifact.evidence.plan_sha256 == sha256_hex((pair[0] / "plan.dsse.json").read_bytes())
    assert artifact.overhead is not None
    assert (artifact.overhead.n, artifact.overhead.ci_low_pct) == (1, None)
    assert set(artifact.caveats) == set(row.judgement.caveats)
    assert [check.code for check in artifact.checks] == [check.code for check in row.judgement.checks]
    assert artifact.command is not None
    assert "order=raw-first" in artifact.command


def test_blocks_of_an_abba_row_average_to_its_overhead(abba: tuple[Path, VerifiedRow]) -> None:
    artifact = artifact_from_verified(abba[1])
    assert artifact.overhead is not None
    assert artifact.overhead.n == len(artifact.overhead.block_pct) == 8
    assert artifact.overhead.ci_low_pct is not None
    assert artifact.overhead_pct == pytest.approx(sum(artifact.overhead.block_pct) / 8, abs=0.01)


def test_an_excluded_row_has_reasons_and_no_overhead(make_run: Any) -> None:
    from tests.records.factory import Leg

    _, row = make_run({0: Leg(status="failed", code="leg-crashed")})
    artifact = artifact_from_verified(row)
    assert artifact.status == "excluded"
    assert artifact.exclusion is not None
    assert "raw-incomplete" in artifact.exclusion.codes
    assert (artifact.overhead_pct, artifact.overhead) == (None, None)


def test_controls_beside_a_row_lift_or_add_caveats(abba: tuple[Path, VerifiedRow]) -> None:
    row = artifact_from_verified(abba[1])

    def control(kind: str, outcome: str, **changes: Any) -> Artifact:
        return row.model_copy(update={"id": kind, "control": kind, "control_outcome": outcome} | changes)

    good = [control("aa", "passed"), control("delay", "passed")]
    assert "no-control" in row.caveats
    assert "no-control" in with_control_caveats(row, [row, good[0]]).caveats
    assert "no-control" not in with_control_caveats(row, [row, *good]).caveats
    assert (
        "no-control" in with_control_caveats(row, [good[0], control("delay", "passed", gpu="h100")]).caveats
    )
    named = with_control_caveats(row, [row, *good])
    assert named.controls == ("aa", "delay")
    # A control that is retracted takes back what it had lifted.
    assert "no-control" in with_control_caveats(named, [row, good[0]]).caveats
    assert with_control_caveats(named, [row, good[0]]).controls == ("aa",)
    # Alike means the same machine type, work, length and way of timing; an excluded control shows nothing.
    for unlike in (
        {"provider_tier": "community"}, {"duration_sec": 20.0}, {"order": "raw-first"}, {"model": "other"},
        {"settings": dict(row.settings or {}) | {"blocks": 9}}, {"status": "excluded"},
        {"evidence_tier": "simulated"},
    ):  # fmt: skip
        apart = with_control_caveats(row, [good[0], control("delay", "passed", **unlike)])
        assert apart.controls == ("aa",), unlike
        assert "no-control" in apart.caveats
    # The injected delay is the control's own setting.
    other_delay = {"settings": dict(row.settings or {}) | {"delay_pct": 5.0}}
    five = control("delay", "passed", **other_delay)
    assert with_control_caveats(row, [good[0], five]).controls == ("aa", "delay")
    unsure = with_control_caveats(row, [good[0], control("delay", "inconclusive")])
    assert "no-control" in unsure.caveats
    assert "control-failed" not in unsure.caveats
    failed = with_control_caveats(named, [*good, control("aa", "failed", id="aa2")])
    assert failed.controls == ("aa", "aa2", "delay")
    assert "control-failed" in failed.caveats
    assert "no-control" in failed.caveats
