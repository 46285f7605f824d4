"""Wrap a payload key to one recipient: HPKE (RFC 9180, base mode) with X-Wing, HKDF-SHA256 and AES-256-GCM.

X-Wing (draft-connolly-cfrg-xwing-kem, KEM id 0x647a) is ML-KEM-768 with X25519: it holds if either does. Base
mode does not say who wrapped a key, so what carries the ciphertext is signed (attestation/tokens.py), and
`info` binds it to one exchange.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from glasshouse.canonical import CanonicalError, b64u, b64u_decode
from glasshouse.codes import Code
from glasshouse.sealing.layout import KEY, as_bytes, refuse
from glasshouse.sealing.memory import overwrite, overwrite_bytes

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

SEED_BYTES = 32
PUBLIC_BYTES = 1184 + 32  # ML-KEM-768 encapsulation key, X25519 public key
ENC_BYTES = 1088 + 32  # ML-KEM-768 ciphertext, X25519 ephemeral public key
WRAPPED_BYTES = ENC_BYTES + KEY + 16

_FILE_LABEL = "glasshouse-xwing-seed-v1"


def _suite() -> Suite:
    return Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


class KemKey:
    """An X-Wing private key: the 32-byte seed and what it expands to. Its repr shows nothing of it."""

    __slots__ = ("_private", "_public", "_seed")

    def __init__(self, seed: ReadableBuffer) -> None:
        self._seed = bytearray(as_bytes(seed))
        if len(self._seed) != SEED_BYTES or not any(self._seed):
            raise refuse(f"KEM private key is not {SEED_BYTES} live bytes", Code.KEM_KEY_MALFORMED)
        # expandDecapsulationKey of the X-Wing draft, section 5.2: SHAKE-256(seed) = d || z || X25519 secret
        expanded = hashlib.shake_256(self._seed).digest(96)
        parts = memoryview(expanded)  # slices of bytes would be copies that nothing overwrites
        mlkem = MLKEM768PrivateKey.from_seed_bytes(parts[:64])
        x25519 = X25519PrivateKey.from_private_bytes(parts[64:])
        parts.release()
        overwrite_bytes(expanded)
        self._private = MLKEM768X25519PrivateKey(mlkem, x25519)
        self._public = mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()

    def __repr__(self) -> str:
        return f"KemKey({hashlib.sha256(self._public).hexdigest()[:16]})"

    def __reduce__(self) -> str:
        raise TypeError("a private key is not pickled; use kem_private_bytes")

    def wipe(self) -> bool:
        """Overwrite the seed and return whether it reads as zeros; the expanded key ends with the object."""
        return overwrite(self._seed)


def generate_kem_key() -> KemKey:
    """Make a fresh X-Wing key from 32 bytes of the system's randomness."""
    seed = bytearray(os.urandom(SEED_BYTES))
    try:
        return KemKey(seed)
    finally:
        overwrite(seed)


def kem_public_bytes(key: KemKey) -> bytes:
    """Return the 1216 public bytes: ML-KEM-768 encapsulation key, then X25519 public key."""
    return key._public


def kem_private_bytes(key: KemKey) -> bytearray:
    """Return the 32-byte seed, for a key file; the caller wipes it. Raises SealError after `KemKey.wipe`."""
    if not any(key._seed):
        raise refuse("KEM private key was wiped", Code.KEM_KEY_MALFORMED)
    return bytearray(key._seed)


def load_kem_private(seed: ReadableBuffer) -> KemKey:
    """Rebuild a key from its 32-byte seed. Raises SealError: kem-key-malformed."""
    return KemKey(seed)


def wrap_key(key: ReadableBuffer, public_bytes: ReadableBuffer, info: bytes) -> bytes:
    """Wrap a 32-byte key to an X-Wing public key; returns 1168 bytes.

    `info` names the one exchange this wrapping is for and is never empty: unwrapping with any other fails.
    Raises SealError: payload-key-malformed, kem-key-malformed, info-malformed.
    """
    secret = as_bytes(key)
    if secret.nbytes != KEY or not any(secret):
        raise refuse(f"key to wrap is not {KEY} live bytes", Code.PAYLOAD_KEY_MALFORMED)
    public = bytes(as_bytes(public_bytes))
    if len(public) != PUBLIC_BYTES:
        raise refuse(f"KEM public key is not {PUBLIC_BYTES} bytes", Code.KEM_KEY_MALFORMED)
    try:
        recipient = MLKEM768X25519PublicKey(
            MLKEM768PublicKey.from_public_bytes(public[:1184]),
            X25519PublicKey.from_public_bytes(public[1184:]),
        )
        return _suite().encrypt(secret, recipient, info=_check_info(info))
    except ValueError as error:  # an encapsulation key that fails FIPS 203's check, a low-order X25519 point
        raise refuse("KEM public key is not a valid point or lattice key", Code.KEM_KEY_MALFORMED) from error


def unwrap_key(wrapped: ReadableBuffer, key: KemKey, info: bytes) -> bytearray:
    """Unwrap to a 32-byte buffer that the caller wipes; the library's own heap copy is overwritten here.

    Raises SealError: grant-malformed, grant-unwrap-failed (altered, another key or info), info-malformed.
    """
    ciphertext = as_bytes(wrapped)
    if ciphertext.nbytes != WRAPPED_BYTES:
        raise refuse(f"wrapped key is not {WRAPPED_BYTES} bytes", Code.GRANT_MALFORMED)
    try:
        secret = _suite().decrypt(ciphertext, key._private, info=_check_info(info))
    except (InvalidTag, ValueError) as error:
        raise refuse(
            "wrapped key does not open with this key and exchange", Code.GRANT_UNWRAP_FAILED
        ) from error
    try:
        return bytearray(secret)
    finally:
        overwrite_bytes(secret)


def _check_info(info: bytes) -> bytes:
    # Empty party info is a real bug of others: the wrapped key is then bound to nothing.
    if not isinstance(info, bytes) or not info:
        raise refuse("wrapping info is empty", Code.INFO_MALFORMED, "pass what names this exchange")
    return info


# --- key files ------------------------------------------------------------


def kem_key_text(key: KemKey) -> bytes:
    """A key file's one line."""
    seed = kem_private_bytes(key)
    try:
        return f"{_FILE_LABEL} {b64u(seed)}\n".encode("ascii")
    finally:
        overwrite(seed)


def parse_kem_key(data: bytes) -> KemKey:
    """Read a key file's line. Raises SealError: kem-key-malformed."""
    try:
        label, _, seed = data.decode("ascii").removesuffix("\n").partition(" ")
        if label != _FILE_LABEL:
            raise refuse("not a KEM key file", Code.KEM_KEY_MALFORMED)
        return KemKey(b64u_decode(seed, size=SEED_BYTES))
    except (UnicodeDecodeError, CanonicalError) as error:
        raise refuse("cannot read the KEM key file", Code.KEM_KEY_MALFORMED) from error
