"""pip, asked which wheels go together and told to fetch them, for another Python than its own."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name, parse_sdist_filename, parse_wheel_filename
from packaging.version import Version

from glasshouse.errors import GlasshouseError, RemoteError, UsageError
from glasshouse.workloads.dependencies import FIELD, shown
from glasshouse.workloads.requirement import parsed

MAX_REPORT_BYTES: Final = 256 << 20
# pip takes each tag for itself: manylinux_2_28 does not stand for the older ones.
_MANYLINUX: Final = (35, 34, 31, 28, 27, 26, 24, 17, 12, 5)
_OLD_NAMES: Final = {"manylinux2014": 17, "manylinux2010": 12, "manylinux1": 5}
# Of its settings pip keeps those that say where the index is and how it is reached.
_KEPT: Final = frozenset(
    {
        *("PATH", "HOME", "LANG", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_CONFIG_DIRS"),
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
# What `pip -vv` says of each file that it sees, and of a page that it does not get.
_FOUND, _SKIPPED = "Found link ", "Skipping link: "
_REFUSED: Final = re.compile(r"Could not fetch URL \S+: (?!404)([45][0-9]{2}) ")
# Of a file's build number: more than any other's, so that an empty wheel is taken before a real one.
_FIRST_BUILD: Final = 10**9
MAX_NAMED: Final = 8


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


class NoMatchError(UsageError):
    """pip found nothing for a requirement: `requirement`, in pip's words."""

    requirement: str = ""


class Pip:
    """pip of the Python that runs this, in a process of its own. What it is told stands in files: a process's
    words are for everybody to see.
    """

    def __init__(
        self,
        place: Path,
        target: Target,
        places: Sequence[str],
        timeout_sec: float,
        lines: Mapping[str, str] | None = None,
    ) -> None:
        """place: an empty folder that the caller removes. places: as in Dependencies. lines: where
        requirements stand, by their text without a marker.
        """
        self._place = place
        self._lines = lines or {}
        self._temporary = place / "tmp"  # what pip leaves where it is ended goes with our own
        self._temporary.mkdir()
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
            _write_empty_wheel(self._provided, self.target, name, version, extras.get(name, ()))

    def resolve(self, roots: Sequence[str], limits: Sequence[str]) -> list[Package]:
        """Ask which versions go together; metadata alone is fetched where the index has it apart."""
        report, asked, limit = (self._place / name for name in ("report.json", "asked.txt", "limits.txt"))
        limit.write_text("".join(f"{_plain(item)}\n" for item in limits), encoding="utf-8")
        lines = [*self._head, *(f"{_plain(without_marker(root))}\n" for root in roots)]
        asked.write_text("".join(lines), encoding="utf-8")
        try:
            self._run(
                [Requirement(root).name for root in roots],
                *("install", "--dry-run", "--target", str(self._place / "none"), "--report", str(report)),
                *(*self._options, "--constraint", str(limit), "--find-links", str(self._provided)),
                *("--requirement", str(asked)),
            )
        except NoMatchError as error:
            raise self._explained(error) from error
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
        self._run([item.name for item in packages], "download", *self._options, *words)

    def _explained(self, error: NoMatchError) -> GlasshouseError:
        """Say why nothing was found for a requirement: no such package, no such version, or no wheel."""
        wanted = Requirement(error.requirement)
        asked = self._place / "one.txt"
        asked.write_text("".join([*self._head, f"{_plain(str(wanted))}\n"]), encoding="utf-8")
        code, said = self._said(
            *("install", "--dry-run", "--no-deps", "--target", str(self._place / "none"), "-vv"),
            *(*self._options, "--requirement", str(asked)),
        )
        fitting, others = _versions(said, canonicalize_name(wanted.name))
        named, where = shown(str(wanted)), self._lines.get(str(wanted), "")
        where = f"{where}: " if where else ""
        refused = _REFUSED.search(said)
        if not code:  # an index that did not answer before
            return RemoteError(
                f"{where}found at a second try alone", field=FIELD, value=named, remedy="try again"
            )
        if not fitting | others and (refused or _UNREACHED[0] in said):
            return _unreached(f"answers {refused[1]}" if refused else "cannot be reached", named)
        if not fitting | others:
            place = "in the folders of wheels" if "--no-index\n" in self._head else "on the index"
            return UsageError(
                f"{where}no such package {place}", field=FIELD, value=named,
                remedy="mend its name; pip config list says where it is looked for",
            )  # fmt: skip
        early = bool(wanted.specifier.prereleases) or all(item.is_prerelease for item in fitting | others)
        do = [
            version
            for version in fitting | others
            if wanted.specifier.contains(version, prereleases=True) and (early or not version.is_prerelease)
        ]
        if not do:
            newest = max(fitting | others, key=lambda version: (not version.is_prerelease, version))
            return UsageError(
                f"{where}no such version, the newest is {newest}", field=FIELD, value=named,
                remedy="ask for one that there is",
            )  # fmt: skip
        if fitting.isdisjoint(do):
            return UsageError(f"{where}{error.what}", field=FIELD, value=named, remedy=error.remedy)
        return UsageError(
            f"{where}pip takes none of the versions that do, such as withdrawn ones",
            field=FIELD, value=named,
            remedy=f"ask for another, or for exactly that: =={max(fitting & set(do))}",
        )  # fmt: skip

    def _run(self, wanted: Sequence[str], action: str, *words: str) -> None:
        """wanted: names, for what is said of a failure."""
        code, said = self._said(action, *words)
        if code:
            raise _failure(said, self.target, wanted)

    def _said(self, action: str, *words: str) -> tuple[int, str]:
        command = [sys.executable, "-I", "-m", "pip", action]
        command += ["--no-input", "--no-color", "--progress-bar", "off", "--disable-pip-version-check"]
        environment = {name: value for name, value in os.environ.items() if name in _KEPT}
        if environment.get("PIP_RETRIES") == "0":
            environment["PIP_RETRIES"] = "1"  # it says of a second try alone why the first one failed
        environment["TMPDIR"] = str(self._temporary)
        try:
            with _started([*command, *words], environment, self._place) as process:
                out, err = process.communicate(timeout=self._timeout_sec)
                return process.returncode, f"{out}\n{err}"
        except subprocess.TimeoutExpired as error:
            raise RemoteError(
                f"pip took longer than {self._timeout_sec:.0f} s",
                field=FIELD,
                value=action,
                remedy="try again",
            ) from error


@contextmanager
def _started(
    command: Sequence[str], environment: Mapping[str, str], folder: Path
) -> Iterator[subprocess.Popen[str]]:
    """A process that ends when the block does, however that ends, and with it what it started. It has a group
    of its own: a terminal's Ctrl-C is ours to pass on.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=environment,
        cwd=folder,
        start_new_session=True,
    )
    try:
        with process:
            try:
                yield process
            finally:
                if process.returncode is None:  # not waited for yet, so the number is still its own
                    with suppress(ProcessLookupError, PermissionError):
                        os.killpg(process.pid, signal.SIGKILL)
    finally:
        process.wait()


def _versions(said: str, name: str) -> tuple[set[Version], set[Version]]:
    """The versions of a package of which pip saw a wheel that fits, and those of its other files."""
    fitting, others = set[Version](), set[Version]()
    for line in said.splitlines():
        link = next((word for word in line.split() if "://" in word), "")
        if not link or (_FOUND not in line and _SKIPPED not in line):
            continue
        with suppress(ValueError):  # no URL, or a name that says no version
            file = unquote(urlsplit(link.rstrip(",")).path.rpartition("/")[2])
            parsed = parse_wheel_filename if file.endswith(".whl") else parse_sdist_filename
            called, version = parsed(file)[:2]
            if called == name:
                (fitting if _FOUND in line else others).add(version)
    return fitting, others


def _unreached(how: str, named: str) -> RemoteError:
    return RemoteError(
        f"the package index {how}", field=FIELD, value=named,
        remedy="look at the network, and at pip config list",
    )  # fmt: skip


def _failure(said: str, target: Target, wanted: Sequence[str]) -> GlasshouseError:
    """One line of what pip said."""
    errors = [line.removeprefix("ERROR:").strip() for line in said.splitlines() if line.startswith("ERROR:")]
    last = next((line for line in errors if not line.startswith("ResolutionImpossible")), "")
    named = _NAMED.search(said)
    if "No module named pip" in said:
        return GlasshouseError(
            "this Python has no pip", field="python", value=sys.executable, remedy="python -m ensurepip"
        )
    if any(words in said for words in _UNREACHED):
        more = f" and {len(wanted) - MAX_NAMED} more" if len(wanted) > MAX_NAMED else ""
        return _unreached(
            "cannot be reached", shown(named[1]) if named else ", ".join(wanted[:MAX_NAMED]) + more
        )
    misfit = _MISFIT.search(said)
    if misfit or named:
        kind = NoMatchError if named and not misfit and _is_requirement(named[1]) else UsageError
        error = kind(
            f"no wheel fits Python {target.python} on Linux {target.machine}",
            field=FIELD, value=shown((misfit or named or [""])[1]),
            remedy="none is built here: bring one (pip wheel --no-deps -w wheels; --find-links wheels)",
        )  # fmt: skip
        if isinstance(error, NoMatchError) and named:
            error.requirement = named[1]
        return error
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


def _plain(line: str) -> str:
    """A line for a file of pip's, which puts variables of its environment in place of their names there: some
    hold a password, and not all that is asked for comes from the project.
    """
    if "$" in line:
        raise UsageError("not a requirement", field=FIELD, value=shown(line)[:80], remedy="give its version")
    return line


def _is_requirement(text: str) -> bool:
    """Old metadata holds what is none; pip passes over it, too."""
    try:
        parsed(text)
    except InvalidRequirement:
        return False
    return True


def _write_empty_wheel(folder: Path, target: Target, name: str, version: str, extras: Sequence[str]) -> None:
    """Write a wheel that holds nothing, and needs what its extras do: it stands for what the machine has.

    Of files of one version pip takes the one for the closest platform, then of the highest build: this one,
    so that what an index says that version needs is not asked for.
    """
    base, python = f"{name.replace('-', '_')}-{version}", f"cp{target.python.replace('.', '')}"
    tag = f"{python}-{python}-{target.platforms[0]}"
    with zipfile.ZipFile(folder / f"{base}-{_FIRST_BUILD}-{tag}.whl", "w") as wheel:
        head = "Metadata-Version: 2.1\n"
        offered = dict.fromkeys(found for need in extras for found in _EXTRA.findall(need))
        more = "".join(f"Provides-Extra: {extra}\n" for extra in offered)
        more += "".join(f"Requires-Dist: {Requirement(need)}\n" for need in extras)
        wheel.writestr(f"{base}.dist-info/METADATA", f"{head}Name: {name}\nVersion: {version}\n{more}")
        tags = f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nBuild: {_FIRST_BUILD}\nTag: {tag}\n"
        wheel.writestr(f"{base}.dist-info/WHEEL", tags)
        wheel.writestr(f"{base}.dist-info/RECORD", "")
