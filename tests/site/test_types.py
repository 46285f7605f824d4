"""The scripts of the site keep the types that their comments give them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from .conftest import HERE

pytestmark = pytest.mark.chromium


def tsc(project: Path, modules: Path) -> subprocess.CompletedProcess[str]:
    command = [str(modules / ".bin/tsc"), "--project", str(project)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_browsers_code_keeps_its_types(modules: Path, tmp_path: Path) -> None:
    done = tsc(HERE / "tsconfig.json", modules)
    assert (done.returncode, done.stdout) == (0, "")
    # And it would be said if it did not.
    (tmp_path / "wrong.js").write_text("/** @type {number} */ export const count = `one`;\n")
    config = (HERE / "tsconfig.json").read_text().replace("../../site/assets/verify.js", "wrong.js")
    (tmp_path / "tsconfig.json").write_text(config)
    assert "is not assignable to type 'number'" in tsc(tmp_path / "tsconfig.json", modules).stdout
