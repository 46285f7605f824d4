"""pip, asked which wheels go together and told to fetch them, for another Python than its own."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from glasshouse.errors import GlasshouseError, RemoteError, UsageError
from glasshouse.workloads.dependencies import FIELD, shown

MAX_REPORT_BYTES: Final = 256 << 20
# pip takes each tag for itself: manylinux_2_28 does not stand for the older ones.
_MANYLINUX: Final = (35, 34, 31, 28, 27, 26, 24, 17, 12, 5)
_OLD_NAMES: Final = {"manylinux2014": 17, "manylinux2010": 12, "manylinux1": 5}
# Of its settings pip keeps those that say where the index is and how it is reached.
_KEPT: Final = frozenset(
    {
        *("PATH", "HOME", "TMPDIR", "LANG", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_CONFIG_DIRS"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NETRC"),
        *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
        *("http_proxy", "https_proxy", "all_proxy", "no_proxy"),
        *("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST", "PIP_CERT", "PIP_CLIENT_CERT"),
        *("PIP_PROXY", "PIP_CONFIG_FILE", "PIP_CACHE_DIR", "PIP_RETRIES", "PIP_TIMEOUT"),
    }
)
_UNREACHED: Final = ("Retrying (", "Could not fetch URL")
_EXTRA: Final = re.compile(r"""\bextra\s*==\s*["']([A-Za-z0-9._-]+)["']""")
_LOCKED: Final = re.compile(r"The user requested \(constraint\) ([A-Za-z0-9._-]+)==")
_LINE_OF: Final = re.compile(r"\s*\(from -r \S+ \(line \d+\)\)")
_MISFIT: Final = re.compile(r"(\S+\.whl) is not a supported wheel")
_NAMED: Final = re.compile(r"(?:satisfies the requirement|No matching distribution found for) ([^\s(]+)")


@dataclass(frozen=True)
class Target:
    """The machine's Python, such as `3.12`, its architecture, and its glibc's 2.X; 0 where it has another."""

    python: str
    machine: str = "x86_64"
    glibc_minor: int = 35
    micro: int = 0  # the third number of its Python's version

    @property
    def platforms(self) -> tuple[str, ...]:
        """The platform tags that pip is to accept."""
        tags = [f"manylinux_2_{minor}_{self.machine}" for minor in _MANYLINUX if minor <= self.glibc_minor]
        tags += [f"{name}_{self.machine}" for name, minor in _OLD_NAMES.items() if minor <= self.glibc_minor]
        return (*tags, f"linux_{self.machine}")

    @property
    def environment(self) -> dict[str, str]:
        """What markers are asked of."""
        return {
            "python_version": self.python,
            "python_full_version": f"{self.python}.{self.micro}",
            "implementation_name": "cpython",
            "implementation_version": f"{self.python}.{self.micro}",
            "platform_python_implementation": "CPython",
            "os_name": "posix",
            "sys_platform": "linux",
            "platform_system": "Linux",
            "platform_machine": self.machine,
            "platform_release": "",
            "platform_version": "",
        }


@dataclass(frozen=True)
class Package:
    """A wheel that pip chose; needs: its Requires-Dist, extras: those of its own that are asked for."""

    name: str
    version: str
    sha256: str
    needs: tuple[str, ...]
    extras: frozenset[str]
    path: Path | None = None  # of a wheel that lies here


class ConflictError(UsageError):
    """What is asked for does not go together; `locked` of it are versions that the machine has."""

    locked: frozenset[str] = frozenset()


class Pip:
    """pip of the Python that runs this, in a process of its own. What it is told stands in files: a process's
    words are for everybody to see.
    """

    def __init__(self, place: Path, target: Target, places: Sequence[str], timeout_sec: float) -> None:
        self._place = place
        self.target = target
        self._timeout_sec = timeout_sec
        self._provided = place / "provided"
        self._head = [f"{line}\n" for line in places]
        tags = [word for tag in target.platforms for word in ("--platform", tag)]
        self._options = ["--only-binary", ":all:", "--implementation", "cp"]
        self._options += ["--python-version", target.python, *tags]

    def show(self, have: Mapping[str, str], extras: Mapping[str, Sequence[str]]) -> None:
        """Let it find what the machine has, and nothing that was there before."""
        shutil.rmtree(self._provided, ignore_errors=True)
        self._provided.mkdir()
        for name, version in have.items():
            _write_empty_wheel(self._provided, name, version, extras.get(name, ()))

    def resolve(self, roots: Sequence[str], limits: Sequence[str]) -> list[Package]:
        """Ask which versions go together; metadata alone is fetched where the index has it apart."""
        report, asked, limit = (self._place / name for name in ("report.json", "asked.txt", "limits.txt"))
        limit.write_text("\n".join(limits) + "\n", encoding="utf-8")
        lines = [*self._head, *(f"{without_marker(root)}\n" for root in roots)]
        asked.write_text("".join(lines), encoding="utf-8")
        self._run(
            *("install", "--dry-run", "--target", str(self._place / "none"), "--report", str(report)),
            *(*self._options, "--constraint", str(limit), "--find-links", str(self._provided)),
            *("--requirement", str(asked)),
        )
        if report.stat().st_size > MAX_REPORT_BYTES:
            raise GlasshouseError("pip's report is too large", field=FIELD, value=report.stat().st_size)
        return [_package(item) for item in json.loads(report.read_bytes())["install"]]

    def download(self, packages: Sequence[Package], folder: Path) -> None:
        """Fetch exactly these, each by its hash."""
        if not packages:
            return
        pins = self._place / "pins.txt"
        lines = [f"{item.name}=={item.version} --hash=sha256:{item.sha256}\n" for item in packages]
        pins.write_text("".join([*self._head, *lines]), encoding="utf-8")
        words = ("--no-deps", "--require-hashes", "--dest", str(folder), "--requirement", str(pins))
        self._run("download", *self._options, *words)

    def _run(self, action: str, *words: str) -> None:
        command = [sys.executable, "-I", "-m", "pip", action]
        command += ["--no-input", "--no-color", "--progress-bar", "off", "--disable-pip-version-check"]
        environment = {name: value for name, value in os.environ.items() if name in _KEPT}
        if environment.get("PIP_RETRIES") == "0":
            environment["PIP_RETRIES"] = "1"  # it says of a second try alone why the first one failed
        try:
            done = subprocess.run(
                [*command, *words],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=self._timeout_sec,
                env=environment,
                cwd=self._place,
            )
        except subprocess.TimeoutExpired as error:
            raise RemoteError(
                f"pip took longer than {self._timeout_sec:.0f} s",
                field=FIELD,
                value=action,
                remedy="try again",
            ) from error
        if done.returncode:
            raise _failure(f"{done.stdout}\n{done.stderr}", self.target)


def _failure(said: str, target: Target) -> GlasshouseError:
    """One line of what pip said."""
    errors = [line.removeprefix("ERROR:").strip() for line in said.splitlines() if line.startswith("ERROR:")]
    last = next((line for line in errors if not line.startswith("ResolutionImpossible")), "")
    named = _NAMED.search(said)
    if "No module named pip" in said:
        return GlasshouseError(
            "this Python has no pip", field="python", value=sys.executable, remedy="python -m ensurepip"
        )
    if any(words in said for words in _UNREACHED):
        return RemoteError(
            "the package index cannot be reached", field=FIELD, value=named[1] if named else "index",
            remedy="look at the network, and at pip config list",
        )  # fmt: skip
    misfit = _MISFIT.search(said)
    if misfit or named:
        return UsageError(
            f"no wheel fits Python {target.python} on Linux {target.machine}",
            field=FIELD, value=shown((misfit or named or [""])[1]),
            remedy="none is built here: bring one (pip wheel --no-deps -w wheels; --find-links wheels)",
        )  # fmt: skip
    _, _, causes = said.partition("The conflict is caused by:\n")
    indented = [
        line.strip() for line in itertools.takewhile(lambda line: line[:1] == " ", causes.splitlines())
    ]
    why = ", ".join(indented) or _LINE_OF.sub("", last) or "no reason given"
    conflict = ConflictError(
        "pip cannot resolve the requirements", field=FIELD, value=shown(why)[:200],
        remedy="mend them: pip install --dry-run says more",
    )  # fmt: skip
    conflict.locked = frozenset(map(canonicalize_name, _LOCKED.findall(said)))
    return conflict


def _package(item: Mapping[str, Any]) -> Package:
    metadata, place = item["metadata"], urlsplit(str(item["download_info"].get("url", "")))
    info = item["download_info"].get("archive_info", {})
    algorithm, _, digest = str(info.get("hash", "")).partition("=")  # all that pip before 23.1 says
    digest = info.get("hashes", {}).get("sha256", digest if algorithm == "sha256" else "")
    return Package(
        canonicalize_name(metadata["name"]),
        metadata["version"],
        digest,
        tuple(filter(_is_requirement, metadata.get("requires_dist", ()))),
        frozenset(item.get("requested_extras", ())),
        Path(unquote(place.path)) if place.scheme == "file" else None,
    )


def without_marker(need: str) -> str:
    """Its marker was asked of the target already; pip would ask it of itself."""
    requirement = Requirement(need)
    requirement.marker = None
    return str(requirement)


def _is_requirement(text: str) -> bool:
    """Old metadata holds what is none; pip passes over it, too."""
    try:
        Requirement(text)
    except InvalidRequirement:
        return False
    return True


def _write_empty_wheel(folder: Path, name: str, version: str, extras: Sequence[str]) -> None:
    """Write a wheel that holds nothing, and needs what its extras do: it stands for what the machine has."""
    base = f"{name.replace('-', '_')}-{version}"
    with zipfile.ZipFile(folder / f"{base}-py3-none-any.whl", "w") as wheel:
        head = "Metadata-Version: 2.1\n"
        offered = dict.fromkeys(found for need in extras for found in _EXTRA.findall(need))
        more = "".join(f"Provides-Extra: {extra}\n" for extra in offered)
        more += "".join(f"Requires-Dist: {need}\n" for need in extras)
        wheel.writestr(f"{base}.dist-info/METADATA", f"{head}Name: {name}\nVersion: {version}\n{more}")
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{base}.dist-info/WHEEL", tags)
        wheel.writestr(f"{base}.dist-info/RECORD", "")
