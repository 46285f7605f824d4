"""The search for many patterns at once counts what the plain search counts, one pattern after another."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glasshouse.runtime import search
from glasshouse.runtime.search import BY_WORDS, CHUNK, WORD, Search
from tests.runtime.reference_search import ReferenceSearch

# Few different bytes, so that patterns occur often, overlap, and share words; zeros in long runs.
BYTES = st.lists(
    st.one_of(
        st.binary(min_size=1, max_size=12),
        st.integers(1, 90).map(bytes),
        st.lists(st.sampled_from([0, 1, 63]), min_size=1, max_size=24).map(bytes),
    ),
    min_size=1,
    max_size=12,
).map(b"".join)


def occurrences(memory: bytes, pattern: bytes) -> int:
    return sum(memory.startswith(pattern, at) for at in range(len(memory))) if pattern else 0


def counted(
    way: type[Search | ReferenceSearch], chunks: Sequence[bytes], patterns: Sequence[bytes], at: int = 1 << 12
) -> list[int]:
    made = way([bytearray(pattern) for pattern in patterns])
    try:
        for chunk in chunks:
            made.feed(at, chunk)
            at += len(chunk)
        assert made.bytes_read == sum(map(len, chunks))
        return made.counts
    finally:
        made.close()


@settings(max_examples=150, deadline=None)
@given(
    memory=BYTES,
    parts=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 48)), max_size=8),
    others=st.lists(BYTES.map(lambda pattern: pattern[:48]), max_size=4),
    cuts=st.lists(st.integers(1, 60)),
    misses=st.sampled_from([0, 1, search.MAX_MISSES]),
)
def test_chunks_of_any_size_count_as_the_plain_search_and_as_the_whole_do(
    memory: bytes, parts: list[tuple[int, int]], others: list[bytes], cuts: list[int], misses: int
) -> None:
    patterns = [*(memory[at : at + size] for at, size in parts), *others]
    chunks, at = [], 0
    for size in [*cuts, len(memory)]:
        if at < len(memory):
            chunks.append(memory[at : at + size])
        at += size
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(search, "MAX_MISSES", misses)
        found = counted(Search, chunks, patterns)
    assert found == counted(ReferenceSearch, chunks, patterns)
    assert found == [occurrences(memory, pattern) for pattern in patterns]


def test_a_pattern_of_any_length_is_found_wherever_it_begins() -> None:
    noise = secrets.token_bytes(400)
    for size in range(1, BY_WORDS.stop + 9):
        for at in range(2 * WORD):
            pattern = b"\xff" + secrets.token_bytes(size - 1)
            memory = noise[:at] + pattern + noise[at:]
            cut = at + size // 2
            assert counted(Search, [memory], [pattern]) == [occurrences(memory, pattern)]
            assert counted(Search, [memory[:cut], memory[cut:]], [pattern]) == [occurrences(memory, pattern)]


@settings(max_examples=20, deadline=None)
@given(size=st.integers(1, 40), before=st.integers(0, 40), data=st.data())
def test_a_pattern_is_found_around_the_border_of_whole_chunks(
    size: int, before: int, data: st.DataObject
) -> None:
    # One of the chunks is zeros but for it: what reaches into the other is not lost.
    zeros = data.draw(st.booleans())  # all but the pattern: a chunk may hold no more than zeros that end it
    pattern = bytearray(secrets.token_bytes(size))
    ends_in_zeros = data.draw(st.integers(0, size - 1))
    pattern[size - ends_in_zeros :] = bytes(ends_in_zeros)
    pattern[0] |= 1
    memory = bytearray(2 * CHUNK) if zeros else bytearray(secrets.token_bytes(64) * (2 * CHUNK // 64))
    at = CHUNK - min(before, size)
    memory[at : at + size] = pattern
    chunks = [bytes(memory[:CHUNK]), bytes(memory[CHUNK:])]
    assert counted(Search, chunks, [bytes(pattern)]) == counted(ReferenceSearch, chunks, [bytes(pattern)])


def test_a_pattern_may_reach_into_zeros_as_far_as_it_goes() -> None:
    for size in range(1, BY_WORDS.stop + 9):
        pattern = b"\x01" + bytes(size - 1)
        chunks = [b"..." + pattern[:1], bytes(4 * size), bytes(4 * size)]
        assert counted(Search, chunks, [pattern, bytes(size)]) == [1, 7 * size + 1]


def test_a_pattern_whose_words_are_everywhere_is_found_all_the_same() -> None:
    pattern = b"\x01" + bytes(22) + b"\x02"
    memory = bytearray(b"\x01" + bytes(23)) * 1000  # each word of it, and never the whole
    memory[7777 : 7777 + len(pattern)] = pattern
    assert counted(Search, [bytes(memory)], [pattern, b"\x01" + bytes(7)]) == counted(
        ReferenceSearch, [bytes(memory)], [pattern, b"\x01" + bytes(7)]
    )
    assert counted(Search, [bytes(memory)], [pattern]) == [1]


def test_memory_that_does_not_adjoin_does_not_join() -> None:
    made = Search([bytearray(b"needle")])
    made.feed(0, b"...nee")
    made.feed(100, b"dle...")
    assert made.counts == [0]


def test_what_was_searched_is_overwritten() -> None:
    made = Search([bytearray(b"needle")])
    made.feed(0, b"...needle")
    made.feed(9, b"...")
    assert bytes(made._view).count(b"...") >= 1
    made.close()
    assert not any(made._view)
