"""A user's own project: its files in the scratch folder, its command in children of the trainer (jobs.py).

The memory of the package's tensors, in which the files came, is handed back to the kernel piece by piece as
they are written. Whatever becomes of the children (exit, exception, signal), the trainer is there to say so
and to have the outputs sealed.

What this needs of torch is nothing: a project may train with anything.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import stat
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from glasshouse.canonical import b64u_decode, canonical_json, domain_hash, record_json
from glasshouse.codes import Code
from glasshouse.errors import LegError, SealError
from glasshouse.runtime import comes_back, jobs, machine, resume, sealer
from glasshouse.runtime.channel import Channel
from glasshouse.runtime.execs import watch
from glasshouse.runtime.keeper import Duties
from glasshouse.runtime.params import (
    JOB_FILE,
    LOST,
    NOT_CARRIED,
    NOTHING,
    SAID,
    WHEELS_FOLDER,
    LaunchParams,
)
from glasshouse.runtime.results import JobExit, LegResult, Wiped, WipeReport
from glasshouse.runtime.ring import Ring
from glasshouse.runtime.run_command import Site
from glasshouse.runtime.steps import Board
from glasshouse.runtime.watched import Watch, collect
from glasshouse.runtime.wheel import WheelError, unpack
from glasshouse.sealing.container import OpenedPackage
from glasshouse.sealing.memory import give_back
from glasshouse.sealing.tree import INDEX_NAME, Tree, list_folder, read_tree, write_tree
from glasshouse.sealing.tree_index import Skipped, as_path, shown

FOLDER = "project"  # in the scratch folder, as are the next two
SITE, PROGRAMS = "site", "programs"  # what came along as wheels: modules, and what they let one call by name
FEW = 5
_NAME = 160  # characters of a path in a line for the owner
INDEX_DOMAIN = "glasshouse/project-outputs/v1"


def work(
    launch: LaunchParams,
    package: OpenedPackage,
    channel: Channel,
    *,
    scratch: Path,
    outputs: int,
    execs: int,
    keep: Callable[[Duties], None],
    over: Callable[[], None],
    printed: Ring | None = None,
) -> int:
    """Run the project to its end and seal what it left. `outputs`: write end of the pipe for that.

    Returns how many processes it left running, which were ended before.

    `execs`: of the socket by which the supervisor counts the programs that it starts (execs.watch).
    `keep`: starts what seals checkpoints, once the project's files are there; `over` ends that. `printed`:
    what it prints, for whoever watches.

    Raises LegError: project-not-written where its files find no room, dependencies-unmet for a bad wheel,
    ranks-cannot-meet.
    """
    began = time.monotonic()
    job = jobs.Job.from_json(bytes(package.files[JOB_FILE]))
    if launch.device == "cpu":  # gpu=cpu, whatever the machine has
        job = replace(job, environment={**job.environment, jobs.HIDES: ""})
    salt = b64u_decode(str(package.extra["matchSalt"]))
    place = scratch / FOLDER
    place.mkdir(mode=0o700)
    try:
        write_tree(package.files[INDEX_NAME], package.tensors, place, release=give_back)
        back, whole = place / job.outputs, job.outputs == "."
        resume.put_back(package.files, package.tensors, back, whole=whole, release=give_back)
    except (SealError, OSError) as error:
        print(f"the project's files could not be written: {error}", flush=True)  # noqa: T201  the sealed log
        raise LegError("the project's files could not be written", code=Code.PROJECT_NOT_WRITTEN) from error
    site = _installed(place / WHEELS_FOLDER, scratch)
    setup_sec = time.monotonic() - began
    channel.send("progress", {"phase": "setup", "elapsedSec": setup_sec, "units": 0})
    start = machine.identity(launch.public_allocation, launch.salt)
    on_gpu = bool(start.gpu_uuids) and launch.device != "cpu"
    board = Board(job.command.ranks)
    owner_public = b64u_decode(str(package.extra["ownerPublicKey"]))
    came = comes_back.sent(package.files[INDEX_NAME])
    only = comes_back.taken(place, job.outputs, came)
    watched = Watch(
        place, printed, steps=lambda: [each.steps for each in board.read()], on_gpu=launch.device != "cpu"
    )
    keep(
        Duties.of(
            launch, place / job.outputs, owner_public, lambda: board.read()[0].steps,
            collect=partial(collect, watched), only=only,
        )
    )  # fmt: skip
    ended = jobs.run(
        job, place, site, channel, outputs, board=board,
        watch=partial(watch, execs, refuse=launch.refuse_execs), seconds=launch.job_sec, on_gpu=on_gpu,
    )  # fmt: skip
    over()
    left, lost = found_in(place / job.outputs, only)
    digest = domain_hash("glasshouse/project/v1", [salt, bytes(package.files[INDEX_NAME])]).hex()
    result = LegResult(
        unit="job",
        units=1,
        steps=ended.seen.steps or 0,
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
        machine_end=machine.identity(launch.public_allocation, launch.salt),
        cpu_sec=ended.cpu_sec,
        total_cpu_sec=ended.cpu_sec,
        device="cuda" if on_gpu else "cpu",
        telemetry=ended.telemetry,
        exit=ended.exit,
        weights=ended.seen.weights(salt),
        left_out=bool(lost),
    )
    channel.send("trained", {"result": result})
    for line in [*ended.notes, *_account(place, job.outputs, came, left, lost)]:
        print(f"{SAID}{line}", flush=True)  # noqa: T201  the sealed log, whose end the owner is shown
    for name in lost[:FEW]:
        print(f"{NOT_CARRIED}{_brief(name.path)}: {name.reason}", flush=True)  # noqa: T201
    if len(lost) > FEW:
        print(f"{NOT_CARRIED}{len(lost) - FEW} more files", flush=True)  # noqa: T201
    began = time.monotonic()
    sealed = sealer.seal_tree_in_child(
        outputs,
        place / job.outputs,
        owner_public=owner_public,
        context=launch.sealed_under,
        extra={"exit.json": canonical_json(_exit_file(ended.exit, ended.seen.steps))},
        only=only,
        padded=launch.private,
        goes_on=partial(_report_sealing, channel, began),
    )
    channel.send("sealed-outputs", {**record_json(sealed), "sealSec": round(time.monotonic() - began, 6)})
    return ended.strays


def _report_sealing(channel: Channel, began: float) -> None:
    channel.send("progress", {"phase": "sealing", "elapsedSec": time.monotonic() - began, "units": 0})


def _exit_file(how: JobExit, steps: int | None) -> dict[str, Any]:
    """What the owner finds beside the outputs: one that saves when asked to end may well exit 0.

    `steps`: None where it loaded no torch, or one whose steps are not counted.
    """
    ended = {"endedBy": "model.max_hours"} if how.out_of_time else {}
    return {**record_json(how), **ended, **({} if steps is None else {"steps": steps})}


def _installed(wheels: Path, scratch: Path) -> Site | None:
    """Unpack the wheels that came along, each removed once it is; None where none did."""
    if not wheels.is_dir():
        return None
    site = Site(scratch / SITE, scratch / PROGRAMS)
    try:
        # A container's /dev/shm is noexec as a rule, and shared objects are executed: memory files may be.
        in_memory = bool(os.statvfs(scratch).f_flag & os.ST_NOEXEC)
        if in_memory:
            _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each of them stays open
        for folder in (site.modules, site.programs):
            folder.mkdir(mode=0o700)
        for wheel in sorted(wheels.iterdir()):
            unpack(wheel, site.modules, site.programs, python=sys.executable, in_memory=in_memory)
            wheel.unlink()
        shutil.rmtree(wheels)
    except (WheelError, OSError) as error:
        said = error.line() if isinstance(error, WheelError) else error
        print(f"what the project needs could not be unpacked: {said}", flush=True)  # noqa: T201  the sealed log
        code = Code.DEPENDENCIES_UNMET if isinstance(error, WheelError) else Code.PROJECT_NOT_WRITTEN
        raise LegError("what the project needs could not be unpacked", code=code) from error
    return site


def found_in(
    folder: Path, only: Callable[[str], bool] | None = None, *, max_bytes: int = sealer.MAX_TREE_BYTES
) -> tuple[Tree, list[Skipped]]:
    """What a job left as its outputs, by name, size and time, as the sealer will find it; and what is lost.

    `only`: as of sealer.seal_tree. Nobody may write there any more. What cannot be carried is left out. Lost
    is what has contents among that: files, the largest first where all are more than `max_bytes`, and folders
    that cannot be listed.
    """
    unlisted, lost = list[Skipped](), list[Skipped]()
    listed = list_folder(folder, lambda *odd: unlisted.append(Skipped(*odd))) if folder.is_dir() else ()
    files = [(name, place) for name, place in listed if only is None or only(name)]
    places = {shown(as_path(name)): place for name, place in files}

    def leave(path: str, reason: str) -> None:
        place = places.get(path)
        with contextlib.suppress(OSError):
            if place is None or stat.S_ISREG(place.lstat().st_mode):
                lost.append(Skipped(path, reason))

    tree = read_tree(files, on_odd=leave, skipped=unlisted, max_bytes=max_bytes)
    return tree, [*lost, *unlisted]


def _account(
    place: Path, outputs: str, came: comes_back.Sent, left: Tree, lost: Collection[Skipped]
) -> list[str]:
    """What comes back and what does not, in words for the owner; `lost` is said apart."""
    files = [entry for entry in left.found.entries if entry.kind == "file"]
    whole = outputs == comes_back.WHOLE
    where = "of its folder, made or changed there" if whole else f"of {outputs}"
    size = sum(entry.nbytes for entry in files)
    said = [f"what comes back {where}: {len(files)} file{'s' if len(files) != 1 else ''}, {size} bytes"]
    odd = [item for item in left.found.skipped if item not in lost]
    said += [f"left out of it: {_brief(item.path)}: {item.reason}" for item in odd[:FEW]]
    if (others := left.found.skipped_count - len(lost) - FEW) > 0:
        said.append(f"left out of it: {others} more, which `open` names")
    if whole:
        return said if left.found.entries else [f"{NOTHING}it made or changed no file in its folder"]
    beside = sorted(_beside(place, outputs, came), reverse=True)
    names = ", ".join(_brief(shown(name)) for _, name in beside[:FEW])
    names += f" and {len(beside) - FEW} more" if len(beside) > FEW else ""
    if left.found.entries or left.found.skipped_count:
        elsewhere = f"written outside of {outputs}, and lost with the machine: {names}"
        return [*said, elsewhere] if beside else said
    why = "nothing lies in" if (place / outputs).is_dir() else "there is no folder"
    if not beside:
        return [f"{NOTHING}{why} {outputs} (model.outputs)"]
    nbytes, largest = beside[0]
    what = f"{LOST}{names}; the largest has {nbytes} bytes. {why.capitalize()} {outputs} (model.outputs)"
    return [f"{what}: {_remedy(largest, outputs, came)}"]


def _brief(path: str) -> str:
    """A path, without its middle where it is long: of ours, such a line's end may be what to do."""
    return path if len(path) <= _NAME else f"{path[: _NAME // 2]} ... {path[-_NAME // 2 :]}"


def _beside(place: Path, outputs: str, came: comes_back.Sent) -> Iterator[tuple[int, bytes]]:
    """Of each file that a job wrote outside of its outputs, bytes and name."""
    made = comes_back.taken(place, comes_back.WHOLE, came)
    for name, path in list_folder(place, lambda _path, _reason: None):
        if name.startswith(f"{outputs}/") or not (made is None or made(name)):
            continue
        with contextlib.suppress(OSError):  # whatever lies there, the outputs are still to be sealed
            status = path.lstat()
            if stat.S_ISREG(status.st_mode):
                yield status.st_size, os.fsencode(name)


def _remedy(largest: bytes, outputs: str, sent: Iterable[bytes]) -> str:
    """What lets a file come back that was written elsewhere: its topmost folder that holds nothing sent."""
    folders = largest.split(b"/")[:-1]
    for depth in range(1, len(folders) + 1):
        folder = b"/".join(folders[:depth])
        if not any(name.startswith(folder + b"/") for name in sent):
            return f"give model.outputs={shown(folder)}"
    return f"have it written into {outputs}/"


def wiped(package: OpenedPackage) -> WipeReport:
    """Overwrite what is left of the package. The job's own memory went back to the kernel when it ended."""
    held = len(package.region or b"")
    return WipeReport(Wiped(), Wiped(), package=Wiped(1, held, package.wipe()))
