"""What a project says it needs: requirements.txt, else pyproject.toml, with the versions of a lock beside it.

Only names and versions, from the index: what is built, lies elsewhere or comes from an index of the project's
own is refused by name for now. Nothing of the project is run to learn it.
"""

from __future__ import annotations

import posixpath
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from glasshouse.errors import UsageError
from glasshouse.host import read_regular
from glasshouse.workloads.chosen import ChosenFile
from glasshouse.workloads.folder import IGNORE_FILE

FIELD: Final = "dependencies"
REQUIREMENTS: Final = "requirements.txt"
PYPROJECT: Final = "pyproject.toml"
# By name: the table of packages in it. uv and poetry write several versions of one package where they must.
LOCKS: Final[Mapping[str, str]] = {"pylock.toml": "packages", "uv.lock": "package", "poetry.lock": "package"}
MAX_FILE_BYTES: Final = 8 << 20
MAX_REQUIREMENTS: Final = 2000
MAX_DEPTH: Final = 8
_INCLUDES: Final = re.compile(r"(?:-r|--requirement)(?:\s+|=|(?<=-r))(?P<path>\S.*)\Z")
_CONSTRAINTS: Final = re.compile(r"(?:-c|--constraint)(?:\s+|=|(?<=-c))(?P<path>\S.*)\Z")
_HASH: Final = re.compile(r"\s--hash[=\s]\s*sha256:([0-9a-f]{64})(?=\s|\Z)")
_ELSEWHERE: Final = "a requirement that names no version of the index is not possible"
_COMMENT: Final = re.compile(r"(?:^|\s)#.*\Z")


@dataclass(frozen=True)
class Dependencies:
    """What is needed, as requirement strings, and where that was read.

    constraints: `name==version`, from locks and from -c. hashes: by normalised name, the SHA-256 digests of
    which a file that is fetched must have one. source: the file's name in the project, "" of none.
    """

    requirements: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    hashes: Mapping[str, frozenset[str]] = field(default_factory=dict)
    source: str = ""


def read_dependencies(files: Sequence[ChosenFile]) -> Dependencies:
    """Read them from what goes along. Raises UsageError, field `dependencies`, for what is not possible."""
    reading = _Reading({file.name: file for file in files})
    source = next((name for name in (REQUIREMENTS, PYPROJECT) if name in reading.files), "")
    if source == REQUIREMENTS:
        reading.requirements_file(source, (), reading.requirements)
    elif source:
        reading.pyproject()
    if len(reading.requirements) > MAX_REQUIREMENTS:
        raise UsageError(
            "too many requirements", field=FIELD, value=source, remedy=f"at most {MAX_REQUIREMENTS}"
        )
    lock = next((name for name in LOCKS if name in reading.files), "") if source else ""
    if lock:
        reading.lock(lock)
    return Dependencies(
        tuple(dict.fromkeys(reading.requirements)),
        tuple(dict.fromkeys(reading.constraints)),
        {name: frozenset(found) for name, found in reading.hashes.items()},
        source,
    )


class _Reading:
    def __init__(self, files: Mapping[str, ChosenFile]) -> None:
        self.files = files
        self.requirements: list[str] = []
        self.constraints: list[str] = []
        self.hashes: dict[str, set[str]] = {}

    def requirements_file(self, name: str, around: tuple[str, ...], into: list[str]) -> None:
        """Read one file of pip's format. around: the files that led to it."""
        for number, line in _lines(self._text(name)):
            where = f"{name} line {number}"
            include, limit = _INCLUDES.match(line), _CONSTRAINTS.match(line)
            found = include or limit
            if found is None:
                into.append(self._requirement(line, where))
                continue
            path = posixpath.normpath(posixpath.join(posixpath.dirname(name), found["path"].strip("\"'")))
            if path not in self.files:
                raise UsageError(
                    f"{found['path']} does not go along", field=FIELD, value=where,
                    remedy=f"name a file of the project in model.include, and not in {IGNORE_FILE}",
                )  # fmt: skip
            if path in (name, *around):
                continue  # as pip does not read a file twice either
            if len(around) >= MAX_DEPTH:
                raise UsageError(
                    "files include each other too deeply", field=FIELD, value=where, remedy="join them"
                )
            self.requirements_file(path, (*around, name), into if include else self.constraints)

    def pyproject(self) -> None:
        """Read [project] dependencies; other tables name others' tools."""
        value = self._toml(PYPROJECT)
        project, tools = value.get("project", {}), value.get("tool", {})
        project = project if isinstance(project, dict) else {}
        listed, dynamic = project.get("dependencies", []), project.get("dynamic", [])
        poetry = isinstance(tools, dict) and isinstance(tools.get("poetry"), dict) and tools["poetry"]
        other = poetry and "dependencies" in poetry and "dependencies" not in project
        if other or "dependencies" in (dynamic if isinstance(dynamic, list) else []):
            raise UsageError(
                "its dependencies stand in another form", field=FIELD, value=PYPROJECT,
                remedy=f"list them in {REQUIREMENTS}, or as [project] dependencies",
            )  # fmt: skip
        if not isinstance(listed, list) or not all(isinstance(item, str) for item in listed):
            raise UsageError(
                "[project] dependencies is no list of strings", field=FIELD, value=PYPROJECT, remedy="mend it"
            )
        self.requirements += [self._requirement(item, PYPROJECT) for item in listed]

    def lock(self, name: str) -> None:
        """Take the versions that a lock gives: as limits, for it also lists what other systems need."""
        versions: dict[str, set[str]] = {}
        packages = self._toml(name).get(LOCKS[name], [])
        for package in packages if isinstance(packages, list) else []:
            if not isinstance(package, dict) or not _is_from_index(package):
                continue
            called, version = package.get("name"), package.get("version")
            if isinstance(called, str) and isinstance(version, str):
                versions.setdefault(canonicalize_name(called), set()).add(version)
        own = {canonicalize_name(Requirement(item).name) for item in self.constraints}
        for called, found in versions.items():
            if len(found) == 1 and called not in own:
                self.constraints.append(self._requirement(f"{called}=={found.pop()}", name))

    def _requirement(self, line: str, where: str) -> str:
        digests = _HASH.findall(f" {line}")
        line = _HASH.sub("", f" {line}").strip()
        remedy = "for now: name and version, such as torch>=2.9"
        what = "not a requirement"
        if line.startswith("-"):
            option = line.split()[0].partition("=")[0]
            what = f"{option} is not possible"
            if line.startswith(("-e", "--editable")):
                remedy = "leave it out: the project's folder goes along, and is where the command runs"
            else:
                remedy = "leave it out: wheels come from the index that pip uses on this machine"
        elif "://" in line or line.startswith((".", "/", "~")) or re.search(r"\.(?:whl|zip|tar\.gz)\Z", line):
            what = _ELSEWHERE
        else:
            try:
                requirement = Requirement(line)
            except InvalidRequirement:
                pass
            else:
                if requirement.url is None:
                    if digests:
                        self.hashes.setdefault(canonicalize_name(requirement.name), set()).update(digests)
                    return str(requirement)
                what = _ELSEWHERE
        raise UsageError(f"{what}: {line[:80]}", field=FIELD, value=where, remedy=remedy)

    def _text(self, name: str) -> str:
        file = self.files[name]
        try:
            return read_regular(file.path, MAX_FILE_BYTES, follow=file.link is not None).decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise UsageError(f"cannot read it: {why}", field=FIELD, value=name, remedy="mend it") from error

    def _toml(self, name: str) -> dict[str, Any]:
        try:
            return tomllib.loads(self._text(name))
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise UsageError(f"it is no TOML: {error}", field=FIELD, value=name, remedy="mend it") from error


def _lines(text: str) -> Iterator[tuple[int, str]]:
    r"""Yield lines as pip reads them, with the number of their first: joined at `\`, without comments."""
    joined, first = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        first = first or number
        part = _COMMENT.sub("", line) if line.lstrip().startswith("#") or not line.endswith("\\") else line
        if part.endswith("\\"):
            joined += part[:-1]
            continue
        joined = _COMMENT.sub("", joined + part).strip()
        if joined:
            yield first, joined
        joined, first = "", 0
    if joined.strip():
        yield first, _COMMENT.sub("", joined).strip()


def _is_from_index(package: Mapping[str, Any]) -> bool:
    """Whether a lock's package is a version of the index, not the project itself, a folder, a repository."""
    if any(key in package for key in ("vcs", "directory", "archive")):
        return False
    source = package.get("source", {})
    return not isinstance(source, dict) or not source or "registry" in source
