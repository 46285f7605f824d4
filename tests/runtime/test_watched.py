"""What the keeper seals for whoever watches: bounded bytes of what is new, and records of one size."""

from __future__ import annotations

import io
import json
import os
import random
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glasshouse.runtime import watched
from glasshouse.runtime.leg import KeptLog
from glasshouse.runtime.noted import Noted
from glasshouse.runtime.ring import Ring
from glasshouse.runtime.session import Session
from glasshouse.runtime.watched import Watch, collect
from glasshouse.sealing.grant import generate_kem_key, kem_public_bytes
from glasshouse.sealing.outputs import seal_outputs


def opened(record: bytes) -> tuple[dict[str, Any], dict[tuple[str, str], bytes]]:
    """A record's head, and its parts by kind and name."""
    assert len(record) <= watched.MAX_BYTES
    assert record.startswith(watched.MAGIC)
    plain = zlib.decompress(record.removeprefix(watched.MAGIC))
    assert len(plain) <= watched.MAX_PLAIN_BYTES
    line, _, rest = plain.partition(b"\n")
    head = json.loads(line)
    parts = {}
    for part in head["parts"]:
        parts[part["kind"], part["name"]] = rest[: part["bytes"]]
        rest = rest[part["bytes"] :]
    assert not rest
    return head, parts


@pytest.mark.parametrize("size", [1, 5, 64])
def test_a_ring_holds_the_end_of_what_was_written(size: int) -> None:
    ring, whole = Ring(size), b""
    assert ring.read(0) == (0, b"")
    for part in (b"a", b"bcd", b"", b"efghijk", bytes(range(200)), b"z"):
        ring.write(part)
        whole += part
        for since in range(len(whole) + 1):
            begin = max(since, len(whole) - size)
            assert ring.read(since) == (begin, whole[begin:])
    assert ring.read(10**9)[1] == whole[-size:]  # a position of another ring's, or one that somebody wrote


def test_a_ring_is_seen_by_a_process_forked_before() -> None:
    ring = Ring(100)
    pid = os.fork()
    if pid == 0:
        ring.write(b"from the child")
        os._exit(0)
    os.waitpid(pid, 0)
    assert ring.read(0) == (0, b"from the child")


@given(st.lists(st.binary(max_size=40)), st.binary(min_size=8, max_size=8))
def test_whatever_lies_in_a_rings_memory_is_read_within_its_bounds(parts: list[bytes], count: bytes) -> None:
    ring = Ring(16)
    for part in parts:
        ring.write(part)
    ring._memory[:8] = count
    begin, data = ring.read(3)
    assert len(data) <= 16
    assert begin >= 0


def test_each_record_has_what_is_new(tmp_path: Path) -> None:
    log, notes = Ring(1000), Ring(1000)
    state = Watch(tmp_path, log, notes, steps=lambda: [3, None])
    metrics = tmp_path / "out" / "metrics.jsonl"
    metrics.parent.mkdir()
    metrics.write_bytes(b'{"loss": 2}\n')
    log.write(b"begin\n  1%\r 50%\r100%\nhalf a l")
    notes.write(b'{"loss": 1}\n{"lo')
    head, parts = opened(collect(state, 12.34))
    assert (head["number"], head["steps"], head["nextCheckpointSec"]) == (1, [3], 12.3)
    assert parts == {
        ("append", "out/metrics.jsonl"): b'{"loss": 2}\n',
        ("log", ""): b"begin\n100%\n",
        ("bar", ""): b"half a l",
        ("notes", ""): b'{"loss": 1}\n',
    }
    with metrics.open("ab") as stream:
        stream.write(b'{"loss": 1}\n')
    log.write(b"ine\n")
    notes.write(b'ss": 0}\n')
    head, parts = opened(collect(state))
    assert head["number"] == 2
    assert parts == {
        ("append", "out/metrics.jsonl"): b'{"loss": 1}\n',
        ("log", ""): b"half a line\n",
        ("notes", ""): b'{"loss": 0}\n',
    }
    assert opened(collect(state))[1] == {}
    metrics.unlink()
    metrics.write_bytes(b"anew\n")
    assert opened(collect(state))[1] == {("append", "out/metrics.jsonl"): b"anew\n"}


def test_what_is_written_anew_comes_by_its_end(tmp_path: Path) -> None:
    state = Watch(tmp_path)
    place = tmp_path / "trainer_state.json"
    place.write_bytes(b"a" * 100_000 + b"end")
    head, parts = opened(collect(state))
    assert parts["tail", "trainer_state.json"] == (b"a" * 100_000 + b"end")[-(24 << 10) :]
    assert head["parts"][0]["to"] == 100_003
    assert opened(collect(state))[1] == {}
    place.write_bytes(b"b" * 50)
    assert opened(collect(state))[1]["tail", "trainer_state.json"] == b"b" * 50


def test_what_the_job_did_not_write_is_not_followed(tmp_path: Path) -> None:
    sent = tmp_path / "data.jsonl"
    sent.write_bytes(b"{}\n")
    os.utime(sent, (1e9, 1e9))
    state = Watch(tmp_path)
    (tmp_path / "weights.safetensors").write_bytes(b"x")
    (tmp_path / "notes.txt").write_bytes(b"x")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "a.jsonl").write_bytes(b"x")
    secret = tmp_path.parent / f"{tmp_path.name}-outside.jsonl"
    secret.write_bytes(b"outside")
    (tmp_path / "link.jsonl").symlink_to(secret)
    (tmp_path / "folder").symlink_to(tmp_path.parent)
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert opened(collect(state))[1] == {}
    with sent.open("ab") as stream:
        stream.write(b"[]\n")
    assert opened(collect(state))[1] == {("append", "data.jsonl"): b"{}\n[]\n"}


def test_a_folder_that_becomes_a_link_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.jsonl").write_bytes(b"outside")
    inode = (outside / "a.jsonl").stat().st_ino
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "in").symlink_to(outside)
    assert watched._bytes_of(tmp_path / "job", "in/a.jsonl", inode, 0, 100) == b""
    assert watched._bytes_of(outside, "a.jsonl", inode, 0, 100) == b"outside"


def test_what_cannot_be_compressed_still_fits_and_comes_in_the_end(tmp_path: Path) -> None:
    noise = random.Random(1)
    state = Watch(tmp_path, Ring(watched.LOG_RING_BYTES), Ring(watched.NOTES_RING_BYTES))
    assert state.log is not None
    assert state.notes is not None
    wanted = {f"{i}.jsonl": noise.randbytes(60_000 + i) for i in range(5)}
    for name, data in wanted.items():
        (tmp_path / name).write_bytes(data)
    state.log.write(noise.randbytes(300_000))
    state.notes.write(b"".join(noise.randbytes(40).hex().encode() + b"\n" for _ in range(700)))
    came = dict.fromkeys(wanted, b"")
    for _ in range(40):
        for (kind, name), data in opened(collect(state))[1].items():
            if kind == "append":
                came[name] += data
    assert came == wanted


def test_a_file_that_runs_away_is_followed_by_its_end(tmp_path: Path) -> None:
    state = Watch(tmp_path)
    (tmp_path / "much.jsonl").write_bytes(b"".join(b"%07d\n" % i for i in range(1_000_000)))
    head, parts = opened(collect(state))
    assert parts["append", "much.jsonl"].endswith(b"0999999\n")
    (part,) = head["parts"]
    assert part["from"] > 7_000_000
    assert part["to"] == part["size"] == 8_000_000


def test_nothing_that_a_job_does_raises(tmp_path: Path) -> None:
    def odd() -> list[int]:
        raise OSError("a board that is gone")

    head, _ = opened(collect(Watch(tmp_path)))
    assert "fault" not in head
    state = Watch(tmp_path / "gone", steps=odd)
    head, parts = opened(collect(state))
    assert (head["fault"], parts) == ("OSError", {})
    deep = tmp_path
    for _ in range(40):
        deep /= "d"
    deep.mkdir(parents=True)
    (deep / "a.jsonl").write_bytes(b"x")
    for i in range(100):
        (tmp_path / f"{i}.jsonl").write_bytes(b"x")
    (tmp_path / os.fsdecode(b"\xff\n\x1b.jsonl")).write_bytes(b"y")
    head, parts = opened(collect(Watch(tmp_path)))
    assert len(parts) == 24
    assert head["more"] == 77
    assert b"y" in parts.values()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.binary(max_size=3000), max_size=8))
def test_the_log_comes_line_by_line_whatever_it_holds(parts: list[bytes]) -> None:
    log = Ring(1 << 16)
    state = Watch(None, log)
    came = b""
    for part in parts:
        log.write(part)
        came += opened(collect(state))[1].get(("log", ""), b"")
    whole = b"".join(parts)
    lines = whole.split(b"\n")[:-1]
    wanted = [line.rstrip(b"\r").rpartition(b"\r")[2] for line in lines]
    got = came.split(b"\n")[:-1]
    assert len(got) == len(wanted)
    # Of a line that comes in several parts its beginning may be gone: what is overwritten, or very long.
    assert all(full.endswith(cut[-1000:]) for cut, full in zip(got, wanted, strict=True))


def test_a_record_tells_nothing_by_its_size(tmp_path: Path) -> None:
    """From nothing to the most that a record can have: the sealed files are equally long."""
    key, sizes = kem_public_bytes(generate_kem_key()), set()
    context = {"run": "r", "leg": "s000", "launch": "1", "manifestHash": "00" * 32, "watch": "1"}
    state = Watch(tmp_path, Ring(1000))
    records = [collect(state), b"", bytes(watched.MAX_BYTES)]
    (tmp_path / "noise.jsonl").write_bytes(random.Random(2).randbytes(500_000))
    records.append(collect(state))
    assert len(records[-1]) > 30_000
    for record in records:
        out = io.BytesIO()
        seal_outputs(out, owner_public=key, context=context, files={"watch": record}, tensors=(), padded=True)
        sizes.add(len(out.getvalue()))
    assert len(sizes) == 1


class Counted:
    """A session that trains nothing, with what `Noted` looks at."""

    steps_per_unit = 4
    info: ClassVar = {"tokensPerUnit": 100}

    def __init__(self) -> None:
        self.optimizer = SimpleNamespace(param_groups=[{"lr": 0.5}])
        self.losses = iter([3.0, float("nan"), 1.0])

    def run_unit(self) -> None: ...

    def run_steps(self, count: int) -> None: ...

    def synchronize(self) -> None: ...

    def loss(self) -> float:
        return next(self.losses)


def test_a_session_notes_how_it_stands_and_how_it_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("glasshouse.runtime.noted.time.monotonic", lambda: now[0])
    notes = Ring(1000)
    session: Any = Noted(cast(Session, Counted()), notes, 14)
    session.synchronize()
    for _ in range(3):
        now[0] += 1.5
        session.run_unit()
    session.run_steps(2)
    session.synchronize()
    session.synchronize()  # once is enough
    said = [json.loads(line) for line in notes.read(0)[1].splitlines()]
    assert [(each["step"], each["loss"]) for each in said] == [(8, 3.0), (14, None)]
    assert said[0] == {
        "step": 8, "loss": 3.0, "learning_rate": 0.5, "tokens_per_sec": 66.7, "total_steps": 14,
    }  # fmt: skip


def test_a_log_goes_into_the_ring_as_it_is_kept() -> None:
    log = KeptLog(head=4, tail=4)
    log.ring = Ring(100)
    for part in (b"what was ", b"printed\n"):
        log.feed(part)
    assert log.ring.read(0) == (0, b"what was printed\n")
