"""Seal a package: one pass over the plaintext for its digests, one to encrypt, chunk by chunk in threads."""

from __future__ import annotations

import errno
import hashlib
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from glasshouse.codes import Code
from glasshouse.sealing.container_keys import check_key, cipher_for, commitment
from glasshouse.sealing.layout import (
    HEADER_BYTES,
    MAX_CHUNK,
    MIN_CHUNK,
    PADDED_VERSION,
    VERSION,
    Header,
    SealedObject,
    TensorSpec,
    as_bytes,
    build_manifest,
    chunk_digest,
    file_object,
    manifest_object,
    nonce,
    object_digest,
    refuse,
    tensor_object,
)
from glasshouse.sealing.padding import padded_manifest, padding_objects

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


_Made = TypeVar("_Made")
Progress = Callable[[int, int], None]  # bytes done, bytes in total
Check = Callable[[], None]  # raises when the work is to end


class Sink(Protocol):
    """Where a container is written: a binary file, or anything else with its `write`."""

    def write(self, data: bytes | memoryview, /) -> int | None:
        """Write some bytes and return how many."""


CHUNK_BYTES = 4 << 20
MAX_THREADS = 16


def seal_package(
    out: Sink,
    *,
    payload_key: ReadableBuffer,
    files: Mapping[str, ReadableBuffer],
    tensors: Iterable[tuple[TensorSpec, ReadableBuffer]],
    extra: Mapping[str, Any],
    chunk_bytes: int = CHUNK_BYTES,
    threads: int | None = None,
    progress: Progress | None = None,
    check: Check | None = None,
    padded: bool = False,
) -> str:
    """Write one sealed container to `out` and return its manifest hash (64 hex), the only public part.

    Args:
        out: binary stream open for writing; written front to back, never read, never sought.
        payload_key: 32 fresh random bytes for this container alone; the caller wipes them.
        files: plain relative POSIX path to content.
        tensors: spec and C-contiguous row-major buffer of exactly spec.nbytes bytes. Gone through twice: an
            iterator becomes a list first, anything else with __iter__ may make one tensor at a time. A tensor
            larger than memory is passed as an mmap. Contents must not change meanwhile.
        extra: JSON object that travels in the sealed manifest.
        chunk_bytes: plaintext bytes of one chunk, 64 bytes to 64 MiB.
        threads: how many hash and encrypt at once; None takes the processors this process may use.
        progress: called about once a chunk with (bytes written, bytes in total).
        check: called before each chunk of either pass, in whichever thread; what it raises ends the sealing.
        padded: fill up to a size that says little about the content (padding.py).

    Raises:
        SealError: payload-key-malformed, tensor-malformed, name-malformed, name-duplicate,
            manifest-malformed, chunk-size-malformed, source-changed. After an error `out` holds part of a
            container: delete it.
    """
    check_key(payload_key)  # before the long first pass
    package = prepare(
        files=files,
        tensors=tensors,
        extra=extra,
        chunk_bytes=chunk_bytes,
        threads=threads,
        check=check,
        padded=padded,
    )
    package.write(out, payload_key, progress, check)
    return package.manifest_hash.hex()


@dataclass(frozen=True, eq=False)
class PreparedPackage:
    """A package whose manifest is fixed and that is not encrypted yet: sealed outputs bind its hash first."""

    manifest: bytes = field(repr=False)
    manifest_hash: bytes
    chunk_bytes: int
    threads: int
    objects: tuple[SealedObject, ...] = field(repr=False)
    sources: Callable[[], Iterator[tuple[SealedObject, memoryview]]] = field(repr=False)
    version: int = VERSION

    def write(
        self,
        out: Sink,
        payload_key: ReadableBuffer,
        progress: Progress | None = None,
        check: Check | None = None,
    ) -> None:
        """Encrypt everything to `out` under a fresh 32-byte key; the rest as in `seal_package`."""
        key = check_key(payload_key)
        digest = self.manifest_hash
        header = Header(self.chunk_bytes, len(self.manifest), digest, commitment(key, digest), self.version)
        head, table = header.pack(), manifest_object(header)
        write_all(out, head)
        cipher = cipher_for(key, digest, table)
        write_all(out, cipher.encrypt(nonce(0), self.manifest, table.associated_data(head, 0)))

        def sealed(item: SealedObject, data: memoryview) -> Iterator[bytearray]:
            cipher = cipher_for(key, digest, item)

            def seal(chunk: int) -> bytearray:
                if check is not None:
                    check()
                plain = _chunk_of(item, data, chunk)
                return cipher.encrypt(nonce(chunk), plain, item.associated_data(head, chunk))

            return _in_order(pool, seal, item.chunks, 2 * self.threads)

        done, content = 0, sum(item.sealed_bytes for item in self.objects)
        padding = tuple[SealedObject, ...]()
        if header.padded:
            whole = HEADER_BYTES + table.sealed_bytes + content
            padding = padding_objects(len(self.objects), whole, self.chunk_bytes)
        zeros = memoryview(bytes(max((item.nbytes for item in padding), default=0)))
        total = content + sum(item.sealed_bytes for item in padding)

        def put(item: SealedObject, data: memoryview) -> None:
            nonlocal done
            for ciphertext in sealed(item, data):
                write_all(out, ciphertext)
                done += len(ciphertext)
                if progress is not None:
                    progress(done, total)

        sealed_objects = 0
        with ThreadPoolExecutor(self.threads) as pool:
            for expected, (item, data) in zip(self.objects, self.sources(), strict=False):
                if item != expected:
                    break
                put(item, data)
                sealed_objects += 1
            if sealed_objects != len(self.objects):
                raise refuse("tensors changed between the two passes of sealing", Code.SOURCE_CHANGED)
            for item in padding:
                put(item, zeros[: item.nbytes])


def prepare(
    *,
    files: Mapping[str, ReadableBuffer],
    tensors: Iterable[tuple[TensorSpec, ReadableBuffer]],
    extra: Mapping[str, Any],
    chunk_bytes: int = CHUNK_BYTES,
    threads: int | None = None,
    check: Check | None = None,
    padded: bool = False,
) -> PreparedPackage:
    """First pass of `seal_package`: salt, digests, manifest. Arguments and errors as there."""
    if type(chunk_bytes) is not int or not MIN_CHUNK <= chunk_bytes <= MAX_CHUNK:
        raise refuse(f"chunk size is not {MIN_CHUNK} to {MAX_CHUNK} bytes", Code.CHUNK_SIZE_MALFORMED)
    named = sorted(files.items())
    repeatable = list(tensors) if iter(tensors) is tensors else tensors
    salt = os.urandom(32)
    workers = thread_count(threads)

    def sources() -> Iterator[tuple[SealedObject, memoryview]]:
        for index, (name, content) in enumerate(named):
            view = as_bytes(content)
            yield file_object(index, name, view.nbytes, chunk_bytes), view
        for index, (spec, content) in enumerate(repeatable, start=len(named)):
            view = as_bytes(content)
            if view.nbytes != spec.nbytes:
                raise refuse("a tensor's buffer does not have the bytes of its shape", Code.TENSOR_MALFORMED)
            yield tensor_object(index, spec, chunk_bytes), view

    with ThreadPoolExecutor(workers) as pool:
        rows = [
            (item, digest_of(pool, item, data, salt, 4 * workers, check=check)) for item, data in sources()
        ]
    version = PADDED_VERSION if padded else VERSION
    manifest = build_manifest(salt, chunk_bytes, rows, extra, version)
    if padded:
        manifest = padded_manifest(manifest)
    digest = hashlib.sha256(manifest).digest()
    objects = tuple(item for item, _ in rows)
    return PreparedPackage(manifest, digest, chunk_bytes, workers, objects, sources, version)


def write_all(out: Sink, data: bytes | bytearray | memoryview) -> None:
    """Write every byte, also to an unbuffered file, whose `write` may take only some. Raises OSError."""
    rest = memoryview(data)
    while rest:
        taken = out.write(rest)
        if not taken:
            raise BlockingIOError(errno.EAGAIN, "the output takes no more bytes")
        rest = rest[taken:]


def thread_count(threads: int | None) -> int:
    """How many threads to use, 1 to 16."""
    if sys.platform == "linux":
        mine = len(os.sched_getaffinity(0))
    else:
        mine = os.cpu_count() or 1
    return max(1, min(threads or mine, MAX_THREADS))


def digest_of(
    pool: ThreadPoolExecutor,
    item: SealedObject,
    data: memoryview,
    salt: bytes,
    window: int,
    *,
    check: Check | None = None,
) -> str:
    """Salted digest (64 hex) of one object's plaintext, its chunks hashed in threads."""

    def leaf(chunk: int) -> bytes:
        if check is not None:
            check()
        return chunk_digest(salt, chunk, _chunk_of(item, data, chunk))

    return object_digest(item, salt, _in_order(pool, leaf, item.chunks, window))


def _chunk_of(item: SealedObject, data: memoryview, chunk: int) -> memoryview:
    start = chunk * item.chunk_bytes
    return data[start : start + item.chunk_size(chunk)]


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[int], _Made], chunks: int, window: int
) -> Iterator[_Made]:
    """Work in threads, yield in order, hold at most `window` results: Executor.map would hold them all."""
    waiting: deque[Future[_Made]] = deque()
    for chunk in range(chunks):
        waiting.append(pool.submit(work, chunk))
        if len(waiting) >= window:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
