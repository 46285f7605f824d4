"""`glasshouse open --checkpoint`: a checkpoint is held against what its leg signed before it is opened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from glasshouse.canonical import canonical_json, parse_json, sha256_hex
from tests.commands.kit import Call
from tests.lifecycle.checkpoint_kit import Died, died, sealed
from tests.specs import make_spec

JOB = make_spec(order="protected-only", payload="private", duration=None, steps=100)
THREE = [{"a.txt": b"one"}, {"a.txt": b"two"}, {"a.txt": b"three"}]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GLASSHOUSE_HOME", str(tmp_path / "home"))
    return tmp_path


def opened(call: Call, run: Died, *more: str) -> tuple[int, str, str]:
    return call("open", str(run.folder), "--to", str(run.folder / "to"), *more)


def forge(run: Died, folder: Path) -> None:
    """Whoever may write to the run folder seals a file of his own to its owner, and edits the event."""
    context = {"run": run.run, "leg": "s000", "launch": "1", "manifestHash": sha256_hex(run.run.encode())}
    folder.mkdir()
    data, report = sealed(folder, {"a.txt": b"forged"}, {**context, "checkpoint": "3"})
    run.place(3).write_bytes(data)
    events = run.place(3, "events.jsonl")
    *before, last = events.read_bytes().splitlines(keepends=True)
    event = parse_json(last)
    event["body"] |= report
    events.write_bytes(b"".join(before) + canonical_json(event) + b"\n")


def test_one_that_its_leg_did_not_sign_is_not_opened(home: Path, call: Call) -> None:
    run = died(home, JOB, THREE, steps=[20, 40, 60])
    forge(run, home / "forged")
    for more in ((), ("--checkpoint", "3")):
        code, out, err = opened(call, run, *more)
        assert (code, out) == (1, "")
        assert "(code=checkpoint-chain-broken): the newest good one: --checkpoint 2" in err
        assert not (run.folder / "to").exists()
    assert opened(call, run, "--checkpoint", "2")[0] == 0
    assert (run.folder / "to" / "s000-1-checkpoint-2" / "a.txt").read_bytes() == b"two"


def test_one_that_is_good_is_opened_without_a_doubt(home: Path, call: Call) -> None:
    run = died(home, JOB, THREE, steps=[20, 40, 60])
    code, out, _ = opened(call, run, "--json")
    said = json.loads(out)["files"][0]
    assert (code, said["doubts"]) == (0, [])
    assert said["checkpoint"] == {"number": 3, "state": "whole", "steps": 60}


def test_an_older_one_and_one_that_nobody_watched_are_opened_and_said_to_be(home: Path, call: Call) -> None:
    run = died(home, JOB, THREE, steps=[20, 40, 60], every=300.0)
    run.drop(3)
    code, out, _ = opened(call, run)
    assert code == 0
    assert "checkpoint-unwitnessed: no controller watched when it was made" in out
    assert "checkpoint-older: number 3 was countersigned after it" in out


def test_one_of_a_run_that_goes_on_is_opened(home: Path, call: Call) -> None:
    run = died(home, JOB, THREE, steps=[20, 40, 60])
    (run.folder / "bundle").rename(run.folder / "parts")
    (run.folder / "parts" / "bundle.dsse.json").unlink()
    assert opened(call, run)[0] == 0
    assert (run.folder / "to" / "s000-1-checkpoint-3" / "a.txt").read_bytes() == b"three"
