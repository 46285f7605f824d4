"""A clone is byte for byte what was committed, also where git is told to convert line ends."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from glasshouse.errors import VerificationError
from glasshouse.paths import Workspace
from glasshouse.publishing.publication_files import read_publication

ROOT = Path(__file__).resolve().parents[1]
CONVERTS = ["-c", "core.autocrlf=true"]  # as Git for Windows installs it


def git(folder: Path, *words: str) -> None:
    subprocess.run(["git", "-C", folder, *CONVERTS, *words], check=True, capture_output=True)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone of the last commit, with the attributes of the working tree."""
    if not (ROOT / ".git").exists():
        pytest.skip("no git repository here")
    folder = tmp_path / "clone"
    git(tmp_path, "clone", "-q", "--no-checkout", f"file://{ROOT}", str(folder))
    (folder / ".git" / "info" / "attributes").write_bytes((ROOT / ".gitattributes").read_bytes())
    git(folder, "checkout", "-q", "HEAD")
    return folder


def test_evidence_verifies_in_a_clone_that_converts_line_ends(clone: Path) -> None:
    publication = read_publication(Workspace.of_source(clone), overlay=False)
    assert sum(row.evidence_tier == "signed" for row in publication.artifacts) >= 7
    converted = subprocess.run(
        ["git", "-C", clone, "grep", "-I", "-l", "-e", "\r$"], capture_output=True, text=True, check=False
    )
    assert converted.stdout == ""


def test_without_the_attributes_honest_evidence_would_look_tampered_with(clone: Path) -> None:
    (clone / ".git" / "info" / "attributes").unlink()
    (clone / ".gitattributes").unlink(missing_ok=True)
    git(clone, "rm", "-q", "--cached", "--ignore-unmatch", ".gitattributes")
    for path in (clone / "site" / "research" / "bundles").rglob("events.jsonl"):
        path.unlink()
    git(clone, "checkout", "--", "site/research/bundles")
    with pytest.raises(VerificationError, match="digest-mismatch"):
        read_publication(Workspace.of_source(clone), overlay=False)
