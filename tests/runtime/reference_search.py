"""The plain search: each pattern by itself, by memmem. What runtime/search.py is held to."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from glasshouse.runtime.search import Search

_memmem = ctypes.CDLL(None).memmem
_memmem.restype = ctypes.c_void_p
_memmem.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t]


class ReferenceSearch(Search):
    """Takes chunks as Search does."""

    def __init__(self, patterns: Sequence[bytearray]) -> None:
        super().__init__(patterns)
        self._sought = list(patterns)

    def took(self, position: int, size: int) -> None:
        base = self._base - self._kept
        for index, pattern in enumerate(self._sought):
            if pattern:
                self.counts[index] += count(base, self._kept + size, pattern, self._kept)
        self.keep(position, size)
        self.bytes_read += size


def count(base: int, length: int, pattern: bytearray, seen: int) -> int:
    """Count occurrences in memory at `base` that end beyond its first `seen` bytes."""
    size = len(pattern)
    wanted = (ctypes.c_char * size).from_buffer(pattern)
    at = max(0, seen - size + 1)
    found = 0
    while place := _memmem(base + at, length - at, wanted, size):
        found += 1
        at = place - base + 1
    return found
