"""What `make` says of the tests that it leaves out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("target", ["demo", "demo-cloud", "quick", "test", "test-all", "soak"])
def test_what_needs_linux_ends_at_once_on_a_mac(target: str, tmp_path: Path) -> None:
    (tmp_path / "uname").write_text("#!/bin/sh\necho Darwin\n")
    (tmp_path / "uname").chmod(0o755)
    # In a folder of its own: had it begun to install, something would lie there.
    for name in ("Makefile", "tools"):
        (tmp_path / name).symlink_to(ROOT / name)
    done = subprocess.run(
        ["make", target], cwd=tmp_path, env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    said = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert said[0].startswith(f"error: make {target} needs Linux (platform=Darwin): planning, renting, ")
    assert [line.startswith("make: *** [Makefile:") for line in said[1:]] == [True]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Makefile", "tools", "uname"]


@pytest.mark.parametrize(("tests", "exit_code"), [("true", 0), ("false", 2)])
@pytest.mark.parametrize(
    ("target", "left_out"),
    [
        ("quick", "whatever needs a pod, a server or torch; make test runs most of it"),
        ("test", "tests marked sshd chromium postgres index slow soak; make test-all runs all but soak"),
        ("test-all", "tests marked soak; make soak runs them"),
    ],
)
def test_what_was_left_out_is_named_whether_tests_pass_or_fail(
    target: str, left_out: str, tests: str, exit_code: int
) -> None:
    # Neither installing nor lint nor services: only what runs the tests, and what is said after them.
    skip = ["-o", ".venv/.base", "-o", ".venv/.dev", "MAKE=true", f"PYTEST={tests}"]
    command = ["make", *skip, target]
    # Under `make test` this make would take itself for a part of that one, and announce its folder.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "TORCH"))
    }
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == exit_code, done.stderr
    assert done.stdout == f"left out: {left_out}\n"


@pytest.mark.parametrize("program", ["false", "/nowhere/pip-audit"])
def test_an_audit_that_asked_nobody_says_so_and_is_no_success(program: str) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools/audit.py"], env={**os.environ, "PIP_AUDIT": program},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("not audited: no vulnerability database answered about locks/lock.txt.")
