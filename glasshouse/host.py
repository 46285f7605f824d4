"""The system under a controller: what Linux and macOS do differently, and what only Linux can do.

Planning, renting, sealing, reaping, verifying and the site run on both; a leg runs on Linux alone, be it on a
rented machine or here (provider=local). What else a controller's modules use, both have:
tests/test_portable.py.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

from glasshouse.errors import UsageError

_ASK_SEC = 10.0


def need_linux(what: str) -> None:
    """Raise UsageError where this is not Linux: `what` cannot be done here."""
    if sys.platform != "linux":
        raise UsageError(
            f"{what} needs Linux",
            field="platform",
            value=sys.platform,
            remedy="gpu=a4000 rents a machine, provider=ssh takes one of yours; all other commands work here",
        )


def sync(descriptor: int) -> None:
    """Have the disk itself keep what was written to a file or folder. Raises OSError.

    fsync(2) on macOS leaves it in the drive's cache, which a power cut empties.
    """
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        with contextlib.suppress(OSError):  # a file system that has no such call, such as a network's
            fcntl.fcntl(descriptor, full)
            return
    os.fsync(descriptor)


def read_regular(path: Path, limit: int, *, follow: bool = False) -> bytes:
    """Read a regular file of at most `limit` bytes. Raises OSError for anything else, links among it.

    follow: take what a link leads to, for a path that the user gave.
    """
    # Opened without blocking on a pipe, then judged by the open file.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    with os.fdopen(os.open(path, flags), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"larger than {limit} bytes")
    return data


def identity(pid: int) -> str:
    """Name process `pid` so that no later one can be taken for it: `boot:pid:start time`.

    What nobody can tell, because the process is gone or the system does not say, is empty.
    """
    return f"{_boot()}:{pid}:{_start(pid)}"


def lives(named: str) -> bool:
    """Whether a process of this machine, as `identity` named it, still runs.

    What cannot be told is taken for the same: whoever may be alive is left alone.
    """
    boot, pid, start = [*named.split(":"), "", "", ""][:3]
    if not pid.isdecimal() or not _exists(int(pid)):
        return False
    return all(
        not then or not now or then == now for then, now in ((boot, _boot()), (start, _start(int(pid))))
    )


def stopped(pid: int) -> bool:
    """Whether a process stands still, as SIGSTOP or a debugger has it. False also where nobody can tell."""
    if sys.platform == "linux":
        try:
            return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] in (b"T", b"t")
        except (OSError, IndexError):
            return False
    else:
        return _said("ps", "-o", "state=", "-p", str(pid)).startswith("T")


def of_this_boot(named: str) -> bool:
    """Whether an `identity` was made on this machine since it started, whatever the machine is called now.

    A Mac takes another name in another network; its boot session is its own. Linux containers share a boot.
    """
    return sys.platform != "linux" and _boot() != "" and named.split(":", 1)[0] == _boot()


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


@functools.cache
def _boot() -> str:
    """Tell this boot of the machine from every other."""
    if sys.platform == "linux":
        try:
            return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        except OSError:
            return ""
    else:
        return _said("sysctl", "-n", "kern.bootsessionuuid")


def _start(pid: int) -> str:
    """When a process started, in the system's own words."""
    if sys.platform == "linux":
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
            return stat.rpartition(b")")[2].split()[19].decode("ascii")
        except (OSError, IndexError):
            return ""
    else:
        return _said("ps", "-o", "lstart=", "-p", str(pid))


def _said(*command: str) -> str:
    """Return what a tool of the system answers as one word; empty where it is missing or refuses."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/bin:/bin:/usr/sbin:/sbin"  # cron's lacks the last two
    try:
        done = subprocess.run(
            command,
            env={"PATH": path, "LC_ALL": "C", "TZ": "UTC0"},  # the same words for every user, at any time
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_ASK_SEC,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    if done.returncode != 0:
        return ""
    return re.sub(rb"[^0-9A-Za-z]+", b"-", done.stdout).strip(b"-").decode("ascii")
