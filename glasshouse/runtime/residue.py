"""Out-of-process search of a process's memory for needles.

The scanned process opens its own /proc/self/mem and /proc/self/maps *before* it becomes
unreadable and passes the descriptors on; they keep working afterwards, without any capability
(measured; opening later gives EACCES). A scan from inside would find its own buffers.

What a scan can say: these bytes occur, or do not occur, in the readable private memory of that
process at that moment. It says nothing about interpreter objects that hold other bytes, about
device memory, or about what the host copied earlier.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

CHUNK = 4 << 20
MAX_SCAN_BYTES = 32 << 30


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


class ScannedProcess:
    """A process that handed over descriptors of its memory and maps."""

    def __init__(self, memory: int, maps: int) -> None:
        self._memory = memory
        self._maps = maps

    def close(self) -> None:
        """Close both descriptors; the process's memory is gone or no longer of interest."""
        os.close(self._memory)
        os.close(self._maps)

    def scan(self, needles: Sequence[Needle]) -> Scan:
        """Count each needle in all readable, writable-private regions."""
        result = Scan(counts=[0] * len(needles))
        if not needles:
            return result
        overlap = max(len(needle.data) for needle in needles) - 1
        for start, end in self._regions():
            if result.bytes_read >= MAX_SCAN_BYTES:
                result.unreadable_regions += 1
                continue
            self._scan_region(start, end, overlap, needles, result)
        return result

    def _scan_region(
        self, start: int, end: int, overlap: int, needles: Sequence[Needle], result: Scan
    ) -> None:
        carry = b""
        position = start
        while position < end:
            try:
                chunk = os.pread(self._memory, min(CHUNK, end - position), position)
            except OSError:
                chunk = b""
            if not chunk:
                result.unreadable_regions += 1
                return
            window = carry + chunk
            for index, needle in enumerate(needles):
                result.counts[index] += _count(window, needle.data, len(carry))
            carry = window[-overlap:] if overlap else b""
            position += len(chunk)
            result.bytes_read += len(chunk)

    def _regions(self) -> list[tuple[int, int]]:
        os.lseek(self._maps, 0, os.SEEK_SET)
        text = bytearray()
        while part := os.read(self._maps, 1 << 16):
            text += part
        regions = []
        for line in text.decode("utf-8", "replace").splitlines():
            fields = line.split(maxsplit=5)
            permissions = fields[1]
            name = fields[5] if len(fields) > 5 else ""
            # Only memory that the process could have put plaintext in: writable (now or, for
            # regions turned read-only later, anonymous), never the kernel's own pages.
            if permissions[0] != "r" or name in ("[vvar]", "[vvar_vclock]", "[vsyscall]", "[vdso]"):
                continue
            if permissions[1] != "w" and name.startswith("/"):
                continue
            low, _, high = fields[0].partition("-")
            regions.append((int(low, 16), int(high, 16)))
        return regions


def _count(window: bytes, needle: bytearray, seen: int) -> int:
    """Count occurrences that end beyond the first `seen` bytes (the rest was counted before)."""
    count = 0
    at = window.find(needle)
    while at >= 0:
        if at + len(needle) > seen:
            count += 1
        at = window.find(needle, at + 1)
    return count


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
