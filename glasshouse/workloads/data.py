"""model.data: files and folders from elsewhere, which appear in the project as data/NAME."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from glasshouse.errors import UsageError
from glasshouse.workloads.chosen import ChosenFile, choose
from glasshouse.workloads.walking import Found, Walk

FIELD = "model.data"
DATA_FOLDER = "data"


def gather(items: Sequence[str | Path]) -> tuple[ChosenFile, ...]:
    """Return what lies at `items`: `~` is the home, other paths begin at the current folder.

    Names and subfolders are kept, hidden ones too; `.git`, environments and caches stay. What an item itself
    is a link to is taken, and so is a file outside that a link inside leads to. Raises UsageError for what is
    not there or not readable, two items of one name, a link to a folder outside, the root or the home folder.
    """
    chosen, owners = list[ChosenFile](), dict[str, Path]()
    for item in items:
        path = Path(os.path.abspath(Path(item).expanduser()))  # noqa: PTH100  resolve() would lose a link's name
        real = path.resolve()
        if too_much(real):
            raise UsageError(
                "too much would be sealed", field=FIELD, value=item, remedy="name the files and folders in it"
            )
        if path.name in owners:
            raise UsageError(
                f"two items are called {path.name}", field=FIELD, value=item,
                remedy=f"rename one: {owners[path.name]} has the name already",
            )  # fmt: skip
        owners[path.name] = path
        chosen += _item(real, f"{DATA_FOLDER}/{path.name}", item)
    chosen = [dataclasses.replace(file, from_data=True) for file in chosen]
    return tuple(sorted(chosen, key=lambda file: file.name))


def too_much(folder: Path) -> bool:
    """Whether a resolved folder is the root, the home folder, or one around it."""
    home = Path(os.path.expanduser("~")).resolve()  # noqa: PTH111  Path.home() fails where there is none
    return folder == Path(folder.anchor) or home.is_relative_to(folder)


def _item(real: Path, name: str, item: str | Path) -> list[ChosenFile]:
    try:
        info = real.stat()
    except OSError as error:
        raise UsageError(
            f"cannot find it: {error.strerror}", field=FIELD, value=item, remedy="give a file or a folder"
        ) from error
    if stat.S_ISREG(info.st_mode):
        found = choose(Found(real.name, real, info), real.parent, FIELD)
        return [ChosenFile(name, real, found.size, found.executable)]
    if not stat.S_ISDIR(info.st_mode):
        raise UsageError(
            "neither a file nor a folder", field=FIELD, value=item, remedy="give a file or a folder"
        )
    walk = Walk(real)
    chosen = [_inner(found, real, name) for found in walk if found.is_file or found.is_link]
    if walk.kept_closed:
        raise UsageError(
            "a run of Glasshouse cannot go along", field=FIELD, value=real / walk.kept_closed[0],
            remedy="name what else is there, or what `glasshouse open` made of the run: RUN/opened/s000-1",
        )  # fmt: skip
    if walk.unreadable:
        raise UsageError(
            "cannot look into a folder", field=FIELD, value=real / walk.unreadable[0],
            remedy="make it readable",
        )  # fmt: skip
    if not chosen:
        raise UsageError("the folder holds no files", field=FIELD, value=item, remedy="leave it out")
    return chosen


def _inner(found: Found, top: Path, name: str) -> ChosenFile:
    if found.is_link:
        target = Path(os.path.realpath(found.path))
        if not target.is_relative_to(top) and target.is_file():  # as in caches that hold each file once
            return choose(Found(found.name, target, target.stat()), top, FIELD, f"{name}/")
    return choose(found, top, FIELD, f"{name}/")
