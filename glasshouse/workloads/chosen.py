"""One file that goes along. It can be read, its name is UTF-8, and a link stays inside."""

from __future__ import annotations

import os
import posixpath
from dataclasses import dataclass
from pathlib import Path

from glasshouse.errors import UsageError
from glasshouse.workloads.walking import Found

IGNORE_FILE = ".glasshouseignore"
# What a sealed tree can carry.
MAX_NAME_BYTES = 4000
MAX_DEPTH = 128


@dataclass(frozen=True)
class ChosenFile:
    """A file or a symbolic link that goes along.

    name: where it appears in the project, a relative POSIX path in UTF-8. path: where it lies here. size: in
    bytes, 0 for a link. executable: its owner may run it. link: what a symbolic link says, relative to its
    own place and leading to somewhere in the project; None for a file, and for a link that goes along as a
    copy of the file that it leads to. from_data: model.data named it.
    """

    name: str
    path: Path
    size: int
    executable: bool = False
    link: str | None = None
    from_data: bool = False

    @property
    def leads_to(self) -> str | None:
        """The project's path that a link names; None for a file. It need not be there."""
        if self.link is None:
            return None
        return posixpath.normpath(posixpath.join(posixpath.dirname(self.name), self.link))


def choose(found: Found, top: Path, field: str, prefix: str = "") -> ChosenFile:
    """Take what was found under `top` along. prefix: what its name begins with in the project.

    Raises UsageError for a file that cannot be read, a name that is not possible, a link that leads outside.
    """
    name = prefix + found.name
    if (fault := _name_fault(name)) is not None:
        raise UsageError(
            fault, field=field, value=found.name, remedy=f"rename it, or name it in {IGNORE_FILE}"
        )
    if found.is_link and (link := _link(found, top, field)) is not None:
        return ChosenFile(name, found.path, 0, link=link)
    path, info = found.path, found.info
    if found.is_link:
        path = Path(os.path.realpath(path))
        info = path.stat()
    if not os.access(path, os.R_OK):
        raise UsageError(
            "cannot read a file", field=field, value=found.path,
            remedy=f"make it readable, or name it in {IGNORE_FILE}",
        )  # fmt: skip
    return ChosenFile(name, path, info.st_size, bool(info.st_mode & 0o100))


def _name_fault(name: str) -> str | None:
    try:
        length = len(name.encode("utf-8"))
    except UnicodeEncodeError:
        return "a file's name is not UTF-8"
    if length > MAX_NAME_BYTES or name.count("/") >= MAX_DEPTH:
        return "a file's path is too long, or too deep"
    return None


def _link(found: Found, top: Path, field: str) -> str | None:
    """What the link says; None of one to a file inside by a way that means nothing on another machine."""
    try:
        said = os.readlink(found.path)  # noqa: PTH115  a Path would lose a slash or a dot
    except OSError as error:
        raise UsageError(
            f"cannot read a link: {error.strerror}", field=field, value=found.path, remedy="look at it"
        ) from error
    target = Path(os.path.realpath(found.path))
    if not target.is_relative_to(top):
        raise UsageError(
            "a link leads outside of the folder", field=field, value=found.name,
            remedy=f"name what it leads to in model.data, or the link in {IGNORE_FILE}",
        )  # fmt: skip
    if _means_the_same(found.name, said):
        return said
    if target.is_file():
        return None
    better = os.path.relpath(target, top / posixpath.dirname(found.name))
    raise UsageError(
        "a link leads to a folder by a way that is this machine's alone", field=field, value=found.name,
        remedy=f"let it say {better}, or name it in {IGNORE_FILE}",
    )  # fmt: skip


def _means_the_same(name: str, said: str) -> bool:
    """Whether a link leads to the same place wherever the folder lies: up inside of it, and then down."""
    parts = [part for part in said.split("/") if part not in ("", ".")]
    up = next((count for count, part in enumerate(parts) if part != ".."), len(parts))
    return not said.startswith("/") and up <= name.count("/") and ".." not in parts[up:]
