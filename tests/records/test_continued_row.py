"""A job that went on from a checkpoint: its record names the chain of runs, and verifies from its bundle."""

from __future__ import annotations

from pathlib import Path

import pytest

from glasshouse.canonical import parse_json
from glasshouse.commands import show
from glasshouse.judgement.rules import OPEN
from glasshouse.publishing.artifact import artifact_bytes, parse_artifact
from glasshouse.publishing.from_bundle import artifact_from_verified
from glasshouse.records.verify import VerifiedRow, verify
from glasshouse.spec import RunSpec
from tests.specs import make_spec

from .factory import Factory

BEFORE = ("20260101-120000-aaaaaa", "20260102-120000-bbbbbb")


def job(**changes: object) -> RunSpec:
    continues = {
        "runs": BEFORE,
        "leg": "s000",
        "launch": 1,
        "number": 3,
        "sha256": "ab" * 32,
        "steps": 400,
        "seconds": 12.5,
        "witnessed": True,
        "folder": "/home/somebody/runs/x",
    }
    return make_spec(
        order="protected-only",
        payload="private",
        duration=None,
        steps=1000,
        continues={**continues, **changes},
    )


def row(factory: Factory, tmp_path: Path, spec: RunSpec) -> tuple[VerifiedRow, Path]:
    run, files = factory.parts(spec)
    folder = tmp_path / "runs" / run / "bundle"
    folder.parent.mkdir(parents=True)
    factory.write(folder, run, files)
    report = verify(folder, factory.keyring)
    assert report.row is not None, report
    return report.row, folder


def test_its_record_names_the_chain_and_sums_its_steps(factory: Factory, tmp_path: Path) -> None:
    found, folder = row(factory, tmp_path, job())
    record = parse_json((folder / "record.json").read_bytes())
    assert record["method"] == OPEN
    assert record["figures"]["chain"] == {
        "runs": list(BEFORE),
        "leg": "s000",
        "launch": 1,
        "number": 3,
        "sha256": "ab" * 32,
        "steps": 1000,
        "witnessed": True,
    }
    assert "checkpoint-unwitnessed" not in record["caveats"]
    assert found.facts.slots[0].plan.steps == 600  # what was left of the thousand
    assert b"/home/somebody" not in b"".join(
        path.read_bytes() for path in folder.rglob("*") if path.is_file()
    )


def test_its_artifact_says_the_same(factory: Factory, tmp_path: Path) -> None:
    found, _ = row(factory, tmp_path, job())
    artifact = artifact_from_verified(found)
    assert artifact.chain is not None
    assert (artifact.chain.runs, artifact.chain.number, artifact.chain.steps) == (BEFORE, 3, 1000)
    assert f"from={BEFORE[1]}@3" in (artifact.command or "")
    assert parse_artifact(artifact_bytes(artifact)) == artifact


def test_a_checkpoint_that_nobody_watched_is_a_caveat(factory: Factory, tmp_path: Path) -> None:
    found, _ = row(factory, tmp_path, job(witnessed=False))
    assert "checkpoint-unwitnessed" in found.judgement.caveats


def test_steps_that_nobody_counted_are_not_summed(factory: Factory, tmp_path: Path) -> None:
    spec = make_spec(order="protected-only", payload="private", duration=60.0)
    before = job(steps=None).continues
    found, _ = row(factory, tmp_path, spec.model_copy(update={"continues": before}))
    assert found.judgement.figures.chain is not None
    assert found.judgement.figures.chain.steps is None


def test_a_run_that_began_anew_has_no_such_field(factory: Factory, tmp_path: Path) -> None:
    _, folder = row(factory, tmp_path, make_spec(order="protected-only", payload="private"))
    assert "chain" not in parse_json((folder / "record.json").read_bytes())["figures"]


def test_show_says_what_it_went_on_from(
    factory: Factory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, folder = row(factory, tmp_path, job())
    show._figures(found.judgement.figures)
    said = capsys.readouterr().out
    assert f"went on from checkpoint 3 of {BEFORE[1]}" in said
    assert "1000 optimizer steps in all runs together" in said
    assert folder.is_dir()
