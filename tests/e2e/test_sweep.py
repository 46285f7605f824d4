"""A sweep through joblib's launcher, over a fake provider: however it is ended, no machine of it is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import processes_of, wait_until
from tests.e2e.test_cloud import SHORT, Rents, codes, renting

pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
# Seven processes, each a Python that imports much: seconds alone, minutes beside other tests.
pytestmark = [pytest.mark.train, pytest.mark.slow, pytest.mark.timeout(400)]

JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "provider=runpod"]


@pytest.fixture
def runpod(tmp_path: Path) -> Iterator[Rents]:
    with renting("runpod", tmp_path) as program:
        yield program


def started(runpod: Rents, *words: str) -> subprocess.Popen[str]:
    """A sweep in a process group of its own, as a shell starts it; its stderr goes to a file."""
    with (runpod.runs.parent / "stderr").open("w") as err:
        return subprocess.Popen(
            [sys.executable, "-m", "glasshouse", "-m", "--out", str(runpod.runs), *SHORT, *JOBLIB, *words],
            cwd=runpod.root, env=runpod.environment, stdout=err, stderr=err, text=True, process_group=0,
        )  # fmt: skip


def workers_of(process: subprocess.Popen[str]) -> set[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return set(map(int, children)) & set(processes_of("LokyProcess"))


def said(runpod: Rents) -> str:
    return (runpod.runs.parent / "stderr").read_text()


def records(runpod: Rents) -> list[dict]:
    return [json.loads(path.read_bytes()) for path in runpod.runs.glob("2*/bundle/record.json")]


def check_settled(runpod: Rents, cells: int) -> None:
    """Every cell that was begun is an excluded row, and nothing is left, not even a process."""
    wait_until(lambda: len(records(runpod)) == cells, 60, "a row for every cell that was begun")
    wait_until(lambda: not processes_of(str(runpod.runs)), 60, "the end of all processes")
    state = runpod.state()
    assert (state["active"], state["foreignActive"]) == (0, state["foreign"])
    assert json.loads(runpod("reap", "--json").stdout)["allocations"] == []


@pytest.mark.parametrize(
    "how",
    [
        "ctrl-c twice",
        "parent killed",
        pytest.param("ctrl-c", marks=pytest.mark.soak),
        pytest.param("sigterm", marks=pytest.mark.soak),
    ],
)
def test_a_sweep_that_is_ended_loses_no_machine(runpod: Rents, how: str) -> None:
    runpod.fault("boot-stuck", 9)
    process = started(runpod, "repeat=0,1,2")
    try:
        wait_until(lambda: runpod.state()["created"] == 2, 150, "two machines")
        workers = workers_of(process)
        assert len(workers) == 2
        if how == "parent killed":
            process.kill()
        elif how == "sigterm":
            process.terminate()
        else:
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        if how == "ctrl-c twice":
            wait_until(lambda: "interrupted: the cells give back" in said(runpod), 30, "a word")
            os.killpg(process.pid, signal.SIGINT)
        code = process.wait(150)
        if how != "parent killed":
            # 130 says that nothing is left: at this moment, not in a while.
            assert (code, runpod.state()["active"]) == (130, 0), said(runpod)
    finally:
        process.kill()
        process.wait(30)
    check_settled(runpod, 2)
    wait_until(lambda: not workers & set(processes_of("LokyProcess")), 60, "the end of the workers")
    assert runpod.state()["created"] == 2
    if how != "ctrl-c twice":
        assert all("interrupted" in codes(record) for record in records(runpod))


@pytest.mark.soak
def test_no_module_of_the_working_folder_ends_a_worker(runpod: Rents, tmp_path: Path) -> None:
    runpod.fault("create-balance", 9)
    (tmp_path / "random.py").write_text("raise SystemExit('not the module that was meant')\n")
    # As an installed program is started: without the working folder on its path.
    program = f"import sys; sys.path.append({str(runpod.root)!r}); from glasshouse.cli import main; main()"
    entry = f"model.entry={runpod.root}/tests/e2e/workloads/clocked.py:Clocked"
    words = ["-m", "--out", str(runpod.runs), *SHORT, *JOBLIB, entry, "repeat=0,1"]
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, *words],
        cwd=tmp_path, env=runpod.environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ["balance" in codes(record) for record in records(runpod)] == [True, True], done.stderr


def test_no_cell_rents_beside_a_machine_that_may_be_left(runpod: Rents) -> None:
    runpod.fault("boot-exit", 9)
    runpod.fault("delete-noop", 999)
    process = started(runpod, "repeat=0,1,2,3", "hydra.launcher.n_jobs=1")
    assert process.wait(120) == 4, said(runpod)
    assert runpod.state()["created"] == 1
    assert said(runpod).count("not started: ") == 3
    (name,) = [path.name for path in runpod.runs.glob("2*")]
    last = said(runpod).strip().splitlines()[-1]
    assert "CLEAN-UP NOT PROVEN" in last
    assert name in last
