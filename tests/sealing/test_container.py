"""Round trips, and what an honest mistake in sealing meets."""

from __future__ import annotations

import io
import itertools
import mmap
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glasshouse.canonical import canonical_json, sha256_hex
from glasshouse.sealing import container
from glasshouse.sealing.container import (
    OpenedPackage,
    SealError,
    TensorSpec,
    fresh_payload_key,
    open_package,
    seal_package,
)
from glasshouse.sealing.layout import DTYPE_BYTES

KEY = bytes(range(1, 33))


def seal(path: Path, **arguments: object) -> str:
    given = {"payload_key": KEY, "files": {}, "tensors": [], "extra": {}} | arguments
    with path.open("wb") as out:
        return seal_package(out, **given)


def refused(*codes: str):
    """`pytest.raises` for a SealError with exactly these reason codes."""
    return pytest.raises(SealError, check=lambda error: error.codes == codes)


def contents(package: OpenedPackage) -> tuple[dict[str, bytes], dict[str, tuple[TensorSpec, bytes]]]:
    return (
        {name: bytes(view) for name, view in package.files.items()},
        {name: (spec, bytes(view)) for name, (spec, view) in package.tensors.items()},
    )


@pytest.mark.parametrize("most", [0, 1, 3, 5])  # of three chunks in two passes
@pytest.mark.parametrize("threads", [1, 3])
def test_whoever_wants_it_ended_ends_it_before_any_chunk(tmp_path: Path, most: int, threads: int) -> None:
    asked = itertools.count(1)

    def check() -> None:
        if next(asked) > most:
            raise KeyError("enough")

    before = threading.active_count()
    with pytest.raises(KeyError, match="enough"):
        seal(tmp_path / "package", files={"f": bytes(192)}, chunk_bytes=64, threads=threads, check=check)
    assert threading.active_count() == before


shapes = st.lists(st.integers(0, 9), max_size=3).map(tuple)
names = st.text(
    st.characters(min_codepoint=33, max_codepoint=0x2FF, categories=["L", "N"]), min_size=1, max_size=20
)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), chunk=st.integers(64, 700), threads=st.integers(1, 3))
def test_what_was_sealed_is_what_opens(tmp_path_factory, data, chunk, threads) -> None:
    path = tmp_path_factory.mktemp("seal") / "package"
    files = data.draw(st.dictionaries(names, st.binary(max_size=900), max_size=4))
    tensors = []
    for name in data.draw(st.sets(names, max_size=4)):
        spec = TensorSpec(name, data.draw(st.sampled_from(sorted(DTYPE_BYTES))), data.draw(shapes))
        tensors.append((spec, data.draw(st.binary(min_size=spec.nbytes, max_size=spec.nbytes))))
    extra = data.draw(
        st.dictionaries(names, st.integers(-5, 5) | st.text(max_size=5) | st.none(), max_size=3)
    )

    digest = seal(path, files=files, tensors=tensors, extra=extra, chunk_bytes=chunk, threads=threads)
    package = open_package(path, payload_key=KEY, manifest_hash=digest, threads=threads, verify_digests=True)

    assert contents(package) == (files, {spec.name: (spec, content) for spec, content in tensors})
    assert list(package.tensors) == [spec.name for spec, _ in tensors]
    assert package.extra == extra
    assert sha256_hex(canonical_json(package.manifest)) == digest
    assert package.wipe()


def test_plaintext_lives_in_the_region_page_aligned_and_only_wipe_clears_it(tmp_path) -> None:
    weights = np.arange(3000, dtype=np.float32).reshape(30, 100)
    digest = seal(
        tmp_path / "p", files={"a/b.py": b"print"}, tensors=[(TensorSpec("w", "float32", (30, 100)), weights)]
    )
    package = open_package(tmp_path / "p", payload_key=KEY, manifest_hash=digest)
    _, view = package.tensors["w"]
    base = np.frombuffer(package.region, np.uint8).ctypes.data
    tensor = np.frombuffer(view, np.float32).reshape(30, 100)

    assert np.array_equal(tensor, weights)
    assert (tensor.ctypes.data - base) % mmap.PAGESIZE == 0
    assert base <= tensor.ctypes.data < base + len(package.region)
    assert package.files["a/b.py"].readonly
    tensor += 1  # a trainer works in place
    assert package.wiped is False
    assert package.wipe()
    assert package.wiped is True
    assert not tensor.any()
    assert bytes(package.files["a/b.py"]) == bytes(5)
    assert not any(package.region[:])


def test_leaving_the_context_wipes(tmp_path) -> None:
    digest = seal(tmp_path / "p", files={"f": b"content"})
    with open_package(tmp_path / "p", payload_key=KEY, manifest_hash=digest) as package:
        assert bytes(package.files["f"]) == b"content"
    assert bytes(package.files["f"]) == bytes(7)


def test_an_empty_package_opens(tmp_path) -> None:
    package = open_package(tmp_path / "p", payload_key=KEY, manifest_hash=seal(tmp_path / "p"))
    assert contents(package) == ({}, {})
    assert package.wipe()


def test_scalars_and_empty_tensors_keep_their_shape(tmp_path) -> None:
    specs = [
        TensorSpec("s", "bfloat16", ()),
        TensorSpec("e", "int64", (0, 3)),
        TensorSpec("v", "float64", (1,)),
    ]
    digest = seal(
        tmp_path / "p", tensors=[(specs[0], b"ab"), (specs[1], np.zeros((0, 3))), (specs[2], b"12345678")]
    )
    _, tensors = contents(open_package(tmp_path / "p", payload_key=KEY, manifest_hash=digest))
    assert tensors == {"s": (specs[0], b"ab"), "e": (specs[1], b""), "v": (specs[2], b"12345678")}


@pytest.mark.parametrize("size", [(1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5 << 20])
def test_sizes_around_a_chunk_boundary(tmp_path, size) -> None:
    content = np.random.default_rng(size).bytes(size)
    digest = seal(tmp_path / "p", tensors=[(TensorSpec("w", "uint8", (size,)), content)], chunk_bytes=1 << 20)
    package = open_package(
        tmp_path / "p", payload_key=KEY, manifest_hash=digest, threads=2, verify_digests=True
    )
    assert package.tensors["w"][1] == content
    assert package.wipe()


def test_a_mapped_tensor_streams_and_no_thread_is_left(tmp_path) -> None:
    source = tmp_path / "weights"
    source.write_bytes(np.random.default_rng(1).bytes(3 << 20))
    before = threading.active_count()
    with source.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        spec = TensorSpec("w", "bfloat16", (3 << 19,))
        digest = seal(tmp_path / "p", tensors=((s, d) for s, d in [(spec, mapped)]), chunk_bytes=1 << 16)
    package = open_package(tmp_path / "p", payload_key=KEY, manifest_hash=digest, threads=4)
    assert package.tensors["w"][1] == source.read_bytes()
    assert threading.active_count() == before


class _OneAtATime:
    """Re-iterable that makes each tensor when asked and counts how many are alive."""

    def __init__(self, sizes: list[tuple[int, ...]]) -> None:
        self.passes, self.sizes = 0, sizes

    def __iter__(self):
        self.passes += 1
        size = self.sizes[min(self.passes, len(self.sizes)) - 1]
        for index, count in enumerate(size):
            yield TensorSpec(f"t{index}", "uint8", (count,)), bytes([index + 1]) * count


def test_a_lazy_source_is_gone_through_twice(tmp_path) -> None:
    source = _OneAtATime([(100, 200)])
    digest = seal(tmp_path / "p", tensors=source, chunk_bytes=64)
    package = open_package(tmp_path / "p", payload_key=KEY, manifest_hash=digest, verify_digests=True)
    assert source.passes == 2
    assert bytes(package.tensors["t1"][1]) == b"\2" * 200


@pytest.mark.parametrize("second", [(100, 201), (100,), (101, 200)])
def test_a_source_that_changes_its_shape_is_refused(tmp_path, second) -> None:
    with refused("source-changed"):
        seal(tmp_path / "p", tensors=_OneAtATime([(100, 200), second]))


def test_content_that_changes_between_the_passes_fails_the_digest(tmp_path) -> None:
    class Changing:
        passes = 0

        def __iter__(self):
            self.passes += 1
            yield TensorSpec("w", "uint8", (3,)), bytes([self.passes] * 3)

    digest = seal(tmp_path / "p", tensors=Changing())
    assert open_package(tmp_path / "p", payload_key=KEY, manifest_hash=digest).wipe()
    with refused("digest-mismatch"):
        open_package(tmp_path / "p", payload_key=KEY, manifest_hash=digest, verify_digests=True)


def test_two_seals_of_one_package_share_no_bytes_but_the_format(tmp_path) -> None:
    """A salted manifest: even with the key used twice, hash, keys and ciphertext are fresh."""
    first, second = (seal(tmp_path / name, files={"f": b"same" * 40}) for name in "ab")
    assert first != second
    one, two = (tmp_path / "a").read_bytes()[88:], (tmp_path / "b").read_bytes()[88:]
    assert len(one) == len(two)
    assert not set(zip(*[iter(one)] * 16, strict=False)) & set(zip(*[iter(two)] * 16, strict=False))


def test_nothing_of_the_plaintext_is_in_the_container(tmp_path) -> None:
    digest = seal(
        tmp_path / "p",
        files={"secret-name.py": b"secret-content"},
        tensors=[(TensorSpec("secret-tensor", "uint8", (13,)), b"secret-weight")],
        extra={"secret-extra": "secret-value"},
    )
    sealed = (tmp_path / "p").read_bytes()
    assert b"secret" not in sealed
    assert b"tensors" not in sealed
    assert bytes.fromhex(digest) in sealed


def test_fresh_keys_differ() -> None:
    assert fresh_payload_key() != fresh_payload_key()
    assert len(fresh_payload_key()) == 32


@pytest.mark.parametrize("key", [b"", b"\1" * 31, b"\1" * 33, bytes(32), bytearray(32)])
def test_a_key_that_is_short_or_wiped_seals_and_opens_nothing(tmp_path, key) -> None:
    out = io.BytesIO()
    with refused("payload-key-malformed"):
        seal_package(out, payload_key=key, files={}, tensors=[], extra={})
    assert out.getvalue() == b""
    digest = seal(tmp_path / "p")
    with refused("payload-key-malformed"):
        open_package(tmp_path / "p", payload_key=key, manifest_hash=digest)


@pytest.mark.parametrize(
    "name", ["", "/abs", "a//b", "../up", "a/../b", "./a", "a/", "a\\b", "nul\0", "x" * 513, "\ud800"]
)
def test_file_names_that_could_leave_a_folder_are_refused(tmp_path, name) -> None:
    with refused("name-malformed"):
        seal(tmp_path / "p", files={name: b""})


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        ("float33", (1,)),
        ("", ()),
        ("float32", (-1,)),
        ("float32", (True,)),
        ("float32", (1.0,)),
        ("float32", [1]),
        ("uint8", (1,) * 33),
        ("float32", (2**53,)),
        ("uint8", (2**30, 2**30)),
    ],
)
def test_specs_that_mean_nothing_are_refused(dtype, shape) -> None:
    with refused("tensor-malformed"):
        TensorSpec("w", dtype, shape)


def test_sealing_refuses_wrong_sizes_duplicates_strides_and_odd_manifests(tmp_path) -> None:
    spec = TensorSpec("w", "bfloat16", (3,))
    for content in (b"", b"12345", b"1234567"):
        with refused("tensor-malformed"):
            seal(tmp_path / "p", tensors=[(spec, content)])
    with refused("tensor-malformed"):
        seal(tmp_path / "p", tensors=[(spec, np.zeros(6, np.uint8)[::2].view())])
    with refused("name-duplicate"):
        seal(tmp_path / "p", tensors=[(spec, b"123456"), (spec, b"123456")])
    with refused("manifest-malformed"):
        seal(tmp_path / "p", extra={"x": float("nan")})
    with refused("manifest-malformed"):
        seal(tmp_path / "p", extra={"x": "y" * (8 << 20)})
    for chunk in (63, (64 << 20) + 1, True):
        with refused("chunk-size-malformed"):
            seal(tmp_path / "p", chunk_bytes=chunk)


def test_a_file_and_a_tensor_may_share_a_name(tmp_path) -> None:
    digest = seal(tmp_path / "p", files={"x": b"file"}, tensors=[(TensorSpec("x", "uint8", (6,)), b"tensor")])
    package = open_package(tmp_path / "p", payload_key=KEY, manifest_hash=digest)
    assert (bytes(package.files["x"]), bytes(package.tensors["x"][1])) == (b"file", b"tensor")


def test_the_module_names_what_others_import() -> None:
    assert all(hasattr(container, name) for name in container.__all__)
