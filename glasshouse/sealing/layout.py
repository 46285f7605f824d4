"""The sealed container, versions 2 and 3: its bytes on disk and its manifest. No cipher here, no I/O.

header (88 bytes)   magic "GHSEALED", version u16, suite u16, chunk bytes u32, manifest bytes u32, zero u32,
                    manifest hash (32), key commitment (32); integers big-endian
sealed manifest     ciphertext, tag (32): always one chunk
sealed objects      files in name order, then tensors in the manifest's order; each is one or more chunks of
                    ciphertext, tag (32); an empty object is one empty chunk. Nothing follows in version 2.
padding             version 3: objects of zeros, one chunk each, that bring the container to one of few sizes,
                    as its manifest is brought by zero bytes (padding.py)

keys                HKDF-SHA256(payload key, salt = manifest hash, info = label || index u64)
cipher              AEGIS-256 with 32-byte tags
nonce               chunk index, 32 bytes. A (key, nonce) pair is used once: the random salt in each manifest
                    makes its hash, and so its keys, fresh
associated data     length-prefixed: label, header (with the manifest hash), kind, index, name, dtype, shape,
                    bytes, chunk index, final flag
manifest            RFC 8785 JSON: format, salt (32 random bytes), chunkBytes, files, tensors, extra. Only its
                    SHA-256 is public. Its digests are SHA-256 over salted chunk digests (`object_digest`).
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glasshouse.canonical import (
    MAX_JSON_BYTES,
    MAX_SAFE_INTEGER,
    CanonicalError,
    b64u,
    b64u_decode,
    canonical_json,
    domain_hash,
    length_prefixed,
    parse_canonical,
)
from glasshouse.codes import Code
from glasshouse.errors import SealError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

FORMAT = (
    "glasshouse/sealed/v2"  # also the label of both versions' associated data, which the header is part of
)
MAGIC = b"GHSEALED"
VERSION = 2
PADDED_VERSION = 3
FORMATS = {VERSION: FORMAT, PADDED_VERSION: "glasshouse/sealed/v3"}
SUITE = 2  # HKDF-SHA256, AEGIS-256 with 32-byte tags; suite 1 was AES-256-GCM, which nothing opens any more
TAG = 32
KEY = 32
ALIGN = 4096  # each object starts on a page of the region: any dtype is aligned, and it can be wiped alone

MIN_CHUNK = 64
MAX_CHUNK = 64 << 20
MAX_NAME = 512  # bytes of UTF-8
MAX_RANK = 32

DTYPE_BYTES: Mapping[str, int] = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "uint16": 2,
    "int16": 2,
    "uint32": 4,
    "int32": 4,
    "uint64": 8,
    "int64": 8,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
    "complex64": 8,
    "complex128": 16,
}

_HEADER = struct.Struct(">8sHHIII32s32s")
HEADER_BYTES = _HEADER.size


def refuse(what: str, code: Code, remedy: str = "") -> SealError:
    """Make the one-line SealError for one reason code."""
    return SealError(what, codes=[code], remedy=remedy)


@dataclass(frozen=True)
class TensorSpec:
    """A tensor's name, dtype (a key of DTYPE_BYTES) and shape in elements; () is a scalar.

    Raises SealError: name-malformed, tensor-malformed.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_name(self.name)
        if self.dtype not in DTYPE_BYTES:
            raise refuse("unknown tensor dtype", Code.TENSOR_MALFORMED, "use one of " + " ".join(DTYPE_BYTES))
        if (
            not isinstance(self.shape, tuple)
            or len(self.shape) > MAX_RANK
            or any(type(size) is not int or not 0 <= size <= MAX_SAFE_INTEGER for size in self.shape)
            or self.nbytes > MAX_SAFE_INTEGER
        ):
            raise refuse("tensor shape is not a short tuple of sizes", Code.TENSOR_MALFORMED)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor, row-major and without padding."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class SealedObject:
    """One file or tensor of a container: what its chunks are bound to, and where they lie."""

    kind: str  # "file" | "tensor" | "padding"
    index: int  # position among all objects; the manifest has no index and its own key label
    name: str
    dtype: str  # "" for a file
    shape: tuple[int, ...]  # () for a file
    nbytes: int  # plaintext bytes
    chunk_bytes: int  # plaintext bytes of every chunk but the last

    @property
    def chunks(self) -> int:
        """Number of chunks, at least 1: an empty object is authenticated too."""
        return max(1, -(-self.nbytes // self.chunk_bytes))

    @property
    def sealed_bytes(self) -> int:
        """Bytes in the container: plaintext and one tag per chunk."""
        return self.nbytes + TAG * self.chunks

    def chunk_size(self, chunk: int) -> int:
        """Plaintext bytes of one chunk."""
        return min(self.chunk_bytes, self.nbytes - chunk * self.chunk_bytes)

    def identity(self) -> list[bytes]:
        """Everything that names this object, as the parts that are hashed and authenticated."""
        shape = b"".join(size.to_bytes(8, "big") for size in self.shape)
        index, nbytes = self.index.to_bytes(8, "big"), self.nbytes.to_bytes(8, "big")
        return [self.kind.encode(), index, self.name.encode(), self.dtype.encode(), shape, nbytes]

    def associated_data(self, header: bytes, chunk: int) -> bytes:
        """Return what one chunk's tag covers besides its ciphertext."""
        final = b"\1" if chunk == self.chunks - 1 else b"\0"
        return length_prefixed([FORMAT.encode(), header, *self.identity(), chunk.to_bytes(8, "big"), final])


def nonce(chunk: int) -> bytes:
    """Return the 32-byte nonce of a chunk under its object's own key."""
    return chunk.to_bytes(32, "big")


@dataclass(frozen=True)
class Header:
    """The 88 public bytes at the start of a container."""

    chunk_bytes: int
    manifest_bytes: int
    manifest_hash: bytes  # 32
    commitment: bytes  # 32
    version: int = VERSION

    @property
    def padded(self) -> bool:
        """Whether zeros follow the manifest and the objects."""
        return self.version == PADDED_VERSION

    def pack(self) -> bytes:
        """Return the header's bytes."""
        sizes = (self.chunk_bytes, self.manifest_bytes, 0)
        return _HEADER.pack(MAGIC, self.version, SUITE, *sizes, self.manifest_hash, self.commitment)

    @staticmethod
    def parse(data: bytes) -> Header:
        """Parse exactly HEADER_BYTES bytes. Raises SealError: container-truncated, container-malformed."""
        if len(data) < HEADER_BYTES:
            raise refuse("sealed container ends inside its header", Code.CONTAINER_TRUNCATED)
        magic, version, suite, chunk_bytes, manifest_bytes, zero, digest, commitment = _HEADER.unpack(data)
        if magic != MAGIC:
            raise refuse("not a sealed container", Code.CONTAINER_MALFORMED)
        if version not in FORMATS or (suite, zero) != (SUITE, 0):
            raise refuse("sealed container of an unknown version", Code.CONTAINER_MALFORMED)
        if not MIN_CHUNK <= chunk_bytes <= MAX_CHUNK or not 0 < manifest_bytes <= MAX_JSON_BYTES:
            raise refuse("sealed container states impossible sizes", Code.CONTAINER_MALFORMED)
        return Header(chunk_bytes, manifest_bytes, digest, commitment, version)


def manifest_object(header: Header) -> SealedObject:
    """Describe the sealed manifest itself: one chunk, before all objects."""
    size = header.manifest_bytes
    return SealedObject("manifest", 0, "", "", (), size, size)


def chunk_digest(salt: bytes, chunk: int, data: memoryview) -> bytes:
    """SHA-256 of one salted plaintext chunk: chunks hash in parallel and stream."""
    state = hashlib.sha256(salt + chunk.to_bytes(8, "big"))
    state.update(data)
    return state.digest()


def object_digest(item: SealedObject, salt: bytes, chunk_digests: Iterable[bytes]) -> str:
    """Salted digest of a whole object (64 hex): confirms no guess to someone who lacks the salt."""
    return domain_hash("glasshouse/object/v1", [salt, *item.identity(), *chunk_digests]).hex()


def file_object(index: int, name: str, nbytes: int, chunk_bytes: int) -> SealedObject:
    """Describe a file; its name is a plain relative POSIX path. Raises SealError: name-malformed."""
    _check_file_name(name)
    return SealedObject("file", index, name, "", (), nbytes, chunk_bytes)


def tensor_object(index: int, spec: TensorSpec, chunk_bytes: int) -> SealedObject:
    """Describe a tensor."""
    return SealedObject("tensor", index, spec.name, spec.dtype, spec.shape, spec.nbytes, chunk_bytes)


def _check_unique(objects: Iterable[SealedObject]) -> None:
    seen = set[tuple[str, str]]()
    for item in objects:
        if (item.kind, item.name) in seen:
            raise refuse(f"two {item.kind}s of one container share a name", Code.NAME_DUPLICATE)
        seen.add((item.kind, item.name))


def build_manifest(
    salt: bytes,
    chunk_bytes: int,
    objects: Sequence[tuple[SealedObject, str]],
    extra: Mapping[str, Any],
    version: int = VERSION,
) -> bytes:
    """Return the canonical manifest of objects and their digests, without padding.

    Raises SealError: manifest-malformed (no canonical form, or larger than MAX_JSON_BYTES), name-duplicate.
    """
    _check_unique(item for item, _ in objects)
    files, tensors = [], []
    for item, digest in objects:
        row: dict[str, Any] = {"name": item.name, "bytes": item.nbytes, "digest": digest}
        if item.kind == "tensor":
            tensors.append(row | {"dtype": item.dtype, "shape": list(item.shape)})
        else:
            files.append(row)
    table = {
        "format": FORMATS[version],
        "salt": b64u(salt),
        "chunkBytes": chunk_bytes,
        "files": files,
        "tensors": tensors,
    }
    try:
        manifest = canonical_json(table | {"extra": dict(extra)})
    except CanonicalError as error:
        raise refuse(f"manifest has no canonical form: {error}", Code.MANIFEST_MALFORMED) from error
    if len(manifest) > MAX_JSON_BYTES:
        raise refuse(f"manifest is larger than {MAX_JSON_BYTES} bytes", Code.MANIFEST_MALFORMED)
    return manifest


@dataclass(frozen=True)
class Manifest:
    """A parsed manifest: the JSON itself, its salt, and its objects with their digests in container order."""

    table: dict[str, Any]
    salt: bytes
    objects: tuple[SealedObject, ...]
    digests: tuple[str, ...]
    specs: tuple[TensorSpec, ...]  # of the tensors, in order


def parse_manifest(data: bytes, chunk_bytes: int, version: int = VERSION) -> Manifest:
    """Parse canonical manifest bytes strictly; they are without padding.

    Raises SealError: manifest-malformed, name-malformed, name-duplicate, tensor-malformed.
    """
    try:
        table = parse_canonical(data)
        if set(table) != {"format", "salt", "chunkBytes", "files", "tensors", "extra"}:
            raise ValueError("keys")
        told = (table["format"], table["chunkBytes"])
        if told != (FORMATS[version], chunk_bytes) or not isinstance(table["extra"], dict):
            raise ValueError("format")
        salt = b64u_decode(table["salt"], size=32)
        files = [_row(row, {"name", "bytes", "digest"}) for row in table["files"]]
        tensors = [_row(row, {"name", "bytes", "digest", "dtype", "shape"}) for row in table["tensors"]]
        specs = tuple(TensorSpec(row["name"], row["dtype"], tuple(row["shape"])) for row in tensors)
        if any(spec.nbytes != row["bytes"] for spec, row in zip(specs, tensors, strict=True)):
            raise ValueError("a tensor's bytes do not match its shape")
        objects = (
            *(file_object(at, row["name"], row["bytes"], chunk_bytes) for at, row in enumerate(files)),
            *(tensor_object(at, spec, chunk_bytes) for at, spec in enumerate(specs, start=len(files))),
        )
        _check_unique(objects)
    except (CanonicalError, ValueError, TypeError, KeyError) as error:
        raise refuse("sealed manifest is not what the format says", Code.MANIFEST_MALFORMED) from error
    return Manifest(table, salt, objects, tuple(row["digest"] for row in [*files, *tensors]), specs)


def _row(row: Any, keys: set[str]) -> dict[str, Any]:
    if not isinstance(row, dict) or set(row) != keys:
        raise ValueError("row")
    if type(row["bytes"]) is not int or row["bytes"] < 0:
        raise ValueError("bytes")
    if not isinstance(row["digest"], str) or len(bytes.fromhex(row["digest"])) != 32:
        raise ValueError("digest")
    return row


def _check_name(name: str) -> None:
    try:
        good = bool(name) and len(name.encode()) <= MAX_NAME and name.isprintable()
    except (AttributeError, UnicodeEncodeError):
        good = False
    if not good:
        raise refuse(f"a name is empty, unprintable or longer than {MAX_NAME} bytes", Code.NAME_MALFORMED)


def _check_file_name(name: str) -> None:
    _check_name(name)
    # Files are loaded from memory, yet a name must never be able to leave a folder if someone unpacks them.
    if "\\" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise refuse("a file name is not a plain relative path", Code.NAME_MALFORMED)


def as_bytes(data: ReadableBuffer) -> memoryview:
    """View any C-contiguous buffer as flat bytes, without a copy. Raises SealError: tensor-malformed."""
    view = memoryview(data)
    if view.nbytes == 0:
        return memoryview(b"")
    if not view.c_contiguous:
        raise refuse("a buffer is not contiguous", Code.TENSOR_MALFORMED, "pass a contiguous copy")
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")
