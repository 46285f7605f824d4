"""The wipe: tensors are overwritten and read back, and what was freed before is dealt with.

Registered tensors are reported by place: host and device. Freed host memory is freed.py's; freed device
memory goes back to the driver.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from glasshouse.runtime import freed
from glasshouse.runtime.results import Wiped, WipeReport
from glasshouse.sealing.memory import overwrite

STAGING_BYTES = 64 << 20  # more than a driver stages copies through
Places = Sequence[tuple[int, int]]  # (address, bytes) in host memory


def overwrite_tensors(tensors: list[Any], kept: Places = ()) -> dict[bool, Wiped]:
    """Overwrite tensors with zeros and read them back: what was done, by whether it lay on the host.

    What is overwritten is the whole storage behind a tensor, once: a view shows only part of it. Storages
    within `kept` stay.
    """
    done = {True: Wiped(), False: Wiped()}  # by whether it lay on the host
    seen = set()
    for tensor in tensors:
        storage = tensor.untyped_storage()
        where = place_of(tensor)
        if where in seen or storage.nbytes() == 0:
            continue
        seen.add(where)
        on_host = tensor.device.type == "cpu"
        if on_host and any(begin <= storage.data_ptr() < begin + size for begin, size in kept):
            continue
        if on_host:
            memory = (ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())
            zero = overwrite(memoryview(memory), threads=len(os.sched_getaffinity(0)))
        else:
            storage.fill_(0)
            flat = tensor.detach().new_empty(0).set_(storage, 0, (storage.nbytes() // tensor.element_size(),))
            zero = int(flat.count_nonzero()) == 0
        part = done[on_host]
        done[on_host] = Wiped(part.count + 1, part.bytes + storage.nbytes(), part.read_back_zero and zero)
    return done


def wipe_tensors(tensors: list[Any]) -> WipeReport:
    """Overwrite tensors with zeros and read them back.

    `device.cache` is what became of device memory that was freed before: see release_device_cache.
    """
    done = overwrite_tensors(tensors)
    overwrite_staging()
    freed.wipe()
    return WipeReport(done[True], replace(done[False], cache=release_device_cache()))


def overwrite_staging() -> None:
    """Send zeros to each CUDA device and back: host memory that is not pinned is copied through the driver's
    own pinned buffers, where the last pieces of weights and data would stay.
    """
    torch = _cuda_in_use()
    if torch is None:
        return
    with contextlib.suppress(RuntimeError):  # no memory left, a device in error: the search tells what stayed
        for index in range(torch.cuda.device_count()):
            zeros = torch.zeros(STAGING_BYTES, dtype=torch.uint8, device=f"cuda:{index}")
            zeros.copy_(zeros.cpu())
            torch.cuda.synchronize(index)


def release_device_cache() -> str:
    """Hand the device memory that torch keeps for reuse back to the driver: "released".

    Activations and gradients that were freed lie there as they were, and nothing of ours reaches them to
    overwrite them. cuBLAS' workspaces, which torch keeps apart, hold parts of products. "kept": the driver
    refused. "none": torch is not there, or opened no CUDA device.
    """
    torch = _cuda_in_use()
    if torch is None:
        return "none"
    try:
        clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)  # what torch's own tests call
        if clear is not None:
            clear()
        torch.cuda.empty_cache()
    except RuntimeError:
        return "kept"
    return "released"


def _cuda_in_use() -> Any:
    """torch, where the workload imported it and opened a CUDA device; else None."""
    torch = sys.modules.get("torch")  # never imported here: a workload may do without
    return torch if torch is not None and torch.cuda.is_initialized() else None


def place_of(tensor: Any) -> tuple[str, int]:
    """Where a tensor's storage lies: two tensors of one place share their bytes."""
    return str(tensor.device), int(tensor.untyped_storage().data_ptr())
