"""A process that puts what it is told wherever memory lies, so that a search from outside can look for it.

    python -m tests.runtime.held DESCRIPTOR FILE     messages over the socket; FILE has 2 * SIZE bytes

The file is mapped and not changed: its second half is copied by the kernel page by page as it is written to.

`put` names a place and an offset in it; `wipe` overwrites all that was put. A fresh process, so that little
else is in its memory; and what it is told leaves no copy behind.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import sys
from pathlib import Path

from glasshouse.runtime.channel import Channel, ChannelClosedError
from glasshouse.runtime.search import CHUNK
from glasshouse.sealing.memory import overwrite

SIZE = CHUNK + 40 * mmap.PAGESIZE
_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_WRITABLE = mmap.PROT_READ | mmap.PROT_WRITE


class Held:
    """Its memory, by place."""

    def __init__(self, path: str) -> None:
        libc = ctypes.CDLL(None)
        libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self.protect = libc.mprotect
        file = os.open(path, os.O_RDONLY)
        shared = os.memfd_create("shared")
        os.ftruncate(shared, SIZE)
        self.maps = {
            "anonymous": mmap.mmap(-1, SIZE, _PRIVATE),
            "read-only": mmap.mmap(-1, SIZE, _PRIVATE),
            "file": mmap.mmap(file, SIZE, mmap.MAP_PRIVATE, _WRITABLE, offset=SIZE),
            "file, not written to": mmap.mmap(file, SIZE, mmap.MAP_PRIVATE, _WRITABLE),
            "shared": mmap.mmap(shared, SIZE, mmap.MAP_SHARED),
            # Of three pages the one in the middle: its neighbours cannot be read.
            "one page": mmap.mmap(-1, 3 * mmap.PAGESIZE, _PRIVATE),
        }
        self.base = {
            name: ctypes.addressof(ctypes.c_char.from_buffer(held)) for name, held in self.maps.items()
        }
        for name in ("anonymous", "read-only", "shared"):
            for start in range(0, SIZE, mmap.PAGESIZE):  # nothing is zero, nothing repeats
                self.maps[name][start : start + mmap.PAGESIZE] = os.urandom(mmap.PAGESIZE)
        self.base["one page"] += mmap.PAGESIZE
        self.protect(self.base["one page"] - mmap.PAGESIZE, mmap.PAGESIZE, 0)
        self.protect(self.base["one page"] + mmap.PAGESIZE, mmap.PAGESIZE, 0)
        self.base["stack"] = _stack()
        self.blocks: list[bytearray] = []
        self.put_at: list[tuple[int, int]] = []

    def put(self, place: str, at: int, data: bytearray) -> None:
        """Copy `data` there; in the heap, into a block of its own that is `at` bytes longer."""
        if place == "heap":
            block = bytearray(at + len(data))
            self.blocks.append(block)
            to = ctypes.addressof(ctypes.c_char.from_buffer(block)) + at
        else:
            to = self.base[place] + at
        ctypes.memmove(to, (ctypes.c_char * len(data)).from_buffer(data), len(data))
        self.put_at.append((to, len(data)))

    def close(self) -> None:
        """From now on, `read-only` is."""
        self.protect(self.base["read-only"], SIZE, mmap.PROT_READ)

    def wipe(self) -> None:
        """Overwrite what was put."""
        self.protect(self.base["read-only"], SIZE, _WRITABLE)
        for to, size in self.put_at:
            overwrite((ctypes.c_char * size).from_address(to))
        self.maps["file, not written to"].close()


def _stack() -> int:
    """The lowest address of the first thread's stack, far below what is in use."""
    for line in Path("/proc/self/maps").read_text("ascii", "replace").splitlines():
        if line.endswith("[stack]"):
            return int(line.partition("-")[0], 16)
    raise AssertionError("no stack")


def main() -> None:
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    held = Held(sys.argv[2])
    channel.send("done")
    while True:
        try:
            kind, body, raw = channel.receive(120)
        except ChannelClosedError:
            return
        if kind == "put":
            held.put(body["place"], body["at"], raw)
            overwrite(raw)
        elif kind == "close":
            held.close()
        elif kind == "wipe":
            held.wipe()
        channel.send("done")


if __name__ == "__main__":
    main()
