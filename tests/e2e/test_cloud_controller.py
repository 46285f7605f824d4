"""Whole runs at a fake provider: controllers with a full disk, or stopped past their time; OpenSSH pods."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import processes_of, wait_until
from tests.e2e.phases import has_part, seen_event
from tests.e2e.test_cloud import SHORT, Rents, renting
from tests.providers.openssh_pod import OpenSshContainer, sessions_of
from tests.sshd import SSHD

pytestmark = [pytest.mark.train, pytest.mark.slow]


@pytest.fixture
def runpod(tmp_path: Path) -> Iterator[Rents]:
    with renting("runpod", tmp_path) as program:
        yield program


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte for run folders."""
    place = tmp_path / "runs"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if done.returncode != 0:
        pytest.skip("this machine does not allow mounts")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_fills_up_while_a_machine_boots(runpod: Rents, small_disk: Path) -> None:
    runpod.fault("boot-stuck")
    process = runpod.start(
        "run", "--out", str(small_disk), *SHORT, "provider=runpod", "provider.boot_deadline_sec=2"
    )
    wait_until(lambda: runpod.state()["created"] == 1, 60, "a machine")
    with (small_disk / "filler").open("wb", buffering=0) as filler:
        while shutil.disk_usage(small_disk).free:
            filler.write(bytes(4096))
    _, err = process.communicate(timeout=60)
    # The machine is gone, and that is proven; nobody could write it down: it is said as what it is.
    last = err.strip().splitlines()[-1]
    assert process.returncode == 3, err
    assert "CLEAN-UP NOT PROVEN" not in err
    assert "given back, and that is proven" in last
    assert "No space left on device" in last
    (folder,) = small_disk.glob("2*")
    wait_until(
        lambda: not processes_of(str(folder)), 30, "the end of the watchdog, which cannot write either"
    )
    assert runpod.state()["active"] == 0
    (small_disk / "filler").unlink()
    done = runpod("reap", "--json")
    assert done.returncode == 0, done.stdout
    runpod.settled()
    assert json.loads((folder / "bundle/record.json").read_bytes())["status"] == "excluded"


def test_a_controller_that_is_stopped_past_its_time_keeps_no_machine(runpod: Rents) -> None:
    # The shortest rental that settings allow is some 15 s; the watchdog grants half a second more.
    short = ["order=protected-only", "measure.leg_deadline_extra_sec=10", "measure.leg_deadline_factor=1"]
    words = [*SHORT, *short, "provider=runpod", "provider.boot_deadline_sec=2"]
    process = runpod.start("run", "--json", "--out", str(runpod.runs), *words)
    wait_until(lambda: runpod.state()["created"] == 1, 60, "a machine")
    process.send_signal(signal.SIGSTOP)
    try:
        # As if it had been stopped while it closed the journal, which one in twenty was: nobody can read it.
        with contextlib.closing(
            sqlite3.connect(runpod.home / "state/state.db", isolation_level=None)
        ) as held:
            with contextlib.suppress(sqlite3.OperationalError):  # locked: so it was indeed
                held.execute("PRAGMA locking_mode=EXCLUSIVE")
                held.execute("BEGIN EXCLUSIVE")
            wait_until(lambda: runpod.state()["active"] == 0, 60, "the watchdog")
        assert runpod.state()["billingSec"] < 60
    except BaseException:
        process.kill()
        raise
    finally:
        process.send_signal(signal.SIGCONT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 3, err
    assert json.loads(out)["runs"][0]["status"] == "excluded"
    assert runpod.state()["created"] == 1  # it wakes too late to rent another
    runpod.settled()


@pytest.mark.sshd
@pytest.mark.skipif(not Path(SSHD).exists() or os.geteuid() != 0, reason="needs sshd and root")
@pytest.mark.parametrize(("kind", "when"), [("vastai", "in a leg"), ("runpod", "between legs")])
def test_a_run_on_a_rented_machine_with_openssh_whose_connections_are_cut(
    kind: str, when: str, tmp_path: Path
) -> None:
    with renting(kind, tmp_path) as program:
        program.server.cloud.container = OpenSshContainer
        order = "protected-first" if when == "in a leg" else "raw-first"
        words = [*SHORT, f"provider={kind}", f"order={order}", "duration=2"]
        process = program.start("run", "--json", "--out", str(program.runs), *words)
        if when == "in a leg":
            wait_until(lambda: seen_event(program, "progress"), 90, "the protected leg at work")
        else:
            wait_until(lambda: has_part(program, "legs/s000-raw/launch.json"), 90, "the raw leg's end")
        (pod,) = [pod for pod in program.server.cloud.living() if not pod.foreign]
        for pid in sessions_of(pod.container):
            os.kill(pid, signal.SIGKILL)  # the sockets die, and no process of a leg with them
        out, err = process.communicate(timeout=90)
        (record,) = json.loads(out)["runs"]
        assert record["status"] == "verified", err
        # Cut while a launch is on its way, the leg is launched once more.
        assert "reconnecting" in err or "launching once more" in err
        program.settled()
