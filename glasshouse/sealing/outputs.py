"""Seal a leg's outputs for their owner, and open them: a container under a fresh key that only the owner
unwraps.

    prefix (1212 bytes)   magic "GHOUTPUT", version u16, zero u16, manifest hash (32), HPKE-wrapped key (1168)
    container             see layout.py

Of an owner with several keys the version is 2, and in place of the zero stands how many wrapped keys follow:
one for each, and any of them opens it.

The wrapping's info is SHA-256 over a label, the context (run, leg, launch, package) and the manifest hash,
so a prefix fits one container of one leg. Anyone can seal to a public key: that a leg made these outputs is
what its signed event chain says, which names both digests.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from glasshouse.canonical import canonical_json, domain_hash
from glasshouse.codes import Code
from glasshouse.errors import SealError
from glasshouse.sealing.container import OpenedPackage, map_file, open_package
from glasshouse.sealing.container_keys import fresh_payload_key
from glasshouse.sealing.grant import PUBLIC_BYTES, WRAPPED_BYTES, KemKey, unwrap_key, wrap_key
from glasshouse.sealing.layout import TensorSpec, as_bytes, refuse
from glasshouse.sealing.memory import overwrite
from glasshouse.sealing.packing import CHUNK_BYTES, PreparedPackage, Sink, prepare, write_all
from glasshouse.sealing.tree_index import PIECE_PREFIX

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

MAGIC = b"GHOUTPUT"
VERSION = 1

_PREFIX = struct.Struct(f">8sHH32s{WRAPPED_BYTES}s")
PREFIX_BYTES = _PREFIX.size  # of one owner's key; more wrapped keys make it longer
_HEAD = struct.Struct(">8sHH32s")
SEVERAL = 2  # the version of outputs that several keys open
MAX_OWNERS = 8


class Unwrapped(NamedTuple):
    """A container's key (wiped by whoever gave it), its manifest hash (64 hex), where it begins (bytes)."""

    key: bytearray
    manifest_hash: str
    offset: int


class _Digesting:
    """A sink that counts what passes through it and hashes it on a thread, beside the next write."""

    def __init__(self, out: Sink, pool: ThreadPoolExecutor) -> None:
        self.bytes = 0
        self._out, self._pool, self._state = out, pool, hashlib.sha256()
        self._hashing: Future[None] | None = None

    def write(self, data: bytes | memoryview, /) -> int | None:
        taken = self._out.write(data) or 0
        self._settle()  # one piece waits at most, so no more ciphertext is held
        self._hashing = self._pool.submit(self._state.update, data[:taken])
        self.bytes += taken
        return taken

    def hexdigest(self) -> str:
        self._settle()
        return self._state.hexdigest()

    def _settle(self) -> None:
        if self._hashing is not None:
            self._hashing.result()


@dataclass(frozen=True)
class SealedOutputs:
    """Digests of sealed outputs, and their size in bytes.

    plaintext_sha256 is that of the sealed manifest, which holds a salted digest of every output (publishing
    it confirms no guess; the owner checks it by opening); ciphertext_sha256 and bytes are of all that was
    written.
    """

    plaintext_sha256: str
    ciphertext_sha256: str
    bytes: int


def seal_outputs(
    out: Sink,
    *,
    owner_public: ReadableBuffer,
    context: Mapping[str, str],
    files: Mapping[str, ReadableBuffer],
    tensors: Iterable[tuple[TensorSpec, ReadableBuffer]],
    chunk_bytes: int = CHUNK_BYTES,
    threads: int | None = None,
    padded: bool = False,
) -> SealedOutputs:
    """Write sealed outputs to `out`, under a fresh key wrapped to the owner's X-Wing public key.

    Args:
        out: as `seal_package`.
        owner_public: 1216 bytes (`kem_public_bytes`), or those of several keys behind one another.
        context: what names this leg, such as run, leg, launch, package; not empty; needed again to open.
        files: as `seal_package`.
        tensors: as `seal_package`.
        chunk_bytes: as `seal_package`.
        threads: as `seal_package`.
        padded: as `seal_package`.

    Raises:
        SealError: as `seal_package`, and kem-key-malformed, context-malformed.
    """
    package = prepare(
        files=files, tensors=tensors, extra={}, chunk_bytes=chunk_bytes, threads=threads, padded=padded
    )
    return seal_prepared(out, package, owner_public=owner_public, context=context)


def seal_prepared(
    out: Sink, package: PreparedPackage, *, owner_public: ReadableBuffer, context: Mapping[str, str]
) -> SealedOutputs:
    """Second half of `seal_outputs`, for what `prepare` went through once. Arguments and errors as there."""
    info, digest = _info(context, package.manifest_hash), package.manifest_hash
    publics = _recipients(owner_public)
    key = fresh_payload_key()
    with ThreadPoolExecutor(1) as pool:
        digesting = _Digesting(out, pool)
        try:
            wrapped = [wrap_key(key, public, info) for public in publics]
            several = (SEVERAL, len(wrapped)) if len(wrapped) > 1 else (VERSION, 0)
            write_all(digesting, b"".join((_HEAD.pack(MAGIC, *several, digest), *wrapped)))
            package.write(digesting, key)
        finally:
            overwrite(key)
        return SealedOutputs(package.manifest_hash.hex(), digesting.hexdigest(), digesting.bytes)


def open_outputs(
    path: str | Path,
    owner_private: KemKey | Sequence[KemKey],
    *,
    context: Mapping[str, str],
    plaintext_sha256: str | None = None,
    threads: int | None = None,
) -> OpenedPackage:
    """Open sealed outputs with the owner's key; every digest is recomputed.

    One that is another may be a tree's piece: a file was written to while it was sealed. The package's
    `mismatched` names such pieces; nobody but the sealer could have made them.

    Args:
        path: the file that `seal_outputs` wrote.
        owner_private: the owner's X-Wing key, or several of which any may open it.
        context: exactly the mapping it was sealed with.
        plaintext_sha256: "plaintextSha256" from the leg's signed events, if any: ties these bytes to them.
        threads: as `open_package`.

    Raises:
        SealError: as `open_package`, and outputs-malformed, context-malformed, grant-unwrap-failed
        (altered, another owner's, or another context).
    """
    with unwrapped(path, owner_private, context, plaintext_sha256) as (key, digest, offset):
        return open_package(
            path,
            payload_key=key,
            manifest_hash=digest,
            threads=threads,
            verify_digests=True,
            tolerate=lambda name: name.startswith(PIECE_PREFIX),
            offset=offset,
        )


@contextmanager
def unwrapped(
    path: str | Path,
    owner_private: KemKey | Sequence[KemKey],
    context: Mapping[str, str],
    plaintext_sha256: str | None,
) -> Iterator[Unwrapped]:
    """Give the container's key while this lasts, and what goes with it. As `open_outputs`."""
    mapped = map_file(path, PREFIX_BYTES)
    prefix = mapped[: _HEAD.size + MAX_OWNERS * WRAPPED_BYTES]
    mapped.close()
    magic, version, several, digest = _HEAD.unpack(prefix[: _HEAD.size])
    count = 1 if (version, several) == (VERSION, 0) else several if version == SEVERAL else 0
    offset = _HEAD.size + count * WRAPPED_BYTES
    odd = not 1 <= count <= MAX_OWNERS or (version == SEVERAL and count == 1)
    if magic != MAGIC or odd or len(prefix) < offset:
        raise refuse("not sealed outputs of a known version", Code.OUTPUTS_MALFORMED)
    if plaintext_sha256 is not None and digest.hex() != plaintext_sha256:
        raise refuse("sealed outputs are not the ones the events name", Code.MANIFEST_HASH_MISMATCH)
    keys = [owner_private] if isinstance(owner_private, KemKey) else list(owner_private)
    places = range(_HEAD.size, offset, WRAPPED_BYTES)
    key = _first([prefix[place : place + WRAPPED_BYTES] for place in places], keys, _info(context, digest))
    try:
        yield Unwrapped(key, digest.hex(), offset)
    finally:
        overwrite(key)


def _first(wrapped: Sequence[bytes], keys: Sequence[KemKey], info: bytes) -> bytearray:
    """What the first key opens that opens any; SealError (grant-unwrap-failed) where none does."""
    pairs = [(text, key) for text in wrapped for key in keys]
    for text, key in pairs[:-1]:
        try:
            return unwrap_key(text, key, info)
        except SealError as error:
            if Code.GRANT_UNWRAP_FAILED not in error.codes:
                raise
    return unwrap_key(*pairs[-1], info)


def _recipients(owner_public: ReadableBuffer) -> list[bytes]:
    """The public keys that stand behind one another."""
    data = bytes(as_bytes(owner_public))
    if len(data) % PUBLIC_BYTES or not 1 <= len(data) // PUBLIC_BYTES <= MAX_OWNERS:
        raise refuse(f"KEM public key is not {PUBLIC_BYTES} bytes, nor some of them", Code.KEM_KEY_MALFORMED)
    return [data[at : at + PUBLIC_BYTES] for at in range(0, len(data), PUBLIC_BYTES)]


def _info(context: Mapping[str, str], manifest_hash: bytes) -> bytes:
    strings = all(isinstance(name, str) and isinstance(value, str) for name, value in context.items())
    if not context or not strings:
        raise refuse(
            "outputs need a context of strings", Code.CONTEXT_MALFORMED, "name the run, leg and launch"
        )
    return domain_hash("glasshouse/outputs/v1", [canonical_json(dict(context)), manifest_hash])
