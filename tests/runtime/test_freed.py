"""What a process freed is found by a search from outside until the wipe, wherever it lay, and not after."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glasshouse.runtime import freed
from glasshouse.runtime.freed import Mapped, drain
from glasshouse.runtime.residue import Needle, ScannedProcess

ROOT = Path(__file__).resolve().parents[2]
SIZE = 24

# Secrets are made where they lie, and are told straight from there: the process never holds another copy.
PROCESS = """
import ctypes, mmap, os, threading
from glasshouse.runtime import freed

freed.keep_arenas_within_reach()
libc = ctypes.PyDLL(None)
libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
source = open("/dev/urandom", "rb", buffering=0)
kept = []

def fill(address, size):
    view = memoryview((ctypes.c_char * size).from_address(address)).cast("B")
    source.readinto(view)
    os.write(1, view[size - 36 : size - 36 + {size}])  # the allocator writes at either end

def leave(*sizes):
    blocks = [(libc.malloc(size), size) for size in sizes]
    kept.append(libc.malloc(max(sizes)))  # or the end of the heap, once free, goes back to the system
    for block, size in blocks:
        fill(block, size)
    for block, _ in blocks:
        libc.free(block)

def end_of_arena(size):
    block = libc.malloc(size)
    fill(block, size)
    libc.free(block)

def in_a_thread(work, ends):
    done = threading.Event()
    def run():
        work()
        done.set()
        if not ends:
            threading.Event().wait()
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join() if ends else done.wait()

class Large(ctypes.Structure):
    _fields_ = [("text", ctypes.c_char * 65536)]

def on_the_stack():
    # An argument passed by value is copied there, its beginning far below what is in use after the call.
    large = Large()
    fill(ctypes.addressof(large), 4096)
    libc.getpid(large)
    ctypes.memset(ctypes.addressof(large), 0, 65536)

def objects():
    for size in (200, 400, 500):
        made = [bytearray(size) for _ in range(100)]
        fill(ctypes.addressof(ctypes.c_char.from_buffer(made[0])), size)
        # The others after it: what was freed last is used again first.
        made.reverse()
        while made:
            made.pop()

def reserve():
    held = list(range(1000))
    held.append(1)
    head = freed._List.from_address(id(held))
    fill(head.items + 8 * head.size, 8 * (head.allocated - head.size))
    kept.append(held)

{statement}
os.write(2, b"f")
while order := os.read(0, 1):
    if order == b"w":
        freed.wipe()
    if order == b"p":
        freed.fill_what_is_allocated()
    if order == b"a":
        kept.append(libc.malloc(3000))
    os.write(2, order)
"""
PLACES = {
    "a block that its thread keeps": "leave(400, 600, 1032)",
    "blocks of less than a page": "leave(1100, 2000, 3500)",
    "blocks as long as MKL's": "leave(100_000, 120_000)",
    "blocks of megabytes": "libc.mallopt(-3, 1 << 25); leave(9 << 20, 2 << 20)",
    "the arena of a thread that ended": "in_a_thread(lambda: leave(600, 3000, 100_000), True)",
    "the arena of a thread that runs": "in_a_thread(lambda: leave(3000, 100_000), False)",
    "the end of a thread's arena": "in_a_thread(lambda: end_of_arena(100_000), False)",
    # Nine: by then glibc would have settled how many arenas there may be.
    "the arenas of nine threads": "[in_a_thread(lambda: leave(3000), False) for _ in range(9)]",
    "small objects": "objects()",
    "what a list holds in reserve": "reserve()",
    "the stack": "on_the_stack()",
    "the stack of a thread that ended": "in_a_thread(on_the_stack, True)",
}


@contextmanager
def process(statement: str) -> Iterator[tuple[ScannedProcess, list[Needle], Callable[[bytes], None]]]:
    """A process that has run `statement`: its memory, what it told, and a way to give it an order."""
    script = PROCESS.replace("{size}", str(SIZE)).replace("{statement}", statement)
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        stdin, stderr = child.stdin, child.stderr
        first = stderr.read(1)
        assert first == b"f", (first or b"") + (stderr.read() or b"")
        said = os.read(child.stdout.fileno(), 1 << 16)
        memory, maps = (os.open(f"/proc/{child.pid}/{name}", os.O_RDONLY) for name in ("mem", "maps"))
        scanned = ScannedProcess(memory, maps)

        def order(what: bytes) -> None:
            stdin.write(what)
            assert stderr.read(1) == what

        try:
            yield (
                scanned,
                [Needle("x", bytearray(said[at : at + SIZE])) for at in range(0, len(said), SIZE)],
                order,
            )
        finally:
            scanned.close()
            stdin.close()


@pytest.mark.parametrize("place", PLACES)
def test_what_was_freed_is_found_until_the_wipe_and_not_after(place: str) -> None:
    with process(PLACES[place]) as (scanned, needles, order):
        assert len(needles) >= 1
        assert min(scanned.scan(needles).counts) >= 1
        order(b"n")  # the control: as long as nothing is wiped, nothing goes away
        assert min(scanned.scan(needles).counts) >= 1
        order(b"w")
        assert scanned.scan(needles).counts == [0] * len(needles)


@pytest.mark.parametrize(("orders", "left"), [(b"a", 1), (b"pa", 0)])
def test_what_is_given_out_from_then_on_is_filled(orders: bytes, left: int) -> None:
    """A block that comes into use before the wipe is not overwritten by it."""
    with process("leave(3000)") as (scanned, needles, order):
        for each in orders:
            order(bytes([each]))
        order(b"w")
        assert scanned.scan(needles).counts == [left]


@pytest.mark.train
def test_a_worker_of_openmp_overwrites_what_it_keeps_for_itself() -> None:
    pytest.importorskip("torch")
    statement = """
import torch
torch.set_num_threads(2)
torch.randn(512, 512) @ torch.randn(512, 512)

def body(_):
    if threading.get_native_id() != os.getpid():
        leave(600)
        on_the_stack()

library = ctypes.CDLL("libtorch_cpu.so", mode=os.RTLD_NOLOAD)
library.GOMP_parallel(ctypes.CFUNCTYPE(None, ctypes.c_void_p)(body), None, 2, 0)
"""
    with process(statement) as (scanned, needles, order):
        live = scanned.scan(needles).counts
        assert len(live) == 2
        assert min(live) >= 1
        order(b"w")
        assert scanned.scan(needles).counts == [0, 0]


def test_what_is_in_use_stays_as_it_is() -> None:
    statement = """
block = libc.malloc(3000); fill(block, 3000); kept.append(block)
data = bytearray(300); fill(ctypes.addressof(ctypes.c_char.from_buffer(data)), 300)
in_a_thread(on_the_stack_in_use, False)
"""
    in_use = """
def on_the_stack_in_use():
    large = Large()
    fill(ctypes.addressof(large), 4096)
    kept.append(large)
"""
    with process(in_use + statement) as (scanned, needles, order):
        order(b"w")
        order(b"w")
        assert scanned.scan(needles).counts == [1, 1, 1]


def test_traces_are_there_until_the_wipe() -> None:
    statement = f"traces = freed.leave_traces({SIZE}); os.write(1, traces); freed.overwrite(traces)"
    with process(statement) as (scanned, needles, order):
        assert scanned.scan(needles).counts == [len(freed.TRACE_SIZES)]
        order(b"w")
        assert scanned.scan(needles).counts == [0]


def test_where_what_is_freed_is_unmapped_at_once_there_is_no_trace_to_look_for() -> None:
    statement = (
        f"freed.TRACE_SIZES = (1 << 20,); assert freed.leave_traces({SIZE}) is None; os.write(1, b'x')"
    )
    with process(statement):
        pass


class Heap:
    """A tiny allocator over real memory: blocks that are free, and what the system gives when none is."""

    def __init__(self, sizes: Iterable[int]) -> None:
        self.free, self.old = [], 0
        for size in sizes:
            self.free.append((self.old, size))
            self.old += size
        self.memory = bytearray(b"x" * self.old + b"y" * 4096)
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.mapped = Mapped([(self.base, self.base + self.old)])
        self.top = self.old
        self.out: list[int] = []
        self.given: list[int] = []

    def take(self, size: int) -> int:
        for index, (at, have) in enumerate(self.free):
            if have >= size:
                self.free[index : index + 1] = [(at + size, have - size)] if have > size else []
                self.out.append(self.base + at)
                break
        else:
            self.out.append(self.base + self.top)
            self.top += size
        return self.out[-1]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), max_size=20), st.integers(0, 40))
def test_all_that_is_free_is_overwritten_and_all_that_was_taken_given_back(
    words: list[int], spare: int
) -> None:
    heap = Heap([8 * count for count in words])
    drain(heap.take, heap.given.append, (128, 32, 8), heap.mapped, spare=spare)
    assert not any(heap.memory[: heap.old])
    assert heap.free == []
    assert sorted(heap.given) == sorted(heap.out)


def test_an_allocator_that_gives_no_more_ends_the_size() -> None:
    asked: list[int] = []
    drain(asked.append, asked.append, (64, 16), Mapped([]))
    assert asked == [64, 16]


def test_only_private_anonymous_writable_memory_counts_as_mapped() -> None:
    mapped = Mapped([(100, 200), (300, 400)])
    cases = [(100, 100), (100, 101), (99, 1), (300, 1), (399, 1), (399, 2), (250, 1)]
    assert [mapped.start(*case) for case in cases] == [100, None, None, 300, 300, None, None]
    here = Mapped.read()
    block = bytearray(1 << 20)
    assert here.start(id(block), 8) is not None
    assert here.start(ctypes.cast(freed._c.malloc, ctypes.c_void_p).value or 0, 1) is None  # code
