"""AEGIS-256 with 256-bit tags (draft-irtf-cfrg-aegis-aead-18): libsodium's, into buffers of ours.

Why not AES-GCM: on processors without VAES (many that are for rent) GCM is the slowest part of a load and
AEGIS takes half its time; its tag commits to key and associated data as GCM's does not; and nothing expands
the key into tables on the heap.

PyNaCl's own functions return plaintext as `bytes`, a copy that nobody could wipe. So libsodium is called
through the extension module beneath them; there is no public way to hand it a buffer. tests/sealing holds
that module to the draft's vectors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

# Importing the bindings initializes libsodium, which then picks the processor's AES instructions.
import nacl.bindings  # noqa: F401
from cryptography.exceptions import InvalidTag
from nacl import _sodium  # a compiled module: no stubs, all Any

from glasshouse.sealing.memory import overwrite

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

KEY: Final = 32
NONCE: Final = 32
TAG: Final = 32

_ffi: Any = _sodium.ffi
_lib: Any = _sodium.lib


class Aegis256:
    """One key, held in a buffer of its own that is overwritten when the last user lets go of the cipher.

    Both calls let go of the interpreter's lock while libsodium works, so threads help.
    """

    def __init__(self, key: ReadableBuffer) -> None:
        self._key = bytearray(key)
        if len(self._key) != KEY:
            raise ValueError(f"a key has {KEY} bytes")

    def __del__(self) -> None:
        overwrite(self._key)

    def encrypt(self, nonce: bytes, data: ReadableBuffer, associated_data: bytes) -> bytearray:
        """Return ciphertext and tag (TAG bytes more than `data`). One nonce (NONCE bytes) serves once."""
        plain = memoryview(data)
        sealed = bytearray(plain.nbytes + TAG)
        status = _lib.crypto_aead_aegis256_encrypt(
            _bytes(sealed, writable=True),
            _ffi.NULL,  # the length is known
            _bytes(plain),
            plain.nbytes,
            associated_data,
            len(associated_data),
            _ffi.NULL,  # no secret nonce
            self._nonce(nonce),
            _bytes(self._key),
        )
        if status != 0:
            raise ValueError("libsodium refused to encrypt")
        return sealed

    def decrypt_into(
        self, nonce: bytes, data: ReadableBuffer, associated_data: bytes, out: WriteableBuffer
    ) -> None:
        """Decrypt ciphertext and tag into `out`, exactly TAG bytes smaller.

        Raises InvalidTag; libsodium has then filled `out` with zeros.
        """
        sealed, plain = memoryview(data), memoryview(out)
        if sealed.nbytes != plain.nbytes + TAG:
            raise ValueError(f"the output is not {TAG} bytes smaller than the input")
        status = _lib.crypto_aead_aegis256_decrypt(
            _bytes(plain, writable=True),
            _ffi.NULL,
            _ffi.NULL,
            _bytes(sealed),
            sealed.nbytes,
            associated_data,
            len(associated_data),
            self._nonce(nonce),
            _bytes(self._key),
        )
        if status != 0:
            raise InvalidTag

    @staticmethod
    def _nonce(nonce: bytes) -> bytes:
        if len(nonce) != NONCE:
            raise ValueError(f"a nonce has {NONCE} bytes")
        return nonce


def _bytes(buffer: ReadableBuffer, *, writable: bool = False) -> Any:
    """Point libsodium at a C-contiguous buffer, without a copy."""
    return _ffi.from_buffer("unsigned char[]", buffer, require_writable=writable)
