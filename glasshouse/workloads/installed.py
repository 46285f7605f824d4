"""What a machine's Python is and has: asked of the interpreter itself, or read from a list made of an image.

    conf/images/<the image's SHA-256>.json     format, image, date, source; machine: what SCRIPT prints

A list is made by running SCRIPT in that very image, named by its digest; `source` says where and how. What a
machine says is bounded and checked before it is used: the machine is not believed, it only narrows what is
sent to it.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Literal

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version
from pydantic import Field, ValidationError

from glasshouse.errors import GlasshouseError, RemoteError, UsageError
from glasshouse.host import read_regular
from glasshouse.paths import Workspace
from glasshouse.schema import fields_of
from glasshouse.spec import CloudProvider, LocalProvider, Provider, Strict
from glasshouse.workloads.pip import Target
from glasshouse.workloads.requirement import MAX_NEEDS, of_extras

IMAGES: Final = "images"
MAX_ANSWER_BYTES: Final = 8 << 20
MAX_PACKAGES: Final = 20_000
MAX_ALL_NEEDS: Final = 20_000  # for extras, of all packages; a hundred packages have about a thousand
ASK_SEC: Final = 60.0
# Run as `python -I -c SCRIPT` there.
SCRIPT: Final = r"""
import importlib.metadata as m, json, platform, sys, sysconfig
packages, extras = {}, {}
for item in m.distributions():
    name = item.metadata["Name"]
    if name and name not in packages:
        packages[name] = item.version
        more = [need for need in item.requires or () if "extra" in need]
        if more:
            extras[name] = more
print(json.dumps({
    "python": list(sys.version_info[:3]), "implementation": sys.implementation.name,
    "threads": bool(sysconfig.get_config_var("Py_GIL_DISABLED")), "machine": platform.machine(),
    "libc": list(platform.libc_ver()), "packages": packages, "extras": extras,
    "modules": sorted(m.packages_distributions()),
}))
"""
_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?\Z")
_GLIBC: Final = re.compile(r"2\.([0-9]{1,3})\Z")
_DIGEST: Final = re.compile(r"@sha256:([0-9a-f]{64})\Z")


Word = Annotated[str, Field(max_length=200)]
Small = Annotated[int, Field(ge=0, lt=1000)]


@dataclass(frozen=True)
class Installed:
    """A machine's Python. packages: versions by normalised name. extras: of some of them, what they need for
    an extra and not without one. modules: the top-level names that can be imported. source: where this is
    known from.
    """

    target: Target
    packages: Mapping[str, str]
    extras: Mapping[str, tuple[str, ...]]
    modules: frozenset[str]
    source: str = field(default="", compare=False)


class _Answer(Strict):
    """What SCRIPT prints."""

    python: tuple[Small, Small, Small]
    implementation: Word
    threads: bool  # a build without the interpreter's lock
    machine: str = Field(pattern=r"^[a-z0-9_]{1,20}$")
    libc: tuple[Word, Word]
    packages: dict[Word, Word] = Field(max_length=MAX_PACKAGES)
    extras: dict[Word, tuple[str, ...]] = Field(max_length=MAX_PACKAGES)
    modules: frozenset[Word]


class _List(Strict):
    format: Literal["glasshouse/image-packages/v1"]
    image: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    date: str = Field(pattern=r"^20[0-9]{2}-[01][0-9]-[0-3][0-9]$")
    source: str = Field(min_length=1, max_length=300)
    machine: _Answer


def read_answer(data: bytes | str, source: str = "") -> Installed:
    """Read what SCRIPT printed. Raises ValueError for what it would not print, UsageError for a Python for
    which no wheels can be chosen.
    """
    return _installed(_Answer.model_validate_json(data[: MAX_ANSWER_BYTES + 1]), source)


def _installed(value: _Answer, source: str) -> Installed:
    if value.implementation != "cpython" or value.threads or value.python[0] != 3:
        raise UsageError(
            "wheels are chosen for CPython 3 with its lock alone", field="python", value=value.implementation,
            remedy="give another, or model.requirements=none",
        )  # fmt: skip
    glibc = _GLIBC.match(value.libc[1]) if value.libc[0] == "glibc" else None
    _, minor, micro = value.python
    target = Target(f"3.{minor}", value.machine, int(glibc[1]) if glibc else 0, micro)
    found: dict[str, str] = {}
    for name, version in value.packages.items():
        with contextlib.suppress(InvalidVersion):  # such as a system's own: it can satisfy no requirement
            if _NAME.match(name):
                found[canonicalize_name(name)] = str(Version(version))
    return Installed(target, found, _extras(value.extras, target), value.modules, source)


def _extras(said: Mapping[str, Sequence[str]], target: Target) -> dict[str, tuple[str, ...]]:
    """What a machine may say about extras, as far as there is room for it."""
    found, room = dict[str, tuple[str, ...]](), MAX_ALL_NEEDS
    for name, items in said.items():
        taken = items[: min(room, MAX_NEEDS)]
        room -= len(taken)
        if _NAME.match(name) and (needs := of_extras(taken, target.environment)):
            found[canonicalize_name(name)] = tuple(needs)
    return found


def known_machine(provider: Provider, conf: Path | None = None) -> Installed | None:
    """What the Python of a machine has, where that can be said before there is one; else None.

    conf: where lists of images are; None: this program's own. Raises RemoteError where this machine's
    interpreter does not answer, GlasshouseError for a bad list.
    """
    if isinstance(provider, LocalProvider):
        return ask_here(provider.python or sys.executable)
    if isinstance(provider, CloudProvider):
        return listed(provider.image, conf or Workspace.find().conf)
    return None


def ask_here(python: str) -> Installed:
    """Ask an interpreter of this machine. Raises RemoteError where it does not answer as one does."""
    try:
        done = subprocess.run(
            [python, "-I", "-c", SCRIPT],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=ASK_SEC,
        )
        return read_answer(done.stdout, "its interpreter says so")
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise RemoteError(
            "the interpreter does not say what it has", field="provider.python", value=python,
            remedy="give one that runs",
        ) from error  # fmt: skip


def listed(image: str, conf: Path) -> Installed | None:
    """What conf/ says of an image that is named by its digest; None of any other, and where there is no list.

    Raises GlasshouseError for a list that is none.
    """
    digest = _DIGEST.search(image)
    if digest is None:
        return None
    path = conf / IMAGES / f"{digest[1]}.json"
    try:
        found = _List.model_validate_json(read_regular(path, MAX_ANSWER_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        what = fields_of(error) if isinstance(error, ValidationError) else str(error)
        raise GlasshouseError(
            f"not a list of an image's packages: {what}", field="file", value=path, remedy="make it anew"
        ) from error
    if found.image != f"sha256:{digest[1]}":
        raise GlasshouseError("a list of another image", field="file", value=path, remedy="rename it")
    return _installed(found.machine, f"list of {found.date}")
