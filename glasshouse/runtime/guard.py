"""The guard: the root of a leg's processes, which does nothing but wait for the supervisor's end.

A supervisor that is killed cannot clean up. Its parent can: whatever was left running becomes the guard's
(it is a subreaper), and is killed; the scratch folder goes within moments, whether or not a controller looks.
The supervisor watches the guard in turn, and ends the leg when that one dies. The guard holds no key.

Everything below it carries the allocation's name, for a sweep that must do without either of them: in the
environment, in a resource limit, and where one can be made, as a control group (remote/sweep_script.py).
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

from glasshouse.errors import LegError
from glasshouse.remote.sweep_script import MARK_LIMIT, VARIABLE, mark, own_cgroup, remove
from glasshouse.runtime.linux import PR_SET_CHILD_SUBREAPER, SHM, harden, prctl
from glasshouse.runtime.params import LaunchParams
from glasshouse.runtime.peers import PeerDiedError, Peers
from glasshouse.runtime.strays import kill_strays
from glasshouse.sealing.memory import overwrite

LATE_SEC = 60.0  # past the leg's deadline, after which its supervisor hangs
_EMPTY_SEC = 5.0  # until what was killed has left its control group

Run = Callable[[LaunchParams, Path, int], None]


def scratch_prefix(launch: LaunchParams) -> str:
    """Return what the name of a launch's scratch folder begins with."""
    return f"{launch.allocation}-{launch.leg}-{launch.launch}-"


def keep(run: Run, launch: LaunchParams, folder: Path, tell: int) -> None:
    """Fork the process that does the leg, `run(launch, folder, pid of the guard)`; return once it has ended.

    Its pid is written to `tell`, which is closed; in that process nothing returns. Nothing of the leg runs
    any more then, and its plaintext is gone from disk and scratch folder.
    """
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    _name(launch.allocation)
    cgroup = _make_cgroup(scratch_prefix(launch).rstrip("-"))
    guard = os.getpid()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            _join(cgroup)
            os.write(tell, str(os.getpid()).encode())
            os.close(tell)
            run(launch, folder, guard)
            code = 0
        finally:
            os._exit(code)
    os.close(tell)
    overwrite(launch.secret)  # the supervisor has its copy
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends with the leg, which is told, too
    try:
        harden()
        peers = Peers()
        peers.watch("supervisor", pid)
        with contextlib.suppress(PeerDiedError):
            peers.wait(None, launch.deadline_sec + LATE_SEC)
    finally:
        _end(launch, folder, cgroup)


def _name(allocation: str) -> None:
    os.environ[VARIABLE] = allocation
    number = mark(allocation)
    with contextlib.suppress(OSError, ValueError):  # a limit that stands already can be lower
        resource.setrlimit(MARK_LIMIT, (number, number))


def _make_cgroup(name: str) -> Path | None:
    home = own_cgroup()
    if home is None:
        return None
    place = home / name
    try:
        place.mkdir()
    except OSError:
        return None
    return place


def _join(cgroup: Path | None) -> None:
    if cgroup is not None:
        with contextlib.suppress(OSError):
            (cgroup / "cgroup.procs").write_text("0", encoding="ascii")


def _end(launch: LaunchParams, folder: Path, cgroup: Path | None) -> None:
    """Kill what is left, in one stroke where there is a control group; remove what may hold plaintext."""
    if cgroup is not None:
        with contextlib.suppress(OSError):
            (cgroup / "cgroup.kill").write_text("1", encoding="ascii")  # Linux 5.14
    with contextlib.suppress(LegError):
        kill_strays()
    prefix = scratch_prefix(launch)
    places = [*SHM.glob(f"{prefix}*"), *folder.glob(f"{prefix}*")]
    if launch.raw_dir:
        places.append(Path(launch.raw_dir))
    for place in places:
        remove(place)
    if cgroup is not None:
        deadline = time.monotonic() + _EMPTY_SEC
        while cgroup.exists() and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                cgroup.rmdir()
                break
            time.sleep(0.01)
