"""What lies in a folder, without what is made again elsewhere: environments, caches, git's own files.

Links are seen as links and never followed, so a walk ends and stays inside.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from glasshouse.host import read_regular

GIT: Final = ".git"
# An environment is known by what lies in it, whatever it is called: of Python, of conda.
_ENVIRONMENT_MARKS: Final = ("pyvenv.cfg", "conda-meta")
_ENVIRONMENT_NAMES: Final = frozenset({"node_modules"})
_CACHES: Final = frozenset(
    {
        *("__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".ipynb_checkpoints"),
        *(".tox", ".nox", ".eggs", ".hypothesis"),
    }
)
# A run folder of ours is known by what it keeps of the run (lifecycle/run_folder.py), wherever it lies.
_RUN_FILE: Final = "run.json"
_RUN_ID: Final = re.compile(r"\d{8}-\d{6}-[a-z0-9]{6}\Z", re.ASCII)
_MAX_RUN_BYTES: Final = 1 << 20


def is_run_folder(folder: Path) -> bool:
    """Whether a folder is that of a run of ours."""
    try:
        kept = json.loads(read_regular(folder / _RUN_FILE, _MAX_RUN_BYTES))
    except (OSError, ValueError, RecursionError):
        return False
    if not isinstance(kept, dict):
        return False
    run, name = kept.get("run"), kept.get("name")
    if not (isinstance(run, str) and isinstance(name, str)):
        return False
    return _RUN_ID.match(run) is not None and name.startswith(f"gh-{run}-")


@dataclass(frozen=True)
class Found:
    """Something that is no folder: relative POSIX path, where it lies, what lstat(2) says of it."""

    name: str
    path: Path
    info: os.stat_result

    @property
    def is_link(self) -> bool:
        """Whether it is a symbolic link, to whatever."""
        return stat.S_ISLNK(self.info.st_mode)

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.info.st_mode)


@dataclass
class Walk:
    """A walk through `top`, and what it did not look into.

    closed: folders that are not entered, by relative name, such as the outputs'. spelled: whether the user
    spelled a folder's name, which opens what is closed, an environment or a cache; nothing opens `.git`, nor
    a run folder of ours. kept_closed (of `closed`, and run folders), environments, unreadable: relative
    names, filled in while it goes.
    """

    top: Path
    closed: frozenset[str] = frozenset()
    spelled: Callable[[str], bool] = lambda _: False
    environments: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    kept_closed: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[Found]:
        """Yield all there is, in no particular order."""
        ahead = [""]
        while ahead:
            folder = ahead.pop()
            try:
                with os.scandir(self.top / folder) as entries:
                    inside = list(entries)
            except FileNotFoundError:
                continue  # it went while we looked
            except OSError:
                self.unreadable.append(folder)
                continue
            for entry in inside:
                name = f"{folder}/{entry.name}" if folder else entry.name
                if entry.name == GIT:
                    continue
                try:
                    if not entry.is_dir(follow_symlinks=False):
                        yield Found(name, self.top / name, entry.stat(follow_symlinks=False))
                    elif is_run_folder(Path(entry.path)):
                        self.kept_closed.append(name)
                    elif self.spelled(name) or not self._stays_closed(name, entry):
                        ahead.append(name)
                except FileNotFoundError:
                    continue

    def _stays_closed(self, name: str, entry: os.DirEntry[str]) -> bool:
        if name in self.closed:
            self.kept_closed.append(name)
            return True
        if entry.name in _CACHES or entry.name.endswith(".egg-info"):
            return True
        marked = any(os.path.lexists(Path(entry.path) / mark) for mark in _ENVIRONMENT_MARKS)
        if marked or entry.name in _ENVIRONMENT_NAMES:
            self.environments.append(name)
            return True
        return False
