"""What a project says it needs: requirements.txt, else pyproject.toml, with the versions of a lock beside it.

Names and versions, wheels that lie on this machine, and where else to look (`--find-links`, an index).
What would have to be built, a repository and a URL are refused by name: building runs a stranger's code here.
Nothing of the project is run to learn what it needs.
"""

from __future__ import annotations

import os
import posixpath
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from glasshouse.errors import UsageError
from glasshouse.host import read_regular
from glasshouse.workloads.chosen import ChosenFile
from glasshouse.workloads.folder import IGNORE_FILE
from glasshouse.workloads.requirement import MAX_CHARS, MarkerError, asked_of_any, parsed

FIELD: Final = "dependencies"
CHOICE: Final = "model.requirements"
AUTO, NONE = "auto", "none"
REQUIREMENTS: Final = "requirements.txt"
PYPROJECT: Final = "pyproject.toml"
# By name: the table of packages in it. uv and poetry write several versions of one package where they must.
LOCKS: Final[Mapping[str, str]] = {"pylock.toml": "packages", "uv.lock": "package", "poetry.lock": "package"}
MAX_FILE_BYTES: Final = 8 << 20
MAX_REQUIREMENTS: Final = 2000
MAX_LINES: Final = 20_000  # of all files that are read
MAX_DEPTH: Final = 8
_INCLUDES: Final = re.compile(r"(?:-r|--requirement)(?:\s+|=|(?<=-r))(?P<path>\S.*)\Z")
_CONSTRAINTS: Final = re.compile(r"(?:-c|--constraint)(?:\s+|=|(?<=-c))(?P<path>\S.*)\Z")
_HASH: Final = re.compile(r"\s--hash[=\s]\s*sha256:([0-9a-f]{64})(?=\s|\Z)")
_OPTION: Final = re.compile(r"(?P<name>-[A-Za-z]|--[a-z-]+)(?:(?:\s+|=)(?P<value>.*))?\Z")
_INDEXES: Final = {
    "-i": "--index-url",
    "--index-url": "--index-url",
    "--extra-index-url": "--extra-index-url",
}
_LINKS: Final = ("-f", "--find-links")
_NO_NEED: Final = ("--prefer-binary", "--only-binary")  # nothing but wheels is ever taken
_INDEX: Final = re.compile(r"(?:https?|file)://\S+\Z")
_ENVIRONMENT: Final = re.compile(r"\$\{([A-Z0-9_]+)\}")  # as pip has it
_ELSEWHERE: Final = "a requirement that must be built, or fetched from elsewhere, is not possible"
_BRING: Final = "bring its wheel: pip wheel --no-deps -w wheels THAT, and name the .whl file instead"
_ARCHIVE: Final = re.compile(r"\.(?:zip|tar\.gz|tar\.bz2|tgz)\Z")
_COMMENT: Final = re.compile(r"(?:^|\s)#.*\Z")
_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)(?:[^/\s]*@)?([^/\s?#]*)\S*")


@dataclass(frozen=True)
class Dependencies:
    """What is needed, as requirement strings, and where that was read.

    A wheel of this machine is a requirement with a file: URL. constraints: `name==version`, from locks and
    from -c. hashes: by normalised name, the SHA-256 digests of which a file that is fetched must have one.
    source: the file's name in the project, "" of none. lines: where each requirement stands.
    places: as lines of pip's, an index or a folder of wheels; they may hold a password, and are not shown.
    """

    requirements: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    hashes: Mapping[str, frozenset[str]] = field(default_factory=dict)
    source: str = ""
    places: tuple[str, ...] = field(default=(), repr=False)
    lines: Mapping[str, str] = field(default_factory=dict, compare=False)


def read_dependencies(
    files: Sequence[ChosenFile], choice: str = AUTO, folder: Path | None = None
) -> Dependencies:
    """Read them from what goes along. Raises UsageError, field `dependencies`, for what is not possible.

    choice: `auto`, `none`, or the file of the project to read (model.requirements). folder: the project's,
    from which relative paths of wheels are meant.
    """
    if choice == NONE:
        return Dependencies()
    reading = _Reading({file.name: file for file in files}, folder)
    source = next((name for name in (REQUIREMENTS, PYPROJECT) if name in reading.files), "")
    if choice != AUTO:
        source = posixpath.normpath(choice)
        if source not in reading.files:
            raise UsageError(
                "the file does not go along", field=CHOICE, value=choice,
                remedy="name a file of the project, from its folder on, or none",
            )  # fmt: skip
    if posixpath.basename(source) == PYPROJECT:
        reading.pyproject(source)
    elif source:
        reading.requirements_file(source, (), reading.requirements)
    beside = posixpath.dirname(source)
    lock = next((at for name in LOCKS if (at := posixpath.join(beside, name)) in reading.files), "")
    if lock and source:
        reading.lock(lock)
    return Dependencies(
        tuple(dict.fromkeys(reading.requirements)),
        tuple(dict.fromkeys(reading.constraints)),
        {name: frozenset(found) for name, found in reading.hashes.items()},
        source,
        tuple(dict.fromkeys(reading.places)),
        reading.where,
    )


def shown(text: str) -> str:
    """Return words as they may be shown: of a URL its host alone, for what stands beside it may be secret."""
    return _URL.sub(r"\1\2/...", text)


class _Reading:
    def __init__(self, files: Mapping[str, ChosenFile], folder: Path | None = None) -> None:
        self.files = files
        self._folder = folder
        self.places: list[str] = []
        self.requirements: list[str] = []
        self.constraints: list[str] = []
        self.hashes: dict[str, set[str]] = {}
        self.where: dict[str, str] = {}
        self._seen: set[tuple[str, bool]] = set()
        self._count = 0

    def requirements_file(self, name: str, around: tuple[str, ...], into: list[str]) -> None:
        """Read one file of pip's format, unless it was read before. around: the files that led to it."""
        key = (name, into is self.requirements)
        if key in self._seen:
            return
        self._seen.add(key)
        for number, line in _lines(self._text(name)):
            where = f"{name} line {number}"
            short = line if len(line) <= MAX_CHARS else ""  # what is longer may be a requirement with hashes
            include, limit = _INCLUDES.match(short), _CONSTRAINTS.match(short)
            found = include or limit
            if found is None:
                if not self._place(short, where, name):
                    into.append(self._requirement(line, where, name))
                self._counted(where)
                continue
            self._counted(where)
            path = posixpath.normpath(posixpath.join(posixpath.dirname(name), found["path"].strip("\"'")))
            if path not in self.files:
                raise UsageError(
                    f"{found['path']} does not go along", field=FIELD, value=where,
                    remedy=f"name a file of the project in model.include, and not in {IGNORE_FILE}",
                )  # fmt: skip
            if len(around) >= MAX_DEPTH:
                raise UsageError(
                    "files include each other too deeply", field=FIELD, value=where, remedy="join them"
                )
            self.requirements_file(path, (*around, name), into if include else self.constraints)

    def pyproject(self, name: str) -> None:
        """Read [project] dependencies; other tables name others' tools."""
        value = self._toml(name)
        project, tools = value.get("project", {}), value.get("tool", {})
        project = project if isinstance(project, dict) else {}
        listed, dynamic = project.get("dependencies", []), project.get("dynamic", [])
        poetry = isinstance(tools, dict) and isinstance(tools.get("poetry"), dict) and tools["poetry"]
        other = poetry and "dependencies" in poetry and "dependencies" not in project
        if other or "dependencies" in (dynamic if isinstance(dynamic, list) else []):
            raise UsageError(
                "its dependencies stand in another form", field=FIELD, value=name,
                remedy=f"list them in {REQUIREMENTS} or in [project]; {CHOICE}=none ignores them",
            )  # fmt: skip
        if not isinstance(listed, list) or not all(isinstance(item, str) for item in listed):
            raise UsageError(
                "[project] dependencies is no list of strings", field=FIELD, value=name, remedy="mend it"
            )
        for item in listed:
            self.requirements.append(self._requirement(item, name, name))
            self._counted(name)

    def lock(self, name: str) -> None:
        """Take the versions that a lock gives: as limits, for it also lists what other systems need."""
        versions: dict[str, set[str]] = {}
        packages = self._toml(name).get(LOCKS[posixpath.basename(name)], [])
        for package in packages if isinstance(packages, list) else []:
            self._counted(name)
            if not isinstance(package, dict) or not _is_from_index(package):
                continue
            called, version = package.get("name"), package.get("version")
            if isinstance(called, str) and isinstance(version, str):
                versions.setdefault(canonicalize_name(called), set()).add(version)
        own = {canonicalize_name(Requirement(item).name) for item in self.constraints}
        for called, found in versions.items():
            if len(found) == 1 and called not in own:
                self.constraints.append(self._requirement(f"{called}=={found.pop()}", name))

    def _counted(self, where: str) -> None:
        """Take note of one more line. Raises UsageError where there are too many."""
        self._count += 1
        for count, most, what in (
            (len(self.requirements), MAX_REQUIREMENTS, "requirements"),
            (self._count, MAX_LINES, "lines of requirements and locks"),
        ):
            if count > most:
                raise UsageError(f"too many {what}", field=FIELD, value=where, remedy=f"at most {most}")

    def _place(self, line: str, where: str, name: str) -> bool:
        """Take a line that says where wheels are; False for any other."""
        option = _OPTION.match(line)
        if option is None:
            return False
        said, value = option["name"], (option["value"] or "").strip().strip("\"'")
        if said in _NO_NEED:
            return True
        if said == "--no-index" and not value:
            self.places.append("--no-index")
            return True
        if said in _INDEXES and value:
            value = _ENVIRONMENT.sub(lambda found: os.environ.get(found[1], found[0]), value)
            if not _INDEX.match(value):
                raise UsageError(f"{said} names no index", field=FIELD, value=where, remedy="give its URL")
            self.places.append(f"{_INDEXES[said]} {value}")
            return True
        if said not in _LINKS or not value or "://" in value:
            return False
        folder = self._found(value, name)
        if folder is None or not folder.is_dir():
            raise UsageError(
                f"{said} names no folder of this machine: {shown(value)[:80]}", field=FIELD, value=where,
                remedy=f"give it from {posixpath.dirname(name) or 'the project folder'} on",
            )  # fmt: skip
        self.places.append(f"--find-links {folder.as_uri()}")
        return True

    def _found(self, said: str, name: str) -> Path | None:
        """A path of this machine that a file of the project names: from there on, or from the project on."""
        top = self._folder or Path()
        try:
            path = Path(said).expanduser()
            tried = (top / posixpath.dirname(name) / path, top / path)
            return next((place.resolve() for place in tried if place.exists()), None)
        except (OSError, ValueError, RuntimeError):  # too long, a NUL, nobody's home
            return None

    def _requirement(self, line: str, where: str, name: str = "") -> str:
        digests = _HASH.findall(f" {line}")
        line = _HASH.sub("", f" {line}").strip()
        what, remedy = "not a requirement", "give name and version, such as torch>=2.9"
        if len(line) > MAX_CHARS:
            what, line = "not a requirement", f"it has more than {MAX_CHARS} characters"
        elif line.startswith("-"):
            option = line.split()[0].partition("=")[0]
            what = f"{option} is not possible"
            remedy = f"leave it out, or {CHOICE}=none"
            if line.startswith(("-e", "--editable")):
                remedy = "leave it out: the project's folder goes along, and is where the command runs"
        elif _ARCHIVE.search(line):
            what, remedy = _ELSEWHERE, _BRING
        else:
            try:
                requirement = asked_of_any(self._parsed(line, name, where))
            except MarkerError:
                what, remedy = "its marker compares what cannot be compared", "mend what stands behind the ;"
            except InvalidRequirement:
                if "://" in line or line.startswith((".", "/", "~")):
                    what, remedy = _ELSEWHERE, _BRING
            else:
                if requirement.url is None or requirement.url.startswith("file:"):
                    self.where.setdefault(str(requirement), where)
                    if digests:
                        self.hashes.setdefault(canonicalize_name(requirement.name), set()).update(digests)
                    return str(requirement)
                what, remedy = _ELSEWHERE, _BRING
        raise UsageError(f"{what}: {shown(line)[:80]}", field=FIELD, value=where, remedy=remedy)

    def _parsed(self, line: str, name: str, where: str) -> Requirement:
        """Read a requirement; a wheel of this machine is named by its path, or by a file: URL."""
        head, mark, marker = line.partition(" ;")
        path = head.strip()
        if path.lower().startswith("file:") or (path.endswith(".whl") and not re.search(r"://|\s@\s", path)):
            found = self._wheel(path, name, where)
            return parsed(f"{found} ;{marker}") if mark else found
        requirement = parsed(line)
        if requirement.url is not None and requirement.url.lower().startswith("file:"):
            found = self._wheel(requirement.url, name, where)
            if canonicalize_name(found.name) != canonicalize_name(requirement.name):
                raise InvalidRequirement("the wheel has another name")
            requirement.url = found.url
        return requirement

    def _wheel(self, said: str, name: str, where: str) -> Requirement:
        """A wheel of this machine as a requirement. Raises UsageError where it is none."""
        plain = re.sub(r"\Afile:(?://)?", "", said, flags=re.IGNORECASE)
        found = self._found(plain if plain == said else unquote(plain), name)
        what = "no such wheel on this machine"
        if found is not None and found.is_file():
            try:
                return parsed(f"{parse_wheel_filename(found.name)[0]} @ {found.as_uri()}")
            except InvalidWheelFilename:
                what = "no wheel by its name"
        raise UsageError(f"{what}: {shown(said)[:80]}", field=FIELD, value=where, remedy="name a .whl file")

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
