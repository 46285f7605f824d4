"""The wheels that a project needs on the rented machine, resolved and fetched here by pip.

What the machine's image has already (torch, and what came with it) is shown to pip as empty wheels of the
same versions: it limits the others, and is not fetched. pip asks a requirement's markers of the Python that
runs it; so what its answer says that a package needs is asked again here, of the machine's Python.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from glasshouse.errors import GlasshouseError, UsageError
from glasshouse.workloads.dependencies import FIELD, Dependencies

MAX_WHEELS: Final = 1000
MAX_ROUNDS: Final = 10
MAX_REPORT_BYTES: Final = 256 << 20
# pip takes each tag for itself: manylinux_2_28 does not stand for the older ones.
_MANYLINUX: Final = (35, 34, 31, 28, 27, 26, 24, 17, 12, 5)
_OLD_NAMES: Final = ("manylinux2014", "manylinux2010", "manylinux1")
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
_LOCAL: Final = "+image"
_TORCH: Final = "torch"
# What torch's wheels bring along for CUDA.
_WITH_TORCH: Final = re.compile(r"(?:nvidia-.*-cu\d+|cuda-.*|triton|pytorch-triton)\Z")
_NAMED: Final = re.compile(r"(?:satisfies the requirement|No matching distribution found for) ([^\s(]+)")


@dataclass(frozen=True)
class Target:
    """The machine's Python, such as `3.12`, its architecture, and the newest glibc (2.X) that fits."""

    python: str
    machine: str = "x86_64"
    glibc_minor: int = 35

    @property
    def platforms(self) -> tuple[str, ...]:
        """The platform tags that pip is to accept."""
        tags = [f"manylinux_2_{minor}_{self.machine}" for minor in _MANYLINUX if minor <= self.glibc_minor]
        return (*tags, *(f"{name}_{self.machine}" for name in _OLD_NAMES), f"linux_{self.machine}")

    @property
    def environment(self) -> dict[str, str]:
        """What markers are asked of."""
        return {
            "python_version": self.python,
            "python_full_version": f"{self.python}.0",
            "implementation_name": "cpython",
            "implementation_version": f"{self.python}.0",
            "platform_python_implementation": "CPython",
            "os_name": "posix",
            "sys_platform": "linux",
            "platform_system": "Linux",
            "platform_machine": self.machine,
            "platform_release": "",
            "platform_version": "",
        }


@dataclass(frozen=True)
class _Package:
    name: str
    version: str
    sha256: str
    needs: tuple[str, ...]
    extras: frozenset[str]


def fetch(
    dependencies: Dependencies,
    target: Target,
    folder: Path,
    *,
    provided: Mapping[str, str] | None = None,
    say: Callable[[str], None] = lambda _: None,
    timeout_sec: float = 1800.0,
) -> tuple[Path, ...]:
    """Fetch the wheels into `folder`, which is empty, and return them, sorted by name.

    provided: distributions that the image has, with their versions; with torch among them, its CUDA wheels
    and triton are the image's too. say: takes a line on what is done. Raises UsageError, of `dependencies`,
    that names a requirement for which no wheel fits; GlasshouseError where pip or the index cannot be asked.
    """
    have: dict[str, str] = {
        canonicalize_name(name): _as_provided(version) for name, version in (provided or {}).items()
    }
    wanted = [item for item in dependencies.requirements if _applies(Requirement(item), target, frozenset())]
    if not wanted:
        return ()
    for item in map(Requirement, wanted):
        version = have.get(canonicalize_name(item.name))
        if version is not None and not item.specifier.contains(version, prereleases=True):
            raise UsageError(
                f"the machine's image has {item.name} {version.removesuffix(_LOCAL)}",
                field=FIELD, value=item,
                remedy="ask for that version, or for a range that holds it",
            )  # fmt: skip
    limits = [f"{name}=={version}" for name, version in have.items()]
    limits += [item for item in dependencies.constraints if _name(item) not in have]
    with tempfile.TemporaryDirectory(prefix="glasshouse-wheels-") as place:
        pip = _Pip(Path(place), target, timeout_sec)
        for name, version in have.items():
            _write_empty_wheel(pip.provided, name, version)
        count = _count(len(wanted), "requirement")
        say(f"resolving {count} of {dependencies.source} for Python {target.python}")
        packages = _resolved(pip, wanted, limits, target, have)
        _check_hashes(packages, dependencies.hashes)
        if len(packages) > MAX_WHEELS:
            raise UsageError(
                f"{len(packages)} wheels would be needed", field=FIELD, value=dependencies.source,
                remedy=f"at most {MAX_WHEELS}",
            )  # fmt: skip
        if packages:
            say(f"fetching {_count(len(packages), 'wheel')}")
            pip.download(packages, folder)
    return tuple(sorted(folder.glob("*.whl")))


def _resolved(
    pip: _Pip, wanted: Sequence[str], limits: Sequence[str], target: Target, have: Mapping[str, str]
) -> list[_Package]:
    roots = list(wanted)
    for _ in range(MAX_ROUNDS):
        found = {package.name: package for package in pip.resolve(roots, limits)}
        missing = [
            need
            for package in found.values()
            if not _is_provided(package.name, have)
            for need in package.needs
            if _applies(Requirement(need), target, package.extras)
            and not _is_provided(_name(need), have)
            and _name(need) not in found
        ]
        if not missing:
            return [package for name, package in sorted(found.items()) if not _is_provided(name, have)]
        roots += [_without_marker(need) for need in dict.fromkeys(missing)]
    raise UsageError(
        "the requirements were not resolved",
        field=FIELD,
        value=missing[0],
        remedy="pin it in requirements.txt",
    )


def _is_provided(name: str, have: Mapping[str, str]) -> bool:
    return name in have or (_TORCH in have and _WITH_TORCH.match(name) is not None)


def _applies(requirement: Requirement, target: Target, extras: frozenset[str]) -> bool:
    if requirement.marker is None:
        return True
    return any(requirement.marker.evaluate(target.environment | {"extra": extra}) for extra in ("", *extras))


def _without_marker(need: str) -> str:
    """Its marker was asked of the target already; pip would ask it of itself."""
    requirement = Requirement(need)
    requirement.marker = None
    return str(requirement)


def _check_hashes(packages: Sequence[_Package], hashes: Mapping[str, frozenset[str]]) -> None:
    for package in packages:
        known = hashes.get(package.name)
        if known is not None and package.sha256 not in known:
            raise UsageError(
                "the wheel that fits has none of the hashes",
                field=FIELD, value=f"{package.name}=={package.version}",
                remedy="add its wheel's hash, or leave hashes out",
            )  # fmt: skip


class _Pip:
    """pip of the Python that runs this, in a process of its own."""

    def __init__(self, place: Path, target: Target, timeout_sec: float) -> None:
        self._place = place
        self._target = target
        self._timeout_sec = timeout_sec
        self.provided = place / "provided"
        self.provided.mkdir()
        tags = [word for tag in target.platforms for word in ("--platform", tag)]
        self._options = ["--only-binary", ":all:", "--implementation", "cp"]
        self._options += ["--python-version", target.python, *tags]

    def resolve(self, roots: Sequence[str], limits: Sequence[str]) -> list[_Package]:
        """Ask which versions go together; metadata alone is fetched where the index has it apart."""
        report, limit = self._place / "report.json", self._place / "limits.txt"
        limit.write_text("\n".join(limits) + "\n", encoding="utf-8")
        self._run(
            *("install", "--dry-run", "--target", str(self._place / "none"), "--report", str(report)),
            *(*self._options, "--constraint", str(limit), "--find-links", str(self.provided)),
            *("--", *map(_without_marker, roots)),
        )
        if report.stat().st_size > MAX_REPORT_BYTES:
            raise GlasshouseError("pip's report is too large", field=FIELD, value=report.stat().st_size)
        return [_package(item) for item in json.loads(report.read_bytes())["install"]]

    def download(self, packages: Sequence[_Package], folder: Path) -> None:
        """Fetch exactly these, each by its hash."""
        pins = self._place / "pins.txt"
        lines = [f"{item.name}=={item.version} --hash=sha256:{item.sha256}\n" for item in packages]
        pins.write_text("".join(lines), encoding="utf-8")
        words = ("--no-deps", "--require-hashes", "--dest", str(folder), "--requirement", str(pins))
        self._run("download", *self._options, *words)

    def _run(self, action: str, *words: str) -> None:
        command = [sys.executable, "-I", "-m", "pip", action]
        command += ["--quiet", "--no-input", "--disable-pip-version-check"]
        environment = {name: value for name, value in os.environ.items() if name in _KEPT}
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
            raise GlasshouseError(
                f"pip took longer than {self._timeout_sec:.0f} s",
                field=FIELD,
                value=action,
                remedy="try again",
            ) from error
        if done.returncode:
            raise _failure(done.stderr, self._target)


def _failure(said: str, target: Target) -> GlasshouseError:
    """One line of what pip said."""
    errors = [line.removeprefix("ERROR:").strip() for line in said.splitlines() if line.startswith("ERROR:")]
    last = next((line for line in errors if not line.startswith("ResolutionImpossible")), "")
    named = _NAMED.search(said)
    if "No module named pip" in said:
        return GlasshouseError(
            "this Python has no pip", field="python", value=sys.executable, remedy="python -m ensurepip"
        )
    if "Retrying (" in said:
        return GlasshouseError(
            "the package index cannot be reached", field=FIELD, value=named[1] if named else "index",
            remedy="look at the network, and at pip config list",
        )  # fmt: skip
    if named:
        return UsageError(
            f"no wheel fits Python {target.python} on Linux {target.machine}", field=FIELD, value=named[1],
            remedy="give a version that has one: what must be built is not possible for now",
        )  # fmt: skip
    return UsageError(
        "pip cannot resolve the requirements", field=FIELD, value=(last or "no reason given")[:200],
        remedy="mend them: pip install --dry-run says more",
    )  # fmt: skip


def _package(item: Mapping[str, Any]) -> _Package:
    metadata = item["metadata"]
    info = item["download_info"].get("archive_info", {})
    algorithm, _, digest = str(info.get("hash", "")).partition("=")  # all that pip before 23.1 says
    digest = info.get("hashes", {}).get("sha256", digest if algorithm == "sha256" else "")
    return _Package(
        canonicalize_name(metadata["name"]),
        metadata["version"],
        digest,
        tuple(filter(_is_requirement, metadata.get("requires_dist", ()))),
        frozenset(item.get("requested_extras", ())),
    )


def _is_requirement(text: str) -> bool:
    """Old metadata holds what is none; pip passes over it, too."""
    try:
        Requirement(text)
    except InvalidRequirement:
        return False
    return True


def _name(requirement: str) -> str:
    return canonicalize_name(Requirement(requirement).name)


def _as_provided(version: str) -> str:
    """A version that the index has not under the same name: it satisfies what the plain one does."""
    return version if "+" in version else f"{version}{_LOCAL}"


def _write_empty_wheel(folder: Path, name: str, version: str) -> None:
    """Write a wheel that needs nothing and holds nothing, which stands for what the image has."""
    base = f"{name.replace('-', '_')}-{version}"
    with zipfile.ZipFile(folder / f"{base}-py3-none-any.whl", "w") as wheel:
        head = "Metadata-Version: 2.1\n"
        wheel.writestr(f"{base}.dist-info/METADATA", f"{head}Name: {name}\nVersion: {version}\n")
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{base}.dist-info/WHEEL", tags)
        wheel.writestr(f"{base}.dist-info/RECORD", "")


def _count(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"
