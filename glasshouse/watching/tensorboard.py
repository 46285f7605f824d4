"""Scalars out of tensorboard's event files, as they grow.

A file is records of TFRecord (tensorflow/core/lib/io/record_writer.h): length (uint64), its masked CRC-32C,
that many bytes, theirs. The bytes are an Event (tensorflow/core/util/event.proto): wall_time 1, step 2,
summary 5; a Summary's values 1: tag 1, simple_value 2, tensor 8. What is no scalar is passed over, however
large. The bytes' own CRC is not looked at: the record in which they came is sealed.
"""

from __future__ import annotations

import struct

from glasshouse.watching.points import Point, Work, point
from glasshouse.watching.wire import BYTES, FIXED32, FIXED64, WireError, fields, message, number, text

MAX_RECORD = 256 << 10  # of one that is read
MAX_LENGTH = 1 << 30  # of one that is passed over
_HEAD = struct.Struct("<QI")
_UPPER = bytes(4)  # the upper half of every length up to MAX_LENGTH


def _table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_CRC = _table()


def masked_crc(data: bytes) -> int:
    """CRC-32C (RFC 3720) as TFRecord writes it down."""
    value = 0xFFFFFFFF
    for byte in data:
        value = _CRC[(value ^ byte) & 0xFF] ^ (value >> 8)
    value ^= 0xFFFFFFFF
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


class EventFile:
    """One file, from whatever comes of it."""

    def __init__(self) -> None:
        self._at = 0  # position behind what came
        self._pending = bytearray()
        self._skip = 0  # bytes of a record that is passed over

    def feed(self, at: int, data: bytes, work: Work | None = None) -> list[Point]:
        """Take bytes from position `at`; where some are missing before them, find the next record.

        What is left of them when no work is, counts as missing.
        """
        work = work or Work()
        if at != self._at:
            self._pending.clear()
            self._skip = 0
        self._at = at + len(data)
        self._pending += data
        found = list[Point]()
        while True:
            passed = min(self._skip, len(self._pending))
            del self._pending[:passed]
            self._skip -= passed
            if self._skip or len(self._pending) < _HEAD.size:
                return found
            if not work.spend():
                self._pending.clear()
                return found
            if (length := _length(self._pending, 0)) is None:
                self._find_next(work)
                continue
            if length > MAX_RECORD:
                self._skip = _HEAD.size + length + 4
                continue
            if len(self._pending) < _HEAD.size + length + 4:
                return found
            body = bytes(self._pending[_HEAD.size : _HEAD.size + length])
            del self._pending[: _HEAD.size + length + 4]
            if (one := _scalars(body, work)) is not None:
                found.append(one)

    def _find_next(self, work: Work) -> None:
        """Drop what stands before the next length that its CRC confirms."""
        last, at = len(self._pending) - _HEAD.size, 1
        while at <= last:
            zeros = self._pending.find(_UPPER, at + len(_UPPER))
            if zeros < 0 or not work.spend():
                at = last + 1
                break
            at = zeros - len(_UPPER)
            if at > last or _length(self._pending, at) is not None:
                break
            at += 1
        del self._pending[: min(at, last + 1)]


def _length(data: bytearray, at: int) -> int | None:
    """The length of the record that begins there; None where none does."""
    length, crc = _HEAD.unpack_from(data, at)
    if not 0 < length <= MAX_LENGTH or masked_crc(bytes(data[at : at + 8])) != crc:
        return None
    return int(length)


def _scalars(event: bytes, work: Work) -> Point | None:
    time: float | None = None
    step, values = 0, list[tuple[str, object]]()
    try:
        for name, kind, value in fields(event, work):
            if name == 1:
                time = number(kind, value, "d")
            elif name == 2:
                step = int(number(kind, value, "i"))
            elif name == 5 and kind == BYTES:
                values += _summary(message(value), work)
    except WireError:
        return None
    return point([("step", step), *values], time) if values else None


def _summary(data: bytes, work: Work) -> list[tuple[str, object]]:
    found = list[tuple[str, object]]()
    for name, kind, value in fields(data, work):
        if name != 1 or kind != BYTES:
            continue
        tag, scalar = "", None
        for part, form, content in fields(message(value), work):
            if part == 1 and form == BYTES:
                tag = text(content)
            elif part == 2 and form == FIXED32:
                scalar = number(form, content, "f")
            elif part == 8 and form == BYTES:
                scalar = _tensor(message(content), work)
        if tag and scalar is not None:
            found.append((tag, scalar))
    return found


def _tensor(data: bytes, work: Work) -> float | None:
    """A tensor of one float or double, as tf.summary.scalar writes it (tensor.proto); None for another."""
    kinds = {1: ("<f", 4), 2: ("<d", 8)}
    dtype = 0
    for name, kind, value in fields(data, work):
        if name == 1 and isinstance(value, int):
            dtype = value
        elif name == 2 and kind == BYTES and message(value):
            if _elements(message(value), work) != 1:
                return None
        elif name in (4, 5, 6) and kind in (BYTES, FIXED32, FIXED64):
            form, size = kinds.get(dtype if name == 4 else name - 4, ("", 0))
            content = message(value)
            return float(struct.unpack(form, content)[0]) if form and len(content) == size else None
    return None


def _elements(shape: bytes, work: Work) -> int:
    count = 1
    for name, kind, dimension in fields(shape, work):
        if name == 2 and kind == BYTES:
            for part, _, size in fields(message(dimension), work):
                if part == 1 and isinstance(size, int):
                    count *= min(size, 2)
    return count
