"""AEGIS-256 against the vectors of its draft, and what our buffers hold afterwards.

Vectors: draft-irtf-cfrg-aegis-aead, appendix "AEGIS-256 Test Vectors", those with 256-bit tags.
"""

from __future__ import annotations

import ctypes
import gc

import pytest
from cryptography.exceptions import InvalidTag
from hypothesis import given
from hypothesis import strategies as st
from nacl.bindings import crypto_aead_aegis256_decrypt, crypto_aead_aegis256_encrypt

from glasshouse.sealing.aegis import KEY, NONCE, TAG, Aegis256

KEY_1 = bytes.fromhex("1001" + "00" * 30)
NONCE_1 = bytes.fromhex("100002" + "00" * 29)
AD = bytes(range(8))
SHORT = "f373079ed84b2709faee37358458"
SHORT_TAG = "8c1cc703c81281bee3f6d9966e14948b4a175b2efbdc31e61a98b4465235c2d9"

# associated data, message, ciphertext, tag; key and nonce are the first of each
VECTORS = {
    "1": (
        b"",
        bytes(16),
        "754fc3d8c973246dcc6d741412a4b236",
        "1181a1d18091082bf0266f66297d167d2e68b845f61a3b0527d31fc7b7b89f13",
    ),
    "2": (b"", b"", "", "6a348c930adbd654896e1666aad67de989ea75ebaa2b82fb588977b1ffec864a"),
    "3": (
        AD,
        bytes(range(32)),
        "f373079ed84b2709faee373584585d60accd191db310ef5d8b11833df9dec711",
        "b7d28d0c3c0ebd409fd22b44160503073a547412da0854bfb9723020dab8da1a",
    ),
    "4": (AD, bytes(range(14)), SHORT, SHORT_TAG),
    "5": (
        bytes(range(42)),
        bytes(range(16, 56)),
        "57754a7d09963e7c787583a2e7b859bb24fa1e04d49fd550b2511a358e3bca252a9b1b8b30cc4a67",
        "a3aca270c006094d71c20e6910b5161c0826df233d08919a566ec2c05990f734",
    ),
}
# key, nonce, associated data, ciphertext, tag: each must fail
REFUSED = {
    "6 key and nonce swapped": (NONCE_1, KEY_1, AD, SHORT, SHORT_TAG),
    "7 ciphertext": (KEY_1, NONCE_1, AD, SHORT[:-1] + "9", SHORT_TAG),
    "8 associated data": (KEY_1, NONCE_1, AD[:-1] + b"\x08", SHORT, SHORT_TAG),
    "9 tag": (KEY_1, NONCE_1, AD, SHORT, SHORT_TAG[:-1] + "a"),
}


@pytest.mark.parametrize("number", VECTORS)
def test_it_gives_the_drafts_ciphertexts_and_opens_them(number: str) -> None:
    associated, message, ciphertext, tag = VECTORS[number]
    sealed = Aegis256(KEY_1).encrypt(NONCE_1, message, associated)
    assert sealed.hex() == ciphertext + tag
    out = bytearray(len(message))
    Aegis256(KEY_1).decrypt_into(NONCE_1, memoryview(sealed).toreadonly(), associated, out)
    assert out == message


@pytest.mark.parametrize("number", REFUSED)
def test_it_refuses_what_the_draft_says_must_fail_and_leaves_zeros(number: str) -> None:
    key, nonce, associated, ciphertext, tag = REFUSED[number]
    out = bytearray(b"\xff" * (len(ciphertext) // 2))
    with pytest.raises(InvalidTag):
        Aegis256(key).decrypt_into(nonce, bytes.fromhex(ciphertext + tag), associated, out)
    assert not any(out)


@given(
    key=st.binary(min_size=KEY, max_size=KEY),
    nonce=st.binary(min_size=NONCE, max_size=NONCE),
    message=st.binary(max_size=300),
    associated=st.binary(max_size=100),
    flip=st.integers(min_value=0),
)
def test_it_is_libsodiums_own_and_one_bit_anywhere_is_noticed(
    key: bytes, nonce: bytes, message: bytes, associated: bytes, flip: int
) -> None:
    cipher = Aegis256(key)
    sealed = cipher.encrypt(nonce, message, associated)
    assert sealed == crypto_aead_aegis256_encrypt(message, associated, nonce, key)
    assert crypto_aead_aegis256_decrypt(bytes(sealed), associated, nonce, key) == message
    at = flip % (8 * len(sealed))
    sealed[at // 8] ^= 1 << at % 8
    with pytest.raises(InvalidTag):
        cipher.decrypt_into(nonce, sealed, associated, bytearray(len(message)))


def test_sizes_that_do_not_fit_are_refused_before_libsodium_sees_them() -> None:
    cipher = Aegis256(KEY_1)
    for size in (0, 16, KEY - 1, KEY + 1):
        with pytest.raises(ValueError, match="key has 32 bytes"):
            Aegis256(bytes(size))
    for size in (0, 12, NONCE + 1):
        with pytest.raises(ValueError, match="nonce has 32 bytes"):
            cipher.encrypt(bytes(size), b"x", b"")
        with pytest.raises(ValueError, match="nonce has 32 bytes"):
            cipher.decrypt_into(bytes(size), bytes(TAG), b"", bytearray())
    for size in (0, 1, 3):
        with pytest.raises(ValueError, match="32 bytes smaller"):
            cipher.decrypt_into(NONCE_1, bytes(TAG + 2), b"", bytearray(size))
    with pytest.raises(ValueError, match="32 bytes smaller"):
        cipher.decrypt_into(NONCE_1, bytes(TAG - 1), b"", bytearray())
    with pytest.raises((BufferError, TypeError)):  # never into memory that is not to be written
        cipher.decrypt_into(NONCE_1, bytes(TAG + 2), b"", bytes(2))  # type: ignore[arg-type]


def test_the_key_is_overwritten_when_the_cipher_is_let_go_and_not_before() -> None:
    cipher = Aegis256(KEY_1)
    held = cipher._key  # its buffer outlives it here
    address = ctypes.addressof(ctypes.c_char.from_buffer(held))
    encrypt = cipher.encrypt
    del cipher
    gc.collect()
    assert ctypes.string_at(address, KEY) == KEY_1  # who can still encrypt keeps it
    del encrypt
    assert ctypes.string_at(address, KEY) == bytes(KEY)
    assert held == bytes(KEY)
