"""A matrix product leaves copies of its operands in the library's own buffers; the wipe takes them along."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from glasshouse.runtime.residue import Needle, ScannedProcess

pytestmark = pytest.mark.train

ROOT = Path(__file__).resolve().parents[2]
SIZE, COUNT = 24, 16
# Needles leave straight from the tensor's memory, so that showing them makes no copy.
CHILD = """
import ctypes, os, torch
from glasshouse.runtime.trainer import wipe_tensors
torch.set_num_threads(1)
rows, weight = torch.randn(256, 256), torch.randn(512, 256, requires_grad=True)
torch.nn.functional.linear(rows, weight).square().mean().backward()
view = memoryview((ctypes.c_char * rows.nbytes).from_address(rows.data_ptr())).cast("B")
for row in range({count}):
    os.write(1, view[row * 16384 : row * 16384 + {size}])
os.read(0, 1)
wipe_tensors([rows, weight.detach(), weight.grad])
os.write(1, b"w")
os.read(0, 1)
"""


def test_the_wipe_takes_what_a_matrix_product_packed() -> None:
    command = [sys.executable, "-c", CHILD.format(size=SIZE, count=COUNT)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        said = child.stdout.read(SIZE * COUNT)
        needles = [Needle("rows", bytearray(said[at : at + SIZE])) for at in range(0, len(said), SIZE)]
        place = f"/proc/{child.pid}"
        scanned = ScannedProcess(os.open(f"{place}/mem", os.O_RDONLY), os.open(f"{place}/maps", os.O_RDONLY))
        live = scanned.scan(needles).counts
        child.stdin.write(b"w")
        child.stdin.flush()
        assert child.stdout.read(1) == b"w"
        after = scanned.scan(needles).counts
        scanned.close()
        child.stdin.close()
    assert len(live) == COUNT
    assert min(live) >= 1
    if max(live) == 1:
        pytest.skip("this build of torch keeps no copy of these operands")
    assert after == [0] * COUNT
