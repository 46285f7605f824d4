"""What someone without the key can do to a container, and someone with another container: all refused.

After every refusal the region that was already decrypted into is looked at: it must read as zeros.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import threading
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from glasshouse.canonical import canonical_json, parse_canonical
from glasshouse.errors import SealError
from glasshouse.sealing import container, keys, layout
from glasshouse.sealing.container import TensorSpec, open_package, seal_package
from glasshouse.sealing.layout import HEADER_BYTES, TAG, Header, manifest_object, parse_manifest

KEY = bytes(range(1, 33))
OTHER_KEY = bytes(range(2, 34))
CHUNK = 256
SPECS = (
    TensorSpec("w", "bfloat16", (8, 64)),
    TensorSpec("v", "bfloat16", (64, 8)),
    TensorSpec("e", "int8", (0,)),
)
FILES = {"train.py": b"print('secret')" * 40, "conf.json": b"{}"}


class Sealed:
    """A small sealed package with every kind of object, and where each part of it lies."""

    def __init__(self, path: Path, key: bytes = KEY, fill: int = 1) -> None:
        self.path, self.key = path, key
        tensors = [(spec, bytes([fill + index]) * spec.nbytes) for index, spec in enumerate(SPECS)]
        with path.open("wb") as out:
            self.hash = seal_package(
                out, payload_key=key, files=FILES, tensors=tensors, extra={"fill": fill}, chunk_bytes=CHUNK
            )
        self.data = path.read_bytes()
        self.header = Header.parse(self.data[:HEADER_BYTES])
        table = manifest_object(self.header)
        self.first = HEADER_BYTES + table.sealed_bytes
        manifest = open_package(path, payload_key=key, manifest_hash=self.hash).manifest
        self.objects = parse_manifest(canonical_json(manifest), CHUNK).objects
        self.chunks: list[tuple[int, int]] = []  # (start, end) of every sealed chunk, in order
        start = self.first
        for item in self.objects:
            for chunk in range(item.chunks):
                end = start + item.chunk_size(chunk) + TAG
                self.chunks.append((start, end))
                start = end
        assert start == len(self.data)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory) -> Sealed:
    return Sealed(tmp_path_factory.mktemp("sealed") / "package")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tampered") / "package"


@pytest.fixture(scope="module", autouse=True)
def regions():
    """Every region that opening maps, for a look afterwards; the mapping itself is the real one."""
    seen: list[mmap.mmap] = []
    real = container.private_region

    def remember(size: int) -> mmap.mmap:
        seen.append(real(size))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(container, "private_region", remember)
        yield seen


def codes_of(path: Path, data: bytes, digest: str, regions: list, *, key: bytes = KEY, threads: int = 2):
    """Open `data` and return the reason codes of its refusal, None when it opened."""
    regions.clear()
    path.write_bytes(data)
    try:
        open_package(path, payload_key=key, manifest_hash=digest, threads=threads)
    except SealError as error:
        assert not any(any(region[:]) for region in regions), "plaintext is left after a refusal"
        return error.codes
    return None


def test_the_untouched_container_opens(sealed, scratch, regions) -> None:
    assert codes_of(scratch, sealed.data, sealed.hash, regions) is None
    assert len(regions) == 1
    assert any(regions[0][:])


EXPECTED_BY_PLACE = {
    "magic": ("container-malformed",),
    "version": ("container-malformed",),
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
    else:  # a size: impossible, past the end of the file, or under the manifest's tag
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


RELABELS = {
    "dtype": lambda table: table["tensors"][0].update(dtype="float16"),
    "shape": lambda table: table["tensors"][0].update(shape=[64, 8]),
    "tensor name": lambda table: table["tensors"][0].update(name="u"),
    "file name": lambda table: table["files"][0].update(name="conf.jsom"),
    "tensor order": lambda table: table["tensors"].insert(0, table["tensors"].pop(1)),
    "salt": lambda table: table.update(salt="A" * 43),
    "digest": lambda table: table["tensors"][0].update(digest="0" * 64),
    "extra": lambda table: table.update(extra={"fill": 2}),
}


@pytest.mark.parametrize("relabel", RELABELS)
def test_even_the_key_holder_cannot_relabel_what_others_sealed(sealed, scratch, regions, relabel) -> None:
    """A manifest re-encrypted under the true key: another hash, so another package; and no chunk fits it."""
    opened = open_package(sealed.path, payload_key=KEY, manifest_hash=sealed.hash)
    table = parse_canonical(canonical_json(opened.manifest))
    RELABELS[relabel](table)
    manifest = canonical_json(table)
    # Step 1 of a forger: keep the header, put the new manifest under it.
    forged = _with_manifest(sealed, manifest, bytes.fromhex(sealed.hash))
    assert codes_of(scratch, forged, sealed.hash, regions) == ("manifest-hash-mismatch",)
    # Step 2: make the header name the new manifest. What was expected no longer matches ...
    digest = hashlib.sha256(manifest).digest()
    forged = _with_manifest(sealed, manifest, digest)
    assert codes_of(scratch, forged, sealed.hash, regions) == ("manifest-hash-mismatch",)
    # ... and if the expectation were forged as well, the old chunks do not decrypt under it.
    assert codes_of(scratch, forged, digest.hex(), regions) == ("chunk-authentication-failed",)


def _with_manifest(sealed: Sealed, manifest: bytes, digest: bytes) -> bytes:
    key = memoryview(KEY)
    header = Header(CHUNK, len(manifest), digest, keys.commitment(key, digest))
    table = manifest_object(header)
    cipher = keys.cipher_for(key, digest, table)
    ciphertext = cipher.encrypt(layout.nonce(0), manifest, table.associated_data(header.pack(), 0))
    return header.pack() + ciphertext + sealed.data[sealed.first :]


MALFORMED = {
    "not json": lambda _: b"{",
    "not canonical": lambda table: b" " + canonical_json(table),
    "list": lambda _: b"[]",
    "missing key": lambda table: canonical_json({name: table[name] for name in table if name != "extra"}),
    "unknown key": lambda table: canonical_json(table | {"more": 1}),
    "other format": lambda table: canonical_json(table | {"format": "glasshouse/sealed/v2"}),
    "other chunk size": lambda table: canonical_json(table | {"chunkBytes": CHUNK * 2}),
    "short salt": lambda table: canonical_json(table | {"salt": "AAAA"}),
    "extra is a list": lambda table: canonical_json(table | {"extra": []}),
    "files is a mapping": lambda table: canonical_json(table | {"files": {"a": 1}}),
    "negative size": lambda table: canonical_json(
        table | {"files": [{"name": "a", "bytes": -1, "digest": "0" * 64}], "tensors": []}
    ),
    "boolean size": lambda table: canonical_json(
        table | {"files": [{"name": "a", "bytes": True, "digest": "0" * 64}], "tensors": []}
    ),
    "bytes do not match shape": lambda table: canonical_json(
        table | {"tensors": [table["tensors"][0] | {"bytes": 1}, *table["tensors"][1:]]}
    ),
    "shape of floats": lambda table: canonical_json(
        table | {"tensors": [table["tensors"][0] | {"shape": [8.5, 64]}]}
    ),
    "row with more": lambda table: canonical_json(table | {"tensors": [table["tensors"][0] | {"x": 1}]}),
    "short digest": lambda table: canonical_json(
        table | {"tensors": [table["tensors"][0] | {"digest": "00"}]}
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_manifest_is_refused_though_it_authenticates(sealed, scratch, regions, case) -> None:
    opened = open_package(sealed.path, payload_key=KEY, manifest_hash=sealed.hash)
    regions.clear()
    manifest = MALFORMED[case](opened.manifest)
    digest = hashlib.sha256(manifest).digest()
    codes = codes_of(scratch, _with_manifest(sealed, manifest, digest), digest.hex(), regions)
    assert codes in {("manifest-malformed",), ("tensor-malformed",)}
    assert regions == []


@pytest.mark.parametrize(("field", "code"), [("name", "name-malformed"), ("dup", "name-duplicate")])
def test_names_in_an_authentic_manifest_are_checked_too(sealed, scratch, regions, field, code) -> None:
    opened = open_package(sealed.path, payload_key=KEY, manifest_hash=sealed.hash)
    row = opened.manifest["files"][0]
    rows = [row | {"name": "../x"}] if field == "name" else [row, row]
    manifest = canonical_json(opened.manifest | {"files": rows})
    digest = hashlib.sha256(manifest).digest()
    assert codes_of(scratch, _with_manifest(sealed, manifest, digest), digest.hex(), regions) == (code,)


def test_a_huge_claim_takes_no_memory(sealed, scratch, regions) -> None:
    """2^52 bytes in an authentic manifest: refused by the file's size, before any region is mapped."""
    opened = open_package(sealed.path, payload_key=KEY, manifest_hash=sealed.hash)
    regions.clear()
    row = {"name": "big", "bytes": 2**52, "dtype": "uint8", "shape": [2**52], "digest": "0" * 64}
    manifest = canonical_json(opened.manifest | {"tensors": [row]})
    digest = hashlib.sha256(manifest).digest()
    codes = codes_of(scratch, _with_manifest(sealed, manifest, digest), digest.hex(), regions)
    assert codes == ("container-truncated",)
    assert regions == []


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
    st.sampled_from([0, 1, 2, 65535]),
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
