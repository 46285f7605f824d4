"""Remove one allocation from a machine: kill its processes, remove its folders, and say what is left.

Run on the far side as source text (`python -I - NAME FOLDER < sweep_script.py`), and called in process by the
local provider, so that both prove the same thing. Standard library only, nothing of ours is imported.

A process is ours when the allocation name stands in its command line, when its working folder lies in the pod
folder, when such a process is its ancestor, or when such a process leads its session. The sweeper and its
ancestors (sshd, the shell that started it) are never touched.

Prints one JSON object: {"processesLeft", "folderRemoved", "killed", "checkedAt": [unix seconds, twice]}.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

# Anything looser could match a stranger's process; "" would match all of them.
NAME = re.compile(r"gh-[A-Za-z0-9][A-Za-z0-9\-]{10,80}\Z")
SCRATCH = ("/dev/shm", "/tmp", "/var/tmp")  # noqa: S108  only entries whose name begins with the allocation's
TERM_SECONDS = 3.0


class _Process(NamedTuple):
    parent: int
    session: int
    line: str
    folder: str


def _processes() -> dict[int, _Process]:
    """Return every living process by pid."""
    table = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
            if fields[0] in (b"Z", b"X"):
                continue  # dead, waiting to be reaped by its parent: runs nothing, holds no memory
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except (OSError, IndexError):
            continue
        try:
            folder = str((entry / "cwd").readlink())
        except OSError:
            folder = ""  # another user's, or hardened: the command line alone decides
        table[int(entry.name)] = _Process(int(fields[1]), int(fields[3]), line, folder)
    return table


def _ours(name: str, folder: Path) -> set[int]:
    """Return the pids that belong to allocation `name`."""
    table = _processes()
    spared = {0, 1}
    pid = os.getpid()
    while pid in table and pid not in spared:
        spared.add(pid)
        pid = table[pid].parent
    inside = f"{folder}/"
    found = {
        pid
        for pid, process in table.items()
        if name in process.line or (process.folder.removesuffix(" (deleted)") + "/").startswith(inside)
    } - spared
    while True:
        grown = {
            pid for pid, process in table.items() if process.parent in found or process.session in found
        } - spared
        if grown <= found:
            return found
        found |= grown


def _signal(pids: set[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, number)


def _kill(name: str, folder: Path) -> int:
    """SIGTERM, then SIGKILL to what is left after TERM_SECONDS; return how many were asked to go."""
    asked: set[int] = set()
    deadline = time.monotonic() + TERM_SECONDS
    while time.monotonic() < deadline:
        found = _ours(name, folder)
        if not found:
            return len(asked)
        _signal(found - asked, signal.SIGTERM)
        _signal(found - asked, signal.SIGCONT)  # a stopped process acts on SIGTERM only once continued
        asked |= found
        time.sleep(0.05)
    for _ in range(40):
        found = _ours(name, folder)
        if not found:
            break
        _signal(found, signal.SIGKILL)
        asked |= found
        time.sleep(0.05)
    return len(asked)


def _mounts_under(folder: Path) -> list[str]:
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    points = [line.split()[4].replace("\\040", " ") for line in lines]
    return [point for point in points if f"{point}/".startswith(f"{folder}/")]


def _remove(folder: Path) -> None:
    """Remove one folder tree, unless something stays mounted in it: that could be someone's data."""
    for point in reversed(_mounts_under(folder)):
        subprocess.run(["umount", "-l", point], check=False, capture_output=True)
    if _mounts_under(folder):
        return
    if folder.is_symlink() or folder.is_file():
        with contextlib.suppress(OSError):
            folder.unlink()
        return
    for _ in range(2):
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.lexists(folder):
            return
        # A folder without its write bit kept its entries from the first pass.
        for root, _, _ in os.walk(folder):
            with contextlib.suppress(OSError):
                Path(root).chmod(0o700)


def _folders(name: str, folder: Path) -> list[Path]:
    """Return the pod folder and every scratch entry named after the allocation, as far as they exist."""
    found = [folder] if os.path.lexists(folder) else []
    for base in SCRATCH:
        with contextlib.suppress(OSError):
            found += [entry for entry in Path(base).iterdir() if entry.name.startswith(name)]
    return found


def sweep(name: str, folder: str) -> dict[str, object]:
    """Remove allocation `name` and its pod `folder`, whose last part must be the name; return the report.

    Raises ValueError for a name or folder that is not an allocation's.
    """
    if NAME.match(name) is None:
        raise ValueError("not an allocation name")
    # The parent may be reached through links; the folder itself must not be one that leads elsewhere.
    place = Path(folder).absolute().parent.resolve() / Path(folder).name
    if place.name != name:
        raise ValueError("not this allocation's folder")
    killed = _kill(name, place)
    for path in _folders(name, place):
        _remove(path)
    processes = []
    folders = []
    checked = []
    for look in range(2):  # twice: a process between fork and exec, or a late writer, shows in the second
        if look:
            time.sleep(0.2)
        processes.append(len(_ours(name, place)))
        folders.append(len(_folders(name, place)))
        checked.append(round(time.time(), 3))
    return {
        "processesLeft": max(processes),
        "folderRemoved": max(folders) == 0,
        "killed": killed,
        "checkedAt": checked,
    }


def main(argv: list[str]) -> int:
    """Sweep argv = [name, folder] and print the report."""
    try:
        report = sweep(argv[0], argv[1])
    except (IndexError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(json.dumps(report) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
