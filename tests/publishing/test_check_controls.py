"""A row's caveats hang on its controls: `verify` believes a control by its own evidence, not by its file."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import pytest

from glasshouse.commands.download import fetch_row
from glasshouse.publishing.artifact import Artifact, artifact_bytes, parse_artifact
from glasshouse.publishing.from_bundle import artifact_from_verified, with_control_caveats
from glasshouse.publishing.verify_artifact import check_artifact
from glasshouse.records.keys import public_bytes
from glasshouse.records.ledger import log_key, sign_checkpoint
from glasshouse.records.verify import VerifiedRow
from tests.records.factory import Factory


@pytest.fixture
def site(
    tmp_path: Path,
    make_run: Callable[..., tuple[Path, VerifiedRow]],
    abba: tuple[Path, VerifiedRow],
    factory: Factory,
) -> dict[str, Path]:
    """A row and its two controls, published with their log: the artifact of each by its control."""
    runs = [abba, *(make_run(order="abba", duration=40.0, control=kind) for kind in ("aa", "delay"))]
    alone = [artifact_from_verified(row) for _, row in runs]
    places = {}
    for (bundle, _), artifact in zip(runs, alone, strict=True):
        published = with_control_caveats(artifact, alone)
        path = tmp_path / "research" / "artifacts" / f"{published.id}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(artifact_bytes(published))
        shutil.copytree(bundle, tmp_path / "research" / "bundles" / published.id)
        places[artifact.control] = path
    log = tmp_path / "research" / "ledger" / log_key(public_bytes(factory.publisher))
    log.mkdir(parents=True)
    leaves = factory.ledger.leaves()
    (log / "leaves.jsonl").write_bytes(b"".join(leaf.data + b"\n" for leaf in leaves))
    (log / "checkpoint.txt").write_text(sign_checkpoint(leaves, factory.publisher))
    return places


def _read(path: Path) -> Artifact:
    return parse_artifact(path.read_bytes(), name=path.name)


def _failed(path: Path, factory: Factory) -> dict[str, str]:
    entry = check_artifact(path, factory.keyring)
    return {check.code: check.detail for check in entry.checks if not check.ok}


def test_a_row_with_its_controls_verifies(site: dict[str, Path], factory: Factory) -> None:
    assert _read(site["none"]).controls == tuple(sorted(site[kind].stem for kind in ("aa", "delay")))
    for path in site.values():
        assert _failed(path, factory) == {}


def test_forged_controls_lift_no_caveat(site: dict[str, Path], factory: Factory) -> None:
    """Whoever holds no key can still write files: controls that say they passed."""
    row = _read(site["none"])
    for kind in ("aa", "delay"):
        passed = _read(site[kind]).model_copy(update={"control_outcome": "passed"})
        site[kind].write_bytes(artifact_bytes(passed))
    forged = with_control_caveats(row, [_read(site["aa"]), _read(site["delay"])])
    assert {"no-control", "control-failed"} <= set(row.caveats)
    assert not {"no-control", "control-failed"} & set(forged.caveats)
    site["none"].write_bytes(artifact_bytes(forged))
    assert set(_failed(site["none"], factory)) == {"control-verified", "artifact-recomputed"}
    # Without their bundles they are no better.
    for kind in ("aa", "delay"):
        shutil.rmtree(site[kind].parents[1] / "bundles" / site[kind].stem)
    assert set(_failed(site["none"], factory)) == {"control-verified", "artifact-recomputed"}


@pytest.mark.parametrize("gone", ["artifact", "bundle"])
def test_a_control_that_is_named_and_missing_is_said(
    site: dict[str, Path], factory: Factory, gone: str
) -> None:
    if gone == "artifact":
        site["aa"].unlink()
    else:
        shutil.rmtree(site["aa"].parents[1] / "bundles" / site["aa"].stem)
    found = _failed(site["none"], factory)
    assert found["control-verified"] == f"control {site['aa'].stem}: its {gone} is not beside the row"


def test_a_control_that_the_row_leaves_out_is_missed(site: dict[str, Path], factory: Factory) -> None:
    row = _read(site["none"])
    fewer = with_control_caveats(row, [_read(site["aa"])])
    site["none"].write_bytes(artifact_bytes(fewer))
    assert set(_failed(site["none"], factory)) == {"artifact-recomputed"}


def test_a_stray_control_without_evidence_changes_nothing(site: dict[str, Path], factory: Factory) -> None:
    stray = _read(site["aa"]).model_copy(
        update={"id": f"{site['aa'].stem}-stray", "control_outcome": "failed"}
    )
    (site["aa"].parent / f"{stray.id}.json").write_bytes(artifact_bytes(stray))
    assert _failed(site["none"], factory) == {}


def test_a_row_without_its_log_is_not_believed_to_be_in_time(
    site: dict[str, Path], factory: Factory, tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path / "research" / "ledger")
    found = _failed(site["aa"], factory)
    assert set(found) == {"registration-not-checked", "retraction-not-checked"}
    assert "no log beside the row holds it" in found["registration-not-checked"]


def test_a_row_that_is_fetched_comes_with_the_evidence_of_its_controls(
    site: dict[str, Path], factory: Factory, tmp_path: Path
) -> None:
    rows = tmp_path / "downloads" / "rows.json"
    rows.parent.mkdir()
    rows.write_bytes(b"[" + b",".join(path.read_bytes() for path in site.values()) + b"]")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (http.server's signature)
            pass

    with HTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            base = f"http://127.0.0.1:{server.server_port}/research/artifacts/"
            folder = tmp_path / "fetched"
            folder.mkdir()
            path = fetch_row(f"{base}{site['none'].name}", folder, factory.keyring)
        finally:
            server.shutdown()
            thread.join()
    assert _failed(path, factory) == {}
    assert sorted(entry.name for entry in (folder / "bundles").iterdir()) == sorted(
        path.stem for path in site.values()
    )
