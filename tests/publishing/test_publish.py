from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glasshouse.canonical import canonical_json
from glasshouse.errors import GlasshouseError, UsageError, VerificationError
from glasshouse.paths import Workspace
from glasshouse.publishing.artifact import parse_artifact
from glasshouse.publishing.pages import render
from glasshouse.publishing.publication_files import read_publication
from glasshouse.publishing.publish import Published
from glasshouse.publishing.verify_artifact import check_artifact
from glasshouse.records.verify import VerifiedRow
from tests.records.factory import Factory, Leg
from tests.specs import make_spec

Bundle = tuple[Path, VerifiedRow]
Put = Callable[..., Published]


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_publishing_writes_artifact_and_bundle_and_the_second_time_nothing(
    root: Path, pair: Bundle, put: Put
) -> None:
    folder, row = pair
    before = tree(root)
    first = put(folder)
    assert first.rows == (row.id,)
    added = tree(root).keys() - before.keys()
    assert added == set(first.written)
    assert f"site/research/artifacts/{row.id}.json" in added
    assert {path.name for path in (root / "site/research/bundles" / row.id).iterdir()} >= {
        "record.json",
        "legs",
    }
    again = put(folder)
    assert again.written == ()
    publication = read_publication(Workspace.of_source(root))
    assert row.id in {artifact.id for artifact in publication.artifacts}
    assert f"rows/{row.id}.md" in render(publication)


def test_local_rows_go_to_the_overlay_and_count_in_no_published_total(
    root: Path, pair: Bundle, monkeypatch: pytest.MonkeyPatch, put: Put
) -> None:
    folder, row = pair
    put(folder, local=True)
    assert (root / "build/artifacts" / f"{row.id}.json").exists()
    assert not (root / "site/research/bundles").exists()
    pages = render(read_publication(Workspace.of_source(root)))
    assert b"not part of the publication" in pages[f"rows/{row.id}.md"]
    assert row.id not in pages["downloads/rows.json"].decode()
    assert b"<b>0</b> attempted" in pages["exclusions.md"]
    monkeypatch.setenv("GLASSHOUSE_SITE_LOCAL", "0")
    assert f"rows/{row.id}.md" not in render(read_publication(Workspace.of_source(root)))


def test_a_simulated_run_is_shown_locally_and_never_published(
    root: Path, factory: Factory, tmp_path: Path, put: Put
) -> None:
    run, files = factory.parts(make_spec(), allocation={"tier": "simulated"})
    folder = tmp_path / run / "bundle"
    folder.parent.mkdir()
    factory.write(folder, run, files)
    before = sorted((root / "site").rglob("*"))
    with pytest.raises(UsageError, match="measures nothing"):
        put(folder)
    assert sorted((root / "site").rglob("*")) == before
    done = put(folder, local=True)
    path = next(root / item for item in done.written if item.endswith(f"{done.rows[0]}.json"))
    artifact = parse_artifact(path.read_bytes())
    assert (artifact.evidence_tier, artifact.evidence) == ("simulated", None)
    assert artifact.caveats[0] == "simulated"
    entry = check_artifact(path, factory.keyring)
    assert not entry.ok
    # Carried into the publication by hand, it stops the build.
    shutil.copy(path, root / "site/research/artifacts" / path.name)
    with pytest.raises(VerificationError):
        read_publication(Workspace.of_source(root), overlay=False)


def test_attempted_is_verified_plus_excluded(root: Path, pair: Bundle, make_run: Any, put: Put) -> None:
    failed, _ = make_run({0: Leg(status="failed", code="leg-crashed")})
    put(pair[0], failed)
    page = render(read_publication(Workspace.of_source(root)))["exclusions.md"].decode()
    assert "<b>2</b> attempted" in page
    assert page.count("<b>1</b>") == 2


def test_one_bad_bundle_publishes_nothing(root: Path, pair: Bundle, make_run: Any, put: Put) -> None:
    other, _ = make_run()
    record = other / "record.json"
    record.write_bytes(record.read_bytes().replace(b'"verified"', b'"excluded"'))
    before = tree(root)
    with pytest.raises(VerificationError) as caught:
        put(pair[0], other)
    assert "digest-mismatch" in caught.value.codes
    assert tree(root) == before


def test_a_secret_of_the_environment_stops_the_publication_before_anything_is_written(
    root: Path, pair: Bundle, monkeypatch: pytest.MonkeyPatch, put: Put
) -> None:
    before = tree(root)
    monkeypatch.setenv("RUNPOD_API_KEY", pair[1].plan_sha256)  # a value that is in the artifact
    with pytest.raises(VerificationError, match="secret scan") as caught:
        put(pair[0], known_secrets=None)
    assert any("evidence.planSha256" in code for code in caught.value.codes)
    assert pair[1].plan_sha256 not in str(caught.value)
    assert tree(root) == before


def test_planted_secrets_in_what_a_bundle_records_are_named(
    root: Path, make_run: Any, factory: Factory, put: Put
) -> None:
    # A provider's reply, as it would have come through if a field let it.
    run, files = factory.parts(_spec(), release={"detail": "pod at 203.0.113.9:40022 is gone"})
    folder = root / "elsewhere" / run / "bundle"
    folder.parent.mkdir(parents=True)
    try:
        factory.write(folder, run, files)
    except GlasshouseError:
        return  # the first barrier, the bundle's own schema, held
    with pytest.raises(VerificationError) as caught:
        put(folder)
    assert any(
        code.startswith("ip-address@") and "release.json.detail" in code for code in caught.value.codes
    )


def _spec() -> Any:
    from tests.specs import make_spec

    return make_spec()


@pytest.mark.parametrize(
    "edit",
    [
        {"overheadPct": 0.01},
        {"caveats": ["not-a-tee"]},
        {"status": "verified", "exclusion": None, "gpu": "h100"},
        {"fixedCostSec": None},
        {"command": "python -m glasshouse"},
    ],
)
def test_any_edit_of_a_committed_signed_artifact_stops_the_build(
    root: Path, pair: Bundle, factory: Factory, edit: dict[str, Any], put: Put
) -> None:
    folder, row = pair
    put(folder)
    path = root / "site/research/artifacts" / f"{row.id}.json"
    path.write_bytes(canonical_json(json.loads(path.read_bytes()) | edit))
    with pytest.raises(VerificationError) as caught:
        read_publication(Workspace.of_source(root))
    assert caught.value.codes == (f"signed-row-edited:{row.id}",)
    assert not check_artifact(path, factory.keyring).ok


def test_a_signed_row_needs_its_bundle_and_a_committed_key(root: Path, pair: Bundle, put: Put) -> None:
    folder, row = pair
    put(folder)
    (root / "conf/trust/keyring.json").write_bytes(b'{"keys":[]}')
    with pytest.raises(VerificationError) as caught:
        read_publication(Workspace.of_source(root))
    assert f"signer-unknown:{row.id}" in caught.value.codes
    shutil.rmtree(root / "site/research/bundles" / row.id)
    with pytest.raises(VerificationError) as caught:
        read_publication(Workspace.of_source(root))
    assert f"bundle-missing:{row.id}" in caught.value.codes


def test_a_bundle_whose_row_was_removed_stops_the_build(root: Path, pair: Bundle, put: Put) -> None:
    folder, row = pair
    put(folder)
    (root / "site/research/artifacts" / f"{row.id}.json").unlink()
    with pytest.raises(VerificationError) as caught:
        read_publication(Workspace.of_source(root))
    assert caught.value.codes == (f"bundle-without-row:{row.id}",)


def test_edits_and_removals_of_reported_rows_stop_the_build(root: Path) -> None:
    folder = root / "site/research/artifacts"
    path = folder / "2026-05-16-runpod-h100-mlp-30m-protected-first.json"
    original = path.read_bytes()
    path.write_bytes(original.replace(b'"overheadPct":2.58', b'"overheadPct":0.58'))
    with pytest.raises(VerificationError) as caught:
        read_publication(Workspace.of_source(root))
    assert caught.value.codes == (f"reported-row-edited:{path.stem}",)
    assert not check_artifact(path, read_keyring()).ok
    path.unlink()
    with pytest.raises(VerificationError) as caught:
        read_publication(Workspace.of_source(root))
    assert caught.value.codes == (f"reported-row-missing:{path.stem}",)
    (folder / "invented.json").write_bytes(original)
    with pytest.raises(VerificationError) as caught:
        read_publication(Workspace.of_source(root))
    assert "id-is-not-file-name:invented.json" in caught.value.codes


def read_keyring() -> Any:
    from glasshouse.records.keys import Keyring

    return Keyring()


def test_a_retracted_row_keeps_its_page_and_says_why(
    root: Path, pair: Bundle, put: Put, withdraw: Put
) -> None:
    folder, row = pair
    put(folder)
    done = withdraw(row.id, reason="the  machine was shared", day="2026-11-21")
    (log,) = (root / "site/research/ledger").iterdir()
    assert set(done.written) == {
        f"site/research/artifacts/{row.id}.json",
        f"site/research/ledger/{log.name}/leaves.jsonl",
        f"site/research/ledger/{log.name}/checkpoint.txt",
    }
    pages = render(read_publication(Workspace.of_source(root)))
    assert b"Retracted on 2026-11-21.</strong> the machine was shared" in pages[f"rows/{row.id}.md"]
    ledger = pages["exclusions.md"].decode()
    assert "<b>1</b> attempted" in ledger
    assert "<b>0</b> verified" in ledger
    assert "<b>1</b> excluded" in ledger
    assert withdraw(row.id, reason="again", day="2026-11-22").written == ()
    assert put(folder).written == ()


@pytest.mark.parametrize(
    ("row", "reason"),
    [("no-such-row", "x"), ("2026-05-16-runpod-h100-mlp-30m-protected-first", "x"), ("any", " ")],
)
def test_what_cannot_be_retracted(row: str, reason: str, withdraw: Put) -> None:
    with pytest.raises(UsageError):
        withdraw(row, reason=reason, day="2026-11-21")


def test_registered_runs_that_are_not_published_are_listed(pair: Bundle, factory: Factory, put: Put) -> None:
    folder, row = pair
    hidden, _ = factory.parts(_spec())
    done = put(folder)
    assert hidden in done.withheld
    assert row.run not in done.withheld


def test_published_artifacts_check_out_one_by_one(
    root: Path, pair: Bundle, factory: Factory, put: Put
) -> None:
    folder, row = pair
    put(folder)
    results = {
        path.stem: check_artifact(path, factory.keyring)
        for path in sorted((root / "site/research/artifacts").glob("*.json"))
    }
    assert all(result.ok for result in results.values())
    reported = results["2026-05-16-runpod-h100-mlp-30m-protected-first"]
    assert reported.status == "reported"
    assert [check.code for check in reported.checks][-2:] == ["not-verified-by-us", "ledger-inclusion"]
    assert results[row.id].status == "verified"
    assert results[row.id].signer.startswith("test operator")
