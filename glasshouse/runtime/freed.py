"""Memory that was freed and still holds what it held: rows of the batch, weights, gradients.

free() overwrites nothing: what torch, MKL or the interpreter gave back to an allocator can be read until
something else is put there. So every block that the allocator has free is taken, overwritten and given back.
Nothing need be known of its insides: a block in memory that was mapped before is one that had been freed, and
once a block of some size comes fresh from the system, no block of that size is free any more.

glibc keeps freed memory in several places, and each is visited where that can be done:

- arenas. A new thread gets one of its own while more are allowed. Told that one is enough (M_ARENA_MAX),
  glibc gives new threads those that exist, in turn: of twice as many threads as arenas, one has had each.
- blocks up to 1 KiB that a thread keeps for itself. Nobody else gets them. The calling thread and its OpenMP
  workers are visited; threads that the workload started and left running are not.
- stacks, below what is in use: of the threads just named, and of threads that ended, whose stacks glibc keeps
  and gives to new threads.

A block in use is its owner's, and may still hold what lay there before it was given out. So from the wipe
on every block is filled when it is given out (M_PERTURB); and lists, which are lengthened in place, have what
they hold in reserve overwritten.

malloc_trim(3) alone is not enough: it drops whole free pages, but not what shares a page with something in
use, nor the end of any arena but the first, where a worker's packing buffers were found. M_PERTURB alone is
not: it overwrites what is freed from then on. Of another C library's memory, only what it gives the calling
thread is overwritten.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import os
import sys
import sysconfig
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable
from pathlib import Path

from glasshouse.runtime.linux import read_own_memory
from glasshouse.sealing.memory import overwrite

PAGE = mmap.PAGESIZE
LARGE = 1 << 16  # from here on whole pages go back to the kernel, which is cheaper than to overwrite them
THREAD_CACHED = 1032  # glibc: a thread keeps freed blocks of up to this size, each size apart
THREAD_KEEPS = 7  # ... and so many of each
# As sizes halve, a free block of any length is taken in few pieces; small ones are kept by their exact size.
SMALL_SIZES = range(THREAD_CACHED, 0, -16)
HEAP_SIZES = (*(1 << power for power in range(26, 10, -1)), *SMALL_SIZES)
OBJECT_SIZES = range(512, 0, -16)  # the interpreter's small objects
POOL = 1 << 14  # ... lie in pools of this size, or less
THRESHOLD = 128 << 10
# glibc keeps up to 40 MiB of ended threads' stacks: this many of the smallest size that it takes by default.
KEPT_STACKS = 20
MAX_THREADS = 1024
# What `leave_traces` frees: less than a page, and less than what malloc maps by itself and unmaps when freed.
TRACE_SIZES = 2 * (3 << 10, 30 << 10, 120 << 10)

# malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_PERTURB, _M_ARENA_TEST, _M_ARENA_MAX = -1, -3, -6, -7, -8
_STRETCH = 26  # log2 of glibc's HEAP_MAX_SIZE: no two arenas lie in one aligned stretch of that size

# Called with the interpreter's lock held: a block takes less time than handing the lock over and back.
_c = ctypes.PyDLL(None)
_c.malloc.argtypes = [ctypes.c_size_t]
_c.malloc.restype = ctypes.c_void_p
_c.free.argtypes = [ctypes.c_void_p]
_c.free.restype = None
_c.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
_c.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_c.pthread_self.restype = ctypes.c_void_p
_Visit = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)  # ftw(3)
_Body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)  # of an OpenMP parallel region

Take = Callable[[int], "int | None"]
Give = Callable[[int], object]


def keep_arenas_within_reach() -> None:
    """Have glibc leave its number of arenas open, so that `wipe` can still set it. Call before threads start.

    From nine arenas on it would allow eight for each processor, and new threads would not get the old ones.
    Unless a program has that many threads, it works the same with and without this.
    """
    _mallopt((_M_ARENA_TEST, 0x7FFFFFFF))


def fill_what_is_allocated() -> None:
    """Have glibc fill each block that it gives out from now on, and each that it gets back.

    A block that is in use is nobody's to overwrite, and may hold what lay there before: its owner need not
    have written all of it. So nothing may come to lie unfilled on data that is to be gone. Call it once
    the work is done: every large allocation is written a second time.
    """
    _mallopt((_M_PERTURB, 0xA5))


def wipe() -> None:
    """Overwrite what this process has freed, as the module says. Takes tenths of a second.

    Call it when the work is done: threads that start afterwards share what arenas there are.
    """
    fill_what_is_allocated()
    release_math_buffers()
    # Small thresholds, or what it takes to exhaust each size would stay mapped, for the search to read.
    _mallopt((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, THRESHOLD), (_M_TRIM_THRESHOLD, THRESHOLD))
    mapped = Mapped.read()
    _clear_reserves_of_lists()
    threads: set[int] = set()
    stretches: set[int] = set()  # of arenas that a thread had
    turn = threading.Lock()

    def worker() -> None:
        with turn:
            if threading.get_native_id() not in threads:
                threads.add(threading.get_native_id())
                stretches.add(_stretch_of_arena())
                _drain_heap(mapped)
                _clear_stack(mapped)

    def newcomer() -> None:
        stretch = _stretch_of_arena()
        if stretch not in stretches:
            stretches.add(stretch)
            _drain_heap(mapped)
        _clear_stack(mapped)

    worker()
    _drain_objects(mapped)
    _in_openmp_threads(worker)
    _in_new_threads(max(2 * _count_arenas(), KEPT_STACKS), newcomer)
    with contextlib.suppress(AttributeError):
        _c.malloc_trim(0)  # what was mapped meanwhile


def leave_traces(size: int) -> bytearray | None:
    """Put the same `size` random bytes into blocks of the heap, free the blocks, return the bytes.

    A search must find them until `wipe`: its positive control for freed memory. There are several, since what
    is allocated meanwhile may land on one. None: the allocator unmaps what is freed, and left no trace.
    """
    # The first time, what only has to be there once for such calls is allocated, and kept; the second time
    # nothing of it comes to lie where the bytes are.
    _leave(bytearray(size), (THREAD_CACHED + size,))
    sample = bytearray(size)
    with Path("/dev/urandom").open("rb", buffering=0) as source:
        source.readinto(sample)
    return sample if _leave(sample, TRACE_SIZES) else None


def _leave(sample: bytearray, sizes: tuple[int, ...]) -> int:
    """Put the bytes into blocks and free these; in how many they can still be read."""
    size = len(sample)
    blocks = [(block, length) for length in sizes if (block := _c.malloc(length)) is not None]
    # Kept for good: at the end of the heap, what is freed may go back to the system.
    _c.malloc(max(sizes))
    places = [block + length - 2 * size for block, length in blocks]  # allocators write at either end
    for place in places:
        ctypes.memmove(place, (ctypes.c_char * size).from_buffer(sample), size)
    for block, _ in blocks:
        _c.free(block)
    left = 0
    for place in places:
        there = bytearray(size)
        left += read_own_memory(place, memoryview(there)) == size and there == sample
        overwrite(there)
    return left


class Mapped:
    """The private anonymous writable memory of this process at one moment: [start, end) of each region."""

    def __init__(self, regions: Iterable[tuple[int, int]]) -> None:
        ordered = sorted(regions)
        self._starts = [start for start, _ in ordered]
        self._ends = [end for _, end in ordered]

    @classmethod
    def read(cls) -> Mapped:
        """Take it from /proc/self/maps."""
        regions = []
        for line in Path("/proc/self/maps").read_text("utf-8", "replace").splitlines():
            fields = line.split(maxsplit=5)
            if fields[1] == "rw-p" and not (len(fields) > 5 and fields[5].startswith("/")):
                low, _, high = fields[0].partition("-")
                regions.append((int(low, 16), int(high, 16)))
        return cls(regions)

    def start(self, address: int, size: int) -> int | None:
        """Where the region begins that holds all `size` bytes at `address`; None where none does."""
        index = bisect_right(self._starts, address) - 1
        return self._starts[index] if index >= 0 and address + size <= self._ends[index] else None


def drain(
    take: Take,
    give: Give,
    sizes: Iterable[int],
    mapped: Mapped,
    *,
    usable: Take | None = None,
    spare: int = 0,
) -> None:
    """Take every block that is free, of `sizes` from large to small, overwrite it, give all back.

    `usable` says how long a block really is; without it, as long as was asked for. A size is exhausted when
    the system had to give more than `spare` bytes for it.
    """
    # Each block holds the address of the one before. A list would lie in the very memory that is being taken,
    # and what is set aside for it to grow would stay as it is.
    held = fresh = 0
    for size in sizes:
        given = 0
        while given <= spare and (block := take(size)) is not None:
            if mapped.start(block, size) is None:
                ctypes.c_size_t.from_address(block).value, fresh = fresh, block
                given += size
            else:
                _clear(block, size if usable is None else usable(block) or size)
                ctypes.c_size_t.from_address(block).value, held = held, block
        while fresh:
            block, fresh = fresh, ctypes.c_size_t.from_address(fresh).value
            give(block)
    while held:
        link = ctypes.c_size_t.from_address(held)
        block, held, link.value = held, link.value, 0
        give(block)


def _stretch_of_arena() -> int:
    """One of the stretches of memory in which this thread's arena lies."""
    block = (
        _c.malloc(2 * THREAD_CACHED) or 0
    )  # what a thread keeps for itself may come from any arena: not this
    _c.free(block)
    return int(block) >> _STRETCH


def _drain_heap(mapped: Mapped) -> None:
    """Overwrite what malloc has for this thread."""
    usable = getattr(_c, "malloc_usable_size", None)
    if usable is not None:
        usable.argtypes, usable.restype = [ctypes.c_void_p], ctypes.c_size_t
    _mallopt((_M_PERTURB, 0))  # what is taken is overwritten here, and what comes fresh needs no filling
    drain(_c.malloc, _c.free, HEAP_SIZES, mapped, usable=usable)
    fill_what_is_allocated()
    # Each call from here into C has a block of its own while it lasts, and so was never given that one. It is
    # filled when the thread has as many of its size as it keeps.
    for size in SMALL_SIZES:
        for block in [_c.malloc(size) for _ in range(THREAD_KEEPS + 1)]:
            _c.free(block)


def _drain_objects(mapped: Mapped) -> None:
    """Overwrite what the interpreter keeps free for small objects, in one heap for all threads."""
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return  # another allocator, with a heap for each thread
    take, give = ctypes.pythonapi.PyObject_Malloc, ctypes.pythonapi.PyObject_Free
    take.argtypes, take.restype = [ctypes.c_size_t], ctypes.c_void_p
    give.argtypes, give.restype = [ctypes.c_void_p], None
    # Spare, because this loop's own objects come from there, too, and may have been given a new pool.
    drain(take, give, OBJECT_SIZES, mapped, spare=POOL)


class _List(ctypes.Structure):
    """PyListObject: `size` of `allocated` places are in use."""

    _fields_ = (
        ("references", ctypes.c_ssize_t),
        ("type", ctypes.c_void_p),
        ("size", ctypes.c_ssize_t),
        ("items", ctypes.c_void_p),
        ("allocated", ctypes.c_ssize_t),
    )


def _clear_reserves_of_lists() -> None:
    """Overwrite what lists hold in reserve to grow: realloc(3) adds it in place, with what lay there."""
    if sys.implementation.name != "cpython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
        return  # other insides
    gc.collect()
    place = ctypes.sizeof(ctypes.c_void_p)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e6)  # no other thread may lengthen a list between the look and the write
    try:
        for item in gc.get_objects():
            if issubclass(type(item), list):
                head = _List.from_address(id(item))
                if head.items and head.allocated > head.size:
                    start, spare = head.items + place * head.size, head.allocated - head.size
                    _c.memset(start, 0, place * spare)
    finally:
        sys.setswitchinterval(interval)


def _clear(start: int, size: int) -> None:
    end = start + size
    if size >= LARGE:
        first, last = -(-start // PAGE) * PAGE, end // PAGE * PAGE
        # Private anonymous pages read as zeros afterwards. Locked ones are refused, and overwritten.
        if _c.madvise(first, last - first, mmap.MADV_DONTNEED) == 0:
            _c.memset(start, 0, first - start)
            _c.memset(last, 0, end - last)
            return
    _c.memset(start, 0, size)


def _clear_stack(mapped: Mapped) -> None:
    """Overwrite this thread's stack below what is in use.

    ftw(3) is asked about one file for nothing but the address of a variable on its stack: that lies below all
    that is in use here, and below what the calls that follow need.
    """
    below: list[int] = []

    def visit(_path: int, status: int, _flag: int) -> int:
        below.append(status)
        return 1

    _c.ftw(b"/dev/null", _Visit(visit), 1)
    attributes = ctypes.create_string_buffer(256)  # pthread_attr_t has 56 or 64 bytes
    lowest, size = ctypes.c_void_p(), ctypes.c_size_t()
    if not below or _c.pthread_getattr_np(ctypes.c_void_p(_c.pthread_self()), attributes) != 0:
        return
    _c.pthread_attr_getstack(attributes, ctypes.byref(lowest), ctypes.byref(size))
    _c.pthread_attr_destroy(attributes)
    begin, end, mapped_from = lowest.value or 0, below[0], mapped.start(below[0], 1)
    if not begin < end < begin + size.value or mapped_from is None:
        return  # not on this stack after all; or the stack is newer than the data
    begin = max(begin, mapped_from)  # the first thread's is mapped only as far down as it was used
    pages = (end - begin) // PAGE * PAGE
    if pages and _c.madvise(begin, pages, mmap.MADV_DONTNEED) == 0:
        begin += pages
    _c.memset(begin, 0, end - begin)


def _in_openmp_threads(work: Callable[[], None]) -> None:
    """Have this thread and each of its OpenMP workers do `work`; nothing where there is no OpenMP."""
    # What the library depends on is searched, too, whatever its name. Intel's OpenMP has GNU's functions.
    parallel = getattr(_torch_library(), "GOMP_parallel", None)
    if parallel is not None:
        parallel(_Body(lambda _: work()), None, 0, 0)  # in as many threads as the products had


def _in_new_threads(count: int, work: Callable[[], None]) -> None:
    """Do `work` in each of `count` new threads, one after the other, none of which ends before all have."""
    end = threading.Event()
    started = []
    for _ in range(min(count, MAX_THREADS)):
        done = threading.Event()

        def run(done: threading.Event = done) -> None:
            try:
                work()
            finally:
                done.set()
                end.wait()

        thread = threading.Thread(target=run, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no more threads to be had
            break
        done.wait()
        started.append(thread)
    end.set()
    for thread in started:
        thread.join()


def _count_arenas() -> int:
    """How many arenas glibc has, from what malloc_info(3) prints; 0 for another C library."""
    if not hasattr(_c, "malloc_info"):
        return 0
    _c.open_memstream.restype = ctypes.c_void_p
    text, size = ctypes.c_void_p(), ctypes.c_size_t()
    stream = ctypes.c_void_p(_c.open_memstream(ctypes.byref(text), ctypes.byref(size)))
    _c.malloc_info(0, stream)
    _c.fclose(stream)
    count = ctypes.string_at(text, size.value).count(b"<heap nr=")
    _c.free(text)
    return count


def _mallopt(*options: tuple[int, int]) -> None:
    with contextlib.suppress(AttributeError):  # glibc's alone
        for option, value in options:
            _c.mallopt(option, value)


def release_math_buffers() -> None:
    """Free the buffers into which MKL packs operands of matrix products: rows of the last batch lie there.

    The library keeps them for each thread and offers nothing to overwrite them. Without MKL, nothing is done;
    what another library keeps, the scan finds.
    """
    release = getattr(_torch_library(), "mkl_serv_free_buffers", None)
    if release is not None:
        release()


def _torch_library() -> ctypes.CDLL | None:
    if "torch" in sys.modules:  # never imported here: a workload may do without
        with contextlib.suppress(OSError):
            return ctypes.CDLL("libtorch_cpu.so", mode=os.RTLD_NOLOAD)
    return None
