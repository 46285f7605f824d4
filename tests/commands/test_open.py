"""`glasshouse open`: what protected legs sealed for the owner, as files of theirs alone."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from glasshouse.canonical import canonical_json
from tests.commands.kit import Call


def test_open_writes_private_safetensors_that_match_the_events(some_run: Path, call: Call) -> None:
    code, out, _ = call("open", "20260102", "--to", "adapters", "--json")
    assert code == 0
    files = {Path(item["path"]).name: item for item in json.loads(out)["files"]}
    assert set(files) == {"s001-1.safetensors", "s001-1-logs_trainer.log"}
    assert files["s001-1.safetensors"]["matchesEvents"]
    path = Path("adapters/s001-1.safetensors")
    assert path.stat().st_mode & 0o077 == 0
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    assert size % 8 == 0
    assert header["layer.weight"] == {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    assert struct.unpack("<4f", body[:16]) == (1, 2, 3, 4)
    start, end = header["flag"]["data_offsets"]
    assert body[start:end] == b"\x07"
    assert Path("adapters/s001-1-logs_trainer.log").read_bytes() == b"said\n"
    assert some_run.exists()


def test_open_says_where_it_cannot_write_and_whose_key_it_lacks(
    some_run: Path, call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    Path("file").touch()
    code, _, err = call("open", "20260102", "--to", "file")
    assert code == 2
    assert "(to=file): give a place that can be written" in err
    monkeypatch.setenv("GLASSHOUSE_HOME", str(tmp_path_factory.mktemp("another")))
    code, _, err = call("open", "20260102", "--to", "adapters")
    assert code == 1
    assert "sealed for another owner's key than this machine's" in err
    assert "GLASSHOUSE_HOME of then" in err
    assert not Path("adapters").exists()
    assert some_run.exists()


def test_open_refuses_outputs_that_the_events_do_not_name(some_run: Path, call: Call) -> None:
    events = some_run / "bundle" / "legs" / "s001-protected" / "events.jsonl"
    body = {"outputs": {"plaintextSha256": "00" * 32}}
    events.write_bytes(canonical_json({"seq": 0, "type": "zeroized", "body": body}) + b"\n")
    code, _, err = call("open", "20260102")
    assert code == 1
    assert "manifest-hash-mismatch" in err


def test_open_leaves_nothing_of_outputs_that_were_altered(some_run: Path, call: Call) -> None:
    sealed = next((some_run / "outputs").glob("*-outputs.sealed"))
    data = bytearray(sealed.read_bytes())
    data[-1] ^= 1
    sealed.write_bytes(data)
    code, _, err = call("open", "20260102", "--to", "adapters")
    assert code == 1
    assert "chunk-authentication-failed" in err
    assert not list(Path("adapters").glob("*outputs*"))
    assert not list(Path("adapters").glob("*.safetensors"))
    assert not list(Path("adapters").glob(".*"))
