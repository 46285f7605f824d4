"""Ranks: forked from rank 0, joined over gloo, in step, wiped and reaped; the same step as one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.train, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]

# Each case in a fresh process: ranks are forked before torch is imported, as in a leg.
COMMON = """
import json, os, sys
from glasshouse.canonical import record_json
from glasshouse.errors import LegError
from glasshouse.runtime import harness
from glasshouse.runtime.session import Stretch
from glasshouse.workloads.package import prepare
from tests.workloads.conftest import in_memory, load_model

said = []
def run(payload, ranks, steps=6, warmup=0.0):
    return harness.run(
        harness.Workload(payload.files, in_memory(payload), payload.builder),
        stretch=Stretch(warmup, None, steps), device="cpu", allocation="a", salt=b"s" * 32, blind=bytes(32),
        report=lambda kind, body: said.append((kind, body)), ranks=ranks,
    )

def payload_of(name, **changes):
    from glasshouse import config
    spec = config.validate(config.resolved([f"model={name}", "gpu=cpu"]))
    return prepare(spec.model_copy(update={"model": load_model(name, **changes)}))
"""


def in_process(script: str, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMMON + textwrap.dedent(script), *arguments],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "TMPDIR")},
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


SAME_STEP = """
name, changes = sys.argv[1], json.loads(sys.argv[2])
payload = payload_of(name, **changes)
two, result = run(payload, 2)
weights = {key: value.tolist() for key, value in two.trainable().items()}
children = open(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read().split()
ended = record_json(two.end_ranks())
os.environ["WORLD_SIZE"] = "1"
one, alone = run(payload, 1)
import torch
far = max(float((torch.tensor(weights[key]) - value).abs().max()) for key, value in one.trainable().items())
moved = max(float(value.abs().max()) for value in one.trainable().values())
print(json.dumps({
    "far": far, "moved": moved, "children": len(children), "ended": ended, "info": result.unit_info,
    "flops": [result.unit_info["flopsPerUnit"], alone.unit_info["flopsPerUnit"]],
    "losses": [result.final_loss, alone.final_loss], "ranks": alone.unit_info.get("ranks"),
}))
"""


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("mlp", {"inputs": 16, "hidden": 24, "batch": 32, "batches_per_epoch": 3}),
        pytest.param("qwen2-tiny", {"batch": 2, "max_length": 16, "examples": 5}, marks=pytest.mark.soak),
    ],
)
def test_two_ranks_take_the_step_of_one_process(model: str, changes: dict[str, int]) -> None:
    found = in_process(SAME_STEP, model, json.dumps(changes))
    assert found["far"] < 1e-4 * found["moved"]
    assert found["losses"][0] == pytest.approx(found["losses"][1], rel=1e-4)
    assert found["children"] == 1
    assert found["ended"]["readBackZero"]
    assert found["ended"]["count"] > 5
    assert found["info"]["ranks"] == 2
    assert found["ranks"] is None
    assert found["flops"][0] == found["flops"][1]


ENDS = """
import pathlib
from tests.e2e.test_ranks import DDP
from tests.specs import make_spec
from tests.workloads.conftest import custom

kind, steps, warmup, folder = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), pathlib.Path(sys.argv[4])
if kind == "ddp":
    (folder / "ddp.py").write_text(DDP)
    payload = prepare(make_spec(model=custom(folder / "ddp.py"), payload="public"))
else:
    payload = payload_of("mlp", inputs=16, hidden=24, batch=32, batches_per_epoch=3)
session, result = run(payload, 2, steps, warmup)
ended = record_json(session.end_ranks())
print(json.dumps({"end": [result.initial_digest, result.output_sha256], "steps": result.steps,
                  "undone": result.undone_units, "zero": ended["readBackZero"]}))
"""


@pytest.mark.parametrize(
    ("kind", "steps"),
    [("mlp", 7), pytest.param("ddp", 5, marks=pytest.mark.soak)],
)
def test_every_rank_undoes_its_warm_up(kind: str, steps: int, tmp_path: Path) -> None:
    """7 steps of an MLP with units of three: two units and a part. The other makes its group anew."""
    warm = in_process(ENDS, kind, str(steps), "0.3", str(tmp_path))
    cold = in_process(ENDS, kind, str(steps), "0", str(tmp_path))
    assert warm["undone"] > 0
    assert cold["undone"] is None
    assert warm["steps"] == cold["steps"] == steps
    assert warm["end"] == cold["end"]
    assert warm["zero"]
    assert cold["zero"]


FAILING = """
from glasshouse.runtime import ranks
import time

class Session:
    def __init__(self):
        self.rank = int(os.environ["RANK"])
        if self.rank == 1 and sys.argv[1] == "build":
            raise KeyError("mine")
    def run_unit(self):
        if self.rank == 1:
            raise LegError("no", code="non-finite-loss")

read, write = os.pipe()
def report(kind, body):
    os.write(write, json.dumps([kind, body]).encode() + b"\\n")
code = None
try:
    session = ranks.build(Session, 3, report, None)
    session.run_unit()
except Exception as error:
    code = type(error).__name__
said = os.read(read, 1000).decode().splitlines()
print(json.dumps({"said": [json.loads(line) for line in said], "code": code}))
"""


@pytest.mark.parametrize(("when", "code"), [("build", "workload-error"), ("unit", "non-finite-loss")])
def test_a_rank_that_fails_says_so_past_rank_0(when: str, code: str) -> None:
    found = in_process(FAILING, when)
    assert ["failed", {"code": code}] in found["said"]
    assert found["code"] == ("ChannelClosedError" if when == "build" else None)


KILLED = """
from glasshouse.runtime import ranks
import signal, threading, time

class Session:
    def run_unit(self):
        time.sleep(600)  # as rank 0 waits in a collective for one that is no more

read, write = os.pipe()
def report(kind, body):
    os.write(write, json.dumps([kind, body]).encode())
session = ranks.build(Session, 2, report, None)
threading.Thread(target=session.run_unit, daemon=True).start()
(child,) = open(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read().split()
os.kill(int(child), signal.SIGKILL)
print(os.read(read, 1000).decode())
"""


def test_a_rank_that_is_killed_is_reported_whatever_rank_0_waits_for() -> None:
    assert in_process(KILLED) == ["failed", {"code": "rank-failed"}]


def test_a_batch_that_cannot_be_shared_is_refused_before_anything_starts() -> None:
    from glasshouse import config
    from glasshouse.errors import UsageError
    from glasshouse.workloads.package import prepare

    with pytest.raises(UsageError, match=r"a batch of 1 cannot be shared equally \(gpu\.count=2\)"):
        prepare(config.load(["model=qwen2-tiny", "gpu.count=2"]))
    assert prepare(config.load(["model=qwen2-tiny", "gpu.count=2", "model.batch=4"]))
