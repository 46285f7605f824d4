"""`glasshouse ledger`: which log is compared with what, and what is a mistake of usage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from glasshouse import cli
from glasshouse.canonical import canonical_json
from glasshouse.records import keys
from glasshouse.records.ledger import Ledger

Call = Callable[..., tuple[int, str]]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Run `glasshouse ledger` in an empty folder; exit code and standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str]:
        code = cli.main(("ledger", *words))
        return code, capfd.readouterr().err

    return run


def note(ledger: Ledger, key: Ed25519PrivateKey, name: str) -> str:
    Path(name).write_text(ledger.checkpoint(key))
    return name


def test_a_file_that_is_no_ledger_is_a_mistake_of_usage(call: Call) -> None:
    key, ledger = keys.publisher_key(), Ledger()
    old = note(ledger, key, "old")
    ledger.register_plan("20260101-000000-aaaaaa", lambda serial, now: b"envelope")
    new = note(ledger, key, "new")
    whole = ledger.leaves()[0].data + b"\n"
    for data in (b"{}\n", b"no ledger", whole[:-1], whole + whole):
        Path("leaves").write_bytes(data)
        for words in (["check", old, new], ["list"], ["checkpoint"]):
            code, err = call(*words, "--leaves", "leaves")
            assert code == 2
            assert err.startswith("error: not a ledger file: ")
            assert "(leaves=leaves)" in err
    Path("leaves").write_bytes(whole)
    assert call("check", old, new, "--leaves", "leaves") == (0, "")


def test_checkpoints_are_compared_with_the_entries_of_their_own_log(call: Call, tmp_path: Path) -> None:
    theirs, other = Ed25519PrivateKey.generate(), Ledger(tmp_path / "theirs")
    entry = keys.KeyEntry(keys.keyid(keys.public_bytes(theirs)), "publisher", keys.public_bytes(theirs), "x")
    own = note(Ledger(), keys.publisher_key(), "own")
    ring = keys.local_keyring() + keys.Keyring((entry,))
    Path("ring.json").write_bytes(canonical_json({"keys": [item.as_json() for item in ring.entries]}))
    old = note(other, theirs, "old")
    other.register_plan("20260101-000000-aaaaaa", lambda serial, now: b"envelope")
    new = note(other, theirs, "new")
    code, err = call("check", own, new, "--keys", "ring.json")
    assert code == 2
    assert "of two logs" in err
    code, err = call("check", old, new, "--keys", "ring.json")
    assert code == 2
    assert "another machine's log" in err
    leaves = str(tmp_path / "theirs" / "leaves.jsonl")
    assert call("check", old, new, "--keys", "ring.json", "--leaves", leaves) == (0, "")
