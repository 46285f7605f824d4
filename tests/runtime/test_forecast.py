"""Whether a ceiling will do, by a job's own steps; and how many these will be, by transformers' Trainer."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glasshouse.runtime import disclosure, forecast
from glasshouse.runtime.forecast import Forecast
from tests.runtime.test_steps import driven

HOUR = 3600.0


def looked(
    ceiling: float, total: int, per_step: float, *, start: float = 30.0
) -> tuple[float, dict[str, Any]]:
    """When the ceiling is said not to do, and what is said; looked at every two seconds."""
    made, at = Forecast(ceiling), 0.0
    while at < ceiling:
        at += 2.0
        steps = max(0, int((at - start) / per_step))
        if found := made.look(at, min(steps, total), total):
            assert made.look(at + 2.0, steps + 1, total) == {}  # once
            return at, found["forecast"]
    return at, {}


def test_a_ceiling_that_will_not_do_is_said_in_the_first_minutes() -> None:
    at, said = looked(10 * HOUR, 20_000, 2.3)
    assert at < 180
    assert said["total"] == 20_000
    assert said["stepSec"] == pytest.approx(2.3, rel=0.1)
    assert said["needsSec"] == pytest.approx(30 + 20_000 * 2.3, rel=0.1)


def test_one_that_will_do_is_not() -> None:
    assert looked(10 * HOUR, 15_000, 2.3)[1] == {}


def test_slow_steps_are_said_after_a_few_of_them() -> None:
    at, said = looked(10 * HOUR, 1000, 60.0)
    assert at < 9 * 60
    assert said["stepSec"] == pytest.approx(60, rel=0.1)


@given(
    st.lists(st.tuples(st.floats(0, 1e9), st.integers(0, 2**53), st.integers(0, 2**53)), max_size=20),
    st.floats(0, 1e7),
)
def test_whatever_a_project_counts_it_is_said_at_most_once_and_bounded(
    looks: list[tuple[float, int, int]], ceiling: float
) -> None:
    made = Forecast(ceiling)
    said = [found for look in looks if (found := made.look(*look))]
    assert len(said) <= 1
    for found in said:
        one = found["forecast"]
        assert one["total"] > 0
        assert one["needsSec"] > ceiling > 0


def test_nothing_is_said_without_steps_a_total_or_a_ceiling() -> None:
    for ceiling, steps, total in ((0.0, 50, 1000), (100.0, None, 1000), (100.0, 50, None), (100.0, 9, 9)):
        made = Forecast(ceiling)
        assert [made.look(at * 50.0, steps, total) for at in range(1, 5)] == [{}] * 4


def test_no_more_than_that_is_disclosed() -> None:
    told = {"total": 9, "stepSec": 0.5, "needsSec": 7.0}
    body = {"phase": "job", "elapsedSec": 1.0, "units": 0, "loss": 0.5, "forecast": {**told, "steps": 3}}
    shown = disclosure.shown("progress", body)
    assert shown == {"phase": "job", "elapsedSec": 1.0, "units": 0, "forecast": told}
    assert disclosure.shown("progress", {"phase": "job", "elapsedSec": 1.0, "units": 0, "forecast": 7}) == {
        "phase": "job", "elapsedSec": 1.0, "units": 0
    }  # fmt: skip


def test_a_handler_of_another_form_is_left_alone() -> None:
    module = types.ModuleType("transformers.trainer_callback")
    forecast._hook(lambda _: None, module)

    class CallbackHandler:
        def on_train_begin(self, *given: Any) -> str:
            return f"begun with {len(given)}"

    module.CallbackHandler = CallbackHandler  # type: ignore[attr-defined]
    told: list[int] = []
    forecast._hook(told.append, module)
    assert CallbackHandler().on_train_begin() == "begun with 0"
    assert CallbackHandler().on_train_begin(1, object()) == "begun with 2"
    assert told == []


TRAINS = """
import torch
from transformers import Trainer, TrainingArguments
class Rows(torch.utils.data.Dataset):
    def __len__(self): return 10
    def __getitem__(self, at): return {"x": torch.ones(2), "labels": torch.ones(1)}
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
    def forward(self, x, labels):
        return {"loss": (self.layer(x) - labels).square().mean()}
def train(**more):
    given = dict(output_dir="out", per_device_train_batch_size=2, report_to=[], disable_tqdm=True)
    return Trainer(Model(), TrainingArguments(**given, use_cpu=True, **more), train_dataset=Rows())
"""
CODES = {
    "steps": TRAINS + "train(max_steps=7, save_strategy='no').train()",
    "epochs": TRAINS + "train(num_train_epochs=3, save_strategy='no').train()",
    "one after the other": TRAINS + "[train(max_steps=4, save_strategy='no').train() for _ in range(2)]",
    "resumed": TRAINS + """
import subprocess, sys
train(max_steps=3, save_strategy="steps", save_steps=3).train()
trainer = train(max_steps=8, save_strategy="no")
trainer.train(resume_from_checkpoint="out/checkpoint-3")
""",
}  # fmt: skip


@pytest.mark.train
@pytest.mark.slow
def test_a_trainer_says_how_many_steps_it_will_make(tmp_path: Path) -> None:
    found = driven(CODES, tmp_path)
    assert {name: (one["code"], one["steps"], one["total"]) for name, one in found.items()} == {
        "steps": (0, 7, 7), "epochs": (0, 15, 15), "one after the other": (0, 8, 8), "resumed": (0, 8, 8)
    }  # fmt: skip
