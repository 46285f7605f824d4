"""Open a sealed package to files, chunk by chunk: what `container.open_package` does, without its memory.

Each thread decrypts a chunk into a buffer of its own, hashes it there, and writes it to its place. So the
plaintext is held a few chunks at a time, its digest costs no second pass, and the disk works meanwhile. The
price: bytes reach the files before the whole is known to be good, so a caller gives them their names, and
keeps them at all, only after this has returned.

`checked_outputs` is for who cannot wait with the names, as a folder's files have them: it goes through all of
it twice, first to know that it is good, then to give it a tensor at a time.
"""

from __future__ import annotations

import contextlib
import hmac
import mmap
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from glasshouse.codes import Code
from glasshouse.sealing.container import (
    Table,
    check_hash,
    check_padding,
    map_file,
    read_table,
    share,
)
from glasshouse.sealing.container_keys import check_key, cipher_for
from glasshouse.sealing.layout import (
    HEADER_BYTES,
    TAG,
    Manifest,
    SealedObject,
    TensorSpec,
    chunk_digest,
    nonce,
    object_digest,
    refuse,
)
from glasshouse.sealing.memory import overwrite
from glasshouse.sealing.outputs import unwrapped
from glasshouse.sealing.packing import thread_count
from glasshouse.sealing.tree_index import PIECE_PREFIX

if TYPE_CHECKING:
    from pathlib import Path

    from _typeshed import ReadableBuffer

    from glasshouse.sealing.grant import KemKey

_WRITE = 1 << 17  # bytes at once: see remote/transfer.py

# Asked once, with every object and the specs of those that are tensors, in their order: where each goes, as
# an open descriptor and the position of its first byte there.
Places = Callable[[Sequence[SealedObject], Sequence[TensorSpec]], Sequence[tuple[int, int]]]


def unpack(
    path: str | Path,
    places: Places,
    *,
    payload_key: ReadableBuffer,
    manifest_hash: str,
    threads: int | None = None,
    offset: int = 0,
) -> None:
    """Authenticate, decrypt and write every object of a container; every salted digest is recomputed.

    Arguments and errors as `open_package`; and OSError where a file takes no more. After an error the files
    hold bytes of which nothing is known.
    """
    key = check_key(payload_key)
    expected = check_hash(manifest_hash)
    with _opened(path, key, expected, offset) as source:
        manifest = source.manifest
        where = places(manifest.objects, manifest.specs)

        def keep(item: SealedObject, chunk: int, plain: memoryview) -> None:
            descriptor, start = where[item.index]
            _write(descriptor, plain, start + chunk * item.chunk_bytes)

        if source.go_through(keep, thread_count(threads)):
            raise refuse("sealed content is not what its own manifest says", Code.DIGEST_MISMATCH)


def unpack_outputs(
    path: str | Path,
    owner_private: KemKey | Sequence[KemKey],
    places: Places,
    *,
    context: Mapping[str, str],
    plaintext_sha256: str | None = None,
    threads: int | None = None,
) -> None:
    """Open sealed outputs to files: `unpack`, with the owner's key in place of the container's.

    `places` is called once key and manifest are known to be right. What is not named here, and errors, as
    `open_outputs` and `unpack`.
    """
    with unwrapped(path, owner_private, context, plaintext_sha256) as (key, digest, offset):
        unpack(path, places, payload_key=key, manifest_hash=digest, threads=threads, offset=offset)


@dataclass(frozen=True)
class CheckedOutputs:
    """Outputs of which everything is known to be good, and hardly anything is held.

    A tensor's bytes come when they are asked for, and last until the next are. `mismatched`: as
    OpenedPackage.
    """

    files: dict[str, bytes] = field(repr=False)
    tensors: dict[str, tuple[TensorSpec, Callable[[], memoryview]]] = field(repr=False)
    mismatched: frozenset[str]


@contextlib.contextmanager
def checked_outputs(
    path: str | Path,
    owner_private: KemKey | Sequence[KemKey],
    *,
    context: Mapping[str, str],
    plaintext_sha256: str | None = None,
    threads: int | None = None,
) -> Iterator[CheckedOutputs]:
    """Give what `open_outputs` gives, with its arguments and errors, and hold one tensor at a time.

    Every tag and digest was checked before this yields. A tensor is decrypted again when it is asked for, and
    its tags are checked again: SealError where the file was changed meanwhile.
    """
    with (
        unwrapped(path, owner_private, context, plaintext_sha256) as (key, digest, offset),
        _opened(path, check_key(key), check_hash(digest), offset) as source,
    ):
        manifest, count = source.manifest, thread_count(threads)
        files = {item.index: bytearray(item.nbytes) for item in manifest.objects if item.kind != "tensor"}

        def keep(item: SealedObject, chunk: int, plain: memoryview) -> None:
            if item.kind != "tensor":
                start = chunk * item.chunk_bytes
                files[item.index][start : start + plain.nbytes] = plain

        other = source.go_through(keep, count)
        if any(item.kind != "tensor" or not item.name.startswith(PIECE_PREFIX) for item in other):
            raise refuse("sealed content is not what its own manifest says", Code.DIGEST_MISMATCH)
        tensors = [item for item in manifest.objects if item.kind == "tensor"]
        room = bytearray(max((item.nbytes for item in tensors), default=0))
        try:
            yield CheckedOutputs(
                {manifest.objects[index].name: bytes(data) for index, data in files.items()},
                {
                    spec.name: (spec, partial(source.load, item, memoryview(room), count))
                    for spec, item in zip(manifest.specs, tensors, strict=True)
                },
                frozenset(item.name for item in other),
            )
        finally:
            overwrite(room)


@contextlib.contextmanager
def _opened(path: str | Path, key: memoryview, expected: bytes, offset: int) -> Iterator[_Source]:
    """Map a container and read its table. `offset`: bytes before it."""
    mapped = map_file(path, offset + HEADER_BYTES)
    try:
        yield _Source(mapped, offset, key, read_table(memoryview(mapped)[offset:], key, expected), expected)
    finally:
        # As in open_package: a traceback may still hold a view of the ciphertext.
        with contextlib.suppress(BufferError):
            mapped.close()


@dataclass(frozen=True)
class _Source:
    """A mapped container with its key and its table."""

    mapped: mmap.mmap = field(repr=False)
    offset: int
    key: memoryview = field(repr=False)
    table: Table = field(repr=False)
    expected: bytes

    @property
    def manifest(self) -> Manifest:
        return self.table.manifest

    def go_through(
        self, keep: Callable[[SealedObject, int, memoryview], None], threads: int
    ) -> list[SealedObject]:
        """Decrypt and hash every chunk, and hand it on; the objects whose salted digest is another one."""
        objects, salt = self.manifest.objects, self.manifest.salt
        leaves = [[b""] * item.chunks for item in objects]

        def hashed(item: SealedObject, chunk: int, plain: memoryview) -> None:
            leaves[item.index][chunk] = chunk_digest(salt, chunk, plain)
            keep(item, chunk, plain)

        self._decrypted([(item, chunk) for item in objects for chunk in range(item.chunks)], hashed, threads)
        sealed = memoryview(self.mapped)[self.offset :]
        check_padding(sealed, self.table, self.key, self.expected, threads)
        return [
            item
            for item, chunks, claimed in zip(objects, leaves, self.manifest.digests, strict=True)
            if not hmac.compare_digest(object_digest(item, salt, chunks), claimed)
        ]

    def load(self, item: SealedObject, room: memoryview, threads: int) -> memoryview:
        """Decrypt one object into `room`, and return the part of it that it fills."""

        def keep(_item: SealedObject, chunk: int, plain: memoryview) -> None:
            start = chunk * item.chunk_bytes
            room[start : start + plain.nbytes] = plain

        self._decrypted([(item, chunk) for chunk in range(item.chunks)], keep, threads)
        return room[: item.nbytes]

    def _decrypted(
        self,
        jobs: list[tuple[SealedObject, int]],
        keep: Callable[[SealedObject, int, memoryview], None],
        threads: int,
    ) -> None:
        largest = max((item.chunk_size(0) for item, _ in jobs), default=0)

        def worker(turns: Iterator[tuple[SealedObject, int]]) -> None:
            plain = memoryview(bytearray(largest))
            current, cipher = -1, None
            try:
                for item, chunk in turns:
                    if cipher is None or item.index != current:
                        current, cipher = item.index, cipher_for(self.key, self.expected, item)
                    part = plain[: item.chunk_size(chunk)]
                    start = self.offset + self.table.offsets[item.index] + chunk * (item.chunk_bytes + TAG)
                    end = start + part.nbytes + TAG
                    cipher.decrypt_into(
                        nonce(chunk),
                        memoryview(self.mapped)[start:end],
                        item.associated_data(self.table.head, chunk),
                        part,
                    )
                    self._let_go(start, end)
                    keep(item, chunk, part)
            finally:
                overwrite(plain)

        share(jobs, worker, threads)

    def _let_go(self, start: int, end: int) -> None:
        """Give back the whole pages between two positions, which the kernel's cache still has."""
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        size = (end - first) // mmap.PAGESIZE * mmap.PAGESIZE
        if size > 0:
            self.mapped.madvise(mmap.MADV_DONTNEED, first, size)


def _write(descriptor: int, data: memoryview, position: int) -> None:
    while data:
        count = os.pwrite(descriptor, data[:_WRITE], position)
        data, position = data[count:], position + count
