"""Counts several byte patterns in memory that arrives in chunks.

Each chunk is read once and searched for every pattern while it lies in the core's cache. The C library does
the work, so nothing new runs beside the event key; threads help, since ctypes lets go of the interpreter's
lock.

- A pattern of medium length is sought by words: wherever it begins, one of four of its words of four bytes
  lies on a multiple of four, and wmemchr(3) compares whole vectors. What is found is then compared.
- Any other pattern, and one whose words occur again and again without it, is sought by memmem(3).
- A chunk that is all zeros is searched only for what may end in it: its first bytes, or a pattern of zeros.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable, Sequence

from glasshouse.sealing.memory import overwrite

CHUNK = 1 << 20  # gone through four times a pattern: it should stay in a cache meanwhile
WORD = 4  # bytes of a wchar_t on Linux
BY_WORDS = range(
    2 * WORD - 1, 32
)  # lengths: shorter ones need not hold such a word, longer ones memmem skips
MAX_MISSES = 64  # words found in a chunk without the pattern around them, before memmem takes over

# Of glibc and musl alike.
_c = ctypes.CDLL(None)
_memmem: Callable[[int, int, object, int], int | None] = _c.memmem
_c.memmem.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t]
_c.memmem.restype = ctypes.c_void_p
_wmemchr: Callable[[int, int, int], int | None] = _c.wmemchr
_c.wmemchr.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_size_t]
_c.wmemchr.restype = ctypes.c_void_p
_memcmp: Callable[[int, object, int], int] = _c.memcmp
_c.memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


class Search:
    """Counts patterns in memory that arrives in chunks, also across borders of adjoining chunks.

    A pattern counts once for each place where it begins, also where occurrences overlap; an empty one, never.
    What arrives lies in one buffer that close() wipes: the searcher must not end up with the very plaintext
    whose absence it is to show. The patterns are the caller's, and are not copied.
    """

    def __init__(self, patterns: Sequence[bytearray]) -> None:
        self._patterns = [_Pattern(data) for data in patterns]
        self.overlap = max(0, max((len(data) for data in patterns), default=1) - 1)
        # Chunks arrive at the beginning of a page, and what is kept of the last lies before it: the kernel
        # copies two to three times as fast to there as to anywhere else.
        self._at = -(-self.overlap // mmap.PAGESIZE) * mmap.PAGESIZE
        self._buffer = mmap.mmap(-1, self._at + CHUNK, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._view = memoryview(self._buffer)
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._buffer)) + self._at
        self._kept = 0
        self._next = -1
        self.counts = [0] * len(patterns)  # in the order of the patterns
        self.bytes_read = 0

    def space(self, position: int, size: int) -> memoryview:
        """Where to put up to CHUNK bytes that lie at `position`; took() or keep() says how many came."""
        if position != self._next:
            self._kept = 0
        return self._view[self._at : self._at + size]

    def took(self, position: int, size: int) -> None:
        """Count what ends in the `size` bytes that came, and hold their end for the next chunk."""
        blank = _is_zero(self._base - self._kept, self._kept + size)
        zero = blank or _is_zero(self._base, size)
        for index, pattern in enumerate(self._patterns):
            if blank and not pattern.zero:
                continue
            # Unless a pattern is zeros itself, its last other byte lies in what was kept.
            end = min(size, pattern.size) if zero and not pattern.zero else size
            first = self._base - min(self._kept, pattern.size - 1)  # what ends in what was kept was counted
            self.counts[index] += pattern.count(first, self._base + end)
        self.keep(position, size)
        self.bytes_read += size

    def keep(self, position: int, size: int) -> None:
        """Hold the end of what came for the next chunk, without searching it."""
        kept = min(self.overlap, self._kept + size)
        end = self._at + size
        self._view[self._at - kept : self._at] = self._view[end - kept : end]
        self._kept = kept
        self._next = position + size

    def feed(self, position: int, chunk: bytes | bytearray) -> None:
        """Search a chunk that the caller has, of up to CHUNK bytes."""
        self.space(position, len(chunk))[:] = chunk
        self.took(position, len(chunk))

    def close(self) -> None:
        """Overwrite the buffer."""
        overwrite(self._view)


class _Pattern:
    """One pattern, and how it is sought."""

    def __init__(self, data: bytearray) -> None:
        self.size = len(data)
        self.zero = not any(data)
        self._whole = (ctypes.c_char * self.size).from_buffer(data)
        self._words = _words(data) if self.size in BY_WORDS else []

    def count(self, first: int, end: int) -> int:
        """Count occurrences in memory from address `first` to `end`."""
        if (
            self.size == 0 or end - first < self.size
        ):  # of a tensor without bytes: found nowhere, not everywhere
            return 0
        count = self._by_words(first, end) if self._words else None
        return self._by_whole(first, end) if count is None else count

    def _by_words(self, first: int, end: int) -> int | None:
        """Count them; None where that takes too long.

        Where an occurrence begins says which word lies on a multiple of WORD: one alone finds it.
        """
        count = misses = 0
        for place, word in self._words:
            at, last = -(-(first + place) // WORD) * WORD, end - self.size + place
            while at <= last and (found := _wmemchr(at, word, (last - at) // WORD + 1)):
                if _memcmp(found - place, self._whole, self.size) == 0:
                    count += 1
                elif (misses := misses + 1) > MAX_MISSES:
                    return None
                at = found + WORD
        return count

    def _by_whole(self, first: int, end: int) -> int:
        count = 0
        while found := _memmem(first, end - first, self._whole, self.size):
            count += 1
            first = found + 1
        return count


def _words(data: bytearray) -> list[tuple[int, int]]:
    """Of each four words that are WORD apart, (place, value) of the one that is least likely elsewhere."""
    return [
        max(
            (
                (place, int.from_bytes(data[place : place + WORD], sys.byteorder))
                for place in range(phase, len(data) - WORD + 1, WORD)
            ),
            key=lambda found: len(set(found[1].to_bytes(WORD, sys.byteorder)) - {0}),
        )
        for phase in range(WORD)
    ]


def _is_zero(address: int, size: int) -> bool:
    """Whether memory holds zeros only: its first byte, and each equals its neighbour."""
    return size > 0 and _memcmp(address, b"\0", 1) == 0 and _memcmp(address, address + 1, size - 1) == 0
