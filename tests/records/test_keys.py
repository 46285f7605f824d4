from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from glasshouse import paths
from glasshouse.canonical import b64u, canonical_json
from glasshouse.errors import GlasshouseError, UsageError, VerificationError
from glasshouse.paths import Workspace
from glasshouse.records import keys
from glasshouse.records.keys import KeyEntry, Keyring, keyid, parse_keyring, public_bytes
from glasshouse.sealing.grant import kem_public_bytes


def entry(**changes: Any) -> dict[str, Any]:
    public = bytes(range(32))
    return {
        "keyid": keyid(public),
        "role": "operator",
        "publicKey": b64u(public),
        "label": "someone",
        "validFrom": None,
        "validUntil": None,
        "local": False,
    } | changes


def ring(*entries: dict[str, Any]) -> bytes:
    return canonical_json({"keys": list(entries)})


def test_keys_are_made_once_private_and_listed_as_local() -> None:
    first, again = keys.operator_key(), keys.operator_key()
    assert public_bytes(first) == public_bytes(again)
    assert public_bytes(keys.broker_key()) != public_bytes(first)
    for path in paths.keys_dir().glob("*.pem"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = keys.local_keyring()
    assert {(item.role, item.local) for item in found.entries} == {("operator", True), ("broker", True)}
    listed = found.find(keyid(public_bytes(first)), "operator")
    assert listed.check(first.sign(b"x"), b"x")
    assert not listed.check(first.sign(b"x"), b"y")
    assert listed.name.startswith("local: ")


def test_a_rotated_key_signs_from_its_ledger_entry_on_and_the_old_one_no_longer() -> None:
    old = keys.operator_key()
    path = paths.keys_dir() / "operator.ed25519.pem"
    before = path.read_bytes()
    retired, added = keys.rotate("operator", 7)
    new = keys.operator_key()
    assert (retired.public, added.public) == (public_bytes(old), public_bytes(new))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not any(before in file.read_bytes() for file in paths.keys_dir().iterdir())
    found = keys.local_keyring()
    assert [(item.keyid, item.valid_from, item.valid_until) for item in found.entries] == [
        (retired.keyid, None, 6),
        (added.keyid, 7, None),
    ]
    for name, good, bad in ((retired.keyid, 6, 7), (added.keyid, 7, 6)):
        assert found.find(name, "operator", index=good).keyid == name
        with pytest.raises(VerificationError) as error:
            found.find(name, "operator", index=bad)
        assert error.value.codes == ("signer-retired",)
    keys.operator_key()
    assert keys.local_keyring() == found  # using it lists it no second time, without bounds


def test_before_anything_was_entered_the_old_key_is_listed_no_more() -> None:
    retired, added = keys.rotate("broker", 0)
    assert [item.keyid for item in keys.local_keyring().entries] == [added.keyid]
    assert retired.keyid != added.keyid


@pytest.mark.parametrize("role", ["publisher", "witness"])
def test_other_keys_are_not_rotated(role: keys.Role) -> None:
    with pytest.raises(UsageError, match="not rotated"):
        keys.rotate(role, 1)


def test_owner_key_is_private_and_stays() -> None:
    assert kem_public_bytes(keys.owner_key()) == kem_public_bytes(keys.owner_key())
    assert stat.S_IMODE((paths.keys_dir() / "owner.xwing").stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_can_read_is_refused(mode: int) -> None:
    keys.operator_key()
    (paths.keys_dir() / "operator.ed25519.pem").chmod(mode)
    with pytest.raises(UsageError, match="readable by others"):
        keys.operator_key()
    keys.owner_key()
    (paths.keys_dir() / "owner.xwing").chmod(mode)
    with pytest.raises(GlasshouseError):
        keys.owner_key()


def test_a_link_or_another_kind_of_key_is_refused(tmp_path: Path) -> None:
    path = paths.keys_dir() / "operator.ed25519.pem"
    keys.broker_key()
    path.symlink_to(paths.keys_dir() / "broker.ed25519.pem")
    with pytest.raises(OSError, match="symbolic links"):
        keys.operator_key()
    path.unlink()
    path.write_bytes(b"-----BEGIN NOTHING-----\n")
    path.chmod(0o600)
    with pytest.raises(UsageError, match="not a PEM private key"):
        keys.operator_key()


def test_processes_that_start_together_agree_on_one_key() -> None:
    code = (
        "from glasshouse.records import keys; print(keys.public_bytes(keys.operator_key()).hex());"
        "print(len(keys.local_keyring().entries))"
    )
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ.copy()
        )
        for _ in range(3)
    ]
    said = {job.communicate(timeout=60)[0] for job in jobs}
    assert said == {f"{public_bytes(keys.operator_key()).hex()}\n1\n"}


def test_the_committed_keyring_parses() -> None:
    assert parse_keyring(Workspace.find().keyring.read_bytes()).entries is not None


def test_load_keyring_joins_committed_and_local_or_takes_one_file(tmp_path: Path) -> None:
    keys.operator_key()
    assert any(item.local for item in keys.load_keyring().entries)
    given = tmp_path / "keys.json"
    given.write_bytes(ring(entry()))
    assert [item.label for item in keys.load_keyring(given).entries] == ["someone"]
    with pytest.raises(UsageError):
        keys.load_keyring(tmp_path / "absent.json")


def test_entries_survive_a_round_trip() -> None:
    parsed = parse_keyring(ring(entry(validFrom=2, validUntil=9), entry(role="broker")))
    assert ring(*(item.as_json() for item in parsed.entries)) == ring(
        entry(validFrom=2, validUntil=9), entry(role="broker")
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"keyid": "0" * 64},
        {"role": "owner"},
        {"publicKey": b64u(bytes(31))},
        {"publicKey": b64u(bytes(range(32))) + "="},
        {"label": ""},
        {"label": "x" * 101},
        {"validFrom": -1},
        {"validUntil": True},
        {"validUntil": "3"},
        {"local": 0},
        {"comment": "x"},
    ],
)
def test_malformed_entries_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(VerificationError) as caught:
        parse_keyring(ring(entry(**changes)))
    assert caught.value.codes == ("keyring-malformed",)


@pytest.mark.parametrize(
    "data", [b"[]", b"{}", b'{"keys":{}}', b'{"keys":[1]}', b'{"keys":[],"x":1}', b"\xff"]
)
def test_malformed_keyrings_are_refused(data: bytes) -> None:
    with pytest.raises(VerificationError):
        parse_keyring(data)


def test_one_key_can_have_two_terms_and_two_roles() -> None:
    public = bytes(range(32))

    def item(role: str, low: int | None, high: int | None) -> KeyEntry:
        return KeyEntry(keyid(public), role, public, role, low, high)

    found = Keyring((item("operator", 0, 3), item("operator", 8, None), item("broker", None, None)))
    assert found.find(keyid(public), "operator", index=9).valid_from == 8
    assert found.find(keyid(public), "broker", index=5).role == "broker"
    with pytest.raises(VerificationError, match="index 5"):
        found.find(keyid(public), "operator", index=5)
    assert len(found.with_role("operator", index=2)) == 1
    assert len(found.with_role("operator", index=5)) == 0


def test_joined_keyrings_list_an_entry_once() -> None:
    one = parse_keyring(ring(entry()))
    assert (one + one).entries == one.entries
    assert json.loads(ring(*(item.as_json() for item in (one + Keyring()).entries)))["keys"]


@pytest.mark.parametrize("what", ["zero", "pipe", "large"])
def test_a_keyring_that_is_no_regular_file_or_too_large_is_one_line(what: str, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    if what == "zero":
        path = Path("/dev/zero")
    elif what == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(b" " * (keys.MAX_KEYRING_BYTES + 1))
    with pytest.raises(UsageError, match=r"keyring cannot be read: (not a regular file|larger than)"):
        keys.load_keyring(path)


def test_a_keyring_that_a_link_of_the_users_leads_to_is_read(tmp_path: Path) -> None:
    (tmp_path / "ring").write_bytes(b'{"keys":[]}')
    (tmp_path / "link").symlink_to(tmp_path / "ring")
    assert keys.load_keyring(tmp_path / "link") == keys.Keyring()
