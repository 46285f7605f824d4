"""Local rows in a folder that may be a stranger's: nothing outside it gets into the site, nothing hangs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from glasshouse.errors import VerificationError
from glasshouse.paths import Workspace
from glasshouse.publishing.publication_files import read_publication
from glasshouse.publishing.publish import Published
from glasshouse.records.verify import VerifiedRow

Bundle = tuple[Path, VerifiedRow]
Put = Callable[..., Published]


@pytest.fixture
def overlay(root: Path, pair: Bundle, put: Put) -> Path:
    put(pair[0], local=True)
    return root / "build/artifacts"


def refused(root: Path) -> tuple[str, ...]:
    with pytest.raises(VerificationError) as caught:
        read_publication(Workspace.of_source(root))
    assert "--committed" in caught.value.remedy
    assert "\n" not in caught.value.line()
    read_publication(Workspace.of_source(root), overlay=False)
    return tuple(caught.value.codes)


def test_a_bundle_file_that_is_a_link_is_refused(
    root: Path, overlay: Path, pair: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> None:
    secret = tmp_path_factory.mktemp("keys") / "publisher.ed25519.pem"
    secret.write_text("-----BEGIN PRIVATE KEY-----\n")
    record = overlay / "bundles" / pair[1].id / "record.json"
    record.unlink()
    record.symlink_to(secret)
    assert f"file-unreadable:{pair[1].id}" in refused(root)


def test_a_file_that_no_bundle_has_is_refused(root: Path, overlay: Path, pair: Bundle) -> None:
    (overlay / "bundles" / pair[1].id / "index.html").write_text("<script>")
    assert refused(root) == (f"file-unlisted:{pair[1].id}",)


def test_a_name_in_it_cannot_write_to_the_terminal(root: Path, overlay: Path) -> None:
    (overlay / "\x1b[2Jx.json").write_text("{}")
    assert "\x1b" not in "".join(refused(root))


@pytest.mark.parametrize("name", ["", "artifacts", "artifacts/bundles", "artifacts/ledger", "row"])
def test_a_folder_that_is_a_link_is_refused(
    root: Path, overlay: Path, pair: Bundle, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = overlay / "bundles" / pair[1].id if name == "row" else root / "build" / name
    away = tmp_path_factory.mktemp("away") / "folder"
    shutil.move(path, away)
    path.symlink_to(away)
    assert refused(root) == (f"overlay-folder:{path.relative_to(root)}",)


@pytest.mark.parametrize("what", ["pipe", "zero", "folder", "large"])
@pytest.mark.parametrize("place", ["x.json", "ledger"])
def test_what_is_no_plain_file_is_refused_at_once(root: Path, overlay: Path, what: str, place: str) -> None:
    path = overlay / place
    if place == "ledger":
        path = next(path.glob("*/leaves.jsonl"))
        path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    elif what == "zero":
        path.symlink_to("/dev/zero")
    elif what == "folder":
        path.mkdir()
    else:
        with path.open("wb") as file:
            file.truncate(1 << 40)  # sparse
    code = "artifact-unreadable:x.json" if place == "x.json" else f"ledger-incomplete:{path.parent.name}"
    assert code in refused(root)


def test_keys_of_the_overlay_that_are_a_link_are_refused(root: Path, overlay: Path) -> None:
    (overlay / "ledger/keyring.json").unlink()
    (overlay / "ledger/keyring.json").symlink_to("/dev/zero")
    with pytest.raises(VerificationError, match="keyring"):
        read_publication(Workspace.of_source(root))


def test_publishing_locally_follows_no_link_either(root: Path, overlay: Path, pair: Bundle, put: Put) -> None:
    os.mkfifo(overlay / "x.json")
    with pytest.raises(VerificationError, match=r"x\.json cannot be read: not a regular file"):
        put(pair[0], local=True)
    (overlay / "x.json").unlink()
    away = root / "away"
    shutil.move(overlay, away)
    overlay.symlink_to(away)
    with pytest.raises(VerificationError) as caught:
        put(pair[0], local=True)
    assert caught.value.codes == ("overlay-folder:build/artifacts",)
