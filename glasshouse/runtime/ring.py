"""The last of what was written, in memory that processes share: one writes, another reads where it likes.

Made before the fork. There is no lock: the writer waits for nobody, and a reader that was too slow is told
how much it missed. Whoever has the memory can write anything into it; what is read is bounded all the same.
"""

from __future__ import annotations

import mmap
import struct

_COUNT = struct.Struct("<Q")  # bytes written in all; the ring holds the last `size` of them


class Ring:
    """The last `size` bytes of a stream."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._memory = mmap.mmap(-1, _COUNT.size + size)

    @property
    def written(self) -> int:
        """Bytes written in all."""
        return int(_COUNT.unpack_from(self._memory, 0)[0])

    def write(self, data: bytes) -> None:
        """Append; of what is longer than the ring only its end is kept. One thread of one process writes."""
        count = self.written
        kept = data[-self.size :]
        at = (count + len(data) - len(kept)) % self.size
        first = kept[: self.size - at]
        self._put(at, first)
        self._put(0, kept[len(first) :])
        _COUNT.pack_into(self._memory, 0, (count + len(data)) % (1 << 64))

    def _put(self, at: int, data: bytes) -> None:
        self._memory[_COUNT.size + at : _COUNT.size + at + len(data)] = data

    def read(self, since: int) -> tuple[int, bytes]:
        """What was written from position `since` on, as (position of its first byte, bytes).

        The position is a later one where that part is gone, or was overwritten while it was read.
        """
        end = self.written
        begin = max(since if since <= end else 0, end - self.size)
        data = b"".join(
            self._memory[_COUNT.size + at : _COUNT.size + stop] for at, stop in self._pieces(begin, end)
        )
        gone = self.written - self.size - begin  # the writer may be in the midst of as much again
        if gone > 0:
            data, begin = data[gone:], min(begin + gone, end)
        return begin, data

    def _pieces(self, begin: int, end: int) -> list[tuple[int, int]]:
        at, count = begin % self.size, end - begin
        first = min(count, self.size - at)
        return [(at, at + first), (0, count - first)]
