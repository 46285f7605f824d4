"""The Linux calls that hardening needs, by ctypes: prctl, Landlock, memfd_secret, madvise.

Sources: prctl(2), landlock(7) and include/uapi/linux/landlock.h, memfd_secret(2), x86-64 and
arm64 syscall tables (the numbers used here are the same on both).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from glasshouse.sealing.memory import address_of

_libc = ctypes.CDLL(None, use_errno=True)

PR_SET_PDEATHSIG = 1
PR_GET_DUMPABLE = 3
PR_SET_DUMPABLE = 4
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_GET_NO_NEW_PRIVS = 39

_SYS_LANDLOCK_CREATE_RULESET = 444
_SYS_LANDLOCK_ADD_RULE = 445
_SYS_LANDLOCK_RESTRICT_SELF = 446
_SYS_MEMFD_SECRET = 447

_LANDLOCK_CREATE_RULESET_VERSION = 1
_LANDLOCK_RULE_PATH_BENEATH = 1

_FS_EXECUTE = 1 << 0
_FS_WRITE_FILE = 1 << 1
_FS_READ_FILE = 1 << 2
_FS_READ_DIR = 1 << 3
_FS_REMOVE_DIR = 1 << 4
_FS_REMOVE_FILE = 1 << 5
_FS_MAKE = sum(1 << bit for bit in range(6, 13))  # char, dir, reg, sock, fifo, block, symlink
_FS_REFER = 1 << 13  # ABI 2
_FS_TRUNCATE = 1 << 14  # ABI 3
_FS_IOCTL_DEV = 1 << 15  # ABI 5
_FS_RESOLVE_UNIX = 1 << 16  # ABI 9
_SCOPES_ABI = 6  # Linux 6.12
_SCOPE_ABSTRACT_UNIX_SOCKET = 1 << 0  # ABI 6
_SCOPE_SIGNAL = 1 << 1  # ABI 6

# Every right to change the file system.
_WRITE_V1 = _FS_WRITE_FILE | _FS_REMOVE_DIR | _FS_REMOVE_FILE | _FS_MAKE
_READ = _FS_EXECUTE | _FS_READ_FILE | _FS_READ_DIR
_OF_FILES = _FS_EXECUTE | _FS_WRITE_FILE | _FS_READ_FILE | _FS_TRUNCATE | _FS_IOCTL_DEV


def prctl(option: int, value: int = 0) -> int:
    """Call prctl(2) with one argument; raise OSError when it fails."""
    result = int(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0))
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))
    return result


def _syscall(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))
    return result


# Of a process that may start programs, which are dumpable: by a limit of 0 the kernel writes no file, but it
# hands the memory to a collector all the same (core_pattern with a pipe), by 1 neither (fs/coredump.c).
CORE_LIMIT_PAST_EXEC = 1


def harden(core_limit: int = 0) -> None:
    """Make this process unreadable to others of its user, dump no core, gain no privilege.

    execve resets DUMPABLE, fork keeps it (measured); so each forked role inherits this. A `core_limit` above
    the one that holds already is not to be had without privilege: it is 0 then.
    """
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (core_limit, core_limit))
    except (ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_DUMPABLE, 0)


@dataclass(frozen=True)
class ProcessState:
    """What harden() set, as the kernel says it: integers and booleans only (hashed claims)."""

    dumpable: int
    core_limit: int
    no_new_privs: bool
    tracer_pid: int


def hardening_state() -> ProcessState:
    """Read back what harden() set, from the kernel."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    tracer = next(line for line in status.splitlines() if line.startswith("TracerPid:"))
    return ProcessState(
        dumpable=prctl(PR_GET_DUMPABLE),
        core_limit=min(resource.getrlimit(resource.RLIMIT_CORE)[0], 2**31),
        no_new_privs=prctl(PR_GET_NO_NEW_PRIVS) == 1,
        tracer_pid=int(tracer.split()[1]),
    )


# capabilities(7). What a training job has no use for and can look over the fence or change the machine with:
# dac_read_search, setpcap, linux_immutable, net_admin, net_raw, sys_module to sys_boot, sys_time, mknod,
# mac_override to syslog, perfmon, bpf, checkpoint_restore. perfmon and sys_admin read a stranger's
# environment and address map past Landlock and DUMPABLE (measured on 6.18).
_DROPPED = frozenset({2, 8, 9, 12, 13, *range(16, 23), 25, 27, 32, 33, 34, 38, 39, 40})
_CAPABILITY_VERSION_3 = 0x20080522


def drop_capabilities(dropped: frozenset[int] = _DROPPED) -> int:
    """Give up capabilities, those that no workload needs, for good; return how many are still held."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0))
    data = ctypes.create_string_buffer(24)
    if _libc.capget(header, data) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    # effective, permitted, inheritable; the low halves, then the high ones
    words: list[int] = list(struct.unpack("=6I", data.raw[:24]))
    for number in dropped:
        half, bit = divmod(number, 32)
        for kind in range(3):
            words[3 * half + kind] &= ~(1 << bit)
    if _libc.capset(header, ctypes.create_string_buffer(struct.pack("=6I", *words))) != 0:
        raise OSError(ctypes.get_errno(), "capset")
    return (words[1]).bit_count() + (words[4]).bit_count()


ALL_CAPABILITIES = frozenset(range(64))  # two words of them; cap_last_cap is 40 today


def drop_bounding_set() -> None:
    """Let no program that is started gain a capability either; needs CAP_SETPCAP."""
    for number in sorted(ALL_CAPABILITIES):
        try:
            prctl(PR_CAPBSET_DROP, number)
        except OSError:
            return  # EINVAL: the kernel knows no more


def landlock_abi() -> int:
    """Return the kernel's Landlock ABI version, 0 where there is none."""
    try:
        return _syscall(
            _SYS_LANDLOCK_CREATE_RULESET,
            None,
            ctypes.c_size_t(0),
            ctypes.c_uint32(_LANDLOCK_CREATE_RULESET_VERSION),
        )
    except OSError:
        return 0


OWN_THREADS = Path("/proc/self/task")
PROC = Path("/proc")
_kept: list[int] = []  # descriptors that live as long as the process


def restrict_writes(folders: Iterable[Path], devices: Iterable[Path]) -> bool:
    """Let this process and its children change only what lies beneath `folders`.

    `devices` (files, or OWN_THREADS) may be opened for writing but nothing is made or removed there. Returns
    False where the kernel has no Landlock; raises OSError when it has and refuses. Cannot be undone.

    From ABI 6 on it can also no longer signal a process outside, nor connect to an abstract socket
    there; and no Landlocked process can trace or read the memory of one outside, capable or not.
    """
    abi = landlock_abi()
    return abi > 0 and _restrict(abi, _write_rights(abi), folders, (), devices)


def restrict_access(write: Iterable[Path], read: Iterable[Path], devices: Iterable[Path]) -> bool:
    """Let this process and its children change only what lies beneath `write`, and read that and `read`.

    As restrict_writes, and in the same ruleset opening a file, listing a folder and starting a program need a
    rule, too. `read` may name files and folders; of folders, all beneath. `devices` may be opened for both.
    What is open already, or mapped, stays so (confine.close_inherited). Looking a name up, stat and readlink
    need no right: that a file is there, and its size, can still be seen. From ABI 9 on (Linux 7.1) no named
    Unix socket of a server outside can be connected to.
    """
    abi = landlock_abi()
    if abi == 0:
        return False
    handled = _write_rights(abi) | _READ | (_FS_RESOLVE_UNIX if abi >= 9 else 0)
    return _restrict(abi, handled, write, read, devices)


def restrict_threads(write: Iterable[Path], devices: Iterable[Path]) -> bool:
    """Let this process write in /proc to its own threads' files alone, where restrict_access left PROC open.

    A rule holds for one inode, so what a process may write of its own in /proc no rule of its parent can say:
    the parent's names PROC as a device, and each of its children calls this once it is there. All else stays
    as restrict_access left it, and so do the scopes, within which the children go on to reach each other.
    """
    abi = landlock_abi()
    return abi > 0 and _restrict(abi, _write_rights(abi), write, (), devices, scoped=False)


def scope_signals() -> bool:
    """Let this process and its later children signal each other, and nobody else, for good.

    Its ancestors, outside, may signal them as before. False where the kernel has no such scope (below ABI 6).
    """
    abi = landlock_abi()
    if abi < _SCOPES_ABI:
        return False
    # Beneath a ruleset that does not know of them, moves from folder to folder are forbidden, all of them.
    _restrict_to(struct.pack("=QQQ", _FS_REFER, 0, _SCOPE_SIGNAL), _FS_REFER)
    return True


def refuse_programs() -> bool:
    """Let this process and its later children start no program that lies in a file system, for good.

    False where the kernel has no Landlock. One in memory alone (memfd_create) is seccomp's to refuse.
    """
    abi = landlock_abi()
    if abi == 0:
        return False
    # A ruleset that does not know of moves from folder to folder forbids them all (landlock(7), REFER).
    moving = _FS_REFER if abi >= 2 else 0
    _restrict_to(struct.pack("=Q", _FS_EXECUTE | moving), moving)
    return True


def _restrict_to(attribute: bytes, everywhere: int) -> None:
    """Restrict this process by a ruleset in which `everywhere` are the only rights that anything has."""
    ruleset = _syscall(
        _SYS_LANDLOCK_CREATE_RULESET, attribute, ctypes.c_size_t(len(attribute)), ctypes.c_uint32(0)
    )
    try:
        if everywhere:
            _allow(ruleset, Path("/"), everywhere)
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        _syscall(_SYS_LANDLOCK_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(ruleset)


def _write_rights(abi: int) -> int:
    return _WRITE_V1 | (_FS_REFER if abi >= 2 else 0) | (_FS_TRUNCATE if abi >= 3 else 0)


def _restrict(
    abi: int,
    handled: int,
    write: Iterable[Path],
    read: Iterable[Path],
    devices: Iterable[Path],
    *,
    scoped: bool = True,
) -> bool:
    attribute = struct.pack("=Q", handled)
    if abi >= 6 and scoped:
        # No rule on networks (the second word): workloads talk to each other and to their data.
        attribute = struct.pack("=QQQ", handled, 0, _SCOPE_ABSTRACT_UNIX_SOCKET | _SCOPE_SIGNAL)
    ruleset = _syscall(
        _SYS_LANDLOCK_CREATE_RULESET, attribute, ctypes.c_size_t(len(attribute)), ctypes.c_uint32(0)
    )
    try:
        for path in write:
            _allow(ruleset, path, handled)
        for path in read:
            _allow(ruleset, path, handled & _READ)
        for path in devices:
            _allow(ruleset, path, handled & (_FS_WRITE_FILE | _FS_TRUNCATE | _FS_READ_FILE))
            if path == OWN_THREADS:
                # A rule holds for one inode, and procfs makes a new one once nobody holds the old.
                _kept.append(os.open(path, os.O_PATH | os.O_CLOEXEC))
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        _syscall(_SYS_LANDLOCK_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(ruleset)
    return True


def _allow(ruleset: int, path: Path, rights: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _OF_FILES  # others make the kernel refuse the rule
        rule = struct.pack("=Qi", rights, descriptor)
        _syscall(
            _SYS_LANDLOCK_ADD_RULE,
            ctypes.c_int(ruleset),
            ctypes.c_int(_LANDLOCK_RULE_PATH_BENEATH),
            rule,
            ctypes.c_uint32(0),
        )
    finally:
        os.close(descriptor)


def secret_memory(size: int = mmap.PAGESIZE) -> mmap.mmap | None:
    """Map pages that no other process can read, not even root through /proc; None if refused.

    The kernel's memfd_secret(2); it counts against RLIMIT_MEMLOCK, so it is for keys.
    """
    try:
        descriptor = _syscall(_SYS_MEMFD_SECRET, ctypes.c_uint(os.O_CLOEXEC))
    except OSError:
        return None
    try:
        os.ftruncate(descriptor, size)
        return mmap.mmap(descriptor, size, mmap.MAP_SHARED)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def locked_memory(size: int = mmap.PAGESIZE) -> mmap.mmap | None:
    """Map private pages that are never swapped and in no core dump; None if refused (RLIMIT_MEMLOCK).

    The fallback for keys where the kernel has no memfd_secret: root can read them.
    """
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        memory.madvise(mmap.MADV_DONTDUMP)
        if _libc.mlock(ctypes.c_void_p(address_of(memory)), ctypes.c_size_t(size)) == 0:
            return memory
    except OSError:
        pass
    memory.close()
    return None


def key_memory() -> tuple[mmap.mmap | None, str]:
    """Memory for a key at rest, and its kind, best first: memfd-secret, locked, heap (and then None)."""
    for make, kind in ((secret_memory, "memfd-secret"), (locked_memory, "locked")):
        memory = make()
        if memory is not None:
            return memory, kind
    return None, "heap"


def is_tmpfs(path: Path) -> bool:
    """Whether `path` lies on a tmpfs, read from /proc/self/mountinfo (longest mount wins)."""
    resolved = path.resolve()
    best = ("", "")
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        left, _, right = line.partition(" - ")
        mount_point = left.split()[4].encode().decode("unicode_escape")
        if resolved.is_relative_to(mount_point) and len(mount_point) >= len(best[0]):
            best = (mount_point, right.split()[0])
    return best[1] == "tmpfs"


SHM = Path("/dev/shm")  # noqa: S108 -- where POSIX shared memory and semaphores live, by name
_CLONE_NEWNS = 0x20000
_MS_BIND, _MS_REC, _MS_PRIVATE = 1 << 12, 1 << 14, 1 << 18


def private_shm(folder: Path) -> bool:
    """Let this process and its children see `folder` as /dev/shm, in a mount namespace of their own.

    Semaphores and shared memory have no other place to be, and a DataLoader's workers need both.
    Needs CAP_SYS_ADMIN; False where it is refused: nothing changed, and workers cannot start there.
    """
    if not SHM.is_dir() or _libc.unshare(ctypes.c_int(_CLONE_NEWNS)) != 0:
        return False
    flags = ctypes.c_ulong(_MS_REC | _MS_PRIVATE)
    if _libc.mount(b"none", b"/", None, flags, None) != 0:
        return False
    return int(_libc.mount(os.fsencode(folder), os.fsencode(SHM), None, ctypes.c_ulong(_MS_BIND), None)) == 0


def gpu_devices(dev: Path = Path("/dev")) -> list[Path]:
    """What a CUDA process opens for writing: device nodes, /dev/null, and where there are any, OWN_THREADS.

    From driver 570 on cuInit names its threads through /proc/self/task/*/comm, and where it may not, CUDA
    fails with error 304 (seen on an H100 with 580.159). Beneath it a process reaches what is its own and no
    file that lasts. A process that is forked after the restriction has another folder there, and CUDA only if
    it is let write to that (restrict_threads).
    """
    nodes = [Path("/dev/null"), *dev.glob("nvidia*"), *(dev / "nvidia-caps").glob("*")]
    devices = [node for node in nodes if stat.S_ISCHR(node.stat().st_mode)]
    return [*devices, OWN_THREADS] if len(devices) > 1 else devices


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def read_own_memory(address: int, into: memoryview) -> int:
    """Copy this process's memory at `address` into a writable buffer; bytes copied, -1 where unreadable.

    process_vm_readv(2) on ourselves: unlike a plain copy it reports a bad page instead of dying of it.
    """
    local = _Vector(ctypes.addressof(ctypes.c_char.from_buffer(into)), into.nbytes)
    remote = _Vector(address, into.nbytes)
    _libc.process_vm_readv.restype = ctypes.c_ssize_t
    return int(
        _libc.process_vm_readv(
            ctypes.c_int(os.getpid()),
            ctypes.byref(local),
            ctypes.c_ulong(1),
            ctypes.byref(remote),
            ctypes.c_ulong(1),
            ctypes.c_ulong(0),
        )
    )
