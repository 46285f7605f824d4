"""Open a sealed package to files, chunk by chunk: what `container.open_package` does, without its memory.

Each thread decrypts a chunk into a buffer of its own, hashes it there, and writes it to its place. So the
plaintext is held a few chunks at a time, its digest costs no second pass, and the disk works meanwhile. The
price: bytes reach the files before the whole is known to be good, so a caller gives them their names, and
keeps them at all, only after this has returned.
"""

from __future__ import annotations

import contextlib
import hmac
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    SealedObject,
    TensorSpec,
    chunk_digest,
    nonce,
    object_digest,
    refuse,
)
from glasshouse.sealing.memory import overwrite
from glasshouse.sealing.outputs import PREFIX_BYTES, unwrapped
from glasshouse.sealing.packing import thread_count

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
    mapped = map_file(path, offset + HEADER_BYTES)
    try:
        _unpack(memoryview(mapped)[offset:], key, expected, places, thread_count(threads))
    finally:
        # As in open_package: a traceback may still hold a view of the ciphertext.
        with contextlib.suppress(BufferError):
            mapped.close()


def unpack_outputs(
    path: str | Path,
    owner_private: KemKey,
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
    with unwrapped(path, owner_private, context, plaintext_sha256) as (key, digest):
        unpack(path, places, payload_key=key, manifest_hash=digest, threads=threads, offset=PREFIX_BYTES)


def _unpack(sealed: memoryview, key: memoryview, expected: bytes, places: Places, threads: int) -> None:
    table = read_table(sealed, key, expected)
    manifest = table.manifest
    where = places(manifest.objects, manifest.specs)
    leaves = [[b""] * item.chunks for item in manifest.objects]
    jobs = [(index, chunk) for index, item in enumerate(manifest.objects) for chunk in range(item.chunks)]

    def worker(turns: Iterator[tuple[int, int]]) -> None:
        buffer = bytearray(max((item.chunk_size(0) for item in manifest.objects), default=0))
        plain = memoryview(buffer)
        current, cipher = -1, None
        try:
            for index, chunk in turns:
                item = manifest.objects[index]
                if cipher is None or index != current:
                    current, cipher = index, cipher_for(key, expected, item)
                size = item.chunk_size(chunk)
                cipher.decrypt_into(
                    nonce(chunk),
                    _ciphertext(sealed, table, index, chunk),
                    item.associated_data(table.head, chunk),
                    plain[:size],
                )
                leaves[index][chunk] = chunk_digest(manifest.salt, chunk, plain[:size])
                descriptor, start = where[index]
                _write(descriptor, plain[:size], start + chunk * item.chunk_bytes)
        finally:
            overwrite(plain)

    share(jobs, worker, threads)
    check_padding(sealed, table, key, expected, threads)
    for item, chunks, claimed in zip(manifest.objects, leaves, manifest.digests, strict=True):
        if not hmac.compare_digest(object_digest(item, manifest.salt, chunks), claimed):
            raise refuse("sealed content is not what its own manifest says", Code.DIGEST_MISMATCH)


def _ciphertext(sealed: memoryview, table: Table, index: int, chunk: int) -> memoryview:
    item = table.manifest.objects[index]
    start = table.offsets[index] + chunk * (item.chunk_bytes + TAG)
    return sealed[start : start + item.chunk_size(chunk) + TAG]


def _write(descriptor: int, data: memoryview, position: int) -> None:
    while data:
        count = os.pwrite(descriptor, data[:_WRITE], position)
        data, position = data[count:], position + count
