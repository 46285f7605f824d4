"""Sealed outputs: the owner opens them, nobody else does, and their digests say what the events may say."""

from __future__ import annotations

import hashlib
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glasshouse.canonical import canonical_json, record_json, sha256_hex
from glasshouse.errors import SealError
from glasshouse.sealing.container import TensorSpec
from glasshouse.sealing.grant import KemKey, generate_kem_key, kem_public_bytes, load_kem_private
from glasshouse.sealing.outputs import PREFIX_BYTES, SealedOutputs, open_outputs, seal_outputs

OWNER = load_kem_private(b"\5" * 32)
CONTEXT = {"run": "20261121-090000-abcdef", "leg": "s000", "launch": "1"}
SPEC = TensorSpec("adapter", "float32", (4, 3))
WEIGHTS = bytes(range(48))


def sealed(**arguments: object) -> tuple[bytes, SealedOutputs]:
    out = io.BytesIO()
    given = {
        "owner_public": kem_public_bytes(OWNER),
        "context": CONTEXT,
        "files": {"log.txt": b"loss 1.0"},
        "tensors": [(SPEC, WEIGHTS)],
    }
    report = seal_outputs(out, **(given | arguments))
    return out.getvalue(), report


DATA, REPORT = sealed()


def refused(*codes: str):
    return pytest.raises(SealError, check=lambda error: error.codes in {(code,) for code in codes})


def open_bytes(path, data: bytes, owner: KemKey = OWNER, context: dict = CONTEXT, **arguments):
    path.write_bytes(data)
    return open_outputs(path, owner, context=context, **arguments)


def test_the_owner_opens_what_was_sealed(tmp_path) -> None:
    package = open_bytes(tmp_path / "o", DATA, plaintext_sha256=REPORT.plaintext_sha256)
    assert bytes(package.files["log.txt"]) == b"loss 1.0"
    assert package.tensors["adapter"] == (SPEC, WEIGHTS)
    assert package.wipe()


def test_the_report_says_what_was_written(tmp_path) -> None:
    assert REPORT.bytes == len(DATA)
    assert REPORT.ciphertext_sha256 == hashlib.sha256(DATA).hexdigest()
    package = open_bytes(tmp_path / "o", DATA)
    assert REPORT.plaintext_sha256 == sha256_hex(canonical_json(package.manifest))
    assert set(record_json(REPORT)) == {"plaintextSha256", "ciphertextSha256", "bytes"}


def test_equal_outputs_have_unlinkable_digests() -> None:
    """Salted: publishing the digest lets nobody confirm a guess of the outputs."""
    _, again = sealed()
    assert again.plaintext_sha256 != REPORT.plaintext_sha256
    assert again.ciphertext_sha256 != REPORT.ciphertext_sha256


def test_another_owner_does_not_open(tmp_path) -> None:
    with refused("grant-unwrap-failed"):
        open_bytes(tmp_path / "o", DATA, owner=generate_kem_key())


@pytest.mark.parametrize("change", [{"launch": "2"}, {"leg": "s001"}, {"run": "x"}, {"more": "y"}])
def test_another_context_does_not_open(tmp_path, change) -> None:
    with refused("grant-unwrap-failed"):
        open_bytes(tmp_path / "o", DATA, context=CONTEXT | change)


@pytest.mark.parametrize("context", [{}, {"launch": 1}, {1: "x"}])
def test_a_context_is_strings_and_not_empty(tmp_path, context) -> None:
    with refused("context-malformed"):
        sealed(context=context)
    with refused("context-malformed"):
        open_bytes(tmp_path / "o", DATA, context=context)


def test_outputs_that_the_events_do_not_name_are_refused(tmp_path) -> None:
    with refused("manifest-hash-mismatch"):
        open_bytes(tmp_path / "o", DATA, plaintext_sha256="0" * 64)


def test_a_prefix_fits_one_container(tmp_path) -> None:
    other, _ = sealed()
    with refused("manifest-hash-mismatch"):
        open_bytes(tmp_path / "o", other[:PREFIX_BYTES] + DATA[PREFIX_BYTES:])
    mixed = other[:12] + DATA[12:44] + other[44:PREFIX_BYTES] + DATA[PREFIX_BYTES:]
    with refused("grant-unwrap-failed"):
        open_bytes(tmp_path / "o", mixed)


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_no_flipped_bit_opens(tmp_path_factory, data) -> None:
    inside = [
        (0, 8),
        (8, 12),
        (12, 44),
        (44, PREFIX_BYTES),
        (PREFIX_BYTES, PREFIX_BYTES + 88),
        (PREFIX_BYTES + 88, len(DATA)),
    ]
    start, end = data.draw(st.sampled_from(inside))
    altered = bytearray(DATA)
    altered[data.draw(st.integers(start, end - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(SealError):
        open_bytes(tmp_path_factory.getbasetemp() / "flipped", bytes(altered))


@settings(max_examples=40, deadline=None)
@given(keep=st.integers(0, len(DATA) - 1))
def test_no_truncation_opens(tmp_path_factory, keep) -> None:
    with refused("container-truncated"):
        open_bytes(tmp_path_factory.getbasetemp() / "short", DATA[:keep])


class _Dripping(io.RawIOBase):
    """An unbuffered file that takes a few bytes at a time, as a pipe may."""

    def __init__(self, at_most: int) -> None:
        self.taken, self.at_most = bytearray(), at_most

    def write(self, data) -> int:
        piece = bytes(data[: self.at_most])
        self.taken += piece
        return len(piece)


def test_short_writes_lose_nothing(tmp_path) -> None:
    out = _Dripping(7)
    report = seal_outputs(
        out, owner_public=kem_public_bytes(OWNER), context=CONTEXT, files={"a": b"x" * 500}, tensors=[]
    )
    assert report.bytes == len(out.taken)
    assert report.ciphertext_sha256 == sha256_hex(out.taken)
    assert bytes(open_bytes(tmp_path / "o", bytes(out.taken)).files["a"]) == b"x" * 500


def test_an_output_that_takes_nothing_is_an_error() -> None:
    with pytest.raises(BlockingIOError):
        seal_outputs(
            _Dripping(0), owner_public=kem_public_bytes(OWNER), context=CONTEXT, files={}, tensors=[]
        )
