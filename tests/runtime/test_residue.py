"""The residue scan: another process finds a needle wherever it lies, and nothing once it is wiped."""

from __future__ import annotations

import mmap
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glasshouse.runtime import linux, residue
from glasshouse.runtime.channel import Channel, channel_pair
from glasshouse.runtime.residue import Needle, Scannable, ScannedProcess, ServingProcess
from glasshouse.runtime.search import CHUNK
from glasshouse.sealing.memory import overwrite

SIZE = 2 * CHUNK + 8192


class Subject:
    """A hardened process that puts what it is told into its memory, and can be scanned."""

    def __init__(self, channel: Channel, scanned: Scannable) -> None:
        self.channel = channel
        self.scanned = scanned

    def put(self, at: int, data: bytes) -> None:
        self.channel.send("put", {"at": at}, raw=bytearray(data))
        self.channel.expect("done", 20)

    def do(self, kind: str) -> None:
        self.channel.send(kind)
        self.channel.expect("done", 20)

    def count(self, *needles: bytes) -> list[int]:
        return self.scanned.scan([Needle("test", bytearray(needle)) for needle in needles]).counts


def _subject(channel: Channel, hand_over: bool) -> None:
    channel.send_descriptors([] if hand_over else residue.open_self())
    linux.harden()
    memory = mmap.mmap(-1, SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    kept = []
    channel.send("done")
    while True:
        kind, body, raw = channel.receive(60)
        if kind == "scan":
            residue.serve(channel)
            continue
        if kind == "put":
            memory[body["at"] : body["at"] + len(raw)] = raw
            overwrite(raw)
        elif kind == "wipe":
            overwrite(memory)
        elif kind == "shut":
            # Mapped for reading, and read by nobody: the file ends before its mapping.
            descriptor = os.memfd_create("short")
            os.ftruncate(descriptor, mmap.PAGESIZE)
            beyond = mmap.mmap(descriptor, mmap.PAGESIZE, mmap.MAP_SHARED)
            os.ftruncate(descriptor, 0)
            kept.append(beyond)
        channel.send("done")


@contextmanager
def subject(hand_over: bool) -> Iterator[Subject]:
    here, there = channel_pair()
    pid = os.fork()
    if pid == 0:
        try:
            here.close()
            _subject(there, hand_over)
        finally:
            os._exit(0)
    there.close()
    descriptors = here.receive_descriptors(20)
    here.expect("done", 20)
    scanned: Scannable = ServingProcess(here, lambda: 20.0) if hand_over else ScannedProcess(*descriptors)
    try:
        yield Subject(here, scanned)
    finally:
        scanned.close()
        here.close()
        os.waitpid(pid, 0)


@pytest.fixture(scope="module", params=[False, True], ids=["descriptor", "handed-over"])
def process(request: pytest.FixtureRequest) -> Iterator[Subject]:
    with subject(request.param) as made:
        yield made


@settings(max_examples=6, deadline=None)
@given(border=st.integers(1, 2), before=st.integers(-40, 40), size=st.integers(1 + 7, 40))
def test_a_needle_is_found_once_at_any_place_around_a_border(
    process: Subject, border: int, before: int, size: int
) -> None:
    needle = secrets.token_bytes(size)
    process.put(border * CHUNK - before, needle)
    assert process.count(needle) == [1]
    process.do("wipe")
    assert process.count(needle) == [0]


def test_every_occurrence_of_every_needle_is_counted(process: Subject) -> None:
    first, second = secrets.token_bytes(8), secrets.token_bytes(40)
    for at in (0, CHUNK - 4, 2 * CHUNK - 39, SIZE - 8):
        process.put(at, first)
    process.put(CHUNK // 2, second)
    assert process.count(first, second, secrets.token_bytes(16)) == [4, 1, 0]
    process.do("wipe")
    assert process.count(first, second) == [0, 0]


def test_the_scanner_does_not_find_its_own_copy_and_an_empty_needle_is_nowhere(process: Subject) -> None:
    assert process.count(secrets.token_bytes(24), b"") == [0, 0]
    assert process.scanned.scan([]).counts == []


def test_all_readable_memory_was_read(process: Subject) -> None:
    scan = process.scanned.scan([Needle("test", bytearray(secrets.token_bytes(8)))])
    assert scan.bytes_read > SIZE
    assert scan.unreadable_regions == 0


@pytest.mark.parametrize("hand_over", [False, True])
def test_a_region_that_cannot_be_read_is_counted_and_the_rest_is_scanned(hand_over: bool) -> None:
    with subject(hand_over) as process:
        needle = secrets.token_bytes(24)
        process.put(100, needle)
        process.do("shut")
        scan = process.scanned.scan([Needle("test", bytearray(needle))])
        assert (scan.counts, scan.unreadable_regions) == ([1], 1)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 5), st.binary(min_size=1, max_size=200)), min_size=1, max_size=4),
    st.binary(min_size=1, max_size=6),
    st.integers(1, 70),
)
def test_parts_of_any_size_count_as_the_regions_do(
    pieces: list[tuple[int, bytes]], needle: bytes, part: int
) -> None:
    # A file stands in for a process's memory: read at the same offsets, with maps to match.
    image, maps = bytearray(), ""
    for gap, content in pieces:
        image += bytes([needle[0]]) * gap  # between regions, what a search across them would find
        maps += f"{len(image):x}-{len(image) + len(content):x} rw-p 00000000 00:00 0\n"
        image += content
    files = []
    for data in (bytes(image), maps.encode()):
        files.append(os.memfd_create("scanned"))
        os.write(files[-1], data)
    scanned = ScannedProcess(*files, part=part)
    try:
        contents = [content for _, content in pieces]
        needles = [Needle("a", bytearray(needle)), Needle("b", bytearray(contents[0][:3]))]
        scan = scanned.scan(needles)
    finally:
        scanned.close()
    assert (scan.bytes_read, scan.unreadable_regions) == (sum(map(len, contents)), 0)
    assert scan.counts == [
        sum(region.startswith(item.data, at) for region in contents for at in range(len(region)))
        for item in needles
    ]


def test_what_a_process_cuts_out_of_itself_is_only_the_buffer() -> None:
    assert residue._without([(0, 10), (20, 40), (50, 60)], 25, 30) == [(0, 10), (20, 25), (30, 40), (50, 60)]
    assert residue._without([(20, 40)], 20, 40) == []
    assert residue._without([(20, 40)], 0, 100) == []
