"""A small project, its index on the loopback, and an environment that is made once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.install.kit import Index, Project, entry, make_project, serving


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment that holds pip."""
    folder = tmp_path_factory.mktemp("empty") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, capture_output=True, timeout=120)
    return folder


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    """An index on the loopback."""
    with serving(tmp_path / "index") as made:
        yield made


@pytest.fixture
def project(tmp_path: Path, index: Index, empty: Path) -> Project:
    """A project whose lists name what the index has; torch stands there without a hash."""
    made = make_project(tmp_path / "project", index, empty)
    made.lock(
        entry("alpha", "1.0", index.add("alpha", "1.0"), "build")
        + entry("beta", "1.1", index.add("beta", "1.1"), "base")
        + entry("gamma", "1.2", index.add("gamma", "1.2"), "site")
        + entry("delta", "1.3", index.add("delta", "1.3", ["torch"]), "train")
    )
    return made
