"""`glasshouse publish`, `unpublish` and `supersede`, and `verify` of what they published."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from glasshouse import paths
from glasshouse.commands import publish
from glasshouse.records import keys
from tests.commands.kit import ROOT, Call, served
from tests.publishing.conftest import enter
from tests.records.factory import Factory
from tests.specs import make_spec


def test_publishing_verifies_and_a_published_row_verifies_again(
    repository: tuple[Path, Path], call: Call
) -> None:
    root, folder = repository
    ring = str(root / "conf" / "trust" / "keyring.json")
    code, out, err = call("publish", str(folder), "--json")
    assert (code, err) == (0, "")
    (row,) = json.loads(out)["rows"]
    artifact = root / "site" / "research" / "artifacts" / f"{row}.json"
    assert artifact.is_file()
    assert json.loads(call("publish", str(folder), "--json")[1])["written"] == []
    code, out, _ = call("verify", str(artifact), str(folder), "--keys", ring, "--json")
    assert code == 0
    assert [(item["ok"], item["status"]) for item in json.loads(out)["runs"]] == [(True, "verified")] * 2
    # By another keyring the same row has no known signer.
    others = str(ROOT / "conf" / "trust" / "keyring.json")
    assert call("verify", str(artifact), "--keys", others)[0] == 1
    with served(root / "site") as address:
        url = f"{address}/research/artifacts/{row}.json"
        code, out, _ = call("verify", url, "--keys", ring, "--json")
        assert code == 0, out
        (item,) = json.loads(out)["runs"]
        assert (item["path"], item["ok"]) == (url, True)
        record = root / "site" / "research" / "bundles" / row / "record.json"
        record.write_bytes(record.read_bytes().replace(b"verified", b"verifiee"))
        code, out, _ = call("verify", url, "--keys", ring)
        assert code == 1
        assert "digest-mismatch" in out
        assert "NOT VERIFIED" in out
        code, _, err = call("verify", f"{address}/research/artifacts/none.json")
        assert code == 3
        assert "the site answered 404" in err


def test_a_signer_that_nobody_committed_is_not_published(repository: tuple[Path, Path], call: Call) -> None:
    root, folder = repository
    (root / "conf" / "trust" / "keyring.json").write_bytes(b'{"keys":[]}')
    code, _, err = call("publish", str(folder))
    assert code == 1
    assert "signer-unknown" in err
    assert "glasshouse keys --trust LABEL" in err
    code, _, err = call("publish", "--local", str(folder))
    assert code == 1
    assert err.startswith(f"error: {folder}: ")
    assert "publish it where it was made" in err
    assert not (root / "site").exists()
    assert call("keys", "--trust", "a lab", "--yes")[0] == 0
    ring = keys.parse_keyring((root / "conf" / "trust" / "keyring.json").read_bytes())
    assert sorted(entry.label for entry in ring.entries) == [
        "a lab, broker",
        "a lab, operator",
        "a lab, publisher",
    ]
    assert not any(entry.local for entry in ring.entries)
    before = (root / "conf" / "trust" / "keyring.json").read_bytes()
    assert call("keys", "--trust", "another name", "--yes")[0] == 0
    assert (root / "conf" / "trust" / "keyring.json").read_bytes() == before


def test_unpublish_keeps_the_row_and_says_why(repository: tuple[Path, Path], call: Call) -> None:
    root, folder = repository
    (row,) = json.loads(call("publish", str(folder), "--json")[1])["rows"]
    assert call("unpublish", row)[0] == 2  # no reason
    code, out, _ = call("unpublish", row, "--reason", "the clock was wrong", "--yes")
    assert code == 0
    assert row in out
    kept = json.loads((root / "site" / "research" / "artifacts" / f"{row}.json").read_bytes())
    assert kept["retracted"]["reason"] == "the clock was wrong"
    assert "retracted already" in call("unpublish", row, "--reason", "again", "--yes")[1]
    code, _, err = call("unpublish", "no-such-row", "--reason", "x", "--yes")
    assert code == 2
    assert "site/research/artifacts" in err
    # Whoever publishes or verifies it again is told.
    out = call("publish", str(folder))[1]
    assert f"published {row} as RETRACTED, it counts for nothing: the clock was wrong" in out
    assert json.loads(call("publish", str(folder), "--json")[1])["retracted"] == {row: "the clock was wrong"}
    artifact = root / "site" / "research" / "artifacts" / f"{row}.json"
    code, out, _ = call("verify", str(artifact), "--keys", str(root / "conf" / "trust" / "keyring.json"))
    assert code == 0
    assert "RETRACTED: its evidence verifies, and the row was retracted on " in out
    assert "the clock was wrong" in out


def test_supersede_says_which_row_takes_the_place_of_which(
    repository: tuple[Path, Path], factory: Factory, call: Call
) -> None:
    root, folder = repository
    name, files = factory.parts(make_spec())
    bundle = folder.parent / name / "bundle"
    bundle.parent.mkdir()
    enter(factory, bundle, name, files)
    shutil.copytree(factory.folder / "ledger", paths.state_dir() / "ledger", dirs_exist_ok=True)
    old, new = json.loads(call("publish", str(folder), str(bundle), "--json")[1])["rows"]
    assert call("supersede", old, new)[0] == 2  # no reason
    code, out, _ = call("supersede", old, new, "--reason", "repeated with the clock set", "--yes")
    assert code == 0
    assert out.startswith(f"{old} is superseded by {new}; changed: ")
    assert "already" in call("supersede", old, new, "--reason", "again", "--yes")[1]
    code, _, err = call("supersede", new, old, "--reason", "x", "--yes")
    assert code == 2
    assert f"superseded by {new} itself, in a circle" in err
    artifact = root / "site" / "research" / "artifacts" / f"{old}.json"
    code, out, _ = call("verify", str(artifact), "--keys", str(root / "conf" / "trust" / "keyring.json"))
    assert code == 0
    assert f"; superseded by {new}" in out


@pytest.mark.parametrize("local", [[], ["--local"]])
def test_publishing_names_the_runs_it_withholds(
    local: list[str], repository: tuple[Path, Path], call: Call
) -> None:
    root, folder = repository
    publish.Ledger().register_plan("20260301-000000-zzzzzz", lambda serial, now: b"envelope")
    shutil.copy(
        root / "conf" / "trust" / "keyring.json", paths.keys_dir()
    )  # as the machine that made the run
    code, out, _ = call("publish", str(folder), *local)
    assert code == 0
    assert "withheld: 1 registered runs are not published\n  20260301-000000-zzzzzz" in out


def test_the_history_is_imported_again(repository: tuple[Path, Path], call: Call) -> None:
    root, folder = repository
    shutil.copytree(ROOT / "conf" / "history", root / "conf" / "history")
    code, out, _ = call("publish", "--history", "--json")
    assert code == 0
    document = json.loads(out)
    assert len(document["rows"]) == len(document["written"]) == 26
    assert all((root / path).is_file() for path in document["written"])
    assert "nothing to write" in call("publish", "--history")[1]
    assert call("publish", "--history", str(folder))[0] == 2
    assert call("publish", "--history", "--local")[0] == 2
