"""Labels that tell machines apart, and a keyring that nobody else could have written."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from glasshouse import paths
from glasshouse.cli import main
from glasshouse.errors import UsageError
from glasshouse.paths import Workspace
from glasshouse.records import keys
from glasshouse.records.key_labels import require_label, skeleton
from glasshouse.records.keys import KeyEntry, Keyring, keyid, listed_as, public_bytes


def entry(role: str = "operator") -> KeyEntry:
    public = public_bytes(Ed25519PrivateKey.generate())
    return KeyEntry(keyid(public), role, public, f"{role} of this machine", local=True)


@pytest.mark.parametrize(
    "label",
    [
        "our lab", "Our Lab", "our  lab", " our lab", "our lab ", "our-lab", "ourlab", "0ur lab",
        "our 1ab",
        "our\u00a0lab", "our\u200blab", "\u043eur lab", "our l\u0430b", "\uff4fur lab", "our lab, ",
        "OUR_LAB", "our.lab", "our\u202elab", "", "x" * 81, "our\nlab", "local: our place", "this machine",
        "our l\u00e0b", "o\u057dr lab",
    ],
)  # fmt: skip
def test_a_label_that_reads_like_another_machines_is_refused(label: str) -> None:
    ring = listed_as(Keyring(), [entry(), entry("broker")], "our lab")
    with pytest.raises(UsageError):
        listed_as(ring, [entry()], label)


def test_other_labels_and_those_of_the_same_keys_are_taken() -> None:
    own = [entry(), entry("broker")]
    ring = listed_as(Keyring(), own, "our lab")
    assert listed_as(ring, own, "our lab") == ring  # the same machine again
    for label in ("their lab", "our lab 2", "our lab, 27 November 2026", "our lab, 28 November 2026"):
        ring = listed_as(ring, [entry()], label)
    assert len({skeleton(item.machine) for item in ring.entries}) == 5
    assert all(item.keyid[:16] in item.name for item in ring.entries)


def test_all_labels_of_the_committed_keyring_are_told_apart() -> None:
    ring = keys.committed_keyring(Workspace.find().keyring)
    machines = {item.machine for item in ring.entries}
    assert len(machines) == 7
    for label in machines:
        require_label(label, "trust", machines - {label})


def test_a_keyring_that_others_could_have_written_is_not_read(tmp_path: Path) -> None:
    keys.operator_key()
    path = paths.keys_dir() / "keyring.json"
    for mode in (0o620, 0o602, 0o666):
        path.chmod(mode)
        with pytest.raises(UsageError, match="others can write to the keyring"):
            keys.local_keyring()
    path.chmod(0o600)
    assert keys.local_keyring().entries
    kept = path.read_bytes()
    path.rename(tmp_path / "elsewhere.json")
    path.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(UsageError, match="cannot be read"):
        keys.local_keyring()
    path.unlink()
    committed = tmp_path / "committed.json"
    committed.write_bytes(kept)
    committed.chmod(0o664)
    assert keys.committed_keyring(committed).entries  # a group's checkout
    committed.chmod(0o666)
    with pytest.raises(UsageError, match="others can write"):
        keys.committed_keyring(committed)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a file to another user")
def test_a_keyring_of_another_user_is_not_read(tmp_path: Path) -> None:
    keys.operator_key()
    path = paths.keys_dir() / "keyring.json"
    os.chown(path, 12345, -1)
    with pytest.raises(UsageError, match="belongs to another user"):
        keys.local_keyring()
    os.chown(path, 0, -1)
    os.chown(path.parent, 12345, -1)
    with pytest.raises(UsageError, match="belongs to another user"):
        paths.keys_dir()
    os.chown(path.parent, 0, -1)


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_what_is_private_is_private_under_any_umask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "deep" / "home"
    monkeypatch.setenv("GLASSHOUSE_HOME", str(home))
    os.umask(0)
    assert main(["keys", "--make"]) == 0
    assert os.umask(0) & 0o022 == 0o022  # what the program writes besides, nobody else writes
    os.umask(0)
    keys.owner_key()
    paths.state_dir()
    found = {path: stat.S_IMODE(path.stat().st_mode) for path in (home, home.parent, *home.rglob("*"))}
    assert {path.name: oct(mode) for path, mode in found.items() if mode & 0o077} == {}


def test_a_folder_for_keys_that_others_write_to_is_refused() -> None:
    folder = paths.keys_dir()
    folder.chmod(0o777)
    with pytest.raises(UsageError, match="can be written to by others"):
        paths.keys_dir()
    folder.chmod(0o700)
