"""A journey for tests: a home with keys of its own, announced or not, and runs that were made there."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from glasshouse.publishing import archive
from glasshouse.publishing.from_bundle import artifact_from_verified
from glasshouse.publishing.journey import Journey, Packed, open_journey, pack_journey
from glasshouse.records import keys
from glasshouse.records.keys import parse_keyring
from glasshouse.records.ledger import Ledger
from glasshouse.records.verify import verify
from tests.publishing.conftest import enter
from tests.records.factory import Factory, Leg
from tests.specs import make_spec


@dataclass
class Away:
    """The borrowed machine."""

    folder: Path
    factory: Factory
    journey: Journey

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def run(self, **changes: object) -> str:
        """Finish one run; its row's id."""
        name, files = self.factory.parts(make_spec(**changes), {1: Leg(rate=9.8)})
        folder = self.runs / name / "bundle"
        folder.parent.mkdir(parents=True)
        enter(self.factory, folder, name, files)
        return artifact_from_verified(verify(folder, self.factory.keyring).require()).id

    def begin(self) -> str:
        """Register a run that never ends; its name."""
        name, _ = self.factory.parts(make_spec())
        return name

    def pack(self, *extra: Path, name: str = "gpu.tar.gz") -> tuple[Path, Packed]:
        out = self.folder / name
        return out, pack_journey(self.home, [self.runs], extra, out)

    def altered(self, change: Callable[[dict[str, bytes]], Mapping[str, bytes] | None]) -> Path:
        """An archive of what was packed, with other contents; `change` may edit the dict or give another."""
        path, _ = self.pack()
        files = archive.read_archive(path.read_bytes())
        files = dict(change(files) or files)
        out = self.folder / "altered.tar.gz"
        out.write_bytes(archive.write_archive(files))
        return out


def leave(
    folder: Path,
    ledger: Ledger,
    operator_log: str,
    monkeypatch: pytest.MonkeyPatch,
    *,
    seconds_later: float = 60,
) -> Away:
    """Announce a journey in `ledger` and go; its runs are planned so much later by the machine's clock."""
    home = folder / "home"
    with monkeypatch.context() as patch:
        patch.setenv("GLASSHOUSE_HOME", str(home))
        signers = keys.operator_key(), keys.broker_key(), keys.publisher_key()
    journey = open_journey(home, seed=7, budget_sec=540, ledger=ledger, operator_log=operator_log)
    factory = Factory(folder / "factory")
    factory.operator, factory.broker_key, factory.publisher = signers
    factory.keyring = parse_keyring((home / "keys" / "keyring.json").read_bytes())
    factory.now = float(int(time.time() + seconds_later))
    factory.ledger = Ledger(home / "state" / "ledger", clock=lambda: factory.now)
    return Away(folder, factory, journey)
