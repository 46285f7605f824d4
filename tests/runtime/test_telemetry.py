"""What the pod samples of itself: the processor's load, and the GPU's through a stand-in for its tool."""

from __future__ import annotations

import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest

from glasshouse.canonical import canonical_json
from glasshouse.measurement.telemetry import disturbed
from glasshouse.runtime import gpus, machine
from glasshouse.schema import Sample


def read(samples: list[dict[str, Any]]) -> list[Sample]:
    return [Sample.model_validate_json(canonical_json(sample)) for sample in samples]


# Speaks as nvidia-smi does, of two GPUs; counts its own starts, since each costs time on a real machine. A
# query that names a refused field fails as a whole, as the tool does it.
TOOL = """#!/bin/sh
echo "$@" >> "$0.calls"
case "$*" in *'{refuses}'*)
  echo "Field \\"{refuses}\\" is not a valid field to query." ; exit 2 ;;
esac
case "$*" in
  *--query-compute-apps*) printf '%s\\n' {apps} ; exit ;;
esac
for gpu in 0 1; do
  line=
  for field in $(echo "$1" | sed 's/--query-gpu=//; s/,/ /g'); do
    case $field.$gpu in
      name.*) value="NVIDIA H100 80GB HBM3" ;;
      uuid.*) value=GPU-$gpu ;;
      pci.bus_id.*) value=00000000:0$gpu:00.0 ;;
      driver_version.*) value=580.159.04 ;;
      ecc*) value=0 ;;
      clocks.sm.0) value=1980 ;; clocks.sm.1) value=1200 ;;
      clocks.mem.*) value=2619 ;;
      temperature.gpu.0) value=41 ;; temperature.gpu.1) value="[N/A]" ;;
      power.draw.*) value=300.5 ;;
      clocks_throttle_reasons.active.0) value=0x0000000000000004 ;;
      clocks_throttle_reasons.active.1) value={throttle} ;;
      utilization.gpu.*) value=99 ;;
    esac
    line="$line, $value"
  done
  echo "$line" | sed 's/^, //'
done
"""


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a stand-in for nvidia-smi on the path; call it with what it should say."""

    def make(
        apps: str = "", throttle: str = "0x0000000000000000", refuses: str = "no field", text: str = TOOL
    ) -> Path:
        path = tmp_path / "nvidia-smi"
        path.write_text(text.format(apps=apps, throttle=throttle, refuses=refuses))
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


def test_every_sample_asks_every_gpu_once(tool) -> None:
    path = tool(apps="4711")
    samples = watch()
    assert [gpu["smMhz"] for gpu in samples[0]["gpu"]] == ["1980", "1200"]
    assert samples[0]["gpu"][1]["tempC"] == "[N/A]"
    assert samples[-1]["otherProcesses"] == 0  # the one listed is ours, under the host's number
    assert disturbed(read(samples)) == []
    calls = Path(f"{path}.calls").read_text().splitlines()
    assert sum("clocks.sm" in call for call in calls) == len(samples) + 1  # and once before the clock starts
    assert sum("compute-apps" in call for call in calls) == 2  # at the edges


def test_a_refused_field_costs_that_field_and_no_other(tool) -> None:
    path = tool(refuses="power.draw")
    samples = watch()
    assert samples[0]["gpu"][0] == {
        "smMhz": "1980", "memMhz": "2619", "tempC": "41", "powerW": "[N/A]", "throttle": "0x0000000000000004",
        "utilPct": "99",
    }  # fmt: skip
    calls = Path(f"{path}.calls").read_text().splitlines()
    assert sum("power.draw" in call for call in calls) == 2  # with the others, alone, and never again
    tool(refuses="ecc.errors")
    assert [gpu["uuid"] for gpu in gpus.query_gpus()] == ["GPU-0", "GPU-1"]
    assert {gpu["ecc.errors.uncorrected.volatile.total"] for gpu in gpus.query_gpus()} == {"[N/A]"}
    tool(refuses="uuid")  # whose identity is not told is no GPU that a proof can name
    assert gpus.query_gpus() == []


def test_a_tool_that_hangs_is_asked_once(tool, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tool(text='#!/bin/sh\necho x >> "$0.calls"\nexec sleep 60\n')
    monkeypatch.setattr(gpus, "TIMEOUT_SEC", 0.3)
    asked = gpus.nvidia_smi()
    assert asked is not None
    assert asked.query(gpus.IDENTITY_FIELDS) == []
    assert asked.query(gpus.IDENTITY_FIELDS) == []
    assert Path(f"{path}.calls").read_text() == "x\n"


@pytest.mark.parametrize("refuses", ["", "nvmlDeviceGetPowerUsage"])
def test_nvml_says_what_the_tool_says(tool, monkeypatch: pytest.MonkeyPatch, refuses: str) -> None:
    """A stand-in for nvidia-ml-py, with the values that an H100 gave (driver 580.159.04), or one refused."""

    class NVMLError(Exception):
        pass

    def refusing(name: str, value: object) -> object:
        def call(*_: object) -> object:
            if name == refuses:
                raise NVMLError
            return value

        return call

    said = {
        "nvmlInit": None, "nvmlDeviceGetCount": 1, "nvmlDeviceGetHandleByIndex": "gpu",
        "nvmlDeviceGetClockInfo": 1980, "nvmlDeviceGetTemperature": 56, "nvmlDeviceGetPowerUsage": 678590,
        "nvmlDeviceGetCurrentClocksThrottleReasons": 4,
        "nvmlDeviceGetUtilizationRates": types.SimpleNamespace(gpu=100, memory=40),
    }  # fmt: skip
    module = types.SimpleNamespace(
        NVMLError=NVMLError, NVML_CLOCK_SM=1, NVML_CLOCK_MEM=2, NVML_TEMPERATURE_GPU=0,
        **{name: refusing(name, value) for name, value in said.items()},
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", module)
    path = tool()
    assert watch()[0]["gpu"] == [
        {"smMhz": "1980", "memMhz": "1980", "tempC": "56", "powerW": "[N/A]" if refuses else "678.59",
         "throttle": "0x0000000000000004", "utilPct": "100"}
    ]  # fmt: skip
    assert all("compute-apps" in call for call in Path(f"{path}.calls").read_text().splitlines())


def test_a_neighbour_and_throttled_clocks_disturb_a_slot(tool) -> None:
    tool(apps="4711 4712", throttle="0x0000000000000040")
    samples = watch()
    assert samples[-1]["otherProcesses"] == 1
    assert set(disturbed(read(samples))) == {"throttled", "other-gpu-process"}


def test_a_leg_on_the_processor_counts_everyone_on_the_gpu(tool) -> None:
    tool(apps="4711")
    assert watch(on_gpu=False)[-1]["otherProcesses"] == 1


def test_a_tool_that_fails_leaves_samples_without_gpu(tool) -> None:
    tool(text="#!/bin/sh\nexit 9\n")
    samples = watch()
    assert all(sample.get("gpu", []) == [] for sample in samples)
    assert {"throttled", "clock-drop", "other-gpu-process"}.isdisjoint(disturbed(read(samples)))


def test_long_slots_keep_a_bounded_number_of_samples() -> None:
    telemetry = machine.Telemetry(0.01, limit=8)
    with telemetry:
        time.sleep(0.6)
    assert len(telemetry.samples) <= 9
