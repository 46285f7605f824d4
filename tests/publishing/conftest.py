from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from glasshouse.canonical import canonical_json, sha256_hex
from glasshouse.paths import Workspace
from glasshouse.publishing.artifact import Artifact
from glasshouse.publishing.from_bundle import artifact_from_verified
from glasshouse.publishing.history import read_history
from glasshouse.publishing.publication_files import HISTORY, LEDGER, TEMPLATES
from glasshouse.publishing.publish import Published, publish, supersede, unpublish
from glasshouse.records.keys import Keyring, public_bytes
from glasshouse.records.ledger import Ledger, log_key
from glasshouse.records.verify import VerifiedRow, verify
from tests.records.factory import Factory, Leg
from tests.specs import make_spec

ROOT = Path(__file__).parents[2]
LATE = 2_000_000_000.0  # after everything that factories enter


@pytest.fixture(scope="session")
def reported() -> tuple[Artifact, ...]:
    return tuple(row.artifact for row in read_history(ROOT / HISTORY))


@pytest.fixture(scope="session")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Factory:
    return Factory(tmp_path_factory.mktemp("factory"))


def enter(factory: Factory, folder: Path, run: str, files: Mapping[str, bytes]) -> None:
    """Write a bundle and resolve its plan in the ledger, as a finished run does."""
    judgement = factory.write(folder, run, files)
    factory.ledger.append_row(
        run=run,
        row=judgement.row,
        status=judgement.status,
        record_sha256=sha256_hex((folder / "record.json").read_bytes()),
        bundle_sha256=sha256_hex((folder / "bundle.dsse.json").read_bytes()),
    )


Log = Callable[[], Ledger]


@pytest.fixture
def log(factory: Factory, tmp_path_factory: pytest.TempPathFactory) -> Log:
    """The factory's ledger as it stands at the first call, for this test alone."""

    @functools.cache
    def ledger() -> Ledger:
        folder = tmp_path_factory.mktemp("log") / "ledger"
        shutil.copytree(factory.folder / "ledger", folder)
        return Ledger(folder)

    return ledger


@pytest.fixture
def put(root: Path, factory: Factory, log: Log) -> Callable[..., Published]:
    """`publish` into the test's publication, with the factory's keys and this test's ledger."""

    def call(*folders: Path, **changes: Any) -> Published:
        values: dict[str, Any] = {"keyring": factory.keyring, "ledger": log(), "key": factory.publisher}
        values |= {"workspace": Workspace.of_source(root), "known_secrets": ()}
        return publish(folders, **{**values, **changes})

    return call


@pytest.fixture
def withdraw(root: Path, factory: Factory, log: Log) -> Callable[..., Published]:
    """`unpublish` the same way."""

    def call(row: str, **changes: Any) -> Published:
        values = {"keyring": factory.keyring, "ledger": log(), "key": factory.publisher}
        return unpublish(row, workspace=Workspace.of_source(root), **{**values, **changes})

    return call


Run = Callable[..., tuple[Path, VerifiedRow]]


@pytest.fixture(scope="session")
def make_run(factory: Factory, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """(bundle folder, verified row) of a run made by the factory: real keys, evidence and chain."""

    def make(legs: dict[int, Leg | None] | None = None, **changes: object) -> tuple[Path, VerifiedRow]:
        run, files = factory.parts(make_spec(**changes), legs)
        folder = tmp_path_factory.mktemp("runs") / run / "bundle"
        folder.parent.mkdir()
        enter(factory, folder, run, files)
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
    for folder in ("site/research/artifacts", str(HISTORY), str(TEMPLATES)):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for path in (tmp_path / "site/research/artifacts").glob("*.json"):
        if b'"evidenceTier":"reported"' not in path.read_bytes():
            path.unlink()
    ring = tmp_path / "conf/trust/keyring.json"
    ring.parent.mkdir(parents=True)
    ring.write_bytes(canonical_json({"keys": [entry.as_json() for entry in factory.keyring.entries]}))
    return tmp_path


@dataclass(frozen=True)
class Machine:
    """A machine with keys, a state folder and one finished run, beside others in one repository."""

    root: Path
    factory: Factory
    keyring: Keyring
    ledger: Ledger
    folder: Path
    row: str

    @property
    def key(self) -> str:
        return log_key(public_bytes(self.factory.publisher))

    @property
    def log(self) -> Path:
        return self.root / LEDGER / self.key

    def publish(self, *folders: Path, **changes: Any) -> Published:
        workspace = Workspace.of_source(self.root)
        values: dict[str, Any] = {"workspace": workspace, "keyring": self.keyring, "ledger": self.ledger}
        values |= {"key": self.factory.publisher, "known_secrets": ()}
        return publish(folders or (self.folder,), **{**values, **changes})

    def retract(self, row: str, reason: str, **changes: Any) -> Published:
        workspace = Workspace.of_source(self.root)
        values: dict[str, Any] = {"workspace": workspace, "keyring": self.keyring, "ledger": self.ledger}
        values |= {"key": self.factory.publisher, "reason": reason, "day": "2026-11-21"}
        return unpublish(row, **{**values, **changes})

    def supersede(self, old: str, new: str, reason: str = "it was repeated", **changes: Any) -> Published:
        workspace = Workspace.of_source(self.root)
        values: dict[str, Any] = {"workspace": workspace, "keyring": self.keyring, "ledger": self.ledger}
        values |= {"key": self.factory.publisher, "reason": reason, "day": "2026-11-21"}
        return supersede(old, new, **{**values, **changes})

    def run(self) -> Path:
        """Finish one more run on this machine; its bundle."""
        name, files = self.factory.parts(make_spec())
        folder = self.folder.parents[1] / name / "bundle"
        folder.parent.mkdir()
        enter(self.factory, folder, name, files)
        return folder


Machines = tuple[Machine, Machine]


@pytest.fixture
def machines(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Machines:
    """Two machines whose keys the repository lists. The second one's clock is a little ahead."""
    base = tmp_path_factory.mktemp("machines")
    factories = [Factory(base / name) for name in ("one", "two")]
    entries = [
        dataclasses.replace(entry, label=f"{entry.label} {number}")
        for number, factory in enumerate(factories, start=1)
        for entry in factory.keyring.entries
    ]
    keyring = Keyring(tuple(entries))
    list_keys(root, keyring)
    made = []
    for number, factory in enumerate(factories):
        run, files = factory.parts(make_spec(), {1: Leg(rate=9.8)})
        folder = base / f"runs-{number}" / run / "bundle"
        folder.parent.mkdir(parents=True)
        enter(factory, folder, run, files)
        ledger = Ledger(factory.folder / "ledger", clock=lambda at=LATE + number: at)
        row = str(ledger.leaves()[1].body["row"])
        made.append(Machine(root, factory, keyring, ledger, folder, row))
    return made[0], made[1]


def list_keys(root: Path, keyring: Keyring) -> None:
    document = {"keys": [entry.as_json() for entry in keyring.entries]}
    (root / "conf/trust/keyring.json").write_bytes(canonical_json(document))
