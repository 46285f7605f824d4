"""The program that measures what a budget of minutes holds: what it plans, and how it fails."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[1]


def load(name: str) -> ModuleType:
    """A program of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


evidence = load("gpu_evidence")


@given(left=st.floats(0, 7200), raw=st.floats(0.5, 60), protected=st.floats(0.5, 60))
def test_what_is_planned_can_be_finished(left: float, raw: float, protected: float) -> None:
    chosen = evidence.design(left, {"raw": raw, "protected": protected})
    mean = (raw + protected) / 2
    if chosen is None:
        least = (4 * evidence.LEAST_BLOCKS + 1) * (mean + evidence.DISCARD_SEC + evidence.LEAST_SLOT_SEC)
        assert left < evidence.SLACK * least + evidence.AROUND_RUN_SEC
        return
    blocks, slot = chosen
    assert evidence.LEAST_BLOCKS <= blocks <= evidence.MOST_BLOCKS
    assert slot >= evidence.LEAST_SLOT_SEC
    assert (4 * blocks + 1) * (mean + evidence.DISCARD_SEC + slot) + evidence.AROUND_RUN_SEC <= left


def test_time_goes_into_longer_slots_first_and_then_into_more_blocks() -> None:
    launch = {"raw": 8.0, "protected": 10.0}
    assert evidence.design(400.0, launch) is None
    assert evidence.design(560.0, launch)[0] == 10
    assert evidence.design(1800.0, launch)[0] > 10
    assert evidence.design(7200.0, launch)[0] == 20


def test_what_ended_two_slots_short_on_an_h100_is_not_planned_again() -> None:
    """33 slots had 402 s, and a launch took 10.4 s beside its work where a pair had told 9.2."""
    chosen = evidence.design(402.0, {"both": 9.2}, 8)
    assert chosen is None or 33 * (10.4 + evidence.DISCARD_SEC + chosen[1]) + evidence.AROUND_RUN_SEC <= 402.0
    assert evidence.design(500.0, {"both": 9.2}, 8) is not None


@pytest.mark.parametrize(("text", "value"), [("9m", 540.0), ("540s", 540.0), ("90", 90.0), ("1.5m", 90.0)])
def test_a_budget_is_read(text: str, value: float) -> None:
    assert evidence.seconds(text) == value


@pytest.mark.parametrize("text", ["", "m", "9h", "-9m", "1s", "nan", "inf", "9 minutes"])
def test_a_budget_that_is_none_is_one_line(text: str) -> None:
    done = subprocess.run(
        [sys.executable, "tools/gpu_evidence.py", "--place", "/nonexistent", f"--budget={text}"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "--budget" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "auto"),
    ],
)
def test_the_gpu_goes_by_its_whole_name(name: str, expected: str) -> None:
    assert evidence.gpu_name({"driver": {"gpus": [{"name": name}]}}) == expected
    assert evidence.gpu_name({"driver": {"error": "no tool"}}) == "auto"
    assert evidence.gpu_name({}) == "auto"


def test_a_launch_is_timed_beside_its_work(tmp_path: Path) -> None:
    legs = tmp_path / "bundle" / "legs"
    result = {"elapsedSec": 3.0, "warmupSec": 1.0}
    for name, arm, took in (("s000-raw", "raw", 12.3), ("s001-protected", "protected", 24.6)):
        (legs / name).mkdir(parents=True)
        launch = {"arm": arm, "startedAt": 100.0, "endedAt": 100.0 + took}
        (legs / name / "launch.json").write_text(json.dumps(launch))
    (legs / "s000-raw" / "result.json").write_text(json.dumps(result))
    event = {"type": "trained", "body": {"result": result}}
    (legs / "s001-protected" / "events.jsonl").write_text(json.dumps(event) + "\n")
    found = evidence.launch_sec(tmp_path)
    assert found == {"raw": pytest.approx(8.3), "protected": pytest.approx(20.6)}


def test_without_a_gpu_every_look_fails_by_name_and_is_survived() -> None:
    done = subprocess.run(
        [sys.executable, "tools/gpu_look.py"], cwd=ROOT, capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin"}, timeout=170,
    )  # fmt: skip
    found = json.loads(done.stdout)
    steps = {name: found[name]["ok"] for name in ("driver", "nvml", "cuda", "confined", "sealed")}
    if any(steps.values()):
        pytest.skip("a GPU is there")
    assert done.returncode == 1
    assert "nvidia-smi is not on the path" in found["driver"]["error"]
    assert all(found[name]["error"] for name in steps)


def test_an_interpreter_without_torch_is_named(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True, timeout=60)
    done = subprocess.run(
        ["bash", "tools/gpu_evidence.sh", "--budget", "1m"], cwd=ROOT, capture_output=True, text=True,
        env={"PATH": "/usr/bin:/bin", "PYTHON": str(tmp_path / "bare/bin/python"), "TMPDIR": str(tmp_path)},
        check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: this interpreter has no torch (PYTHON): name one that has it, PYTHON=/path"
    ]


@pytest.mark.train  # torch has to be there for the stay to begin
def test_a_stay_without_a_kit_ends_with_what_it_measured_and_says_what_that_is_for(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "tools/gpu_evidence.py", "--budget", "30s", "--gpu", "cpu", "--launch", "60",
         "--place", str(tmp_path / "stay"), "--out", str(tmp_path / "gpu.tar.gz")],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert "blocks: left out" in done.stdout
    assert f"archive: {tmp_path / 'gpu.tar.gz'}: to look at and to verify" in done.stdout
    assert "error" not in done.stdout + done.stderr
    with tarfile.open(tmp_path / "gpu.tar.gz") as packed:
        assert "runs" in {name.strip("./") for name in packed.getnames()}
