"""A run that is interrupted or killed in any phase leaves nothing on the pod, and an excluded row."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import TINY, Program, processes_of, wait_until

pytestmark = pytest.mark.train

RUN = [*TINY, "duration=20", "order=raw-first"]
PROTECTED = [*TINY, "duration=20", "order=protected-first"]


def _folder(program: Program) -> Path | None:
    found = sorted(program.runs.glob("2*")) if program.runs.exists() else []
    return found[0] if found else None


def _part(program: Program, name: str) -> bool:
    folder = _folder(program)
    return folder is not None and bool(list(folder.glob(f"parts/{name}")))


def _events(program: Program, kind: str) -> bool:
    folder = _folder(program)
    if folder is None:
        return False
    needle = f'"type":"{kind}"'
    return any(needle in path.read_text() for path in folder.glob("parts/legs/*/events.jsonl"))


def _on_pod(program: Program, pattern: str) -> bool:
    return any(bool(list(pod.glob(f"home/*/{pattern}"))) for pod in program.pods())


# phase -> (overrides, what is seen when the run is in it)
PHASES: dict[str, tuple[list[str], Callable[[Program], bool]]] = {
    "boot": (RUN, lambda program: bool(program.pods())),
    "seal": (RUN, lambda program: _part(program, "allocation.json")),
    "attest": (PROTECTED, lambda program: _on_pod(program, "legs/*/events.jsonl")),
    "train": (PROTECTED, lambda program: _events(program, "progress")),
    "raw": (RUN, lambda program: _on_pod(program, "legs/*/progress.jsonl")),
    "raw-files": (RUN, lambda program: _on_pod(program, "raw/*/workload.py")),
}


def _check_gone(program: Program, folder: Path) -> None:
    name = json.loads((folder / "run.json").read_bytes())["name"]
    assert processes_of(name) == []
    assert program.pods() == []
    assert not list(Path("/dev/shm").glob(f"{name}*"))
    assert not (folder / "package.sealed").exists()
    reap = program("reap", "--json")
    assert reap.returncode == 0
    assert json.loads(reap.stdout)["allocations"] == []


def _record(folder: Path) -> dict:
    return json.loads((folder / "bundle/record.json").read_bytes())


def _start(program: Program, overrides: list[str]) -> subprocess.Popen[str]:
    return program.start("run", "--out", str(program.runs), *overrides)


@pytest.mark.parametrize("phase", PHASES)
def test_killed_controller(program: Program, phase: str) -> None:
    overrides, reached = PHASES[phase]
    process = _start(program, overrides)
    wait_until(lambda: reached(program), 60, f"phase {phase}")
    process.kill()
    process.communicate()
    folder = _folder(program)
    assert folder is not None
    # The watchdog, a process of its own, releases and records.
    wait_until((folder / "bundle/record.json").exists, 60, "the watchdog's record")
    wait_until(lambda: not (folder / "parts").exists(), 10, "the watchdog's end")
    record = _record(folder)
    assert record["status"] == "excluded"
    assert "controller-killed" in record["exclusion"]["codes"]
    _check_gone(program, folder)
    verified = program("verify", str(folder), "--json")
    assert verified.returncode == 0, verified.stdout


@pytest.mark.parametrize(
    ("phase", "number"), [("seal", signal.SIGTERM), ("train", signal.SIGINT), ("raw", signal.SIGINT)]
)
def test_interrupted(program: Program, phase: str, number: signal.Signals) -> None:
    overrides, reached = PHASES[phase]
    process = _start(program, overrides)
    wait_until(lambda: reached(program), 60, f"phase {phase}")
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert "Traceback" not in err
    folder = _folder(program)
    assert folder is not None
    record = _record(folder)
    assert record["status"] == "excluded"
    assert "interrupted" in record["exclusion"]["codes"]
    _check_gone(program, folder)


def test_ctrl_c_during_release_does_not_stop_it(program: Program) -> None:
    process = _start(program, [*TINY, "duration=0.5"])
    wait_until(lambda: _part(program, "legs/s001-protected/launch.json"), 90, "the last leg")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    folder = _folder(program)
    assert folder is not None
    # Early, it interrupts; late, it is answered with a word. Either way the run is released and recorded.
    assert process.returncode in (0, 1), err
    assert _record(folder)["status"] in ("verified", "excluded")
    _check_gone(program, folder)


def test_a_killed_supervisor_is_an_excluded_row(program: Program) -> None:
    process = _start(program, PROTECTED)
    wait_until(lambda: _events(program, "progress"), 60, "training")
    folder = _folder(program)
    assert folder is not None
    name = json.loads((folder / "run.json").read_bytes())["name"]
    for pid in processes_of(f"{name}/runtime-"):
        subprocess.run(["kill", "-9", str(pid)], check=False)
    # Nobody writes a result file any more; an interrupt ends the wait.
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert _record(folder)["status"] == "excluded"
    _check_gone(program, folder)
