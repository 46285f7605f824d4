"""A run that is interrupted in any phase leaves nothing on the pod, and an excluded row."""

from __future__ import annotations

import json
import signal
import subprocess
import time

import pytest

from tests.e2e.conftest import PACED, Program, processes_of, wait_until
from tests.e2e.phases import (
    PHASES,
    PROTECTED,
    check_gone,
    has_part,
    read_record,
    run_folder,
    seen_event,
    start,
)

pytestmark = [pytest.mark.train, pytest.mark.slow]


@pytest.mark.parametrize(
    ("phase", "number"),
    [
        ("seal", signal.SIGTERM),
        ("train", signal.SIGINT),
        pytest.param("raw", signal.SIGINT, marks=pytest.mark.soak),
    ],
)
def test_interrupted(program: Program, phase: str, number: signal.Signals) -> None:
    overrides, reached = PHASES[phase]
    process = start(program, overrides)
    wait_until(lambda: reached(program), 60, f"phase {phase}")
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert "Traceback" not in err
    folder = run_folder(program)
    assert folder is not None
    record = read_record(folder)
    assert record["status"] == "excluded"
    assert "interrupted" in record["exclusion"]["codes"]
    check_gone(program, folder)


def test_ctrl_c_during_release_does_not_stop_it(program: Program) -> None:
    process = start(program, [*PACED, "duration=0.5"])
    wait_until(lambda: has_part(program, "legs/s001-protected/launch.json"), 90, "the last leg")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    folder = run_folder(program)
    assert folder is not None
    # Early, it interrupts; late, it is answered with a word. Either way the run is released and recorded.
    assert process.returncode in (0, 1), err
    assert read_record(folder)["status"] in ("verified", "excluded")
    check_gone(program, folder)


def test_a_killed_supervisor_is_an_excluded_row(program: Program) -> None:
    process = start(program, PROTECTED)
    wait_until(lambda: seen_event(program, "progress"), 60, "training")
    folder = run_folder(program)
    assert folder is not None
    name = json.loads((folder / "run.json").read_bytes())["name"]
    for pid in processes_of(f"{name}/runtime-"):
        subprocess.run(["kill", "-9", str(pid)], check=False)
    # Nobody writes a result file any more; an interrupt ends the wait.
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert read_record(folder)["status"] == "excluded"
    check_gone(program, folder)


def test_an_impatient_ctrl_c_is_an_interrupted_run(program: Program) -> None:
    overrides, reached = PHASES["boot"]
    process = start(program, overrides)
    wait_until(lambda: reached(program), 60, "phase boot")
    process.send_signal(signal.SIGINT)
    folder = run_folder(program)
    assert folder is not None
    while not (folder / "bundle").exists():  # until it is recorded, no further one ends anything
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (1, 130), err  # 130: the last one came after the record
    assert "interrupted" in read_record(folder)["exclusion"]["codes"]
    assert "controller-killed" not in read_record(folder)["exclusion"]["codes"]
    check_gone(program, folder)
