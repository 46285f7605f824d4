"""The wire format of protocol buffers, as far as reading needs it: fields by number, in the order they stand.

Source: protobuf.dev/programming-guides/encoding. Groups, which nobody writes any more, are refused.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from glasshouse.watching.points import Work

MAX_FIELDS = 20_000
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


class WireError(ValueError):
    """These bytes are no message."""


def fields(data: bytes, work: Work | None = None) -> Iterator[tuple[int, int, int | bytes]]:
    """Yield (number, wire type, value): an int of a varint, bytes of the others. Raises WireError, also where
    no work is left.
    """
    at = count = 0
    while at < len(data):
        count += 1
        if count > MAX_FIELDS or (work is not None and not work.spend()):
            raise WireError("too many fields")
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, at = _varint(data, at)
            yield number, kind, value
            continue
        if kind == BYTES:
            size, at = _varint(data, at)
        elif kind in (FIXED64, FIXED32):
            size = 8 if kind == FIXED64 else 4
        else:
            raise WireError("a field of a kind that is not known")
        if size > len(data) - at:
            raise WireError("a field does not end")
        yield number, kind, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise WireError("a number does not end")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
        shift += 7


def number(kind: int, value: int | bytes, form: str) -> float:
    """A field of one number as `form` says: d double, f float, i int64, z sint64. Raises WireError."""
    if isinstance(value, int):
        if form == "z":
            return float((value >> 1) ^ -(value & 1))
        if form == "i":
            return float(value - (1 << 64) if value >> 63 else value)
    elif (form, kind) in (("d", FIXED64), ("f", FIXED32)):
        return float(struct.unpack(f"<{form}", value)[0])
    raise WireError("a number of another kind")


def text(value: int | bytes) -> str:
    """A field of text, whatever bytes it has. Raises WireError."""
    if isinstance(value, int):
        raise WireError("a text of another kind")
    return value.decode("utf-8", "replace")


def message(value: int | bytes) -> bytes:
    """A field that is a message. Raises WireError."""
    if isinstance(value, int):
        raise WireError("a message of another kind")
    return value
