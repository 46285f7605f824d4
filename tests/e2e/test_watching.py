"""A private job watched by a second process while it goes on, and what is left of that when it is over."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.e2e.conftest import Program, wait_until
from tests.e2e.test_project import opened, project, words

pytestmark = [pytest.mark.slow]

NEEDLE = 0.0123456789
EVENTS = "bundle/legs/s000-protected/events.jsonl"
PLAIN = f"""
import json, pathlib, sys, time
pathlib.Path("out").mkdir()
print("\\x1b[31mbegins\\x1b[0m", flush=True)
for step in range(1, 7):
    line = json.dumps({{"step": step, "loss": {NEEDLE} / step, "lr": 1e-3}})
    print(line, flush=True)
    with open("out/metrics.jsonl", "a") as stream:
        stream.write(line + "\\n")
    sys.stderr.write(f"\\r{{step}}/6 [00:0{{step}}<00:0{{6 - step}}, 1.00it/s]")
    sys.stderr.flush()
    time.sleep(1)
sys.stderr.write("\\n")
sys.stderr.flush()
print("ends", flush=True)
"""


def lines_of(process: subprocess.Popen[str], count: int) -> list[str]:
    assert process.stdout is not None
    return [process.stdout.readline() for _ in range(count)]


def test_a_job_that_prints_json_is_watched_while_it_goes_on(program: Program, tmp_path: Path) -> None:
    folder = project(tmp_path / "job", {"main.py": PLAIN})
    settings = ("gpu=cpu", "model.watch_sec=1", "model.checkpoint_min=0.05")
    running = program.start(*words(folder, program, *settings), "python", "main.py")
    try:
        place = "*/watch/s000-1/000001.sealed"
        wait_until(lambda: any(program.runs.glob(place)), 90, "a record is home")
        (run,) = (path.parents[2] for path in program.runs.glob(place))
        with (
            program.start("logs", "-f", str(run)) as logs,
            program.start("watch", "--json", str(run)) as watch,
        ):
            assert lines_of(logs, 1) == ["begins\n"]
            first = json.loads(lines_of(watch, 1)[0])
            assert running.poll() is None, "the job was over before it was watched"
            _, err = running.communicate(timeout=150)
            assert logs.stdout is not None
            assert watch.stdout is not None
            said = logs.stdout.read()
            records = [first, *map(json.loads, watch.stdout.read().splitlines())]
    finally:
        running.kill()
    assert running.returncode == 0, err
    assert said.splitlines()[-1] == "ends"
    # A bar without a line's end shares its line with what follows, unless a record ended between the two.
    steps = [line[line.index('{"step"') :] for line in said.splitlines() if '{"step"' in line]
    assert [json.loads(line)["step"] for line in steps] == list(range(1, 7))
    assert [record["number"] for record in records] == list(range(1, len(records) + 1))
    assert records[0]["loss"] > records[-1]["loss"] == NEEDLE / 6
    assert any(record["nextCheckpointSec"] for record in records)
    points = [point for record in records for point in record["points"]]
    assert [p["step"] for p in points if p["source"] == "out/metrics.jsonl"] == list(range(1, 7))
    for command in ("show", "watch"):
        assert f"loss {NEEDLE / 6:.4g}" in program(command, str(run)).stdout
    assert program("logs", str(run)).stdout.startswith("begins\n")
    tells_nothing(run)
    assert (opened(program, run, tmp_path / "opened") / "metrics.jsonl").is_file()
    assert program("verify", str(run)).returncode == 0


def tells_nothing(run: Path) -> None:
    """What becomes public has of the records their number, their digests and their one size."""
    sizes = {path.stat().st_size for path in run.glob("watch/*/*.sealed")}
    assert len(sizes) == 1
    events = [json.loads(line) for line in (run / EVENTS).read_bytes().splitlines()]
    watched = [event["body"] for event in events if event["type"] == "watched"]
    assert len(watched) == len(list(run.glob("watch/*/*.sealed")))
    assert all(set(body) == {"number", "bytes", "ciphertextSha256"} for body in watched)
    assert {body["bytes"] for body in watched} == sizes
    for path in (path for path in (run / "bundle").rglob("*") if path.is_file()):
        assert str(NEEDLE)[:8].encode() not in path.read_bytes()


def test_a_built_in_model_reports_by_itself(program: Program) -> None:
    code, _, run, err = program.run(
        "order=protected-only", "payload=private", "duration=null", "steps=60", "model.watch_sec=1",
        "model.batches_per_epoch=2",
    )  # fmt: skip
    assert code == 0, err
    last = json.loads(program("watch", "--json", str(run)).stdout.splitlines()[-1])
    assert (last["done"], last["total"]) == (60, 60)
    assert last["learningRate"] == pytest.approx(0.001)
    assert last["points"][-1]["source"] == "the session"
    assert 0 < last["loss"] < 10


@pytest.mark.soak
@pytest.mark.train
def test_a_trainer_is_watched_by_all_that_it_writes(program: Program, tmp_path: Path) -> None:
    shutil.copytree(program.root / "examples/projects/trainer", tmp_path / "trainer")
    command = ["python", "finetune.py", "--config", "config.json", "--epochs", "4"]
    done = program(
        "run", "--json", "--out", str(program.runs), "model=project", f"model.folder={tmp_path / 'trainer'}",
        "gpu=cpu", "model.watch_sec=1", "--", *command,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (run,) = program.runs.glob("2*")
    records = [json.loads(line) for line in program("watch", "--json", str(run)).stdout.splitlines()]
    points = [point for record in records for point in record["points"]]
    losses = Counter(point["source"] for point in points if "loss" in point["values"])
    assert losses["what it printed"] == losses["trainer_state.json"] == losses["outputs/history.jsonl"] > 0
    assert (records[-1]["done"], records[-1]["total"]) == (56, 56)
    assert "eval_loss" in records[-1]["values"]
