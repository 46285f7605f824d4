"""Memory that may hold plaintext, and how it is overwritten.

Plaintext lives in private anonymous mappings: never in a file, never shared, left out of core dumps,
inherited by a fork (the trainer) and lost by an exec. Huge pages, because faulting in small ones costs more
than the cipher.
"""

from __future__ import annotations

import ctypes
import mmap

HUGE_PAGE = 2 << 20

_libc = ctypes.CDLL(None, use_errno=True)
_libc.memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
_libc.memcmp.restype = ctypes.c_int


def private_region(size: int) -> mmap.mmap:
    """Map at least `size` bytes (at least one page) of private anonymous zeroed memory.

    Sizes from one huge page on are rounded up to whole huge pages, so that the last one can be huge too.
    Raises OSError, MemoryError or OverflowError when the kernel does not give that much.
    """
    unit = HUGE_PAGE if size >= HUGE_PAGE else mmap.PAGESIZE
    # MAP_PRIVATE on purpose: mmap.mmap(-1, n) alone is MAP_SHARED, and a forked trainer would train in our
    # pages.
    region = mmap.mmap(-1, max(1, -(-size // unit)) * unit, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for advice in (mmap.MADV_HUGEPAGE, mmap.MADV_DONTDUMP):
        try:
            region.madvise(advice)
        except OSError:  # a kernel built without huge pages: slower, not less safe
            if advice == mmap.MADV_DONTDUMP:
                region.close()
                raise
    return region


def overwrite(buffer: mmap.mmap | bytearray | memoryview) -> bool:
    """Overwrite a writable buffer with zeros, read it back, and return whether every byte read is zero."""
    view = memoryview(buffer).cast("B")
    size = view.nbytes
    if size == 0:
        return True
    first = ctypes.c_char.from_buffer(view)
    address = ctypes.addressof(first)
    ctypes.memset(address, 0, size)
    # All bytes are zero exactly when the first is and each equals its neighbour: nothing is copied to look.
    return first.value == b"\0" and _libc.memcmp(address, address + 1, size - 1) == 0


def overwrite_bytes(secret: bytes) -> None:
    """Zero the heap copy behind a `bytes` object that a library returned, best effort (CPython's layout).

    The caller must hold the only use of the object: every other reference sees zeros too. Objects of fewer
    than two bytes are left alone, since CPython shares them.
    """
    if len(secret) > 1:
        ctypes.memset(id(secret) + bytes.__basicsize__ - 1, 0, len(secret))
