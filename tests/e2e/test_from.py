"""A job that loses its machine goes on from its last checkpoint on another one, and ends as if nothing had been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import Program, processes_of, wait_until
from tests.e2e.test_project import opened, project

pytestmark = [pytest.mark.train, pytest.mark.slow]

# Saves every few steps, and goes on from what it finds; with LOOP_SEC a step takes so long.
LOOP = """
import os, pathlib, time
import torch

out = pathlib.Path("out")
out.mkdir(exist_ok=True)
torch.manual_seed(3)
torch.use_deterministic_algorithms(True)
model = torch.nn.Linear(16, 16)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
begin, saved = 0, out / "latest" / "state.pt"
if saved.exists():
    state = torch.load(saved)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    begin = state["step"]
print("begins at", begin)
for step in range(begin, 100):
    generator = torch.Generator().manual_seed(step)
    loss = model(torch.randn(8, 16, generator=generator)).pow(2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if (step + 1) % 10 == 0:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
        writing = out / f"writing-{step}"
        writing.mkdir()
        torch.save(state, writing / "state.pt")
        latest = out / "latest"
        if latest.exists():
            latest.rename(out / f"old-{step}")
        writing.rename(latest)
        for old in out.glob("old-*"):
            (old / "state.pt").unlink()
            old.rmdir()
    if step + 1 == int(os.environ.get("LOOP_STOP", 0)) and begin == 0:
        time.sleep(600)
torch.save(model.state_dict(), out / "final.pt")
"""
JOB = ["measure.head_interval_sec=0.3", "model.checkpoint_min=0.02", "provider.threads=1"]


def kill_pod(program: Program) -> None:
    """End every process of the pod at once, as a machine that is taken away does."""
    (pod,) = program.pods()
    for pid in processes_of(pod.name):
        os.kill(pid, signal.SIGKILL)


def weights(folder: Path) -> dict[str, list[float]]:
    import torch  # noqa: PLC0415

    return {name: value.tolist() for name, value in torch.load(folder / "final.pt").items()}


def checkpoints(program: Program) -> list[Path]:
    return sorted(program.runs.glob("2*/checkpoints/s000-1/*.sealed"))


def test_a_project_goes_on_where_it_was_and_ends_with_the_same_weights(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = project(tmp_path / "mine", {"train.py": LOOP})
    words = ["run", "--json", "--out", str(program.runs), "model=project", f"model.folder={mine}", "model.outputs=out"]
    monkeypatch.setenv("LOOP_STOP", "90")
    process = Program(program.home, program.runs, variables=(("LOOP_STOP", "90"),)).start(
        *words, *JOB, "model.env=[LOOP_STOP]", "--", "python", "train.py"
    )
    wait_until(lambda: bool(checkpoints(program)), 60, "a checkpoint at home")
    wait_until(lambda: len(checkpoints(program)) > 0 and checkpoints(program)[-1].stat().st_size > 0, 20, "whole")
    import time  # noqa: PLC0415

    time.sleep(3)
    kill_pod(program)
    out, err = process.communicate(timeout=120)
    print(err)
    print(out[-3000:])
    first = json.loads(out)["runs"][0]
    assert first["status"] == "excluded"
    assert program.pods() == []
    print(program("show", first["run"], "--out", str(program.runs)).stdout)
    print(list((Path(first["folder"]) / "checkpoints").rglob("*")))
    second = Program(program.home, program.runs, variables=(("LOOP_STOP", "90"),))(
        "run", "--json", "--out", str(program.runs), f"from={first['run']}"
    )
    print(second.stderr)
    record = json.loads(second.stdout)["runs"][0]
    print(record["figures"])
    assert second.returncode == 0
    there = opened(program, Path(record["folder"]), tmp_path / "opened")
    plain = tmp_path / "plain"
    plain.mkdir()
    subprocess.run([os.sys.executable, str(mine / "train.py")], cwd=plain, check=True, env={**os.environ, "LOOP_STOP": "0"})
    assert weights(there) == weights(plain / "out")
