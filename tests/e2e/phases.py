"""Phases of a run as they can be seen from outside, and what must hold when one was ended there."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.e2e.conftest import PACED, Program, processes_of

RUN = [*PACED, "duration=20", "order=raw-first"]
PROTECTED = [*PACED, "duration=20", "order=protected-first"]


def run_folder(program: Program) -> Path | None:
    found = sorted(program.runs.glob("2*")) if program.runs.exists() else []
    return found[0] if found else None


def has_part(program: Program, name: str) -> bool:
    folder = run_folder(program)
    return folder is not None and bool(list(folder.glob(f"parts/{name}")))


def seen_event(program: Program, kind: str) -> bool:
    folder = run_folder(program)
    if folder is None:
        return False
    needle = f'"type":"{kind}"'
    return any(needle in path.read_text() for path in folder.glob("parts/legs/*/events.jsonl"))


def on_pod(program: Program, pattern: str) -> bool:
    return any(bool(list(pod.glob(f"home/*/{pattern}"))) for pod in program.pods())


# phase -> (overrides, what is seen when the run is in it)
PHASES: dict[str, tuple[list[str], Callable[[Program], bool]]] = {
    "boot": (RUN, lambda program: bool(program.pods())),
    "seal": (RUN, lambda program: has_part(program, "allocation.json")),
    "attest": (PROTECTED, lambda program: on_pod(program, "legs/*/events.jsonl")),
    "train": (PROTECTED, lambda program: seen_event(program, "progress")),
    "raw": (RUN, lambda program: on_pod(program, "legs/*/progress.jsonl")),
    "raw-folder": (RUN, lambda program: on_pod(program, "raw/*")),
}


def check_gone(program: Program, folder: Path) -> None:
    name = json.loads((folder / "run.json").read_bytes())["name"]
    assert processes_of(name) == []
    assert program.pods() == []
    assert not list(Path("/dev/shm").glob(f"{name}*"))
    assert not (folder / "package.sealed").exists()
    reap = program("reap", "--json")
    assert reap.returncode == 0
    assert json.loads(reap.stdout)["allocations"] == []


def read_record(folder: Path) -> dict:
    return json.loads((folder / "bundle/record.json").read_bytes())


def start(program: Program, overrides: list[str]) -> subprocess.Popen[str]:
    return program.start("run", "--out", str(program.runs), *overrides)
