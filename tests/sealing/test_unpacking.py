"""A container opened to files holds what one opened in memory holds, and is refused for the same."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from glasshouse.errors import SealError
from glasshouse.sealing.container import TensorSpec, fresh_payload_key, open_package, seal_package
from glasshouse.sealing.layout import SealedObject
from glasshouse.sealing.unpacking import unpack

SPECS = [
    TensorSpec("a", "float32", (7, 5)),
    TensorSpec("none", "float32", (0,)),
    TensorSpec("b", "uint8", (900,)),
]
FILES = {"log": b"said\n" * 50, "nothing": b""}


@pytest.fixture
def sealed(tmp_path: Path) -> tuple[Path, bytearray, str]:
    """A container of several chunks: its path, its key, its manifest hash."""
    key, out = fresh_payload_key(), io.BytesIO()
    tensors = [(spec, os.urandom(spec.nbytes)) for spec in SPECS]
    digest = seal_package(out, payload_key=key, files=FILES, tensors=tensors, extra={}, chunk_bytes=64)
    path = tmp_path / "sealed"
    path.write_bytes(out.getvalue())
    return path, key, digest


def unpacked(sealed: tuple[Path, bytearray, str], folder: Path, threads: int = 2) -> dict[str, bytes]:
    """Open to one file, object behind object, and cut that apart again."""
    path, key, digest = sealed
    spans: dict[str, tuple[int, int]] = {}
    with (folder / "out").open("w+b", buffering=0) as out:

        def places(objects: Sequence[SealedObject], specs: Sequence[TensorSpec]) -> list[tuple[int, int]]:
            assert list(specs) == SPECS
            position, where = 3, []
            for item in objects:
                spans[item.name] = (position, position + item.nbytes)
                where.append((out.fileno(), position))
                position += item.nbytes
            return where

        unpack(path, places, payload_key=key, manifest_hash=digest, threads=threads)
        out.seek(0)
        data = out.read()
    return {name: data[start:end] for name, (start, end) in spans.items()}


@pytest.mark.parametrize("threads", [1, 3])
def test_files_hold_what_memory_would(
    sealed: tuple[Path, bytearray, str], tmp_path: Path, threads: int
) -> None:
    path, key, digest = sealed
    with open_package(path, payload_key=key, manifest_hash=digest, verify_digests=True) as package:
        expected = {name: bytes(data) for name, data in package.files.items()}
        expected |= {name: bytes(data) for name, (_, data) in package.tensors.items()}
    assert unpacked(sealed, tmp_path, threads) == expected


@pytest.mark.parametrize("part", [3, 40, 700, -1])
def test_a_changed_byte_is_refused_as_in_memory(
    sealed: tuple[Path, bytearray, str], tmp_path: Path, part: int
) -> None:
    path, key, digest = sealed
    data = bytearray(path.read_bytes())
    data[part] ^= 1
    path.write_bytes(data)
    with pytest.raises(SealError) as in_memory:
        open_package(path, payload_key=key, manifest_hash=digest, verify_digests=True)
    with pytest.raises(SealError) as to_files:
        unpacked(sealed, tmp_path)
    assert to_files.value.codes == in_memory.value.codes


@pytest.mark.parametrize("change", [-1, 1])
def test_another_length_is_refused_before_anything_is_written(
    sealed: tuple[Path, bytearray, str], tmp_path: Path, change: int
) -> None:
    path = sealed[0]
    os.truncate(path, path.stat().st_size + change)
    with pytest.raises(SealError, match=r"container-(truncated|trailing-bytes)"):
        unpacked(sealed, tmp_path)
    assert (tmp_path / "out").stat().st_size == 0


def test_a_sealer_that_lies_about_its_content_is_found_out(
    sealed: tuple[Path, bytearray, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "glasshouse.sealing.unpacking.chunk_digest", lambda *_: hashlib.sha256(b"other").digest()
    )
    with pytest.raises(SealError, match="digest-mismatch"):
        unpacked(sealed, tmp_path)
