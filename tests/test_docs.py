"""What code and pages refer to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PLACES = ("*.md", "*.yml", "*.toml", "Makefile", "site/*.md", "templates/**/*.j2", "conf/**/*.yaml")
SOURCES = ("glasshouse/**/*.py", "tests/**/*.py", "tools/*", "bench/*", "examples/**/*")
# Documents of the repository: ARCHITECTURE.md, site/method.md. Links between pages are checked by MkDocs.
NAMED = re.compile(r"(?<![\w/])(?:[A-Z]{4,}|(?:site|bench)/[\w/-]+)\.md\b")


@pytest.mark.parametrize("pattern", [*PLACES, *SOURCES])
def test_a_document_that_is_named_exists(pattern: str) -> None:
    paths = [path for path in ROOT.glob(pattern) if path.is_file() and "node_modules" not in path.parts]
    assert paths
    missing = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in paths
        if path.suffix != ".pyc"
        for name in NAMED.findall(path.read_text(encoding="utf-8"))
        if not (ROOT / name).is_file()
    }
    assert missing == set()
