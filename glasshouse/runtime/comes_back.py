"""What of a job's folder comes back to its owner: its outputs' folder, or all that it made or changed.

One answer for whatever is taken home of a job: its files at the end, and its checkpoints before. What went
along and is as it was stays: by size and time of last change, which `write_tree` restores to the microsecond,
so that a file that was written anew with both as before would be taken for the one that was sent.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from glasshouse.runtime.params import WHEELS_FOLDER
from glasshouse.sealing.tree_index import Entry, ancestors, parse_index

WHOLE = "."  # model.outputs, of a job whose whole folder is looked through for what it made or changed
_CACHE = "__pycache__"  # bytecode that whoever imports makes anew

Sent = Mapping[bytes, Entry]


def sent(index: bytes | bytearray | memoryview) -> dict[bytes, Entry]:
    """What a package brought, by path: its files and links, as its index says. SealError where it is none."""
    return {entry.path: entry for entry in parse_index(index).entries}


def taken(place: Path, outputs: str, came: Sent) -> Callable[[str], bool] | None:
    """Which of what lies under `place / outputs` comes back; for `only` of sealer.seal_tree.

    Args:
        place: the job's folder.
        outputs: model.outputs, relative to it; WHOLE is the folder itself.
        came: what was sent (`sent`). What is to come back although it is as it was sent is left out of it.

    Returns a function of a path relative to `place / outputs`, of a folder, too; None: all of it does.
    """
    if outputs != WHOLE:
        return None
    folders = {above for path in came for above in ancestors(path)}

    def only(name: str) -> bool:
        parts = name.split("/")
        if _CACHE in parts or parts[0] == WHEELS_FOLDER:
            return False
        path = os.fsencode(name)
        entry = Entry("folder", path) if path in folders else came.get(path)
        return not is_as_sent(place / name, entry)

    return only


def is_as_sent(path: Path, entry: Entry | None) -> bool:
    """Whether what lies there is what was sent; also where nothing can be said. None: nothing was sent."""
    if entry is None:
        return False
    try:
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            return entry.kind == "link" and os.fsencode(os.readlink(path)) == entry.target  # noqa: PTH115
    except OSError:  # gone meanwhile: nothing of it can come back
        return True
    if stat.S_ISDIR(status.st_mode):
        return entry.kind == "folder"
    return entry.kind == "file" and (
        (status.st_size, status.st_mtime_ns // 1000, bool(status.st_mode & stat.S_IXUSR))
        == (entry.nbytes, entry.mtime_us, entry.executable)
    )
