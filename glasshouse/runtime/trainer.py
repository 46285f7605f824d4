"""The trainer: forked from the custodian, confined, runs the workload, holds no key.

Its life: hand memory descriptors to the supervisor; confine itself to one tmpfs folder by
Landlock; train; fork the sealer for the outputs; give needles; wipe; wait to be told to exit.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from glasshouse.canonical import b64u_decode, record_json
from glasshouse.codes import Code
from glasshouse.errors import LegError
from glasshouse.runtime import checkpointing, freed, harness, project, residue, resume, sealer
from glasshouse.runtime.channel import Channel, ChannelClosedError
from glasshouse.runtime.confine import confine
from glasshouse.runtime.forecast import Forecast
from glasshouse.runtime.keeper import Duties, Ends
from glasshouse.runtime.keeper import fork as fork_keeper
from glasshouse.runtime.linux import (
    CORE_LIMIT_PAST_EXEC,
    OWN_THREADS,
    PR_SET_PDEATHSIG,
    PROC,
    SHM,
    drop_capabilities,
    gpu_devices,
    harden,
    hardening_state,
    is_tmpfs,
    prctl,
    private_shm,
    restrict_writes,
)
from glasshouse.runtime.noted import Noted
from glasshouse.runtime.offline import offline_environment
from glasshouse.runtime.params import LaunchParams
from glasshouse.runtime.ranks import RankedSession
from glasshouse.runtime.readable import existing
from glasshouse.runtime.results import Wiped
from glasshouse.runtime.ring import Ring
from glasshouse.runtime.seccomp import can_filter
from glasshouse.runtime.session import Session, Tensor
from glasshouse.runtime.session_end import SessionEnd
from glasshouse.runtime.watched import NOTES_RING_BYTES, Watch, collect
from glasshouse.runtime.wipe import place_of, wipe_tensors
from glasshouse.sealing.container import OpenedPackage
from glasshouse.sealing.memory import overwrite

NEEDLES_PER_CLASS = 3
NEEDLE_BYTES = 24
WINDOW_ELEMENTS = 1 << 14
LOOK_SEC = 2.0  # between two looks of the keeper for what a session wrote
_RESOLVER = ("/etc/resolv.conf", "/etc/hosts", "/etc/host.conf", "/etc/gai.conf")
CACHE_VARIABLES = (
    "TMPDIR",
    "HOME",
    "XDG_CACHE_HOME",
    "HF_HOME",
    "TORCH_HOME",
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
    "CUDA_CACHE_PATH",
    "MPLCONFIGDIR",
)


@dataclass(frozen=True)
class Plumbing:
    """What a trainer inherits through the custodian that forks it."""

    trainer: Channel  # trainer's end
    log: int  # write end: the trainer's stdout and stderr
    outputs: int  # write end: sealed outputs
    scratch: str  # per-run tmpfs folder
    execs: int  # of a job: where its processes say how their execs are counted (execs.watch)
    keeper: Ends | None  # what the keeper is to have; None: there is to be none
    supervisor: int  # its pid: whoever else is the parent is not
    printed: Ring | None = None  # what it printed, for whoever watches


def main(plumbing: Plumbing, launch: LaunchParams, package: OpenedPackage) -> None:
    """Run the trainer to its exit; never returns."""
    code = 1
    channel = plumbing.trainer
    try:
        # The supervisor becomes the parent once the custodian is reaped; it says when.
        channel.send_descriptors(residue.open_self())
        channel.expect("go", timeout=60)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != plumbing.supervisor:
            raise LegError("the supervisor is gone", code=Code.RUNTIME_ERROR)
        scratch = _confine(plumbing, launch, channel)
        if launch.job:
            strays = project.work(
                launch,
                package,
                channel,
                scratch=scratch,
                outputs=plumbing.outputs,
                execs=plumbing.execs,
                keep=partial(_fork_keeper, plumbing, package),
                printed=plumbing.printed,
                over=partial(_end_keeper, plumbing, channel),
            )
            channel.send("needles-done", {"strays": strays})
            _await(channel, "wipe")
            channel.send("wiped", project.wiped(package))
            _await(channel, "exit")
        else:
            _work(plumbing, launch, package, channel, scratch)
        code = 0
    except LegError as error:
        traceback.print_exc()
        _failed(channel, error.code)
    except ChannelClosedError:
        pass
    except BaseException:  # noqa: BLE001 -- whatever the owner's code raises ends here; its traceback goes to the sealed log
        traceback.print_exc()
        _failed(channel, Code.WORKLOAD_ERROR)
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        # The package's own memory is wiped on every path; torch's copies end with the process.
        package.wipe()
        os._exit(code)


def _fork_keeper(plumbing: Plumbing, package: OpenedPackage, duties: Duties) -> None:
    """Start the keeper, where there is to be one. For a process of one thread, which is confined."""
    if plumbing.keeper is not None:
        fork_keeper(plumbing.keeper, duties, package, supervisor=plumbing.supervisor)


def _end_keeper(plumbing: Plumbing, channel: Channel, *, one_more: bool = False) -> None:
    """Have the supervisor end the keeper, if `one_more` after a checkpoint of the end.

    What is sealed from here on are the outputs.
    """
    if plumbing.keeper is not None:
        channel.send("training-over", {"oneMore": one_more})
        _await(channel, "keeper-ended")


def _failed(channel: Channel, code: Code) -> None:
    with contextlib.suppress(ChannelClosedError):
        channel.send("failed", {"code": code})


def _confine(plumbing: Plumbing, launch: LaunchParams, channel: Channel) -> Path:
    """Confine this process; return its scratch folder."""
    os.dup2(plumbing.log, 1)
    os.dup2(plumbing.log, 2)
    os.close(plumbing.log)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    scratch = Path(plumbing.scratch)
    if launch.job:
        return _confine_job(plumbing, launch, channel, scratch)
    os.close(plumbing.execs)
    shm = private_shm(scratch)
    if shm and scratch.parent == SHM:
        scratch = SHM  # the folder itself lies there no longer
    for variable in CACHE_VARIABLES:
        os.environ[variable] = str(scratch)
    os.chdir(scratch)
    sys.dont_write_bytecode = True
    harden()
    landlocked = restrict_writes([scratch], gpu_devices())
    capabilities = drop_capabilities()
    if landlocked and _can_write_outside(scratch):
        raise LegError("Landlock did not confine the trainer", code=Code.LANDLOCK_INEFFECTIVE)
    if launch.require_landlock and not landlocked:
        raise LegError("the kernel has no Landlock", code=Code.LANDLOCK_MISSING)
    state = hardening_state()
    channel.send(
        "hardened",
        {
            **asdict(state),
            "fs": "landlock" if landlocked else "none",
            "scratchTmpfs": is_tmpfs(scratch),
            "capabilities": capabilities,
            "shm": "private" if shm else "none",
        },
    )
    return scratch


def _confine_job(plumbing: Plumbing, launch: LaunchParams, channel: Channel, scratch: Path) -> Path:
    """Confine this process for a command of the owner's, which reads its own files and reaches nobody."""
    sys.dont_write_bytecode = True
    # Where the folders of allocations lie. The archive and the interpreter in this one stay readable.
    hidden = [Path(launch.leg_dir).parent.parent.parent]
    resolver = map(Path, _RESOLVER) if launch.network_open else ()
    # The threads that CUDA names are those of the job's processes, which are not there yet (jobs.run).
    devices = [PROC if device == OWN_THREADS else device for device in gpu_devices()]
    kept = () if plumbing.keeper is None else plumbing.keeper.descriptors
    held = confine(
        scratch, existing(resolver), devices,
        [channel.fileno(), plumbing.outputs, plumbing.execs, *kept], hidden,
        network_open=launch.network_open,
    )  # fmt: skip
    for variable in CACHE_VARIABLES:
        os.environ[variable] = str(held.scratch)
    if held.network != "open":
        os.environ.update(offline_environment(loopback=held.network == "namespace"))
    harden(CORE_LIMIT_PAST_EXEC)
    capabilities = drop_capabilities()
    if launch.require_landlock and held.writing == "none":
        raise LegError("the kernel has no Landlock", code=Code.LANDLOCK_MISSING)
    if held.writing == "landlock" and _can_write_outside(held.scratch):
        raise LegError("Landlock did not confine the trainer", code=Code.LANDLOCK_INEFFECTIVE)
    if not is_tmpfs(held.scratch):
        raise LegError("the scratch folder is no memory", code=Code.SCRATCH_NOT_MEMORY)
    if held.network == "none":
        raise LegError("nothing keeps the job from the network", code=Code.NETWORK_NOT_CLOSED)
    if launch.require_confined_reads and held.reading == "none":
        raise LegError("nothing confines what the job reads", code=Code.READS_NOT_CONFINED)
    if launch.refuse_execs and not can_filter():
        raise LegError("nothing refuses to start programs", code=Code.EXECS_NOT_REFUSED)
    channel.send(
        "hardened",
        {
            **asdict(hardening_state()),
            "fs": held.writing,
            "scratchTmpfs": is_tmpfs(held.scratch),
            "capabilities": capabilities,
            "shm": held.shm,
            "network": held.network,
            "reads": held.reading,
            "sockets": held.sockets,
        },
    )
    return held.scratch


def _can_write_outside(scratch: Path) -> bool:
    """Try what must fail: make a file beside the scratch folder."""
    probe = scratch.parent / f"{scratch.name}-probe"
    try:
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError:
        return False
    probe.unlink()
    return True


def _work(
    plumbing: Plumbing, launch: LaunchParams, package: OpenedPackage, channel: Channel, scratch: Path
) -> None:
    owner_public = b64u_decode(str(package.extra["ownerPublicKey"]))
    folder = scratch / checkpointing.FOLDER
    every = launch.checkpoint_sec
    notes, seen = Ring(NOTES_RING_BYTES), time.monotonic()

    def record(_due: float | None) -> bytes:
        """The keeper's own look falls due every moment: when a session writes, it says itself."""
        due = checkpointing.due_in(folder, every, seen) if every else None
        return collect(watch, due)

    watch = Watch(None, plumbing.printed, notes, on_gpu=launch.device != "cpu")
    duties = Duties.of(launch, folder, owner_public, lambda: checkpointing.steps_in(folder), collect=record)
    if every:  # what is written has a cadence of its own, and is sealed once it is there
        duties = replace(
            duties,
            only=checkpointing.is_written,
            marked_only=True,
            unable=folder / checkpointing.UNABLE,
            checkpoint_sec=min(every, LOOK_SEC),
        )
    _fork_keeper(plumbing, package, duties)

    before = resume.made_before(package.files)
    points: checkpointing.Checkpointed | None = None

    def trained(session: Session) -> Session:
        nonlocal points
        if every:
            session = points = checkpointing.Checkpointed(session, folder, every, before)
        return Noted(session, notes, launch.stretch.steps) if launch.watch_sec else session

    # The salt is the manifest's, authenticated with it, and so is the raw arm's.
    salt = b64u_decode(str(package.extra["matchSalt"]))
    end = SessionEnd(channel, launch.job_sec) if launch.private else None
    session, result = harness.run(
        harness.Workload(package.files, package.tensors, str(package.extra["builder"]), package.region),
        stretch=launch.stretch,
        device=launch.device,
        allocation=launch.public_allocation,
        salt=salt,
        report=channel.send,
        ranks=launch.ranks,
        blind=launch.salt,
        allow=launch.allow,
        kept=trained,
        ended=end or (lambda: False),
        forecast=Forecast(launch.job_sec) if launch.private else None,
    )
    if points is not None:
        points.last()
    _end_keeper(plumbing, channel, one_more=points is not None)
    channel.send("trained", {"result": result if end is None else end.stated(result)})

    outputs = session.trainable()
    began = time.monotonic()
    sealed = sealer.seal_in_child(
        plumbing.outputs,
        outputs,
        owner_public=owner_public,
        context=launch.sealed_under,
        padded=launch.private,
    )
    channel.send("sealed-outputs", {**record_json(sealed), "sealSec": round(time.monotonic() - began, 6)})
    _zeroize(session, outputs, package, channel)


def _zeroize(
    session: Session, outputs: Mapping[str, Tensor], package: OpenedPackage, channel: Channel
) -> None:
    # Needles are sampled now, from what is live: initial weights are long gone.
    buffers = session.buffers()
    trained = list(outputs.values())
    known = {place_of(tensor) for tensor in trained}
    rest = [tensor for tensor in buffers if place_of(tensor) not in known]
    for klass, tensors in (("trained-parameter", trained), ("optimizer-or-data", rest)):
        for where, sample in _samples(tensors):
            channel.send("needle", {"class": klass, "where": where}, raw=sample)
            overwrite(sample)
    if traces := freed.leave_traces(NEEDLE_BYTES):
        channel.send("needle", {"class": "freed-memory", "where": "heap"}, raw=traces)
        overwrite(traces)
    freed.fill_what_is_allocated()
    channel.send("needles-done")
    _await(channel, "wipe")
    others = session.end_ranks() if isinstance(session, RankedSession) else None
    report = wipe_tensors([*trained, *rest])
    held = len(package.region or b"")
    channel.send("wiped", replace(report, ranks=others, package=Wiped(1, held, package.wipe())))
    _await(channel, "exit")


def _await(channel: Channel, kind: str) -> None:
    """Wait for a message; serve scans meanwhile (asked for only where no descriptor could be passed)."""
    while True:
        found = channel.receive().kind
        if found == "scan":
            residue.serve(channel)
        elif found == kind:
            return
        elif found == "end":
            continue  # of a job that had ended by itself a moment before
        else:
            raise LegError(f"expected {kind}, got {found}", code=Code.RUNTIME_ERROR)


def _samples(tensors: list[Any]) -> list[tuple[str, bytearray]]:
    """Take up to NEEDLES_PER_CLASS samples from random places of the largest tensors."""
    found: list[tuple[str, bytearray]] = []
    ranked = sorted(tensors, key=lambda tensor: tensor.numel() * tensor.element_size(), reverse=True)
    for tensor in ranked:
        if len(found) == NEEDLES_PER_CLASS:
            break
        part = _window(tensor)
        view, host = harness.tensor_bytes(part)
        sample = _sample(view)
        harness.wipe_copy(part, host)
        if sample is not None:
            found.append((tensor.device.type, sample))
    return found


def _window(tensor: Any) -> Any:
    """A tensor on the host as it is; of one on a device, a stretch at a random place.

    So a sample brings no copy of the whole into host memory.
    """
    flat = tensor.detach()
    if flat.device.type == "cpu" or not flat.is_contiguous() or flat.numel() <= WINDOW_ELEMENTS:
        return flat
    start = secrets.randbelow(flat.numel() - WINDOW_ELEMENTS + 1)
    return flat.view(-1)[start : start + WINDOW_ELEMENTS]


def _sample(view: memoryview) -> bytearray | None:
    """A stretch with at least 8 distinct bytes: zeros and repeated values occur anywhere."""
    if view.nbytes < NEEDLE_BYTES:
        return None
    for _ in range(64):
        start = secrets.randbelow(view.nbytes - NEEDLE_BYTES + 1)
        sample = bytearray(view[start : start + NEEDLE_BYTES])
        if len(set(sample)) >= 8:
            return sample
        overwrite(sample)
    return None
