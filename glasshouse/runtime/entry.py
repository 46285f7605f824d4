"""Main program of the archive on the pod: `python -I ARCHIVE launch LEG_DIR`, parameters on stdin.

The launched leg is detached: its own session, no terminal, plain log file. A dropped connection
does not touch it, and its result file, not the exit of this command, says how it went.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from glasshouse.runtime import freed, guard
from glasshouse.runtime.params import LaunchParams, read_launch
from glasshouse.sealing.memory import overwrite


def main(argv: list[str]) -> int:
    """Start one launch and return at once; 2 for a call that is not of this form."""
    if len(argv) != 3 or argv[1] != "launch":
        print("usage: ARCHIVE launch LEG_DIR < parameters", file=sys.stderr)  # noqa: T201 -- a program's usage line
        return 2
    freed.keep_arenas_within_reach()  # in both arms, before either has a thread
    try:
        launch = read_launch(sys.stdin.fileno())
    except (KeyError, TypeError, ValueError) as error:
        print(f"launch parameters: {type(error).__name__}", file=sys.stderr)  # noqa: T201 -- codes only
        return 2
    folder = Path(argv[2])
    try:
        folder.mkdir(parents=True, mode=0o700)
    except OSError as error:
        print(f"leg folder: {error.strerror}", file=sys.stderr)  # noqa: T201 -- codes only
        return 2
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        os.setsid()
        if os.fork() != 0:
            overwrite(launch.secret)
            os._exit(0)
        code = 1
        try:
            _detach(folder)
            guard.keep(_leg, launch, folder, write_end)
            code = 0
        finally:
            os._exit(code)
    overwrite(launch.secret)  # the leg's own process has its copy
    os.close(write_end)
    os.waitpid(pid, 0)
    with os.fdopen(read_end, "rb") as stream:
        detached = int(stream.read() or b"0")
    print(json.dumps({"pid": detached}))  # noqa: T201 -- the answer to the controller
    return 0 if detached else 1


def _leg(launch: LaunchParams, folder: Path, guard_pid: int) -> None:
    if launch.arm == "protected":
        from glasshouse.runtime.supervisor import supervise as leg  # noqa: PLC0415 -- one arm's code per process
    else:
        from glasshouse.runtime.raw import mind as leg  # noqa: PLC0415
    leg(launch, folder, guard_pid)


def _detach(folder: Path) -> None:
    os.umask(0o077)
    null = os.open(os.devnull, os.O_RDONLY)
    log = os.open(folder / "runtime.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(null)
    os.close(log)
