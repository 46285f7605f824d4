"""`glasshouse keys` and `ledger`."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

from glasshouse import paths
from glasshouse.paths import Workspace
from glasshouse.records import keys, ledger
from tests.commands.kit import ROOT, Call, python


def test_ledger_check_passes_growth_and_catches_a_removed_leaf(call: Call, elsewhere: Path) -> None:
    log = ledger.Ledger()
    log.register_plan("20260101-000000-aaaaaa", lambda serial, now: b"envelope")
    Path("old").write_text(call("ledger", "checkpoint")[1])
    log.register_plan("20260102-000000-bbbbbb", lambda serial, now: b"envelope")
    Path("new").write_text(call("ledger", "checkpoint")[1])
    code, out, _ = call("ledger", "check", "old", "new", "--json")
    assert code == 0
    assert (json.loads(out)["oldSize"], json.loads(out)["newSize"]) == (1, 2)
    assert call("ledger", "check", "new", "old")[0] == 1
    listed = json.loads(call("ledger", "list", "--json")[1])
    assert [leaf["run"] for leaf in listed["leaves"]] == ["20260101-000000-aaaaaa", "20260102-000000-bbbbbb"]
    assert listed["openPlans"] == [0, 1]
    assert "open: no row yet" in call("ledger")[1]

    lines = (paths.state_dir() / "ledger" / "leaves.jsonl").read_bytes().splitlines()
    Path("shorter").write_bytes(lines[0] + b"\n")
    code, _, err = call("ledger", "check", "old", "new", "--leaves", "shorter")
    assert code == 1
    assert "ledger-shrunk" in err
    Path("altered").write_bytes(lines[0] + b"\n" + lines[1].replace(b"bbbbbb", b"cccccc") + b"\n")
    code, _, err = call("ledger", "check", "old", "new", "--leaves", "altered")
    assert code == 1
    assert "ledger-rewritten" in err
    # Another machine's keyring does not list this log's signer.
    Path("ring.json").write_text('{"keys":[]}')
    code, _, err = call("ledger", "check", "old", "new", "--keys", "ring.json")
    assert code == 1
    assert "signer-unknown" in err
    assert elsewhere.exists()


def test_keys_are_made_once_and_list_only_public_halves(call: Call) -> None:
    assert "no keys yet" in call("keys")[1] or Workspace.find().keyring.exists()
    first = call("keys", "--make", "--json")[1]
    assert first == call("keys", "--make", "--json")[1]
    own = [entry for entry in json.loads(first)["keys"] if entry["local"]]
    assert {entry["role"] for entry in own} == {"operator", "broker", "publisher"}
    ring = keys.parse_keyring(first.encode())  # what is printed is a keyring file
    assert {entry.keyid for entry in ring.entries} >= {entry["keyid"] for entry in own}
    secrets = [path.read_bytes() for path in paths.keys_dir().glob("*.pem")]
    assert secrets
    assert all(secret.split(b"\n")[1] not in first.encode() for secret in secrets)


def test_a_rotated_key_is_retired_here_and_in_the_committed_keyring(elsewhere: Path) -> None:
    # In a checkout of its own: what it writes there is committed with it.
    for name in ("glasshouse", "conf"):
        shutil.copytree(ROOT / name, elsewhere / name, ignore=shutil.ignore_patterns("__pycache__", "trust"))
    shutil.copy(ROOT / "pyproject.toml", elsewhere)

    def run(*words: str) -> str:
        done = python("-m", "glasshouse", *words, cwd=elsewhere)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("keys", "--trust", "lab", "--yes")
    old = keys.local_keyring().with_role("broker")[0]
    ledger.Ledger().register_plan("20260101-000000-aaaaaa", lambda serial, now: b"envelope")
    run("keys", "--rotate", "broker")
    committed = keys.parse_keyring((elsewhere / "conf/trust/keyring.json").read_bytes())
    for ring in (keys.local_keyring(), committed):
        found = [(item.keyid, item.valid_from, item.valid_until) for item in ring.with_role("broker")]
        new = keys.keyid(keys.public_bytes(keys.broker_key()))
        assert found == [(old.keyid, None, 0), (new, 1, None)]
        assert len(ring.entries) == 4
    labels = {item.label for item in committed.with_role("broker")}
    assert labels == {"lab, broker"}
    assert not any(item.local for item in committed.entries)
    entered = [leaf.body for leaf in ledger.Ledger().leaves()[1:]]
    assert [(body["keyid"], body["state"]) for body in entered] == [(old.keyid, "retired"), (new, "added")]
    # Listing them again brings no retired key back, nor one whose end was cut out of the file.
    run("keys", "--trust", "lab", "--yes")
    assert keys.committed_keyring(elsewhere / "conf/trust/keyring.json") == committed
    endless = [replace(item, valid_until=None) for item in committed.entries]
    (elsewhere / "conf/trust/keyring.json").write_bytes(keys.Keyring(tuple(endless)).as_bytes())
    run("keys", "--trust", "lab", "--yes")
    assert keys.committed_keyring(elsewhere / "conf/trust/keyring.json") == committed
    (elsewhere / "conf/trust/keyring.json").unlink()
    run("keys", "--trust", "lab", "--yes")
    listed = keys.committed_keyring(elsewhere / "conf/trust/keyring.json")
    assert set(listed.entries) == set(committed.entries)
    shown = run("keys")
    assert "0 to 0" in shown
    assert "1 to now" in shown


def test_a_first_checkpoint_says_that_it_makes_a_key(call: Call) -> None:
    first, second = call("ledger", "checkpoint"), call("ledger", "checkpoint")
    assert (first[:2], second[2]) == (second[:2], "")
    assert first[2] == "making this machine's publisher key; `glasshouse keys` lists it\n"
