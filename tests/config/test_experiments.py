"""conf/experiment: one file for each published row and each planned sweep."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from glasshouse.conf_files import options
from glasshouse.providers.money import cost_ceiling, price, rental_deadline_sec
from glasshouse.spec import LoraModel
from tests.config.kit import CONF, compose, expand

PUBLISHED = json.loads((CONF / "history" / "published-rows.json").read_bytes())
ROWS = [(kind, row) for kind in ("rows", "smoke", "excluded") for row in PUBLISHED[kind]]


def test_each_published_row_has_an_experiment_and_nothing_poses_as_one() -> None:
    published = {row["id"] for _, row in ROWS}
    dated = {name for name in options("experiment", CONF) if re.match(r"\d{4}-", name)}
    assert dated == published


@pytest.mark.parametrize(("kind", "row"), ROWS, ids=[row["id"] for _, row in ROWS])
def test_an_experiment_is_the_row_it_is_named_for(kind: str, row: dict[str, Any]) -> None:
    spec = compose([f"experiment={row['id']}"])
    if row.get("gpu"):
        assert spec.gpu.name == row["gpu"]
    if row.get("provider"):
        assert spec.provider.kind == row["provider"]
    if row.get("order"):
        assert spec.order == row["order"]
    if kind == "smoke":
        assert spec.order == "protected-only"
    assert spec.duration == row.get("durationSec")
    assert spec.steps == (None if row.get("durationSec") else row.get("targetSteps", row.get("steps")))
    if isinstance(spec.model, LoraModel):
        assert spec.model.model_id == row["model"]
        settings = row.get("settings", {})
        assert spec.model.learning_rate == settings.get("learningRate", spec.model.learning_rate)
        assert spec.model.grad_clip == settings.get("gradClip", spec.model.grad_clip)
        assert spec.model.dtype == settings.get("dtype", spec.model.dtype)
    else:
        assert row["model"] == "mlp"


@pytest.mark.parametrize("name", [name for name in options("experiment", CONF) if name != "none"])
def test_an_experiment_states_a_cost_that_its_plan_bounds(name: str) -> None:
    text = (CONF / "experiment" / f"{name}.yaml").read_text(encoding="utf-8").replace("\n# ", " ")
    swept = "sweeper:" in text
    cells = [compose(cell) for cell in (expand(f"experiment={name}") if swept else [[f"experiment={name}"]])]
    ceiling = sum(cost_ceiling(spec) for spec in cells)
    if not any(spec.paid for spec in cells):
        assert "nothing is rented" in text
        return
    stated = re.search(r"Expected: about ([\d.]+) h of rental, ([\d.]+) USD", text)
    assert stated
    hours, dollars = float(stated[1]), float(stated[2])
    assert 0 < hours <= sum(rental_deadline_sec(spec) for spec in cells) / 3600
    assert 0 < dollars <= ceiling
    if len({price(spec) for spec in cells}) == 1:
        assert dollars == pytest.approx(hours * (price(cells[0]) or 0), rel=0.3)  # hours are rounded to 0.1


def test_planned_sweeps_stand_in_their_experiment() -> None:
    specs = [compose(cell) for cell in expand("experiment=next-30m-distribution")]
    assert sorted((spec.gpu.name, spec.repeat) for spec in specs) == [
        (gpu, repeat) for gpu in ("h100", "pro6000") for repeat in range(5)
    ]
    assert {spec.order for spec in specs} == {"abba"}


def test_the_command_line_wins_over_an_experiment() -> None:
    name = "2026-05-15-vastai-a4000-mlp-60s-raw-first"
    spec = compose([f"experiment={name}", "provider=runpod", "duration=5", "gpu=h100"])
    assert (spec.provider.kind, spec.duration, spec.gpu.name) == ("runpod", 5, "h100")
    # A GPU's default provider does not undo what the experiment says.
    assert compose([f"experiment={name}", "gpu=h100"]).provider.kind == "vastai"
