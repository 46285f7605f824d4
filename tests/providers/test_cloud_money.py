"""Cost ceilings and caps: arithmetic by hand, strict parsing, and that a budget counts every cell."""

from __future__ import annotations

from typing import Any

import pytest

from glasshouse.errors import UsageError
from glasshouse.providers import money
from glasshouse.spec import MAX_HOURS, LocalProvider
from tests.specs import make_spec

from .cloud_kit import rented_spec


def test_ceiling_is_price_times_boots_and_leg_deadlines() -> None:
    spec = rented_spec("runpod", boot_deadline_sec=600.0)
    # raw-first: two slots of 60 s + 5 s warm-up, times 3, plus 180 s each; two boots of 600 s
    legs = 3 * (2 * 60 + 2 * 5) + 2 * 180
    assert money.leg_deadlines_sec(spec) == legs
    assert money.cost_ceiling(spec) == pytest.approx(0.3 * (2 * 600 + legs) / 3600)


def test_ceiling_of_abba_counts_every_slot_and_burn_in() -> None:
    spec = rented_spec("runpod").model_copy(update={"order": "abba"})
    slots = 4 * 8 + 1
    expected = 3 * (2 * 60 + 60 / 16 + slots * 1) + 180 * slots
    assert money.leg_deadlines_sec(spec) == pytest.approx(expected)


def test_ceiling_of_short_slots_counts_a_lead_no_longer_than_what_is_measured() -> None:
    spec = rented_spec("runpod").model_copy(update={"order": "abba", "duration": 8.0})
    slots = 4 * 8 + 1  # of half a second each, and half a second before it, not discard_sec
    assert money.leg_deadlines_sec(spec) == pytest.approx(slots * (3 * (0.5 + 0.5) + 180))


def test_ceiling_of_fixed_steps_in_blocks_counts_the_steps_of_each_slot() -> None:
    spec = rented_spec("runpod").model_copy(update={"order": "abba", "duration": None, "steps": 1607})
    steps = 2 * 1607 + 1607 // 16  # the burn-in slot takes what the shortest of the others takes
    assert money.leg_deadlines_sec(spec) == pytest.approx(33 * (3 * 1 + 180) + steps)


def test_ceiling_of_fixed_steps_budgets_each_step() -> None:
    spec = rented_spec("runpod").model_copy(update={"duration": None, "steps": 40, "order": "protected-only"})
    assert money.leg_deadlines_sec(spec) == 3 * 5 + 40 * 1.0 + 180
    measure = spec.measure.model_copy(update={"step_ceiling_sec": 0.15})
    steady = spec.model_copy(update={"measure": measure, "steps": 30_000, "order": "raw-first"})
    # 75 min an arm at twice the published 0.072 s a step, and two boots: not the 100 h of a blind factor.
    assert money.leg_deadlines_sec(steady) == pytest.approx(2 * (3 * 5 + 4500 + 180))


MLP = {
    "kind": "mlp", "name": "mlp", "inputs": 8, "hidden": 8, "layers": 1, "classes": 2, "batch": 8,
    "batches_per_epoch": 1, "learning_rate": 0.1,
}  # fmt: skip
PROJECT = {"kind": "project", "name": "project", "folder": "x", "command": ["python", "a.py"]}
HOUR = 3600.0


@pytest.mark.parametrize("model", [MLP, PROJECT])
def test_a_jobs_ceiling_is_the_hours_that_were_given_whatever_it_trains(model: dict[str, Any]) -> None:
    spec = make_spec(
        model=model | {"max_hours": 10.0}, order="protected-only", payload="private", duration=None,
        steps=None if model is PROJECT else 20_000, measure={"step_ceiling_sec": 0.001},
    )  # fmt: skip
    assert money.ceiling_sec(spec) == 10 * HOUR
    assert money.leg_deadlines_sec(spec) == 10 * HOUR + money.JOB_GRACE_SEC + 180


def test_a_jobs_duration_is_its_ceiling_beside_a_start() -> None:
    spec = make_spec(order="protected-only", payload="private", duration=10 * HOUR)
    assert money.ceiling_sec(spec) == 10 * HOUR + 180
    assert money.leg_deadlines_sec(spec) == 10 * HOUR + 180 + money.JOB_GRACE_SEC + 180
    steps = make_spec(order="protected-only", payload="private", duration=None, steps=3)
    assert money.ceiling_sec(steps) == MAX_HOURS * HOUR
    assert money.ceiling_sec(make_spec(order="protected-only")) is None  # public: it measures


def test_price_counts_gpus_and_is_none_when_free_or_unknown() -> None:
    assert money.price(rented_spec("vastai", gpu={"count": 4})) == pytest.approx(0.8)
    assert money.price(rented_spec("vastai", gpu={"max_usd_per_hour": {}})) is None


def test_a_missing_price_is_refused() -> None:
    with pytest.raises(UsageError, match=r"gpu\.max_usd_per_hour\.vastai"):
        money.cost_ceiling(rented_spec("vastai", gpu={"max_usd_per_hour": {"runpod": 1.0}}))


@pytest.mark.parametrize(("text", "usd"), [("25", 25.0), ("12.50", 12.5), ("0.01", 0.01), ("100000", 1e5)])
def test_amounts(text: str, usd: float) -> None:
    assert money.parse_usd(text) == usd


@pytest.mark.parametrize(
    "text",
    ["", "0", "0.00", "-5", "+5", "1e3", "nan", "inf", " 5", "5 ", "5,00", "5.123", ".5", "5.", "$5", "5USD",
     "\u0665", "100000.01", "999999"],
)  # fmt: skip
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(UsageError):
        money.parse_usd(text)


def test_cap_is_the_lowest_given() -> None:
    free, capped = rented_spec("runpod"), rented_spec("runpod")
    capped = capped.model_copy(update={"spend": capped.spend.model_copy(update={"max_usd": 7.0})})
    assert money.cap_usd([free], {}) is None
    assert money.cap_usd([free, capped], {}) == 7.0
    assert money.cap_usd([free, capped], {"GLASSHOUSE_MAX_USD": "5"}) == 5.0
    assert money.cap_usd([free, capped], {"GLASSHOUSE_MAX_USD": "9"}) == 7.0


def test_budget_sums_the_cells_and_exits_2() -> None:
    cell = rented_spec("runpod")
    one = money.cost_ceiling(cell)
    assert money.check_budget([cell] * 3, 3 * one + 0.001) == pytest.approx(3 * one)
    with pytest.raises(UsageError, match="more than the cap") as caught:
        money.check_budget([cell] * 3, 2.9 * one)
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError, match="needs a cost cap"):
        money.check_budget([cell], None)


def test_free_cells_need_no_cap() -> None:
    cell = rented_spec("runpod")
    free = cell.model_copy(update={"provider": LocalProvider(kind="local")})
    assert money.check_budget([free, free], None) == 0.0
