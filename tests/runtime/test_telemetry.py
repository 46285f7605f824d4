"""What the pod samples of itself: the processor's load the GPU's through a stand-in for its tool."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from glasshouse.measurement.telemetry import disturbed
from glasshouse.runtime import machine

# Speaks as nvidia-smi does, of two GPUs; counts its own starts, since each costs time on a real machine.
TOOL = """#!/bin/sh
echo "$@" >> "$0.calls"
case "$*" in
  *--query-compute-apps*) printf '%s\\n' {apps} ;;
  *--loop-ms=*) while :; do
      echo "0, 1980, 2619, 41, 300.5, 0x0000000000000004, 99"
      echo "1, 1200, 2619, [N/A], 300.5, {throttle}, 99"
      sleep 0.05
    done ;;
esac
"""


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a stand-in for nvidia-smi on the path; call it with what it should say."""

    def make(apps: str = "", throttle: str = "0x0000000000000000") -> Path:
        path = tmp_path / "nvidia-smi"
        path.write_text(TOOL.format(apps=apps, throttle=throttle))
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        return path

    return make


def watch(seconds: float = 0.35, *, on_gpu: bool = True) -> list[dict]:
    with machine.Telemetry(0.1, on_gpu=on_gpu) as telemetry:
        time.sleep(seconds)
    return telemetry.samples


def test_the_processor_is_sampled_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    samples = watch()
    assert len(samples) >= 2
    assert all("gpu" not in sample for sample in samples)
    assert all(0 <= sample["othersPct"] <= 100 for sample in samples)


def test_our_own_work_is_not_counted_as_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with machine.Telemetry(0.2) as telemetry:
        until = time.process_time() + 1.0  # of work, however long it takes beside others
        while time.process_time() < until:
            pass
    assert telemetry.samples[-1]["cpuSec"] - telemetry.samples[0]["cpuSec"] > 0.2


def test_one_process_watches_every_gpu_for_the_whole_slot(tool) -> None:
    path = tool(apps="4711")
    samples = watch()
    assert [gpu["smMhz"] for gpu in samples[0]["gpu"]] == ["1980", "1200"]
    assert samples[-1]["otherProcesses"] == 0  # the one listed is ours, under the host's number
    assert disturbed(samples) == []
    calls = Path(f"{path}.calls").read_text().splitlines()
    assert sum("--loop-ms" in call for call in calls) == 1
    assert len(calls) == 3  # the edges ask who else computes; nothing is asked in between


def test_a_neighbour_and_throttled_clocks_disturb_a_slot(tool) -> None:
    tool(apps="4711 4712", throttle="0x0000000000000040")
    samples = watch()
    assert samples[-1]["otherProcesses"] == 1
    assert set(disturbed(samples)) == {"throttled", "other-gpu-process"}


def test_a_leg_on_the_processor_counts_everyone_on_the_gpu(tool) -> None:
    tool(apps="4711")
    assert watch(on_gpu=False)[-1]["otherProcesses"] == 1


def test_a_tool_that_ends_at_once_leaves_samples_without_gpu(tmp_path, monkeypatch) -> None:
    path = tmp_path / "nvidia-smi"
    path.write_text("#!/bin/sh\nexit 9\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(machine, "GPU_FIRST_LINE_SEC", 0.2)
    samples = watch()
    assert all(sample.get("gpu", []) == [] for sample in samples)
    assert {"throttled", "clock-drop", "other-gpu-process"}.isdisjoint(disturbed(samples))


def test_long_slots_keep_a_bounded_number_of_samples() -> None:
    telemetry = machine.Telemetry(0.01, limit=8)
    with telemetry:
        time.sleep(0.6)
    assert len(telemetry.samples) <= 9
