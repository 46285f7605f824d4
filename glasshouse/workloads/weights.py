"""Base weights that travel inside the package: a folder of safetensors files, read by mapping.

Nothing is loaded: each tensor is a view of its mapped file, so that weights larger than memory can be
sealed, and the pages are the system's to drop again.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from glasshouse.errors import UsageError
from glasshouse.sealing.container import TensorSpec
from glasshouse.spec import LoraModel

PREFIX = "base."  # of base weights' names in the package; the adapter's have none
MAX_HEADER_BYTES = 100 << 20  # the format's own limit
_DTYPES = {
    "F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2),
    "I64": ("int64", 8), "I32": ("int32", 4), "I16": ("int16", 2), "I8": ("int8", 1),
    "U8": ("uint8", 1), "BOOL": ("bool", 1),
}  # fmt: skip


class BaseWeights:
    """The tensors of a folder's .safetensors files, by name; gone through as often as needed."""

    def __init__(self, model: LoraModel) -> None:
        """Read and check every header. Raises UsageError for what is no such folder, or not this model's."""
        folder = Path(str(model.weights_path)).expanduser()
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise UsageError(
                "no .safetensors file there", field="model.weights_path", value=folder,
                remedy="give a folder that save_pretrained() wrote",
            )  # fmt: skip
        self._found: dict[str, tuple[TensorSpec, memoryview]] = {}
        for path in files:
            for spec, view in _read(path):
                if spec.name in self._found:
                    raise _refused(path, f"tensor {spec.name} is in two files")
                self._found[spec.name] = (spec, view)
        self._check(model, folder)

    def __iter__(self) -> Iterator[tuple[TensorSpec, memoryview]]:
        for name in sorted(self._found):
            spec, view = self._found[name]
            yield TensorSpec(f"{PREFIX}{name}", spec.dtype, spec.shape), view

    def _check(self, model: LoraModel, folder: Path) -> None:
        """What would otherwise fail on a rented machine: another dtype, another architecture."""
        for spec, _ in self._found.values():
            if spec.dtype.startswith(("float", "bfloat")) and spec.dtype != model.dtype:
                raise UsageError(
                    f"tensor {spec.name} is {spec.dtype}", field="model.dtype", value=model.dtype,
                    remedy="weights are trained on as they are: choose their dtype, or convert them first",
                )  # fmt: skip
        embedding = self._found.get("model.embed_tokens.weight")
        wanted = (int(model.architecture["vocab_size"]), int(model.architecture["hidden_size"]))
        if embedding is None or embedding[0].shape != wanted:
            has = "none" if embedding is None else " x ".join(map(str, embedding[0].shape))
            raise UsageError(
                f"not the weights of model.architecture: embedding {has}, not {wanted[0]} x {wanted[1]}",
                field="model.weights_path", value=folder, remedy="choose the model= they belong to",
            )  # fmt: skip


def _read(path: Path) -> Iterator[tuple[TensorSpec, memoryview]]:
    try:
        with path.open("rb") as stream:
            mapped = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:
        raise _refused(path, "it cannot be mapped") from error
    size = int.from_bytes(mapped[:8], "little")
    if not 2 <= size <= min(MAX_HEADER_BYTES, mapped.nbytes - 8):
        raise _refused(path, "its header is longer than it")
    try:
        header = json.loads(bytes(mapped[8 : 8 + size]))
        body = mapped[8 + size :]
        for name, entry in header.items():
            if name != "__metadata__":
                yield _tensor(name, entry, body)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _refused(path, "its header is not of that format") from error


def _tensor(name: str, entry: Any, body: memoryview) -> tuple[TensorSpec, memoryview]:
    dtype, item_bytes = _DTYPES[entry["dtype"]]
    shape = tuple(int(length) for length in entry["shape"])
    begin, end = (int(offset) for offset in entry["data_offsets"])
    if not 0 <= begin <= end <= body.nbytes or end - begin != math.prod(shape) * item_bytes:
        raise ValueError(name)
    return TensorSpec(name, dtype, shape), body[begin:end]


def _refused(path: Path, why: str) -> UsageError:
    return UsageError(
        f"not a usable safetensors file: {why}", field="model.weights_path", value=path, remedy="save it anew"
    )
