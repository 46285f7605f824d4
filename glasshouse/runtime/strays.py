"""End what is left below a subreaper: processes that a role or the workload started and left running."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from glasshouse.codes import Code
from glasshouse.errors import LegError

STRAY_TIMEOUT_SEC = 10.0


def kill_strays(timeout: float = STRAY_TIMEOUT_SEC) -> int:
    """Kill and reap everything below this subreaper; return how many were running.

    A workload may have started processes that outlive it, with its data in their memory. Raises
    LegError(Code.PROCESS_STUCK) where one does not end in `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    killed, reaped = set[int](), 0
    while time.monotonic() < deadline:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return reaped
        if pid:
            reaped += pid in killed  # the others had ended by themselves, and nobody had waited for them
            continue
        for child in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
                killed.add(child)
        time.sleep(0.002)
    raise LegError("a process did not end", code=Code.PROCESS_STUCK)


def _children() -> list[int]:
    """Pids of this process's children, from each process's own word where the kernel keeps no list."""
    own = os.getpid()
    try:
        text = Path(f"/proc/{own}/task/{own}/children").read_text(encoding="ascii")
        return [int(child) for child in text.split()]
    except OSError:
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                if int(stat.read_bytes().rpartition(b")")[2].split()[1]) == own:
                    found.append(int(stat.parent.name))
        return found
