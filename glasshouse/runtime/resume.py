"""What a job goes on from, as it lies in its package: put back before anything of the owner's runs.

Of a project, the files of its outputs folder at the checkpoint, as a second tree beside its own:

    files     resume/tree.json: the tree's index (sealing/tree_index.py)
    tensors   resume/tree/0, resume/tree/1, ...: its contents

Of any other workload, what its session's `state` gave (session.py), with no pickle in it:

    files     resume/state.safetensors: the tensors; resume/state.json: the values

What the outputs folder holds is the checkpoint's alone: files of that folder that went along with the project
are those of before.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from glasshouse.canonical import parse_json
from glasshouse.codes import Code
from glasshouse.errors import LegError
from glasshouse.runtime import randomness
from glasshouse.runtime.safetensors import read_safetensors
from glasshouse.runtime.session import RESERVED
from glasshouse.sealing.layout import TensorSpec
from glasshouse.sealing.tree import INDEX_NAME, parse_index, write_tree
from glasshouse.sealing.tree_index import Entry

PREFIX = "resume/"
INDEX = f"{PREFIX}{INDEX_NAME}"
TENSORS, VALUES = f"{PREFIX}state.safetensors", f"{PREFIX}state.json"
MAX_VALUES_BYTES = 64 << 20
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def put_back(
    files: Mapping[str, Any],
    tensors: Mapping[str, tuple[TensorSpec, Any]],
    folder: Path,
    *,
    whole: bool = False,
    release: Callable[[memoryview], object] | None = None,
) -> bool:
    """Write the files that a project goes on from as its outputs folder; False where it begins anew.

    whole: that folder is the project's own, where the checkpoint has what was made or changed, and the rest
    stays. Raises SealError and OSError as `write_tree`.
    """
    if INDEX not in files:
        return False
    if whole:
        _make_way(files[INDEX], folder)
    elif folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)
    elif folder.is_file() and not folder.is_symlink():
        folder.unlink()
    own = {
        name.removeprefix(PREFIX): (TensorSpec(name.removeprefix(PREFIX), spec.dtype, spec.shape), view)
        for name, (spec, view) in tensors.items()
        if name.startswith(PREFIX)
    }
    write_tree(files[INDEX], own, folder, release=release)
    return True


def _make_way(index: Any, folder: Path) -> None:
    """Remove what of a project's own the checkpoint has another form of, or another kind. No link is
    followed: one on the way to an entry goes itself, and what it leads to stays.
    """
    root = os.open(folder, _FOLDER)
    try:
        for entry in parse_index(index).entries:
            _clear(root, entry)
    finally:
        os.close(root)


def _clear(root: int, entry: Entry) -> None:
    *above, last = entry.path.split(b"/")
    place = os.dup(root)
    try:
        for name in above:
            if (mode := _mode(place, name)) is None:
                return
            if not stat.S_ISDIR(mode):
                os.unlink(name, dir_fd=place)
                return
            deeper = os.open(name, _FOLDER, dir_fd=place)
            os.close(place)
            place = deeper
        mode = _mode(place, last)
        if mode is None or (entry.kind == "folder" and stat.S_ISDIR(mode)):
            return
        if stat.S_ISDIR(mode):
            shutil.rmtree(last, dir_fd=place)
        else:
            os.unlink(last, dir_fd=place)
    finally:
        os.close(place)


def _mode(place: int, name: bytes) -> int | None:
    try:
        return os.stat(name, dir_fd=place, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return None


def restore(session: Any, files: Mapping[str, Any]) -> bool:
    """Give a session the state that it goes on from; False where it begins anew.

    Raises LegError: checkpoint-not-restored.
    """
    if VALUES not in files:
        return False
    if not callable(getattr(session, "restore", None)):
        raise LegError("the session cannot take a state", code=Code.CHECKPOINT_NOT_RESTORED)
    try:
        values = parse_json(bytes(files[VALUES]), max_bytes=MAX_VALUES_BYTES)
        if not isinstance(values, dict):
            raise TypeError("the state's values are no object")
        ours = values.pop(RESERVED, {})
        session.restore(read_safetensors(files[TENSORS]), values)
        # Of rank 0, which wrote the checkpoint: the others would draw what it draws.
        if "random" in ours and os.environ.get("RANK", "0") == "0":
            randomness.put_back(ours["random"])
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise LegError(
            f"the session did not take the state: {error}", code=Code.CHECKPOINT_NOT_RESTORED
        ) from error
    return True


def made(values: object) -> int | None:
    """Optimizer steps by a state's values, of the whole chain of runs; None where they do not say it.

    What is ours counts; where there is none of it, `steps`, as a state of an earlier version has it.
    """
    if not isinstance(values, dict):
        return None
    ours = values.get(RESERVED, values)
    steps = ours.get("steps") if isinstance(ours, dict) else None
    return steps if type(steps) is int and steps >= 0 else None


def made_before(files: Mapping[str, Any]) -> int:
    """Optimizer steps that were made by what a package goes on from; 0 where it begins anew."""
    if VALUES not in files:
        return 0
    with contextlib.suppress(ValueError):
        return made(parse_json(bytes(files[VALUES]), max_bytes=MAX_VALUES_BYTES)) or 0
    return 0
