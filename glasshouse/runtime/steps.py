"""Counts the optimizer steps of a project's processes by torch's own hooks, and samples what they train.

In each process, before the project's code runs, hooks are put on all optimizers as soon as torch's are there:
by `on_import.py`, since a project without torch must not load it. What was counted stands in memory that the
trainer shares, so that it outlives any end of the process. No exception of ours reaches the project, nothing
here draws a random number, changes a tensor or joins a graph, and no step waits for a GPU but an optimizer's
first.

Whoever wrote the project can write anything into that memory: what is read there is bounded, and is called
the project's own statement (`self-counted`). Source: torch/optim/optimizer.py of torch 2.13.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import mmap
import os
import struct
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType, ModuleType
from typing import Any

from glasshouse.canonical import MAX_SAFE_INTEGER, domain_hash
from glasshouse.runtime.forecast import when_a_trainer_begins
from glasshouse.runtime.on_import import when_imported
from glasshouse.runtime.results import Weights

OPTIMIZERS = "torch.optim.optimizer"
DOMAIN = "glasshouse/project-weights/v1"
MAX_OPTIMIZERS, MAX_TENSORS, MAX_ELEMENTS = 8, 64, 256  # of the sample; the last of each tensor
PATIENCE_SEC = 5.0  # for a GPU to come to the end of what it was given; one that hangs never does
FRAMES = 16  # above a step that are looked at for another that it is a part of

# One rank's row: steps, what is there (bits), the digests of the first and the last sample, steps to be made.
_ROW = struct.Struct("<QQ32s32sQ")
_TOTAL = 10  # the last, among its 8-byte words
_HOOKED, _UNABLE, _FIRST, _LAST = 1, 2, 4, 8
_ROW_BYTES = 128


@dataclass(frozen=True)
class Seen:
    """What one rank counted; steps None: it put no hooks in place. Digests are not salted yet.

    unable: torch was there, and had no such hooks. total: the steps that it is to make in all, if it said so.
    """

    steps: int | None
    unable: bool = False
    first: bytes | None = None
    last: bytes | None = None
    total: int | None = None

    def weights(self, salt: bytes) -> Weights | None:
        """Salted digests of the samples; None where no step was counted."""
        if not self.steps:
            return None
        first, last = (
            None if digest is None else domain_hash(DOMAIN, [salt, digest]).hex()
            for digest in (self.first, self.last)
        )
        return Weights(first, last)


class Board:
    """Memory shared with the ranks that are forked after it was made: a row for each."""

    def __init__(self, ranks: int) -> None:
        self._memory = mmap.mmap(-1, ranks * _ROW_BYTES)
        self._ranks = ranks

    def counter(self, rank: int) -> Counter:
        """What counts in a rank's process."""
        return Counter(memoryview(self._memory)[rank * _ROW_BYTES : (rank + 1) * _ROW_BYTES])

    def read(self) -> list[Seen]:
        """What each rank has counted up to now."""
        return [_read(self._memory, rank * _ROW_BYTES) for rank in range(self._ranks)]


def _read(memory: mmap.mmap, at: int) -> Seen:
    steps, there, first, last, total = _ROW.unpack_from(memory, at)
    return Seen(
        min(steps, MAX_SAFE_INTEGER) if there & _HOOKED else None,
        unable=bool(there & _UNABLE),
        first=first if there & _FIRST else None,
        last=last if there & _LAST else None,
        total=min(total, MAX_SAFE_INTEGER) or None if there & _HOOKED else None,
    )


def differing(seen: Sequence[Seen]) -> str | None:
    """Say which ranks counted another number than rank 0; None where none did."""
    others: dict[int, list[int]] = {}
    for rank, one in enumerate(seen):
        others.setdefault(one.steps or 0, []).append(rank)
    if len(others) == 1:
        return None
    said = ", ".join(
        f"{steps} on rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
        for steps, ranks in others.items()
    )
    return f"the ranks counted different numbers of optimizer steps, and rank 0's is stated: {said}"


@dataclass
class _Sampled:
    """One optimizer: digests of its parameters before its first step, and at the end."""

    optimizer: weakref.ref[Any]
    first: bytes | None
    last: bytes | None = None


class Counter:
    """Counts in the one process that calls `begin`, and not in those that it forks."""

    def __init__(self, row: memoryview) -> None:
        self._row = row
        self._numbers = row.cast("Q")  # the first two are the steps, and the bits
        self._steps = 0
        self._lock = threading.RLock()  # a signal's handler may well take a step
        self._here = True
        self._known: dict[int, _Sampled | None] = {}  # by the optimizer's id; None: not sampled
        self._sampled: list[_Sampled] = []

    def begin(self) -> None:
        """Put hooks on the optimizers of torch, now or as soon as it is imported."""
        os.register_at_fork(after_in_child=self._leave)
        when_imported(OPTIMIZERS, self._hook)
        when_a_trainer_begins(self._goes_on_for)

    def finish(self) -> None:
        """Take the last samples. For the process's end, where it comes to one."""
        if not self._here or not self._sampled:
            return
        for one in self._sampled:
            if one.last is None and (optimizer := one.optimizer()) is not None:
                one.last = _untraced(optimizer)
        self._write(_LAST, [one.last for one in self._sampled])

    def _leave(self) -> None:
        self._here = False

    def _goes_on_for(self, steps: int) -> None:
        """So many more are to be made."""
        if self._here:
            self._numbers[_TOTAL] = self._steps + max(steps, 0)

    def _write(self, what: int, digests: list[bytes | None]) -> None:
        """Write the digest over all optimizers'; none where one of them has none."""
        self._numbers[1] &= ~what
        found = [digest for digest in digests if digest is not None]
        if len(found) == len(digests):
            at = 16 if what == _FIRST else 48
            self._row[at : at + 32] = hashlib.sha256(b"".join(found)).digest()
            self._numbers[1] |= what

    def _hook(self, module: ModuleType) -> None:
        """Put the hooks on. `module`: torch.optim.optimizer; the rest of torch is perhaps not loaded yet."""
        before = getattr(module, "register_optimizer_step_pre_hook", None)
        after = getattr(module, "register_optimizer_step_post_hook", None)
        kind = getattr(module, "Optimizer", None)
        if before is None or after is None or not isinstance(kind, type):
            self._numbers[1] |= _UNABLE
            return

        def about_to(optimizer: Any, _args: Any, _kwargs: Any) -> None:
            if self._here and self._unknown(optimizer):
                self._meet(optimizer, within_another(sys._getframe(1)))

        def done(_optimizer: Any, _args: Any, _kwargs: Any) -> None:
            if not self._here or within_another(sys._getframe(1)):
                return
            with self._lock:
                self._steps += 1
                self._numbers[0] = self._steps

        def freed(optimizer: Any) -> None:
            one = self._known.pop(id(optimizer), None)
            if not self._here or one is None or sys.is_finalizing():
                return  # an interpreter that ends with tensors touched is aborted by torch
            # Where the collector frees it the reference is cleared before. Its tensors may be half gone then.
            if one.optimizer() is optimizer:
                one.last = _untraced(optimizer)

        _keep_from_compiler(about_to, done, freed)
        before(about_to)
        after(done)
        if not hasattr(kind, "__del__"):
            # Most optimizers are a function's own and gone at the command's end. A weak reference's callback
            # is not given the optimizer, and references to its tensors would forbid torch to swap them.
            kind.__del__ = freed  # type: ignore[attr-defined]
        self._numbers[1] |= _HOOKED

    def _unknown(self, optimizer: Any) -> bool:
        key = id(optimizer)
        if key not in self._known:
            return True
        one = self._known[key]
        return one is not None and one.optimizer() is not optimizer  # one that was freed had this id

    def _meet(self, optimizer: Any, part_of_another: bool) -> None:
        if part_of_another or len(self._sampled) == MAX_OPTIMIZERS:
            self._known[id(optimizer)] = None
            return
        one = _Sampled(weakref.ref(optimizer, _freed), _untraced(optimizer))
        self._known[id(optimizer)] = one
        self._sampled.append(one)
        self._write(_FIRST, [each.first for each in self._sampled])


def _freed(_reference: object) -> None:
    """Nothing: the collector clears references with a callback before it calls what they refer to."""


def within_another(wrapper: FrameType) -> bool:
    """Whether a step, by the frame that calls its hooks, is part of another: of a subclass's, or a wrapper's.

    torch wraps the `step` of every class of optimizers in one and the same function.
    """
    frame = wrapper.f_back
    for _ in range(FRAMES):
        if frame is None:
            return False
        if frame.f_code is wrapper.f_code:
            return True
        frame = frame.f_back
    return False


def _keep_from_compiler(*hooks: Any) -> None:
    """Have torch.compile not trace the hooks where a step is part of what it compiles: it would warn.

    As torch.compiler.disable marks functions, whose wrapper costs more than counting a step.
    """
    for hook in hooks:
        hook._torchdynamo_disable = True


def _untraced(optimizer: Any) -> bytes | None:
    """Take a sample, also where the step is part of what torch compiles."""
    take = sample
    with contextlib.suppress(Exception):
        if "torch._dynamo" in sys.modules:
            take = sys.modules["torch"].compiler.disable(sample)
    return take(optimizer)


def sample(optimizer: Any) -> bytes | None:
    """SHA-256 over a sample of an optimizer's parameters (32 bytes); None where one is of an odd kind."""
    try:
        torch: Any = sys.modules["torch"]
        if torch._C._len_torch_dispatch_stack():  # somebody would see what we do to tensors
            return None
        tensors = [tensor for group in optimizer.param_groups for tensor in group["params"]]
        digest = hashlib.sha256(struct.pack("<Q", len(tensors)))
        for tensor in tensors[:: -(-len(tensors) // MAX_TENSORS) or 1]:
            if not _plain(torch, tensor):
                return None
            part = tensor.detach()[_few(tensor.shape)].cpu().contiguous()
            size = part.numel() * part.element_size()
            described = f"{tensor.dtype}|{tuple(tensor.shape)}|{size}|".encode()
            digest.update(struct.pack("<Q", len(described)) + described)
            digest.update(ctypes.string_at(part.data_ptr(), size) if size else b"")
        return digest.digest()
    except Exception:  # noqa: BLE001  whatever is odd about it, the project goes on
        return None


def _few(shape: Sequence[int]) -> tuple[slice, ...]:
    """Which elements are looked at: at even distances along each dimension, at most MAX_ELEMENTS in all."""
    most = 1
    while (most + 1) ** max(len(shape), 1) <= MAX_ELEMENTS:
        most += 1
    return tuple(slice(None, None, max(1, -(-size // most))) for size in shape)


def _plain(torch: Any, tensor: Any) -> bool:
    """Whether all elements of a tensor lie in memory of the host, or of a GPU that has come to rest."""
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.layout is not torch.strided:
        return False
    if tensor.is_quantized or tensor.device.type not in ("cpu", "cuda"):
        return False
    if tensor.numel():
        reach = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
        held = tensor.untyped_storage().nbytes()  # FSDP lets go of what a tensor still describes
        if (tensor.storage_offset() + reach + 1) * tensor.element_size() > held:
            return False
    return tensor.device.type == "cpu" or _at_rest(torch, tensor.device)


def _at_rest(torch: Any, device: Any) -> bool:
    """Whether a GPU has come to the end of what this thread's stream had for it, after waiting a while."""
    if torch.cuda.is_current_stream_capturing():
        return False
    stream, until = torch.cuda.current_stream(device), time.monotonic() + PATIENCE_SEC
    while not stream.query():
        if time.monotonic() > until:
            return False
        time.sleep(0.001)
    return True
