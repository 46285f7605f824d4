"""A job's processes: what each is told, who ends whom, whose end is stated. Real processes, no torch."""

from __future__ import annotations

import ast
import atexit
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from glasshouse.codes import Code
from glasshouse.errors import LegError
from glasshouse.runtime import jobs, linux, ranks
from glasshouse.runtime.channel import channel_pair
from glasshouse.runtime.command import Command
from glasshouse.runtime.confine import Confinement
from glasshouse.runtime.jobs import Job
from glasshouse.runtime.steps import Board
from tests.runtime.confined import USER, Mode, as_root, confined, scratch_of
from tests.runtime.rig import alive, wait_until
from tests.runtime.test_linux import in_child, needs_landlock, refusal

# Of two ranks rank 1 does what its argument says; rank 0 waits, and saves when it is told to end.
SCRIPT = """
import os, pathlib, signal, subprocess, sys, time
rank, how = os.environ["RANK"], sys.argv[1]
def save(*_):
    pathlib.Path(f"saved{rank}").write_text("on request")
    sys.exit(0)
def wait():
    pathlib.Path(f"ready{rank}").touch()
    time.sleep(60)
signal.signal(signal.SIGTERM, save)
if how == "both":
    wait()
if rank == "0":
    if how == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    wait()
while not os.path.exists("ready0"):
    time.sleep(0.01)
if how == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if how == "unnamed":
    signal.pthread_kill(__import__("threading").get_ident(), 40)
if how == "memory":
    pathlib.Path("memory.events").write_text("low 0\\noom_kill 1\\n")
    os.kill(os.getpid(), signal.SIGKILL)
if how == "helper":
    helper = subprocess.Popen(["sleep", "60"])
    pathlib.Path("helper").write_text(str(helper.pid))
sys.exit(7)
"""


def job(*arguments: str, count: int = 2, environment: dict[str, str] | None = None) -> Job:
    alone = (("RANK", "0"), ("LOCAL_RANK", "0")) if count == 1 else ()
    command = Command("file", "main.py", arguments, count, (("LOCAL_WORLD_SIZE", str(count)), *alone))
    return Job(command, environment or {}, "out")


def run(
    place: Path,
    one: Job,
    *,
    seconds: float = 0.0,
    until: Callable[[], bool] | None = None,
    script: str = SCRIPT,
) -> Any:
    """Run it as the trainer does, in a process of its own; `until`: when it is told to end. What ended it."""
    (place / "main.py").write_text(script)

    def trainer() -> dict[str, Any]:
        atexit._clear()  # the test runner's, which the ranks inherit
        ours, theirs = channel_pair()

        def tell() -> None:
            if until is not None:
                wait_until(until, 20, "what it waits for")
                ours.send("end")

        telling = threading.Thread(target=tell)  # stands for the supervisor
        telling.start()
        ended = jobs.run(
            one,
            place,
            None,
            theirs,
            os.pipe()[1],
            board=Board(one.command.ranks),
            watch=lambda: None,
            seconds=seconds,
            on_gpu=False,
        )
        telling.join()
        return {**asdict(ended.exit), "notes": list(ended.notes), "cpu": ended.cpu_sec}

    return in_child(trainer)


def test_the_first_that_fails_ends_the_others_which_may_save(tmp_path: Path) -> None:
    ended = run(tmp_path, job("exit"))
    assert (ended["code"], ended["signal"], ended["out_of_time"]) == (7, None, False)
    assert (tmp_path / "saved0").read_text() == "on request"
    assert ended["notes"] == ["rank 1 of 2 failed first: it ended with 7"]
    assert ended["cpu"] > 0


@pytest.mark.parametrize(("how", "name"), [("kill", "SIGKILL"), ("unnamed", "signal 40")])
def test_a_signal_that_ends_one_is_named(tmp_path: Path, how: str, name: str) -> None:
    ended = run(tmp_path, job(how))
    assert (ended["code"], ended["signal"], ended["out_of_memory"]) == (None, name, False)
    assert ended["notes"] == [f"rank 1 of 2 failed first: it was killed by {name}"]


def test_memory_that_one_could_not_have_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = jobs._oom_kills  # of the kernel's own file, which here the script writes
    monkeypatch.setattr(jobs, "_oom_kills", lambda: counted(tmp_path))
    ended = run(tmp_path, job("memory"))
    assert (ended["signal"], ended["out_of_memory"]) == ("SIGKILL", True)


def test_one_that_does_not_heed_that_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "GRACE_SEC", 0.2)
    ended = run(tmp_path, job("stubborn"))
    assert ended["code"] == 7
    assert ended["notes"][1] == "rank 0 did not end when told to, and was killed"
    assert not (tmp_path / "saved0").exists()


def test_told_to_end_each_may_save(tmp_path: Path) -> None:
    ready = [tmp_path / f"ready{rank}" for rank in range(3)]
    ended = run(tmp_path, job("both", count=3), until=lambda: all(path.exists() for path in ready))
    assert (ended["code"], ended["out_of_time"], ended["notes"]) == (0, False, [])
    assert all((tmp_path / f"saved{rank}").exists() for rank in range(3))


def test_at_the_end_of_its_time_each_may_save(tmp_path: Path) -> None:
    ended = run(tmp_path, job("both"), seconds=3.0)
    assert (ended["code"], ended["out_of_time"]) == (0, True)
    assert all((tmp_path / f"saved{rank}").exists() for rank in range(2))


def test_what_a_rank_started_ends_with_it(tmp_path: Path) -> None:
    run(tmp_path, job("helper"))
    helper = int((tmp_path / "helper").read_text())
    wait_until(lambda: not alive(helper), 5, "the helper's end")


LEAVES = """
import os, pathlib, time
pathlib.Path("out").mkdir()
ended = os.fork()
if ended == 0:
    os._exit(0)  # nobody reaps it, and it is not left running
between = os.fork()
if between == 0:
    os.setsid()  # neither its session nor its parent's end ends it
    if os.fork():
        os._exit(0)
    pathlib.Path("left").write_text(str(os.getpid()))
    for number in range(1_000_000):
        pathlib.Path("out/model.bin").write_text(str(number))
while not os.path.exists("out/model.bin"):
    time.sleep(0.01)
for pid in (ended, between):
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
"""


def test_what_left_its_session_has_ended_before_outputs_are_taken(tmp_path: Path) -> None:
    ended = run(tmp_path, job(count=1), script=LEAVES)
    assert not alive(int((tmp_path / "left").read_text()))
    assert (ended["code"], ended["notes"]) == (0, ["ended what it left running: 1 process"])


REACHES = """
import os, pathlib, signal, time
rank = int(os.environ["RANK"])
pathlib.Path(f"pid{rank}").write_text(str(os.getpid()))
while not os.path.exists(f"pid{1 - rank}") or not pathlib.Path(f"pid{1 - rank}").read_text():
    time.sleep(0.01)
found = []
for pid in (int(pathlib.Path(f"pid{1 - rank}").read_text()), os.getppid()):
    try:
        os.kill(pid, 0)
        found.append("reached")
    except PermissionError:
        found.append("refused")
pathlib.Path(f"found{rank}").write_text(" ".join(found))
while not os.path.exists(f"found{1 - rank}") and not os.path.exists(f"out/found{1 - rank}"):
    time.sleep(0.01)
os.rename(f"found{rank}", f"out/found{rank}")
"""


@pytest.mark.skipif(linux.landlock_abi() < 6, reason="the kernel has no scope for signals")
def test_ranks_can_signal_each_other_and_not_who_seals_their_outputs(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    ended = run(tmp_path, job(), script=REACHES)
    assert ended["code"] == 0  # a move from folder to folder is as free as before
    assert {(tmp_path / "out" / f"found{rank}").read_text() for rank in range(2)} == {"reached refused"}


@pytest.mark.train
def test_an_argument_may_name_the_rank_as_with_torchrun(tmp_path: Path) -> None:
    from torch.distributed.elastic.utils.api import macros

    words = ["--device=cpu:${local_rank}", "$local_rank$$", "${x}", "$"]
    script = (
        "import os, pathlib, sys\npathlib.Path('said' + os.environ['RANK']).write_text(repr(sys.argv[1:]))\n"
    )
    run(tmp_path, job(*words), script=script)
    for rank in range(2):
        said = ast.literal_eval((tmp_path / f"said{rank}").read_text())
        assert said == macros.substitute(words, str(rank))
    alone = Command("file", "a.py", tuple(words))
    assert jobs._substituted(alone, {"LOCAL_RANK": "5"}) == alone  # of python, nothing is


def test_each_is_told_who_it_is_and_all_the_same_place_to_meet() -> None:
    told = jobs.environments_of(job(count=3), shm_private=True, gpus=False)
    assert [each["RANK"] for each in told] == ["0", "1", "2"]
    for each in told:
        assert each["RANK"] == each["LOCAL_RANK"] == each["ROLE_RANK"]
        assert each["GLOO_SOCKET_IFNAME"] == "lo"
    (port,) = {int(each["MASTER_PORT"]) for each in told}
    socket.create_server(("127.0.0.1", port)).close()


def test_the_owners_word_stands_and_who_is_who_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth0")  # the machine's, which the job's network has not
    theirs = {"OMP_NUM_THREADS": "3", "GLOO_SOCKET_IFNAME": "other", "RANK": "9"}
    told = jobs.environments_of(job(environment=theirs), shm_private=False, gpus=True)
    assert [each["OMP_NUM_THREADS"] for each in told] == ["3", "3"]
    assert [each["GLOO_SOCKET_IFNAME"] for each in told] == ["other", "other"]
    assert [each["NCCL_SOCKET_IFNAME"] for each in told] == ["lo", "lo"]
    assert [each["RANK"] for each in told] == ["0", "1"]
    assert told[0]["NCCL_SHM_DISABLE"] == "1"
    assert jobs.environments_of(job(), shm_private=True, gpus=True)[1]["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # of the machine's, as torchrun keeps it
    assert "OMP_NUM_THREADS" not in jobs.environments_of(job(), shm_private=True, gpus=True)[1]


@pytest.mark.parametrize(
    ("gpus", "hidden", "word"), [(False, False, "True"), (True, False, None), (True, True, "True")]
)
def test_accelerates_processes_train_together_without_gpus_too(
    gpus: bool, hidden: bool, word: str | None
) -> None:
    accelerated = (("ACCELERATE_MIXED_PRECISION", "no"),)
    one = Job(Command("file", "a.py", (), 2, accelerated), {jobs.HIDES: ""} if hidden else {}, "out")
    for each in jobs.environments_of(one, shm_private=True, gpus=gpus):
        assert each.get("ACCELERATE_USE_CPU") == word
    assert "ACCELERATE_USE_CPU" not in jobs.environments_of(job(), shm_private=True, gpus=gpus)[0]


def test_one_process_is_told_no_more_than_its_owner_and_launcher_say() -> None:
    one = Job(Command("file", "a.py", environment=(("RANK", "0"),)), {"A": "b"}, "out")
    assert jobs.environments_of(one, shm_private=True, gpus=False) == [{"A": "b", "RANK": "0"}]


@as_root
@needs_landlock
@pytest.mark.parametrize(("namespaces", "word"), [(True, "a port"), (False, Code.RANKS_CANNOT_MEET)])
def test_where_no_socket_can_be_made_they_cannot_meet(namespaces: bool, word: str) -> None:
    def work(_held: Any) -> str:
        try:
            return "a port" if ranks.free_port() > 0 else ""
        except LegError as error:
            return str(error.code)

    mode = Mode(namespaces=namespaces)
    with scratch_of(mode) as scratch:
        assert confined(mode, scratch, work) == word


NAMES_ITSELF = """
import os, pathlib, threading
found = {}
def attempt(name, path, text):
    try:
        pathlib.Path(path).write_text(text)
        found[name] = ""
    except OSError as error:
        found[name] = os.strerror(error.errno)
def named():
    attempt("own thread", f"/proc/self/task/{threading.get_native_id()}/comm", "cuda-like")
thread = threading.Thread(target=named)
thread.start()
thread.join()
attempt("trainer", f"/proc/{os.getppid()}/comm", "x")
attempt("trainer's memory score", f"/proc/{os.getppid()}/oom_score_adj", "1")
attempt("own memory score", "/proc/self/oom_score_adj", "1")
attempt("sysctl", "/proc/sys/kernel/core_pattern", "core")
attempt("scratch", f"found{os.environ['RANK']}", repr(found))
"""


@as_root
@needs_landlock
@pytest.mark.parametrize("mode", [Mode(), Mode(user=USER), Mode(namespaces=False)])
def test_each_can_name_its_threads_as_cuda_does_and_write_nothing_else_of_proc(mode: Mode) -> None:
    """cuInit of driver 580 ends with error 304 where it may not; here there is a GPU by name alone."""
    count = 2 if mode.namespaces else 1

    def work(held: Confinement) -> Any:
        atexit._clear()
        place = held.scratch / "project"
        place.mkdir()
        (place / "main.py").write_text(NAMES_ITSELF)
        jobs.gpu_devices = lambda: [Path(os.devnull), linux.OWN_THREADS]
        _supervisor, trainer = channel_pair()
        ended = jobs.run(
            job(count=count), place, None, trainer, os.pipe()[1],
            board=Board(count), watch=lambda: None, seconds=0.0, on_gpu=False,
        )  # fmt: skip
        found = [ast.literal_eval((place / f"found{rank}").read_text()) for rank in range(count)]
        return ended.exit.code, found, refusal(lambda: Path("/proc/self/oom_score_adj").write_text("1"))

    with scratch_of(mode) as scratch:
        code, found, trainers = confined(mode, scratch, work, devices=[linux.PROC])
    assert code == 0
    assert len(found) == count
    for each in found:
        assert each.pop("own thread") == ""
        assert set(each.values()) == {"Permission denied"}
        assert len(each) == 4
    assert trainers == "EACCES"
