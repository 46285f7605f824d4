"""The program as others get it: a wheel, built from a copy of the source and installed into environments."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from glasshouse.paths import Workspace
from glasshouse.publishing.pages import render
from glasshouse.publishing.publication_files import read_publication

ROOT = Path(__file__).resolve().parents[2]
SOURCE = (
    *("glasshouse", "conf", "templates", "site", "mkdocs.yml", "pyproject.toml", "setup.py", "MANIFEST.in"),
    *("README.md", "LICENSE", "CHANGELOG.md", "SECURITY.md"),
)
COMMIT = "0123456789abcdef" * 2 + "01234567"


@dataclass(frozen=True)
class Installed:
    """A virtual environment that holds the wheel."""

    folder: Path
    home: Path  # GLASSHOUSE_HOME
    wheel: Path

    @property
    def packages(self) -> Path:
        """Its site-packages."""
        (found,) = (self.folder / "lib").glob("python3*/site-packages")
        return found

    def run(self, *words: str, cwd: Path, timeout: int = 60) -> subprocess.CompletedProcess[str]:
        """Run `glasshouse WORDS` in `cwd`, as somebody would who knows nothing of the source tree."""
        return self._run([self.folder / "bin" / "glasshouse", *words], cwd, timeout)

    def python(self, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run its Python."""
        return self._run([self.folder / "bin" / "python", *words], cwd, 60)

    def _run(self, command: list[str | Path], cwd: Path, timeout: int) -> subprocess.CompletedProcess[str]:
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PYTHON", "GLASSHOUSE", "VIRTUAL"))
        }
        return subprocess.run(
            command,
            cwd=cwd,
            env={**environment, "GLASSHOUSE_HOME": str(self.home)},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy, as from a source archive: no .git, the commit noted beside setup.py."""
    source = tmp_path_factory.mktemp("source")
    for name in SOURCE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source)
    (source / ".commit").write_text(f"{COMMIT}\n")
    stale = source / "build" / "lib" / "glasshouse"
    stale.mkdir(parents=True)
    (stale / "stale.py").touch()  # of an earlier build
    (source / "conf" / "experiment" / ".private.yaml.swp").touch()
    pip = [sys.executable, "-m", "pip", "--isolated", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    out = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [*pip, "--wheel-dir", out, source], capture_output=True, text=True, check=False, timeout=170
    )
    assert done.returncode == 0, done.stderr
    (found,) = out.glob("*.whl")
    return found


def install(wheel: Path, folder: Path, home: Path) -> Installed:
    """Install the wheel alone into a new virtual environment, by pip."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=60)
    pip = [sys.executable, "-m", "pip", "--isolated", "--python", folder / "bin" / "python"]
    words = ["install", "--quiet", "--no-index", "--no-deps", "--no-compile", wheel]
    done = subprocess.run([*pip, *words], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return Installed(folder, home, wheel)


@pytest.fixture(scope="session")
def base(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The base install: beside the wheel, what its dependencies are and nothing else of this environment."""
    home = tmp_path_factory.mktemp("base")
    made = install(wheel, home / "venv", home / "home")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for name in closure(project["dependencies"]):
        distribution = metadata.distribution(name)
        tops = {path.parts[0] for path in distribution.files or () if path.parts[0] != ".."}
        for top in tops - {"__pycache__", "bin"}:
            link = made.packages / top
            if not link.exists():
                link.symlink_to(distribution.locate_file(top))
    return made


@pytest.fixture(scope="session")
def full(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel with all extras: it sees the packages of this environment, behind its own."""
    home = tmp_path_factory.mktemp("full")
    return with_all(install(wheel, home / "venv", home / "home"))


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the published site serves of its data, without the theme: `verify URL` reads no more."""
    folder = tmp_path_factory.mktemp("site")
    for name, data in render(read_publication(Workspace.of_source(ROOT), overlay=False)).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    for name in ("artifacts", "bundles", "ledger"):
        shutil.copytree(ROOT / "site" / "research" / name, folder / "research" / name)
    return folder


def with_all(made: Installed) -> Installed:
    """Let an environment see the packages of this one. What .pth files there say is not heard."""
    places = [place for place in map(Path, sys.path) if place.name == "site-packages"]
    (made.packages / "others.pth").write_text("".join(f"{place}\n" for place in places))
    return made


def closure(requirements: list[str]) -> Iterator[str]:
    """The distributions of this environment that `requirements` bring."""
    seen: set[tuple[str, frozenset[str]]] = set()
    ahead = [Requirement(line) for line in requirements]
    while ahead:
        item = ahead.pop()
        key = (item.name.lower().replace("_", "-"), frozenset(item.extras))
        if key in seen:
            continue
        seen.add(key)
        yield item.name
        for line in metadata.requires(item.name) or ():
            needed = Requirement(line)
            extras = item.extras or {""}
            if needed.marker is None or any(needed.marker.evaluate({"extra": name}) for name in extras):
                ahead.append(needed)
