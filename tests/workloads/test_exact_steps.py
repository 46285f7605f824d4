"""What is returned made exactly the steps asked for, counted by torch's own hook and not by us.

Each slot of a real schedule goes through the harness as a leg has it run. That the weights which a measured
slot returns are those of its share is shown by a run without any warm-up, whose every step the hook counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from glasshouse import config
from glasshouse.measurement.schedule import build_schedule
from glasshouse.runtime import harness
from glasshouse.runtime.results import LegResult
from glasshouse.runtime.session import Stretch
from glasshouse.schema import Slot
from glasshouse.workloads.package import prepare
from tests.workloads.conftest import in_memory

pytestmark = [
    pytest.mark.train,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
JOB = ["order=protected-only", "payload=private"]
MLP = ["model=mlp", "model.inputs=8", "model.hidden=12", "model.batch=16"]  # 4 steps a unit
LORA = ["model=qwen2-tiny", "model.examples=6", "model.batch=2", "model.max_length=8"]  # 3 steps an epoch
WARM = ["measure=quick", "measure.warmup_sec=0.05", "measure.discard_sec=0.05"]

# Three optimizer steps a unit; with PARTS it can do fewer. It has no state(): a second one is built.
ROUNDS = """
import torch

class Rounds:
    unit, steps_per_unit, info = "rounds", 3, {}
    def __init__(self, params, files, device):
        torch.manual_seed(1)
        self.model = torch.nn.Linear(8, 8)
        self.rows = torch.randn(16, 8)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        self.last = None
    def run_unit(self):
        for _ in range(3):
            self.step()
    def step(self):
        loss = (self.model(self.rows) - self.rows).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.last = loss.detach()
    def synchronize(self): pass
    def loss(self): return float("nan") if self.last is None else float(self.last)
    def trainable(self): return {name: value.detach() for name, value in self.model.named_parameters()}
    def buffers(self): return [self.rows, *self.model.parameters()]
"""
PARTS = """
    def run_steps(self, count):
        for _ in range(count):
            self.step()
"""


@pytest.fixture
def rounds(tmp_path: Path) -> list[str]:
    path = tmp_path / "rounds.py"
    path.write_text(ROUNDS)
    return ["model=custom", f"model.entry={path}:Rounds"]


@pytest.fixture
def parted(tmp_path: Path) -> list[str]:
    path = tmp_path / "parted.py"
    path.write_text(ROUNDS + PARTS)
    return ["model=custom", f"model.entry={path}:Rounds"]


@dataclass
class Counted:
    """Runs slots, and counts what torch says of optimizers meanwhile."""

    steps: int = 0

    def run(self, spec: Any, slot: Slot) -> tuple[LegResult, int]:
        """A slot's result, and how many steps the hook saw in all."""
        payload = prepare(spec)
        before = self.steps
        _, result = harness.run(
            harness.Workload(payload.files, in_memory(payload), payload.builder),
            stretch=Stretch(slot.warmup_sec, slot.measured_sec, slot.steps, slot.delay_pct),
            device="cpu", allocation="0" * 64, salt=b"s" * 32, blind=bytes(32),
            report=lambda _kind, _body: None,
        )  # fmt: skip
        return result, self.steps - before


@pytest.fixture
def counted() -> Iterator[Counted]:
    from torch.optim.optimizer import register_optimizer_step_post_hook

    found = Counted()

    def count(*_: Any) -> None:
        found.steps += 1

    handle = register_optimizer_step_post_hook(count)
    yield found
    handle.remove()


@pytest.mark.parametrize(
    ("model", "asked", "steps"),
    [
        (MLP, "steps=10", 10),
        (MLP, "steps=3", 3),
        (MLP, "steps=8", 8),
        (MLP, "epochs=3", 12),
        (LORA, "steps=5", 5),
        (LORA, "epochs=2", 6),
        ("rounds", "steps=9", 9),
        ("parted", "steps=10", 10),
    ],
)
def test_a_job_makes_as_many_steps_as_were_asked(
    counted: Counted, request: pytest.FixtureRequest, model: list[str] | str, asked: str, steps: int
) -> None:
    words = request.getfixturevalue(model) if isinstance(model, str) else model
    spec = config.load([*words, *JOB, *WARM, asked])
    (slot,) = build_schedule(spec)
    assert slot.warmup_sec == 0
    result, seen = counted.run(spec, slot)
    assert (seen, result.steps, spec.total_steps) == (steps, steps, steps)
    assert result.undone_units is None


@pytest.mark.parametrize("model", [MLP, LORA, "rounds"], ids=["mlp", "lora", "custom"])
def test_a_job_of_seconds_returns_every_step_it_made(
    counted: Counted, request: pytest.FixtureRequest, model: list[str] | str
) -> None:
    words = request.getfixturevalue(model) if isinstance(model, str) else model
    spec = config.load([*words, *JOB, *WARM, "duration=0.3"])
    result, seen = counted.run(spec, build_schedule(spec)[0])
    assert seen == result.steps > 0
    assert result.elapsed_sec < 3


def alone(counted: Counted, spec: Any, slot: Slot) -> LegResult:
    """The same slot without a warm-up: every step that the hook saw is in what it returns."""
    result, seen = counted.run(spec, Slot(**{**vars(slot), "warmup_sec": 0.0}))
    assert seen == slot.steps
    return result


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (MLP, ["order=raw-first", "steps=10"]),
        (MLP, ["order=raw-first", "epochs=2"]),
        (MLP, ["order=abba", "steps=83"]),  # five or six steps a slot: a unit and a part
        (LORA, ["order=protected-first", "steps=7"]),
        (LORA, ["order=abba", "epochs=6"]),
        ("rounds", ["payload=public", "order=raw-first", "steps=9"]),
        ("parted", ["payload=public", "order=abba", "steps=70"]),
    ],
)
def test_a_slot_that_warms_up_returns_its_own_share_from_the_initial_weights(
    counted: Counted, request: pytest.FixtureRequest, model: list[str] | str, words: list[str]
) -> None:
    named = request.getfixturevalue(model) if isinstance(model, str) else model
    spec = config.load([*named, *WARM, "measure.blocks=8", *words])
    slots = build_schedule(spec)
    arms = {
        arm: [slot for slot in slots if slot.arm == arm and not slot.burn_in] for arm in ("raw", "protected")
    }
    assert {sum(slot.steps or 0 for slot in arm) for arm in arms.values()} == {spec.total_steps}
    ends: dict[int | None, set[tuple[str, str]]] = {}
    # One slot of each share, of each arm, as the harness knows no other difference.
    for slot in {(slot.arm, slot.steps): slot for slot in slots}.values():
        result, seen = counted.run(spec, slot)
        per_unit = round(result.steps / result.units)
        assert result.steps == slot.steps
        assert result.undone_units is not None
        assert result.undone_units > 0
        assert seen == result.steps + result.undone_units * per_unit
        ends.setdefault(slot.steps, set()).add((result.initial_digest, result.output_sha256))
    for slot in {slot.steps: slot for slot in slots}.values():
        result = alone(counted, spec, slot)
        assert ends[slot.steps] == {(result.initial_digest, result.output_sha256)}
