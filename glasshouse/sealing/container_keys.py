"""Keys of one container: derived from its payload key, bound to its manifest hash, wiped where we can."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from glasshouse.codes import Code
from glasshouse.sealing.aegis import Aegis256
from glasshouse.sealing.layout import KEY, SealedObject, as_bytes, refuse

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_OBJECT_LABEL = b"glasshouse/sealed/v2/object"
_MANIFEST_LABEL = b"glasshouse/sealed/v2/manifest"
_COMMITMENT_LABEL = b"glasshouse/sealed/v2/commitment"


def fresh_payload_key() -> bytearray:
    """Return 32 random bytes for one container, in a buffer that `overwrite` can wipe."""
    return bytearray(os.urandom(KEY))


def check_key(payload_key: ReadableBuffer) -> memoryview:
    """View a payload key's 32 bytes. Raises SealError: payload-key-malformed."""
    key = as_bytes(payload_key)
    # A wiped buffer is 32 zeros: sealing under it would look as if all were well.
    if key.nbytes != KEY or not any(key):
        raise refuse(f"payload key is not {KEY} live bytes", Code.PAYLOAD_KEY_MALFORMED)
    return key


def derive(payload_key: memoryview, manifest_hash: bytes, info: bytes) -> bytearray:
    """HKDF-SHA256 (RFC 5869) to 32 bytes; the caller wipes them."""
    derived = bytearray(KEY)
    HKDF(algorithm=SHA256(), length=KEY, salt=manifest_hash, info=info).derive_into(payload_key, derived)
    return derived


def commitment(payload_key: memoryview, manifest_hash: bytes) -> bytes:
    """Commit to the key (32 public bytes): AEGIS alone, like AES-GCM, lets one ciphertext open under two."""
    return bytes(derive(payload_key, manifest_hash, _COMMITMENT_LABEL))


def cipher_for(payload_key: memoryview, manifest_hash: bytes, item: SealedObject) -> Aegis256:
    """Return the cipher of one object (or the manifest); no other copy of its key is kept."""
    label = _MANIFEST_LABEL if item.kind == "manifest" else _OBJECT_LABEL
    return Aegis256(derive(payload_key, manifest_hash, label + item.index.to_bytes(8, "big")))
