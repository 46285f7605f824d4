"""AEGIS-256 against the vectors of RFC 10032, and what our buffers and stacks hold afterwards.

Vectors: its appendix "AEGIS-256 Test Vectors", those with 256-bit tags.
"""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys

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


OTHER_AD = (
    "596fe7f4cceefc86c42769b4a121b9e469f2ea5a3146567286ef18f1d0aab8af4e783a08d156ebbbb01aa176ab1a39da"
    "846215111c306d1912b37e829322ff5cfb32d487b425644cbe10fb2ebdd1d7594d8c9840ab9eb860c1bc67a7623f0c31"
)


def cipher_of(key: bytes) -> Aegis256:
    return Aegis256(bytearray(key))  # it wipes what it is given


@pytest.mark.parametrize("number", VECTORS)
def test_it_gives_the_drafts_ciphertexts_and_opens_them(number: str) -> None:
    associated, message, ciphertext, tag = VECTORS[number]
    sealed = cipher_of(KEY_1).encrypt(NONCE_1, message, associated)
    assert sealed.hex() == ciphertext + tag
    out = bytearray(len(message))
    cipher_of(KEY_1).decrypt_into(NONCE_1, memoryview(sealed).toreadonly(), associated, out)
    assert out == message


@pytest.mark.parametrize("number", REFUSED)
def test_it_refuses_what_the_draft_says_must_fail_and_leaves_zeros(number: str) -> None:
    key, nonce, associated, ciphertext, tag = REFUSED[number]
    out = bytearray(b"\xff" * (len(ciphertext) // 2))
    with pytest.raises(InvalidTag):
        cipher_of(key).decrypt_into(nonce, bytes.fromhex(ciphertext + tag), associated, out)
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
    cipher = cipher_of(key)
    sealed = cipher.encrypt(nonce, message, associated)
    assert sealed == crypto_aead_aegis256_encrypt(message, associated, nonce, key)
    assert crypto_aead_aegis256_decrypt(bytes(sealed), associated, nonce, key) == message
    at = flip % (8 * len(sealed))
    sealed[at // 8] ^= 1 << at % 8
    with pytest.raises(InvalidTag):
        cipher.decrypt_into(nonce, sealed, associated, bytearray(len(message)))


def test_sizes_that_do_not_fit_are_refused_before_libsodium_sees_them() -> None:
    cipher = cipher_of(KEY_1)
    for size in (0, 16, KEY - 1, KEY + 1):
        with pytest.raises(ValueError, match="key has 32 bytes"):
            cipher_of(bytes(size))
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
    cipher = cipher_of(KEY_1)
    held = cipher._key  # its buffer outlives it here
    address = ctypes.addressof(ctypes.c_char.from_buffer(held))
    encrypt = cipher.encrypt
    del cipher
    gc.collect()
    assert ctypes.string_at(address, KEY) == KEY_1  # who can still encrypt keeps it
    del encrypt
    assert ctypes.string_at(address, KEY) == bytes(KEY)
    assert held == bytes(KEY)


@pytest.mark.parametrize("key", [None, 32, [0] * KEY, bytes(KEY)])
def test_what_is_no_buffer_to_wipe_makes_no_key(key: object, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="32 bytes, in a bytearray"):
        Aegis256(key)  # type: ignore[arg-type]
    gc.collect()
    assert capfd.readouterr().err == ""  # no complaint of __del__


@pytest.mark.parametrize("shape", ["I", "empty", "strided"])
def test_buffers_of_any_item_are_bytes_and_strided_ones_are_refused(shape: str) -> None:
    cipher = cipher_of(KEY_1)
    data = bytes(range(64))
    if shape == "strided":
        for view in (memoryview(data)[::2], memoryview(data)[::-1]):
            with pytest.raises(BufferError):
                cipher.encrypt(NONCE_1, view, b"")
        with pytest.raises(BufferError):
            cipher.decrypt_into(NONCE_1, bytes(32 + TAG), b"", memoryview(bytearray(data))[::2])
        return
    plain = memoryview(data).cast("I", (4, 4)) if shape == "I" else memoryview(data)[:0]
    out = bytearray(plain.nbytes)
    sealed = cipher.encrypt(NONCE_1, plain, AD)
    assert sealed == cipher.encrypt(NONCE_1, plain.tobytes(), AD)
    cipher.decrypt_into(NONCE_1, sealed, AD, memoryview(out).cast("I") if out else out)
    assert out == plain.tobytes()


# The key comes from where no other copy stays; a fork that knows it looks through this process's memory.
STACKS = """
import os, threading
from glasshouse.runtime.residue import Needle, ScannedProcess, open_self
from glasshouse.sealing.aegis import NONCE, Aegis256

key = bytearray(32)
with open("/dev/urandom", "rb", buffering=0) as source:
    assert source.readinto(key) == 32
scanned = ScannedProcess(*open_self())
(look, ask), (told, tell) = os.pipe(), os.pipe()
if os.fork() == 0:
    os.close(ask)
    while os.read(look, 1):
        halves = [Needle("half", bytearray(half)) for half in (key[:16], key[16:])]
        print(min(scanned.scan(halves).counts), flush=True)
        os.write(tell, b".")
    os._exit(0)

def work():
    cipher = Aegis256(held)
    for size in (0, 7, 1000):
        sealed = cipher.encrypt(bytes(NONCE), bytes(size), bytes(77))
        cipher.decrypt_into(bytes(NONCE), sealed, bytes(77), bytearray(size))

def scan():
    os.write(ask, b".")
    os.read(told, 1)

scan()
held = key
del key
thread = threading.Thread(target=work)
thread.start()
thread.join()
assert not any(held)
scan()
"""


def test_no_stack_keeps_the_key() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STACKS], capture_output=True, text=True, check=True, timeout=60
    )
    before, after = (int(line) for line in done.stdout.split())
    assert before >= 1  # both halves: the scan can see a key
    assert after == 0


def test_the_tag_commits_to_no_key() -> None:
    """Why the container commits to its key itself: one ciphertext and tag, two keys, each with its data.

    The second key's associated data was computed from the first's state (Isobe and Rahman, 2023).
    """
    sealed = cipher_of(bytes(32)).encrypt(bytes(NONCE), b"one text", bytes(96))
    other = bytes.fromhex(OTHER_AD)
    assert cipher_of(b"\1" * 32).encrypt(bytes(NONCE), b"one text", other) == sealed
