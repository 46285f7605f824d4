"""A job's processes: its command in one child of the trainer, or in as many as its launcher is to start.

They are forked, not exec'd: after an exec a process is dumpable again. They hold neither the trainer's
channel nor the pipe of the outputs, and can signal each other but not the trainer, where the kernel has such
a scope. Several are ranks: each has the environment that torchrun would give it, and they meet over the
loopback of their own network. The first that fails ends the others, and its end is the job's. Where several
write, their lines stand in one log as they come, as torchrun's do. When the last has ended, so has all that
they left running: nobody writes to the outputs while they are sealed.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from string import Template
from typing import Any, NoReturn

from glasshouse.canonical import parse_json
from glasshouse.codes import Code
from glasshouse.errors import LegError
from glasshouse.runtime import machine, ranks, run_command
from glasshouse.runtime.cadence import REPORT_SEC, report_every
from glasshouse.runtime.channel import Channel
from glasshouse.runtime.command import Command
from glasshouse.runtime.forecast import Forecast
from glasshouse.runtime.linux import (
    OWN_THREADS,
    PR_SET_CHILD_SUBREAPER,
    PR_SET_PDEATHSIG,
    SHM,
    gpu_devices,
    prctl,
    restrict_threads,
    scope_signals,
)
from glasshouse.runtime.params import GRACE_SEC, STRAYS_SEC
from glasshouse.runtime.results import JobExit
from glasshouse.runtime.run_command import Site
from glasshouse.runtime.steps import Board, Seen, differing
from glasshouse.runtime.strays import kill_strays

HIDES = "CUDA_VISIBLE_DEVICES"  # empty: no GPU is seen
THREADS = "OMP_NUM_THREADS"
LOOK_SEC = 0.05
_PID = struct.Struct("=i")


@dataclass(frozen=True)
class Job:
    """What the sealed package says of the job. `outputs` is a folder in the project, relative."""

    command: Command
    environment: Mapping[str, str]
    outputs: str

    @classmethod
    def from_json(cls, data: bytes) -> Job:
        """Read what `workloads/project.py` wrote; it is authenticated. LegError for another form."""
        try:
            value = parse_json(data)
            return cls(Command.from_json(value["command"]), dict(value["environment"]), str(value["outputs"]))
        except (TypeError, KeyError, ValueError) as error:
            raise LegError("the package describes no job", code=Code.RUNTIME_ERROR) from error


@dataclass(frozen=True)
class Ended:
    """How a job ended. Times in seconds, the processor's summed over its ranks; notes are for its owner.

    seen: what its first rank counted. strays: how many processes it left running, which were ended.
    """

    exit: JobExit
    elapsed_sec: float
    cpu_sec: float
    telemetry: list[dict[str, Any]]
    notes: tuple[str, ...]
    seen: Seen
    strays: int


def run(
    job: Job,
    place: Path,
    site: Site | None,
    channel: Channel,
    outputs: int,
    *,
    board: Board,
    watch: Callable[[], None],
    seconds: float,
    on_gpu: bool,
) -> Ended:
    """Run the command to its end, or to the end of its time (0.0: it has none of its own).

    `site`: where packages lie that came along, if any did. `board`: of its ranks, on which steps are counted.
    `watch`: called in each process, before its code.
    No other child of this process may be running: whatever is below it at the end is ended.

    Raises LegError: ranks-cannot-meet, process-stuck where what it left running does not end.
    """
    devices = gpu_devices()
    environments = environments_of(job, shm_private=place.parent == SHM, gpus=OWN_THREADS in devices)

    def close_proc() -> None:
        """What the trainer's own confinement left open for its children (trainer.py)."""
        if OWN_THREADS in devices:
            restrict_threads([place.parent], devices)

    def begin() -> None:
        close_proc()
        watch()

    began, oom_kills = time.monotonic(), _oom_kills()
    sys.stdout.flush()
    sys.stderr.flush()

    def work(rank: int) -> int:
        channel.close()
        os.close(outputs)
        begin()
        each = environments[rank]
        return run_command.run(_substituted(job.command, each), place, each, site, board.counter(rank))

    pids = _fork_apart([partial(work, rank) for rank in range(len(environments))])
    close_proc()
    running, forecast = _Running(pids, oom_kills), Forecast(seconds)
    reported = began
    with machine.Telemetry(on_gpu=on_gpu) as telemetry:  # its thread begins behind the forks
        while running.reap():
            now = time.monotonic()
            if running.ending is None:
                late = bool(seconds) and now - began >= seconds
                if late or _told_to_end(channel):
                    running.late = late
                    running.end()
            elif now - running.ending >= GRACE_SEC:
                running.kill()
            if now - reported >= (report_every(now - began) if running.ending is None else REPORT_SEC):
                reported = now
                first = board.read()[0]
                more = forecast.look(now - began, first.steps, first.total)
                channel.send("progress", {"phase": "job", "elapsedSec": now - began, "units": 0, **more})
            running.wait([channel.fileno()] if running.ending is None else [])
    elapsed = max(time.monotonic() - began, 1e-3)
    seen = board.read()
    _reap_ended()
    strays = kill_strays(STRAYS_SEC)
    left = [f"ended what it left running: {strays} process{'' if strays == 1 else 'es'}"] if strays else []
    notes = (*running.notes, *left, *_notes_on(seen))
    return Ended(running.exit, elapsed, running.cpu_sec, telemetry.samples, notes, seen[0], strays)


def _notes_on(seen: list[Seen]) -> list[str]:
    """What a job's owner is to know about the number of steps."""
    unable = "its optimizer steps were not counted: this torch has no hooks for it"
    notes = [unable] if seen[0].unable else []
    return notes if (unlike := differing(seen)) is None else [*notes, unlike]


def environments_of(job: Job, *, shm_private: bool, gpus: bool) -> list[dict[str, str]]:
    """What each process's environment has beside the trainer's: the owner's words win over our defaults.

    `gpus`: whether the machine has any.
    """
    count, told = job.command.ranks, dict(job.command.environment)
    own = {**job.environment, **told}
    if count == 1:
        return [own]
    port = ranks.free_port()
    ours = ranks.defaults(shm_private=shm_private)
    if any(name.startswith("ACCELERATE_") for name in told) and not (gpus and own.get(HIDES) != ""):
        # Without GPUs its processes train together where it is told so, and each for itself otherwise.
        ours["ACCELERATE_USE_CPU"] = "True"
    if THREADS in os.environ:  # as torchrun leaves it; the network's names are not the machine's here
        del ours[THREADS]
    return [{**ours, **own, **ranks.of_rank(rank, port)} for rank in range(count)]


def _substituted(command: Command, environment: Mapping[str, str]) -> Command:
    """The command with what torchrun substitutes in the arguments of its processes (elastic/utils/api.py)."""
    if "LOCAL_WORLD_SIZE" not in dict(command.environment):
        return command
    rank = environment["LOCAL_RANK"]
    words = (Template(word).safe_substitute(local_rank=rank) for word in command.arguments)
    return replace(command, arguments=tuple(words))


def _fork_apart(works: Sequence[Callable[[], int]]) -> list[int]:
    """Do each of `works` in a child, in a session of its own; return their pids. Each gives its exit code.

    A process between forks them and ends, so that they have a domain of Landlock in common and become this
    one's children, as does whatever they leave behind.
    """
    trainer = os.getpid()
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    read_end, write_end = os.pipe()
    between = os.fork()
    if between == 0:
        code = 1
        try:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            own = os.getpid()
            os.close(read_end)
            scope_signals()
            for work in works:
                pid = os.fork()
                if pid == 0:
                    _begin(work, write_end, own, trainer)
                os.write(write_end, _PID.pack(pid))
            code = 0
        except BaseException:  # noqa: BLE001 -- a forked child must never unwind into its parent's frames
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as stream:
        said = stream.read()  # to its end: each is in its session by then, and can be told to end
    _, status = os.waitpid(between, 0)
    if status != 0 or len(said) != _PID.size * len(works):
        kill_strays(STRAYS_SEC)
        raise LegError("the job's processes could not be started", code=Code.RUNTIME_ERROR)
    return [pid for (pid,) in _PID.iter_unpack(said)]


def _begin(work: Callable[[], int], started: int, between: int, trainer: int) -> NoReturn:
    """Do `work` in this child of `between`, once it is one of `trainer`, and never return."""
    code = 1
    try:
        os.setsid()
        os.close(started)
        while os.getppid() == between:
            time.sleep(0.001)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == trainer:
            code = work()
    except BaseException:  # noqa: BLE001 -- as in the process between
        traceback.print_exc()
    finally:
        os._exit(code)


class _Running:
    """The job's processes from their fork to the end of the last. `ending`: when they were told to end."""

    def __init__(self, pids: list[int], oom_kills: int) -> None:
        self._alive = dict(enumerate(pids))
        self._count = len(pids)
        self._watched: dict[int, int] = {}  # rank: its pidfd, where the kernel has them
        for rank, pid in self._alive.items():
            with contextlib.suppress(OSError, AttributeError):
                self._watched[rank] = os.pidfd_open(pid)
        self._oom_kills = oom_kills  # before the first of them began
        self._code, self._out_of_memory = 0, False
        self._killed: set[int] = set()  # by us
        self.ending: float | None = None
        self.late = False
        self.cpu_sec = 0.0
        self.notes: list[str] = []

    def reap(self) -> bool:
        """Take note of those that ended; whether others are left. The first that fails ends the rest."""
        failed = []
        for rank, pid in list(self._alive.items()):
            found, status, usage = os.wait4(pid, os.WNOHANG)
            if not found:
                continue
            del self._alive[rank]
            if rank in self._watched:
                os.close(self._watched.pop(rank))
            self.cpu_sec += usage.ru_utime + usage.ru_stime
            # The rest of its session's group. What left that is ended when the last of them has.
            _signal(pid, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(status)
            if code:
                failed.append((rank, code))
        if failed and self._code == 0:
            # Of several that ended between two looks, the one that no exception ended, which may well be what
            # the others met with when they lost it.
            rank, self._code = max(failed, key=lambda one: (one[1] < 0, one[1] != 1))
            untouched = self.ending is None
            killed = self._code == -signal.SIGKILL
            self._out_of_memory = killed and untouched and _oom_kills() > self._oom_kills
            if self._count > 1:
                self.notes.append(f"rank {rank} of {self._count} failed first: it {_words(self._code)}")
            if self._alive and untouched:
                self.end()
        return bool(self._alive)

    def end(self) -> None:
        """Tell all that are left to end."""
        self.ending = time.monotonic()
        for pid in self._alive.values():
            _signal(pid, signal.SIGTERM)

    def kill(self) -> None:
        """End those that did not heed that."""
        for rank, pid in self._alive.items():
            if self._count > 1 and rank not in self._killed:
                self.notes.append(f"rank {rank} did not end when told to, and was killed")
            self._killed.add(rank)
            _signal(pid, signal.SIGKILL)

    def wait(self, more: list[int]) -> None:
        """Wait a moment for one of them to end, or for something to be read from `more`."""
        select.select([*self._watched.values(), *more], [], [], LOOK_SEC)

    @property
    def exit(self) -> JobExit:
        """How the first that failed ended; where none did, that all ended well."""
        killed = self._code < 0
        return JobExit(
            code=None if killed else self._code,
            signal=_signal_name(-self._code) if killed else None,
            out_of_memory=self._out_of_memory,
            out_of_time=self.late,
        )


def _reap_ended() -> None:
    """Take note of what became ours and has ended by itself: nobody had to end that."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _words(code: int) -> str:
    return f"ended with {code}" if code >= 0 else f"was killed by {_signal_name(-code)}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have no name
        return f"signal {number}"


def _told_to_end(channel: Channel) -> bool:
    """Whether the supervisor says that the job is to end."""
    if not select.select([channel.fileno()], [], [], 0)[0]:
        return False
    channel.expect("end", timeout=60)
    return True


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _oom_kills(root: Path = Path("/sys/fs/cgroup")) -> int:
    """How often the kernel killed something of this control group for want of memory; 0 where it says not."""
    for name in ("memory.events", "memory/memory.oom_control"):
        with contextlib.suppress(OSError, ValueError):
            for line in (root / name).read_text("ascii", "replace").splitlines():
                word, _, number = line.partition(" ")
                if word == "oom_kill":
                    return int(number)
    return 0
