"""`glasshouse open`: what protected legs sealed for the owner, as files of theirs alone."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from glasshouse.canonical import canonical_json, record_json
from glasshouse.records import keys
from glasshouse.runtime.sealer import seal_tree
from glasshouse.sealing.grant import kem_public_bytes
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


def seal_folder(run: Path, folder: Path, then: Callable[[], object] = lambda: None) -> None:
    """Put a sealed folder in the place of the run's outputs; `then` happens once its manifest is fixed."""

    class Out(io.BytesIO):
        def write(self, data: bytes, /) -> int:
            if not self.tell():
                then()
            return super().write(data)

    out = Out()
    report = seal_tree(
        out,
        folder,
        owner_public=kem_public_bytes(keys.owner_key()),
        context={"run": run.name, "leg": "s001", "launch": "1", "manifestHash": "ab" * 32},
        extra={"run.log": b"said\n"},
    )
    (run / "outputs" / "s001-1-outputs.sealed").write_bytes(out.getvalue())
    event = {"seq": 0, "type": "zeroized", "body": {"outputs": record_json(report)}}
    events = run / "bundle" / "legs" / "s001-protected" / "events.jsonl"
    events.write_bytes(canonical_json(event) + b"\n")


def a_folder(place: Path) -> Path:
    (place / "check points" / "größe").mkdir(parents=True)
    (place / "check points" / "größe" / "modell 1.bin").write_bytes(b"weights")
    (place / "latest").symlink_to("check points/größe/modell 1.bin")
    (place / "run.sh").write_bytes(b"#!/bin/sh\n")
    (place / "run.sh").chmod(0o755)
    (place / "empty").mkdir()
    os.mkfifo(place / "queue")
    os.utime(place / "run.sh", (1_000_000_000, 1_000_000_000))
    return place


def test_a_folder_is_written_as_it_was(some_run: Path, call: Call, tmp_path: Path) -> None:
    seal_folder(some_run, a_folder(tmp_path / "out"))
    code, out, _ = call("open", "20260102")
    assert code == 0
    opened = some_run / "opened" / "s001-1"
    assert (opened / "latest").read_bytes() == b"weights"
    assert (opened / "latest").readlink() == Path("check points/größe/modell 1.bin")
    assert (opened / "run.sh").stat().st_mode & 0o777 == 0o700
    assert (opened / "run.sh").stat().st_mtime == 1_000_000_000
    assert (opened / "empty").is_dir()
    assert not (opened / "queue").exists()
    assert (some_run / "opened" / "s001-1-run.log").read_bytes() == b"said\n"
    assert f"{opened.relative_to(tmp_path)}: 2 files, 17 bytes" in out
    assert "left out on the pod: queue: it is a device, a socket or a FIFO" in out
    assert not list(opened.parent.glob("*.safetensors"))


def test_json_says_what_a_folder_has(some_run: Path, call: Call, tmp_path: Path) -> None:
    seal_folder(some_run, a_folder(tmp_path / "out"))
    code, out, _ = call("open", "20260102", "--to", "there", "--json")
    assert code == 0
    (said,) = [item for item in json.loads(out)["files"] if "skipped" in item]
    assert said == {
        "path": "there/s001-1", "leg": "s001", "launch": 1, "bytes": 17, "matchesEvents": True, "files": 2,
        "skipped": [{"path": "queue", "reason": "it is a device, a socket or a FIFO"}], "skippedCount": 1,
        "changed": [], "unwritten": [],
    }  # fmt: skip


def test_opening_twice_keeps_what_is_the_same_and_replaces_nothing(
    some_run: Path, call: Call, tmp_path: Path
) -> None:
    seal_folder(some_run, a_folder(tmp_path / "out"))
    assert call("open", "20260102")[0] == 0
    opened = some_run / "opened" / "s001-1"
    (opened / "my notes").write_bytes(b"mine")
    assert call("open", "20260102")[0] == 0
    (opened / "run.sh").write_bytes(b"mine")
    (opened / "latest").unlink()
    code, _, err = call("open", "20260102")
    assert code == 2
    assert err.count("\n") == 1
    assert f"another file is there already, and stays (file={opened.relative_to(tmp_path)}/run.sh)" in err
    assert "--to" in err
    assert (opened / "run.sh").read_bytes() == b"mine"
    assert not (opened / "latest").is_symlink()  # nothing was written
    assert call("open", "20260102", "--to", "elsewhere")[0] == 0
    assert (opened / "my notes").read_bytes() == b"mine"


def test_what_was_written_to_while_it_was_sealed_is_named(some_run: Path, call: Call, tmp_path: Path) -> None:
    folder = a_folder(tmp_path / "out")
    seal_folder(some_run, folder, then=lambda: (folder / "run.sh").write_bytes(b"#!/bin/no\n"))
    code, out, _ = call("open", "20260102")
    assert code == 0
    assert "written to while it was sealed, look at it: run.sh" in out
    assert (some_run / "opened" / "s001-1" / "latest").read_bytes() == b"weights"


def test_a_disk_that_is_in_the_way_is_said_in_one_line(some_run: Path, call: Call, tmp_path: Path) -> None:
    seal_folder(some_run, a_folder(tmp_path / "out"))
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "s001-1").write_bytes(b"mine")
    code, _, err = call("open", "20260102", "--to", "there")
    assert code == 2
    assert err.count("\n") == 1
    assert "s001-1" in err


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


def test_open_holds_outputs_against_a_leg_that_failed_after_it_sealed_them(
    some_run: Path, call: Call
) -> None:
    events = some_run / "bundle" / "legs" / "s001-protected" / "events.jsonl"
    for digest, code in ((None, 0), ("00" * 32, 1)):
        body = {"plaintextSha256": digest or _plaintext(events)}
        lines = [{"type": "sealed-outputs", "body": body}, {"type": "failed", "body": {"code": "x"}}]
        before = events.read_bytes()
        events.write_bytes(b"".join(canonical_json(line) + b"\n" for line in lines))
        found, out, _ = call("open", "20260102", "--json")
        assert found == code
        files = json.loads(out)["files"] if not code else []
        assert [item["matchesEvents"] for item in files if "safetensors" in item["path"]] == [True] * len(
            files[:1]
        )
        events.write_bytes(before)


def _plaintext(events: Path) -> str:
    lines = [json.loads(line) for line in events.read_bytes().splitlines()]
    return str(lines[-1]["body"]["outputs"]["plaintextSha256"])


def test_open_says_what_finishes_a_run_whose_controller_died(some_run: Path, call: Call) -> None:
    (some_run / "bundle").rename(some_run / "parts")
    code, _, err = call("open", "20260102")
    assert (code, err.count("\n")) == (2, 1)
    assert "the run is not finished (run=20260102)" in err
    assert "`glasshouse reap` fetches what was sealed for you" in err


SMALL = """
import re, resource, sys
from glasshouse import cli
from glasshouse.commands import open as _
has = int(re.search("VmData:\\s+([0-9]+) kB", open("/proc/self/status").read())[1]) << 10
resource.setrlimit(resource.RLIMIT_DATA, (has + (192 << 20),) * 2)
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_folder_of_any_size_is_opened_in_little_memory(some_run: Path, call: Call, tmp_path: Path) -> None:
    """256 MiB come out of a process that may take 192 MiB, threads' stacks counted, beside its program."""
    whole = tmp_path / "out"
    whole.mkdir()
    sizes = {f"{number}.bin": (64 << 20) - number for number in range(4)}
    for name, size in sizes.items():
        with (whole / name).open("wb") as file:
            file.write(name.encode())
            file.truncate(size)  # a hole: sealed, it is bytes like any other
    seal_folder(some_run, whole)
    command = [sys.executable, "-c", SMALL, "open", some_run.name, "--out", str(some_run.parent)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    opened = some_run / "opened" / "s001-1"
    assert {path.name: path.stat().st_size for path in opened.iterdir()} == sizes
    assert all((opened / name).read_bytes().rstrip(b"\0") == name.encode() for name in sizes)


def test_a_folder_that_was_never_made_is_said_to_be_none(some_run: Path, call: Call, tmp_path: Path) -> None:
    seal_folder(some_run, tmp_path / "none")
    code, out, _ = call("open", "20260102")
    assert code == 0
    assert "s001-1: 0 files, 0 bytes\n  the command left no such folder\n" in out
    assert "left out" not in out


def test_one_file_is_one(some_run: Path, call: Call, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_bytes(b"a")
    seal_folder(some_run, tmp_path / "out")
    assert "s001-1: 1 file, 1 bytes" in call("open", "20260102")[1]
