"""An interruptible machine that is taken away: who takes its place, from where, how often, for how much."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from glasshouse import config
from glasshouse.codes import Code
from glasshouse.commands.plan import plan
from glasshouse.errors import UsageError
from glasshouse.lifecycle.finish import Recorded
from glasshouse.lifecycle.live_run import LiveRun
from glasshouse.lifecycle.replacing import Replacing, note_taken_away
from glasshouse.lifecycle.screen import Screen
from glasshouse.providers.money import check_budget, cost_ceiling, machines
from glasshouse.spec import RunSpec
from tests.lifecycle.checkpoint_kit import Died, died
from tests.providers.cloud_kit import NAME, rented

WORDS = [
    *("provider=vastai", "provider.interruptible=true", "gpu=a4000"),
    *("order=protected-only", "payload=private", "duration=null", "steps=100", "model.max_hours=1"),
]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Died:
    monkeypatch.setenv("GLASSHOUSE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return died(tmp_path, config.load(WORDS), [{"a": b"1"}, {"a": b"2"}], overrides=WORDS, steps=[20, 40])


def ended(run: Died, *reasons: str, **how: Any) -> Recorded:
    record: Any = SimpleNamespace(reasons=reasons)
    return Recorded(run.run, str(run.folder), record, 3, **how)


def replacing(**changes: Any) -> Replacing:
    spec = config.load(WORDS)
    return Replacing(spec.model_copy(update=changes), list(WORDS), Screen(quiet=True))


TAKEN = (Code.POD_UNREACHABLE, Code.MACHINE_TAKEN_AWAY)


def test_the_job_goes_on_from_the_newest_good_checkpoint(run: Died) -> None:
    going = replacing()
    assert going.after(ended(run, *TAKEN))
    assert going.spec.continues is not None
    assert (going.spec.continues.number, going.spec.continues.steps) == (2, 40)
    assert going.overrides == [*WORDS, f"from={run.run}@2"]
    assert going.spec.model == config.load(WORDS).model


def test_one_that_was_countersigned_and_never_came_does_not_keep_it(run: Died) -> None:
    run.drop(2)
    going = replacing()
    assert going.after(ended(run, *TAKEN))
    assert going.spec.continues is not None
    assert going.spec.continues.number == 1


def test_without_a_checkpoint_it_begins_where_the_run_before_began(
    run: Died, capsys: pytest.CaptureFixture[str]
) -> None:
    run.drop(1)
    run.drop(2)
    going = replacing()
    going.screen = Screen()
    assert going.after(ended(run, *TAKEN))
    assert going.spec == config.load(WORDS)
    assert "begins where the run before began" in capsys.readouterr().err


def test_no_more_take_its_place_than_were_planned(run: Died, capsys: pytest.CaptureFixture[str]) -> None:
    going = replacing()
    going.screen = Screen()
    assert [going.after(ended(run, *TAKEN)) for _ in range(3)] == [True, True, False]
    assert "model.max_resumes=2 is used up" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("reasons", "how"),
    [
        ((Code.POD_UNREACHABLE,), {}),
        ((*TAKEN, Code.INTERRUPTED), {}),
        (TAKEN, {"alarm": "CLEAN-UP NOT PROVEN"}),
        (TAKEN, {"in_doubt": True}),
        ((), {}),
    ],
)
def test_nothing_takes_its_place_where_it_was_not_taken_or_may_still_be_there(
    run: Died, reasons: tuple[str, ...], how: dict[str, Any]
) -> None:
    assert not replacing().after(ended(run, *reasons, **how))


def test_a_job_that_had_made_all_its_steps_is_not_begun_again(run: Died) -> None:
    going = replacing(steps=40)
    assert not going.after(ended(run, *TAKEN))


# --- what the provider says ------------------------------------------------------------------


def test_the_provider_says_that_it_was_taken_away() -> None:
    with rented("vastai", interruptible=True) as it:
        assert not it.provider.taken_away(NAME)  # nothing was created
        allocation = it.allocate()
        assert not it.provider.taken_away(NAME)
        it.server.cloud.take_away(allocation.id)
        it.faults("read-one-5xx", times=20)
        assert not it.provider.taken_away(NAME)  # it says nothing that can be read
        it.server.cloud.faults.clear()
        assert it.provider.taken_away(NAME)
        assert it.state()["active"] == 1  # it bills until it is destroyed
        assert it.provider.release(NAME, allocation.id).proof == "zero"
        assert it.state()["active"] == 0
        assert it.provider.taken_away(NAME)


def live(spec: RunSpec) -> Any:
    found = SimpleNamespace(
        ending=SimpleNamespace(failures=[], exit_code=1),
        run=SimpleNamespace(spec=spec, allocation=NAME),
        rental=SimpleNamespace(endpoint="where it answered"),
        failed=[],
    )
    found.fail = lambda code, message, exit_code: found.failed.append((code, exit_code))
    return found


def test_it_is_noted_only_of_a_job_on_an_interruptible_machine() -> None:
    with rented("vastai", interruptible=True) as it:
        it.server.cloud.take_away(it.allocate().id)
        job, measuring = live(config.load(WORDS)), live(config.load([*WORDS[:3], "duration=60"]))
        for each in (job, measuring):
            note_taken_away(each, it.provider)
        assert (job.failed, measuring.failed) == ([(Code.MACHINE_TAKEN_AWAY, 3)], [])
        never = live(config.load(WORDS))
        never.rental.endpoint = None  # it did not come up: nobody took it away
        note_taken_away(never, it.provider)
        assert never.failed == []
        well: LiveRun = live(config.load(WORDS))
        well.ending.exit_code = 0
        note_taken_away(well, it.provider)
        assert well.failed == []  # type: ignore[attr-defined]


# --- for how much ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (WORDS, 3),
        ([*WORDS, "model.max_resumes=0"], 1),
        ([*WORDS, "provider.interruptible=false"], 1),
        ([*WORDS[:3], "duration=60"], 1),  # it measures: what was taken away is no measurement
        (["order=protected-only", "payload=private", "duration=null", "steps=100"], 1),
    ],
)
def test_how_many_machines_a_job_may_take(words: list[str], count: int) -> None:
    assert machines(config.load(words)) == count


def test_the_cap_covers_all_of_them() -> None:
    spec = config.load(WORDS)
    one = cost_ceiling(spec)
    assert check_budget([spec], 3 * one + 0.01) == pytest.approx(3 * one)
    with pytest.raises(UsageError, match="more than the cap"):
        check_budget([spec], 3 * one - 0.01)


def test_plan_says_the_ceiling_for_all_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    (cell,) = plan(WORDS, sweep=False)
    (alone,) = plan([*WORDS, "model.max_resumes=0"], sweep=False)
    assert cell.max_usd == pytest.approx(3 * alone.max_usd)
    assert cell.hours == pytest.approx(3 * alone.hours)
