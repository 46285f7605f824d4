"""What is counted of a project's optimizer steps, and what is sampled of its weights: by torch itself."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from glasshouse.canonical import MAX_SAFE_INTEGER
from glasshouse.runtime import jobs
from glasshouse.runtime.steps import Board, Seen, differing

ROOT = Path(__file__).parents[2]

# Runs each code as a project's command in a child, those that say so before torch is loaded here.
DRIVER = """
import json, os, sys
from pathlib import Path
from glasshouse.runtime import run_command
from glasshouse.runtime.command import Command
from glasshouse.runtime.steps import Board

def run(code):
    board = Board(1)
    pid = os.fork()
    if pid == 0:
        os._exit(run_command.run(Command("code", code), Path.cwd(), {}, None, board.counter(0)))
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    seen = board.read()[0]
    return {"code": code, "steps": seen.steps, "total": seen.total, "unable": seen.unable,
            "first": seen.first and seen.first.hex(), "last": seen.last and seen.last.hex()}

found = {}
codes = json.loads(sys.stdin.read())
for name, code in codes.items():
    if not name.startswith("cold"):
        import torch._dynamo  # as the first optimizer of a process does, which takes its time
    found[name] = run(code)
print("found" + json.dumps(found))
"""
BEGIN = """
import os, sys, torch
torch.manual_seed(0)
model = torch.nn.Linear(4, 4)
rows = torch.ones(2, 4)
def go(optimizer, steps, step=None):
    for _ in range(steps):
        optimizer.zero_grad()
        model(rows).square().sum().backward()
        (step or optimizer.step)()
def adam(**more):
    return torch.optim.AdamW(model.parameters(), lr=0.01, **more)
"""
CODES = {
    "cold: no torch": "import sys; sys.exit(4 if 'torch' in sys.modules else 3)",
    "cold: a loop": BEGIN + "go(adam(), 7)",
    "cold: its traces": """
import sys
finders = [finder for finder in sys.meta_path if not type(finder).__module__.startswith("glasshouse")]
import torch
waiting = [finder for finder in sys.meta_path if finder not in finders]
assert [finder._name for finder in waiting] == ["transformers.trainer_callback"], sys.meta_path
assert "exec_module" not in vars(sys.modules["torch.optim.optimizer"].__loader__)
""",
    "loaded already": BEGIN + "optimizer = adam()\ngo(optimizer, 7)",
    "torch, and no step": BEGIN + "adam()",
    "nothing learnt": BEGIN + "go(torch.optim.SGD(model.parameters(), lr=0.0), 3)",
    "two optimizers": BEGIN + "go(adam(), 3); go(torch.optim.SGD(model.parameters()), 4)",
    "accumulated": BEGIN + """
optimizer = adam()
for batch in range(12):
    model(rows).sum().backward()
    if batch % 4 == 3:
        optimizer.step(); optimizer.zero_grad()
""",
    "a subclass's": BEGIN + """
class Mine(torch.optim.SGD):
    def step(self, closure=None):
        return super().step(closure)
go(torch.optim.SGD(model.parameters()), 2)
go(Mine(model.parameters()), 5)
""",
    "a closure": BEGIN + """
optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
def closure():
    optimizer.zero_grad(); loss = model(rows).square().sum(); loss.backward(); return loss
for _ in range(4):
    optimizer.step(closure)
""",
    "an overflow": BEGIN + """
optimizer, scaler = adam(), torch.amp.GradScaler("cpu")
for number in range(5):
    optimizer.zero_grad()
    scaler.scale(model(rows).sum()).backward()
    if number == 2:
        model.weight.grad.fill_(float("inf"))
    scaler.step(optimizer); scaler.update()
""",
    "a schedule": BEGIN + """
def main():
    optimizer = adam()
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    go(optimizer, 4); schedule.step(); go(optimizer, 2)
main()
""",
    "a step that fails": BEGIN + """
optimizer = adam()
go(optimizer, 2)
def closure():
    raise KeyError("of the project")
try:
    optimizer.step(closure)
except KeyError as error:
    assert error.args == ("of the project",)
go(optimizer, 3)
""",
    "killed": BEGIN + "go(adam(), 9)\nos.kill(os.getpid(), 9)",
    "left": BEGIN + "go(adam(), 9)\nos._exit(5)",
    "raised": BEGIN + "go(adam(), 9)\nraise SystemExit(6)",
    "workers": BEGIN + """
from torch.utils.data import DataLoader
optimizer = adam()
go(optimizer, 2)
def fetch(rows):
    go(optimizer, 5); go(adam(), 5)
    return rows
print(len(list(DataLoader(range(8), num_workers=2, collate_fn=fetch, multiprocessing_context="fork"))))
if os.fork() == 0:
    go(optimizer, 5)
    sys.exit(0)
os.wait()
go(optimizer, 1)
""",
    "threads": BEGIN + """
import threading
optimizers = [torch.optim.SGD([torch.nn.Parameter(torch.ones(2))]) for _ in range(4)]
def work(one):
    for _ in range(500):
        one.step()
threads = [threading.Thread(target=work, args=(one,)) for one in optimizers]
[one.start() for one in threads]; [one.join() for one in threads]
""",
    "more than are sampled": BEGIN + """
kept = [adam() for _ in range(20)]
for one in kept:
    go(one, 1)
""",
    "freed by the collector": BEGIN + """
import gc
class Holder: pass
for _ in range(20):
    holder = Holder()
    model = torch.nn.Linear(4, 4)
    holder.own, holder.model, holder.optimizer = holder, model, adam()
    holder.optimizer.holder = holder
    go(holder.optimizer, 1)
    del holder, model
    gc.collect()
    model = None
""",
    "sparse": BEGIN + """
place = torch.nn.Parameter(torch.eye(3).to_sparse())
optimizer = torch.optim.SGD([place])
for _ in range(3): optimizer.step()
""",
    "meta": BEGIN + """
model, rows = model.to("meta"), rows.to("meta")
go(torch.optim.SGD(model.parameters()), 3)
""",
    "of a class of its own": BEGIN + """
class Odd(torch.nn.Parameter): pass
optimizer = torch.optim.SGD([Odd(torch.ones(3))])
for _ in range(3): optimizer.step()
""",
    "without memory": BEGIN + """
parameter = torch.nn.Parameter(torch.ones(1000))
optimizer = torch.optim.SGD([parameter])
parameter.untyped_storage().resize_(0)
for _ in range(3): optimizer.step()
""",
    "somebody looks": BEGIN + """
from torch.utils._python_dispatch import TorchDispatchMode
calls = []
class Looks(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        calls.append(str(func)); return func(*args, **(kwargs or {}))
optimizer = adam()
with Looks():
    go(optimizer, 1)
assert calls and not [call for call in calls if "slice" in call], calls
""",
    "all kinds of plain": BEGIN + """
kinds = [torch.ones(0), torch.ones(()), torch.ones(3, 0, 2), torch.ones(70000), torch.ones(20, 30, 40, 2).to(
    memory_format=torch.channels_last), torch.ones(50, 60).t(), torch.ones(3, 3, dtype=torch.bfloat16),
    torch.ones(2, dtype=torch.complex64), torch.ones([2] * 10), torch.ones(9, 9)[2:5, ::2]]
parameters = [torch.nn.Parameter(one) for one in kinds]
optimizer = torch.optim.SGD(parameters, lr=1.0)
parameters[-1].grad = torch.ones_like(parameters[-1])
for _ in range(3): optimizer.step()
""",
}  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return driven(CODES, tmp_path_factory.mktemp("steps"))


def driven(codes: dict[str, str], folder: Path, path: Path | None = None) -> dict[str, dict[str, Any]]:
    """What was seen of each code, run as a project's command by a process of its own."""
    ways = [str(ROOT), *([] if path is None else [str(path)])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(ways)}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER], cwd=folder, env=environment, input=json.dumps(codes),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen: dict[str, dict[str, Any]] = json.loads(done.stdout.rpartition("found")[2])
    strange = {name: one for name, one in seen.items() if one["code"] not in (0, 3, 5, 6, -9)}
    assert not strange, done.stderr
    assert "Exception ignored" not in done.stderr
    return seen


@pytest.mark.train
@pytest.mark.parametrize(
    ("name", "steps", "weights"),
    [
        ("cold: a loop", 7, "changed"), ("loaded already", 7, "changed"), ("torch, and no step", 0, "none"),
        ("nothing learnt", 3, "same"), ("two optimizers", 7, "changed"), ("accumulated", 3, "changed"),
        ("a subclass's", 7, "changed"), ("a closure", 4, "changed"), ("an overflow", 4, "changed"),
        ("a schedule", 6, "changed"), ("a step that fails", 5, "changed"),
        ("killed", 9, "no last"), ("left", 9, "no last"), ("raised", 9, "changed"),
        ("workers", 3, "changed"), ("threads", 2000, "same"), ("more than are sampled", 20, "changed"),
        ("freed by the collector", 20, "no last"),
        ("sparse", 3, "none"), ("meta", 3, "none"), ("of a class of its own", 3, "none"),
        ("without memory", 3, "none"), ("somebody looks", 1, "none"), ("all kinds of plain", 3, "changed"),
    ],
)  # fmt: skip
def test_steps_are_counted_and_weights_sampled(
    found: dict[str, dict[str, Any]], name: str, steps: int, weights: str
) -> None:
    one = found[name]
    assert (one["steps"], one["unable"]) == (steps, False)
    first, last = one["first"], one["last"]
    told = "none" if first is None else "no last" if last is None else "same" if first == last else "changed"
    assert told == weights
    assert first is None or len(first) == 64


@pytest.mark.train
def test_a_project_without_torch_loads_none_and_no_trace_is_left_of_how_it_is_noticed(
    found: dict[str, dict[str, Any]],
) -> None:
    unseen = dict.fromkeys(("steps", "total", "first", "last"))
    assert found["cold: no torch"] == {"code": 3, "unable": False, **unseen}
    assert found["cold: its traces"]["steps"] == 0


@pytest.mark.train
def test_equal_weights_give_equal_digests_and_other_ones_do_not(found: dict[str, dict[str, Any]]) -> None:
    assert found["cold: a loop"]["first"] == found["killed"]["first"] == found["accumulated"]["first"]
    assert found["cold: a loop"]["last"] == found["loaded already"]["last"]
    assert found["cold: a loop"]["last"] != found["raised"]["last"]  # after two steps more


LEARNS = (
    BEGIN
    + """
import hashlib, pathlib
layers = torch.nn.Sequential(torch.nn.Linear(4, 300), torch.nn.Dropout(), torch.nn.Linear(300, 4))
optimizer = torch.optim.AdamW(layers.parameters(), lr=0.01)
for _ in range(5):
    optimizer.zero_grad(); layers(torch.randn(8, 4)).square().sum().backward(); optimizer.step()
digest = hashlib.sha256(b"".join(one.detach().numpy().tobytes() for one in layers.parameters()))
digest.update(torch.get_rng_state().numpy().tobytes())
pathlib.Path(sys.argv[0] if len(sys.argv[0]) > 2 else "counted").write_text(digest.hexdigest())
"""
)


@pytest.mark.train
def test_training_and_its_random_numbers_are_the_same_with_a_count_and_without(tmp_path: Path) -> None:
    seen = driven({"learns": LEARNS}, tmp_path)["learns"]
    assert (seen["steps"], bool(seen["last"])) == (5, True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    (tmp_path / "learns.py").write_text(LEARNS.replace("sys.argv[0] if", '"plain" if'))
    subprocess.run([sys.executable, "learns.py"], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "counted").read_text() == (tmp_path / "plain").read_text()


COMPILED = (
    BEGIN
    + """
optimizer = adam()
def taken():
    optimizer.step()
go(optimizer, 4, torch.compile(taken, backend="eager"))
go(optimizer, 2, torch.compile(optimizer.step, backend="eager"))
fused = adam(fused=True)
compiled = torch.compile(model, backend="eager")
compiled(rows).sum().backward(); fused.step()
"""
)


@pytest.mark.train
@pytest.mark.soak  # dynamo takes its time; what is not compiled is counted above
def test_compiled_and_fused_steps_are_counted(tmp_path: Path) -> None:
    seen = driven({"compiled": COMPILED}, tmp_path)["compiled"]
    assert (seen["steps"], bool(seen["first"] and seen["last"])) == (7, True)


WRAPPED = (
    BEGIN
    + """
import torch.distributed as dist
from accelerate import Accelerator
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
go(ZeroRedundancyOptimizer(model.parameters(), optimizer_class=torch.optim.Adam, lr=0.1), 3)
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
model, optimizer = accelerator.prepare(model, adam())
for _ in range(6):
    with accelerator.accumulate(model):
        accelerator.backward(model(rows).sum())
        optimizer.step(); optimizer.zero_grad()
"""
)
SHARDED = """
model = torch.nn.Sequential(torch.nn.Linear(4, 4))
fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
go(adam(), 4)
"""


@pytest.mark.train
@pytest.mark.soak  # what others wrap around an optimizer; the counting itself is above
def test_a_step_through_several_optimizers_is_one_and_shards_have_no_digest(tmp_path: Path) -> None:
    found = driven({"wrapped": WRAPPED, "sharded": WRAPPED + SHARDED}, tmp_path)
    assert found["wrapped"]["steps"] == 3 + 3
    assert found["wrapped"]["first"]
    assert found["sharded"]["steps"] == 3 + 3 + 4
    assert (found["sharded"]["first"], found["sharded"]["last"]) == (None, None)


def test_a_torch_without_such_hooks_is_told_from_none(tmp_path: Path) -> None:
    other = tmp_path / "other"  # a package that happens to have the name
    (other / "torch" / "optim").mkdir(parents=True)
    (other / "torch" / "__init__.py").write_text("from . import optim\n")
    (other / "torch" / "optim" / "__init__.py").write_text("from . import optimizer\n")
    (other / "torch" / "optim" / "optimizer.py").write_text("class Optimizer: ...\n")
    seen = driven({"cold": "import torch"}, tmp_path, other)["cold"]
    assert (seen["code"], seen["steps"], seen["unable"]) == (0, None, True)
    assert jobs._notes_on([Seen(None, unable=True)]) == [
        "its optimizer steps were not counted: this torch has no hooks for it"
    ]


def test_what_stands_in_the_memory_is_bounded_whatever_was_written() -> None:
    board = Board(3)
    for rank in range(3):
        row = board.counter(rank)._row
        row[:] = b"\xff" * len(row)
    every = board.read()
    assert [(one.steps, one.total) for one in every] == [(MAX_SAFE_INTEGER,) * 2] * 3
    assert every[0].first == b"\xff" * 32
    struct.pack_into("<Q", board._memory, 8, 0)  # rank 0 put nothing in place
    assert board.read()[0] == Seen(None)
    assert board.read()[0].weights(b"salt") is None


def test_digests_are_salted() -> None:
    seen = Seen(3, first=b"1" * 32, last=b"2" * 32)
    one, other = seen.weights(b"salt"), seen.weights(b"another")
    assert one is not None
    assert other is not None
    digests = {one.first_digest, one.last_digest, other.first_digest, other.last_digest}
    assert len(digests) == 4
    assert (b"1" * 32).hex() not in digests
    assert Seen(0, first=b"1" * 32).weights(b"salt") is None
    part = Seen(3, first=b"1" * 32).weights(b"salt")
    assert part is not None
    assert (part.first_digest, part.last_digest) == (one.first_digest, None)


def test_ranks_that_counted_otherwise_are_named() -> None:
    assert differing([Seen(20)]) is None
    assert differing([Seen(20), Seen(20)]) is None
    assert differing([Seen(None), Seen(0)]) is None
    assert differing([Seen(20), Seen(19), Seen(20), Seen(None)]) == (
        "the ranks counted different numbers of optimizer steps, and rank 0's is stated: "
        "20 on ranks 0, 2, 19 on rank 1, 0 on rank 3"
    )
