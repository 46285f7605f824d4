"""A job whose controller is killed, stopped or loses its terminal: it goes on, and is fetched at its end."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Sshd
from tests.e2e.conftest import Program, kill_with_watchdog, processes_of, wait_until
from tests.e2e.phases import check_gone, has_part, read_record, run_folder, seen_event
from tests.e2e.test_cloud import Rents, codes, renting
from tests.e2e.test_project import files, opened, project, words

pytestmark = [pytest.mark.train, pytest.mark.slow]

# Works until it is told to end, as no test can time it.
WORKS = """
import pathlib, signal, sys, time
out = pathlib.Path("out")
out.mkdir()
def save(*_):
    (out / "saved.bin").write_bytes(bytes(range(256)) * 20_000)
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
while True:
    time.sleep(0.05)
"""
SAVED = {"saved.bin": (bytes(range(256)) * 20_000, False)}
RENTED = ("model.max_hours=1", "gpu=a4000", "provider.request_timeout_sec=1")


@pytest.fixture
def runpod(tmp_path: Path) -> Iterator[Rents]:
    with renting("runpod", tmp_path) as program:
        yield program


@pytest.fixture(params=["runpod", "vastai"])
def rents(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rents]:
    with renting(request.param, tmp_path) as program:
        yield program


def at_work(program: Program, tmp_path: Path, *settings: str) -> tuple[subprocess.Popen[str], Path]:
    """A job that works, and its controller; and the run's folder."""
    mine = project(tmp_path / "mine", {"main.py": WORKS})
    process = program.start(*words(mine, program, *settings), "python", "main.py")
    wait_until(lambda: seen_event(program, "progress"), 90, "the job at work")
    folder = run_folder(program)
    assert folder is not None
    return process, folder


def over(sshd: Sshd, tmp_path: Path) -> list[str]:
    """Settings of a machine that somebody has, behind OpenSSH."""
    return [
        "provider=ssh", "provider.host=127.0.0.1", f"provider.port={sshd.port}",
        f"provider.user={sshd.user}", f"provider.key={sshd.key}",
        f"provider.python={sys.executable}", f"provider.workdir={tmp_path}/pod",
    ]  # fmt: skip


def ends(place: Path) -> None:
    """The job comes to its end on its machine, whose folders lie under `place`, with whoever is there."""
    (leg,) = place.glob("**/legs/s000-1")
    (leg / "end").touch()
    wait_until((leg / "result.json").exists, 90, "the job's end")


def alone(program: Program, folder: Path) -> dict:
    """What `reap` says of it while it goes on."""
    said = program("reap", "--json")
    assert said.returncode == 0, said.stderr
    (item,) = json.loads(said.stdout)["allocations"]
    assert (item["run"], item["state"]) == (folder.name, "unattended")
    assert item["detail"].endswith(f": glasshouse reap --stop {folder.name} ends it")
    assert item["until"] > time.time()
    return item


def finished_alone(record: dict) -> None:
    """It ran to its end, and its row says that nobody had watched."""
    assert (record["status"], codes(record)) == ("verified", [])
    assert "unattended" in record["caveats"]


def watchdog_of(folder: Path) -> int:
    (pid,) = [
        pid
        for pid in processes_of(str(folder))
        if b"watchdog_start" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    return pid


def test_it_goes_on_when_both_are_killed_and_reap_fetches_it_once_it_has_ended(
    program: Program, tmp_path: Path
) -> None:
    process, folder = at_work(program, tmp_path)
    kill_with_watchdog(process, folder)
    listed = program("runs", "--out", str(program.runs))
    assert "running unattended until " in listed.stdout
    assert "its job goes on" in alone(program, folder)["detail"]
    assert not (folder / "bundle").exists()
    ends(program.home / "state/pods")
    done = program("reap")
    assert done.returncode == 0, done.stderr
    assert "its job had ended, and its row is verified; its outputs are at home" in done.stdout
    finished_alone(read_record(folder))
    assert files(opened(program, folder, tmp_path / "back")) == SAVED
    assert program("verify", str(folder)).returncode == 0
    check_gone(program, folder)


def test_its_watchdog_follows_it_and_ends_it_when_it_is_told(program: Program, tmp_path: Path) -> None:
    process, folder = at_work(program, tmp_path)
    process.kill()
    process.communicate()
    log = folder / "watchdog.log"
    wait_until(lambda: "its job is followed" in log.read_text(), 30, "the watchdog's word")
    assert "another process follows it" in alone(program, folder)["detail"]
    refused = program("reap", "--stop", "nothing")
    assert refused.returncode == 2
    assert "no such run holds a machine" in refused.stderr
    done = program("reap", "--stop", folder.name)
    assert done.returncode == 0, done.stderr
    assert "it was ended by whoever followed it" in done.stdout
    record = read_record(folder)
    assert codes(record) == ["interrupted"]
    assert files(opened(program, folder, tmp_path / "back")) == SAVED
    check_gone(program, folder)


@pytest.mark.soak
def test_its_watchdog_brings_it_to_its_end(program: Program, tmp_path: Path) -> None:
    process, folder = at_work(program, tmp_path)
    process.kill()
    process.communicate()
    (leg,) = (program.home / "state/pods").glob("**/legs/s000-1")
    (leg / "end").touch()
    wait_until((folder / "bundle/record.json").exists, 90, "the watchdog's record")
    wait_until(lambda: not (folder / "parts").exists(), 10, "the watchdog's end")
    finished_alone(read_record(folder))
    assert files(opened(program, folder, tmp_path / "back")) == SAVED
    check_gone(program, folder)


@pytest.mark.soak
@pytest.mark.sshd
@pytest.mark.parametrize("cut", [False, True])
def test_a_computer_that_sleeps_past_its_end_goes_on_where_it_was(
    program: Program, sshd: Sshd, cut: bool, tmp_path: Path
) -> None:
    there = over(sshd, tmp_path) if cut else []
    process, folder = at_work(program, tmp_path, *there)
    watchdog = watchdog_of(folder)
    for pid in (watchdog, process.pid):
        os.kill(pid, signal.SIGSTOP)
    if cut:  # a router forgets the connection meanwhile
        for pid in sshd.sessions():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    ends(tmp_path / "pod" if cut else program.home / "state/pods")
    time.sleep(20)  # longer than a connection lives without a sign
    for pid in (watchdog, process.pid):
        os.kill(pid, signal.SIGCONT)
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0, err
    assert ("connection lost" in err) or not cut
    record = json.loads(out)["runs"][0]
    assert record["status"] == "verified"
    assert {"event-gap", "unattended"} & set(record["caveats"]) == {"event-gap"}
    assert files(opened(program, folder, tmp_path / "back")) == SAVED
    assert program("reap").returncode == 0


@pytest.mark.soak
def test_a_terminal_that_closes_ends_nothing(program: Program, tmp_path: Path) -> None:
    mine = project(tmp_path / "mine", {"main.py": WORKS})
    command = [sys.executable, "-m", "glasshouse", *words(mine, program), "python", "main.py"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(program.root)
        os.execve(sys.executable, command, program.environment)

    def at_work() -> bool:
        while select.select([terminal], [], [], 0)[0]:
            os.read(terminal, 1 << 16)
        return seen_event(program, "progress")

    wait_until(at_work, 90, "the job at work")
    os.close(terminal)  # as a window that is closed: SIGHUP, and every write fails
    folder = run_folder(program)
    assert folder is not None
    (leg,) = (program.home / "state/pods").glob("**/legs/s000-1")
    (leg / "end").touch()
    wait_until((folder / "bundle/record.json").exists, 90, "its record")
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    record = read_record(folder)
    assert (record["status"], "unattended" in record["caveats"]) == ("verified", False)
    assert "the terminal was closed; the run goes on" in (folder / "controller.log").read_text()
    assert files(opened(program, folder, tmp_path / "back")) == SAVED
    check_gone(program, folder)


@pytest.mark.soak
def test_one_that_is_to_stop_and_one_without_the_key_are_given_back_at_once(
    program: Program, tmp_path: Path
) -> None:
    process, folder = at_work(program, tmp_path, "model.unattended=stop")
    process.kill()
    process.communicate()
    wait_until((folder / "bundle/record.json").exists, 90, "the watchdog's record")
    assert "controller-killed" in codes(read_record(folder))
    wait_until(lambda: not (folder / "parts").exists(), 10, "the watchdog's end")
    check_gone(program, folder)

    mine = tmp_path / "mine"
    process = program.start(*words(mine, program), "python", "main.py")

    def begun() -> bool:
        return len(list(program.runs.glob("2*"))) == 2 and bool(program.pods())

    wait_until(begun, 60, "the second run's machine")
    process.kill()
    process.communicate()
    second = max(program.runs.glob("2*"))
    wait_until((second / "bundle/record.json").exists, 90, "the watchdog's record")
    assert "controller-killed" in codes(read_record(second))


@pytest.mark.soak
def test_a_rented_one_is_left_alone_and_fetched(rents: Rents, tmp_path: Path) -> None:
    process, folder = at_work(rents, tmp_path, *RENTED, f"provider={rents.kind}")
    log = (folder / "controller.log").read_text()
    assert "its outputs can be fetched until " in log
    assert re.search(r"its machine waits, for up to [0-9.]+ USD an hour and [0-9.]+ USD in all", log)
    kill_with_watchdog(process, folder)
    alone(rents, folder)
    assert rents("reap", "--now").returncode == 0  # that alone ends none that may go on
    alone(rents, folder)
    assert rents.state()["active"] == 1
    (pod,) = [pod for pod in rents.server.cloud.living() if not pod.foreign]
    assert pod.container is not None
    ends(pod.container.root / "root/.glasshouse")
    done = rents("reap")
    assert done.returncode == 1, done.stderr
    # There is no GPU behind the fake's: so it ends with a controller, too.
    record = read_record(folder)
    assert codes(record) == ["same-machine-not-proven", "gpu-not-as-asked"]
    assert "unattended" in record["caveats"]
    assert files(opened(rents, folder, tmp_path / "back")) == SAVED
    rents.settled()


@pytest.mark.soak
def test_a_rented_one_that_fails_or_is_gone_ends_as_a_row(runpod: Rents, tmp_path: Path) -> None:
    process, folder = at_work(runpod, tmp_path, *RENTED, "provider=runpod")
    kill_with_watchdog(process, folder)
    (pod,) = [pod for pod in runpod.server.cloud.living() if not pod.foreign]
    assert pod.container is not None
    for pid in processes_of(str(pod.container.root)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    done = runpod("reap")
    assert done.returncode == 1, done.stderr  # the job's own end, which is none
    assert codes(read_record(folder))[-1] == "lost-leg"
    assert "controller-killed" not in codes(read_record(folder))
    runpod.settled()


@pytest.mark.soak
@pytest.mark.sshd
def test_over_openssh_too_and_it_can_be_stopped(program: Program, sshd: Sshd, tmp_path: Path) -> None:
    process, folder = at_work(program, tmp_path, *over(sshd, tmp_path))
    kill_with_watchdog(process, folder)
    alone(program, folder)
    done = program("reap", "--stop", folder.name)
    assert done.returncode == 1, done.stderr
    assert codes(read_record(folder)) == ["interrupted"]
    assert files(opened(program, folder, tmp_path / "back")) == SAVED
    assert not has_part(program, "release.json")
