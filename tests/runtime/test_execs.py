"""Programs that a project starts by itself: counted by the kernel's word, told as a number, or refused."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from glasshouse.errors import LegError
from glasshouse.runtime import confine as confine_module
from glasshouse.runtime import exec_watch, execs, linux, run_command, seccomp, trainer
from glasshouse.runtime.channel import channel_pair
from glasshouse.runtime.command import Command
from glasshouse.runtime.confine import confine
from glasshouse.runtime.exec_watch import MAX_RECENT, ExecWatch, Task, started
from glasshouse.runtime.params import LaunchParams
from glasshouse.runtime.results import Execs
from glasshouse.runtime.session import Stretch
from glasshouse.runtime.trainer import Plumbing
from tests.runtime.confined import MODES, USER, Mode, as_root, become, prepare, scratch_of
from tests.runtime.rig import wait_until
from tests.runtime.test_linux import answering_child, needs_landlock, refusal
from tests.runtime.test_no_network import interpret

pytestmark = [
    needs_landlock,
    as_root,
    pytest.mark.skipif(not seccomp.can_filter(), reason="no filter for this machine"),
]
LAUNCH = LaunchParams(
    arm="protected",
    run="20260101-000000-aaaaaa",
    leg="s000",
    launch=1,
    leg_dir="",
    allocation="gh-test",
    public_allocation="0" * 64,
    stretch=Stretch(0.0, 0.1, None, 0.0),
    device="cpu",
    deadline_sec=30,
    job=True,
    require_landlock=False,
)
TRUE = shutil.which("true") or "/bin/true"
# An ordinary user may be unable to start the interpreter that runs these tests: it can lie in root's home.
PYTHON = "/usr/bin/python3"
AS_ROOT = ["root", "root without CAP_SYS_ADMIN", "root, filter only"]
AS_ANY = ["root", "user", "user, filter only"]
as_root = pytest.mark.parametrize("mode", [MODES[name] for name in AS_ROOT], ids=AS_ROOT)
as_any = pytest.mark.parametrize("mode", [MODES[name] for name in AS_ANY], ids=AS_ANY)
libc = ctypes.CDLL(None, use_errno=True)


@dataclass
class Job:
    """A process that a project runs in, and whoever counts what it starts."""

    pid: int
    watch: ExecWatch
    answers: Any
    go: int

    def answer(self) -> Any:
        """What it says next."""
        return json.loads(self.answers.readline())

    def tell(self) -> None:
        """Let it go on from `wait`."""
        os.write(self.go, b"g")

    def end(self) -> Execs | None:
        """Wait for its end; what was counted."""
        _, status = os.waitpid(self.pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        return self.watch.stop()


Say = Callable[[Any], None]
Wait = Callable[[], None]


@contextmanager
def job(
    work: Callable[[Say, Wait], None],
    *,
    refuse: bool = False,
    before: Callable[[list[int]], None] = lambda _: None,
) -> Iterator[Job]:
    """Fork a process that begins as a project's does, after `before(descriptors that it needs)`."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    read_end, write_end = os.pipe()
    go_read, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            ours.close()
            descriptor = theirs.detach()
            before([write_end, go_read, descriptor])
            execs.watch(descriptor, refuse=refuse)
            work(lambda said: _write(write_end, said), lambda: _read(go_read))
            code = 0
        except BaseException:  # noqa: BLE001  (a forked child must not unwind into pytest)
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    theirs.close()
    os.close(write_end)
    os.close(go_read)
    watch = ExecWatch(ours, refuse=refuse)
    watch.start()
    with os.fdopen(read_end, "rb") as answers:
        try:
            yield Job(pid, watch, answers, go)
        finally:
            os.close(go)
            with contextlib.suppress(ChildProcessError, ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            if watch.is_alive():
                watch.stop()


def _write(descriptor: int, said: Any) -> None:
    os.write(descriptor, json.dumps(said).encode() + b"\n")


def _read(descriptor: int) -> None:
    os.read(descriptor, 1)


def ran(work: Callable[[], Any], **how: Any) -> tuple[Any, Execs | None]:
    """Run `work` as a project; what it returned, and what was counted."""
    with job(lambda say, _: say(work()), **how) as one:
        return one.answer(), one.end()


def confined_in(mode: Mode, scratch: Path) -> Callable[[list[int]], None]:
    """Confine the process as the trainer is, before it begins as a project's."""

    def before(needed: list[int]) -> None:
        linux.harden(linux.CORE_LIMIT_PAST_EXEC)  # as the custodian, before the trainer
        become(mode)
        linux.harden(linux.CORE_LIMIT_PAST_EXEC)
        confine(scratch, [], linux.gpu_devices(), needed, namespaces=mode.namespaces)
        linux.drop_capabilities()
        os.environ["TMPDIR"] = os.environ["HOME"] = str(Path.cwd())

    prepare()
    return before


def git() -> int:
    return subprocess.run(["git", "rev-parse", "--git-dir"], capture_output=True, check=False).returncode


# --- projects, run as they are run --------------------------------------------------------------

NO_EXEC = """
import os, threading
pid = os.fork()
if pid == 0:
    os._exit(0)
os.waitpid(pid, 0)
thread = threading.Thread(target=print)
thread.start()
thread.join()
open("said", "w").write("done")
"""
GIT = """
import subprocess
done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
open("said", "w").write(f"{done.returncode} {'not a git repository' in done.stderr}")
"""
SPAWN = """
import multiprocessing, os

def work(value, answers):
    answers.send((value + 1, os.getppid()))

if __name__ == "__main__":
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    child = multiprocessing.get_context("spawn").Process(target=work, args=(41, theirs))
    child.start()
    theirs.close()
    value, parent = ours.recv()
    child.join()
    open("said", "w").write(f"{value} {parent == os.getpid()} {child.exitcode}")
"""
WORKERS = """
import torch
from torch.utils.data import DataLoader, TensorDataset
data = TensorDataset(torch.arange(64.0).view(32, 2))
loader = DataLoader(data, batch_size=4, num_workers=2, multiprocessing_context="fork")
open("said", "w").write(str(sum(float(rows.sum()) for (rows,) in loader)))
"""
COMPILES = """
import os, warnings
os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.environ["TRITON_CACHE_DIR"] = os.environ["TMPDIR"]
warnings.simplefilter("ignore")
import torch
made = torch.compile(lambda x: (x * 2 + 1).relu().sum())
open("said", "w").write(str(float(made(torch.ones(16)))))
"""
train = pytest.mark.train
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="no git")


def project(source: str) -> Callable[[], tuple[int, str]]:
    """Run a project's main file in the current folder; its exit code, and the file `said` that it wrote."""

    def work() -> tuple[int, str]:
        Path("main.py").write_text(source)
        code = run_command.run(Command("file", "main.py"), Path.cwd(), {})
        return code, Path("said").read_text() if Path("said").exists() else ""

    return work


@as_root
@pytest.mark.parametrize(
    ("source", "said", "least", "most"),
    [
        (NO_EXEC, "done", 0, 0),
        pytest.param(GIT, "128 True", 1, 1, marks=needs_git),
        (SPAWN, "42 True 0", 1, 2),  # with a tracker of resources, where the version has it start at once
    ],
    ids=["no exec", "git", "spawned"],
)
def test_what_a_project_starts_works_and_is_counted(
    mode: Mode, source: str, said: str, least: int, most: int
) -> None:
    with scratch_of(mode) as scratch:
        answer, found = ran(project(source), before=confined_in(mode, scratch))
    assert answer == [0, said]
    assert found is not None
    assert (found.refused, found.counted) == (0, "notified")
    assert least <= found.started <= most


@train
@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
def test_torchs_compiler_works_and_is_counted() -> None:
    with scratch_of(MODES["root"]) as scratch:
        answer, found = ran(project(COMPILES), before=confined_in(MODES["root"], scratch))
    assert answer == [0, "48.0"]
    assert found is not None
    assert (found.started > 0, found.counted) == (True, "notified")


@train
def test_workers_that_are_forked_start_no_program() -> None:
    with scratch_of(MODES["root"]) as scratch:
        answer, found = ran(project(WORKERS), before=confined_in(MODES["root"], scratch))
    assert (answer, found) == ([0, str(float(sum(range(64))))], Execs(0, 0, "notified"))


@pytest.mark.parametrize(
    "command",
    [Command("module", "json.tool", ("--help",)), Command("entry", "pytest", ("--version",))],
    ids=["module", "entry"],
)
def test_a_module_and_an_installed_script_start_no_program(command: Command) -> None:
    answer, found = ran(lambda: run_command.run(command, Path.cwd(), {}))
    assert (answer, found) == (0, Execs(0, 0, "notified"))


# --- what is counted ----------------------------------------------------------------------------


def spawn(path: str = TRUE) -> int:
    _, status = os.waitpid(os.posix_spawn(path, [path], {}), 0)
    return os.waitstatus_to_exitcode(status)


def test_a_program_that_another_starts_counts_and_so_does_one_in_the_place_of_the_project() -> None:
    script = f"{TRUE}; {TRUE}; exec {TRUE}"
    answer, found = ran(lambda: spawn() + subprocess.run(["/bin/sh", "-c", script], check=True).returncode)
    assert (answer, found) == (0, Execs(5, 0, "notified"))
    with job(lambda _say, _wait: os.execv(TRUE, [TRUE])) as one:
        assert one.end() == Execs(1, 0, "notified")


def test_a_name_that_is_looked_up_along_path_counts_once() -> None:
    os.environ["PATH"] = ":".join(["/nowhere"] * 20 + [str(Path(TRUE).parent)])
    assert ran(lambda: subprocess.run(["true"], check=True).returncode)[1] == Execs(1, 0, "notified")


def test_a_name_that_is_nowhere_is_among_them_since_nobody_saw_it_fail() -> None:
    answer, found = ran(lambda: refusal(lambda: subprocess.run(["/nowhere/program"], check=True)))
    assert (answer, found) == ("ENOENT", Execs(1, 0, "notified"))


def test_processes_that_begin_apart_are_counted_together() -> None:
    """As ranks do: each has a listener of its own, and one counts for all."""

    def both() -> list[int]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        watch = ExecWatch(ours, refuse=False)
        pids = []
        for number in range(2):
            pids.append(os.fork())
            if pids[-1] == 0:
                execs.watch(os.dup(theirs.fileno()), refuse=False)
                os._exit(sum(spawn() for _ in range(3 + number)))
        theirs.close()
        watch.start()
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        found = watch.stop()
        assert found == Execs(7, 0, "notified")
        return codes

    assert answering_child(lambda _: both()) == [0, 0]


@pytest.mark.parametrize("number", [300, pytest.param(10_000, marks=pytest.mark.soak)])
def test_a_storm_of_them_is_counted_in_bounded_memory_while_others_go_on(number: int) -> None:
    def storm(say: Say, wait: Wait) -> None:
        threads = [threading.Thread(target=lambda: [spawn() for _ in range(number // 4)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        say("done")

    with job(storm) as one, job(lambda say, _: say(spawn())) as other:
        assert other.answer() == 0
        assert other.end() == Execs(1, 0, "notified")
        assert one.answer() == "done"
        assert len(one.watch._recent) <= MAX_RECENT
        assert one.end() == Execs(number, 0, "notified")


def test_those_that_are_killed_meanwhile_hold_nobody_up() -> None:
    def work() -> int:
        for _ in range(100):
            pid = os.fork()
            if pid == 0:
                os.execv(TRUE, [TRUE])
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        return spawn()

    answer, found = ran(work)
    assert answer == 0
    assert found is not None
    assert 1 <= found.started <= 101
    assert found.counted == "notified"


def test_what_is_remembered_of_calls_is_bounded() -> None:
    watch = ExecWatch(socket.socket(), refuse=False)
    for pid in range(MAX_RECENT + 10):
        assert not watch._failed_before(pid, Task(1, 1, forked_only=True))
    assert len(watch._recent) == MAX_RECENT
    assert watch._failed_before(MAX_RECENT, Task(1, 1, forked_only=True))
    assert not watch._failed_before(MAX_RECENT, Task(1, 2, forked_only=True)), "another that got its number"
    watch.start()
    assert watch.stop() is None


# --- whoever answers is gone, slow, or a second one ---------------------------------------------


def test_with_nobody_to_answer_they_fail_and_wait_for_nothing() -> None:
    def work(say: Say, wait: Wait) -> None:
        say(spawn())
        wait()
        say(refusal(lambda: os.execv(TRUE, [TRUE])))

    with job(work) as one:
        assert one.answer() == 0
        assert one.watch.stop() == Execs(1, 0, "notified")
        one.tell()
        assert one.answer() == "ENOSYS"


def _silent(work: Callable[[int, int], None]) -> int:
    """Fork a process that begins as a project's does, with nobody who answers; how it ended."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        ours.close()
        with contextlib.suppress(BaseException):
            execs.watch(theirs.detach(), refuse=False)
            os._exit(0)
        os._exit(3)
    theirs.close()
    with ours:
        _, (listener,), _, _ = socket.recv_fds(ours, 100, 1)
        wait_until(lambda: "seccomp" in _waits(pid), 10, "the call that waits")
        work(pid, listener)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _waits(pid: int) -> str:
    return Path(f"/proc/{pid}/wchan").read_text() or Path(f"/proc/{pid}/syscall").read_text()


def test_a_call_that_waits_can_be_killed() -> None:
    assert _silent(lambda pid, _: os.kill(pid, signal.SIGKILL)) == -signal.SIGKILL


def test_no_project_begins_where_nobody_answers() -> None:
    assert _silent(lambda _, listener: os.close(listener)) == 3


def test_a_listener_of_the_projects_own_is_refused_and_a_filter_without_one_starts_nothing() -> None:
    def work() -> Any:
        own = (seccomp.listen_to_execs(let_through=True), errno.errorcode[ctypes.get_errno()])
        seccomp._install(seccomp.exec_program("x86_64", notify=True), 0)
        return *own, refusal(lambda: os.execv(TRUE, [TRUE]))

    assert ran(work) == ([None, "EBUSY", "ENOSYS"], Execs(0, 0, "notified"))


@pytest.mark.parametrize("packet", [b"x", b"\x09....", execs.HELLO.pack(execs.NOTIFIED, 1), b"x" * 9000])
def test_a_packet_of_another_form_ends_the_counting_and_nothing_is_said_to_be_known(packet: bytes) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    watch = ExecWatch(ours, refuse=False)
    watch.start()
    with theirs:
        theirs.send(packet)
        watch.join(10)
        assert not watch.is_alive()
    assert watch.stop() == Execs(0, 0, "none")


def test_what_was_said_just_before_the_end_counts() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    watch = ExecWatch(ours, refuse=True)
    for pid in (1, 2):
        theirs.send(execs.HELLO.pack(execs.FILTERED, pid))
    theirs.close()
    os.close(watch._wake)  # before it begins: that the end has come is the first that it sees
    watch._wake = os.open(os.devnull, os.O_RDONLY)
    watch.start()
    assert watch.stop() == Execs(0, 0, "filter")


# --- the process table --------------------------------------------------------------------------


def test_where_the_kernel_notifies_nobody_they_are_counted_in_the_process_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(seccomp, "listen_to_execs", lambda *, let_through: None)

    def work(say: Say, wait: Wait) -> None:
        sleeping = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
        orphan = "import os, time; os.fork() or time.sleep(60)"
        subprocess.run([sys.executable, "-c", orphan], check=True)
        say("there")
        wait()
        for one in sleeping:
            one.kill()
            one.wait()

    def supervise() -> Any:
        """In a process of its own, whose children are, as a supervisor's, its roles and what was orphaned."""
        linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
        with job(work) as one:
            assert one.answer() == "there"
            wait_until(lambda: len(one.watch._seen) >= 2, 10, "a look at the table")
            one.tell()
            found = one.end()
        assert found is not None
        return asdict(found)

    found = answering_child(lambda _: supervise())
    assert (found["counted"], found["refused"]) == ("table", 0)
    assert 2 <= found["started"] <= 4


def test_of_the_table_what_a_project_started_counts_and_nothing_of_ours() -> None:
    reaper, trainer, root = 10, 11, 12
    tasks = {
        1: Task(0, 1, False),
        reaper: Task(1, 2, True),
        trainer: Task(reaper, 3, True),
        root: Task(trainer, 4, True),
        13: Task(trainer, 5, False),  # nvidia-smi, which tells the telemetry
        14: Task(root, 6, False),
        15: Task(14, 7, True),  # forked by a program that the project started
        16: Task(15, 8, False),
        17: Task(reaper, 9, False),  # whose parent in the project ended
        18: Task(1, 10, False),  # a stranger
    }
    assert started(tasks, {root}, reaper) == {14, 16, 17}
    assert started({**tasks, root: Task(trainer, 4, False)}, {root}, reaper) == {root, 14, 16, 17}
    loop = {20: Task(21, 1, False), 21: Task(20, 1, False)}  # read while pids were given anew
    assert started(loop, {20}, reaper) == {20, 21}


def test_the_kernel_says_whether_a_process_has_started_a_program() -> None:
    mine = exec_watch.task(os.getpid())
    assert mine is not None
    assert not mine.forked_only
    assert mine.parent == os.getppid()
    assert answering_child(lambda _: exec_watch.task(os.getpid())[2]) is True
    assert exec_watch.task(2**22 + 1) is None


@pytest.mark.parametrize(
    ("release", "version"),
    [("6.1.0-13-amd64", (6, 1)), ("5.4", (5, 4)), ("4.4.0", (4, 4)), ("", (0, 0)), ("x.y", (0, 0))],
)
def test_versions_of_kernels(release: str, version: tuple[int, int]) -> None:
    assert seccomp.kernel_version(release) == version


def test_a_kernel_that_cannot_let_a_call_go_on_is_not_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    old = os.uname_result(["Linux", "x", "5.4.0", "x", os.uname().machine])
    monkeypatch.setattr(os, "uname", lambda: old)
    found = ran(spawn)[1]
    assert found is not None
    assert found.counted == "table"
    assert ran(lambda: refusal(lambda: os.execv(TRUE, [TRUE])), refuse=True)[1] == Execs(0, 1, "notified")


# --- refused ------------------------------------------------------------------------------------


def memory_program() -> int:
    made = os.memfd_create("program", 0)
    os.write(made, Path(TRUE).read_bytes())
    return os.execve(made, [TRUE], {})  # execveat, with an empty path


@as_any
def test_under_a_policy_that_refuses_them_none_starts(mode: Mode) -> None:
    def work() -> Any:
        Path("a").mkdir()
        Path("b").mkdir()
        Path("a/file").write_text("x")
        Path("a/file").rename("b/file")  # Landlock's second ruleset leaves this
        Path("script").write_text(f"#!{TRUE}\n")
        Path("script").chmod(0o755)
        return [
            refusal(lambda: os.execv(TRUE, [TRUE])),
            refusal(lambda: subprocess.run(["git", "rev-parse"], check=False)),
            refusal(lambda: os.posix_spawn(TRUE, [TRUE], {})),
            refusal(memory_program),
            refusal(lambda: os.execv("./script", ["./script"])),
            refusal(lambda: os.execv(os.fspath(Path("/nowhere")), ["x"])),
        ]

    with scratch_of(mode) as scratch:
        answer, found = ran(work, refuse=True, before=confined_in(mode, scratch))
    assert set(answer) == {"EPERM"}
    # The process itself, which tried again and again, and two children.
    assert found == Execs(0, 3, "notified")


def test_where_the_kernel_notifies_nobody_it_refuses_them_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(seccomp, "listen_to_execs", lambda *, let_through: None)
    tried = lambda: [refusal(lambda: os.execv(TRUE, [TRUE])), refusal(memory_program)]  # noqa: E731
    assert ran(tried, refuse=True) == (["EPERM", "EPERM"], Execs(0, 0, "filter"))


def test_landlock_alone_refuses_every_file_and_leaves_moving_them(tmp_path: Path) -> None:
    def work() -> Any:
        assert linux.refuse_programs()
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "file").write_text("x")
        (tmp_path / "a" / "file").rename(tmp_path / "file")
        return refusal(lambda: os.execv(TRUE, [TRUE]))

    assert answering_child(lambda _: work()) == "EACCES"


def test_no_project_begins_where_they_should_be_refused_and_are_not(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(seccomp, "listen_to_execs", lambda *, let_through: None)
    monkeypatch.setattr(seccomp, "refuse_execs", lambda: False)
    with job(lambda say, _: say("began"), refuse=True) as one:
        assert one.answers.readline() == b""
    assert "execs-not-refused" in capfd.readouterr().err


@pytest.mark.parametrize("notify", [True, False])
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_of_each_machine_decides_as_written(machine: str, notify: bool) -> None:
    """Also for the machine that this is not."""
    column = ["x86_64", "aarch64"].index(machine)
    made = seccomp.exec_program(machine, notify=notify)
    own = seccomp._MACHINES[machine].architecture
    refused = seccomp._ERRNO | errno.EPERM

    def answer(number: int, architecture: int = own) -> int:
        return interpret(made, struct.pack("=IIQ6Q", number, architecture, 0, *[0] * 6))

    named = {seccomp._NUMBERS[name][column] for name in ("execve", "execveat")}
    expected = seccomp._NOTIFY if notify else refused
    assert {number for number in range(600) if answer(number) != seccomp._ALLOW} == named
    assert {answer(number) for number in named} == {expected}
    for other in (0x40000003, 0x40000028):  # i386, arm
        assert {answer(number, other) for number in range(600)} == {refused}
    if machine == "x86_64":
        assert {answer(0x40000000 + number) for number in range(600)} == {refused}  # x32


# --- what a program that was started is like ----------------------------------------------------

LOOKS = """
import ctypes, json, os, socket, sys
from pathlib import Path
libc = ctypes.CDLL(None, use_errno=True)
def tried(action):
    try:
        action()
    except OSError as error:
        return type(error).__name__
    return ""
lines = [line.partition(":") for line in Path("/proc/self/status").read_text().splitlines()]
status = {name: value.strip() for name, _, value in lines}
ptrace = {"x86_64": 101, "aarch64": 117}[os.uname().machine]
print(json.dumps({
    "dumpable": libc.prctl(3, 0, 0, 0, 0),
    "no_new_privs": status["NoNewPrivs"], "seccomp": status["Seccomp"], "capabilities": status["CapEff"],
    "core": Path("/proc/self/limits").read_text().split("Max core file size")[1].split()[0],
    "read": tried(lambda: open(sys.argv[1])), "write": tried(lambda: open(sys.argv[1] + ".new", "w")),
    "connect": tried(lambda: socket.create_connection(("127.0.0.1", int(sys.argv[2])), timeout=5)),
    "signal": tried(lambda: os.kill(int(sys.argv[3]), 0)),
    "ptrace": libc.syscall(ptrace, 16, int(sys.argv[3]), 0, 0),
    "parent": tried(lambda: open(f"/proc/{os.getppid()}/mem")),
    "outside": tried(lambda: open(f"/proc/{sys.argv[3]}/mem")),
}), flush=True)
sys.stdin.read()
"""


@as_any
@pytest.mark.skipif(not Path(PYTHON).exists(), reason="no interpreter that everybody may start")
def test_a_program_that_was_started_can_be_read_by_its_account_and_nothing_else_is_lost(
    mode: Mode, tmp_path: Path
) -> None:
    secret = Path("/var/tmp") / f"glasshouse-test-{os.getpid()}"
    secret.write_text("of somebody else")
    secret.chmod(0o644)
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]

    def work(say: Say, wait: Wait) -> None:
        forked = os.fork()
        if forked == 0:
            signal.pause()
        try:
            said = subprocess.Popen(
                [PYTHON, "-c", LOOKS, str(secret), str(port), str(os.getppid())],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
            assert said.stdout is not None
            say([json.loads(said.stdout.readline()), forked, said.pid])
            wait()
            said.kill()
            said.communicate()
        finally:
            os.kill(forked, signal.SIGKILL)

    try:
        with (
            scratch_of(mode) as scratch,
            job(work, before=confined_in(mode, scratch)) as one,
        ):
            seen, forked, program = one.answer()
            same_account = mode if mode.user is None else Mode(user=USER)
            opened = {
                name: answering_child(lambda _, pid=pid: (become(same_account), refusal(_memory(pid)))[1])
                for name, pid in (("forked", forked), ("program", program))
            }
            one.tell()
            assert one.end() == Execs(1, 0, "notified")
    finally:
        secret.unlink()
        listening.close()
    assert seen.pop("dumpable") == 1  # what the caveat is about
    assert opened["program"] == ""
    if mode.user is not None:  # root with every capability opens both
        assert opened["forked"] in ("EACCES", "EPERM")
        assert int(seen.pop("capabilities"), 16) == 0
    else:
        assert not int(seen.pop("capabilities"), 16) & 1 << 19  # CAP_SYS_PTRACE
    assert seen.pop("connect") != ""
    assert seen == {
        "no_new_privs": "1", "seccomp": "2", "core": "1", "read": seen["read"], "write": seen["write"],
        "signal": "PermissionError", "ptrace": -1, "parent": "PermissionError", "outside": "PermissionError",
    }  # fmt: skip
    assert seen["read"] in ("PermissionError", "FileNotFoundError")
    assert seen["write"] in ("PermissionError", "FileNotFoundError")


def test_a_program_that_crashes_leaves_no_memory_behind() -> None:
    def crashes() -> bool:
        _, status = os.waitpid(os.posix_spawn("/bin/sh", ["sh", "-c", "kill -SEGV $$"], {}), 0)
        assert os.WTERMSIG(status) == signal.SIGSEGV
        return os.WCOREDUMP(status)

    def work(limit: int | None) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            if limit is not None:
                linux.harden(limit)
            return crashes()

    assert answering_child(lambda _: work(None)), "the kernel dumps programs here"
    assert not answering_child(lambda _: work(linux.CORE_LIMIT_PAST_EXEC))
    piped = Path("/proc/sys/kernel/core_pattern").read_text().startswith("|")
    assert answering_child(lambda _: work(0)) == piped


def test_a_core_limit_that_is_not_to_be_had_stays_at_none() -> None:
    def work() -> int:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        become(Mode(user=USER))
        linux.harden(linux.CORE_LIMIT_PAST_EXEC)
        return resource.getrlimit(resource.RLIMIT_CORE)[1]

    assert answering_child(lambda _: work()) == 0


def _memory(pid: int) -> Callable[[], None]:
    return lambda: os.close(os.open(f"/proc/{pid}/mem", os.O_RDONLY))


# --- what a policy demands of a leg -------------------------------------------------------------


@pytest.mark.parametrize(
    ("demands", "outcome"),
    [
        ({}, "none"),
        ({"require_confined_reads": True}, "reads-not-confined"),
        ({"refuse_execs": True}, "none"),
    ],
)
def test_what_cannot_be_held_is_not_begun(demands: dict[str, bool], outcome: str) -> None:
    """On a machine without Landlock and without another root, which confines no reading."""
    mode = MODES["root, no other root"]

    def work(answer: int, scratch: Path) -> str:
        become(mode)
        for module in (linux, confine_module):
            module.landlock_abi = lambda: 0
        ours, theirs = channel_pair()
        plumbing = Plumbing(
            theirs, 2, answer, str(scratch), ours.fileno(), None, os.getpid()
        )  # all of them stay open
        values = {**asdict(LAUNCH), "stretch": LAUNCH.stretch, "leg_dir": str(scratch), **demands}
        try:
            trainer._confine_job(plumbing, LaunchParams(**values), theirs, scratch)
        except LegError as error:
            return str(error.code)
        return str(ours.expect("hardened").body["reads"])

    prepare()
    with scratch_of(mode) as scratch:
        assert answering_child(lambda answer: work(answer, scratch)) == outcome


def test_no_leg_begins_where_no_filter_would_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp.platform, "machine", lambda: "riscv64")
    assert not seccomp.can_filter()
    assert not seccomp.refuse_execs()
    assert seccomp.listen_to_execs(let_through=True) is None
