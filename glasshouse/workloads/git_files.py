"""Which files git tracks in a folder, as its index says; their content is that of the work tree, not git's.

git is asked in an environment without GIT_* variables and with nothing of the repository's that starts
programs: no hook, no file system monitor, no pager. Submodules are asked in turn, as repositories.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from glasshouse.errors import UsageError
from glasshouse.host import read_regular

FIELD = "model.folder"
GIT_SEC = 120.0
MAX_SUBMODULE_DEPTH = 8
_OPTIONS = (
    *("--no-pager", "--no-optional-locks", "--literal-pathspecs"),
    *("-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}"),
)
_SUBMODULE = "160000"
_LFS_POINTER = b"version https://git-lfs."
MAX_LFS_POINTER_BYTES = 1024  # by its specification


@dataclass(frozen=True)
class Tracked:
    """What git tracks under a folder: relative POSIX paths, sorted; and submodules never fetched."""

    names: tuple[str, ...]
    empty_submodules: tuple[str, ...]


def tracked(folder: Path) -> Tracked | None:
    """Ask git; None where the folder lies in no work tree.

    Names are as os.fsdecode makes them. Raises UsageError where a repository is there and git is not, or git
    cannot read it.
    """
    if not any((place / ".git").exists() for place in (folder, *folder.parents)):
        return None
    inside = _git(folder, "rev-parse", "--is-inside-work-tree", missing_is_no=True)
    if inside.strip() != b"true":
        return None
    names, empty = list[str](), list[str]()
    for name, is_empty in _listed(folder, "", MAX_SUBMODULE_DEPTH):
        (empty if is_empty else names).append(name)
    return Tracked(tuple(sorted(set(names))), tuple(sorted(empty)))


def is_lfs_pointer(path: Path, size: int) -> bool:
    """Whether a file of `size` bytes is what Git LFS puts in the place of one that it has not fetched."""
    if not len(_LFS_POINTER) < size <= MAX_LFS_POINTER_BYTES:
        return False
    try:
        return read_regular(path, MAX_LFS_POINTER_BYTES).startswith(_LFS_POINTER)
    except OSError:
        return False


def _listed(folder: Path, prefix: str, depth: int) -> Iterator[tuple[str, bool]]:
    for entry in _git(folder, "ls-files", "--cached", "--stage", "-z", "--", ".").split(b"\0"):
        if not entry:
            continue
        about, _, raw = entry.partition(b"\t")  # mode, object, stage
        name = os.fsdecode(raw)
        if not about.startswith(_SUBMODULE.encode()):
            yield prefix + name, False
        elif (
            folder / name / ".git"
        ).exists() and depth:  # else git would answer for the repository around it
            yield from _listed(folder / name, f"{prefix}{name}/", depth - 1)
        else:
            yield prefix + name, True


def _git(folder: Path, *words: str, missing_is_no: bool = False) -> bytes:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0", "GIT_NO_LAZY_FETCH": "1"}
    try:
        done = subprocess.run(
            ["git", *_OPTIONS, "-C", str(folder), *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=GIT_SEC,
            env=environment,
        )
    except FileNotFoundError as error:
        raise UsageError(
            "git is not installed, and the folder is a git work tree", field=FIELD, value=folder,
            remedy="install git: it says which files belong to the project",
        ) from error  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise UsageError(
            f"git did not answer in {GIT_SEC:.0f} s", field=FIELD, value=folder, remedy="try git status there"
        ) from error
    if done.returncode == 0:
        return done.stdout
    said = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["git status says why"]
    if missing_is_no and "not a git repository" in done.stderr.decode("utf-8", "replace"):
        return b""
    raise UsageError("git cannot read the work tree", field=FIELD, value=folder, remedy=said[0])
