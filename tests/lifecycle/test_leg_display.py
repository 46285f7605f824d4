"""What a person sees while slots run, and how often a leg is asked how it is doing."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from glasshouse.lifecycle import follow
from glasshouse.lifecycle.collect import readable
from glasshouse.lifecycle.follow import Pace
from glasshouse.lifecycle.leg_display import LegProgress, LegView
from glasshouse.lifecycle.screen import Screen
from glasshouse.measurement.schedule import build_schedule
from glasshouse.schema import Slot
from glasshouse.spec import RunSpec
from tests.records.legs import leg_result
from tests.specs import make_spec

SLOT = Slot(0, None, 0, "raw", False, 0.0, 2.0, None, False, 0.0)
RESULT = readable(leg_result(SLOT, units=30, finalLoss=0.5))


def shown(spec: RunSpec, *, live: bool) -> tuple[str, list[str]]:
    """Walk a schedule; what the stream got, and the label of each slot."""
    screen, stream = Screen(), io.StringIO()
    screen._console = Console(file=stream, force_terminal=live, width=120, color_system=None, highlight=False)
    schedule = build_schedule(spec)
    view, labels = LegView(screen, schedule), []
    with view.legs():
        for slot in schedule:
            with view.slot(slot) as label:
                labels.append(label)
            view.done(slot, RESULT)
    return stream.getvalue(), labels


def test_a_pair_shows_each_leg_with_its_rate() -> None:
    text, labels = shown(make_spec(), live=False)
    assert labels == ["raw leg", "protected leg"]
    assert text.count("30 epochs in 2.0 s: 15.00 /s, loss 0.5000") == 2


@pytest.mark.parametrize("live", [False, True])
def test_a_block_design_shows_no_rate_before_its_end(live: bool) -> None:
    text, labels = shown(
        make_spec(order="abba", duration=3200.0, measure={"discard_sec": 0.0, "burn_in_slots": 1}), live=live
    )
    assert "15.00" not in text
    assert "/s" not in text
    assert labels[0].startswith("burn-in, slot 1 of 33 (raw), about 110 min left")
    assert labels[1].startswith("block 1 of 8, slot 2 of 33")
    assert "measuring 8 blocks, 33 slots" in text


def test_a_stream_that_cannot_redraw_gets_a_line_a_block() -> None:
    text, _ = shown(
        make_spec(order="abba", duration=3200.0, measure={"discard_sec": 0.0, "burn_in_slots": 1}), live=False
    )
    assert [line for line in text.splitlines() if "done" in line][-1] == "  block 8 of 8 done"
    assert len(text.splitlines()) == 2 + 8


def test_a_control_names_the_role_that_runs_raw() -> None:
    _, labels = shown(make_spec(order="abba", duration=3200.0, control="aa"), live=False)
    assert any("(raw in the protected role)" in label for label in labels)
    assert not any("(protected)" in label for label in labels)


@pytest.mark.parametrize(("job", "word"), [(True, "training"), (False, "measuring")])
def test_a_private_job_trains_and_is_not_measured(job: bool, word: str) -> None:
    screen, stream = Screen(), io.StringIO()
    screen._console = Console(file=stream, width=120, color_system=None, highlight=False)
    with screen.phase("protected leg"):
        screen._phase.shown = 0.0
        shown = LegProgress(screen, SLOT, "protected leg", job=job)
        shown.show("progress", {"phase": "measure", "elapsedSec": 8.0, "units": 10})
    assert f"protected leg: {word} 8 s, 10 units" in stream.getvalue()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    now = {"now": 1000.0}
    monkeypatch.setattr(follow.time, "monotonic", lambda: now["now"])
    return now


def test_polls_are_rare_while_something_is_measured_and_quick_at_its_end(clock: dict[str, float]) -> None:
    pace = Pace(interval=5.0, quiet_sec=12.0)
    assert pace.pause() == follow.QUICK_SEC  # starting: nothing is measured yet
    clock["now"] += 3
    pace.ready()
    waits: list[Any] = []
    while clock["now"] < 1003 + 12.5:
        waits.append(round(pace.pause(), 3))
        clock["now"] += waits[-1]
        pace.ready()  # later progress does not start the stretch again
    assert waits[:3] == [5.0, 5.0, pytest.approx(2.0 + follow.QUICK_SEC)]
    assert set(waits[3:]) == {follow.QUICK_SEC}


def test_a_long_end_is_not_hammered(clock: dict[str, float]) -> None:
    pace = Pace(interval=5.0, quiet_sec=1.0)
    pace.ready()
    clock["now"] += 61
    assert pace.pause() == pytest.approx(60 * follow.WAIT_SHARE)
    clock["now"] += 600
    assert pace.pause() == 5.0


def test_fixed_work_ends_when_the_leg_says_so(clock: dict[str, float]) -> None:
    pace = Pace(interval=5.0, quiet_sec=None)
    pace.ready()
    clock["now"] += 900
    assert pace.pause() == 5.0
    pace.measured()
    assert pace.pause() == follow.QUICK_SEC


def test_an_interval_below_the_quick_one_is_kept(clock: dict[str, float]) -> None:
    assert Pace(interval=0.05, quiet_sec=1.0).pause() == 0.05
