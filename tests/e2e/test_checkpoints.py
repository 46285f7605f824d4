"""Jobs that lose their trainer, or their controller, and what of them is at home then."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from glasshouse.lifecycle.checkpoints import event_of, stored
from tests.e2e.conftest import Program, kill_with_watchdog, wait_until
from tests.e2e.phases import check_gone, on_pod, read_record, run_folder
from tests.runtime.rig import processes_of

pytestmark = [pytest.mark.train, pytest.mark.slow]

ALL_BYTES = 290_000  # of less than all that it saves no checkpoint has as many
SAVES = """
import json, os, pathlib, signal, time
out = pathlib.Path("out")
out.mkdir()

def reached(action):
    try:
        action()
    except OSError as error:
        return error.strerror
    return "reached"

tried = {}
for name in filter(str.isdigit, os.listdir("/proc")):
    if int(name) != os.getpid():
        place = pathlib.Path("/proc", name)
        tried[name] = {
            "signal": reached(lambda: os.kill(int(name), 0)),
            "memory": reached(lambda: open(place / "mem", "rb")),
            "descriptor": reached(lambda: open(place / "fd" / "1", "wb")),
            "environment": reached(lambda: open(place / "environ", "rb").read()),
            "limits": reached(lambda: os.setpriority(os.PRIO_PROCESS, int(name), 19)),
        }
(out / "tried.json").write_text(json.dumps(tried))
for number in range(1, 4):
    place = out / "writing"
    place.mkdir()
    (place / "weights.bin").write_bytes(b"%d" % number * 100_000)
    time.sleep(0.05)
    place.rename(out / f"checkpoint-{number}")
    time.sleep(1.5)
time.sleep(600)  # nothing changes any more: the newest is whole, whatever was caught in between
"""


def words(folder: Path, program: Program) -> list[str]:
    folder.mkdir()
    (folder / "train.py").write_text(SAVES)
    return [
        "run", "--json", "--out", str(program.runs), "model=project", f"model.folder={folder}",
        "model.outputs=out", "model.checkpoint_min=0.02", "model.unattended=stop",
        "measure.head_interval_sec=0.3", "policy.launch_retries=0", "--", "python", "train.py",
    ]  # fmt: skip


def points(program: Program) -> int:
    folder = run_folder(program)
    return 0 if folder is None else len(stored(folder))


def saved(program: Program) -> bool:
    """Whether the job has saved all that it will, and the newest checkpoint at home is of then."""
    folder = run_folder(program)
    said = (
        [] if folder is None else [event_of(each.events.read_bytes())["body"] for each in stored(folder)[:1]]
    )
    return any(body["bytes"] > ALL_BYTES and body["state"] == "whole" for body in said)


def opened(program: Program, folder: Path, to: Path, *more: str) -> tuple[dict[str, Any], Path]:
    done = program("open", str(folder), "--to", str(to), "--json", *more)
    assert done.returncode == 0, done.stderr
    (said,) = [each for each in json.loads(done.stdout)["files"] if "checkpoint" in each]
    return said, to / f"s000-1-checkpoint-{said['checkpoint']['number']}"


def trainer_and_keeper(name: str) -> tuple[int, int]:
    """Pids of an allocation's leg: its guard's grandchildren, of which the keeper gives way to the other."""
    parents, nice = {}, {}
    for pid in processes_of(f"{name}/legs/"):
        with contextlib.suppress(OSError):
            if b"\0launch\0" in Path(f"/proc/{pid}/cmdline").read_bytes():
                fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
                parents[pid], nice[pid] = int(fields[1]), int(fields[16])
    (guard,) = (pid for pid, parent in parents.items() if parent not in parents)
    (supervisor,) = (pid for pid, parent in parents.items() if parent == guard)
    both = [pid for pid, parent in parents.items() if parent == supervisor]
    trainer, keeper = sorted(both, key=nice.__getitem__)
    return trainer, keeper


def check(said: dict[str, Any], place: Path) -> None:
    assert said["matchesEvents"] is True
    assert said["checkpoint"]["state"] == "whole"
    newest = max(int(path.name.partition("-")[2]) for path in place.glob("checkpoint-*"))
    assert (place / f"checkpoint-{newest}" / "weights.bin").read_bytes() == b"%d" % newest * 100_000


def test_a_job_that_loses_its_trainer_has_its_newest_checkpoints_at_home(
    program: Program, tmp_path: Path
) -> None:
    process = program.start(*words(tmp_path / "job", program))
    try:
        wait_until(lambda: saved(program) and points(program) >= 2, 90, "two checkpoints at home")
        folder = run_folder(program)
        assert folder is not None
        # While it goes on, it is opened as it is by then.
        said, place = opened(program, folder, tmp_path / "meanwhile")
        check(said, place)
        name = json.loads((folder / "run.json").read_bytes())["name"]
        trainer, keeper = trainer_and_keeper(name)
        tried = json.loads((place / "tried.json").read_bytes())
        assert "reached" not in tried[str(keeper)].values()
        assert tried[str(keeper)] == tried[str(trainer)]  # no more than of the trainer
        os.kill(trainer, signal.SIGKILL)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()  # its watchdog sees to what is left
    assert process.returncode == 1, err
    assert "process-died" in read_record(folder)["exclusion"]["codes"]
    check_gone(program, folder)
    told = program("open", str(folder), "--to", str(tmp_path / "words")).stdout
    assert "marked as whole, and nothing wrote to what is marked" in told


@pytest.mark.soak
def test_of_a_job_whose_controller_is_killed_they_are_fetched_before_its_machine_goes(
    program: Program, tmp_path: Path
) -> None:
    process = program.start(*words(tmp_path / "job", program))
    wait_until(lambda: on_pod(program, "legs/*/checkpoints/000002.sealed"), 90, "a checkpoint on the pod")
    folder = run_folder(program)
    assert folder is not None
    kill_with_watchdog(process, folder)
    wait_until(lambda: on_pod(program, "legs/*/checkpoints/00000[3-9].sealed"), 90, "one made meanwhile")
    done = program("reap", "--json")
    assert done.returncode == 0, done.stderr
    assert "controller-killed" in read_record(folder)["exclusion"]["codes"]
    check_gone(program, folder)
    newest = stored(folder)[0]
    assert json.loads(newest.heads.read_bytes().splitlines()[-1])["seq"] == (
        len(newest.events.read_bytes().splitlines()) - 1
    )  # countersigned by whoever fetched it, if nobody was there before
    said, place = opened(program, folder, tmp_path / "opened")
    assert any(doubt.startswith("checkpoint-unwitnessed:") for doubt in said["doubts"])
    check({**said, "checkpoint": {"state": "whole"}}, place)  # what was caught in between may be unmarked
