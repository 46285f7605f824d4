"""A matrix product leaves copies of its operands in the library's own buffers; the wipe takes them along.

Where they lie depends on the processor: MKL maps them, or takes them from the heap of the thread that packs.
So what it does on other processors is tried, too, as far as this one can run it.
"""

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
KERNELS = {
    "this processor's": {},
    "AVX-512": {"MKL_ENABLE_INSTRUCTIONS": "AVX512", "ATEN_CPU_CAPABILITY": "avx512"},
    "AVX2": {
        "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2",
    },
    "SSE": {
        "MKL_CBWR": "COMPATIBLE", "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41",
    },
    "no short cut for small products": {"MKL_DISABLE_FAST_MM": "1"},
}  # fmt: skip
OTHERS = ("SSE", "no short cut for small products")  # rare, and ten seconds each
# MKL heeds MKL_ENABLE_INSTRUCTIONS on Intel processors only, so it is told that this is one.
AS_INTEL = """
import ctypes, mmap, os, torch
library = ctypes.CDLL("libtorch_cpu.so", mode=os.RTLD_NOLOAD)
asked = getattr(library, "mkl_serv_intel_cpu_true", None)
if asked is not None and os.uname().machine == "x86_64":
    place = ctypes.cast(asked, ctypes.c_void_p).value
    page = place // mmap.PAGESIZE * mmap.PAGESIZE
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(page), 2 * mmap.PAGESIZE, 7) == 0
    ctypes.memmove(place, bytes.fromhex("b801000000c3"), 6)  # mov eax, 1; ret
"""
# Needles leave straight from the tensor, so that showing them makes no copy. With two threads, some of
# the buffers are the other one's, from an arena of its own.
CHILD = """
import ctypes, os, torch
from glasshouse.runtime.wipe import wipe_tensors
weight = torch.randn(512, 256, requires_grad=True)
kept = [weight.detach()]
for threads, height, dtype in ((1, 256, "float32"), (2, 1024, "float32"), (2, 512, "bfloat16")):
    torch.set_num_threads(threads)
    rows = torch.randn(height, 256).to(getattr(torch, dtype))
    torch.nn.functional.linear(rows, weight.to(rows.dtype)).square().mean().backward()
    kept += [rows, weight.grad]
    view = memoryview((ctypes.c_char * rows.nbytes).from_address(rows.data_ptr())).cast("B")
    for start in range(0, rows.nbytes, rows.nbytes // {count}):
        os.write(1, view[start : start + {size}])
os.read(0, 1)
wipe_tensors(kept)
os.write(1, b"w")
os.read(0, 1)
"""


@pytest.mark.parametrize(
    "kernels",
    [pytest.param(name, marks=[pytest.mark.soak] if name in OTHERS else []) for name in KERNELS],
)
def test_the_wipe_takes_what_a_matrix_product_packed(kernels: str) -> None:
    if kernels == "AVX-512" and "avx512f" not in Path("/proc/cpuinfo").read_text(encoding="ascii").split():
        pytest.skip("this processor has no AVX-512")
    told = AS_INTEL if "MKL_ENABLE_INSTRUCTIONS" in KERNELS[kernels] else ""
    command = [sys.executable, "-c", told + CHILD.format(size=SIZE, count=COUNT)]
    environment = os.environ | KERNELS[kernels]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        said = child.stdout.read(SIZE * COUNT * 3)
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
    assert len(live) == COUNT * 3
    assert min(live) >= 1
    if max(live) == 1:
        pytest.skip("this build of torch keeps no copy of these operands")
    assert after == [0] * COUNT * 3
