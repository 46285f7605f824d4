"""Remove one allocation from a machine: kill its processes, remove its folders, and say what is left.

Run on the far side as source text (`python -I - NAME FOLDER < sweep_script.py`), and called in process by the
local provider, so that both prove the same thing. Standard library only, nothing of ours is imported.

A process is ours when one of these names the allocation: its command line, its environment, its resource
limits (MARK_LIMIT), its control group, what it has as /dev/shm, its memory maps, its current or root folder
or a file that it has open, deleted or not; when such a process is its ancestor or leads its session; or when
the leader of its session is gone and such a process is in it. The sweeper and its ancestors (sshd, the shell
that started it) are never touched.

Prints one JSON object: {"processesLeft", "folderRemoved", "killed", "checkedAt": [unix seconds, twice],
"cgroup": whether legs can have a control group here, "closed": how many of this user's other processes could
not be looked into}.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import resource
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
# In the environment of what a leg starts. A shell's own memory of where somebody was says nothing.
VARIABLE = "GLASSHOUSE_ALLOCATION"
_PLACES = (b"PWD=", b"OLDPWD=")
# The limit that carries the mark: for real-time processes alone, and longer than any of them lives.
MARK_LIMIT = resource.RLIMIT_RTTIME
_MAX_DESCRIPTORS = 4096  # of one process that are looked at
_MAX_CGROUPS = 50_000
_LISTINGS = 20  # of /proc in one search: whoever forks meanwhile is in the next
_AGAIN_SECONDS = 15.0  # in which another pass is begun where a process was left
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_DESCENT = 40  # folders within each other, of those that cannot be moved up: each has a descriptor
REMOVE_SECONDS = 600.0


class _Process(NamedTuple):
    parent: int
    group: int
    session: int
    ours: bool


def mark(name: str) -> int:
    """Return the number that stands for allocation `name` in the resource limits of its processes.

    Limits pass to whatever a process forks or executes, whichever session, folder or environment it then
    takes; anybody may read them. Between 2**61 and 2**62 microseconds: it limits nothing.
    """
    digest = hashlib.sha256(b"glasshouse/mark/v1\0" + name.encode()).digest()
    return 1 << 61 | int.from_bytes(digest[:7], "big")


def own_cgroup() -> Path | None:
    """Return the folder of this process's control group, where it may make others beneath; cgroup v2 only."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
        path = next(line.removeprefix("0::") for line in lines if line.startswith("0::/"))
    except (OSError, StopIteration):
        return None
    for point in _cgroup_mounts():
        place = Path(f"{point}{path}")
        if (place / "cgroup.procs").exists() and os.access(place, os.W_OK):
            return place
    return None


def _mounts(text: bytes) -> list[tuple[str, str, str]]:
    """(root, mount point, type) of each line of a mountinfo."""
    found = []
    for line in text.decode("utf-8", "replace").splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if len(fields) >= 5 and kind:
            found.append((fields[3], fields[4].replace("\\040", " "), kind[0]))
    return found


def _cgroup_mounts() -> list[str]:
    return [point for root, point, kind in _mounts(_read("/proc/self/mountinfo")) if kind == "cgroup2"]


def cgroups(name: str) -> list[Path]:
    """Return the control groups that are named after the allocation, the innermost first."""
    found = []
    for point in _cgroup_mounts():
        ahead = [Path(point)]
        for _ in range(_MAX_CGROUPS):
            if not ahead:
                break
            place = ahead.pop()
            with contextlib.suppress(OSError), os.scandir(place) as listing:
                inner = [item.name for item in listing if item.is_dir(follow_symlinks=False)]
                ahead += [place / entry for entry in inner]
                found += [place / entry for entry in inner if entry.startswith(name)]
    return sorted(found, key=lambda path: -len(path.parts))


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def _link(path: str) -> str:
    try:
        return str(Path(path).readlink()).removesuffix(" (deleted)")
    except OSError:
        return ""


class _Search:
    """Looks for the processes of one allocation."""

    def __init__(self, name: str, folder: Path) -> None:
        self._text = name
        self._name = name.encode()
        self._mark = str(mark(name)).encode()
        self._inside = f"{folder}/"
        self._scratch = tuple(f"{base}/{name}" for base in SCRATCH)
        self._user = os.geteuid()
        self._namespaces: dict[str, bool] = {}
        self.closed = 0

    def all(self) -> dict[int, _Process]:
        """Return every living process by pid."""
        self.closed = 0
        self._namespaces = {}
        table: dict[int, _Process] = {}
        seen: set[int] = set()
        for _ in range(_LISTINGS):
            new = {int(entry) for entry in os.listdir("/proc") if entry.isdigit()} - seen  # noqa: PTH208  fast
            if not new:
                break
            seen |= new
            for pid in sorted(new, reverse=True):  # the youngest first: they may not be there for long
                process = self._look(pid)
                if process is not None:
                    table[pid] = process
        return table

    def _look(self, pid: int) -> _Process | None:
        try:
            fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
            if fields[0] in (b"Z", b"X"):
                return None  # dead, waiting to be reaped by its parent: runs nothing, holds no memory
            parent, group, session = (int(field) for field in fields[1:4])
        except (IndexError, ValueError):
            return None
        return _Process(parent, group, session, self._ours(f"/proc/{pid}"))

    def _ours(self, place: str) -> bool:
        # The first three can be read of any process; the others are refused for another user's, or a
        # hardened one.
        if any(self._name in _read(f"{place}/{file}") for file in ("cmdline", "cgroup")):
            return True
        if self._mark in _read(f"{place}/limits").split():
            return True
        try:
            environment = Path(place, "environ").read_bytes().split(b"\0")
        except OSError:
            self.closed += self._owned(place)
            environment = []
        if any(self._name in entry and not entry.startswith(_PLACES) for entry in environment):
            return True
        if any(self._within(_link(f"{place}/{link}")) for link in ("cwd", "root", "exe")):
            return True
        with contextlib.suppress(OSError):
            for descriptor in os.listdir(f"{place}/fd")[:_MAX_DESCRIPTORS]:  # noqa: PTH208
                if self._within(_link(f"{place}/fd/{descriptor}")):
                    return True
        return self._name in _read(f"{place}/maps") or self._mounted(place)

    def _within(self, path: str) -> bool:
        return f"{path}/".startswith(self._inside) or path.startswith(self._scratch)

    def _mounted(self, place: str) -> bool:
        """Whether something of the allocation is mounted where the process is: its own /dev/shm."""
        namespace = _link(f"{place}/ns/mnt")
        if not namespace:
            return False
        if namespace not in self._namespaces:
            mounts = _mounts(_read(f"{place}/mountinfo"))
            # No other mount says anything: what is mounted in the pod folder may spread to every namespace.
            self._namespaces[namespace] = any(
                point == SCRATCH[0] and root.lstrip("/").startswith(self._text) for root, point, _ in mounts
            )
        return self._namespaces[namespace]

    def _owned(self, place: str) -> bool:
        """Whether a process is this user's (of a hardened one, its folder in /proc does not say so)."""
        for line in _read(f"{place}/status").splitlines():
            if line.startswith(b"Uid:"):
                return int(line.split()[1]) == self._user
        return False

    def ours(self) -> tuple[set[int], set[int]]:
        """Return the pids that belong to the allocation, and the process groups that hold nobody else."""
        table = self.all()
        spared = {0, 1}
        pid = os.getpid()
        while pid in table and pid not in spared:
            spared.add(pid)
            pid = table[pid].parent
        found = {pid for pid, process in table.items() if process.ours} - spared
        while True:
            orphaned = {session for session in {table[pid].session for pid in found} if _gone(session)}
            grown = {
                pid
                for pid, process in table.items()
                if process.parent in found or process.session in found or process.session in orphaned
            } - spared
            if grown <= found:
                break
            found |= grown
        groups = {table[pid].group for pid in found}
        return found, groups - {process.group for pid, process in table.items() if pid not in found} - {0, 1}


def _gone(session: int) -> bool:
    """Whether a session's leader is no more; a leader outside this PID namespace (0) is not known to be."""
    if session <= 1:
        return False
    try:
        os.kill(session, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


def _signal(pids: set[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, number)


def _kill(search: _Search, name: str) -> int:
    """SIGTERM, then SIGKILL to what is left after TERM_SECONDS; return how many were asked to go."""
    asked: set[int] = set()
    deadline = time.monotonic() + TERM_SECONDS
    while time.monotonic() < deadline:
        found, _ = search.ours()
        if not found:
            return len(asked)
        _signal(found - asked, signal.SIGTERM)
        _signal(found - asked, signal.SIGCONT)  # a stopped process acts on SIGTERM only once continued
        asked |= found
        time.sleep(0.05)
    for _ in range(40):
        found, groups = search.ours()
        if not found:
            break
        _signal(found, signal.SIGKILL)
        # A group, and a control group, are killed in one: also who has forked since the list was read.
        for group in groups:
            with contextlib.suppress(OSError):
                os.killpg(group, signal.SIGKILL)
        for cgroup in cgroups(name):
            with contextlib.suppress(OSError):
                (cgroup / "cgroup.kill").write_text("1", encoding="ascii")
        asked |= found
        time.sleep(0.05)
    return len(asked)


def _mounts_under(folder: Path) -> list[str]:
    points = [point for _, point, _ in _mounts(_read("/proc/self/mountinfo"))]
    return [point for point in points if f"{point}/".startswith(f"{folder}/")]


def remove(place: str | os.PathLike[str]) -> bool:
    """Remove a file, a link or a whole folder; return whether nothing of that name is left.

    Whatever a job put there goes, in the time that its entries take: folders within each other without end,
    of any name, without permissions. No link is followed, and no other file system entered. Neither memory
    nor descriptors grow with the tree: a folder in a folder is moved up, to lie in the topmost one. Ends
    after REMOVE_SECONDS where somebody still writes there. Raises nothing of its own.
    """
    path = os.fspath(place)
    try:
        top = _opened(path, None)
    except OSError:  # no folder
        with contextlib.suppress(OSError):
            os.unlink(path)  # noqa: PTH108
    else:
        with contextlib.suppress(OSError, MemoryError):
            try:
                _Removal(os.fstat(top).st_dev).empty(top, _MAX_DESCENT)
            finally:
                os.close(top)
        with contextlib.suppress(OSError):
            os.rmdir(path)  # noqa: PTH106
    return not os.path.lexists(path)


def _opened(name: str, parent: int | None) -> int:
    """Open a folder, with all permissions where they can be had. Raises OSError for a link, too."""
    with contextlib.suppress(OSError):
        held = os.open(name, _FOLDER | os.O_PATH, dir_fd=parent)
        try:
            os.chmod(f"/proc/self/fd/{held}", 0o700)  # noqa: PTH101
        finally:
            os.close(held)
    return os.open(name, _FOLDER, dir_fd=parent)


class _Removal:
    """One removal, in one file system."""

    def __init__(self, device: int) -> None:
        self._device = device
        self._until = time.monotonic() + REMOVE_SECONDS
        self._token = f".{os.urandom(8).hex()}-"  # how no name begins that is there
        self._moved = 0

    def empty(self, top: int, descents: int, to: int | None = None) -> None:
        """Remove what lies in an open folder, as far as that is possible; move its folders to `to`, if given.

        Again and again, as long as something goes: a listing may miss what is there while entries go. Raises
        OSError.
        """
        going = True
        while going:
            going = False
            with os.scandir(top) as listing:
                for item in listing:
                    if time.monotonic() > self._until:
                        return
                    with contextlib.suppress(OSError):
                        going = self._less(top, item, descents, to) or going

    def _less(self, top: int, item: os.DirEntry[str], descents: int, to: int | None) -> bool:
        """Remove one entry, or move it; whether it is gone from there, or less of it is. Raises OSError."""
        if not item.is_dir(follow_symlinks=False):
            os.unlink(item.name, dir_fd=top)
            return True
        try:
            os.rmdir(item.name, dir_fd=top)
        except OSError as error:
            if error.errno == errno.EBUSY:  # something is mounted there, of this file system, too
                return False
        else:
            return True
        inner = _opened(item.name, top)  # and so may be moved
        try:
            if os.fstat(inner).st_dev != self._device:
                return False
            if to is not None:
                with contextlib.suppress(OSError):  # refused of what lies in an image's own layer
                    os.rename(item.name, f"{self._token}{self._moved}", src_dir_fd=top, dst_dir_fd=to)
                    self._moved += 1
                    return True
                if not descents:
                    return False
            before = self._moved
            self.empty(inner, descents - 1, top if to is None else to)
        finally:
            os.close(inner)
        with contextlib.suppress(OSError):
            os.rmdir(item.name, dir_fd=top)
            return True
        return self._moved > before


def _remove(folder: Path) -> None:
    """Remove one folder tree, unless something stays mounted in it: that could be someone's data."""
    for point in reversed(_mounts_under(folder)):
        subprocess.run(["umount", "-l", point], check=False, capture_output=True)
    if _mounts_under(folder):
        return
    remove(folder)


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
    search = _Search(name, place)
    killed = 0
    again = time.monotonic() + _AGAIN_SECONDS
    while True:
        killed += _kill(search, name)
        for path in _folders(name, place):
            with contextlib.suppress(OSError):  # no `umount`: the other places are removed all the same
                _remove(path)
        for cgroup in cgroups(name):
            with contextlib.suppress(OSError):
                cgroup.rmdir()  # refused while a process is in it
        processes = []
        folders = []
        checked = []
        for look in range(2):  # twice: a process between fork and exec, or a late writer, shows in the second
            if look:
                time.sleep(0.2)
            # A control group may have somebody in it whom this PID namespace does not show.
            held = [b"populated 1" in _read(f"{cgroup}/cgroup.events") for cgroup in cgroups(name)]
            processes.append(max(len(search.ours()[0]), sum(held)))
            folders.append(len(_folders(name, place)))
            checked.append(round(time.time(), 3))
        if not any(processes) or time.monotonic() > again:
            break
    return {
        "processesLeft": max(processes),
        "folderRemoved": max(folders) == 0,
        "killed": killed,
        "checkedAt": checked,
        "cgroup": own_cgroup() is not None,
        "closed": search.closed,
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
