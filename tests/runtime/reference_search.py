"""The plain search, as it was before: each pattern by itself. What search.py is held to and timed against."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence

from glasshouse.runtime import search
from glasshouse.sealing.memory import overwrite

_memmem = ctypes.CDLL(None).memmem
_memmem.restype = ctypes.c_void_p
_memmem.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t]


class ReferenceSearch:
    """Takes chunks as Search does, each behind what is kept of the one before."""

    def __init__(self, patterns: Sequence[bytearray]) -> None:
        self._patterns = list(patterns)
        self.overlap = max(0, max((len(data) for data in self._patterns), default=1) - 1)
        size = search.CHUNK + self.overlap + 1
        self._buffer = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._view = memoryview(self._buffer)
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._buffer))
        self._kept = 0
        self._next = -1
        self.counts = [0] * len(self._patterns)
        self.bytes_read = 0

    def space(self, position: int, size: int) -> memoryview:
        if position != self._next:
            self._kept = 0
        return self._view[self._kept : self._kept + size]

    def took(self, position: int, size: int) -> None:
        length = self._kept + size
        for index, pattern in enumerate(self._patterns):
            if pattern:
                self.counts[index] += _count(self._base, length, pattern, self._kept)
        self.keep(position, size)
        self.bytes_read += size

    def keep(self, position: int, size: int) -> None:
        length = self._kept + size
        self._kept = min(self.overlap, length)
        self._view[: self._kept] = self._view[length - self._kept : length]
        self._next = position + size

    def feed(self, position: int, chunk: bytes | bytearray) -> None:
        self.space(position, len(chunk))[:] = chunk
        self.took(position, len(chunk))

    def close(self) -> None:
        overwrite(self._view)


def _count(base: int, length: int, pattern: bytearray, seen: int) -> int:
    """Count occurrences in memory at `base` that end beyond its first `seen` bytes."""
    size = len(pattern)
    wanted = (ctypes.c_char * size).from_buffer(pattern)
    at = max(0, seen - size + 1)
    count = 0
    while found := _memmem(base + at, length - at, wanted, size):
        count += 1
        at = found - base + 1
    return count
