"""A wheel, unpacked as an installer does it: read and checked whole, then written beneath two folders.

Source: the binary distribution format (PEP 427), the database of installed distributions (PEP 376), the
entry points specification. What is refused: a name that could lead outside, a link, a name twice, a file that
RECORD does not list or whose digest differs, one that RECORD lists and that is not there. Nothing is run.

This module is part of the archive that runs on the pod: standard library only.
"""

from __future__ import annotations

import base64
import configparser
import contextlib
import csv
import errno
import hashlib
import hmac
import io
import itertools
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from glasshouse.errors import UsageError

MAX_FILES: Final = 100_000  # in one wheel
MAX_ALL_FILES: Final = 400_000
MAX_BYTES: Final = 8 << 30  # unpacked, of one wheel and of all that come along
MAX_FOLD: Final = 200  # how often its own size a wheel may unpack to; code comes to four times
MAX_UNFOLDED: Final = 64 << 20  # up to which that does not matter
MAX_RECORD_BYTES: Final = 64 << 20
MAX_ENTRY_POINTS_BYTES: Final = 1 << 20
MAX_NAME: Final = 1000  # bytes of a whole name, and of one part of it: what Linux can hold
MAX_PART: Final = 255
_CHUNK: Final = 1 << 20
_DIGESTS: Final = ("sha256", "sha384", "sha512")  # what RECORD may use; weaker ones it may not
_UNSIGNED: Final = ("RECORD", "RECORD.jws", "RECORD.p7s")  # which RECORD cannot hold the digest of
_ELF: Final = b"\x7fELF"
_SUFFIXES: Final = (".so", ".py", ".pyc", ".pyd")
_PROGRAM: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
_OBJECT: Final = re.compile(r"([^\W\d]\w*(?:\.[^\W\d]\w*)*):([^\W\d]\w*(?:\.[^\W\d]\w*)*)(?:\s*\[.*\])?\Z")
_SCHEMES: Final = {"purelib": "", "platlib": "", "data": "", "headers": "include/"}
# What zipfile raises of a file that is none, or was cut or altered, depending on where.
_BROKEN: Final = (
    *(zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, NotImplementedError),
    *(OverflowError, KeyError, IndexError, csv.Error),
)


class WheelError(UsageError):
    """A wheel is not what the format says; nothing of it was written."""


@dataclass(frozen=True)
class Wheel:
    """What a wheel brings: top-level modules, console scripts by name, and its files' bytes when unpacked."""

    modules: frozenset[str]
    programs: frozenset[str]
    nbytes: int


@dataclass(frozen=True)
class _Member:
    info: zipfile.ZipInfo
    path: str  # relative to the folder of its kind
    program: bool


def read_wheel(path: Path) -> Wheel:
    """Look at a wheel as `unpack` does, and write nothing. Raises WheelError, and OSError."""
    with _opened(path) as archive:
        return _described(*_checked(archive, path))


def read_wheels(paths: Sequence[Path]) -> list[Wheel]:
    """Look at all of them; but first at how much they say that they hold, before any of it is read.

    Raises WheelError, and OSError.
    """
    files = nbytes = 0
    for path in paths:
        with _opened(path) as archive:
            infos = archive.infolist()
            _check_size(infos, path)
            files += len(infos)
            nbytes += sum(info.file_size for info in infos)
        if files > MAX_ALL_FILES or nbytes > MAX_BYTES:
            raise _fault(path.name, "with those before it, it holds too much")
    return [read_wheel(path) for path in paths]


def unpack(path: Path, site: Path, programs: Path, *, python: str, in_memory: bool = False) -> Wheel:
    """Write a wheel's modules beneath `site`, its programs into `programs`, both there. Files of an
    earlier one are replaced by those of their names.

    python: the interpreter that programs name in their first line. in_memory: `site` is on a file system from
    which nothing may be executed (noexec): shared objects go into files of memory that are open in this
    process and its forked children, and links stand in their places.

    Raises WheelError before anything is written; OSError, such as ENOSPC.
    """
    with _opened(path) as archive:
        members, scripts = _checked(archive, path)
        for member in members:
            with archive.open(member.info) as stream:
                _write(member, stream, programs if member.program else site, python, in_memory=in_memory)
        for name, (module, attribute) in scripts.items():
            _write_script(programs / name, module, attribute, python)
        return _described(members, scripts)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            yield archive
    except _BROKEN as error:
        raise _fault(path.name, "it is no whole zip file") from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # of a seek to before its beginning
            raise
        raise _fault(path.name, "it is no whole zip file") from error


def _fault(wheel: str, what: str, where: str = "") -> WheelError:
    about = f" ({where[:120]})" if where else ""
    return WheelError(f"{what}{about}", field="wheel", value=wheel, remedy="give another build of it")


def _check_size(infos: Sequence[zipfile.ZipInfo], path: Path) -> None:
    """By the archive's list of its files: no more is read of a file than it says there."""
    nbytes = sum(info.file_size for info in infos)
    if len(infos) > MAX_FILES or nbytes > MAX_BYTES:
        raise _fault(path.name, "it holds too much")
    if nbytes > max(MAX_UNFOLDED, path.stat().st_size * MAX_FOLD):
        raise _fault(path.name, f"it unpacks to more than {MAX_FOLD} times its size")


def _checked(archive: zipfile.ZipFile, path: Path) -> tuple[list[_Member], dict[str, tuple[str, str]]]:
    """What is in it and where it goes, and its console scripts; every digest was compared."""
    infos, wheel = archive.infolist(), path.name
    _check_size(infos, path)
    seen: set[str] = set()
    for info in infos:
        name = info.filename.removesuffix("/")
        parts = name.split("/")
        mode = info.external_attr >> 16
        if "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in parts):
            raise _fault(wheel, "a file in it has a name that could lead elsewhere", ascii(info.filename))
        if len(os.fsencode(name)) > MAX_NAME or any(len(os.fsencode(part)) > MAX_PART for part in parts):
            raise _fault(wheel, "a file in it has a name that is too long", ascii(info.filename))
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _fault(wheel, "it holds a link, or what is no file", info.filename)
        if name in seen:
            raise _fault(wheel, "it holds a name twice", info.filename)
        seen.add(name)
    infos = [info for info in infos if not info.is_dir()]
    tops = {name.partition("/")[0] for name in seen}
    described = [top for top in tops if top.endswith(".dist-info")]
    if len(described) != 1:
        raise _fault(wheel, "it has no one .dist-info folder")
    home = described[0]
    _compare(archive, wheel, infos, home)
    members = [_placed(info, home.removesuffix(".dist-info"), wheel) for info in infos]
    scripts = _scripts(archive, f"{home}/entry_points.txt", seen)
    _check_places(members, scripts, wheel)
    return members, scripts


def _check_places(members: Sequence[_Member], scripts: Collection[str], wheel: str) -> None:
    """No file stands where another needs a folder."""
    places = {f"{int(member.program)}/{member.path}" for member in members} | {
        f"1/{name}" for name in scripts
    }
    ordered = sorted(places, key=lambda path: path.replace("/", "\0"))  # what is in a folder follows it
    for path, following in itertools.pairwise(ordered):
        if following.startswith(f"{path}/"):
            raise _fault(wheel, "it holds a file where another one needs a folder", path[2:])


def _compare(archive: zipfile.ZipFile, wheel: str, infos: Sequence[zipfile.ZipInfo], home: str) -> None:
    """Hold every file against RECORD."""
    records = [info for info in infos if info.filename == f"{home}/RECORD"]
    if not records or records[0].file_size > MAX_RECORD_BYTES:
        raise _fault(wheel, "it has no RECORD of its files")
    listed: dict[str, str] = {}
    for row in csv.reader(io.StringIO(archive.read(records[0]).decode("utf-8"))):
        if len(row) >= 2:
            listed[row[0]] = row[1]
    exempt = {f"{home}/{name}" for name in _UNSIGNED}
    for info in infos:
        said = listed.pop(info.filename, None)
        if info.filename in exempt:
            continue
        algorithm, _, digest = (said or "").partition("=")
        if algorithm not in _DIGESTS or not digest:
            raise _fault(wheel, "RECORD has no digest of a file in it", info.filename)
        found = hashlib.new(algorithm)
        with archive.open(info) as stream:
            while part := stream.read(_CHUNK):
                found.update(part)
        told = base64.urlsafe_b64encode(found.digest()).rstrip(b"=")
        if not hmac.compare_digest(told, digest.rstrip("=").encode("utf-8", "replace")):
            raise _fault(wheel, "a file in it is not the one that RECORD names", info.filename)
    left = [name for name in listed if name not in exempt and not name.endswith("/")]
    if left:
        raise _fault(wheel, "RECORD names a file that is not in it", left[0])


def _placed(info: zipfile.ZipInfo, base: str, wheel: str) -> _Member:
    data, _, rest = info.filename.partition("/")
    if data != f"{base}.data" or not rest:
        return _Member(info, info.filename, program=False)
    scheme, _, name = rest.partition("/")
    if scheme == "scripts" and name:
        return _Member(info, name, program=True)
    if scheme not in _SCHEMES or not name:
        raise _fault(wheel, "it asks for a place that is not known", info.filename)
    return _Member(info, f"{_SCHEMES[scheme]}{name}", program=False)


def _scripts(archive: zipfile.ZipFile, name: str, seen: set[str]) -> dict[str, tuple[str, str]]:
    """Its console scripts: what to import from where. One that is said otherwise is left out."""
    if name not in seen or archive.getinfo(name).file_size > MAX_ENTRY_POINTS_BYTES:
        return {}
    parser = configparser.ConfigParser(delimiters=("=",), interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # names keep their case
    try:
        parser.read_string(archive.read(name).decode("utf-8"))
    except (configparser.Error, UnicodeDecodeError):
        return {}
    found = {}
    for section in ("console_scripts", "gui_scripts"):
        for script, said in parser.items(section) if parser.has_section(section) else ():
            match = _OBJECT.match((said or "").strip())
            if match is not None and _PROGRAM.match(script):
                found[script] = (match[1], match[2])
    return found


def _described(members: Sequence[_Member], scripts: Mapping[str, tuple[str, str]]) -> Wheel:
    modules = set()
    for member in members:
        top, _, rest = member.path.partition("/")
        if not member.program and (rest or top.endswith(_SUFFIXES)):
            modules.add(top if rest else top.partition(".")[0])
    programs = {member.path for member in members if member.program} | set(scripts)
    named = frozenset(name for name in modules if name.isidentifier())
    return Wheel(named, frozenset(programs), sum(member.info.file_size for member in members))


def _write(member: _Member, stream: IO[bytes], folder: Path, python: str, *, in_memory: bool) -> None:
    target = folder / member.path
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with contextlib.suppress(FileNotFoundError):
        target.unlink()
    first = stream.read(_CHUNK)
    if member.program and first.startswith(b"#!python"):
        _, end, rest = first.partition(b"\n")
        first = f"#!{python}".encode() + end + rest
    if in_memory and first.startswith(_ELF):
        file = os.memfd_create(
            target.name.encode("ascii", "replace").decode()[-200:], 0
        )  # stays open, and is kept by a fork
        target.symlink_to(f"/proc/self/fd/{file}")
        _fill(file, first, stream)
        return
    may_run = member.program or bool(member.info.external_attr >> 16 & stat.S_IXUSR)
    file = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o700 if may_run else 0o600)
    try:
        _fill(file, first, stream)
    finally:
        os.close(file)


def _fill(file: int, first: bytes, stream: IO[bytes]) -> None:
    part = memoryview(first)
    while part:
        while part:
            part = part[os.write(file, part) :]
        part = memoryview(stream.read(_CHUNK))


def _write_script(path: Path, module: str, attribute: str, python: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    first = attribute.partition(".")[0]
    text = f"#!{python}\nimport sys\nfrom {module} import {first}\nsys.exit({attribute}())\n"
    path.write_text(text, encoding="utf-8")
    path.chmod(0o700)
