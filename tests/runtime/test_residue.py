"""The memory search, on a real process and on windows cut anywhere."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from glasshouse.runtime import residue
from glasshouse.runtime.residue import Needle, ScannedProcess

# A process that holds `needle` (hex, as arguments) at given offsets of one large private mapping.
HOLDER = """
import mmap, sys
region = mmap.mmap(-1, 9 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
reversed_needle = sys.argv[1]
needle = bytes.fromhex(reversed_needle)[::-1]
for offset in sys.argv[2:]:
    region[int(offset) : int(offset) + len(needle)] = needle
del needle
import gc; gc.collect()
print("ready", flush=True)
sys.stdin.readline()
region[:] = bytes(len(region))
print("wiped", flush=True)
sys.stdin.readline()
"""


def test_a_process_is_searched_across_chunk_borders_and_after_a_wipe() -> None:
    needle = secrets.token_bytes(24)
    # Somewhere, and straddling every possible border of chunks of that size.
    offsets = [100, *(residue.CHUNK - 24 + 4096 * step for step in range(1, 3)), residue.CHUNK - 12]
    holder = subprocess.Popen(
        [sys.executable, "-I", "-c", HOLDER, needle[::-1].hex(), *map(str, offsets)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"ready\n"
        opened = [os.open(f"/proc/{holder.pid}/{name}", os.O_RDONLY) for name in ("mem", "maps")]
        scanned = ScannedProcess(*opened)
        needles = [Needle("held", bytearray(needle)), Needle("absent", bytearray(secrets.token_bytes(8)))]
        live = scanned.scan(needles)
        assert live.counts[0] >= len(offsets)
        assert live.counts[1] == 0
        assert live.bytes_read > 9 << 20
        holder.stdin.write(b"\n")
        holder.stdin.flush()
        assert holder.stdout.readline() == b"wiped\n"
        # What is left may only be the interpreter's own copy, never one of those in the mapping.
        assert scanned.scan(needles).counts[0] <= live.counts[0] - len(offsets)
        scanned.close()
    finally:
        holder.stdin.close()
        holder.wait(10)
        holder.stdout.close()


@given(st.lists(st.sampled_from(b"ab"), min_size=1, max_size=40), st.integers(1, 5), st.data())
def test_counts_are_those_of_a_plain_search(letters: list[int], size: int, data: st.DataObject) -> None:
    """Every occurrence counts once, overlapping ones too, however the memory is cut into windows."""
    whole = bytes(letters)
    needle = bytearray(data.draw(st.lists(st.sampled_from(b"ab"), min_size=size, max_size=size)))
    expected = sum(whole.startswith(needle, at) for at in range(len(whole)))
    cut = data.draw(st.integers(0, len(whole)))
    carried = min(cut, size - 1)
    found = residue._count(whole[:cut], needle, 0)
    found += residue._count(whole[cut - carried :], needle, carried)
    assert found == expected
