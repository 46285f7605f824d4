from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MODULES = HERE / "node_modules"

Browse = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The publication, built strictly from what is committed, without the local overlay."""
    out = tmp_path_factory.mktemp("site")
    environment = os.environ | {"GLASSHOUSE_SITE_LOCAL": "0", "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out.resolve()


@pytest.fixture(scope="session")
def modules() -> Path:
    """The npm packages that the lock file names, installed once."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("needs Node")
    lock, seen = HERE / "package-lock.json", MODULES / ".installed"
    if not seen.is_file() or seen.read_bytes() != lock.read_bytes():
        if MODULES.is_symlink():
            pytest.skip(f"{MODULES} is a link to other packages than the lock file names: npm ci there")
        install = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
        subprocess.run(install, cwd=HERE, check=True, capture_output=True)
        shutil.copy(lock, seen)
    return MODULES


@pytest.fixture(scope="session")
def browse(modules: Path) -> Iterator[Browse]:
    """Look at pages in one real Chromium: a plan of browse.mjs in, its report out."""
    assert modules.is_dir()
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    driver = subprocess.Popen(
        ["node", str(HERE / "browse.mjs"), CHROMIUM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert driver.stdin is not None
    assert driver.stdout is not None
    plans, reports = driver.stdin, driver.stdout

    def look(**plan: Any) -> dict[str, Any]:
        plans.write(json.dumps(plan) + "\n")
        plans.flush()
        line = reports.readline()
        assert line, f"the browser driver ended: {driver.poll()}"
        report: dict[str, Any] = json.loads(line)
        assert report["errors"] == []
        return report

    yield look
    plans.close()
    reports.close()
    assert driver.wait(60) == 0
