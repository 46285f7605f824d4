"""A thousand needles of all kinds, wherever memory lies: each is found, as often as one by one."""

from __future__ import annotations

import os
import random
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from glasshouse.runtime import residue
from glasshouse.runtime.channel import Channel
from glasshouse.runtime.residue import Needle, ScannedProcess
from glasshouse.runtime.search import CHUNK
from tests.runtime.held import SIZE
from tests.runtime.reference_search import ReferenceSearch

ROOT = Path(__file__).resolve().parents[2]
PAGE = os.sysconf("SC_PAGESIZE")
COUNT = 1000
GAP = 96  # between needles, more than the longest
PART = CHUNK + 3 * PAGE  # so that parts end elsewhere than chunks do


def _floats(size: int, draw: random.Random) -> bytes:
    return b"".join(struct.pack("f", draw.gauss(0, 0.02)) for _ in range(size // 4 + 2))


def _halves(size: int, draw: random.Random) -> bytes:
    return b"".join(struct.pack("f", draw.gauss(0, 0.02))[2:] for _ in range(size // 2 + 2))


def _numbers(size: int, draw: random.Random) -> bytes:
    return b"".join(struct.pack("q", draw.randrange(1 << 22)) for _ in range(size // 8 + 2))


# What a leg takes needles from: keys and markers, weights, batches; of tensors at any byte of a number.
KINDS: dict[str, Callable[[random.Random], bytes]] = {
    "key": lambda draw: draw.randbytes(8),
    "marker": lambda draw: draw.randbytes(32),
    "trace": lambda draw: draw.randbytes(24),
    "float32": lambda draw: _floats(24, draw)[draw.randrange(4) :][:24],
    "bfloat16": lambda draw: _halves(24, draw)[draw.randrange(2) :][:24],
    "int64": lambda draw: _numbers(24, draw)[draw.randrange(8) :][:24],
    "zeros before": lambda draw: bytes(draw.randrange(1, 16)) + draw.randbytes(8),
    "zeros after": lambda draw: draw.randbytes(8) + bytes(draw.randrange(1, 16)),
    "other lengths": lambda draw: draw.randbytes(draw.randrange(7, 80)),
}
PLACES = ("anonymous", "read-only", "file", "file, not written to", "shared", "heap", "stack", "one page")


def _offsets(place: str, sizes: list[int], draw: random.Random) -> list[int]:
    """Where needles of these sizes go: at borders and ends first, the rest at any byte, none upon another."""
    space = {"stack": 3 * PAGE, "one page": PAGE}.get(place, SIZE)
    first, last = 0, space - sizes[-1]
    taken = [(first, sizes[0]), (last, sizes[-1])]
    found = [first]
    borders = [
        border
        for step in (CHUNK, PART, 16 * PAGE)
        for border in range(step, space, step)
        if border < space - GAP
    ]
    for size in sizes[1:-1]:
        while True:
            at = borders.pop(0) - draw.randrange(size + 1) if borders else draw.randrange(space - GAP)
            if all(at + size <= start or start + length <= at for start, length in taken):
                break
        taken.append((at, size))
        found.append(at)
    return [*found, last]


def test_each_of_a_thousand_needles_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(16)
    kinds = [list(KINDS)[index % len(KINDS)] for index in range(COUNT)]
    needles = [Needle(kind, bytearray(KINDS[kind](draw))) for kind in kinds]
    assert len({bytes(needle.data) for needle in needles}) == COUNT
    shares = {"heap": 240, "stack": 30, "one page": 10}
    others = [place for place in PLACES if place not in shares]
    each = (COUNT - sum(shares.values())) // len(others)
    places = [place for place in PLACES for _ in range(shares.get(place, each))]
    draw.shuffle(places)
    put = []
    content = bytearray(os.urandom(2 * SIZE))
    for place in PLACES:
        mine = [needle for needle, where in zip(needles, places, strict=True) if where == place]
        if place == "heap":  # blocks of every size; a needle at any place in them
            at = [draw.randrange(4000) if draw.randrange(2) else draw.randrange(64) for _ in mine]
        else:
            at = _offsets(place, [len(needle.data) for needle in mine], draw)
        put += [(place, offset, needle) for offset, needle in zip(at, mine, strict=True)]
    for place, offset, needle in put:
        if place == "file, not written to":
            content[offset : offset + len(needle.data)] = needle.data
    file = tmp_path / "mapped"
    file.write_bytes(content)

    here, there = socket.socketpair()
    command = [sys.executable, "-m", "tests.runtime.held", str(there.fileno()), str(file)]
    with subprocess.Popen(command, cwd=ROOT, pass_fds=[there.fileno()]) as child:
        there.close()
        channel = Channel(here)
        channel.expect("done", 60)
        for place, offset, needle in put:
            if place != "file, not written to":
                channel.send("put", {"place": place, "at": offset}, raw=needle.data)
                channel.expect("done", 60)
        channel.send("close")
        channel.expect("done", 60)

        process = f"/proc/{child.pid}"
        descriptors = [os.open(f"{process}/{name}", os.O_RDONLY) for name in ("mem", "maps")]
        scanned = ScannedProcess(*descriptors, part=PART)
        found = scanned.scan(needles)
        with monkeypatch.context() as patched:
            patched.setattr(residue, "Search", ReferenceSearch)
            plain = scanned.scan(needles[::4])  # of every kind
        channel.send("wipe")
        channel.expect("done", 60)
        after = scanned.scan(needles)
        scanned.close()
        channel.close()
    counts = {bytes(needle.data): count for needle, count in zip(needles, found.counts, strict=True)}
    assert [(place, at, needle.klass) for place, at, needle in put if not counts[bytes(needle.data)]] == []
    assert found.counts[::4] == plain.counts
    assert (found.bytes_read, found.unreadable_regions) == (plain.bytes_read, plain.unreadable_regions)
    assert after.counts == [0] * COUNT
