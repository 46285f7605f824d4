"""Device memory that a workload freed goes back to the driver at the wipe; torch is not imported for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from glasshouse.runtime.results import Wiped
from glasshouse.runtime.wipe import release_device_cache, wipe_tensors

ROOT = Path(__file__).resolve().parents[2]

# Torch as the workload left it, in a fresh process: `stand` is what stands under its name.
FRESH = """
import sys, types
from glasshouse.runtime.wipe import wipe_tensors

class Cuda:
    calls = 0
    def is_initialized(self): return {opened}
    def device_count(self): return 0
    def empty_cache(self):
        self.calls += 1
        if {refuses}: raise RuntimeError("CUDA error: unspecified launch failure")

cuda = Cuda()
if {there}: sys.modules["torch"] = types.SimpleNamespace(cuda=cuda, _C=None)
print(wipe_tensors([]).device.cache, cuda.calls, "torch" in sys.modules)
"""


@pytest.mark.parametrize(
    ("there", "opened", "refuses", "said"),
    [
        (False, False, False, "none 0 False"),
        (True, False, False, "none 0 True"),
        (True, True, False, "released 1 True"),
        (True, True, True, "kept 1 True"),
    ],
    ids=["no torch", "no device", "device", "device in error"],
)
def test_what_is_released_is_decided_by_what_the_workload_opened(
    there: bool, opened: bool, refuses: bool, said: str
) -> None:
    """A stand-in for torch where a device is needed, since there is none to test on; the real one below."""
    script = FRESH.format(there=there, opened=opened, refuses=refuses)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False, timeout=30
    )
    assert (done.returncode, done.stdout.strip()) == (0, said), done.stderr


@pytest.mark.train
def test_torch_without_a_device_has_nothing_to_release() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is there: the test below is for it")
    assert wipe_tensors([torch.randn(100)]).device.cache == "none"
    assert not torch.cuda.is_initialized()


@pytest.mark.train
def test_freed_device_memory_goes_back_to_the_driver() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    kept = torch.ones(1 << 20, device="cuda")
    freed = torch.ones(64 << 20, device="cuda")
    del freed
    before = torch.cuda.memory_reserved()
    report = wipe_tensors([kept])
    assert report.device == Wiped(1, 4 << 20, read_back_zero=True, cache="released")
    assert torch.cuda.memory_reserved() <= before - (256 << 20)
    assert release_device_cache() == "released"
