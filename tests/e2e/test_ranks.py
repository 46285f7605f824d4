"""Two ranks on one machine, through the whole lifecycle: one key released, every rank fed in memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.conftest import Program
from tests.e2e.test_workloads import run

pytestmark = [pytest.mark.train, pytest.mark.slow]

# As a torchrun script does it: nothing in it knows how its ranks were started.
DDP = """
import os
import torch
from torch.nn.parallel import DistributedDataParallel

class Workload:
    unit, steps_per_unit = "steps", 1

    def __init__(self, params, files, device):
        torch.distributed.init_process_group("gloo")
        rank = torch.distributed.get_rank()
        torch.manual_seed(1)
        self.model = DistributedDataParallel(torch.nn.Sequential(
            torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 16)))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        generator = torch.Generator().manual_seed(rank)  # each rank has rows of its own
        self.rows = torch.randn(64, 16, generator=generator)
        self.info = {"worldSize": torch.distributed.get_world_size()}
        self.last = None
        if rank == 1 and params.get("fault"):
            raise RuntimeError("rank 1 gives up")

    def run_unit(self):
        loss = (self.model(self.rows) - self.rows).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.last = loss.detach()

    def synchronize(self): pass
    def loss(self): return float("nan") if self.last is None else float(self.last)
    def trainable(self): return {name: value.detach() for name, value in self.model.module.named_parameters()}
    def buffers(self): return [self.rows, *self.model.parameters()]
"""


def custom(program: Program, tmp_path: Path, *overrides: str) -> tuple[int, dict, Path, str]:
    (tmp_path / "ddp.py").write_text(DDP)
    entry = f"model.entry={tmp_path}/ddp.py:Workload"
    return run(program, "model=custom", "payload=public", entry, "gpu=cpu", "gpu.count=2", *overrides)


def events(folder: Path, leg: str) -> list[dict]:
    return [
        json.loads(line) for line in (folder / "bundle/legs" / leg / "events.jsonl").read_bytes().splitlines()
    ]


@pytest.mark.soak  # half a minute of two processors; the MLP's ranks below stay
def test_ddp_on_two_ranks_in_both_arms(program: Program, tmp_path: Path) -> None:
    code, record, folder, err = custom(
        program, tmp_path, "duration=null", "steps=30", "measure.warmup_sec=0.0"
    )
    assert code == 0, err
    assert record["status"] == "verified"
    chain = events(folder, "s001-protected")
    assert [event["type"] for event in chain].count("released") == 1
    results = {
        "raw": json.loads((folder / "bundle/legs/s000-raw/result.json").read_bytes()),
        "protected": next(event["body"]["result"] for event in chain if event["type"] == "trained"),
    }
    for result in results.values():
        assert result["unitInfo"] == {"worldSize": 2, "ranks": 2}
        assert result["steps"] == 30
    # Equal steps from equal seeds: gradients of both ranks went into both arms' weights.
    assert results["raw"]["outputSha256"] == results["protected"]["outputSha256"]
    zeroized = chain[-1]["body"]
    assert zeroized["buffers"]["ranks"]["readBackZero"]
    assert zeroized["buffers"]["ranks"]["count"] == 5
    # Nobody scanned rank 1 from outside, and the row says so.
    assert zeroized["residue"] == "not-scanned"
    assert zeroized["trainerExit"] == 0
    assert zeroized["straysKilled"] == 0
    assert not program.pods()


@pytest.mark.soak
def test_a_rank_that_gives_up_ends_the_leg_at_once(program: Program, tmp_path: Path) -> None:
    code, record, folder, err = custom(
        program,
        tmp_path,
        "duration=0.3",
        "+model.params.fault=true",
        "order=protected-only",
        "payload=private",
    )
    assert code == 1
    assert "workload-error" in record["exclusion"]["codes"]
    assert f"glasshouse open {folder}" in err
    done = program("open", str(folder), "--to", str(tmp_path / "opened"))
    assert done.returncode == 0, done.stderr
    (log,) = (tmp_path / "opened").glob("*trainer.log")
    assert "RuntimeError: rank 1 gives up" in log.read_text()


def test_the_mlp_shares_its_batch(program: Program) -> None:
    code, record, _, err = program.run("gpu=cpu", "gpu.count=2", "duration=null", "steps=40")
    assert code == 0, err
    assert record["status"] == "verified"
    assert record["figures"]["raw"]["steps"] == record["figures"]["protected"]["steps"] == 40
