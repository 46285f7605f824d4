"""AEGIS-256 with 256-bit tags (RFC 10032): libsodium's, into buffers of ours.

Why not AES-GCM: on processors without VAES (many that are for rent) GCM is the slowest part of a load and
AEGIS takes half its time; and nothing expands the key into tables on the heap. Like GCM's, its tag does *not*
commit to the key: whoever picks the associated data makes one ciphertext open under two keys (tests/sealing
does). The container commits to its key itself (`keys.commitment`).

PyNaCl's own functions return plaintext as `bytes`, a copy that nobody could wipe. So libsodium is called
through the extension module beneath them; there is no public way to hand it a buffer. tests/sealing holds
that module to the vectors of the specification. libsodium leaves the key and the last bytes of a message on
the stack, which a forked trainer inherits: see `_call`. On a processor without AES instructions it computes
in software, slowly, and promises no protection from side channels.
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

# Through every loop of libsodium's: two blocks, one and a part of associated data, one and a part of message.
_ZEROS: Final = bytes(KEY)
_SPENT_AD: Final = 49
_SPENT_PLAIN: Final = 31
_SPENT: Final = bytes(_SPENT_PLAIN + TAG)  # serves as any input


class Aegis256:
    """One key, in the caller's own buffer, which is overwritten when the last user lets go of the cipher.

    Both calls let go of the interpreter's lock while libsodium works, so threads help.
    """

    def __init__(self, key: bytearray) -> None:
        """Take `key` over (KEY bytes): one copy fewer to wipe."""
        self._key = key
        if not isinstance(key, bytearray) or len(key) != KEY:
            raise ValueError(f"a key has {KEY} bytes, in a bytearray")

    def __del__(self) -> None:
        if isinstance(self._key, bytearray):
            overwrite(self._key)

    def encrypt(self, nonce: bytes, data: ReadableBuffer, associated_data: bytes) -> bytearray:
        """Return ciphertext and tag (TAG bytes more than `data`). One nonce (NONCE bytes) serves once."""
        plain = memoryview(data)
        sealed = bytearray(plain.nbytes + TAG)
        status = _call(
            _lib.crypto_aead_aegis256_encrypt,
            (
                _bytes(sealed, writable=True),
                _ffi.NULL,  # the length is known
                _bytes(plain),
                plain.nbytes,
                associated_data,
                len(associated_data),
                _ffi.NULL,  # no secret nonce
                self._nonce(nonce),
                _bytes(self._key),
            ),
            (bytearray(len(_SPENT)), _ffi.NULL, _SPENT, _SPENT_PLAIN, _SPENT, _SPENT_AD, _ffi.NULL),
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
        status = _call(
            _lib.crypto_aead_aegis256_decrypt,
            (
                _bytes(plain, writable=True),
                _ffi.NULL,
                _ffi.NULL,
                _bytes(sealed),
                sealed.nbytes,
                associated_data,
                len(associated_data),
                self._nonce(nonce),
                _bytes(self._key),
            ),
            (bytearray(_SPENT_PLAIN), _ffi.NULL, _ffi.NULL, _SPENT, len(_SPENT), _SPENT, _SPENT_AD),
        )
        if status != 0:
            raise InvalidTag

    @staticmethod
    def _nonce(nonce: bytes) -> bytes:
        if len(nonce) != NONCE:
            raise ValueError(f"a nonce has {NONCE} bytes")
        return nonce


def _call(function: Any, arguments: tuple[Any, ...], spent: tuple[Any, ...]) -> int:
    """Call libsodium between two calls with nothing that matters; return its status.

    The call after overwrites the stack: the same function from the same place, so its frames lie where those
    with the key lay. The call before has the loader resolve whatever this thread never called; it saves all
    registers to the stack, deeper down (half a key was seen there). `spent` lacks nonce and key, and begins
    with a buffer for the result.
    """
    result, *rest = spent
    other = (_bytes(result, writable=True), *rest, _ZEROS, _ZEROS)
    _, status, _ = [int(function(*each)) for each in (other, arguments, other)]
    return status


def _bytes(buffer: ReadableBuffer, *, writable: bool = False) -> Any:
    """Point libsodium at a C-contiguous buffer, without a copy."""
    return _ffi.from_buffer("unsigned char[]", buffer, require_writable=writable)
