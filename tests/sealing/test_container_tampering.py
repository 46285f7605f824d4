"""What someone without the key can do to a container, and someone with another container: all refused.

After every refusal the region that was already decrypted into is looked at: it must read as zeros.
"""

from __future__ import annotations

import os
import threading

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from glasshouse.errors import SealError
from glasshouse.sealing.container import open_package
from glasshouse.sealing.layout import HEADER_BYTES, TAG
from tests.sealing.tampering import CHUNK, KEY, OTHER_KEY, Sealed, codes_of


def test_the_untouched_container_opens(sealed, scratch, regions) -> None:
    assert codes_of(scratch, sealed.data, sealed.hash, regions) is None
    assert len(regions) == 1
    assert any(regions[0][:])


EXPECTED_BY_PLACE = {
    "magic": ("container-malformed",),
    "suite": ("container-malformed",),
    "reserved": ("container-malformed",),
    "manifest hash": ("manifest-hash-mismatch",),
    "commitment": ("key-commitment-mismatch",),
    "manifest": ("manifest-authentication-failed",),
    "chunk": ("chunk-authentication-failed",),
}


def place_of(sealed: Sealed, offset: int) -> str:
    bounds = {"magic": 8, "version": 10, "suite": 12, "chunk size": 16, "manifest size": 20, "reserved": 24}
    bounds |= {
        "manifest hash": 56,
        "commitment": HEADER_BYTES,
        "manifest": sealed.first,
        "chunk": len(sealed.data),
    }
    return next(place for place, end in bounds.items() if offset < end)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_flipped_bit_opens(sealed, scratch, regions, data) -> None:
    inside = [(0, 8), (8, 10), (10, 12), (12, 16), (16, 20), (20, 24), (24, 56), (56, 88), (88, sealed.first)]
    start, end = data.draw(st.sampled_from([*inside, *sealed.chunks]))
    offset = data.draw(st.integers(start, end - 1))
    altered = bytearray(sealed.data)
    altered[offset] ^= 1 << data.draw(st.integers(0, 7))

    codes = codes_of(scratch, bytes(altered), sealed.hash, regions, threads=data.draw(st.integers(1, 3)))

    place = place_of(sealed, offset)
    if place in EXPECTED_BY_PLACE:
        assert codes == EXPECTED_BY_PLACE[place]
    else:  # another version, or a size: impossible, past the end of the file, or under the manifest's tag
        assert codes in {
            ("container-malformed",),
            ("container-truncated",),
            ("manifest-authentication-failed",),
        }


def test_every_byte_of_header_and_tags_counts(sealed, scratch, regions) -> None:
    """The structurally distinct places in full: no byte of them is free."""
    tags = [range(end - TAG, end) for _, end in [(0, sealed.first), *sealed.chunks]]
    for offset in [*range(HEADER_BYTES), *(place for tag in tags[:4] for place in tag)]:
        altered = bytearray(sealed.data)
        altered[offset] ^= 0x80
        assert codes_of(scratch, bytes(altered), sealed.hash, regions, threads=1) is not None, offset


@settings(max_examples=80, deadline=None)
@given(keep=st.integers(0, 10_000))
def test_no_truncation_opens(sealed, scratch, regions, keep) -> None:
    keep = min(keep, len(sealed.data) - 1)
    assert codes_of(scratch, sealed.data[:keep], sealed.hash, regions) == ("container-truncated",)
    assert regions == []  # refused before memory is taken


def test_whole_trailing_chunks_cannot_be_dropped(sealed, scratch, regions) -> None:
    for start, _ in sealed.chunks:
        assert codes_of(scratch, sealed.data[:start], sealed.hash, regions) == ("container-truncated",)


@settings(max_examples=20, deadline=None)
@given(tail=st.binary(min_size=1, max_size=600))
def test_nothing_can_be_appended(sealed, scratch, regions, tail) -> None:
    assert codes_of(scratch, sealed.data + tail, sealed.hash, regions) == ("container-trailing-bytes",)


def _equal_sized(sealed: Sealed) -> list[tuple[int, int]]:
    size = CHUNK + TAG
    return [(start, end) for start, end in sealed.chunks if end - start == size]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_chunks_cannot_be_reordered_or_duplicated(sealed, scratch, regions, data) -> None:
    """Within an object and between objects of one dtype and size alike."""
    pair = st.lists(st.sampled_from(_equal_sized(sealed)), min_size=2, max_size=2, unique=True)
    (a, a_end), (b, b_end) = data.draw(pair)
    altered = bytearray(sealed.data)
    altered[b:b_end] = sealed.data[a:a_end]
    if data.draw(st.booleans(), label="swap"):
        altered[a:a_end] = sealed.data[b:b_end]
    assert codes_of(scratch, bytes(altered), sealed.hash, regions) == ("chunk-authentication-failed",)


def test_a_chunk_cannot_be_inserted_or_removed(sealed, scratch, regions) -> None:
    start, end = _equal_sized(sealed)[0]
    chunk = sealed.data[start:end]
    assert codes_of(scratch, sealed.data[:end] + chunk + sealed.data[end:], sealed.hash, regions) == (
        "container-trailing-bytes",
    )
    assert codes_of(scratch, sealed.data[:start] + sealed.data[end:], sealed.hash, regions) == (
        "container-truncated",
    )
    shifted = sealed.data[:start] + sealed.data[end:] + chunk
    assert codes_of(scratch, shifted, sealed.hash, regions) == ("chunk-authentication-failed",)


def test_whole_tensors_of_equal_size_cannot_be_swapped(sealed, scratch, regions) -> None:
    first = sum(item.chunks for item in sealed.objects if item.kind == "file")
    count = sealed.objects[-2].chunks
    w = slice(sealed.chunks[first][0], sealed.chunks[first + count - 1][1])
    v = slice(sealed.chunks[first + count][0], sealed.chunks[first + 2 * count - 1][1])
    altered = bytearray(sealed.data)
    altered[w], altered[v] = sealed.data[v], sealed.data[w]
    assert len(altered) == len(sealed.data)
    assert codes_of(scratch, bytes(altered), sealed.hash, regions) == ("chunk-authentication-failed",)


@pytest.mark.parametrize("key", [KEY, OTHER_KEY])
def test_parts_of_another_package_do_not_fit(sealed, scratch, regions, tmp_path, key) -> None:
    """Same layout, sealed under the same key or another: header, manifest and chunks stay its own."""
    other = Sealed(tmp_path / "other", key=key, fill=1)  # even with equal content
    assert len(other.data) == len(sealed.data)
    assert codes_of(scratch, other.data, sealed.hash, regions) == ("manifest-hash-mismatch",)

    header_swapped = other.data[:HEADER_BYTES] + sealed.data[HEADER_BYTES:]
    assert codes_of(scratch, header_swapped, sealed.hash, regions) == ("manifest-hash-mismatch",)
    expected = ("manifest-authentication-failed",) if key == KEY else ("key-commitment-mismatch",)
    assert codes_of(scratch, header_swapped, other.hash, regions) == expected

    manifest_swapped = bytearray(sealed.data)
    manifest_swapped[HEADER_BYTES : sealed.first] = other.data[HEADER_BYTES : other.first]
    assert codes_of(scratch, bytes(manifest_swapped), sealed.hash, regions) == (
        "manifest-authentication-failed",
    )

    for start, end in sealed.chunks:
        altered = bytearray(sealed.data)
        altered[start:end] = other.data[start:end]
        assert codes_of(scratch, bytes(altered), sealed.hash, regions) == ("chunk-authentication-failed",)


def test_a_wrong_key_is_refused_before_anything_is_decrypted(sealed, scratch, regions) -> None:
    codes = codes_of(scratch, sealed.data, sealed.hash, regions, key=OTHER_KEY)
    assert codes == ("key-commitment-mismatch",)
    assert regions == []


@pytest.mark.parametrize("digest", ["", "0" * 63, "g" * 64, "0" * 66, None, 5])
def test_a_malformed_expected_hash_is_refused(sealed, digest) -> None:
    with pytest.raises(SealError) as refusal:
        open_package(sealed.path, payload_key=KEY, manifest_hash=digest)
    assert refusal.value.codes == ("manifest-hash-malformed",)


def test_another_expected_hash_is_refused(sealed) -> None:
    with pytest.raises(SealError) as refusal:
        open_package(sealed.path, payload_key=KEY, manifest_hash="0" * 64)
    assert refusal.value.codes == ("manifest-hash-mismatch",)


HEADERS = st.binary(max_size=300) | st.builds(
    lambda version, suite, chunk, size, zero, rest: (
        b"GHSEALED"
        + version.to_bytes(2, "big")
        + suite.to_bytes(2, "big")
        + chunk.to_bytes(4, "big")
        + size.to_bytes(4, "big")
        + zero.to_bytes(4, "big")
        + rest
    ),
    st.sampled_from([0, 1, 2, 3, 65535]),
    st.sampled_from([0, 1, 2]),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0, 1]),
    st.binary(min_size=60, max_size=200),
)


@settings(max_examples=200, deadline=None)
@given(data=HEADERS)
@example(data=b"")
@example(data=b"GHSEALED")
def test_arbitrary_bytes_raise_nothing_but_a_seal_error(scratch, regions, data) -> None:
    codes = codes_of(scratch, data, "0" * 64, regions)
    assert codes in {("container-malformed",), ("container-truncated",), ("manifest-hash-mismatch",)}
    assert regions == []


def test_a_refusal_leaves_no_thread_and_stops_the_others(sealed, scratch, regions) -> None:
    before = threading.active_count()
    altered = bytearray(sealed.data)
    altered[sealed.chunks[0][0]] ^= 1
    assert codes_of(scratch, bytes(altered), sealed.hash, regions, threads=3) == (
        "chunk-authentication-failed",
    )
    assert threading.active_count() == before


def test_messages_name_no_content(sealed, scratch, regions) -> None:
    for start, _ in sealed.chunks:
        altered = bytearray(sealed.data)
        altered[start] ^= 1
        scratch.write_bytes(altered)
        with pytest.raises(SealError) as refusal:
            open_package(scratch, payload_key=KEY, manifest_hash=sealed.hash)
        assert not any(name in refusal.value.line() for name in ("train.py", "conf.json", "print"))
        assert refusal.value.__context__ is None  # no traceback that keeps a cipher alive


def test_what_is_no_regular_file_is_refused(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "absent", tmp_path / "pipe"):
        with pytest.raises(SealError) as refusal:
            open_package(path, payload_key=KEY, manifest_hash="0" * 64)
        assert refusal.value.codes == ("container-unreadable",)
