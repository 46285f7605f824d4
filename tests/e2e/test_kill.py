"""A controller that is killed in any phase leaves nothing on the pod, and an excluded row."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import PACED, Program, processes_of, wait_until
from tests.e2e.phases import PHASES, check_gone, has_part, read_record, run_folder, start

pytestmark = pytest.mark.train


def killed(program: Program, process: subprocess.Popen[str]) -> tuple[Path, dict]:
    """Kill the controller; (run folder, record) when the watchdog, another process, is done."""
    process.kill()
    process.communicate()
    folder = run_folder(program)
    assert folder is not None
    wait_until((folder / "bundle/record.json").exists, 60, "the watchdog's record")
    wait_until(lambda: not (folder / "parts").exists(), 10, "the watchdog's end")
    return folder, read_record(folder)


# Attesting and raw folders: in the long tests alone.
SOAKED = ("attest", "raw-folder")


@pytest.mark.parametrize(
    "phase",
    [pytest.param(phase, marks=pytest.mark.soak) if phase in SOAKED else phase for phase in PHASES],
)
def test_killed_controller(program: Program, phase: str) -> None:
    overrides, reached = PHASES[phase]
    process = start(program, overrides)
    wait_until(lambda: reached(program), 60, f"phase {phase}")
    folder, record = killed(program, process)
    assert record["status"] == "excluded"
    assert "controller-killed" in record["exclusion"]["codes"]
    check_gone(program, folder)
    verified = program("verify", str(folder), "--json")
    assert verified.returncode == 0, verified.stdout


def test_killed_while_releasing(program: Program) -> None:
    process = start(program, [*PACED, "duration=0.5", "order=raw-first"])
    wait_until(lambda: has_part(program, "legs/s001-protected/launch.json"), 90, "the last leg's end")
    folder, record = killed(program, process)
    # All legs were done. Killed before the record was signed it is excluded; after, nothing was left to kill.
    if record["status"] == "excluded":
        assert "controller-killed" in record["exclusion"]["codes"]
    else:
        assert record["status"] == "verified"
    check_gone(program, folder)


def test_killed_after_its_watchdog(program: Program) -> None:
    overrides, reached = PHASES["train"]
    process = start(program, overrides)
    wait_until(lambda: reached(program), 60, "training")
    folder = run_folder(program)
    assert folder is not None
    (first,) = [pid for pid in processes_of(str(folder)) if pid != process.pid]
    os.kill(first, signal.SIGKILL)
    log = folder / "controller.log"
    wait_until(lambda: "another watchdog is ready" in log.read_text(), 60, "another watchdog")
    folder, record = killed(program, process)
    assert "controller-killed" in record["exclusion"]["codes"]
    check_gone(program, folder)
