from __future__ import annotations

from typing import Any

import pytest
from pydantic.alias_generators import to_snake

from glasshouse.measurement.telemetry import Limits, disturbed, same_machine
from glasshouse.schema import GpuSample, Machine, Sample


def machine(**changes: Any) -> Machine:
    values = {
        "bootId": "b6f4", "hostnameDigest": "aa", "allocation": "gh-1", "gpuUuids": ["GPU-1"],
        "pciBusIds": ["00000000:01:00.0"], "driver": "580.1", "eccUncorrected": ["0"],
        "uptimeSec": 100.0, "cpuModel": "x", "cpuCount": 2, "loadAvg1": 0.1,
    } | changes  # fmt: skip
    return Machine.model_construct(**{to_snake(name): value for name, value in values.items()})


def sample(**values: Any) -> Sample:
    return Sample.model_construct(**{to_snake(name): value for name, value in values.items()})


def test_one_machine() -> None:
    later = machine(uptimeSec=200.0, loadAvg1=3.0, eccUncorrected=["1"])
    assert same_machine([machine(), machine(), later]) == []
    cpu_only: dict[str, Any] = {"gpuUuids": [], "pciBusIds": [], "driver": "", "eccUncorrected": []}
    assert same_machine([machine(**cpu_only)] * 2) == []
    unspoken = {"eccUncorrected": ["N/A"]}
    assert same_machine([machine(**unspoken)] * 2) == []


@pytest.mark.parametrize(
    ("changes", "failure"),
    [
        ({"bootId": "other"}, "boot-id-changed"),
        ({"allocation": "gh-2"}, "allocation-changed"),
        ({"gpuUuids": ["GPU-2"]}, "gpu-uuid-changed"),
        ({"gpuUuids": ["GPU-1", "GPU-2"]}, "gpu-uuid-changed"),
        ({"pciBusIds": ["00000000:02:00.0"]}, "pci-bus-id-changed"),
        ({"driver": "590.0"}, "driver-changed"),
        ({"cpuModel": "y"}, "cpu-model-changed"),
        ({"uptimeSec": 99.0}, "uptime-decreased"),
    ],
)
def test_another_machine(changes: dict[str, Any], failure: str) -> None:
    assert same_machine([machine(), machine(), machine(**changes)]) == [failure]


def test_counters_must_not_fall() -> None:
    counts = [["0", "4"], ["0", "4"], ["1", "3"]]
    assert same_machine([machine(eccUncorrected=count) for count in counts]) == ["ecc-count-decreased"]


def test_silence_is_no_proof() -> None:
    assert same_machine([]) == same_machine([machine()]) == ["machine-records-missing"]
    assert same_machine([machine(bootId=""), machine(bootId="")]) == ["boot-id-missing"]
    assert same_machine([machine(bootId="", allocation="")] * 2) == ["boot-id-missing", "allocation-missing"]


def gpu(clock: str = "1980", throttle: str = "0x0000000000000004") -> Sample:
    seen = GpuSample(sm_mhz=clock, throttle=throttle)
    return sample(t=1.0, othersPct=90.0, stealPct=0.0, gpu=(seen,))


def test_quiet_slots() -> None:
    assert disturbed([]) == []
    # On a GPU a software power cap is normal, and the host's other tenants are not the GPU's load.
    assert disturbed([gpu()] * 30) == []
    assert disturbed([sample(t=1.0, othersPct=49.0, stealPct=1.0)] * 5) == []
    assert disturbed([gpu("N/A", "N/A"), sample(gpu=()), sample()]) == []


@pytest.mark.parametrize("bit", [0x8, 0x20, 0x40, 0x80])
def test_throttled(bit: int) -> None:
    assert disturbed([gpu()] * 9 + [gpu(throttle=f"0x{bit | 4:016x}")]) == ["throttled"]


def test_clock_drop_needs_more_than_one_sample() -> None:
    assert disturbed([gpu()] * 9 + [gpu("1200")]) == []
    assert disturbed([gpu()] * 18 + [gpu("1200")] * 2) == ["clock-drop"]
    assert disturbed([gpu()] * 40 + [gpu("1200")] * 2) == []
    assert disturbed([gpu()] * 40 + [gpu("1200")] * 2, limits=Limits(clock_drop_share=0.01)) == ["clock-drop"]


def test_other_load() -> None:
    assert disturbed([sample(othersPct=70.0, stealPct=9.0)] * 3) == ["cpu-contended", "cpu-steal"]
    assert disturbed([gpu().model_copy(update={"other_processes": 1})]) == ["other-gpu-process"]
    edges = [machine(), machine(eccUncorrected=["2"])]
    assert disturbed([gpu()], edges) == ["ecc-error"]
