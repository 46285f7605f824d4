"""What a private project may reach: its own folder, an interpreter, the GPU; no other file, no network.

`confine` does it all, in the one order that works, and says what held. Its parts can be used alone.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from glasshouse.codes import Code
from glasshouse.errors import LegError
from glasshouse.runtime.linux import (
    ALL_CAPABILITIES,
    SHM,
    drop_bounding_set,
    drop_capabilities,
    landlock_abi,
    private_shm,
    restrict_access,
)
from glasshouse.runtime.namespaces import CLONE_NEWNET, loopback_up, mounts, own_namespaces, private_root
from glasshouse.runtime.readable import existing, interpreter_paths, readable_paths
from glasshouse.runtime.seccomp import refuse_calls

Reading = Literal["landlock", "mounts", "none"]
Network = Literal["namespace", "seccomp", "open", "none"]
Sockets = Literal["mounts", "landlock", "refused", "none"]

_RESOLVE_UNIX_ABI = 9  # Linux 7.1
_SCOPES_ABI = 6  # Linux 6.12
_ATTRIBUTE = "user.glasshouse-probe"
# What nobody needs and everybody could open before, the root folder for one: tried once reading is confined.
_OUTSIDE = (
    "/", "/etc", "/etc/shadow", "/etc/hostname", "/etc/fstab", "/root", "/home", "/var", "/var/log",
    "/tmp", "/run", "/mnt", "/workspace",  # noqa: S108
)  # fmt: skip


@dataclass(frozen=True)
class Confinement:
    """What held, each in a word: fit to be a claim, but for `scratch`."""

    scratch: Path  # where the scratch folder lies from now on; it is the current folder
    writing: Literal["landlock", "none"]
    reading: Reading  # mounts: no Landlock, but another root with nothing else in it
    network: Network  # what no_network returned, or open, as asked for
    sockets: Sockets  # what keeps named Unix sockets of servers outside away
    shm: Literal["private", "none"]
    closed: int  # inherited descriptors that were closed


def confine(
    scratch: Path,
    folders: Iterable[Path],
    devices: Iterable[Path],
    keep: Iterable[int],
    hidden: Iterable[Path] = (),
    *,
    namespaces: bool = True,
    network_open: bool = False,
) -> Confinement:
    """Confine this process and its later children, for good; raise LegError where what held does not hold.

    `scratch` may be written and read, `folders` and what readable_paths lists be read, `devices`
    (linux.gpu_devices()) be opened. A folder in /dev/shm but not in `scratch` cannot be one of `folders`.
    `hidden` is beneath none of that: the folders of allocations, GLASSHOUSE_HOME. `keep`: the descriptors
    that stay open. No capability is left. `namespaces=False` goes without them, as on a machine that
    refuses them. `network_open`: it may reach other machines, and all else stays as it is, servers' Unix
    sockets too.

    Call it from the one thread there is, before drop_capabilities(): namespaces need CAP_SYS_ADMIN.
    """
    if len(os.listdir("/proc/self/task")) != 1:  # noqa: PTH208 -- names alone
        raise LegError("a process with several threads cannot be confined", code=Code.RUNTIME_ERROR)
    devices = list(devices)
    hidden = list(hidden)
    read = readable_paths(folders, interpreter_paths(), hidden)
    closed = close_inherited(keep)
    rooted = namespaces and private_root(scratch, read, devices)
    shm = rooted or (namespaces and private_shm(scratch))
    if shm and scratch.is_relative_to(SHM):
        scratch = SHM  # the folder itself lies there no longer
    os.chdir(scratch)
    tempfile.tempdir = None  # one that was found before is closed now
    sockets = _sockets(rooted)
    network: Network
    if network_open:
        network = "open"
        # Without a network namespace only Landlock's scope keeps abstract sockets of servers apart.
        apart = sockets != "none" and landlock_abi() >= _SCOPES_ABI
        filtered = refuse_calls(own_network=True, unix_sockets=apart)
        sockets = sockets if apart else "refused" if filtered else "none"
    else:
        network = no_network(unix_sockets=sockets != "none", namespace=namespaces)
        filtered = network != "none"
        if sockets == "none" and filtered:
            sockets = "refused"
    landlocked = restrict_access([scratch], existing(read), devices)
    # Those of a user namespace reach what it owns, which must stay as it is; root's reach other users' files,
    # of which Landlock lets owner, mode, times and attributes be changed.
    drop_bounding_set()
    drop_capabilities(ALL_CAPABILITIES)
    held = Confinement(
        scratch=scratch,
        writing="landlock" if landlocked else "none",
        reading="landlock" if landlocked else "mounts" if rooted else "none",
        network=network,
        sockets=sockets,
        shm="private" if shm else "none",
        closed=closed,
    )
    if held.reading != "none" and (
        seen := readable_outside([*read, scratch], hidden, files_only=not landlocked)
    ):
        raise LegError(f"{seen[0]} can still be read", code=Code.LANDLOCK_INEFFECTIVE)
    if changed := changeable(read, devices, [scratch], rooted=rooted, filtered=filtered):
        raise LegError(f"{changed[0]} can still be changed", code=Code.RUNTIME_ERROR)
    if network in ("namespace", "seccomp") and (ways := ways_out(network)):
        raise LegError(f"the network can still be reached: {ways[0]}", code=Code.RUNTIME_ERROR)
    return held


def _sockets(rooted: bool) -> Sockets:
    if rooted:
        return "mounts"
    return "landlock" if landlock_abi() >= _RESOLVE_UNIX_ABI else "none"


def no_network(*, unix_sockets: bool = False, namespace: bool = True) -> Network:
    """Leave this process and its later children no way to another machine, nor to a server on this one.

    "namespace": a network namespace of its own, with a loopback of its own that works. "seccomp": where that
    is refused, no socket but pairs of Unix sockets can be made, so several ranks cannot meet either. Both
    times a filter refuses what would go around it: io_uring, tracing, other namespaces, families that have no
    namespaces. "none": there is no such filter here, and nothing is promised.

    `unix_sockets` allows Unix sockets that are no pair; only where something else (private_root) keeps the
    named ones of servers outside away. Descriptors that are open already stay: close_inherited.
    """
    own = namespace and own_namespaces(CLONE_NEWNET) and loopback_up()
    if not refuse_calls(own_network=own, unix_sockets=unix_sockets):
        return "none"
    return "namespace" if own else "seccomp"


def close_inherited(keep: Iterable[int]) -> int:
    """Put /dev/null in the place of every descriptor but 1, 2 and `keep`; return how many.

    Numbers stay taken: an object that still holds one would later close what somebody else opened under it.
    """
    kept = {1, 2, *keep}
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    count = 0
    try:
        for number in [int(name) for name in os.listdir("/proc/self/fd")]:  # noqa: PTH208 -- names alone
            if number not in kept and number != null:
                with contextlib.suppress(OSError):
                    os.dup2(null, number, inheritable=os.get_inheritable(number))
                    count += 1
    finally:
        os.close(null)
    return count


def readable_outside(
    read: Iterable[Path], hidden: Iterable[Path] = (), *, files_only: bool = False
) -> list[Path]:
    """Try to open `hidden`, and what nobody needs and lies beneath none of `read`; return what opened.

    A self-check: a name that is not there says nothing, and the root folder is always there.
    `files_only`: folders do not count. Without Landlock those of private_root can be listed; they hold
    nothing but the way to what is visible.
    """
    allowed, found = list(read), []
    for path in (*map(Path, _OUTSIDE), *hidden):
        real = path.resolve() if path.is_symlink() else path  # a /tmp of our own is in the scratch folder
        if any(real.is_relative_to(one) for one in allowed):
            continue
        with contextlib.suppress(OSError):
            opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                if not (files_only and stat.S_ISDIR(os.fstat(opened).st_mode)):
                    found.append(path)
            finally:
                os.close(opened)
    return found


def changeable(
    visible: Iterable[Path],
    devices: Iterable[Path],
    own: Iterable[Path],
    *,
    rooted: bool,
    filtered: bool,
) -> list[Path]:
    """Try to change what is `visible` without opening it; return what a barrier did not hold back.

    A self-check of the barriers that are there: `rooted`, mounts that are read-only, but for `own` and what
    `devices` leave open; `filtered`, no attributes and no set-user-ID bits. What it tries changes nothing
    that can be seen but the time of the change.
    """
    left = [SHM, *own, *(Path("/proc") for device in devices if device.is_relative_to("/proc"))]
    found = []
    if rooted:
        found = [place for place, options in mounts() if "ro" not in options and not _beneath(place, left)]
    for path in (one for one in existing(visible) if not _beneath(one, left)):
        state = path.stat()
        tries: list[Callable[[], None]] = []
        if rooted:
            tries.append(lambda: os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns)))  # noqa: B023
            tries.append(lambda: path.chmod(stat.S_IMODE(state.st_mode)))  # noqa: B023
        if filtered:
            tries.append(lambda: os.setxattr(path, _ATTRIBUTE, b""))  # noqa: B023
            tries.append(lambda: os.removexattr(path, _ATTRIBUTE))  # noqa: B023
        for change in tries:
            with contextlib.suppress(OSError):
                change()
                found.append(path)
    return found


def _beneath(path: Path, folders: Iterable[Path]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


def ways_out(network: Network) -> list[str]:
    """Try to make sockets that lead out; return the families that could be made (self-check)."""
    tried = {"AF_VSOCK": socket.SOCK_STREAM, "AF_PACKET": socket.SOCK_RAW}
    if network == "seccomp":
        tried |= {"AF_INET": socket.SOCK_STREAM, "AF_INET6": socket.SOCK_DGRAM}
    found = []
    for name, kind in tried.items():
        with contextlib.suppress(OSError):
            socket.socket(getattr(socket, name), kind).close()
            found.append(name)
    if network == "namespace":
        found += [name for _, name in socket.if_nameindex() if name != "lo"]
    return found
