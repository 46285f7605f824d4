"""Block designs for real: a run and its two controls, each with a fresh process for each of 33 slots.

The controls are left to `make soak`: to the program they are the same blocks with one arm in both places.

The workload is paced by the clock (workloads/clocked.py), so the truth is known whatever else the machine
does: no overhead in the run and in raw against raw, and the injected delay in the positive control.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from glasshouse.measurement.controls import expected_delay_pct
from tests.e2e.conftest import CLOCKED, ROOT, Program

pytestmark = [pytest.mark.train, pytest.mark.slow, pytest.mark.timeout(300)]

SETTINGS = [
    "provider.threads=1",
    "measure=quick",
    "measure.discard_sec=0.05",
    "measure.head_interval_sec=0.5",
    *CLOCKED,
    # A busy machine wakes a sleeper late at the end of a slot: by little, but a slot is a fifth of a second.
    "measure.duration_tolerance_pct=50",
    "measure.margin_pct=5",
    "order=abba",
    "duration=3.2",
]
RECOMPUTE = ROOT / "site" / "research" / "recompute.py"


Runs = tuple[Program, dict[str, dict[str, Any]]]


def ended(base: Path, *controls: str) -> Iterator[Runs]:
    """Runs side by side: records by control, each with its `err`."""
    program = Program(base / "home", base / "runs")
    started = {
        control: program.start("run", "--json", "--out", str(program.runs), *SETTINGS, f"control={control}")
        for control in controls
    }
    records = {}
    try:
        for control, process in started.items():
            out, err = process.communicate(timeout=240)
            assert process.returncode == 0, err
            records[control] = json.loads(out)["runs"][0] | {"err": err}
        yield program, records
    finally:
        for process in started.values():
            if process.poll() is None:
                process.terminate()
            process.communicate(timeout=30)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """A run."""
    yield from ended(tmp_path_factory.mktemp("abba"), "none")


@pytest.fixture(scope="module")
def controls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """Raw against raw, and with a known delay."""
    yield from ended(tmp_path_factory.mktemp("controls"), "aa", "delay")


def test_the_run_is_verified_with_an_interval(runs: Runs) -> None:
    _, records = runs
    record = records["none"]
    assert record["status"] == "verified"
    figures = record["figures"]
    overhead = figures["overhead"]
    assert overhead["method"] == "t-blocks"
    assert overhead["n"] == overhead["blocks"] == 8
    assert overhead["ciLowPct"] < figures["overheadPct"] < overhead["ciHighPct"]
    assert abs(figures["overheadPct"]) < 3
    # What the interval says is chance, at the rates that the simulator is tested for; that it is said is not.
    low, high, margin = overhead["tostLowPct"], overhead["tostHighPct"], overhead["marginPct"]
    inside, outside = -margin < low and high < margin, low > margin or high < -margin
    assert overhead["verdict"] == ("within" if inside else "exceeds" if outside else "inconclusive")
    assert len(overhead["leaveOneOutPct"]) == 8
    assert 0 < overhead["randomizationP"] <= 1
    assert figures["launches"] == 33
    assert sum(slot["burnIn"] for slot in figures["slots"]) == 1
    assert {"order-confounded", "single-sample"}.isdisjoint(record["caveats"])
    assert {"no-control", "short", "payload-disclosed"} <= set(record["caveats"])
    # Sixteen measured launches and the discarded ones: the full lifecycle each time.
    folder = Path(record["folder"])
    assert len(list((folder / "bundle/legs").glob("*-protected/exchange.json"))) == 16


@pytest.mark.soak
def test_identical_arms_are_found_equal(controls: Runs) -> None:
    _, records = controls
    record = records["aa"]
    assert record["status"] == "verified"
    overhead = record["figures"]["overhead"]
    excludes_zero = overhead["ciLowPct"] > 0 or overhead["ciHighPct"] < 0
    expected = "passed" if overhead["verdict"] == "within" else "failed" if excludes_zero else "inconclusive"
    assert record["figures"]["control"]["outcome"] == expected, record["figures"]
    assert abs(record["figures"]["overheadPct"]) < 3
    assert record["figures"]["control"]["kind"] == "aa"
    # Both roles ran without the lifecycle, so there is nothing to attest and no fixed cost to state.
    assert record["figures"]["fixedCostSec"] is None
    assert not list((Path(record["folder"]) / "bundle/legs").glob("*/exchange.json"))


@pytest.mark.soak
def test_a_known_delay_is_found_again(controls: Runs) -> None:
    _, records = controls
    figures = records["delay"]["figures"]
    assert records["delay"]["status"] == "verified"
    # A sound 95% interval misses the truth in one run of twenty: the rule is tested, not the dice.
    low, high = figures["overhead"]["ciLowPct"], figures["overhead"]["ciHighPct"]
    holds, zero = low <= figures["control"]["expectedPct"] <= high, low <= 0 <= high
    assert figures["control"]["outcome"] == ("failed" if not holds else "inconclusive" if zero else "passed")
    assert figures["control"]["expectedPct"] == pytest.approx(expected_delay_pct(3.0), abs=1e-6)
    assert figures["overheadPct"] == pytest.approx(expected_delay_pct(3.0), abs=2)


@pytest.mark.parametrize(
    ("made", "control"), [("runs", "none"), pytest.param("controls", "delay", marks=pytest.mark.soak)]
)
def test_a_reader_recomputes_the_figures_from_the_bundle_alone(
    request: pytest.FixtureRequest, made: str, control: str
) -> None:
    record = request.getfixturevalue(made)[1][control]
    done = subprocess.run(
        [sys.executable, "-I", str(RECOMPUTE), str(Path(record["folder"]) / "bundle")],
        capture_output=True, check=True, timeout=60,
    )  # fmt: skip
    theirs, figures = json.loads(done.stdout), record["figures"]
    ours = {**figures["overhead"], "overheadPct": figures["overheadPct"]}
    ours["randomisationP"] = ours.pop("randomizationP")
    ours["leaveOneOut"] = ours.pop("leaveOneOutPct")
    for name in sorted(theirs.keys() & ours.keys()):
        if name == "verdict":
            assert theirs[name] == ours[name]
        else:
            assert theirs[name] == pytest.approx(ours[name], abs=2e-6), name
    assert {
        "overheadPct",
        "ciLowPct",
        "ciHighPct",
        "mde80Pct",
        "randomisationP",
    } <= theirs.keys() & ours.keys()


def test_the_last_protected_slot_alone_returns_outputs_and_all_return_digests(runs: Runs) -> None:
    program, records = runs
    folder = Path(records["none"]["folder"])
    legs = sorted((folder / "bundle/legs").glob("*-protected"))
    home = [path.name for path in (folder / "outputs").glob("*-outputs.sealed")]
    assert home == [f"{legs[-1].name.partition('-')[0]}-1-outputs.sealed"]
    for leg in legs:
        events = [json.loads(line) for line in (leg / "events.jsonl").read_bytes().splitlines()]
        body = {event["type"]: event["body"] for event in events}
        assert len(body["trained"]["result"]["outputSha256"]) == 64
        assert len(body["sealed-outputs"]["ciphertextSha256"]) == 64
    timed = {leg.name: json.loads((leg / "launch.json").read_bytes())["timings"] for leg in legs}
    assert [name for name, timings in timed.items() if "fetchSec" in timings] == [legs[-1].name]
    done = program("open", str(folder), "--json")
    assert done.returncode == 0, done.stderr
    opened = json.loads(done.stdout)["files"]
    salt = ("-", None)  # of what the row withholds; no leg's
    assert {(item["leg"], item["matchesEvents"]) for item in opened} == {
        (home[0].partition("-")[0], True),
        salt,
    }


def test_raw_slots_upload_nothing_and_say_what_opening_took(runs: Runs) -> None:
    _, records = runs
    figures = records["none"]["figures"]
    assert figures["rawUploadSec"] is None
    for leg in (Path(records["none"]["folder"]) / "bundle/legs").glob("*-raw"):
        timings = json.loads((leg / "launch.json").read_bytes())["timings"]
        assert set(timings) == {"startSec", "unsealSec", "totalSec"}
    # Of the protected arm both count in full.
    assert {"sealSec", "uploadSec", "unsealSec"} <= figures["fixedCostSec"].keys()
    assert figures["resources"]["raw"]["wallSec"]["unsealSec"] > 0


def test_every_bundle_verifies_offline(runs: Runs) -> None:
    program, records = runs
    done = program("verify", "--json", *(record["folder"] for record in records.values()))
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["ok"]
    assert len(document["runs"]) == len(records)


def test_nobody_sees_a_rate_before_the_end(runs: Runs) -> None:
    _, records = runs
    shown, _, table = records["none"]["err"].partition("releasing the allocation")
    assert "block 8 of 8 done" in shown
    assert "min left" in shown or "s left" in shown
    assert "/s" not in shown
    assert "%" not in shown
    assert "/s" in table
