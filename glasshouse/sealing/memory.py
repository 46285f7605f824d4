"""Memory that may hold plaintext, and how it is overwritten.

Plaintext lives in private anonymous mappings: never in a file, never shared, left out of core dumps,
inherited by a fork (the trainer) and lost by an exec. Huge pages, because faulting in small ones costs more
than the cipher. The pod is Linux; an operator who opens outputs may have a Mac, which has neither huge
pages nor a way to leave one region out of a core dump.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor

HUGE_PAGE = 2 << 20
POPULATE_SEC = 20.0  # a supervisor waits 120 s for the answer to a grant; a cold file may take longer
_PART = 32 * HUGE_PAGE  # what one thread takes, or overwrites, at a time
_MADV_POPULATE_READ = 22
_MADV_POPULATE_WRITE = 23  # linux/mman.h, from Linux 5.14 on; Python has no name for it
_PROT_NONE = 0  # sys/mman.h; neither has it one for this

_libc = ctypes.CDLL(None, use_errno=True)
_libc.memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
_libc.memcmp.restype = ctypes.c_int
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def region_bytes(size: int) -> int:
    """How large a region for `size` bytes is: whole pages, and whole huge pages from one huge page on."""
    unit = HUGE_PAGE if size >= HUGE_PAGE else mmap.PAGESIZE
    return max(1, -(-size // unit)) * unit


def private_region(size: int) -> mmap.mmap:
    """Map at least `size` bytes (at least one page) of private anonymous zeroed memory.

    Its size is `region_bytes`, so that the last huge page can be huge too.
    Raises OSError, MemoryError or OverflowError when the kernel does not give that much.
    """
    # MAP_PRIVATE on purpose: mmap.mmap(-1, n) alone is MAP_SHARED, and a forked trainer would train in our
    # pages.
    region = mmap.mmap(-1, region_bytes(size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # a kernel built without huge pages: slower, not less safe
            region.madvise(mmap.MADV_HUGEPAGE)
        try:
            region.madvise(mmap.MADV_DONTDUMP)
        except OSError:
            region.close()
            raise
    else:
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    return region


def populate(region: mmap.mmap, size: int, threads: int) -> None:
    """Take the pages of a region's first `size` bytes now, in threads, instead of at first touch.

    A kernel that cannot (before Linux 5.14, or no Linux) is no error: the pages then come later.
    """
    base = address_of(region)

    def take(start: int) -> None:
        _libc.madvise(base + start, min(_PART, size - start), _MADV_POPULATE_WRITE)

    if sys.platform == "linux":  # elsewhere the number may mean something else
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(take, range(0, size, _PART)))


def populate_file(mapped: mmap.mmap, size: int, seconds: float = POPULATE_SEC) -> None:
    """Read the first `size` bytes of a mapped file, begin no part of it after `seconds`. Kernels as above."""
    if sys.platform == "linux":
        end = time.monotonic() + seconds
        with contextlib.suppress(OSError):
            for start in range(0, size, _PART):
                if time.monotonic() >= end:
                    return
                mapped.madvise(_MADV_POPULATE_READ, start, min(_PART, size - start))


def forbid(region: mmap.mmap) -> None:
    """Keep everyone in this process from touching a region, until `allow`; its pages stay. Raises OSError."""
    _protect(region, _PROT_NONE)


def allow(region: mmap.mmap) -> None:
    """Undo `forbid`; nothing changes for a region that was not forbidden. Raises OSError."""
    _protect(region, mmap.PROT_READ | mmap.PROT_WRITE)


def _protect(region: mmap.mmap, protection: int) -> None:
    if _libc.mprotect(address_of(region), len(region), protection) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def address_of(region: mmap.mmap) -> int:
    """Where a writable mapping lies.

    The export that this needs ends here: a mapping with one cannot be closed.
    """
    return ctypes.addressof(ctypes.c_char.from_buffer(region))


def overwrite(buffer: mmap.mmap | bytearray | memoryview, threads: int = 1) -> bool:
    """Overwrite a writable buffer with zeros, read it back, and return whether every byte read is zero.

    A large one is done part by part in `threads`, or by the caller's alone where no more can be had.
    """
    view = memoryview(buffer).cast("B")
    size = view.nbytes
    if size == 0:
        return True
    address = ctypes.addressof(ctypes.c_char.from_buffer(view))

    def part(start: int) -> bool:
        return _overwrite(address + start, min(_PART, size - start))

    starts = range(0, size, _PART)
    if threads > 1 and len(starts) > 1:
        with contextlib.suppress(RuntimeError), ThreadPoolExecutor(threads) as pool:
            done = list(pool.map(part, starts))  # each part, whatever became of another
            return all(done)
    done = list(map(part, starts))
    return all(done)


def _overwrite(address: int, size: int) -> bool:
    if _is_zero(address, size):  # as `give_back` leaves it: to write there would take the pages anew
        return True
    ctypes.memset(address, 0, size)
    return _is_zero(address, size)


def _is_zero(address: int, size: int) -> bool:
    # All bytes are zero exactly when the first is and each equals its neighbour: nothing is copied to look.
    return ctypes.string_at(address, 1) == b"\0" and _libc.memcmp(address, address + 1, size - 1) == 0


def give_back(view: memoryview) -> bool:
    """Overwrite a part of a `private_region` that begins on a page, and give its pages back to the kernel.

    It reads as zeros from then on, and takes memory again only where it is written to. Of its last page the
    rest is given back, too: objects of a package begin on pages of their own. Returns as `overwrite`.
    """
    zero = overwrite(view)
    if sys.platform == "linux" and view.nbytes:  # elsewhere the pages may keep what they hold
        whole = -(-view.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        _libc.madvise(ctypes.addressof(ctypes.c_char.from_buffer(view)), whole, mmap.MADV_DONTNEED)
    return zero


def overwrite_bytes(secret: bytes) -> None:
    """Zero the heap copy behind a `bytes` object that a library returned, best effort (CPython's layout).

    The caller must hold the only use of the object: every other reference sees zeros too. Objects of fewer
    than two bytes are left alone, since CPython shares them.
    """
    if len(secret) > 1:
        ctypes.memset(id(secret) + bytes.__basicsize__ - 1, 0, len(secret))
