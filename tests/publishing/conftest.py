from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from glasshouse.publishing.artifact import Artifact
from glasshouse.publishing.history import read_history
from glasshouse.publishing.signed import artifact_from_verified
from glasshouse.publishing.store import HISTORY, TEMPLATES
from glasshouse.records.verify import VerifiedRow, verify
from tests.records.factory import Factory, Leg, make_spec

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def reported() -> tuple[Artifact, ...]:
    return tuple(row.artifact for row in read_history(ROOT / HISTORY))


@pytest.fixture(scope="session")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Factory:
    return Factory(tmp_path_factory.mktemp("factory"))


Run = Callable[..., tuple[Path, VerifiedRow]]


@pytest.fixture(scope="session")
def make_run(factory: Factory, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """(bundle folder, verified row) of a run made by the factory: real keys, evidence and chain."""

    def make(legs: dict[int, Leg | None] | None = None, **changes: object) -> tuple[Path, VerifiedRow]:
        run, files = factory.parts(make_spec(**changes), legs)
        folder = tmp_path_factory.mktemp("runs") / run / "bundle"
        folder.parent.mkdir()
        factory.write(folder, run, files)
        return folder, verify(folder, factory.keyring).require()

    return make


@pytest.fixture(scope="session")
def pair(make_run: Run) -> tuple[Path, VerifiedRow]:
    """A good raw-first pair."""
    return make_run({1: Leg(rate=9.8)})


@pytest.fixture(scope="session")
def abba(make_run: Run) -> tuple[Path, VerifiedRow]:
    """A good abba run of eight blocks."""
    return make_run(order="abba", duration=40.0)


@pytest.fixture(scope="session")
def signed(pair: tuple[Path, VerifiedRow]) -> Artifact:
    return artifact_from_verified(pair[1])


@pytest.fixture
def root(tmp_path: Path, factory: Factory) -> Path:
    """A publication of the reported rows alone, with the factory's keys as its committed keyring."""
    from glasshouse.canonical import canonical_json

    for folder in ("site/research/artifacts", str(HISTORY), str(TEMPLATES)):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for path in (tmp_path / "site/research/artifacts").glob("*.json"):
        if b'"evidenceTier":"reported"' not in path.read_bytes():
            path.unlink()
    ring = tmp_path / "conf/trust/keyring.json"
    ring.parent.mkdir(parents=True)
    ring.write_bytes(canonical_json({"keys": [entry.as_json() for entry in factory.keyring.entries]}))
    return tmp_path
