"""What pyproject.toml cannot say: a wheel carries conf/, templates/ and site/ as data inside the package.

In the source tree they stay at the top, where people look for them. Installed so, each would be a name that
any package can own. The commit goes with them, for `glasshouse --version`.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # a build starts elsewhere

from glasshouse import origin, paths  # noqa: E402

CARRIED = ("conf", "templates", "site", "mkdocs.yml")
NOTED = ".commit"  # in a source archive, which has no .git
NOT_OURS = shutil.ignore_patterns(".*", "__pycache__")


def commit() -> str:
    """Return what git says, else what the source archive says."""
    if (ROOT / NOTED).is_file() and not (ROOT / ".git").exists():
        return (ROOT / NOTED).read_text(encoding="ascii").strip()
    return origin.of_tree(ROOT)


class BuildPy(build_py):
    """Copies the modules, and what the package carries; an editable installation reads the tree itself."""

    def run(self) -> None:
        """Build into an empty folder: an earlier build's files are no part of this one."""
        if self.editable_mode:
            super().run()
            return
        package = Path(self.build_lib, paths.PACKAGE.name)
        shutil.rmtree(package, ignore_errors=True)
        super().run()
        data = package / paths.PACKAGE_DATA.name
        data.mkdir()
        for name in CARRIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, data / name, ignore=NOT_OURS)
            else:
                shutil.copy(ROOT / name, data / name)
        (data / origin.COMMIT_FILE).write_text(f"{commit()}\n", encoding="ascii")


class Sdist(sdist):
    """Notes the commit in the source archive."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """Write it beside setup.py."""
        super().make_release_tree(base_dir, files)
        Path(base_dir, NOTED).write_text(f"{commit()}\n", encoding="ascii")


setup(cmdclass={"build_py": BuildPy, "sdist": Sdist})
