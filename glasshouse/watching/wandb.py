"""The history out of W&B's offline files (run-*.wandb), as they grow.

A file is blocks of 32 KiB of LevelDB's log format (leveldb/doc/log_format.md), the first behind seven bytes
of its own (":W&B", 0xbee1, version 0): CRC-32 (zlib's, of type and bytes), length (uint16), type (1 whole, 2
first, 3 middle, 4 last), bytes (wandb/sdk/internal/datastore.py). What they join to is a Record
(wandb/proto/wandb_internal.proto), of which history is 2: items 1 (key 1, nested_key 2, and a value: integer
5, number 6, value_json 16), step 2. Version 0.31 of wandb writes the first two, earlier ones the last.
"""

from __future__ import annotations

import struct
import zlib

from glasshouse.watching.points import Point, Work, moment, point
from glasshouse.watching.wire import BYTES, FIXED64, VARINT, WireError, fields, message, number, text

BLOCK = 32 << 10
MAX_RECORD = 256 << 10
_FILE_HEAD = 7
_HEAD = struct.Struct("<IHB")
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


class RunFile:
    """One file, from whatever comes of it."""

    def __init__(self) -> None:
        self._at = 0  # position of the first byte that is pending
        self._pending = bytearray()
        self._record = bytearray()  # what of one came, in several parts
        self._open = False
        self._lost = False  # until the next block begins

    def feed(self, at: int, data: bytes, work: Work | None = None) -> list[Point]:
        """Take bytes that stand at position `at`; where some are missing before them, go on with a block.

        What is left of them when no work is, counts as missing.
        """
        work = work or Work()
        if at != self._at + len(self._pending):
            self._at, self._lost = at, at > 0
            self._pending.clear()
            self._open = False
        self._pending += data
        if self._at == 0 and len(self._pending) >= _FILE_HEAD:
            self._drop(_FILE_HEAD)
        found = []
        while self._at and self._pending:
            if not work.spend():
                self._drop(len(self._pending))
                self._lost, self._open = True, False
                break
            left = BLOCK - self._at % BLOCK
            if self._lost or left < _HEAD.size:
                aligned = self._at % BLOCK == 0
                if not aligned and len(self._pending) < left:
                    self._drop(len(self._pending))
                    break
                self._drop(0 if aligned else left)
                self._lost = False
                continue
            if len(self._pending) < _HEAD.size:
                break
            crc, size, kind = _HEAD.unpack_from(self._pending)
            if size > left - _HEAD.size:
                self._lose()
                continue
            if len(self._pending) < _HEAD.size + size:
                break
            body = bytes(self._pending[_HEAD.size : _HEAD.size + size])
            good = zlib.crc32(body, zlib.crc32(bytes([kind]))) == crc
            if not good:
                self._lose()
                continue
            self._drop(_HEAD.size + size)
            if (whole := self._joined(kind, body)) is not None and (one := _history(whole, work)) is not None:
                found.append(one)
        return found

    def _lose(self) -> None:
        """What stands here is no record: go on with the block after this."""
        self._lost, self._open = True, False
        self._drop(1)  # so that this block's beginning is not taken for the next one's

    def _drop(self, count: int) -> None:
        del self._pending[:count]
        self._at += count

    def _joined(self, kind: int, body: bytes) -> bytes | None:
        """A record, once all of its parts have come; None before, and of one that is too large."""
        if kind == _WHOLE:
            self._open = False
            return body
        if kind == _FIRST:
            self._record, self._open = bytearray(body), True
            return None
        if not self._open or kind not in (_MIDDLE, _LAST):
            return None
        self._record += body
        self._open = kind == _MIDDLE and len(self._record) <= MAX_RECORD
        return bytes(self._record) if kind == _LAST and len(self._record) <= MAX_RECORD else None


def _history(record: bytes, work: Work) -> Point | None:
    try:
        for name, kind, value in fields(record, work):
            if name == 2 and kind == BYTES:
                return _items(message(value), work)
    except WireError:
        pass
    return None


def _items(history: bytes, work: Work) -> Point | None:
    values, time, step = list[tuple[str, object]](), None, None
    for name, kind, value in fields(history, work):
        if name == 2 and kind == BYTES:
            step = next(
                (int(one) for part, _, one in fields(message(value), work) if part == 1 and type(one) is int),
                0,
            )
        if name != 1 or kind != BYTES:
            continue
        key, said = _item(message(value), work)
        if key == "_timestamp":
            time = moment(said)
        elif not key.startswith("_"):
            values.append((key, said))
    if not values:
        return None
    return point(values if step is None else [*values, ("step", step)], time)


def _item(item: bytes, work: Work) -> tuple[str, float | str | None]:
    names, said = list[str](), None  # type: tuple[list[str], float | str | None]
    for name, kind, value in fields(item, work):
        if name in (1, 2) and kind == BYTES:
            names.append(text(value)[:200])
        elif name == 5 and kind == VARINT:
            said = number(kind, value, "z")
        elif name == 6 and kind == FIXED64:
            said = number(kind, value, "d")
        elif name == 16 and kind == BYTES:
            said = text(message(value)[:64])
    return "/".join(part for part in names if part), said
