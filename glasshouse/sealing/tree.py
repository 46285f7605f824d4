"""Carry a tree of files through a sealed container: read it on one side, write it on the other.

    tree = read_tree(list_folder(folder, on_odd), on_odd=on_odd)
    seal_package(out, files={INDEX_NAME: tree.index, ...}, tensors=tree.tensors, ...)
    ...
    write_tree(package.files[INDEX_NAME], package.tensors, folder, release=give_back)

The format is `tree_index.py`. Contents are read into memory a piece at a time, in both passes of sealing, and
are not mapped: a mapped file that becomes shorter ends the process that reads it (SIGBUS).

What cannot be carried (`on_odd`): devices, sockets, FIFOs, links that lead out of the tree, what cannot be
read, and paths beyond the bounds. File times are kept to the microsecond; of the mode, whether the owner may
execute a file. What is written is its owner's alone (0600 or 0700).
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, NoReturn

from glasshouse.codes import Code
from glasshouse.errors import UsageError
from glasshouse.sealing.layout import TensorSpec, refuse
from glasshouse.sealing.memory import private_region
from glasshouse.sealing.tree_index import (
    INDEX_NAME,
    MAX_ENTRIES,
    MAX_INDEX_BYTES,
    MAX_LINE,
    MAX_PIECES,
    MAX_SKIPPED,
    PIECE_BYTES,
    PIECE_PREFIX,
    Entry,
    Index,
    Skipped,
    ancestors,
    as_path,
    link_fault,
    parse_index,
    path_fault,
    shown,
)
from glasshouse.sealing.tree_write import write_tree

__all__ = [
    "CANNOT_READ",
    "INDEX_NAME",
    "PIECE_BYTES",
    "Tree",
    "list_folder",
    "parse_index",
    "read_tree",
    "write_tree",
]

OnOdd = Callable[[str, str], None]  # a path as `shown` writes it, and why; whoever returns leaves it out

CANNOT_READ = "it cannot be read"  # how a reason begins, of a file of which nothing came
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO must not hang us before fstat
# An entry in the index has at most so many bytes beside its names; a byte of a name at most six (\u00NN).
_ROW_BYTES = 160
_NAME_BYTES = 6


def refuse_odd(path: str, reason: str) -> NoReturn:
    """Refuse a folder for what is in it: the default of `read_tree`."""
    raise UsageError(
        f"a file cannot be carried: {reason}", field="file", value=path, remedy="remove it, or leave it out"
    )


def refuse_change(path: str, reason: str) -> NoReturn:
    """Refuse a file that did not stay as it was: the default of `read_tree`."""
    raise refuse(
        f"{path} changed while it was sealed: {reason}",
        Code.SOURCE_CHANGED,
        "leave the files alone until then",
    )


class _Source(NamedTuple):
    entry: Entry
    path: Path
    mtime_ns: int


@dataclass(frozen=True, eq=False)
class Tree:
    """A tree as it was found.

    `index` is for the container's files, under INDEX_NAME. `tensors` reads the files each time it is gone
    through, and yields (TensorSpec, at most one piece of bytes in memory of its own). What is no longer as it
    was found goes to `read_tree`'s on_change.
    """

    index: bytes = field(repr=False)
    found: Index = field(repr=False)
    tensors: Iterable[tuple[TensorSpec, memoryview]] = field(repr=False)


def list_folder(folder: Path, on_odd: OnOdd = refuse_odd) -> Iterator[tuple[str, Path]]:
    """Yield everything below `folder`, folders too, as (relative POSIX path, path); links are not followed.

    A folder that cannot be listed goes to `on_odd`.
    """
    ahead = [("", folder)]
    while ahead:
        prefix, place = ahead.pop()
        try:
            with os.scandir(place) as listing:
                found = sorted((item.name, item.is_dir(follow_symlinks=False)) for item in listing)
        except OSError as error:
            on_odd(shown(as_path(prefix.rstrip("/") or ".")), f"it cannot be listed: {error.strerror}")
            continue
        for name, is_folder in found:
            yield prefix + name, place / name
            if is_folder:
                ahead.append((f"{prefix}{name}/", place / name))


def read_tree(
    files: Iterable[tuple[str, Path]],
    *,
    on_odd: OnOdd = refuse_odd,
    on_change: OnOdd = refuse_change,
    skipped: Iterable[Skipped] = (),
    changed: Collection[str] = (),
    piece_bytes: int = PIECE_BYTES,
    max_bytes: int | None = None,
) -> Tree:
    """Look at files and folders, and return the tree that they are; contents are read later.

    Args:
        files: relative POSIX path in the tree, and where it lies; in any order. Folders need not be among
            them: one that is, and has nothing in it, is kept. Links are kept as links.
        on_odd: called with what cannot be carried, and why; raises, or returns for it to be left out, which
            the index then says.
        on_change: called while `tensors` is gone through, with a file that is no longer what it was; raises,
            or returns for what is still there to be taken. What is missing is filled, otherwise in each pass,
            so that the container's own digest tells.
        skipped: what the caller left out, for the index to say.
        changed: paths, as `shown` writes them, of files that changed once already, for the index to say.
        piece_bytes: how large a tensor is at most.
        max_bytes: how much all contents may be; of more, the largest files are odd. None: what an index can
            say.

    Raises:
        UsageError: from the default `on_odd`.
        SealError: tree-malformed, where there are too many; source-changed, from the default `on_change`.
    """
    left_out = list(skipped)

    def odd(path: str, reason: str) -> None:
        on_odd(path, reason)
        left_out.append(Skipped(path, reason))

    sources = dict[bytes, _Source]()
    room = MAX_INDEX_BYTES - 4 * MAX_SKIPPED * MAX_LINE
    for name, place in files:
        path = as_path(name)
        source = _look(path, place)
        if isinstance(source, str):
            odd(shown(path), source)
            continue
        room -= _ROW_BYTES + _NAME_BYTES * (len(path) + len(source.entry.target))
        if path in sources:
            odd(shown(path), "it is listed twice")
        elif len(sources) >= MAX_ENTRIES or room < 0:
            odd(shown(path), f"there are more than {MAX_ENTRIES} files, or their names are too long together")
        else:
            sources[path] = source
    most = piece_bytes * MAX_PIECES if max_bytes is None else min(max_bytes, piece_bytes * MAX_PIECES)
    for path in _too_large(sources, most):
        odd(shown(path), f"all files together would be more than {most} bytes")
        del sources[path]
    for path in sorted(sources):  # one of two that a folder and a file of one name gave, one after the other
        if any(above in sources and sources[above].entry.kind != "folder" for above in ancestors(path)):
            odd(shown(path), "it lies below what is no folder")
            del sources[path]
    filled = {parent for path in sources for parent in ancestors(path)}
    kept = [
        sources[path]
        for path in sorted(sources)
        if not (sources[path].entry.kind == "folder" and path in filled)
    ]
    index = Index(
        tuple(source.entry for source in kept),
        piece_bytes,
        tuple(Skipped(path[:MAX_LINE], reason[:MAX_LINE]) for path, reason in left_out[:MAX_SKIPPED]),
        len(left_out),
        tuple(
            name[:MAX_LINE]
            for source in kept
            if source.entry.kind == "file" and (name := shown(source.entry.path)) in changed
        )[:MAX_SKIPPED],
    )
    packed = index.pack()
    parse_index(packed)  # so that nothing is sealed that the other side refuses
    return Tree(packed, index, _Pieces(kept, index, on_change))


def _too_large(sources: Mapping[bytes, _Source], most: int) -> list[bytes]:
    """Name the largest files, as many as have to go for the others to be `most` bytes at most."""
    found = list[bytes]()
    total = sum(source.entry.nbytes for source in sources.values())
    for path, source in sorted(sources.items(), key=lambda item: (-item[1].entry.nbytes, item[0])):
        if total <= most:
            break
        found.append(path)
        total -= source.entry.nbytes
    return found


def _look(path: bytes, place: Path) -> _Source | str:
    """Return what lies at `place`, or why it cannot be carried."""
    if (fault := path_fault(path)) is not None:
        return fault
    try:
        status = place.lstat()
        if stat.S_ISLNK(status.st_mode):
            target = _within(path, place, as_path(os.readlink(place)))  # noqa: PTH115 -- a Path would tidy it
            return link_fault(path, target) or _Source(Entry("link", path, target=target), place, 0)
    except (OSError, ValueError) as error:
        return f"it cannot be looked at: {getattr(error, 'strerror', None) or error}"
    if stat.S_ISDIR(status.st_mode):
        return _Source(Entry("folder", path), place, 0)
    if not stat.S_ISREG(status.st_mode):
        return "it is a device, a socket or a FIFO"
    if not os.access(place, os.R_OK):
        return CANNOT_READ
    executable = bool(status.st_mode & stat.S_IXUSR)
    entry = Entry("file", path, status.st_size, status.st_mtime_ns // 1000, executable)
    return _Source(entry, place, status.st_mtime_ns)


def _within(path: bytes, place: Path, target: bytes) -> bytes:
    """A link's target; one that is absolute and leads into the tree is made relative to the link."""
    here = os.fsencode(place)
    if not target.startswith(b"/") or not here.endswith(b"/" + path):
        return target
    root = here[: -len(path)]
    if not target.startswith(root):
        return target
    return os.path.relpath(target, os.path.dirname(here))  # noqa: PTH120 -- bytes


class _Pieces:
    """The contents of a tree's files, cut into tensors; each pass reads the files anew."""

    def __init__(self, sources: Collection[_Source], index: Index, on_change: OnOdd) -> None:
        self._sources = [source for source in sources if source.entry.nbytes]
        self._sizes = index.pieces
        self._on_change = on_change
        self._passes = 0

    def __iter__(self) -> Iterator[tuple[TensorSpec, memoryview]]:
        self._passes += 1
        filler = bytes([self._passes % 256])  # no two passes fill alike
        sizes = iter(self._sizes)
        number, have, piece = 0, 0, _memory(next(sizes, 0))
        for source in self._sources:
            with self._opened(source) as file:
                left = source.entry.nbytes
                while left:
                    part = piece[have : have + left]
                    done = _fill(file, part)
                    if done < part.nbytes:
                        self._on_change(shown(source.entry.path), "it became shorter")
                        part[done:] = filler * (part.nbytes - done)
                    left -= part.nbytes
                    have += part.nbytes
                    if not left:  # before the last piece is given out: nobody may come back for more
                        self._check(source, file)
                    if have == piece.nbytes:
                        yield TensorSpec(f"{PIECE_PREFIX}{number}", "uint8", (have,)), piece
                        number, have, piece = number + 1, 0, _memory(next(sizes, 0))

    @contextlib.contextmanager
    def _opened(self, source: _Source) -> Iterator[io.FileIO | None]:
        """Open a file that is what it was; None where it is not there, or cannot be read."""
        file = None
        try:
            file = io.FileIO(os.open(source.path, _READ))
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(errno.EINVAL, "it is no file any more")
        except OSError as error:
            if file is not None:
                file.close()
            file = None
            self._on_change(shown(source.entry.path), f"{CANNOT_READ}: {error.strerror}")
        if file is None:
            yield None
            return
        with file:
            yield file

    def _check(self, source: _Source, file: io.FileIO | None) -> None:
        if file is not None:
            status = os.fstat(file.fileno())
            if (status.st_size, status.st_mtime_ns) != (source.entry.nbytes, source.mtime_ns):
                self._on_change(shown(source.entry.path), "it was written to")


def _memory(size: int) -> memoryview:
    return memoryview(private_region(size))[:size]  # of huge pages: faulting small ones in takes longer


def _fill(file: io.FileIO | None, part: memoryview) -> int:
    """Read into `part` and return how many bytes came; a file that cannot be read ends there."""
    done = 0
    with contextlib.suppress(OSError):
        while file is not None and done < part.nbytes and (count := file.readinto(part[done:])):
            done += count
    return done
