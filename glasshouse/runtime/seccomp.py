"""System call filters of a private project: no sockets to the outside, and nothing that goes around that;
every call that starts a program is somebody else's to answer, or refused.

Sources: seccomp(2), socket(2), unix(7), clone(2); include/uapi/linux/{filter,bpf_common,seccomp,audit}.h;
arch/x86/entry/syscalls/syscall_64.tbl, and include/uapi/asm-generic/unistd.h for arm64.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import socket
import struct
from dataclasses import dataclass

from glasshouse.runtime.linux import PR_SET_NO_NEW_PRIVS, prctl

_libc = ctypes.CDLL(None, use_errno=True)

_X86_64, _ARM64 = 0xC000003E, 0xC00000B7  # AUDIT_ARCH_X86_64, AUDIT_ARCH_AARCH64
_X32_BIT = 0x40000000  # __X32_SYSCALL_BIT: the same calls under other numbers

_ABSENT = 0xFFFFFFFF  # a machine's table has no such call

# Name: its number on x86-64 and on arm64.
_NUMBERS = {
    "socket": (41, 198),
    "socketpair": (53, 199),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "clone": (56, 220),
    "clone3": (435, 435),
    "unshare": (272, 97),
    "process_vm_readv": (310, 270),
    "seccomp": (317, 277),
    "execve": (59, 221),
    "execveat": (322, 281),
    "ioctl": (16, 29),
    "prlimit64": (302, 261),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
    "chmod": (90, _ABSENT),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
}
# What no training needs, and why it is refused (EPERM).
_REFUSED = {
    # Opens sockets and connects them past this filter: the ring's requests are no system calls. The files
    # that it opens are held back by Landlock, which asks who opens, not how.
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    # Other processes' memory and descriptors. Landlock refuses the same to whoever is outside; this holds
    # where there is no Landlock, and keeps a traced child from being made to do what its tracer may not.
    "ptrace": (101, 117),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    # Code in the kernel, and what has been used most to attack it.
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    # Keys of the user outlive the process and are seen by the user's other processes.
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # Another's namespaces; files by handle, past every path.
    "setns": (308, 268),
    "open_by_handle_at": (304, 265),
    # System V and POSIX queues, semaphores and memory belong to the machine, not to a folder: the one way to
    # hand data to a process outside that Landlock does not see. POSIX shared memory is files in /dev/shm.
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "semget": (64, 190),
    "semop": (65, 193),
    "semtimedop": (220, 192),
    "semctl": (66, 191),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    # A file's attributes can be set without opening it, so Landlock does not see it: they hold what anybody
    # wants to write there, and a program's capabilities. Programs that copy files go without them.
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
}
# FS_IOC_SETFLAGS and FS_IOC32_SETFLAGS, FS_IOC_FSSETXATTR, FS_IOC_SETVERSION and FS_IOC32_SETVERSION,
# FS_IOC_SET_ENCRYPTION_POLICY, FS_IOC_ENABLE_VERITY: what an owner may change of a file opened for reading.
_FILE_IOCTLS = (0x40086602, 0x40046602, 0x401C5820, 0x40087602, 0x40047602, 0x800C6613, 0x40806685)
_MODE_OF = {"chmod": 1, "fchmod": 1, "fchmodat": 2, "fchmodat2": 2}  # which argument it is
_SET_ID = 0o6000
# Another process's limits and priorities are its user's to change, whatever Landlock's scope says of signals:
# a limit on its time kills it, and each holds bytes that it can read. Which processes a call means by its
# first two arguments: PRIO_PROCESS and 0, IOPRIO_WHO_PROCESS and 0, the caller.
_OWN_PRIORITY = {"setpriority": 0, "ioprio_set": 1}
_OWN_SCHEDULE = ("sched_setscheduler", "sched_setparam", "sched_setattr")

# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET; NEWTIME is one to unshare alone.
_NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
_CLONE_NEWTIME = 0x80

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06  # BPF_LD|W|ABS ...
# SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, SECCOMP_RET_USER_NOTIF
_ALLOW, _ERRNO, _NOTIFY = 0x7FFF0000, 0x00050000, 0x7FC00000
# struct seccomp_data: nr, arch, instruction pointer, six arguments of 64 bits (both are little-endian).
_AT_NUMBER, _AT_ARCH, _AT_ARGUMENTS = 0, 4, 16
_SOCK_TYPE_MASK = 0xF  # include/linux/net.h: what is left are SOCK_CLOEXEC and SOCK_NONBLOCK
_NETLINK_ROUTE = 0

_SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC = 1, 1
_SECCOMP_GET_ACTION_AVAIL = 2
_FLAG_NEW_LISTENER = 1 << 3  # Linux 5.0
_FLAG_WAIT_KILLABLE_RECV = 1 << 5  # Linux 5.19
_CONTINUE_SINCE = (5, 5)  # SECCOMP_USER_NOTIF_FLAG_CONTINUE
_Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, value


@dataclass(frozen=True)
class _Machine:
    architecture: int
    column: int  # in the tables of numbers


_MACHINES = {"x86_64": _Machine(_X86_64, 0), "aarch64": _Machine(_ARM64, 1)}


def program(machine: str, *, own_network: bool, unix_sockets: bool, pid: int) -> list[_Instruction]:
    """Return the filter's instructions for `machine` ("x86_64" or "aarch64"; KeyError for others).

    `own_network`: the network namespace is empty but for its loopback, so that IPv4, IPv6 and the netlink of
    routes lead nowhere else. No other family is allowed there either: AF_VSOCK, for one, has no namespaces
    and leads to the host of a virtual machine. `unix_sockets`: sockets with names may be made, since
    something else keeps those of servers outside away; otherwise only pairs of streams, which can neither be
    connected to something else nor name whom they send to. `pid` may read its own memory
    by process_vm_readv.
    """
    one = _MACHINES[machine]

    def number(name: str) -> int:
        return (_REFUSED | _NUMBERS)[name][one.column]

    refuse = _error(errno.EPERM)
    made = _of_one_table(machine)
    for name in _REFUSED:
        made += [(_EQUAL, 0, 1, number(name)), refuse]
    if not own_network and not unix_sockets:
        # A pair can be given a name, too, which every process of the machine then sees (/proc/net/unix).
        for name in ("connect", "bind", "listen"):
            made += [(_EQUAL, 0, 1, number(name)), _error(errno.EACCES)]
    # Its flags lie in memory, where a filter cannot see them; C libraries take clone() for it then.
    made += [(_EQUAL, 0, 1, number("clone3")), _error(errno.ENOSYS)]
    for name, flags in (("clone", _NAMESPACES), ("unshare", _NAMESPACES | _CLONE_NEWTIME)):
        made += _of(number(name), [_argument(0), (_ANY_BIT, 0, 1, flags), refuse, _allow()])
    made += _of(number("process_vm_readv"), [_argument(0), (_EQUAL, 0, 1, pid), _allow(), refuse])
    made += _of(
        number("ioctl"),
        [_argument(1), *[one for c in _FILE_IOCTLS for one in ((_EQUAL, 0, 1, c), refuse)], _allow()],
    )
    for name, index in _MODE_OF.items():
        made += _of(number(name), [_argument(index), (_ANY_BIT, 0, 1, _SET_ID), refuse, _allow()])
    made += _of(number("prlimit64"), _own_limits())
    for name, which in _OWN_PRIORITY.items():
        own = [_argument(0), (_EQUAL, 0, 3, which), _argument(1), (_EQUAL, 0, 1, 0), _allow(), refuse]
        made += _of(number(name), own)
    for name in _OWN_SCHEDULE:
        made += _of(number(name), [_argument(0), (_EQUAL, 0, 1, 0), _allow(), refuse])
    made += _of(number("socket"), _families(own_network, unix_sockets))
    made += _of(number("socketpair"), _pairs(unix_sockets))
    return [*made, _allow()]


def exec_program(machine: str, *, notify: bool) -> list[_Instruction]:
    """Return the instructions of the filter on calls that start a program (KeyError for another machine).

    `notify`: whoever holds the filter's listener answers them. Otherwise they are refused (EPERM).
    """
    column = _MACHINES[machine].column
    found = (_RETURN, 0, 0, _NOTIFY) if notify else _error(errno.EPERM)
    made = _of_one_table(machine)
    for name in ("execve", "execveat"):
        made += [(_EQUAL, 0, 1, _NUMBERS[name][column]), found]
    return [*made, _allow()]


def _of_one_table(machine: str) -> list[_Instruction]:
    """Refuse every call of another table of numbers (i386, x32); leave the number loaded."""
    made = [
        (_LOAD, 0, 0, _AT_ARCH),
        (_EQUAL, 1, 0, _MACHINES[machine].architecture),
        _error(errno.EPERM),
        (_LOAD, 0, 0, _AT_NUMBER),
    ]
    return [*made, (_AT_LEAST, 0, 1, _X32_BIT), _error(errno.EPERM)] if machine == "x86_64" else made


def _allow() -> _Instruction:
    return (_RETURN, 0, 0, _ALLOW)


def _error(code: int) -> _Instruction:
    return (_RETURN, 0, 0, _ERRNO | code)


def _argument(index: int, *, high: bool = False) -> _Instruction:
    """Load an argument's low 32 bits, all there is where it is an int to the kernel; or those above."""
    return (_LOAD, 0, 0, _AT_ARGUMENTS + 8 * index + 4 * high)


def _of(number: int, block: list[_Instruction]) -> list[_Instruction]:
    """Run the block, which ends in a return on every path, for one system call."""
    return [(_EQUAL, 0, len(block), number), *block]


def _own_limits() -> list[_Instruction]:
    """Of prlimit64(2): the caller's limits (process 0), or no new ones (a null pointer)."""
    return [
        _argument(0), (_EQUAL, 0, 1, 0), _allow(),
        _argument(2), (_EQUAL, 0, 3, 0), _argument(2, high=True), (_EQUAL, 0, 1, 0), _allow(),
        _error(errno.EPERM),
    ]  # fmt: skip


def _families(own_network: bool, unix_sockets: bool) -> list[_Instruction]:
    allowed = [int(socket.AF_UNIX)] if unix_sockets else []
    if own_network:
        allowed += [int(socket.AF_INET), int(socket.AF_INET6)]
    made = [_argument(0)]
    for family in allowed:
        made += [(_EQUAL, 0, 1, family), _allow()]
    if own_network:
        # How getifaddrs(3) lists interfaces; other netlink protocols are not all of one namespace.
        made += [
            (_EQUAL, 0, 3, int(socket.AF_NETLINK)),
            _argument(2),
            (_EQUAL, 0, 1, _NETLINK_ROUTE),
            _allow(),
        ]
    return [*made, _error(errno.EACCES)]


def _pairs(unix_sockets: bool) -> list[_Instruction]:
    made = [_argument(0), (_EQUAL, 1, 0, int(socket.AF_UNIX)), _error(errno.EACCES)]
    if not unix_sockets:
        # A datagram socket can name a receiver at every send, a connected one, too.
        made += [_argument(1), (_AND, 0, 0, _SOCK_TYPE_MASK)]
        for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
            made += [(_EQUAL, 0, 1, int(kind)), _allow()]
        return [*made, _error(errno.EACCES)]
    return [*made, _allow()]


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))  # struct sock_fprog


def refuse_calls(*, own_network: bool, unix_sockets: bool) -> bool:
    """Put the filter on this process, all its threads and its later children, for good.

    False where the kernel or the machine has no such filter; then nothing changed but no_new_privs.
    """
    machine = platform.machine()
    if machine not in _MACHINES:
        return False
    made = program(machine, own_network=own_network, unix_sockets=unix_sockets, pid=os.getpid())
    return _install(made, _SECCOMP_FILTER_FLAG_TSYNC) == 0


def can_filter() -> bool:
    """Whether the machine and its kernel have filters that refuse_calls and refuse_execs would put on."""
    machine = platform.machine()
    if machine not in _MACHINES:
        return False
    action = ctypes.c_uint32(_ERRNO)
    number = ctypes.c_long(_NUMBERS["seccomp"][_MACHINES[machine].column])
    return int(_libc.syscall(number, _SECCOMP_GET_ACTION_AVAIL, 0, ctypes.byref(action))) == 0


def refuse_execs() -> bool:
    """Let this process, which has one thread, and its later children start no program, for good (EPERM).

    False where the kernel or the machine has no such filter.
    """
    machine = platform.machine()
    return machine in _MACHINES and _install(exec_program(machine, notify=False), 0) == 0


def listen_to_execs(*, let_through: bool) -> int | None:
    """Have each call of this process and its later children that starts a program wait for an answer.

    The process has one thread. Returns the listener (close-on-exec): whoever holds it answers each call, and
    once nobody does, they fail with ENOSYS. A second listener on the same processes is refused by the kernel
    (EBUSY), a project's own as ours. `let_through`: the answer may be that the call goes on as it is.

    None where the machine, the kernel or a listener that is there already allows none; nothing changed then
    but no_new_privs.
    """
    machine = platform.machine()
    if machine not in _MACHINES or (let_through and kernel_version(os.uname().release) < _CONTINUE_SINCE):
        return None
    made = exec_program(machine, notify=True)
    # A call that was received is then ended by nothing but death: a signal would have it made twice.
    for flags in (_FLAG_NEW_LISTENER | _FLAG_WAIT_KILLABLE_RECV, _FLAG_NEW_LISTENER):
        listener = _install(made, flags)
        if listener >= 0:
            return listener
        if ctypes.get_errno() != errno.EINVAL:
            break
    return None


def kernel_version(release: str) -> tuple[int, int]:
    """Return the first two numbers of a release (`6.1.0-13-amd64`); (0, 0) where there are none."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _install(made: list[_Instruction], flags: int) -> int:
    """Put a filter on this process; what seccomp(2) returned, -1 with errno."""
    packed = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in made))
    whole = _Program(len(made), ctypes.addressof(packed))
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    return int(
        _libc.syscall(
            ctypes.c_long(_NUMBERS["seccomp"][_MACHINES[platform.machine()].column]),
            ctypes.c_uint(_SECCOMP_SET_MODE_FILTER),
            ctypes.c_uint(flags),
            ctypes.byref(whole),
        )
    )
