"""`make lock`: write locks/, the exact versions and hashes of everything that this project installs.

    python3 tools/lock.py                  keep the versions that still do, add what pyproject.toml asks for
    python3 tools/lock.py --upgrade        the newest of everything; --upgrade NAME: of that package
    python3 tools/lock.py --seen FILE.whl  note the hash of a CPU build of torch that is at hand
    python3 tools/lock.py --check          does the index have a file for every line, Python and system?

Three lists, one set of versions for every Python and system:

    locks/lock.txt        all extras, without torch and what only torch needs; each line says what it is for
    locks/torch-cpu.txt   torch and what only it needs, built for the CPU
    locks/torch-cuda.txt  the same as the package index has it: with CUDA on Linux, without on macOS

The solver is uv, installed into build/uv; it asks the package index alone, whatever pip is configured for.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from lockfile import CPU, CUDA, LOCK, Entry, read, text_of

ROOT = Path(__file__).resolve().parents[1]
UV = "uv==0.13.9"
OLDEST = "3.11.2"  # Debian 12's
PYTHONS = (OLDEST, "3.12", "3.13", "3.14")
SYSTEMS = ("x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu", "aarch64-apple-darwin")
MACOS = "14.0"  # the oldest that torch has files for
BUILD = ["setuptools>=77", "wheel"]  # what builds this project, and the one package that comes as source
ONLY_SOURCE = "antlr4-python3-runtime"
WHEEL = re.compile(
    r"torch-(?P<version>[0-9.]+)\+cpu-cp(?P<major>\d)(?P<minor>\d+)-cp\d+-[a-z0-9_]*?linux_[0-9_]*?(?P<machine>x86_64|aarch64)\.whl"
)


def main() -> int:
    """Make the lists, or check them against the index."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--upgrade", nargs="?", const="", metavar="NAME")
    parser.add_argument("--seen", type=Path, metavar="FILE.whl")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    try:
        if options.check:
            return check(solver())
        if options.seen:
            note_seen(options.seen)
        else:
            for path, text in renew(solver(), options.upgrade).items():
                path.write_text(text, encoding="utf-8")
    except subprocess.CalledProcessError as error:
        sys.stderr.write(error.stderr or "")
        sys.stderr.write("error: the solver failed (its lines are above): is the package index reachable?\n")
        return 3
    return 0


def solver() -> Path:
    """uv in a folder of its own; it comes from whatever index pip is configured for."""
    folder = ROOT / "build" / "uv"
    uv = folder / "bin" / "uv"
    if not uv.exists():
        subprocess.run(
            [sys.executable, "-I", "-m", "venv", str(folder)], check=True, capture_output=True, text=True
        )
        pip = [
            str(folder / "bin" / "python"),
            "-I",
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ]
        subprocess.run([*pip, UV], check=True, capture_output=True, text=True)
    return uv


def renew(uv: Path, upgrade: str | None = None) -> dict[Path, str]:
    """The lists' texts: solve for everything at once, then ask of each extra what it needs of that."""
    work = ROOT / "build" / "lock"
    work.mkdir(parents=True, exist_ok=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (work / "no-torch").write_text("torch\n", encoding="utf-8")
    (work / "build.in").write_text("\n".join(BUILD) + "\n", encoding="utf-8")
    without = ["--excludes", str(work / "no-torch")]
    newer = [] if upgrade is None else ["--upgrade"] if upgrade == "" else ["--upgrade-package", upgrade]
    pyproject = str(ROOT / "pyproject.toml")

    everything = _solve(uv, [pyproject, str(work / "build.in"), "--all-extras", *without, *newer], LOCK)
    pins = work / "pins"
    pins.write_text("".join(f"{entry.pin}\n" for entry in everything), encoding="utf-8")
    (torch,) = (word for word in project["optional-dependencies"]["train"] if re.match(r"torch\b", word))
    (work / "torch.in").write_text(torch + "\n", encoding="utf-8")
    of_torch = _solve(uv, [str(work / "torch.in"), "-c", str(pins), *newer], CUDA)

    needs: dict[str, set[str]] = {"build": _names(uv, [str(work / "build.in")], pins)}
    needs["base"] = _names(uv, [pyproject, *without], pins)
    for extra in project["optional-dependencies"]:
        needs[extra] = _names(uv, [pyproject, "--extra", extra, *without], pins)
    needs["train"] |= {entry.name for entry in of_torch}
    lines = []
    for entry in everything:
        groups = [group for group, names in needs.items() if entry.name in names]
        lines.append(entry.marked("base" if "base" in groups else " ".join(groups)))
    ours = {entry.name for entry in everything}
    apart = [entry.marked("train") for entry in of_torch if entry.name not in ours]
    for_cuda = _heading("torch and what only it needs, as the package index has it: for CUDA on Linux")
    return {
        LOCK: _heading("Everything but torch and what only torch needs") + text_of(lines),
        CUDA: for_cuda + text_of(apart),
        CPU: _for_cpu(apart, read(CPU) if CPU.exists() else []),
    }


def _for_cpu(apart: list[Entry], noted: list[Entry]) -> str:
    """The CPU list: a hash of torch only for a file that was seen, and only for this version."""
    (torch,) = (entry for entry in apart if entry.name == "torch")
    seen = [entry for entry in noted if entry.pin_of == torch.pin_of and entry.hashes]
    nothing_of_cuda = [
        entry
        for entry in apart
        if entry.name != "torch" and not re.match(r"cuda-|nvidia-|triton$", entry.name)
    ]
    rest = " and ".join(f"({_unless(entry.marker)})" for entry in seen)
    unseen = Entry(torch.name, torch.version, rest, (), "train")
    text = text_of(sorted([*nothing_of_cuda, *seen, unseen], key=lambda entry: entry.name))
    heading = _heading("torch and what only it needs, built for the CPU")
    return (
        heading + "# torch without a hash: no such file was at hand; pip has its index's own alone.\n" + text
    )


def _unless(marker: str) -> str:
    return marker.replace(" and ", " or ").replace("==", "!=")


def note_seen(wheel: Path) -> None:
    """Add the hash of this CPU build of torch."""
    named = WHEEL.fullmatch(wheel.name)
    if named is None or not wheel.is_file():
        sys.exit(f"error: not a CPU build of torch for Linux (seen={wheel}): give the wheel's file")
    (version,) = {entry.version for entry in read(CUDA) if entry.name == "torch"}
    if named["version"] != version:
        sys.exit(
            f"error: another version than the lists' {version} (seen={wheel.name}): give that one's wheel"
        )
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    marker = (
        f"platform_machine == '{named['machine']}' and python_version == '{named['major']}.{named['minor']}'"
        " and sys_platform == 'linux'"
    )
    entries = [
        entry for entry in read(CPU) if entry.name == "torch" and entry.hashes and entry.marker != marker
    ]
    entries.append(Entry("torch", version, marker, (f"sha256:{digest}",), "train"))
    CPU.write_text(_for_cpu(read(CUDA), entries), encoding="utf-8")


def check(uv: Path) -> int:
    """Ask the index, without downloading: a file with a known hash for every line, everywhere?

    First of all the lists must be what `make lock` would leave as it is.
    """
    for path, text in renew(uv).items():
        if path.read_text(encoding="utf-8") != text:
            sys.stderr.write(
                f"error: not what pyproject.toml asks for (locks/{path.name}): run `make lock`\n"
            )
            return 1
    folder = ROOT / "build" / "uv"
    for path in (LOCK, CUDA):
        for python in PYTHONS:
            for system in SYSTEMS:
                command = ["pip", "install", "--dry-run", "--require-hashes", "--no-deps", "--no-progress",
                           "--python", str(folder / "bin" / "python"),
                           "--target", str(ROOT / "build" / "nothing"),
                           "--python-version", python, "--python-platform", system,
                           "--only-binary", ":all:", "--no-binary", ONLY_SOURCE, "-r", str(path)]  # fmt: skip
                said = _uv(uv, command).stderr
                count = re.search(r"Resolved (\d+) packages", said)
                found = count[1] if count else "?"
                sys.stdout.write(f"{path.name:14}  Python {python:6}  {system:25}  {found} packages\n")
                sys.stdout.flush()
    return 0


def _solve(uv: Path, words: list[str], output: Path) -> list[Entry]:
    """The solution, with hashes; the versions in `output` are kept where they still do."""
    kept = ROOT / "build" / "lock" / output.name
    kept.write_text(output.read_text(encoding="utf-8") if output.exists() else "", encoding="utf-8")
    _uv(uv, ["pip", "compile", *_COMPILE, "--generate-hashes", "--output-file", str(kept), *words])
    return read(kept)


def _names(uv: Path, words: list[str], pins: Path) -> set[str]:
    done = _uv(uv, ["pip", "compile", *_COMPILE, "-c", str(pins), *words])
    return {line.partition("==")[0] for line in done.stdout.splitlines() if "==" in line}


# fewest: one version of a package for every Python, rather than the newest for each.
_COMPILE = [
    "--universal", "--python-version", OLDEST, "--fork-strategy", "fewest",
    "--no-header", "--no-annotate", "--no-progress",
]  # fmt: skip


def _uv(uv: Path, words: list[str]) -> subprocess.CompletedProcess[str]:
    """Run uv without anybody's configuration; proxies and certificates stay."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("UV_", "PIP_"))}
    environment |= {"UV_NO_CONFIG": "1", "MACOSX_DEPLOYMENT_TARGET": MACOS}
    return subprocess.run(
        [str(uv), *words], check=True, capture_output=True, text=True, cwd=ROOT, env=environment
    )


def _heading(what: str) -> str:
    return (
        f"# {what}.\n"
        f"# Made by `make lock`, for Python {OLDEST} to {PYTHONS[-1]}; installed by tools/install.py.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
