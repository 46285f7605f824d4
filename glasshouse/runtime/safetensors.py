"""Read a safetensors file that lies in memory, into tensors of its own: no pickle, every bound checked.

Format: safetensors README, "Format": a length (u64, little-endian), that much JSON, then the tensors' bytes
one behind the other without a gap.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from glasshouse.canonical import CanonicalError, parse_json

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

MAX_HEADER_BYTES = 16 << 20
# As the format names them, and as torch does.
_DTYPES: Mapping[str, tuple[str, int]] = {
    "I64": ("int64", 8),
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "I32": ("int32", 4),
    "BF16": ("bfloat16", 2),
    "F16": ("float16", 2),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}


def read_safetensors(data: ReadableBuffer) -> dict[str, Any]:
    """Return its torch tensors by name, each a copy on the host. Raises ValueError for any other form."""
    torch: Any = sys.modules["torch"]  # never imported here: the session has done it
    found = {}
    for name, (dtype, shape, view) in parse_safetensors(data).items():
        tensor = torch.empty(shape, dtype=getattr(torch, dtype))
        if view.nbytes:
            # Through bytes, whatever the type: the file may lie at any address.
            tensor.view(-1).view(torch.uint8).copy_(torch.frombuffer(bytearray(view), dtype=torch.uint8))
        found[name] = tensor
    return found


def parse_safetensors(data: ReadableBuffer) -> dict[str, tuple[str, tuple[int, ...], memoryview]]:
    """Return dtype (as torch names it), shape and bytes of each tensor. ValueError for any other form."""
    view = memoryview(data).cast("B")
    if view.nbytes < 8:
        raise ValueError("no safetensors file: it is too short")
    length = int.from_bytes(view[:8], "little")
    if not 2 <= length <= min(MAX_HEADER_BYTES, view.nbytes - 8):
        raise ValueError("no safetensors file: its header does not fit in it")
    try:
        header = parse_json(bytes(view[8 : 8 + length]).rstrip(b" "), max_bytes=MAX_HEADER_BYTES)
    except CanonicalError as error:
        raise ValueError(f"no safetensors file: {error}") from error
    if not isinstance(header, dict):
        raise ValueError("no safetensors file: its header is no object")  # noqa: TRY004  of bytes
    header.pop("__metadata__", None)
    body = view[8 + length :]
    found, spans = {}, []
    for name, entry in header.items():
        dtype, shape, begin, end = _entry(name, entry)
        if not 0 <= begin <= end <= body.nbytes:
            raise ValueError(f"the tensor {name} lies outside of its file")
        spans.append((begin, end))
        found[name] = (dtype, shape, body[begin:end])
    at = 0
    for begin, end in sorted(spans):
        if begin != at:
            raise ValueError("tensors overlap, or leave a gap")
        at = end
    if at != body.nbytes:
        raise ValueError("something follows the tensors")
    return found


def _entry(name: str, entry: object) -> tuple[str, tuple[int, ...], int, int]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"the tensor {name} has other fields")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in _DTYPES:
        raise ValueError(f"the tensor {name} has no known type")
    if not _whole(shape) or not _whole(offsets) or len(offsets) != 2 or len(shape) > 32:
        raise ValueError(f"the tensor {name} has no whole shape or place")
    dtype, size = _DTYPES[entry["dtype"]]
    if math.prod(shape) * size != offsets[1] - offsets[0]:
        raise ValueError(f"the tensor {name} has not the bytes of its shape")
    return dtype, tuple(shape), offsets[0], offsets[1]


def _whole(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**53 for value in values)
