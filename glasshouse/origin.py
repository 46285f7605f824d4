"""From which commit this program comes: asked of git in a source tree, written down in a wheel (setup.py)."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from glasshouse.paths import PACKAGE_DATA, Workspace

COMMIT_FILE = "commit"
UNKNOWN = "unknown"
# What makes the program, or its wheel; a file more there is a change, also one that git is told to ignore.
PARTS = (
    "glasshouse",
    "conf",
    "templates",
    "site",
    *("mkdocs.yml", "setup.py", "pyproject.toml", "MANIFEST.in"),
)
_STATUS = (
    "status",
    "--porcelain",
    "--ignored",
    "--untracked-files=all",
    "--",
    *PARTS,
    ":(exclude,glob)**/__pycache__/**",
)
_COMMIT = re.compile(r"[0-9a-f]{40,64}(?: with changes)?\Z")


def commit() -> str:
    """The commit's hash, followed by "with changes" where the tree holds more or else; else "unknown"."""
    workspace = Workspace.find()
    if workspace.source:
        return of_tree(workspace.root)
    try:
        noted = (PACKAGE_DATA / COMMIT_FILE).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return UNKNOWN
    return noted if _COMMIT.match(noted) else UNKNOWN


def of_tree(root: Path) -> str:
    """Ask git about the source tree at `root`, which must be the top of its repository."""
    try:
        if not (root / ".git").exists():
            return UNKNOWN
        name = _git(root, "rev-parse", "HEAD")
        changed = _git(root, *_STATUS)
    except (OSError, subprocess.SubprocessError):
        return UNKNOWN
    found = f"{name} with changes" if changed else name
    return found if _COMMIT.match(found) else UNKNOWN


def _git(root: Path, *words: str) -> str:
    # A GIT_DIR or GIT_INDEX_FILE, as git hooks set them, would have it answer for another tree.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(
        ["git", "-C", str(root), *words],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
        env=environment,
    )
    return done.stdout.strip()
