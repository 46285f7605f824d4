"""The lists in locks/: exact, hashed, enough for pyproject.toml, and the same for everybody."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.install.kit import ROOT, TOOLS

LISTS = ("lock", "torch-cpu", "torch-cuda")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
SYSTEMS = [("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64")]
PYTHONS = ["3.11.2", "3.12.0", "3.13.0", "3.14.0"]
HASH = re.compile(r"    --hash=sha256:[0-9a-f]{64}( \\)?")


@pytest.fixture
def lockfile(monkeypatch: pytest.MonkeyPatch) -> Any:
    """tools/lockfile.py."""
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("lockfile")


def text(name: str) -> str:
    return (ROOT / "locks" / f"{name}.txt").read_text(encoding="utf-8")


def somewhere(python: str, system: tuple[str, str]) -> dict[str, str]:
    """What markers ask of a machine."""
    platform, machine = system
    return {
        "python_version": python.rpartition(".")[0], "python_full_version": python, "sys_platform": platform,
        "platform_machine": machine, "implementation_name": "cpython", "os_name": "posix",
        "platform_python_implementation": "CPython",
        "platform_system": {"linux": "Linux", "darwin": "Darwin"}[platform],
    }  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_lists_name_no_index_no_file_and_no_local_build(name: str) -> None:
    lines = [line for line in text(name).splitlines() if not line.lstrip().startswith("#")]
    assert lines
    assert [line for line in lines if "://" in line or "@" in line or "+" in line] == []
    assert [line for line in lines if line.lstrip().startswith("-") and not HASH.fullmatch(line)] == []


@pytest.mark.parametrize("name", LISTS)
def test_every_line_has_a_hash_but_torchs_where_no_file_was_seen(name: str, lockfile: Any) -> None:
    entries = lockfile.read(ROOT / "locks" / f"{name}.txt")
    bare = [entry.name for entry in entries if not entry.hashes]
    assert bare == (["torch"] if name == "torch-cpu" else [])
    assert all(entry.groups for entry in entries)


@pytest.mark.parametrize("system", SYSTEMS, ids=" ".join)
@pytest.mark.parametrize("python", PYTHONS)
def test_one_version_of_each_for_every_python_and_system(
    python: str, system: tuple[str, str], lockfile: Any
) -> None:
    here = somewhere(python, system)
    for torch in ("torch-cpu", "torch-cuda"):
        names = [
            entry.name
            for name in ("lock", torch)
            for entry in lockfile.read(ROOT / "locks" / f"{name}.txt")
            if not entry.marker or Marker(entry.marker).evaluate(here)
        ]
        assert len(names) == len(set(names))
        assert "torch" in names


@pytest.mark.parametrize("system", SYSTEMS, ids=" ".join)
@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_what_pyproject_asks_for_is_locked_for_that_extra(
    extra: str, system: tuple[str, str], lockfile: Any
) -> None:
    wanted = [Requirement(word) for word in PROJECT["dependencies"] + EXTRAS.get(extra, [])]
    for ours in [need for need in wanted if need.name == PROJECT["name"]]:
        wanted += [Requirement(word) for name in ours.extras for word in EXTRAS[name]]
    entries = lockfile.chosen(lockfile.read(lockfile.LOCK), [extra] if extra else [])
    if extra == "train":
        entries += lockfile.read(lockfile.CUDA)
    here = somewhere("3.12.0", system)
    locked = {one.name: one.version for one in entries if not one.marker or Marker(one.marker).evaluate(here)}
    for need in wanted:
        if need.name != PROJECT["name"]:
            assert need.specifier.contains(locked[canonicalize_name(need.name)]), str(need)


def test_verifying_needs_neither_torch_nor_numpy_nor_mkdocs(lockfile: Any) -> None:
    names = {entry.name for entry in lockfile.chosen(lockfile.read(lockfile.LOCK), [])}
    assert {"cryptography", "hydra-core", "pydantic"} <= names
    assert not names & {"torch", "numpy", "scipy", "mkdocs", "jinja2", "paramiko", "sqlalchemy", "pytest"}
    assert len(names) < 30


def test_the_promised_pythons_are_the_same_everywhere() -> None:
    promised = re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["classifiers"]))
    assert promised == [python.rpartition(".")[0] for python in PYTHONS]
    assert text("lock").splitlines()[1].startswith("# Made by `make lock`, for Python 3.11.2 to 3.14;")


def test_a_line_that_is_no_pin_is_refused(lockfile: Any, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("alpha==1.0\nbeta>=2\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"list\.txt line 2: not a pinned requirement: beta>=2"):
        lockfile.read(path)


@pytest.mark.index
@pytest.mark.timeout(600)
def test_the_index_has_a_file_with_a_known_hash_for_every_line_python_and_system() -> None:
    command = [sys.executable, TOOLS / "lock.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2 * len(PYTHONS) * len(SYSTEMS)
    for line in lines:
        least = 140 if line.startswith("lock.txt") else 20 if "linux" in line else 4
        assert int(line.split()[-2]) >= least, line
