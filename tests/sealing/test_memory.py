"""Memory that may hold plaintext is overwritten whole, on one core or on several."""

from __future__ import annotations

import mmap
import subprocess
import sys
import threading

import pytest

from glasshouse.sealing import memory
from glasshouse.sealing.memory import give_back, overwrite, private_region

PART = 4096


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1, 5 * PART + 17])
def test_all_of_a_buffer_is_overwritten_and_nothing_beside_it(
    monkeypatch: pytest.MonkeyPatch, threads: int, size: int
) -> None:
    monkeypatch.setattr(memory, "_PART", PART)
    around = bytearray(b"\xa5" * (size + 64))
    assert overwrite(memoryview(around)[32 : 32 + size], threads)
    assert around == b"\xa5" * 32 + bytes(size) + b"\xa5" * 32


def test_where_no_thread_is_to_be_had_the_caller_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(memory, "_PART", PART)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    buffer = bytearray(b"\xa5" * (3 * PART))
    assert overwrite(buffer, threads=2)
    assert not any(buffer)


def test_what_is_given_back_reads_as_zeros_and_nothing_beside_it_does() -> None:
    page = mmap.PAGESIZE
    region = private_region(4 * page)
    plain = memoryview(region)
    plain[:] = b"\xa5" * len(region)
    assert give_back(plain[page : 2 * page + 7])
    assert plain[:page] == b"\xa5" * page
    assert plain[page : 2 * page + 7] == bytes(page + 7)
    assert plain[3 * page :] == b"\xa5" * page


GIVE_BACK = """
import mmap
from pathlib import Path
from glasshouse.sealing.memory import give_back, overwrite, private_region
SIZE = 256 << 20
region = private_region(SIZE)
plain = memoryview(region)
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
before = resident()
for start in range(0, SIZE, 1 << 20):
    plain[start : start + (1 << 20)] = b"x" * (1 << 20)
full = resident()
assert give_back(plain)
given = resident()
assert overwrite(region)
print(full - before, given - before, resident() - before)
"""


def test_memory_that_was_given_back_is_not_taken_again_by_the_wipe() -> None:
    done = subprocess.run([sys.executable, "-c", GIVE_BACK], capture_output=True, text=True, check=True)
    full, given, wiped = map(int, done.stdout.split())
    assert full > 200 << 20
    assert given < 16 << 20
    assert wiped < 16 << 20
