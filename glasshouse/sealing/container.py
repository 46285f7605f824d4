"""Open a sealed package into private memory. (Sealing is re-exported, so that this is the module to import.)

    manifest_hash = seal_package(out, payload_key=fresh_payload_key(), files=..., tensors=..., extra=...)
    package = open_package(path, payload_key=key, manifest_hash=manifest_hash)
    ...
    assert package.wipe()

Use a fresh payload key for every container (`fresh_payload_key`). One used twice loses nothing at once, since
every key also hangs on the manifest's random salt, but one grant then opens both containers: that is what a
run's package and its markers are given one for (lifecycle/packer.py), and nothing else is. Steps of opening:

    1. header parsed, bounded                              container-malformed, container-truncated
       its manifest hash is the expected one               manifest-hash-mismatch
    2. key commitment, before any ciphertext is used       key-commitment-mismatch
    3. manifest decrypted                                  manifest-authentication-failed
       its SHA-256 is the hash, it parses strictly         manifest-hash-mismatch, manifest-malformed
       its own padding is what it has to be                manifest-malformed
    4. file size is what the manifest says, to the byte    container-truncated, container-trailing-bytes
    5. every chunk decrypted to its place, in threads      chunk-authentication-failed
       padding decrypted into nothing, and all zero        chunk-authentication-failed, container-malformed
    6. on request, the salted plaintext digests            digest-mismatch

On any failure the region is overwritten before SealError is raised.

The file is mapped, not copied (a third faster here than reading it through a buffer). Nobody whom we do not
trust may be able to write it from `reserve` until it is open: a change under the cipher's hands could slip
between tag and plaintext, and a truncation ends the process (SIGBUS).
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import itertools
import mmap
import os
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cryptography.exceptions import InvalidTag

from glasshouse.codes import Code
from glasshouse.errors import SealError
from glasshouse.sealing.container_keys import check_key, cipher_for, commitment, fresh_payload_key
from glasshouse.sealing.layout import (
    ALIGN,
    HEADER_BYTES,
    TAG,
    Header,
    Manifest,
    SealedObject,
    TensorSpec,
    manifest_object,
    nonce,
    parse_manifest,
    refuse,
)
from glasshouse.sealing.memory import (
    allow,
    forbid,
    overwrite,
    populate,
    populate_file,
    private_region,
    region_bytes,
)
from glasshouse.sealing.packing import digest_of, seal_package, thread_count
from glasshouse.sealing.padding import manifest_text, padding_objects

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = [
    "OpenedPackage",
    "SealError",
    "TensorSpec",
    "fresh_payload_key",
    "open_package",
    "reserve",
    "seal_package",
]

_Job = TypeVar("_Job")


@dataclass(eq=False)
class OpenedPackage:
    """An opened container. All plaintext of files and tensors lies in `region` and nowhere else of ours.

    The manifest's own values are ordinary Python objects: they end with the process, not with `wipe`.
    """

    manifest: dict[str, Any] = field(repr=False)
    extra: dict[str, Any] = field(repr=False)
    salt: bytes = field(repr=False)
    files: dict[str, memoryview] = field(repr=False)  # read-only
    tensors: dict[str, tuple[TensorSpec, memoryview]] = field(repr=False)  # writable flat bytes, page-aligned
    region: mmap.mmap = field(repr=False)
    # Tensors whose digest was tolerated to differ: authentic, yet not what the sealer first read.
    mismatched: frozenset[str] = frozenset()
    beside: OpenedPackage | None = field(default=None, repr=False)  # opened with it, and wiped with it
    wiped: bool = False

    def wipe(self) -> bool:
        """Overwrite the whole region and read it back; return whether every byte read is zero.

        Views into it, ours or a tensor's, stay valid and read as zeros. So it is done with what lies beside.
        """
        self.wiped = True
        beside = self.beside is None or self.beside.wipe()
        return overwrite(self.region) and beside

    def __enter__(self) -> OpenedPackage:
        return self

    def __exit__(self, *_: object) -> None:
        self.wipe()


def open_package(
    source: str | Path | Reserved,
    *,
    payload_key: ReadableBuffer,
    manifest_hash: str,
    threads: int | None = None,
    verify_digests: bool = False,
    tolerate: Callable[[str], bool] | None = None,
    offset: int = 0,
) -> OpenedPackage:
    """Authenticate and decrypt a container into private memory; its threads are joined before it returns.

    Args:
        source: a regular file that holds exactly one container, from `offset` to its end; or what `reserve`
            made of one, which serves once.
        payload_key: its 32-byte key; not kept, the caller wipes it.
        manifest_hash: expected SHA-256 of the plaintext manifest (64 hex), known from elsewhere.
        threads: how many decrypt at once; None takes the processors this process may use.
        verify_digests: also recompute every salted digest. Tags authenticate the bytes already; this shows
            that the sealer's manifest tells the truth about them.
        tolerate: says of which tensors, by name, another digest is no error: `mismatched` then names them.
        offset: bytes before the container.

    Raises:
        SealError: the codes above, and payload-key-malformed, manifest-hash-malformed, container-unreadable,
            region-unavailable.
    """
    key = check_key(payload_key)
    expected = check_hash(manifest_hash)
    if isinstance(source, Reserved):
        if source.used:
            raise refuse("reserved memory serves once", Code.REGION_UNAVAILABLE, "reserve again")
        source.used = True
        mapped, region = source.mapped, source.region
    else:
        mapped, region = map_file(source, offset + HEADER_BYTES), None
    try:
        # The view is a temporary: one with a name would keep the mapping open.
        return _open(
            memoryview(mapped)[offset:],
            key,
            expected,
            thread_count(threads),
            (tolerate or _nothing) if verify_digests else None,
            reserved=region,
        )
    finally:
        # A traceback may still hold a view of the ciphertext; the mapping then goes with it.
        with contextlib.suppress(BufferError):
            mapped.close()


@dataclass(eq=False)
class Reserved:
    """A mapped container and the memory that it will open to, both with their pages taken."""

    mapped: mmap.mmap = field(repr=False)
    region: mmap.mmap = field(repr=False)
    used: bool = False


def reserve(path: str | Path, *, threads: int | None = None) -> Reserved | None:
    """Map a container and take memory for it before there is a key; None where that is not possible.

    Taking pages costs as much as decrypting into them, and a leg has the time while the broker decides. Until
    `open_package` gets the region nothing can be read from or written to it, so a scan of this process's
    memory has nothing to look at there. The size is a guess from the file, which nothing authenticates yet: a
    wrong one costs time, and memory up to what the file has on its disk.
    """
    try:
        mapped = map_file(path, HEADER_BYTES)
        header = Header.parse(mapped[:HEADER_BYTES])
        nbytes = len(mapped) - HEADER_BYTES - manifest_object(header).sealed_bytes
        # An object may need up to a page more than its bytes, and has 64 digits of digest in the manifest.
        region = private_region(nbytes + header.manifest_bytes // 64 * ALIGN)
        if (there := min(nbytes, Path(path).stat().st_blocks * 512)) > 0:  # holes take nothing
            populate_file(mapped, there)
            populate(region, min(there, len(region)), thread_count(threads))
        forbid(region)
    except (SealError, OSError, MemoryError, OverflowError, ValueError, RuntimeError):  # the last: no thread
        return None  # open_package says what is wrong
    return Reserved(mapped, region)


def check_hash(text: str) -> bytes:
    """The digest that 64 hex digits name. Raises SealError."""
    try:
        digest = bytes.fromhex(text)
    except (TypeError, ValueError):
        digest = b""
    if len(digest) != 32:
        raise refuse("expected manifest hash is not 64 hex digits", Code.MANIFEST_HASH_MALFORMED)
    return digest


def map_file(path: str | Path, least: int) -> mmap.mmap:
    """Map a regular file of at least `least` bytes for reading.

    Raises SealError: container-unreadable, container-truncated.
    """
    try:
        # O_NONBLOCK: a FIFO in the file's place must not hang us before fstat refuses it.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise refuse("sealed file is not a regular file", Code.CONTAINER_UNREADABLE)
            if status.st_size < least:
                raise refuse("sealed file ends inside its header", Code.CONTAINER_TRUNCATED)
            return mmap.mmap(descriptor, status.st_size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise refuse(f"cannot read the sealed file: {error.strerror}", Code.CONTAINER_UNREADABLE) from error
    except ValueError as error:  # a name with a zero in it, or a file that shrank before it was mapped
        raise refuse(f"cannot map the sealed file: {error}", Code.CONTAINER_UNREADABLE) from error


@dataclass(frozen=True)
class _Opening:
    """What decrypting needs to know; `places` and `offsets` have one entry more than there are objects."""

    head: bytes
    digest: bytes
    key: memoryview = field(repr=False)
    manifest: Manifest = field(repr=False)
    offsets: list[int]  # of each object's first chunk in the container
    places: list[int]  # of each object in the region


def _open(
    sealed: memoryview,
    key: memoryview,
    expected: bytes,
    threads: int,
    tolerate: Callable[[str], bool] | None,
    *,
    reserved: mmap.mmap | None,
) -> OpenedPackage:
    # 1 to 4
    table = read_table(sealed, key, expected)
    manifest = table.manifest
    places = list(itertools.accumulate((_aligned(item.nbytes) for item in manifest.objects), initial=0))
    try:
        if reserved is not None and len(reserved) >= places[-1]:
            region = reserved
            region.resize(region_bytes(places[-1]))  # what was too much goes back
            allow(region)
        else:
            if reserved is not None:
                reserved.close()
            region = private_region(places[-1])
    except (OSError, MemoryError, OverflowError, ValueError, BufferError) as error:
        raise refuse("no memory for the package", Code.REGION_UNAVAILABLE) from error

    # 5, 6: the objects
    plain = memoryview(region)
    opening = _Opening(table.head, expected, key, manifest, table.offsets, places)
    try:
        _decrypt(sealed, plain, opening, threads)
        check_padding(sealed, table, key, expected, threads)
        mismatched = frozenset() if tolerate is None else _verify(plain, opening, threads, tolerate)
    except BaseException:
        overwrite(region)
        raise
    return _package(plain, opening, region, mismatched)


def _nothing(_name: str) -> bool:
    return False


@dataclass(frozen=True)
class Table:
    """What a container holds and where: its header, its manifest, and each object's first byte in it.

    `padding`: what fills it up, behind the manifest's objects.
    """

    head: bytes
    manifest: Manifest = field(repr=False)
    padding: tuple[SealedObject, ...]
    offsets: list[int]  # of objects and padding; one more than there are: the end


def read_table(sealed: memoryview, key: memoryview, expected: bytes) -> Table:
    """Steps 1 to 4 of opening. Raises SealError."""
    # 1: the header, against what we were told
    head = bytes(sealed[:HEADER_BYTES])
    header = Header.parse(head)
    if not hmac.compare_digest(header.manifest_hash, expected):
        raise refuse("sealed container is another package", Code.MANIFEST_HASH_MISMATCH)

    # 2: the key, against what the header commits to
    if not hmac.compare_digest(header.commitment, commitment(key, expected)):
        raise refuse(
            "payload key is not the one this container was sealed with", Code.KEY_COMMITMENT_MISMATCH
        )

    # 3: the manifest
    manifest = _open_manifest(sealed, head, header, key)

    # 4: the size, before memory is taken for what the manifest claims
    first = HEADER_BYTES + manifest_object(header).sealed_bytes
    objects, padding = manifest.objects, tuple[SealedObject, ...]()
    whole = first + sum(item.sealed_bytes for item in objects)
    if header.padded and whole <= sealed.nbytes:  # or as much padding would be listed as a manifest may claim
        padding = padding_objects(len(objects), whole, header.chunk_bytes)
    sizes = (item.sealed_bytes for item in (*objects, *padding))
    offsets = list(itertools.accumulate(sizes, initial=first))
    if sealed.nbytes < offsets[-1]:
        raise refuse("sealed container is shorter than its manifest says", Code.CONTAINER_TRUNCATED)
    if sealed.nbytes > offsets[-1]:
        raise refuse("sealed container is longer than its manifest says", Code.CONTAINER_TRAILING_BYTES)
    return Table(head, manifest, padding, offsets)


def check_padding(sealed: memoryview, table: Table, key: memoryview, expected: bytes, threads: int) -> None:
    """Decrypt a container's padding, a chunk a thread at a time, and raise SealError where it is not zeros.

    Whoever can seal could otherwise hide in it what nobody looks at.
    """
    first = len(table.manifest.objects)

    def worker(turns: Iterator[int]) -> None:
        for turn in turns:
            item = table.padding[turn]
            start, end = table.offsets[first + turn : first + turn + 2]
            plain = bytearray(item.nbytes)
            cipher_for(key, expected, item).decrypt_into(
                nonce(0), sealed[start:end], item.associated_data(table.head, 0), plain
            )
            if plain != bytes(item.nbytes):
                raise refuse("the padding of the sealed container is not zero", Code.CONTAINER_MALFORMED)

    share(list(range(len(table.padding))), worker, threads)


def _open_manifest(sealed: memoryview, head: bytes, header: Header, key: memoryview) -> Manifest:
    table = manifest_object(header)
    ciphertext = sealed[HEADER_BYTES : HEADER_BYTES + table.sealed_bytes]
    if ciphertext.nbytes != table.sealed_bytes:
        raise refuse("sealed container ends inside its manifest", Code.CONTAINER_TRUNCATED)
    plain = bytearray(table.nbytes)
    altered = True
    try:
        # The cipher is a temporary, and no traceback keeps it: its key goes before the manifest is read.
        with contextlib.suppress(InvalidTag):
            cipher_for(key, header.manifest_hash, table).decrypt_into(
                nonce(0), ciphertext, table.associated_data(head, 0), plain
            )
            altered = False
        if altered:
            raise refuse("sealed manifest was altered", Code.MANIFEST_AUTHENTICATION_FAILED)
        if not hmac.compare_digest(hashlib.sha256(plain).digest(), header.manifest_hash):
            raise refuse("sealed manifest is not the one its hash names", Code.MANIFEST_HASH_MISMATCH)
        text = manifest_text(bytes(plain)) if header.padded else bytes(plain)
        if text is None:
            raise refuse("sealed manifest is padded to another size", Code.MANIFEST_MALFORMED)
        return parse_manifest(text, header.chunk_bytes, header.version)
    finally:
        overwrite(plain)


def _aligned(size: int) -> int:
    return -(-size // ALIGN) * ALIGN


def _decrypt(sealed: memoryview, plain: memoryview, opening: _Opening, threads: int) -> None:
    """Decrypt every chunk to its place; raises on the first that fails, with all threads joined."""
    objects = opening.manifest.objects
    jobs = [(index, chunk) for index, item in enumerate(objects) for chunk in range(item.chunks)]

    def worker(turns: Iterator[tuple[int, int]]) -> None:
        current, cipher = -1, None
        for index, chunk in turns:
            item = objects[index]
            if cipher is None or index != current:
                # One live cipher per thread: as few keys on the heap as can be.
                current, cipher = index, cipher_for(opening.key, opening.digest, item)
            size = item.chunk_size(chunk)
            start = opening.offsets[index] + chunk * (item.chunk_bytes + TAG)
            place = opening.places[index] + chunk * item.chunk_bytes
            cipher.decrypt_into(
                nonce(chunk),
                sealed[start : start + size + TAG],
                item.associated_data(opening.head, chunk),
                plain[place : place + size],
            )

    share(jobs, worker, threads)


def share(jobs: list[_Job], worker: Callable[[Iterator[_Job]], None], threads: int) -> None:
    """Share `jobs`, of decrypting chunks, among threads and join them; the first exception stops the others
    and is raised. Raises SealError (chunk-authentication-failed) for a chunk that does not authenticate.
    """
    altered = False
    try:
        _share(jobs, worker, threads)
    except InvalidTag:
        altered = True
    if altered:  # raised out here so that no traceback keeps a worker's cipher, and with it a key, alive
        raise refuse("a chunk of the sealed container was altered or moved", Code.CHUNK_AUTHENTICATION_FAILED)


def _share(jobs: list[_Job], worker: Callable[[Iterator[_Job]], None], threads: int) -> None:
    turn = itertools.count()  # its next() is atomic under the GIL: no lock
    stop = threading.Event()

    def turns() -> Iterator[_Job]:
        while not stop.is_set() and (position := next(turn)) < len(jobs):
            yield jobs[position]

    def run() -> None:
        try:
            worker(turns())
        except BaseException:
            stop.set()
            raise

    count = min(threads, len(jobs))
    if count <= 1:
        run()
        return
    with ThreadPoolExecutor(count) as pool:
        try:
            for future in [pool.submit(run) for _ in range(count)]:
                future.result()
        finally:
            stop.set()  # also when the wait itself was interrupted; leaving the block joins


def _verify(
    plain: memoryview, opening: _Opening, threads: int, tolerate: Callable[[str], bool]
) -> frozenset[str]:
    """Recompute every digest; return the tensors whose digest is another one and may be."""
    manifest = opening.manifest
    mismatched = set[str]()
    with ThreadPoolExecutor(threads) as pool:
        for item, place, claimed in zip(manifest.objects, opening.places, manifest.digests, strict=False):
            data = plain[place : place + item.nbytes]
            if hmac.compare_digest(digest_of(pool, item, data, manifest.salt, 4 * threads), claimed):
                continue
            if item.kind != "tensor" or not tolerate(item.name):
                raise refuse("sealed content is not what its own manifest says", Code.DIGEST_MISMATCH)
            mismatched.add(item.name)
    return frozenset(mismatched)


def _package(
    plain: memoryview, opening: _Opening, region: mmap.mmap, mismatched: frozenset[str]
) -> OpenedPackage:
    manifest = opening.manifest
    files: dict[str, memoryview] = {}
    tensors: dict[str, tuple[TensorSpec, memoryview]] = {}
    specs = iter(manifest.specs)
    for item, place in zip(manifest.objects, opening.places, strict=False):
        view = plain[place : place + item.nbytes]
        if item.kind == "tensor":
            tensors[item.name] = (next(specs), view)
        else:
            files[item.name] = view.toreadonly()
    extra = manifest.table["extra"]
    return OpenedPackage(manifest.table, extra, manifest.salt, files, tensors, region, mismatched)
