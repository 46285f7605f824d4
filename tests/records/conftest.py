from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from glasshouse.judgement.judge import Judgement
from tests.specs import make_spec

from .factory import Factory


@dataclass(frozen=True)
class Made:
    """A written bundle and what it was written from."""

    folder: Path
    run: str
    files: Mapping[str, bytes]
    judgement: Judgement
    factory: Factory


@pytest.fixture
def factory(tmp_path: Path) -> Factory:
    return Factory(tmp_path)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """One good raw-first pair, with its place in the ledger. Read only: copy it before changing it."""
    place = tmp_path_factory.mktemp("made")
    factory = Factory(place)
    run, files = factory.parts(make_spec())
    files["inclusion.json"] = factory.inclusion(files)
    folder = place / "runs" / run / "bundle"
    folder.parent.mkdir(parents=True)
    judgement = factory.write(folder, run, files)
    return Made(folder, run, files, judgement, factory)
