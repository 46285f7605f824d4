"""Outputs that are checked as a whole and then given a tensor at a time are what opening in memory gives."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from glasshouse.errors import SealError
from glasshouse.sealing.container import TensorSpec
from glasshouse.sealing.grant import KemKey, generate_kem_key, kem_public_bytes
from glasshouse.sealing.outputs import open_outputs, seal_outputs
from glasshouse.sealing.tree_index import PIECE_PREFIX
from glasshouse.sealing.unpacking import checked_outputs

CONTEXT = {"run": "r", "leg": "s001"}
SPECS = [
    TensorSpec(f"{PIECE_PREFIX}0", "uint8", (20_000,)),
    TensorSpec("weights", "float32", (7, 5)),
    TensorSpec("none", "float32", (0,)),
    TensorSpec(f"{PIECE_PREFIX}1", "uint8", (999,)),
]
FILES = {"log": b"said\n" * 2000, "nothing": b""}


@pytest.fixture
def key() -> KemKey:
    return generate_kem_key()


@pytest.fixture
def sealed(tmp_path: Path, key: KemKey) -> Path:
    out = io.BytesIO()
    tensors = [(spec, os.urandom(spec.nbytes)) for spec in SPECS]
    seal_outputs(
        out,
        owner_public=kem_public_bytes(key),
        context=CONTEXT,
        files=FILES,
        tensors=tensors,
        chunk_bytes=4096,
    )
    path = tmp_path / "sealed"
    path.write_bytes(out.getvalue())
    return path


@pytest.mark.parametrize("threads", [1, 3])
def test_they_are_what_memory_holds_in_any_order_and_again(sealed: Path, key: KemKey, threads: int) -> None:
    with open_outputs(sealed, key, context=CONTEXT) as package:
        files = {name: bytes(data) for name, data in package.files.items()}
        tensors = {name: bytes(data) for name, (_, data) in package.tensors.items()}
    with checked_outputs(sealed, key, context=CONTEXT, threads=threads) as checked:
        assert checked.files == files == FILES
        assert [spec for spec, _ in checked.tensors.values()] == SPECS
        for name in [*tensors, *reversed(tensors)]:
            assert bytes(checked.tensors[name][1]()) == tensors[name]
        assert not checked.mismatched


@pytest.mark.parametrize("part", [3, 40, 700, 1300, 9000, -1])
def test_a_changed_byte_is_refused_before_anything_is_given(sealed: Path, key: KemKey, part: int) -> None:
    data = bytearray(sealed.read_bytes())
    data[part] ^= 1
    sealed.write_bytes(data)
    with pytest.raises(SealError) as in_memory:
        open_outputs(sealed, key, context=CONTEXT)
    with pytest.raises(SealError) as checked, checked_outputs(sealed, key, context=CONTEXT):
        raise AssertionError("it was given")
    assert checked.value.codes == in_memory.value.codes


def test_a_byte_that_changes_after_the_check_is_not_given(sealed: Path, key: KemKey) -> None:
    with checked_outputs(sealed, key, context=CONTEXT) as checked:
        with sealed.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            last = file.read(1)[0]
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last ^ 1]))
        assert checked.tensors["weights"][1]()
        with pytest.raises(SealError, match="chunk-authentication-failed"):
            checked.tensors[f"{PIECE_PREFIX}1"][1]()


def test_only_a_trees_piece_may_have_another_digest(
    tmp_path: Path, key: KemKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a file was written to between its manifest and its encryption."""
    out = io.BytesIO()
    held = {spec.name: bytearray(os.urandom(spec.nbytes)) for spec in SPECS}

    class Late(io.BytesIO):
        changed = ""

        def write(self, data: bytes, /) -> int:
            if not self.tell():
                held[self.changed][0] ^= 1
            return super().write(data)

    for name in (f"{PIECE_PREFIX}1", "weights"):
        out = Late()
        out.changed = name
        tensors = [(spec, held[spec.name]) for spec in SPECS]
        public = kem_public_bytes(key)
        seal_outputs(
            out, owner_public=public, context=CONTEXT, files=FILES, tensors=tensors, chunk_bytes=4096
        )
        path = tmp_path / name.replace("/", "-")
        path.write_bytes(out.getvalue())
        if name == "weights":
            with (
                pytest.raises(SealError, match="digest-mismatch"),
                checked_outputs(path, key, context=CONTEXT),
            ):
                raise AssertionError("it was given")
        else:
            with checked_outputs(path, key, context=CONTEXT) as checked:
                assert checked.mismatched == {name}
                assert bytes(checked.tensors[name][1]()) == held[name]
