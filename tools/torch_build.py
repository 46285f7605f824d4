"""Which build of torch belongs on this machine, and where it comes from. Standard library only.

With an NVIDIA GPU it is the build for the driver, without one the build for the CPU. Looked for, in this
order: at PyTorch's own index, given a few seconds to answer; where pip is configured to look, in a folder of
wheels for instance; then at the package index, whose build for Linux carries CUDA. It never stops to ask.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from lockfile import CPU, CUDA, Entry, read
from pip_run import Pip

PROBE_SEC = 8.0
# What the package index's own build for Linux is made for: locks/torch-cuda.txt has its libraries.
OWN_CUDA = (13, 0)
# Other CUDA releases for which PyTorch has had an index of its own, newest first.
OLDER_CUDA = ((12, 9), (12, 8), (12, 6), (12, 4), (12, 1), (11, 8))
LARGE = "2.7 GB to download, 5.2 GB on disk"  # measured: Debian 12, Linux x86-64


@dataclass(frozen=True)
class Choice:
    """What to install: lines for pip's requirements file, and the index, if another than pip's own."""

    line: str  # for the person who watches
    requirements: tuple[Entry | str, ...]
    index: str = ""
    # What only torch needs, as locked; without a list for this build, pip takes what the build asks for.
    locked: tuple[Entry, ...] = ()
    resolve: bool = False


class Mistake(Exception):
    """TORCH= is none of what it may be; the text is the whole line."""


def driver_cuda(ask: Sequence[str] = ("nvidia-smi",)) -> tuple[int, int] | None:
    """The newest CUDA that this machine's NVIDIA driver runs; None without a GPU or a driver that works."""
    try:
        done = subprocess.run(
            ask, capture_output=True, text=True, timeout=30, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"CUDA(?: \w+)? Version\s*:\s*(\d+)\.(\d+)", done.stdout)
    return (int(found[1]), int(found[2])) if done.returncode == 0 and found else None


def choose(
    pip: Pip, wanted: str, index: str, cuda: tuple[int, int] | None, say: Callable[[str], None]
) -> Choice:
    """The build for this machine. `wanted` is TORCH=, `index` the folder of PyTorch's indexes, one a build.

    `cuda` is what the driver runs. `say` gets one line where a person should know before it comes.
    """
    wanted = wanted.strip()
    if "://" in wanted:
        return _from_index(wanted)
    if wanted.endswith(".whl"):
        return _from_file(Path(wanted))
    if wanted and not re.fullmatch(r"\d+(\.\d+)+[a-z0-9.]*(\+[a-z0-9.]+)?", wanted):
        raise _mistake(wanted)
    version, _, label = (wanted or pinned(CPU)).partition("+")
    if sys.platform != "darwin":  # there, the package index's build is the one
        if label:
            labels = [label]
        elif cuda is None:
            labels = ["cpu"]
        else:
            labels = [] if cuda >= OWN_CUDA else [f"cu{a}{b}" for a, b in OLDER_CUDA if (a, b) <= cuda]
        found = _found(pip, version, labels, index)
        if found is not None:
            return found
        if label:
            return Choice(f"torch {wanted}", (f"torch=={wanted}",), resolve=True)
        _warn(cuda, say)
    if version != pinned(CUDA):
        return Choice(f"torch {version}", (f"torch=={version}",), resolve=True)
    return Choice(f"torch {version}", _torch_of(CUDA), locked=_rest_of(CUDA))


def _found(pip: Pip, version: str, labels: Sequence[str], index: str) -> Choice | None:
    """The first of these builds that PyTorch's index has; failing all, what pip is configured to know."""
    for label in labels if index.strip() else []:
        there = f"{index.rstrip('/')}/{label}"
        versions, answered = pip.versions("torch", there, PROBE_SEC)
        if not answered:
            break
        if f"{version}+{label}" in versions:
            return _labelled(version, label, there, "PyTorch's index")
    known, _ = pip.versions("torch", "", PROBE_SEC) if labels else (set(), True)
    for label in labels:
        if f"{version}+{label}" in known:
            return _labelled(version, label, "", "where pip is configured to look")
    return None


def _labelled(version: str, label: str, index: str, where: str) -> Choice:
    line = f"torch {version} ({label}) from {where}"
    pin = f"torch=={version}+{label}"
    if label != "cpu":
        return Choice(line, (pin,), index, resolve=True)
    if version != pinned(CPU):
        return Choice(line, (pin,), index, locked=_rest_of(CPU))
    known = [entry for entry in _torch_of(CPU) if entry.hashes and _applies(entry.marker)]
    lines = [Entry("torch", f"{version}+{label}", "", entry.hashes) for entry in known] or [pin]
    return Choice(line, tuple(lines), index, locked=_rest_of(CPU))


def _from_index(url: str) -> Choice:
    try:
        scheme = urlsplit(url).scheme
    except ValueError as error:
        raise _mistake(url) from error
    if scheme not in {"http", "https", "file"}:
        raise _mistake(url)
    return Choice(
        f"torch from {_public(url)}",
        (f"torch=={pinned(CPU)}",),
        url,
        _rest_of(CPU),
        resolve=True,
    )


def _from_file(wheel: Path) -> Choice:
    if not wheel.is_file() or not wheel.name.startswith("torch-"):
        raise _mistake(str(wheel))
    return Choice(f"torch from {wheel.name}", (str(wheel.resolve()),), "", _rest_of(CPU), resolve=True)


def _warn(cuda: tuple[int, int] | None, say: Callable[[str], None]) -> None:
    if cuda is None:
        say(
            f"torch for the CPU is not in reach; the package index's build comes, with CUDA: {LARGE}."
            " To avoid that, stop and give TORCH=FILE.whl, or TORCH=URL of an index that has it"
        )
    elif cuda < OWN_CUDA:
        say(
            f"torch for this driver (CUDA {cuda[0]}.{cuda[1]}) is not in reach; the package index's build"
            f" comes, for CUDA {OWN_CUDA[0]}.{OWN_CUDA[1]}: it finds no GPU until the driver is newer."
            " TORCH=URL names another index"
        )


def pinned(path: Path) -> str:
    """torch's version in a list."""
    return _torch_of(path)[0].version


def _torch_of(path: Path) -> tuple[Entry, ...]:
    return tuple(entry for entry in read(path) if entry.name == "torch")


def _rest_of(path: Path) -> tuple[Entry, ...]:
    return tuple(entry for entry in read(path) if entry.name != "torch")


def _applies(marker: str) -> bool:
    """Whether a marker that tools/lock.py wrote for a file it saw is true here."""
    here = {
        "platform_machine": platform.machine(),
        "python_version": f"{sys.version_info.major}.{sys.version_info.minor}",
        "sys_platform": sys.platform,
    }
    return all(here.get(name) == value for name, value in re.findall(r"(\w+) == '([^']*)'", marker))


def _public(url: str) -> str:
    """The address without a name and password in it."""
    try:
        parts = urlsplit(url)
    except ValueError:  # no address: by hand, since a password can stand in it all the same
        head, mark, rest = url.rpartition("@")
        return f"{head.partition('://')[0]}://{rest}" if mark else url
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _mistake(value: str) -> Mistake:
    return Mistake(
        f"no torch can be had so (TORCH={_public(value)}): give a version (2.13.0), a wheel's file that is"
        " there, or an index's address (https://...)"
    )
