"""One file that goes along. It can be read, its name is UTF-8, and a link stays inside."""

from __future__ import annotations

import os
import posixpath
from dataclasses import dataclass
from pathlib import Path

from glasshouse.errors import UsageError
from glasshouse.workloads.walking import Found


@dataclass(frozen=True)
class ChosenFile:
    """A file or a symbolic link that goes along.

    name: where it appears in the project, a relative POSIX path in UTF-8. path: where it lies here. size: in
    bytes, 0 for a link. executable: its owner may run it. link: what a symbolic link says, relative to its
    own place and leading to somewhere in the project; None for a file. from_data: model.data named it.
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

    Raises UsageError for a file that cannot be read, a name that is not UTF-8, a link that leads outside.
    """
    name = prefix + found.name
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(
            "a file's name is not UTF-8", field=field, value=found.name,
            remedy="rename it, or name it in .glasshouseignore",
        ) from error  # fmt: skip
    if found.is_link:
        return ChosenFile(name, found.path, 0, link=_link(found, top, field))
    if not os.access(found.path, os.R_OK):
        raise UsageError(
            "cannot read a file", field=field, value=found.path,
            remedy="make it readable, or name it in .glasshouseignore",
        )  # fmt: skip
    return ChosenFile(name, found.path, found.info.st_size, bool(found.info.st_mode & 0o100))


def _link(found: Found, top: Path, field: str) -> str:
    """What the link says, in a form that means the same wherever the project's folder lies."""
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
            remedy="name what it leads to in model.data, or the link in .glasshouseignore",
        )  # fmt: skip
    written = posixpath.normpath(posixpath.join(posixpath.dirname(found.name), said))
    if not posixpath.isabs(said) and written != ".." and not written.startswith("../"):
        return said
    # It leaves the folder and comes back, by a name that the folder has on this machine alone.
    return os.path.relpath(target, top / posixpath.dirname(found.name))
