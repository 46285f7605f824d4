"""What an H100 taught: the evidence that came back from it, as it is committed, read by today's code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from glasshouse.measurement.telemetry import disturbed
from glasshouse.paths import Workspace
from glasshouse.publishing.publication_files import committed_keyring
from glasshouse.records.verify import VerifiedRow, verify
from glasshouse.schema import Result

ROOT = Path(__file__).resolve().parents[2]
H100 = "-local-h100-"
BUNDLES = sorted((ROOT / "site/research/bundles").glob(f"2026-11-2[78]{H100}*"))


def events(bundle: Path, kind: str) -> list[dict[str, Any]]:
    """Bodies of the events of one type, of every protected launch."""
    lines = [
        json.loads(line)
        for path in sorted(bundle.glob("legs/*/events.jsonl"))
        for line in path.read_text("utf-8").splitlines()
    ]
    return [line["body"] for line in lines if line["type"] == kind]


@pytest.fixture(scope="module", params=BUNDLES, ids=lambda path: path.name.replace(H100, "-"))
def row(request: pytest.FixtureRequest) -> tuple[Path, VerifiedRow]:
    return request.param, verify(
        request.param, committed_keyring(Workspace.of_source(ROOT).keyring)
    ).require()


def test_every_launch_trained_on_the_gpu_that_was_asked_for(row: tuple[Path, VerifiedRow]) -> None:
    _, found = row
    results = [result for _, result in found.facts.all_results]
    assert results
    assert {result.device for result in results} == {"cuda"}
    assert {result.machine_start.gpu_names for result in results} == {("NVIDIA H100 80GB HBM3",)}
    assert all(check.ok for check in found.judgement.checks if check.code == "gpu-not-as-asked")


def test_device_memory_was_read_back_and_the_search_of_the_host_counts(row: tuple[Path, VerifiedRow]) -> None:
    bundle, found = row
    reports = events(bundle, "zeroized")
    assert reports
    for report in reports:
        device = report["buffers"]["device"]
        assert (device["readBackZero"], device["cache"]) == (True, "released")
        assert device["bytes"] > 900 << 20  # weights, optimizer and data were there, not on the host
        needles = {
            needle["class"]: needle for needle in report["needles"] if needle["where"] == "trainer/cuda"
        }
        assert set(needles) == {"trained-parameter", "optimizer-or-data"}
        # Before the wipe host memory may hold copies of bytes taken from a device (so in 34 of 37 launches),
        # in what copies pass through, or none; after it none.
        assert {needle["after"] for needle in needles.values()} == {0}
    assert not {"residue-not-scanned", "residue-left"} & set(found.judgement.caveats)


def test_telemetry_of_a_real_driver_reads(row: tuple[Path, VerifiedRow]) -> None:
    bundle, _ = row
    results = [body["result"] for body in events(bundle, "trained")]
    results += [
        json.loads(path.read_text())
        for path in bundle.glob("legs/*/result.json")
        if "raw" in path.parent.name
    ]
    assert results
    for result in results:
        samples = [sample for sample in result["telemetry"] if sample.get("gpu")]
        assert samples
        for sample in samples:
            (gpu,) = sample["gpu"]
            assert 300 <= float(gpu["smMhz"]) <= 1980
            assert 50 <= float(gpu["powerW"]) <= 750
        # At full load the software power cap is always on (0x4); it is no disturbance.
        read = Result.read(json.dumps(result | {"telemetry": samples}).encode())
        assert read is not None
        assert disturbed(read.telemetry, [read.machine_start, read.machine_end]) == []


def test_a_row_that_ran_out_of_time_is_excluded_though_its_blocks_would_give_a_figure() -> None:
    (bundle,) = [path for path in BUNDLES if "abba" in path.name and "-27-" in path.name]
    found = verify(bundle, committed_keyring(Workspace.of_source(ROOT).keyring))
    row = found.require()
    assert (found.ok, found.status, found.overhead_pct) == (True, "excluded", None)
    assert "interrupted" in {check.code for check in row.judgement.exclusion}


def test_nine_blocks_tell_two_thousandths_on_a_gpu_that_is_capped_by_its_power() -> None:
    (bundle,) = [path for path in BUNDLES if "abba" in path.name and "-28-" in path.name]
    found = verify(bundle, committed_keyring(Workspace.of_source(ROOT).keyring))
    row = found.require()
    assert (found.ok, found.status) == (True, "verified")
    figures = row.judgement.figures
    assert figures is not None
    overhead = figures.overhead
    assert overhead is not None
    assert (overhead.blocks, overhead.dropped_blocks, overhead.verdict) == (9, 0, "within")
    assert overhead.ci_low_pct is not None
    assert overhead.ci_high_pct is not None
    assert overhead.ci_low_pct < 0 < overhead.ci_high_pct
    assert overhead.ci_high_pct - overhead.ci_low_pct < 0.3
    # No headline: one machine for operator and pod, and too short.
    assert {"local-pod", "short"} <= set(row.judgement.caveats)
    reports = events(bundle, "zeroized")
    assert len(reports) == 18
    assert {report["residue"] for report in reports} == {"scanned"}
    assert {report["unscannedRegions"] for report in reports} == {0}
