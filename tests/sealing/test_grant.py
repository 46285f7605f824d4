"""HPKE X-Wing: known answers from published vectors, and every way a wrapped key must not open."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import pickle
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from hypothesis import given, settings
from hypothesis import strategies as st

from glasshouse.errors import SealError
from glasshouse.sealing import grant
from glasshouse.sealing.container_keys import derive

VECTORS = Path(__file__).parents[1] / "vectors" / "sealing"
KEY = bytes(range(1, 33))
KEM_KEY = grant.load_kem_private(b"\7" * 32)
PUBLIC = grant.kem_public_bytes(KEM_KEY)
WRAPPED = grant.wrap_key(KEY, PUBLIC, b"exchange")


def refused(code: str):
    return pytest.raises(SealError, check=lambda error: error.codes == (code,))


def _vectors(name: str) -> list[dict]:
    return json.loads((VECTORS / name).read_text())["vectors"]


def _bytes(vector: dict) -> dict:
    return {name: bytes.fromhex(value) for name, value in vector.items() if isinstance(value, str)}


def _extract(salt: bytes, ikm: bytes) -> bytes:
    return hmac.digest(salt or bytes(32), ikm, "sha256")


def _expand(prk: bytes, info: bytes, length: int) -> bytes:
    out, block = b"", b""
    for counter in range(1, -(-length // 32) + 1):
        block = hmac.digest(prk, block + info + bytes([counter]), "sha256")
        out += block
    return out[:length]


def _key_schedule(suite: bytes, shared: bytes, info: bytes, key_bytes: int) -> tuple[bytes, bytes]:
    """RFC 9180 section 5.1, base mode with HKDF-SHA256, written again here: (key, base nonce)."""

    def labeled_extract(salt: bytes, label: bytes, ikm: bytes) -> bytes:
        return _extract(salt, b"HPKE-v1" + suite + label + ikm)

    context = b"\0" + labeled_extract(b"", b"psk_id_hash", b"") + labeled_extract(b"", b"info_hash", info)
    secret = labeled_extract(shared, b"secret", b"")

    def labeled_expand(label: bytes, length: int) -> bytes:
        return _expand(secret, length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + context, length)

    return labeled_expand(b"key", key_bytes), labeled_expand(b"base_nonce", 12)


@pytest.mark.parametrize("vector", _vectors("hkdf-sha256.json"))
def test_our_hkdf_reading_agrees_with_rfc_5869(vector) -> None:
    parts = _bytes(vector)
    assert _extract(parts["salt"], parts["IKM"]) == parts["PRK"]
    assert _expand(parts["PRK"], parts["info"], vector["L"]) == parts["OKM"]


@pytest.mark.parametrize("vector", _vectors("hkdf-sha256.json"))
def test_container_keys_are_rfc_5869(vector) -> None:
    """`derive` takes 32 bytes: an OKM's first 32 are those of any longer one."""
    parts = _bytes(vector)
    assert derive(memoryview(parts["IKM"]), parts["salt"], parts["info"]) == parts["OKM"][:32]


@pytest.mark.parametrize("vector", _vectors("hpke-mlkem768-x25519.json"))
def test_a_seed_expands_to_the_published_public_key(vector) -> None:
    parts = _bytes(vector)
    assert grant.kem_public_bytes(grant.load_kem_private(parts["skRm"])) == parts["pkRm"]
    assert len(parts["enc"]) == grant.ENC_BYTES == 1120


@pytest.mark.parametrize("vector", _vectors("hpke-mlkem768-x25519.json"))
def test_unwrapping_opens_what_the_published_exchange_encrypts(vector) -> None:
    """The vector has another cipher. So: show the key schedule above right on it, then run it for ours."""
    parts = _bytes(vector)
    key, nonce = _key_schedule(parts["suite_id"], parts["shared_secret"], parts["info"], len(parts["key"]))
    assert (key, nonce) == (parts["key"], parts["base_nonce"])
    first = _bytes(vector["encryptions"][0])
    assert ChaCha20Poly1305(key).encrypt(nonce, first["pt"], first["aad"]) == first["ct"]

    ours = b"HPKE" + bytes.fromhex("647a00010002")  # X-Wing, HKDF-SHA256, AES-256-GCM
    key, nonce = _key_schedule(ours, parts["shared_secret"], parts["info"], 32)
    wrapped = parts["enc"] + AESGCM(key).encrypt(nonce, KEY, b"")
    assert grant.unwrap_key(wrapped, grant.load_kem_private(parts["skRm"]), parts["info"]) == KEY


def test_round_trip_gives_a_buffer_that_can_be_wiped() -> None:
    key = grant.generate_kem_key()
    wrapped = grant.wrap_key(bytearray(KEY), grant.kem_public_bytes(key), b"exchange")
    unwrapped = grant.unwrap_key(memoryview(wrapped), key, b"exchange")
    assert isinstance(unwrapped, bytearray)
    assert unwrapped == KEY
    assert len(wrapped) == grant.WRAPPED_BYTES == 1168
    assert len(grant.kem_public_bytes(key)) == grant.PUBLIC_BYTES == 1216
    assert wrapped != grant.wrap_key(KEY, grant.kem_public_bytes(key), b"exchange")


@pytest.mark.parametrize("info", [b"exchangf", b"exchang", b"exchange\0"])
def test_another_info_does_not_open(info) -> None:
    with refused("grant-unwrap-failed"):
        grant.unwrap_key(WRAPPED, KEM_KEY, info)


@pytest.mark.parametrize("info", [b"", None, "exchange"])
def test_wrapping_is_always_bound_to_something(info) -> None:
    with refused("info-malformed"):
        grant.wrap_key(KEY, PUBLIC, info)
    with refused("info-malformed"):
        grant.unwrap_key(WRAPPED, KEM_KEY, info)


def test_another_recipient_does_not_open() -> None:
    with refused("grant-unwrap-failed"):
        grant.unwrap_key(WRAPPED, grant.generate_kem_key(), b"exchange")


@settings(max_examples=150, deadline=None)
@given(bit=st.integers(0, 8 * grant.WRAPPED_BYTES - 1))
def test_no_flipped_bit_opens(bit) -> None:
    altered = bytearray(WRAPPED)
    altered[bit // 8] ^= 1 << bit % 8
    with refused("grant-unwrap-failed"):
        grant.unwrap_key(altered, KEM_KEY, b"exchange")


@settings(max_examples=60, deadline=None)
@given(wrapped=st.binary(max_size=200) | st.integers(0, 2 * grant.WRAPPED_BYTES).map(os.urandom))
def test_arbitrary_bytes_raise_nothing_but_a_seal_error(wrapped) -> None:
    with pytest.raises(SealError) as refusal:
        grant.unwrap_key(wrapped, KEM_KEY, b"exchange")
    expected = "grant-unwrap-failed" if len(wrapped) == grant.WRAPPED_BYTES else "grant-malformed"
    assert refusal.value.codes == (expected,)


@pytest.mark.parametrize("key", [b"", b"\1" * 31, b"\1" * 33, bytes(32)])
def test_only_live_32_byte_keys_are_wrapped(key) -> None:
    with refused("payload-key-malformed"):
        grant.wrap_key(key, PUBLIC, b"exchange")


@pytest.mark.parametrize(
    "public", [b"", PUBLIC[:-1], PUBLIC + b"\0", b"\xff" * 1216, PUBLIC[:1184] + bytes(32)]
)
def test_only_valid_public_keys_are_wrapped_to(public) -> None:
    """Short, long, coefficients past the modulus (FIPS 203 section 7.2), the X25519 point of low order."""
    with refused("kem-key-malformed"):
        grant.wrap_key(KEY, public, b"exchange")


@pytest.mark.parametrize("seed", [b"", b"\1" * 31, b"\1" * 33, bytes(32)])
def test_only_live_seeds_become_keys(seed) -> None:
    with refused("kem-key-malformed"):
        grant.load_kem_private(seed)


def test_a_private_key_shows_and_pickles_nothing() -> None:
    seed = bytes(grant.kem_private_bytes(KEM_KEY))
    assert seed == b"\7" * 32
    assert repr(KEM_KEY) == f"KemKey({hashlib.sha256(PUBLIC).hexdigest()[:16]})"
    with pytest.raises(TypeError):
        pickle.dumps(KEM_KEY)


def test_a_wiped_key_is_not_written_out() -> None:
    key = grant.generate_kem_key()
    assert key.wipe()
    with refused("kem-key-malformed"):
        grant.kem_private_bytes(key)


def test_a_key_files_line_gives_the_key_again() -> None:
    key = grant.generate_kem_key()
    assert grant.kem_public_bytes(grant.parse_kem_key(grant.kem_key_text(key))) == grant.kem_public_bytes(key)


@pytest.mark.parametrize(
    "text", ["", "x", "glasshouse-xwing-seed-v1 ", "glasshouse-xwing-seed-v1 AAAA", "é", "x AA"]
)
def test_damaged_key_files_are_refused(text) -> None:
    with refused("kem-key-malformed"):
        grant.parse_kem_key(text.encode())
