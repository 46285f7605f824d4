"""`glasshouse train`: what its command made or changed comes back; and how a job meets its ceiling."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import Program
from tests.e2e.test_project import files

pytestmark = [pytest.mark.slow]

MAIN = """
import json, pathlib, sys
import helper
pathlib.Path("runs/exp 1").mkdir(parents=True)
pathlib.Path("runs/exp 1/model.bin").write_bytes(b"weights")
pathlib.Path("config.json").write_text(json.dumps({"words": sys.argv[1:]}))
pathlib.Path("src/kept.txt").read_text()
"""
CLOCK = [
    "model=custom", "model.entry=tests/e2e/workloads/clocked.py:Clocked", "+model.params.unit_ms=2",
    "measure=quick", "measure.warmup_sec=0.2", "measure.head_interval_sec=0.3",
]  # fmt: skip
SMALL = [
    "order=protected-only", "payload=private", "duration=null", "measure=quick", "measure.warmup_sec=0.2",
    "measure.head_interval_sec=0.3", "model.inputs=32", "model.hidden=64", "model.batch=64",
    "provider.threads=1",
]  # fmt: skip


def test_a_folder_goes_out_and_what_its_command_made_or_changed_comes_back(
    program: Program, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    (mine / "src").mkdir(parents=True)
    (mine / "main.py").write_text(MAIN)
    (mine / "helper.py").touch()
    (mine / "config.json").write_text("{}")
    (mine / "src/kept.txt").write_text("as it was")
    before = files(mine)
    done = program("train", str(mine), "--out", str(program.runs), "--", "python", "main.py", "--lr=3", "a b")
    assert done.returncode == 0, done.stderr
    assert "  comes back: every file that it makes or changes in its folder (" in done.stderr
    assert "  what comes back of its folder, made or changed there: 2 files, " in done.stderr
    (folder,) = [path for path in program.runs.iterdir() if path.name.startswith("2")]
    last = done.stderr.rstrip().splitlines()[-1]
    assert last == f"  open it: glasshouse open {folder}   what came back is put into {folder / 'opened'}"
    opened = program("open", str(folder))
    assert opened.returncode == 0, opened.stderr
    assert files(folder / "opened/s000-1") == {
        "config.json": (b'{"words": ["--lr=3", "a b"]}', False),
        "runs/exp 1/model.bin": (b"weights", False),
    }
    assert files(mine) == before  # nothing is put over what is here


def ended(program: Program, out: str) -> tuple[dict, dict, Path]:
    """The record, the leg's result as signed, and the run's folder."""
    record = json.loads(out)["runs"][0]
    folder = Path(record["folder"])
    (events,) = folder.glob("bundle/legs/*/events.jsonl")
    lines = [json.loads(line) for line in events.read_bytes().splitlines()]
    assert program("verify", str(folder)).returncode == 0
    return record, next(line["body"]["result"] for line in lines if line["type"] == "trained"), folder


def test_a_session_is_ended_at_its_ceiling_which_was_foretold_and_is_sealed(program: Program) -> None:
    hours = f"model.max_hours={8 / 3600:.5f}"
    done = program("run", "--json", "--out", str(program.runs), *CLOCK, "steps=5000000", hours)
    assert done.returncode == 1, done.stderr
    foretold = re.search(r"a step 5000000 optimizer steps need about .*; (\S+) ends it at", done.stderr)
    assert foretold is not None, done.stderr
    assert foretold[1] == hours.rstrip("0")
    assert "\n  it goes on\n" in done.stderr
    assert f"it was asked to end: {hours.rstrip('0')} was over\n" in done.stderr
    record, result, folder = ended(program, done.stdout)
    assert {"steps-not-as-planned", "job-failed"} <= set(record["exclusion"]["codes"])
    assert record["exit"] == {"code": None, "signal": None, "outOfMemory": False, "outOfTime": True}
    assert 0 < result["steps"] < 5_000_000
    opened = json.loads(program("open", str(folder), "--json").stdout)
    assert opened["ok"]
    assert any(
        item["path"].endswith("s000-1.safetensors") and item["matchesEvents"] for item in opened["files"]
    )


@pytest.mark.train
@pytest.mark.soak  # its parts are tested in tests/lifecycle/test_ceiling.py and above
def test_ctrl_c_brings_home_what_a_built_in_model_has(program: Program) -> None:
    process = program.start("run", "--json", "--out", str(program.runs), *SMALL, "steps=5000000")
    assert process.stderr is not None
    for line in process.stderr:
        if "measuring" in line:
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=90)
    assert "asking it to end with the unit of work that it is at" in err
    record, result, folder = ended(program, out)
    assert "interrupted" in record["exclusion"]["codes"]
    assert result["steps"] > 0
    assert json.loads(program("open", str(folder), "--json").stdout)["ok"]
    assert program.pods() == []


@pytest.mark.train
@pytest.mark.soak  # the Trainer's total is read in tests/runtime/test_forecast.py
def test_who_is_told_at_a_terminal_that_a_ceiling_will_not_do_can_stop_there(
    program: Program, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(program.root / "examples/projects/trainer", mine)
    words = [
        "train", str(mine), "provider.threads=1", "model.max_hours=0.1", "--out", str(program.runs), "--",
        "python", "finetune.py", "--config", "config.json", "--epochs", "100000",
    ]  # fmt: skip
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(program.root)
        os.execve(sys.executable, [sys.executable, "-m", "glasshouse", *words], program.environment)
    shown, told, until = b"", False, time.monotonic() + 150
    while time.monotonic() < until:
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                shown += os.read(terminal, 65536)
            except OSError:
                break
        if not told and b"type stop and Enter" in shown:
            told = True
            os.write(terminal, b"stop\n")
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    _, status = os.waitpid(pid, 0)
    text = shown.decode("utf-8", "replace")
    assert told, text
    assert os.waitstatus_to_exitcode(status) == 1, text
    assert "1400000 optimizer steps need about" in text
    assert "asking the command to end; it has 30 s to save what it has" in text
    (folder,) = [path for path in program.runs.iterdir() if path.name.startswith("2")]
    record = json.loads((folder / "bundle/record.json").read_bytes())
    assert "interrupted" in record["exclusion"]["codes"]
    assert program("open", str(folder)).returncode == 0
    assert list((folder / "opened/s000-1/outputs").glob("checkpoint-*"))
