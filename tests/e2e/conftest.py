"""Whole runs, started as a person would: the program as a process, in a home of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
QUICK = [
    "measure=quick",
    "measure.warmup_sec=0.2",
    "measure.head_interval_sec=0.3",
    # Others run tests beside this one: a unit of a busy moment is a large part of half a second.
    "measure.duration_tolerance_pct=50",
    "order=raw-first",
]
# Small enough to be quick, real in every other way. 64-unit layers train in about a millisecond.
TINY = [*QUICK, "model.inputs=32", "model.hidden=64", "model.batch=64"]
# For tests of what happens around the training: no torch, whose import takes each leg two seconds.
CLOCKED = [
    "model=custom",
    "payload=public",
    "model.entry=tests/e2e/workloads/clocked.py:Clocked",
    "+model.params.unit_ms=2",
]
PACED = [*QUICK, *CLOCKED]


@dataclass(frozen=True)
class Program:
    """The program with a home and a runs folder of its own."""

    home: Path
    runs: Path
    root: Path = ROOT  # the checkout it runs from
    variables: tuple[tuple[str, str], ...] = ()  # of its environment, beside the usual

    @property
    def environment(self) -> dict[str, str]:
        kept = ("PATH", "HOME", "LANG", "TMPDIR", "VIRTUAL_ENV")
        found = {name: os.environ[name] for name in kept if name in os.environ}
        return {**found, "GLASSHOUSE_HOME": str(self.home), "PYTHONUNBUFFERED": "1", **dict(self.variables)}

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "glasshouse", *words],
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *words: str, timeout: float = 150) -> subprocess.CompletedProcess[str]:
        process = self.start(*words)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
            pytest.fail(f"{words} did not end in {timeout} s:\n{err}")
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def run(self, *overrides: str) -> tuple[int, dict, Path, str]:
        """Run one cell; (exit code, record, run folder, stderr)."""
        done = self("run", "--json", "--out", str(self.runs), *TINY, *_threads(overrides), *overrides)
        document = json.loads(done.stdout)
        record = document["runs"][0]
        return done.returncode, record, Path(record["folder"]), done.stderr

    def pods(self) -> list[Path]:
        """What is left of local pods."""
        place = self.home / "state" / "pods"
        return sorted(place.iterdir()) if place.exists() else []


def _threads(overrides: Sequence[str]) -> list[str]:
    """One thread on local pods: tests run side by side, and a parallel region waits for its slowest part."""
    return [] if any(word.startswith("provider=") for word in overrides) else ["provider.threads=1"]


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path / "home", tmp_path / "runs")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Program, Path, dict]:
    """One verified run that several tests look at; they copy before they change."""
    base = tmp_path_factory.mktemp("finished")
    program = Program(base / "home", base / "runs")
    code, record, folder, err = program.run("duration=1.5")
    assert code == 0, err
    return program, folder, record


def processes_of(text: str) -> list[int]:
    """Pids of every process whose command line holds `text`, ourselves apart."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if text.encode() in command:
                found.append(int(entry.name))
    return found


def kill_with_watchdog(process: subprocess.Popen[str], folder: Path) -> None:
    """Kill a controller and its run's watchdog, so that nobody is left to finish the run in `folder`."""
    process.send_signal(signal.SIGSTOP)  # or it would start another watchdog
    for pid in processes_of(str(folder)):
        with contextlib.suppress(OSError):  # it may have ended by itself
            if b"watchdog_start" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
    process.kill()
    process.communicate()


def wait_until(holds: Callable[[], bool], seconds: float, what: str) -> None:
    """Poll; fail the test when it does not come true."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds} s: {what}")
        time.sleep(0.05)
