"""What a folder that a job writes to looks like from outside: whether it rests, and what in it is whole.

Nobody tells when a set of files is complete, so this is what can be seen of it (stat(2), rename(2)):

- A folder that was renamed into place. A rename changes the folder's own ctime, and making or removing an
  entry in it changes ctime and mtime alike: one whose ctime is later than its mtime was renamed (or given
  another mode or times, which is done last, too) after the last entry was made in it. It counts as whole
  where nothing beneath it was touched later. Made, filled and renamed within one tick of the kernel's clock,
  a few milliseconds, it is not recognised.
- A file that the owner named for that. What lies in its folder, and beneath, is whole where nothing of it
  was touched later than the file.

`ctime` cannot be set, so no copied time deceives. A mapped file that is written to through its mapping shows
in neither time on a tmpfs: its program has to mark, or to write, such files.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from glasshouse.sealing.tree_index import MAX_ENTRIES, MAX_INDEX_BYTES

_BEAT_EVERY = 1000  # entries


class Entry(NamedTuple):
    """What of one file or folder tells that it was changed; times in nanoseconds."""

    kind: int  # as stat.S_IFMT
    size: int
    mtime: int
    ctime: int
    inode: int


Look = Mapping[str, Entry]  # by path relative to the folder, which is not among them


class TooManyError(Exception):
    """There are more files than a sealed folder can hold."""


@dataclass(frozen=True)
class Mark:
    """A set of files that is whole: all that lies beneath `root`, or in the whole folder where that is ""."""

    root: str
    ctime: int  # of what marks it: a later mark is another one
    inode: int


def look(
    folder: Path,
    only: Callable[[str], bool] | None = None,
    most: int = MAX_ENTRIES,
    beat: Callable[[], None] = lambda: None,
) -> dict[str, Entry]:
    """What lies in a folder and beneath; links are not followed. Empty also where it is not there.

    only: says of a relative path whether it counts; None: all do. What goes away meanwhile, or cannot be
    listed, is left out. beat: called now and then while it goes; it may raise. Raises TooManyError beyond
    `most` entries, or where their names are too long together.
    """
    found: dict[str, Entry] = {}
    ahead = [("", os.fspath(folder))]
    looked = letters = 0
    while ahead:
        prefix, place = ahead.pop()
        try:
            with os.scandir(place) as listing:
                for item in listing:
                    looked += 1
                    if looked % _BEAT_EVERY == 0:
                        beat()
                    letters += len(prefix) + len(item.name)
                    if len(found) > most or letters > MAX_INDEX_BYTES:
                        raise TooManyError
                    try:
                        seen = _entry(item.stat(follow_symlinks=False))
                    except OSError:
                        continue
                    if only is None or only(prefix + item.name):
                        found[prefix + item.name] = seen
                    if stat.S_ISDIR(seen.kind):
                        ahead.append((f"{prefix}{item.name}/", item.path))
        except OSError:
            continue
    return found


def _entry(status: os.stat_result) -> Entry:
    kind = stat.S_IFMT(status.st_mode)
    return Entry(kind, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def is_empty(seen: Look) -> bool:
    """Whether there is nothing but folders."""
    return all(stat.S_ISDIR(entry.kind) for entry in seen.values())


def marks(seen: Look, ready: str) -> frozenset[Mark]:
    """The sets that are whole. `ready`: path of the file that marks one, or a pattern of it; "": there is
    none.
    """
    newest: dict[str, int] = {}  # by folder: the latest ctime of what lies beneath it
    files: set[str] = set()  # folders with a file beneath them
    by_depth: dict[int, set[str]] = {}
    for path, entry in seen.items():
        above = path.rpartition("/")[0]
        newest[above] = max(newest.get(above, 0), entry.ctime)
        if not stat.S_ISDIR(entry.kind):
            files.add(above)
        by_depth.setdefault(_depth(above), set()).add(above)
    for depth in range(max(by_depth, default=0), 0, -1):  # once per folder, however deep it lies
        for path in by_depth[depth]:
            above = path.rpartition("/")[0]
            newest[above] = max(newest.get(above, 0), newest[path])
            if path in files:
                files.add(above)
            by_depth.setdefault(depth - 1, set()).add(above)
    found = set()
    for path, entry in seen.items():
        if stat.S_ISDIR(entry.kind):
            renamed = entry.ctime > entry.mtime
            if renamed and path in files and newest[path] <= entry.ctime:
                found.add(Mark(path, entry.ctime, entry.inode))
        elif ready and fnmatchcase(path, ready):
            root = path.rpartition("/")[0]
            if newest[root] <= entry.ctime and not stat.S_ISLNK(entry.kind):
                found.add(Mark(root, entry.ctime, entry.inode))
    return frozenset(found)


def _depth(folder: str) -> int:
    return folder.count("/") + 1 if folder else 0


def changed(one: Look, other: Look) -> set[str]:
    """The paths that are not the same in both, and every folder that has one of them beneath it, "" too."""
    found: set[str] = set()
    for path in one.keys() | other.keys():
        if one.get(path) == other.get(path):
            continue
        while path not in found:
            found.add(path)
            path = path.rpartition("/")[0]  # noqa: PLW2901  of "" it is ""
    return found


def kept(states: Mapping[int, str]) -> set[int]:
    """Which two checkpoints are kept, of so many by number: the newest, and the newest whole one before it,
    or where there is none, the one before.
    """
    numbers = sorted(states, reverse=True)
    whole = [number for number in numbers[1:] if states[number] == "whole"]
    return {*numbers[:1], *(whole or numbers[1:])[:1]}
