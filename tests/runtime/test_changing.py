"""A private project changes nothing outside its folder: not what needs no opening, nor other processes."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import shutil
import signal
import socket
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from glasshouse.errors import LegError
from glasshouse.runtime import confine as module
from glasshouse.runtime import linux, namespaces, seccomp
from glasshouse.runtime.confine import Confinement
from tests.runtime.confined import (
    MODES,
    USER,
    Mode,
    as_root,
    confined,
    every_mode,
    open_folder,
    scratch_of,
)
from tests.runtime.test_linux import in_child, needs_landlock, refusal
from tests.runtime.test_no_network import call

pytestmark = [
    needs_landlock,
    as_root,
]
SET_VERSION = 0x40087602  # FS_IOC_SETVERSION
ATTRIBUTE = "user.kept"


def rooted(mode: Mode) -> bool:
    return mode.namespaces and mode.pivot


@contextmanager
def visible_files(mode: Mode) -> Iterator[Path]:
    """A folder that may be read, of files that the mode's user owns, and `other`, of somebody else."""
    with open_folder() as folder:
        visible = folder / "visible"
        visible.mkdir()
        for name in ("file", "other"):
            (visible / name).write_text(name)
        with suppress(OSError):
            os.setxattr(visible / "file", ATTRIBUTE, b"kept")
        for path in (visible, visible / "file"):
            os.chown(path, mode.user or 0, mode.user or 0)
        os.chown(visible / "other", USER + 1, USER + 1)
        (visible / "other").chmod(0o644)
        yield visible


def changes(visible: Path) -> dict[str, Callable[[], Any]]:
    """Every way to change a file that is seen and not opened for writing, as its owner or as root."""
    path = visible / "file"
    libc = ctypes.CDLL(None, use_errno=True)

    def by_descriptor(change: Callable[[int], Any]) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            change(descriptor)
        finally:
            os.close(descriptor)

    def set_at() -> None:
        arguments = struct.pack("=QII", ctypes.addressof(ctypes.create_string_buffer(b"x")), 1, 0)
        if libc.syscall(ctypes.c_long(463), -100, os.fsencode(path), 0, b"user.at", arguments, 16) != 0:
            raise OSError(ctypes.get_errno(), "setxattrat")

    return {
        "attribute": lambda: os.setxattr(path, "user.leak", b"x"),
        "attribute, no link": lambda: os.setxattr(path, "user.link", b"x", follow_symlinks=False),
        "attribute by descriptor": lambda: by_descriptor(lambda n: os.setxattr(n, "user.n", b"x")),
        "attribute at": set_at,
        "attribute of a folder": lambda: os.setxattr(visible, "user.leak", b"x"),
        "attribute removed": lambda: os.removexattr(path, ATTRIBUTE),
        "version": lambda: by_descriptor(lambda n: fcntl.ioctl(n, SET_VERSION, struct.pack("q", 7))),
        "set-user-ID": lambda: path.chmod(0o4755),
        "set-group-ID": lambda: path.chmod(0o2755),
        "set-user-ID by descriptor": lambda: by_descriptor(lambda n: os.fchmod(n, 0o4755)),
        "times of another's": lambda: os.utime(visible / "other", (1, 1)),
        "mode of another's": lambda: (visible / "other").chmod(0o777),
        "owner": lambda: os.chown(path, USER + 2, USER + 2),
        "owner of another's": lambda: os.chown(visible / "other", 0, 0),
        "times": lambda: os.utime(path, (1, 1)),
        "times by descriptor": lambda: by_descriptor(lambda n: os.utime(n, (2, 2))),
        "times of a folder": lambda: os.utime(visible, (1, 1)),
        "mode": lambda: path.chmod(0o666),
        "mode by descriptor": lambda: by_descriptor(lambda n: os.fchmod(n, 0o640)),
        "mode of a folder": lambda: visible.chmod(0o777),
        "owner, the same": lambda: os.chown(path, os.geteuid(), -1),
    }


OWNERS = {name for name in changes(Path("/")) if name.startswith(("times", "mode"))} | {"owner, the same"}
OWNERS -= {"times of another's", "mode of another's"}


def state(folder: Path) -> Any:
    found = []
    for path in (folder, *sorted(folder.iterdir())):
        one = path.stat()
        found.append([
            path.name, one.st_mode, one.st_uid, one.st_gid, one.st_mtime_ns, one.st_ctime_ns,
            os.listxattr(path),
        ])  # fmt: skip
    return found


def test_without_confinement_they_are_changed() -> None:
    with visible_files(MODES["root"]) as visible:
        found = in_child(lambda: {name: refusal(action) for name, action in changes(visible).items()})
    assert {name for name, error in found.items() if error} <= {"version", "attribute at"}, found


@every_mode
def test_no_file_outside_is_changed(mode: Mode) -> None:
    """Without another root, its own user's files keep no times and modes: site/threat-model.md says so."""

    def work(_: Confinement) -> Any:
        return {name: refusal(action) for name, action in changes(visible).items()}

    with visible_files(mode) as visible, scratch_of(mode) as scratch:
        before = state(visible)
        found = confined(mode, scratch, work, folders=[visible])
        after = state(visible)
    done = {name for name, error in found.items() if not error}
    # EINVAL: an owner that a user namespace of an ordinary user's cannot name (namespaces.own_namespaces).
    unnamed = {"owner", "owner of another's", "owner, the same"} if mode.user and mode.namespaces else set()
    assert {found[name] for name in unnamed} <= {"EINVAL", "EROFS"}
    assert {error for name, error in found.items() if name not in unnamed} <= {"", "EPERM", "EACCES", "EROFS"}
    assert done == (set() if rooted(mode) else OWNERS - unnamed)
    assert [one[-1] for one in after] == [one[-1] for one in before]
    assert not any(stat.S_IMODE(one[1]) & 0o6000 for one in after)
    if rooted(mode):
        assert after == before


@every_mode
def test_its_own_files_are_its_to_change(mode: Mode) -> None:
    def work(held: Confinement) -> Any:
        path, other = held.scratch / "one", held.scratch / "two"
        tries: dict[str, Callable[[], Any]] = {
            "write": lambda: path.write_text("x"),
            "mode": lambda: path.chmod(0o750),
            "sticky": lambda: held.scratch.chmod(0o1700),
            "times": lambda: os.utime(path, (5, 5)),
            "copy": lambda: shutil.copy2(path, other),
            "copy of a tree": lambda: shutil.copytree(visible, held.scratch / "tree"),
            "owner": lambda: os.chown(path, os.geteuid(), -1),
            "move": lambda: other.rename(held.scratch / "three"),
            "null": lambda: Path("/dev/null").write_text("x"),
        }
        return {name: refusal(action) for name, action in tries.items()}

    with visible_files(mode) as visible, scratch_of(mode) as scratch:
        found = confined(mode, scratch, work, folders=[visible])
    if mode.user is not None and mode.namespaces:
        assert found.pop("owner") in ("", "EINVAL")
    assert set(found.values()) == {""}, found


@pytest.mark.parametrize("name", ["root", "user"])
def test_an_older_kernel_s_mounts_are_read_only_too(name: str) -> None:
    mode = MODES[name]

    def before() -> None:
        namespaces._SYS_MOUNT_SETATTR = 1000  # no such call, as before Linux 5.12

    def work(held: Confinement) -> Any:
        return held.sockets, [n for n, action in changes(visible).items() if not refusal(action)]

    with visible_files(mode) as visible, scratch_of(mode) as scratch:
        assert confined(mode, scratch, work, folders=[visible], before=before) == ["mounts", []]


def test_a_barrier_that_does_not_hold_ends_the_leg() -> None:
    """Mounts that stayed as they were, and a filter without attributes."""

    def no_mounts() -> None:
        namespaces._restrict = lambda *_, **__: None

    def no_attributes() -> None:
        for name in [name for name in seccomp._REFUSED if "xattr" in name]:
            del seccomp._REFUSED[name]

    def tried(mode: Mode, spoil: Callable[[], None], visible: Path, scratch: Path) -> Any:
        def child() -> Any:
            spoil()
            try:
                module.confine(scratch, [visible], [], [*_pipes()], namespaces=mode.namespaces)
            except LegError as error:
                return error.what
            return "confined"

        return in_child(child)

    for name, spoil in (("root", no_mounts), ("root, filter only", no_attributes)):
        mode = MODES[name]
        with visible_files(mode) as visible, scratch_of(mode) as scratch:
            assert tried(mode, spoil, visible, scratch).endswith(" can still be changed")
            assert tried(mode, lambda: None, visible, scratch) == "confined"


def _pipes() -> list[int]:
    found = []
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if str(path.readlink()).startswith("pipe:"):
                found.append(int(path.name))
    return found


@every_mode
def test_processes_outside_keep_their_limits_and_priorities(mode: Mode) -> None:
    ready, told = os.pipe()
    sibling = os.fork()
    if sibling == 0:
        if mode.user is not None:
            os.setresgid(mode.user, mode.user, mode.user)
            os.setresuid(mode.user, mode.user, mode.user)
        os.write(told, b"x")
        signal.pause()
        os._exit(0)
    os.read(ready, 1)
    os.close(ready)
    os.close(told)

    def work(_: Confinement) -> Any:
        void = ctypes.create_string_buffer(64)
        outside: dict[str, Callable[[], Any]] = {
            "limit": lambda: resource.prlimit(sibling, resource.RLIMIT_MSGQUEUE, (7, 7)),
            "time": lambda: resource.prlimit(sibling, resource.RLIMIT_CPU, (1, 1)),
            "nice": lambda: os.setpriority(os.PRIO_PROCESS, sibling, 19),
            "nice of its group": lambda: os.setpriority(os.PRIO_PGRP, os.getpgid(sibling), 19),
            "nice of its user": lambda: os.setpriority(os.PRIO_USER, 0, 19),
            "scheduler": lambda: os.sched_setscheduler(sibling, os.SCHED_BATCH, os.sched_param(0)),
            "parameters": lambda: os.sched_setparam(sibling, os.sched_param(0)),
            "attributes": lambda: call("sched_setattr", sibling, void, 0),
            "disk": lambda: call("ioprio_set", 1, sibling, 3 << 13),
        }
        own: dict[str, Callable[[], Any]] = {
            "limit": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200)),
            "nice": lambda: os.nice(1),
            "disk": lambda: call("ioprio_set", 1, 0, 3 << 13),
            "scheduler": lambda: os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)),
            "processors": lambda: os.sched_setaffinity(threading.get_native_id(), os.sched_getaffinity(0)),
        }
        return [{name: refusal(a) for name, a in part.items()} for part in (outside, own)]

    try:
        limits, priority = Path(f"/proc/{sibling}/limits"), os.getpriority(os.PRIO_PROCESS, sibling)
        before = limits.read_text()
        with scratch_of(mode) as scratch:
            outside, own = confined(mode, scratch, work)
        assert set(outside.values()) == {"EPERM"}, outside
        assert set(own.values()) == {""}, own
        assert limits.read_text() == before
        assert os.getpriority(os.PRIO_PROCESS, sibling) == priority
    finally:
        os.kill(sibling, signal.SIGKILL)
        os.waitpid(sibling, 0)


@every_mode
def test_servers_beneath_visible_folders_are_covered_under_every_name(mode: Mode) -> None:
    """Whatever name they were given: the kernel's own list has that one, and none of other networks."""
    names = ["relative", "moved", "linked", "new\nline", "other network"]

    def work(_: Confinement) -> Any:
        def connect(name: str) -> None:
            with socket.socket(socket.AF_UNIX) as one:
                one.connect(str(visible / name))

        return {name: refusal(lambda name=name: connect(name)) for name in names}

    with visible_files(mode) as visible, scratch_of(mode) as scratch, ExitStack() as stack:

        def serve(name: str) -> None:
            server = stack.enter_context(socket.socket(socket.AF_UNIX))
            server.bind(name)
            server.listen(9)

        here = Path.cwd()
        try:
            os.chdir(visible)
            serve("relative")
        finally:
            os.chdir(here)
        serve(str(visible / "before"))
        (visible / "before").rename(visible / "moved")
        serve(str(visible.parent / "hidden"))
        os.link(visible.parent / "hidden", visible / "linked")
        serve(str(visible / "new\nline"))
        ready, told = os.pipe()
        other = os.fork()
        if other == 0:
            namespaces.own_namespaces(namespaces.CLONE_NEWNET)
            serve(str(visible / "other network"))
            os.write(told, b"x")
            signal.pause()
            os._exit(0)
        try:
            os.read(ready, 1)
            for name in names:
                (visible / name).chmod(0o777)
            found = confined(mode, scratch, work, folders=[visible])
        finally:
            os.close(ready)
            os.close(told)
            os.kill(other, signal.SIGKILL)
            os.waitpid(other, 0)
    assert set(found.values()) == {"ECONNREFUSED" if rooted(mode) else "EACCES"}, found


def test_a_server_in_shared_memory_leaves_the_other_root_as_it_is() -> None:
    """Its name there means nothing in the root where the scratch folder is /dev/shm."""
    name = linux.SHM / f"glasshouse-test-{os.getpid()}.sock"
    with socket.socket(socket.AF_UNIX) as server, scratch_of(MODES["root"]) as scratch:
        server.bind(str(name))
        try:
            assert confined(MODES["root"], scratch, lambda held: held.sockets) == "mounts"
        finally:
            name.unlink()


@every_mode
def test_a_pair_gets_no_name_that_others_see(mode: Mode) -> None:
    said = f"glasshouse-said-{os.getpid()}"

    def work(held: Confinement) -> Any:
        one, other = socket.socketpair()
        with one, other:
            bound, heard = refusal(lambda: one.bind(f"\0{said}")), refusal(other.listen)
            os.write(told, b"x")
            os.read(go, 1)
            return held.network, bound, heard

    seen: list[bool] = []
    asked, told = os.pipe()
    go, going = os.pipe()

    def watch() -> None:
        os.read(asked, 1)
        seen.append(said in Path("/proc/net/unix").read_text(errors="replace"))
        os.write(going, b"x")

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        with scratch_of(mode) as scratch:
            network, bound, heard = confined(mode, scratch, work, keep=[told, go])
    finally:
        os.write(told, b"x")
        thread.join()
        for number in (asked, told, go, going):
            os.close(number)
    assert seen == [False]
    if network == "seccomp":
        assert (bound, heard) == ("EACCES", errno.errorcode[errno.EACCES])
