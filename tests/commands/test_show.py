"""`glasshouse runs` and `show`: what a run folder holds, for the eye."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from glasshouse import host
from glasshouse.canonical import canonical_json
from glasshouse.commands.records import Found
from glasshouse.commands.runs import listed
from glasshouse.judgement.record import Record
from glasshouse.lifecycle.screen import JobRow, Screen, SummaryRow
from glasshouse.measurement.schedule import build_schedule
from glasshouse.run import summary_row
from tests.commands.kit import Call
from tests.records.factory import Factory, Leg
from tests.specs import make_spec


def test_runs_lists_what_is_there(some_run: Path, call: Call) -> None:
    code, out, _ = call("runs", "--json")
    assert code == 0
    first, second = json.loads(out)["runs"]
    assert (first["run"], first["status"]) == ("20260101-000000-aaaaaa", "unfinished")
    assert second == {
        "path": f"runs/{some_run.name}",
        "run": some_run.name,
        "id": "2026-01-02-local-cpu-mlp-60s-raw-first-abcdef",
        "status": "excluded",
        "overheadPct": 1.25,
        "control": None,
        "exclusion": ["final-loss-missing"],
        "caveats": ["not-a-tee", "short"],
    }
    assert "final-loss-missing" in call("runs")[1]


@pytest.mark.parametrize("name", ["20260102-030405-abcdef", "20260102", "runs/20260102-030405-abcdef"])
def test_show_prints_figures_checks_caveats_and_curves(name: str, some_run: Path, call: Call) -> None:
    code, out, _ = call("show", name)
    assert code == 0
    assert f"run {some_run.name}: excluded" in out
    assert "overhead 1.25 %" in out
    assert "FAILED" in out
    assert "caveat not-a-tee: " in out
    assert re.search(r"s000-raw loss +█▄▁  2 to 0.25", out)
    assert re.search(r"s000-raw throughput +▁█  10 to 20 a second", out)
    assert json.loads(call("show", name, "--json")[1])["record"]["run"] == some_run.name


def rewrite(folder: Path, **figures: Any) -> None:
    """Change figures of a run folder's record."""
    path = folder / "bundle" / "record.json"
    record = json.loads(path.read_bytes())
    record["figures"] |= figures
    path.write_bytes(canonical_json(record))


LOST = {"ciLowPct": None, "ciHighPct": None, "n": 1, "method": "none", "blocks": 1, "droppedBlocks": 7}
AA = {"kind": "aa", "outcome": "inconclusive", "expectedPct": 0.0, "reason": "no interval"}


def summary_of(folder: Path, capfd: pytest.CaptureFixture[str]) -> str:
    record = Record.read((folder / "bundle" / "record.json").read_bytes())
    assert record is not None
    Screen().summary([summary_row(record)])
    return capfd.readouterr().err


def test_a_control_is_never_shown_as_a_result(
    some_run: Path, call: Call, capfd: pytest.CaptureFixture[str]
) -> None:
    rewrite(some_run, overheadPct=34.49, control=AA)
    said = "control aa (raw against raw), not a result: inconclusive, no interval"
    out = call("show", "20260102")[1]
    assert f"this is a {said}; a difference of 0.00 % was to be seen, 34.49 % was" in out
    assert "raw as protected" in out
    assert "steady-state overhead" not in out
    listed = json.loads(call("runs", "--json")[1])["runs"][1]
    assert (listed["overheadPct"], listed["control"]["outcome"]) == (None, "inconclusive")
    summary = summary_of(some_run, capfd)
    assert f"is a {said}" in summary
    assert "excluded control" in summary
    assert "+34.49%" not in summary


def test_blocks_without_an_interval_state_no_overhead(
    some_run: Path, call: Call, capfd: pytest.CaptureFixture[str]
) -> None:
    rewrite(some_run, order="abba", overheadPct=34.49, overhead=LOST)
    said = "1 of 8 blocks left after dropping disturbed and incomplete ones: no figure"
    assert f"no overhead is stated: {said}" in call("show", "20260102")[1]
    summary = summary_of(some_run, capfd)
    assert f"states no overhead: {said}" in summary
    assert "34.49" not in summary + call("show", "20260102")[1] + call("runs")[1]
    rewrite(some_run, control=AA)
    assert "34.49" not in summary_of(some_run, capfd) + call("show", "20260102")[1]


def test_the_table_of_jobs_fits_80_columns_and_cuts_no_id(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    run = "20260102-120000-abcdef"
    row = SummaryRow(
        run, "protected-only", "excluded", None, 1.0, None, 1.0,
        job=JobRow(10_000_000, 172_800.0, "by SIGKILL, memory"),
    )  # fmt: skip
    screen = Screen()
    screen._console.width = 80
    screen.summary([row])
    said = capfd.readouterr().err
    assert f" {run}   excluded   10000000   48 h 0 min   by SIGKILL, memory" in said
    assert max(map(len, said.splitlines())) <= 80
    assert not [word for word in ("raw", "overhead", "/s", "fixed cost") if word in said]


def test_runs_leaves_out_columns_where_the_terminal_is_narrow(tmp_path: Path) -> None:
    found = [
        Found(tmp_path, "20260102-120000-abcdef", "unattended", unattended_until=2e9),
        Found(tmp_path, "20260102-120000-bcdefg", "unfinished"),
    ]
    narrow = listed(found, 80)
    assert max(map(len, narrow.splitlines())) <= 80
    assert all(item.run in narrow for item in found)
    assert "caveats" not in narrow
    assert "caveats" in listed(found, None)


def test_show_tells_checks_that_held_from_checks_with_nothing_to_look_at(some_run: Path, call: Call) -> None:
    path = some_run / "bundle" / "record.json"
    record = json.loads(path.read_bytes())
    record["checks"] += [
        {"code": "runtime-not-zeroized", "ok": True, "detail": "no payload was released: nothing to check"},
        {"code": "cleanup-not-proven", "ok": True, "detail": ""},
    ]
    path.write_bytes(canonical_json(record))
    out = call("show", "20260102")[1]
    assert re.search(r"^nothing checked +runtime-not-zeroized +no payload was released", out, re.MULTILINE)
    assert re.search(r"^ok +cleanup-not-proven +nothing of the run is left", out, re.MULTILINE)


def test_show_asks_which_when_several_runs_begin_so(some_run: Path, call: Call) -> None:
    code, _, err = call("show", "202601")
    assert code == 2
    assert "several runs" in err
    assert "no record" in call("show", "20260101")[1]
    assert some_run.exists()


def test_runs_before_the_first_one(call: Call) -> None:
    assert call("runs")[:2] == (0, "no runs in runs; `python -m glasshouse` makes one\n")


def test_show_draws_each_arm_over_the_slots_of_a_block_design(elsewhere: Path, call: Call) -> None:
    factory, spec = Factory(elsewhere / "factory"), make_spec(order="abba", duration=32.0)
    slow = {slot.index: Leg(rate=5.0) for slot in build_schedule(spec) if slot.arm == "protected"}
    name, files = factory.parts(spec, slow)
    (elsewhere / "runs" / name).mkdir(parents=True)
    factory.write(elsewhere / "runs" / name / "bundle", name, files)
    code, out, _ = call("show", name)
    assert code == 0
    assert f"protected  {16 * '▁'}  5 to 5\nraw        {16 * '█'}  10 to 10\n" in out
    assert f"protected  {16 * '▁'}  0.25 to 0.25\nraw        {16 * '▁'}  0.25 to 0.25\n" in out
    assert "s001" not in out


def test_show_says_whose_weights_came_home_and_how_many_steps_they_made(elsewhere: Path, call: Call) -> None:
    factory = Factory(elsewhere / "factory")
    steps = {"order": "abba", "duration": None, "steps": 320}
    said = {}
    for when, told in (("now", {"warmupUnits": 0, "undoneUnits": 7}), ("before", {"warmupUnits": 7})):
        legs = {slot.index: Leg(result=told) for slot in build_schedule(make_spec(**steps))}
        name, files = factory.parts(make_spec(**steps), legs)
        (elsewhere / "runs" / name).mkdir(parents=True)
        factory.write(elsewhere / "runs" / name / "bundle", name, files)
        code, out, _ = call("show", name)
        assert code == 0
        said[when] = next(line for line in out.splitlines() if line.startswith("returned: "))
        shown = json.loads(call("show", name, "--json")[1])["returned"]
        assert shown["warmupSteps"] == (0 if when == "now" else 140)
        assert shown["steps"] == 20 + shown["warmupSteps"]
    leg = said["now"].split()[3].rstrip(",")
    share = "its share of 320 in 16 slots"
    assert re.fullmatch(r"s03[01]-protected", leg)
    assert said["now"] == f"returned: weights of {leg}, 20 optimizer steps from the initial ones, {share}"
    assert said["before"].endswith(
        f", 160 optimizer steps from the initial ones, {share}, 140 of them while it warmed up"
    )


def unfinished(folder: Path, controller: str, until: float) -> Path:
    """A run without a record, as its own file says."""
    folder.mkdir(parents=True)
    state = {"controller": controller, "unattendedUntil": until}
    (folder / "run.json").write_bytes(canonical_json(state))
    return folder


def test_a_run_without_a_record_runs_goes_on_without_its_controller_or_was_left(
    elsewhere: Path, call: Call
) -> None:
    gone, later = "boot:4194305:1", time.time() + 3 * 86400
    runs = elsewhere / "runs"
    unfinished(runs / "20260301-000000-aaaaaa", host.identity(os.getpid()), later)
    unfinished(runs / "20260302-000000-bbbbbb", gone, later)
    unfinished(runs / "20260303-000000-cccccc", gone, time.time() - 1)
    (unfinished(runs / "20260304-000000-dddddd", gone, later) / "run.json").write_text("[")
    code, out, _ = call("runs", "--json")
    assert code == 0
    found = json.loads(out)["runs"]
    assert [each["status"] for each in found] == ["running", "unattended", "unfinished", "unfinished"]
    assert [each.get("unattendedUntil") for each in found] == [None, pytest.approx(later), None, None]
    day = time.strftime("%Y-%m-%d", time.gmtime(later))
    assert f"running unattended until {day} " in call("runs")[1]
    code, out, _ = call("show", "20260302")
    assert code == 0
    assert f"run 20260302-000000-bbbbbb: running unattended until {day} " in out
    assert "`glasshouse reap` asks its machine" in out
