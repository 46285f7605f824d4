"""A key that a log retired signs nothing from there on, whatever conf/trust says later."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from glasshouse.errors import VerificationError
from glasshouse.paths import Workspace
from glasshouse.publishing.publication_files import ARTIFACTS, read_publication
from glasshouse.publishing.verify_artifact import check_artifact
from glasshouse.records.keys import KeyEntry, Keyring, keyid, public_bytes
from glasshouse.records.leaf_bodies import KeyBody
from glasshouse.records.verify import verify

from .conftest import Machine, Machines, list_keys


@dataclasses.dataclass(frozen=True)
class Rotated:
    """A machine that rotated its operator's key between two runs: `late` was planned by the old one."""

    machine: Machine
    late: Path
    stale: Keyring  # trusts the old key for good, and the new one
    retired: str
    thief: Ed25519PrivateKey


@pytest.fixture
def rotated(machines: Machines) -> Rotated:
    machine, _ = machines
    factory = machine.factory
    old = keyid(public_bytes(factory.operator))
    thief = factory.operator
    end = len(machine.ledger.leaves())
    factory.operator = Ed25519PrivateKey.generate()
    new = public_bytes(factory.operator)
    machine.ledger.append(KeyBody(old, "operator", "retired"))
    machine.ledger.append(KeyBody(keyid(new), "operator", "added"))
    entry = KeyEntry(keyid(new), "operator", new, "test operator 1", end)
    stale = machine.keyring + Keyring((entry,))
    factory.keyring = stale
    machine = dataclasses.replace(machine, keyring=stale.without({(old, "operator"): end}))
    list_keys(machine.root, machine.keyring)
    new_key, factory.operator = factory.operator, thief
    late = machine.run()
    factory.operator = new_key
    return Rotated(machine, late, stale, old, thief)


def codes_of(root: Path) -> tuple[str, ...]:
    with pytest.raises(VerificationError) as caught:
        read_publication(Workspace.of_source(root))
    return caught.value.codes


def test_rows_of_both_keys_are_published_each_in_its_time(rotated: Rotated) -> None:
    machine = rotated.machine
    machine.publish()
    machine.publish(machine.run())
    read_publication(Workspace.of_source(machine.root))


def test_a_plan_signed_after_its_keys_retirement_is_refused(rotated: Rotated) -> None:
    machine = rotated.machine
    with pytest.raises(VerificationError) as caught:
        machine.publish(rotated.late)
    assert "plan-signature" in caught.value.codes
    # Who has only an older keyring learns of the retirement from the log beside the row.
    assert verify(rotated.late, rotated.stale).ok


def test_conf_trust_cannot_bring_a_retired_key_back(rotated: Rotated) -> None:
    machine, root = rotated.machine, rotated.machine.root
    machine.publish()
    list_keys(root, rotated.stale)
    assert codes_of(root) == (f"ledger-key-trusted:{rotated.retired[:16]}",)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    with pytest.raises(VerificationError) as caught:
        machine.publish(rotated.late, keyring=rotated.stale)
    assert caught.value.codes == (f"ledger-key-trusted:{rotated.retired[:16]}",)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    # Trusted up to an earlier entry than the log says is no fault.
    list_keys(root, rotated.stale.without({(rotated.retired, "operator"): 1}))
    read_publication(Workspace.of_source(root))


def test_an_older_keyring_learns_of_it_from_the_log_beside_the_row(
    rotated: Rotated, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = rotated.machine
    done = machine.publish()
    path = machine.root / ARTIFACTS / f"{done.rows[0]}.json"
    assert check_artifact(path, rotated.stale).ok  # planned before
    # A publisher whose own program lets the late row through.
    monkeypatch.setattr("glasshouse.publishing.logs.PublishedLogs.still_trusted", lambda *_: [])
    monkeypatch.setattr("glasshouse.publishing.logs.PublishedLogs.keyring_of", lambda self, row, ring: ring)
    late = machine.publish(rotated.late, keyring=rotated.stale).rows[0]
    monkeypatch.undo()
    found = check_artifact(machine.root / ARTIFACTS / f"{late}.json", rotated.stale)
    failed = {check.code: check.detail for check in found.checks if not check.ok}
    assert "signer-retired" in failed["plan-signature"]
    assert f"plan-signature:{late}" in codes_of(machine.root)


def test_a_retired_key_cannot_name_an_entry_of_its_time(
    rotated: Rotated, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = rotated.machine
    machine.publish()
    factory, enter = machine.factory, machine.factory.ledger.register_plan
    monkeypatch.setattr(
        factory.ledger, "register_plan", lambda run, build: enter(run, lambda _, now: build(1, now))
    )
    monkeypatch.setattr(factory, "operator", rotated.thief)
    folder = machine.run()
    checks = {check.code for check in verify(folder, machine.keyring).require().checks}
    assert "signer-retired-since" in checks  # by itself the bundle cannot show more
    with pytest.raises(VerificationError) as caught:
        machine.publish(folder)
    row = verify(folder, machine.keyring).require().id
    assert caught.value.codes == (f"ledger-plan-differs:{row}",)
    # A publisher whose own program lets it through.
    monkeypatch.setattr("glasshouse.publishing.logs.PublishedLogs.moved", lambda *_: False)
    machine.publish(folder)
    monkeypatch.undo()
    found = check_artifact(machine.root / ARTIFACTS / f"{row}.json", machine.keyring)
    assert {check.code for check in found.checks if not check.ok} == {"ledger-plan-differs"}
    assert codes_of(machine.root) == (f"ledger-plan-differs:{row}",)
