"""Write a tree of files below a folder, and nothing outside it, whatever its index says.

Every bound is checked before anything is written. Folders are opened one name at a time, relative to the
one before and never through a link; files are made new; links come last, so that nothing is written through
one of the tree's own.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType

from glasshouse.codes import Code
from glasshouse.sealing.layout import TensorSpec, refuse
from glasshouse.sealing.tree_index import PIECE_PREFIX, Entry, Index, parse_index, shown

# A tensor's bytes, or what gives them; these need not last beyond the next that are asked for.
Tensors = Mapping[str, tuple[TensorSpec, memoryview | Callable[[], memoryview]]]

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO must not hang us before fstat
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NAME_ERRORS = (errno.EILSEQ, errno.EINVAL, errno.ENAMETOOLONG, errno.EEXIST)
_NOT_THERE = (errno.ENOENT, errno.EILSEQ, errno.EINVAL, errno.ENAMETOOLONG)
_COMPARED = 1 << 20  # bytes held twice where a file is compared with one that is there


def write_tree(
    index: bytes | bytearray | memoryview,
    tensors: Tensors,
    folder: Path,
    *,
    release: Callable[[memoryview], object] | None = None,
    keep_same: bool = False,
    on_name: Callable[[str, str], None] | None = None,
) -> Index:
    """Write a tree's files, folders and links below `folder`, which is made where it is not there.

    Args:
        index: the tree's index, as it came out of the container.
        tensors: the container's; others than the tree's may be among them.
        folder: where to; a link that leads there is followed, none below it is.
        release: called with the whole of each tensor, at most 64 MiB, once all that is in it was written: no
            more is ever held twice. Such as `memory.give_back`. Not of tensors that are asked for.
        keep_same: a file, folder or link that is there and is the same as ours stays; a different one is
            refused before anything is written. Otherwise whatever is there is refused when it is met.
        on_name: called with what this file system does not take under its name, and why (it holds names to
            be UTF-8, or two names to be one); raises, or returns for it to be left out. None raises OSError.

    Raises:
        SealError: tree-malformed, where the index is not what the format says, or fits other tensors.
        OSError: what the system says, its filename the path in the tree (as `shown` writes it): the disk or
            the memory is full (ENOSPC, EDQUOT, ENOMEM), or something is in the way (FileExistsError,
            ENOTDIR, ELOOP). What was written until then is there, but no part of a file.
    """
    found = parse_index(index)
    contents = _Contents(found, tensors, release)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _Folders(folder) as folders:
        there = (
            {entry for entry in found.entries if folders.has_same(entry, contents)} if keep_same else set()
        )
        links_last = sorted(found.entries, key=lambda entry: entry.kind == "link")
        for entry in links_last:
            try:
                if entry not in there:
                    folders.put(entry, contents)
            except OSError as error:
                if on_name is None or error.errno not in _NAME_ERRORS:
                    raise
                on_name(shown(entry.path), str(error.strerror))
            contents.written(entry)
    return found


class _Contents:
    """Where each file's bytes lie in a container's tensors."""

    def __init__(
        self, index: Index, tensors: Tensors, release: Callable[[memoryview], object] | None
    ) -> None:
        names = [f"{PIECE_PREFIX}{number}" for number in range(len(index.pieces))]
        ours = {name for name in tensors if name.startswith(PIECE_PREFIX)}
        if ours != set(names):
            raise refuse("a tree's contents are not there, or not its own", Code.TREE_MALFORMED)
        for name, size in zip(names, index.pieces, strict=True):
            spec, data = tensors[name]
            nbytes = data.nbytes if isinstance(data, memoryview) else spec.nbytes
            if (spec.dtype, spec.shape, nbytes) != ("uint8", (size,), size):
                raise refuse("a tree's contents have another size than its index says", Code.TREE_MALFORMED)
        self._pieces = [tensors[name][1] for name in names]
        self._asked: tuple[int, memoryview] | None = None
        self._size = index.piece_bytes
        self._release = release
        self._released = 0
        self._starts: dict[bytes, int] = {}
        at = 0
        for entry in index.files:
            self._starts[entry.path] = at
            at += entry.nbytes
        self._end = at

    def parts(self, entry: Entry, most: int | None = None) -> Iterator[memoryview]:
        """Yield a file's bytes in order, as views of at most one piece, or of `most` bytes."""
        at = self._starts[entry.path]
        end = at + entry.nbytes
        while at < end:
            number, offset = divmod(at, self._size)
            size = min(end - at, self._size - offset, most or self._size)
            yield self._piece(number)[offset : offset + size]
            at += size
            if most is None:
                self._give_back(at)

    def _piece(self, number: int) -> memoryview:
        piece = self._pieces[number]
        if isinstance(piece, memoryview):
            return piece
        if self._asked is None or self._asked[0] != number:
            self._asked = None
            self._asked = (number, piece())
        return self._asked[1]

    def written(self, entry: Entry) -> None:
        """Give back every tensor that ends in or before this file."""
        if entry.kind == "file":
            self._give_back(self._starts[entry.path] + entry.nbytes)

    def _give_back(self, until: int) -> None:
        whole = len(self._pieces) if until == self._end else until // self._size
        while self._released < whole:
            piece = self._pieces[self._released]
            if self._release is not None and isinstance(piece, memoryview):
                self._release(piece)
            self._released += 1


class _Folders:
    """The folder that is written to, and of the folders in it the one that was needed last."""

    def __init__(self, folder: Path) -> None:
        self._root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._at = b""
        self._open = os.dup(self._root)

    def __enter__(self) -> _Folders:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._open)
        os.close(self._root)

    def put(self, entry: Entry, contents: _Contents) -> None:
        """Make what an entry says, of which nothing is there yet; a folder may be."""
        if entry.kind == "file":
            self._write(entry, contents.parts(entry))
            return
        with _named(entry.path):
            if entry.kind == "folder":
                self._enter(entry.path, make=True)
            else:
                parent, name = self._parent(entry.path)
                os.symlink(entry.target, name, dir_fd=parent)

    def _write(self, entry: Entry, parts: Iterator[memoryview]) -> None:
        """Make a new file and write it; one that fails is removed again."""
        with _named(entry.path):
            parent, name = self._parent(entry.path)
            file = os.open(name, _NEW, 0o700 if entry.executable else 0o600, dir_fd=parent)
            try:
                for part in parts:
                    _write_all(file, part)
                with contextlib.suppress(OSError, OverflowError):  # a file system that keeps no such time
                    os.utime(file, ns=(entry.mtime_us * 1000, entry.mtime_us * 1000))
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=parent)
                raise
            finally:
                os.close(file)

    def has_same(self, entry: Entry, contents: _Contents) -> bool:
        """Say whether an entry is there already; raise FileExistsError where something else is."""
        with _named(entry.path):
            try:
                if entry.kind == "folder":
                    self._enter(entry.path, make=False)
                    return True
                parent, name = self._parent(entry.path, make=False)
                status = os.stat(name, dir_fd=parent, follow_symlinks=False)
            except OSError as error:
                if error.errno not in _NOT_THERE:
                    raise
                return False
            if entry.kind == "link":
                same = stat.S_ISLNK(status.st_mode) and os.readlink(name, dir_fd=parent) == entry.target
            else:
                same = stat.S_ISREG(status.st_mode) and status.st_size == entry.nbytes
                same = same and _same_bytes(parent, name, contents.parts(entry, _COMPARED))
            if not same:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            return True

    def _parent(self, path: bytes, *, make: bool = True) -> tuple[int, bytes]:
        folder, _, name = path.rpartition(b"/")
        self._enter(folder, make=make)
        return self._open, name

    def _enter(self, path: bytes, *, make: bool) -> None:
        """Open the folder `path`, through no link; make what is missing on the way, or FileNotFoundError."""
        if path == self._at:
            return
        opened = os.dup(self._root)
        try:
            for name in path.split(b"/") if path else []:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(name, 0o700, dir_fd=opened)
                deeper = os.open(name, _FOLDER, dir_fd=opened)
                os.close(opened)
                opened = deeper
        except BaseException:
            os.close(opened)
            raise
        os.close(self._open)
        self._open, self._at = opened, path


@contextlib.contextmanager
def _named(path: bytes) -> Iterator[None]:
    """Say of which path an OSError is."""
    try:
        yield
    except OSError as error:
        raise type(error)(error.errno, error.strerror, shown(path)) from error


def _write_all(file: int, data: memoryview) -> None:
    while data:
        data = data[os.write(file, data) :]


def _same_bytes(parent: int, name: bytes, parts: Iterator[memoryview]) -> bool:
    with io.FileIO(os.open(name, _READ, dir_fd=parent)) as file:
        return all(_read(file.fileno(), part.nbytes) == bytes(part) for part in parts)


def _read(file: int, size: int) -> bytes:
    found = bytearray()
    while len(found) < size and (part := os.read(file, size - len(found))):
        found += part
    return bytes(found)
