"""site/research/recompute.py, which readers run, agrees with the package on bundles of every kind."""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import math
import random
import runpy
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from glasshouse.canonical import canonical_json
from glasshouse.measurement.estimate import Block, Estimate, SlotRate, estimate_blocks
from glasshouse.measurement.fixed_cost import fixed_cost, overhead_at
from glasshouse.measurement.schedule import build_schedule
from glasshouse.measurement.telemetry import disturbed
from glasshouse.schema import Machine, Sample, Slot
from glasshouse.spec import RunSpec

from .conftest import abba_spec

SCRIPT = Path(__file__).parents[2] / "site" / "research" / "recompute.py"


def result_of(slot: Slot, rng: random.Random, samples: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    seconds = slot.measured_sec or 30.0
    rate = 50.0 * math.exp(rng.gauss(-0.03 if slot.arm == "protected" else 0.0, 0.01) - 0.002 * slot.index)
    return {
        "unit": "epochs", "units": max(1, round(rate * seconds)), "elapsedSec": seconds + rng.random() / 100,
        "telemetry": samples if samples is not None else [{"t": 1.0, "othersPct": 3.0, "stealPct": 0.0}] * 3,
        "machineStart": {"eccUncorrected": []}, "machineEnd": {"eccUncorrected": []},
    }  # fmt: skip


def write_bundle(
    folder: Path, spec: RunSpec, results: dict[int, dict[str, Any]]
) -> tuple[tuple[Slot, ...], list[dict[str, float]]]:
    """Write what the script reads, in the bundle's layout; return schedule and protected timings."""
    schedule = build_schedule(spec)
    predicate = {"run": "r", "spec": spec.model_dump(mode="json"), "schedule": [asdict(s) for s in schedule]}
    payload = canonical_json({"_type": "https://in-toto.io/Statement/v1", "predicate": predicate})
    envelope = {"payload": base64.b64encode(payload).decode(), "payloadType": "application/vnd.in-toto+json"}
    folder.mkdir()
    (folder / "plan.dsse.json").write_bytes(canonical_json(envelope | {"signatures": []}))
    timings = []
    for slot in schedule:
        leg = folder / "legs" / f"s{slot.index:03d}-{slot.arm}"
        leg.mkdir(parents=True)
        if slot.index not in results:
            continue
        measured = {"sealSec": 1.0 + slot.index / 10, "attestSec": 0.25, "zeroizeSec": 0.5, "totalSec": 99.0}
        if slot.lifecycle:
            timings.append(measured)
            events = [
                {"type": "released", "body": {}},
                {"type": "trained", "body": {"result": results[slot.index]}},
            ]
            (leg / "events.jsonl").write_bytes(b"".join(canonical_json(event) + b"\n" for event in events))
        else:
            (leg / "result.json").write_bytes(canonical_json(results[slot.index]))
        (leg / "launch.json").write_bytes(canonical_json({"status": "complete", "timings": measured}))
    return schedule, timings


def recompute(folder: Path) -> dict[str, Any]:
    """What the script prints, run here from its path: in a process of its own it imports scipy each time."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        runpy.run_path(str(SCRIPT))["main"](folder)
    figures: dict[str, Any] = json.loads(out.getvalue())
    return figures


def read(result: dict[str, Any]) -> tuple[list[Sample], list[Machine]]:
    samples = [Sample.model_validate_json(canonical_json(sample)) for sample in result["telemetry"]]
    edges = (result["machineStart"], result["machineEnd"])
    return samples, [Machine.model_construct(ecc_uncorrected=edge["eccUncorrected"]) for edge in edges]


def ours(schedule: tuple[Slot, ...], results: dict[int, dict[str, Any]]) -> Estimate:
    rates = {
        slot.index: SlotRate(
            slot.position,
            slot.arm,
            results[slot.index]["units"],
            results[slot.index]["elapsedSec"],
            bool(disturbed(*read(results[slot.index]))),
        )
        for slot in schedule
        if slot.index in results
    }
    members: dict[int | None, list[SlotRate]] = {}
    for slot in schedule:
        if not slot.burn_in:
            # A slot without a rate stands as one without work, so that its block is dropped as incomplete.
            nothing = SlotRate(slot.position, slot.arm, 0.0, 0.0)
            members.setdefault(slot.block, []).append(rates.get(slot.index, nothing))
    return estimate_blocks([Block(tuple(slots)) for slots in members.values()], 2.0)


def assert_same(figures: dict[str, Any], estimate: Estimate) -> None:
    named = {
        "overheadPct": estimate.overhead_pct,
        "ciLowPct": estimate.ci_low_pct, "ciHighPct": estimate.ci_high_pct,
        "tostLowPct": estimate.tost_low_pct, "tostHighPct": estimate.tost_high_pct, "tostP": estimate.tost_p,
        "mde80Pct": estimate.mde80_pct, "randomisationP": estimate.randomisation_p,
        "orderEffectPct": estimate.order_effect_pct, "orderEffectLowPct": estimate.order_effect_low_pct,
        "orderEffectHighPct": estimate.order_effect_high_pct, "n": estimate.n, "blocks": estimate.blocks,
        "marginPct": estimate.margin_pct,
    }  # fmt: skip
    for key, value in named.items():
        expected = value if value is None else pytest.approx(value, rel=1e-9, abs=1e-12)
        assert figures[key] == expected, key
    assert figures["verdict"] == estimate.verdict
    assert figures["leaveOneOut"] == pytest.approx(list(estimate.leave_one_out), rel=1e-9)
    dropped = asdict(estimate.dropped)
    assert figures["dropped"] == dropped | {"blocks": list(dropped["blocks"])}


@pytest.mark.parametrize("seed", [1, 2])
def test_abba_with_trouble(tmp_path: Path, seed: int) -> None:
    spec = abba_spec(seed=seed, duration=600.0, measure={"burn_in_slots": 2})
    rng = random.Random(seed)
    results = {slot.index: result_of(slot, rng) for slot in build_schedule(spec)}
    results[5]["telemetry"] = [{"t": 1.0, "othersPct": 95.0, "stealPct": 0.0}]
    results[12]["telemetry"] = [{"t": 1.0, "gpu": [{"smMhz": "1980", "throttle": "0x0000000000000020"}]}]
    clocks = ["1980"] * 8 + ["1100"] * 2
    results[20]["telemetry"] = [{"gpu": [{"smMhz": clock, "throttle": "N/A"}]} for clock in clocks]
    results[25] |= {"machineStart": {"eccUncorrected": ["0"]}, "machineEnd": {"eccUncorrected": ["1"]}}
    del results[40]
    schedule, timings = write_bundle(tmp_path / "bundle", spec, results)
    figures, estimate = recompute(tmp_path / "bundle"), ours(schedule, results)
    assert estimate.blocks == 5
    assert len(estimate.dropped.blocks) == 5
    assert_same(figures, estimate)
    assert figures["fixedCostSec"] == pytest.approx(fixed_cost(timings))
    assert estimate.overhead_pct is not None
    expected = overhead_at(300.0, fixed_cost(timings)["totalSec"], estimate.overhead_pct)
    assert figures["overheadAtSec"]["300"] == pytest.approx(expected)


def test_clean_abba_and_a_control(tmp_path: Path) -> None:
    for control in ("none", "delay"):
        spec = abba_spec(control=control, measure={"blocks": 9})
        rng = random.Random(4)
        results = {slot.index: result_of(slot, rng) for slot in build_schedule(spec)}
        schedule, _ = write_bundle(tmp_path / control, spec, results)
        estimate = ours(schedule, results)
        assert estimate.n == 9
        assert_same(recompute(tmp_path / control), estimate)


@pytest.mark.parametrize("order", ["raw-first", "protected-first", "protected-only"])
def test_without_blocks(tmp_path: Path, order: str) -> None:
    spec = abba_spec(order=order)
    rng = random.Random(8)
    results = {slot.index: result_of(slot, rng) for slot in build_schedule(spec)}
    schedule, _ = write_bundle(tmp_path / "bundle", spec, results)
    figures, estimate = recompute(tmp_path / "bundle"), ours(schedule, results)
    assert (estimate.overhead_pct is None) == (order == "protected-only")
    assert_same(figures, estimate)


def test_a_run_cut_off_after_two_slots_has_no_block(tmp_path: Path) -> None:
    spec = abba_spec(measure={"burn_in_slots": 0})
    rng = random.Random(3)
    results = {slot.index: result_of(slot, rng) for slot in build_schedule(spec)[:2]}
    schedule, _ = write_bundle(tmp_path / "bundle", spec, results)
    estimate = ours(schedule, results)
    assert (estimate.overhead_pct, estimate.dropped.incomplete) == (None, 10)
    assert_same(recompute(tmp_path / "bundle"), estimate)


def test_a_slot_that_was_launched_again_counts_by_its_last_launch(tmp_path: Path) -> None:
    spec = abba_spec()
    rng = random.Random(5)
    results = {slot.index: result_of(slot, rng) for slot in build_schedule(spec)}
    schedule, _ = write_bundle(tmp_path / "bundle", spec, results)
    first = next(slot for slot in schedule if slot.lifecycle)
    leg = tmp_path / "bundle" / "legs" / f"s{first.index:03d}-protected"
    leg.rename(leg.with_name(f"{leg.name}-l2"))
    leg.mkdir()
    (leg / "launch.json").write_bytes(canonical_json({"status": "failed", "timings": {"attestSec": 60.0}}))
    assert_same(recompute(tmp_path / "bundle"), ours(schedule, results))


def test_nothing_measured(tmp_path: Path) -> None:
    schedule, _ = write_bundle(tmp_path / "bundle", abba_spec(), {})
    assert_same(recompute(tmp_path / "bundle"), ours(schedule, {}))


def test_as_readers_start_it(tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle", abba_spec(), {})
    command = [sys.executable, "-I", str(SCRIPT), str(tmp_path / "bundle")]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    assert json.loads(done.stdout) == recompute(tmp_path / "bundle")


def test_needs_only_numpy_and_scipy() -> None:
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(SCRIPT.read_text()))
        for name in (
            [alias.name for alias in node.names] if isinstance(node, ast.Import)
            else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        )
    }  # fmt: skip
    assert imported - set(sys.stdlib_module_names) == {"numpy", "scipy"}
