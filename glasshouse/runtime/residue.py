"""Out-of-process search of a process's memory for needles.

The scanned process opens its own /proc/self/mem and /proc/self/maps *before* it becomes
unreadable and passes the descriptors on; they keep working afterwards, without any capability
(measured; opening later gives EACCES). A scan from inside would find its own buffers.

The trainer is born unreadable, from an unreadable parent. As root it can still open its own
memory; as another user it cannot (the kernel gives the file to root), and making it readable for
a moment would let in whoever waits for that moment. So it hands its memory over, chunk by chunk,
when the supervisor asks (`serve`), which the record calls `handed-over`.

What a scan can say: these bytes occur, or do not occur, in the readable private memory of that
process at that moment. It says nothing about interpreter objects that hold other bytes, about
device memory, or about what the host copied earlier.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from glasshouse.runtime.channel import Channel, ChannelClosedError
from glasshouse.runtime.linux import read_own_memory
from glasshouse.runtime.search import CHUNK, Search
from glasshouse.sealing.memory import overwrite

PART = 64 << 20  # what one thread searches at a time
MAX_SCAN_BYTES = 32 << 30
_KERNEL_PAGES = ("[vvar]", "[vvar_vclock]", "[vsyscall]", "[vdso]")


@dataclass
class Needle:
    """Bytes to look for. `klass` names what they are in the record; the bytes never leave."""

    klass: str
    data: bytearray
    positive_control: int = 0
    after: int = 0


@dataclass
class Scan:
    """Outcome of one scan: occurrences per needle, in order, and what could not be read."""

    counts: list[int] = field(default_factory=list)
    bytes_read: int = 0
    unreadable_regions: int = 0


class Scannable(Protocol):
    """A process whose memory can be searched. `how` goes into the record."""

    how: str

    def scan(self, needles: Sequence[Needle]) -> Scan:
        """Count each needle in all readable, writable-private regions."""

    def close(self) -> None:
        """Let go: the process's memory is gone or no longer of interest."""


class ScannedProcess:
    """A process that handed over descriptors of its memory and maps."""

    how = "descriptor"

    def __init__(self, memory: int, maps: int, part: int = PART) -> None:
        self._memory = memory
        self._maps = maps
        self._part = part

    def close(self) -> None:
        """Close both descriptors; the process's memory is gone or no longer of interest."""
        os.close(self._memory)
        os.close(self._maps)

    def scan(self, needles: Sequence[Needle]) -> Scan:
        """Count each needle in all readable, writable-private regions, on every core that there is."""
        regions = _regions(self._maps)
        parts = list(_parts(regions, self._part))
        turn = iter(parts)  # shared: its next() is atomic under the GIL
        ends = {region: end for region, _, end in parts}
        unread = {region for region, (_, end) in enumerate(regions) if ends.get(region) != end}

        def work() -> Search:
            search = _search(needles)
            try:
                for region, start, end in turn:
                    if not self._search_part(search, regions[region][0], start, end):
                        unread.add(region)
            finally:
                search.close()
            return search

        threads = max(1, min(len(parts), len(os.sched_getaffinity(0))))
        with ThreadPoolExecutor(threads) as pool:
            found = [job.result() for job in [pool.submit(work) for _ in range(threads)]]
        return Scan(
            counts=[sum(counts) for counts in zip(*(search.counts for search in found), strict=True)],
            bytes_read=sum(search.bytes_read for search in found),
            unreadable_regions=len(unread),
        )

    def _search_part(self, search: Search, region: int, start: int, end: int) -> bool:
        """Search [start, end) of a region; whether all of it could be read.

        What ends in it counts, also if it begins in the part before: that much is read first.
        """
        position = max(region, start - search.overlap)
        while position < end:
            stop = end if position >= start else start
            space = search.space(position, min(CHUNK, stop - position))
            count = 0
            with contextlib.suppress(OSError):
                count = os.preadv(self._memory, [space], position)
            if count == 0:
                return False
            if position < start:
                search.keep(position, count)
            else:
                search.took(position, count)
            position += count
        return True


class ServingProcess:
    """A process that hands its memory over when asked; see serve(). `remaining` bounds each answer."""

    how = "handed-over"

    def __init__(self, channel: Channel, remaining: Callable[[], float]) -> None:
        self._channel = channel
        self._remaining = remaining

    def close(self) -> None:
        """Nothing is held."""

    def scan(self, needles: Sequence[Needle]) -> Scan:
        """Count each needle in the regions that the process hands over."""
        search = _search(needles)
        unreadable = 0
        self._channel.send("scan")
        try:
            while True:
                kind, body, raw = self._channel.receive(self._remaining())
                if kind == "scan-end":
                    return Scan(search.counts, search.bytes_read, unreadable)
                if kind == "memory" and len(raw) <= CHUNK:
                    search.feed(int(body["at"]), raw)
                    overwrite(raw)
                elif kind == "unreadable":
                    unreadable += 1
                else:
                    raise ChannelClosedError("not a scan's answer")
        finally:
            search.close()


def serve(channel: Channel) -> None:
    """Hand over this process's memory, once, through a buffer that is itself left out and wiped."""
    buffer = mmap.mmap(-1, CHUNK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    view = memoryview(buffer)
    own = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    maps = os.open("/proc/self/maps", os.O_RDONLY | os.O_CLOEXEC)
    try:
        sent = 0
        for start, end in _without(_regions(maps), own, own + CHUNK):
            position = start
            while position < end and sent < MAX_SCAN_BYTES:
                count = read_own_memory(position, view[: min(CHUNK, end - position)])
                if count <= 0:
                    break
                channel.send("memory", {"at": position}, raw=view[:count])
                position += count
                sent += count
            if position < end:
                channel.send("unreadable")
    finally:
        os.close(maps)
        overwrite(view)
        view.release()
        with contextlib.suppress(BufferError):
            buffer.close()
    channel.send("scan-end")


def _search(needles: Sequence[Needle]) -> Search:
    return Search([needle.data for needle in needles])


def _parts(regions: Sequence[tuple[int, int]], size: int) -> Iterator[tuple[int, int, int]]:
    """Cut regions into parts (region's index, start, end) of up to `size` bytes; MAX_SCAN_BYTES in all."""
    left = MAX_SCAN_BYTES
    for index, (low, high) in enumerate(regions):
        for start in range(low, high, size):
            end = min(start + size, high)
            if (left := left - (end - start)) < 0:
                return
            yield index, start, end


def _without(regions: list[tuple[int, int]], low: int, high: int) -> list[tuple[int, int]]:
    """Cut [low, high) out of the regions: the kernel joins adjoining mappings into one."""
    pieces = [piece for start, end in regions for piece in ((start, min(end, low)), (max(start, high), end))]
    return [(start, end) for start, end in pieces if start < end]


def _regions(maps: int) -> list[tuple[int, int]]:
    os.lseek(maps, 0, os.SEEK_SET)
    text = bytearray()
    while part := os.read(maps, 1 << 16):
        text += part
    regions = []
    for line in text.decode("utf-8", "replace").splitlines():
        fields = line.split(maxsplit=5)
        permissions = fields[1]
        name = fields[5] if len(fields) > 5 else ""
        # Only memory that the process could have put plaintext in: writable (now or, for
        # regions turned read-only later, anonymous), never the kernel's own pages.
        if permissions[0] != "r" or name in _KERNEL_PAGES:
            continue
        if permissions[1] != "w" and name.startswith("/"):
            continue
        low, _, high = fields[0].partition("-")
        regions.append((int(low, 16), int(high, 16)))
    return regions


def open_self() -> list[int]:
    """Open this process's memory and maps for a scanner; an empty list where the kernel refuses."""
    try:
        memory = os.open("/proc/self/mem", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        return [memory, os.open("/proc/self/maps", os.O_RDONLY | os.O_CLOEXEC)]
    except OSError:
        os.close(memory)
        return []
