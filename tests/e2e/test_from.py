"""A job that loses its machine goes on from its last checkpoint, and ends as if nothing had been."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Program, processes_of, wait_until
from tests.e2e.test_cloud import renting
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
        with contextlib.suppress(ProcessLookupError):  # one that ended with another just before
            os.kill(pid, signal.SIGKILL)


def weights(folder: Path) -> dict[str, list[float]]:
    import torch

    return {name: value.tolist() for name, value in torch.load(folder / "final.pt").items()}


def checkpoints(program: Program) -> list[Path]:
    return sorted(program.runs.glob("2*/checkpoints/s000-1/*.sealed"))


def resumed(program: Program, words: list[str], *more: str) -> tuple[dict[str, Any], Path]:
    """Run to the end; the record, and where its outputs are opened."""
    done = program("run", "--json", "--out", str(program.runs), *words, *more)
    assert done.stdout, done.stderr
    record = json.loads(done.stdout)["runs"][0]
    assert (done.returncode, record["status"]) == (0, "verified"), done.stderr
    folder = Path(record["folder"])
    assert program("open", str(folder), "--json").returncode == 0
    return record, folder / "opened"


MLP = ["model=mlp", "model.inputs=32", "model.hidden=64", "model.batch=64", "model.batches_per_epoch=20"]
QWEN = ["model=qwen2-tiny"]


@pytest.mark.parametrize(
    ("model", "steps"),
    [(MLP, 8000), pytest.param(QWEN, 300, marks=pytest.mark.soak)],
    ids=["mlp", "qwen2-tiny"],
)
def test_a_built_in_model_ends_bit_for_bit_as_if_nothing_had_been(
    program: Program, model: list[str], steps: int
) -> None:
    private = ["measure=quick", "order=protected-only", "payload=private", "gpu=cpu", f"steps={steps}"]
    whole, there = resumed(program, [*model, *private, *JOB])
    point = checkpoints(program)[0]  # of the two that are kept, the older: made on the way
    again, here = resumed(program, [f"from={whole['run']}@{int(point.stem)}", "model.checkpoint_min=0"])
    chain = again["figures"]["chain"]
    assert (chain["runs"], chain["number"], chain["steps"]) == ([whole["run"]], int(point.stem), steps)
    assert 0 < again["figures"]["protected"]["steps"] < steps
    assert (here / "s000-1.safetensors").read_bytes() == (there / "s000-1.safetensors").read_bytes()
    assert program("verify", again["folder"]).returncode == 0


@pytest.mark.soak
def test_a_project_goes_on_where_it_was_and_ends_with_the_same_weights(
    program: Program, tmp_path: Path
) -> None:
    mine = project(tmp_path / "mine", {"train.py": LOOP})
    there = replace(program, variables=(("LOOP_STOP", "90"),))
    settings = ["model=project", f"model.folder={mine}", "model.outputs=out", "model.env=[LOOP_STOP]", *JOB]
    out = ["run", "--json", "--out", str(program.runs)]
    process = there.start(*out, *settings, "--", "python", "train.py")
    wait_until(lambda: bool(checkpoints(program)), 90, "a checkpoint at home")
    kill_pod(program)
    said, err = process.communicate(timeout=120)
    first = json.loads(said)["runs"][0]
    assert first["status"] == "excluded", err
    assert program.pods() == []

    second = there(*out, f"from={first['run']}")
    record = json.loads(second.stdout)["runs"][0]
    assert (second.returncode, record["status"]) == (0, "verified"), second.stderr
    chain = record["figures"]["chain"]
    assert (chain["runs"], chain["steps"]) == ([first["run"]], 100)
    assert 0 < record["figures"]["protected"]["steps"] < 100
    plain = tmp_path / "plain"
    plain.mkdir()
    subprocess.run(
        [sys.executable, str(mine / "train.py")], cwd=plain, check=True, env={**os.environ, "LOOP_STOP": "0"}
    )
    assert weights(opened(program, Path(record["folder"]), tmp_path / "opened")) == weights(plain / "out")
    assert program("verify", record["folder"]).returncode == 0


COUNT = """
import os, pathlib, time

out = pathlib.Path("out")
out.mkdir(exist_ok=True)
file = out / "count"
count = int(file.read_text()) if file.exists() else 0
print("begins at", count)
if count:
    (out / "ends").write_text(f"went on at {count}")
    raise SystemExit
for number in range(1, 3000):
    (out / "new").write_text(str(number))
    (out / "new").rename(file)
    time.sleep(0.2 if number < 12 else 60)
"""


@pytest.mark.soak
def test_an_interruptible_machine_that_is_taken_away_is_replaced(tmp_path: Path) -> None:
    mine = project(tmp_path / "mine", {"count.py": COUNT})
    with renting("vastai", tmp_path) as program:
        cloud = program.server.cloud
        process = program.start(
            *("run", "--json", "--out", str(program.runs), "provider=vastai", "provider.interruptible=true"),
            *(
                "gpu=a4000",
                "model=project",
                f"model.folder={mine}",
                "model.outputs=out",
                "model.max_hours=0.2",
            ),
            *("model.checkpoint_min=0.02", "measure.head_interval_sec=0.3", "provider.request_timeout_sec=1"),
            *("--", "python", "count.py"),
        )
        wait_until(lambda: bool(checkpoints(program)), 90, "a checkpoint at home")
        (machine,) = [pod for pod in cloud.living() if not pod.foreign]
        cloud.take_away(machine.id)
        said, err = process.communicate(timeout=150)
        lost, went_on = json.loads(said)["runs"]
        # The fake's GPU is a name with nothing behind it, and a confined job finds none.
        assert set(went_on["exclusion"]["codes"]) <= {"same-machine-not-proven", "gpu-not-as-asked"}, err
        assert process.returncode == 1
        assert "machine-taken-away" in lost["exclusion"]["codes"]
        assert went_on["figures"]["chain"]["runs"] == [lost["run"]]
        assert "another machine takes its place (1 of at most 2" in err
        there = opened(program, Path(went_on["folder"]), tmp_path / "opened")
        assert (there / "ends").read_text().startswith("went on at ")
        assert program.state()["created"] == 2
        program.settled()
