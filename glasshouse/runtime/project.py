"""A user's own project: its files in the scratch folder, its command in a child of the trainer.

The child is forked, not exec'd: after an exec a process is dumpable again. It holds neither the trainer's
channel nor the pipe of the outputs. The memory of the package's tensors, in which the files came, is handed
back to the kernel piece by piece as they are written. Whatever becomes of the child (exit, exception,
signal), the trainer is there to say so and to have its outputs sealed.

What this needs of torch is nothing: a project may train with anything.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import stat
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from glasshouse.canonical import b64u_decode, canonical_json, domain_hash, parse_json, record_json
from glasshouse.codes import Code
from glasshouse.errors import LegError, SealError
from glasshouse.runtime import machine, run_command, sealer
from glasshouse.runtime.channel import Channel
from glasshouse.runtime.command import Command
from glasshouse.runtime.execs import watch
from glasshouse.runtime.linux import PR_SET_PDEATHSIG, prctl
from glasshouse.runtime.params import GRACE_SEC, JOB_FILE, SAID, LaunchParams
from glasshouse.runtime.results import JobExit, LegResult, Wiped, WipeReport
from glasshouse.sealing.container import OpenedPackage
from glasshouse.sealing.memory import give_back
from glasshouse.sealing.tree import INDEX_NAME, Tree, list_folder, parse_index, read_tree, write_tree
from glasshouse.sealing.tree_index import shown

FOLDER = "project"  # in the scratch folder
REPORT_SEC = 2.0
LOOK_SEC = 0.05
FEW = 5
INDEX_DOMAIN = "glasshouse/project-outputs/v1"


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


def work(
    launch: LaunchParams, package: OpenedPackage, channel: Channel, *, scratch: Path, outputs: int, execs: int
) -> None:
    """Run the project to its end and seal what it left. `outputs`: write end of the pipe for that.

    `execs`: of the socket by which the supervisor counts the programs that it starts (execs.watch).

    Raises LegError: project-not-written where its files find no room.
    """
    began = time.monotonic()
    job = Job.from_json(bytes(package.files[JOB_FILE]))
    salt = b64u_decode(str(package.extra["matchSalt"]))
    place = scratch / FOLDER
    place.mkdir(mode=0o700)
    try:
        write_tree(package.files[INDEX_NAME], package.tensors, place, release=give_back)
    except (SealError, OSError) as error:
        print(f"the project's files could not be written: {error}", flush=True)  # noqa: T201  the sealed log
        raise LegError("the project's files could not be written", code=Code.PROJECT_NOT_WRITTEN) from error
    setup_sec = time.monotonic() - began
    channel.send("progress", {"phase": "setup", "elapsedSec": setup_sec, "units": 0})
    start = machine.identity(launch.public_allocation)
    on_gpu = bool(start.gpu_uuids) and launch.device != "cpu"
    ended = _run(
        job, place, channel, outputs,
        watch=partial(watch, execs, refuse=launch.refuse_execs), seconds=launch.job_sec, on_gpu=on_gpu,
    )  # fmt: skip
    left = _left(place / job.outputs)
    digest = domain_hash("glasshouse/project/v1", [salt, bytes(package.files[INDEX_NAME])]).hex()
    result = LegResult(
        unit="job",
        units=1,
        steps=0,
        elapsed_sec=ended.elapsed_sec,
        setup_sec=setup_sec,
        warmup_sec=0.0,
        warmup_units=0,
        delay_pct=0.0,
        final_loss=None,
        loss_curve=[],
        throughput_curve=[],
        initial_digest=digest,
        output_digest=domain_hash(INDEX_DOMAIN, [salt, left.index]).hex(),
        output_differs=bool(left.found.entries),
        output_sha256="",
        output_bytes=sum(entry.nbytes for entry in left.found.entries),
        workload_digest=digest,
        unit_info={},
        machine_start=start,
        machine_end=machine.identity(launch.public_allocation),
        cpu_sec=ended.cpu_sec,
        total_cpu_sec=ended.cpu_sec,
        device="cuda" if on_gpu else "cpu",
        telemetry=ended.telemetry,
        exit=ended.exit,
    )
    channel.send("trained", {"result": result})
    for line in _account(place, job.outputs, package, left):
        print(f"{SAID}{line}", flush=True)  # noqa: T201  the sealed log, whose end the owner is shown
    began = time.monotonic()
    sealed = sealer.seal_tree_in_child(
        outputs,
        place / job.outputs,
        owner_public=b64u_decode(str(package.extra["ownerPublicKey"])),
        context=launch.sealed_under,
        extra={"exit.json": canonical_json(record_json(ended.exit))},
    )
    channel.send("sealed-outputs", {**record_json(sealed), "sealSec": round(time.monotonic() - began, 6)})


def _left(folder: Path) -> Tree:
    """What a job left as its outputs, by name, size and time; what cannot be carried is left out."""

    def leave(_path: str, _reason: str) -> None: ...

    return read_tree(list_folder(folder, leave) if folder.is_dir() else (), on_odd=leave)


def _account(place: Path, outputs: str, package: OpenedPackage, left: Tree) -> list[str]:
    """What comes back and what does not, in words for the owner."""
    files = [entry for entry in left.found.entries if entry.kind == "file"]
    size = sum(entry.nbytes for entry in files)
    said = [f"what comes back of {outputs}: {len(files)} file{'s' if len(files) != 1 else ''}, {size} bytes"]
    if not (place / outputs).is_dir():
        said = [f"nothing comes back: there is no folder {outputs} (model.outputs)"]
    said += [f"left out of it: {item.path}: {item.reason}" for item in left.found.skipped[:FEW]]
    sent = {entry.path: entry.mtime_us for entry in parse_index(package.files[INDEX_NAME]).entries}

    def leave(_path: str, _reason: str) -> None: ...

    beside = []
    for name, path in list_folder(place, leave):
        known = name.encode("utf-8", "surrogateescape")
        if name.startswith(f"{outputs}/") or "__pycache__" in name:
            continue
        with contextlib.suppress(OSError):  # whatever lies there, the outputs are still to be sealed
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) and status.st_mtime_ns // 1000 != sent.get(known):
                beside.append(shown(known))
    if beside:
        more = f" and {len(beside) - FEW} more" if len(beside) > FEW else ""
        said.append(
            f"written outside of {outputs}, and lost with the machine: {', '.join(beside[:FEW])}{more}"
        )
    return said


def wiped(package: OpenedPackage) -> WipeReport:
    """Overwrite what is left of the package. The job's own memory went back to the kernel when it ended."""
    held = len(package.region or b"")
    return WipeReport(Wiped(), Wiped(), package=Wiped(1, held, package.wipe()))


@dataclass(frozen=True)
class _Ended:
    exit: JobExit
    elapsed_sec: float
    cpu_sec: float
    telemetry: list[dict[str, Any]]


def _run(
    job: Job, place: Path, channel: Channel, outputs: int,
    *, watch: Callable[[], None], seconds: float, on_gpu: bool,
) -> _Ended:  # fmt: skip
    """Run the command in a child to its end, or to the end of its time (0.0: it has none of its own)."""
    killed_before = _oom_kills()
    began = time.monotonic()
    trainer = os.getpid()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != trainer:
                os._exit(1)
            os.setsid()
            channel.close()
            os.close(outputs)
            watch()
            code = run_command.run(job.command, place, job.environment)
        except BaseException:  # noqa: BLE001 -- a forked child must never unwind into its parent's frames
            traceback.print_exc()
        finally:
            os._exit(code)
    reported, late = began, False
    asked: float | None = None
    with machine.Telemetry(on_gpu=on_gpu) as telemetry:  # its thread begins behind the fork
        while True:
            found, status, usage = os.wait4(pid, os.WNOHANG)
            if found:
                break
            now = time.monotonic()
            if asked is None and (
                (late := bool(seconds) and now - began >= seconds) or _told_to_end(channel)
            ):
                asked = now
                _signal(pid, signal.SIGTERM)
            elif asked is not None and now - asked >= GRACE_SEC:
                _signal(pid, signal.SIGKILL)
            if now - reported >= REPORT_SEC:
                reported = now
                channel.send("progress", {"phase": "job", "elapsedSec": now - began, "units": 0})
            select.select([channel.fileno()] if asked is None else [], [], [], LOOK_SEC)
    elapsed = time.monotonic() - began
    _signal(pid, signal.SIGKILL)  # the rest of its session's group; what left that, the supervisor ends
    code = os.waitstatus_to_exitcode(status)
    oom = code == -signal.SIGKILL and asked is None and _oom_kills() > killed_before
    how = JobExit(
        code=code if code >= 0 else None,
        signal=None if code >= 0 else signal.Signals(-code).name,
        out_of_memory=oom,
        out_of_time=late,
    )
    return _Ended(how, max(elapsed, 1e-3), usage.ru_utime + usage.ru_stime, telemetry.samples)


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
