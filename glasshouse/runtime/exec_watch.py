"""Counts the programs that a project starts, in the supervisor: by the kernel's word, or by looking.

Sources: seccomp(2), seccomp_unotify(2), proc_pid_stat(5); include/uapi/linux/seccomp.h and
include/linux/sched.h.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import threading
from pathlib import Path
from typing import NamedTuple

from glasshouse.runtime.execs import FILTERED, HELLO, NOTIFIED, TABLE
from glasshouse.runtime.results import Execs

LOOK_SEC = 0.25  # between two looks at the process table
STOP_SEC = 10.0  # a leg does not wait longer for its number
MAX_RECENT = 4096  # calls whose outcome may yet be learnt
_RECEIVE, _ANSWER = 0xC0502100, 0xC0182101  # SECCOMP_IOCTL_NOTIF_RECV, SECCOMP_IOCTL_NOTIF_SEND
_CALL = struct.Struct("=QII64x")  # struct seccomp_notif: id, pid, flags; struct seccomp_data is not looked at
_REPLY = struct.Struct("=QqiI")  # struct seccomp_notif_resp: id, value, error, flags
_CONTINUE = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE
_FORKED_ONLY = 0x40  # PF_FORKNOEXEC: since its fork the task has started no program
# What the sum over several processes is worth: the weakest word, which comes first.
_WORDS = {NOTIFIED: "notified", FILTERED: "filter", TABLE: "table"}
_STRENGTH = ("none", "table", "filter", "notified")


class Task(NamedTuple):
    """What anybody may read of a process: its parent, when it began (clock ticks), whether it only forked."""

    parent: int
    began: int
    forked_only: bool


class ExecWatch(threading.Thread):
    """Takes listeners from a leg's socket and answers what they bring, until `stop`.

    A thread: calls wait for their answers while the supervisor is at something else. Whatever becomes of it,
    no call waits for ever: with the listeners closed, the kernel fails them. `refuse`: no program is started.
    """

    def __init__(self, hello: socket.socket, *, refuse: bool) -> None:
        super().__init__(name="execs", daemon=True)
        self._hello = hello
        self._refuse = refuse
        self._wake_read, self._wake = os.pipe()
        self._began = False
        self._counted = "notified"
        self._controlled: dict[int, bool] = {}  # by listener: whether the call that each begins with was seen
        self._roots: set[int] = set()
        self._seen: set[tuple[int, int]] = set()  # processes of the table that were counted
        self._recent: dict[int, int] = {}  # task: when it began; its last call was let through
        self._let_on = self._denied = 0

    def stop(self) -> Execs | None:
        """Count no more; return what was counted, None where no project began. For once."""
        os.close(self._wake)
        self.join(STOP_SEC)
        if self.is_alive():
            self._weaken("none")
        return Execs(self._let_on, self._denied, self._counted) if self._began else None

    def run(self) -> None:
        """Answer until told to stop."""
        try:
            self._serve()
        except (OSError, ValueError, struct.error):
            self._weaken("none")
        finally:
            for listener in self._controlled:
                os.close(listener)
            self._hello.close()
            os.close(self._wake_read)

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self._wake_read, 0)
        poll.register(self._hello, select.POLLIN)
        while True:
            for descriptor, events in poll.poll(1000 * LOOK_SEC if self._roots else None):
                if descriptor == self._wake_read:
                    self._welcome_the_rest()
                    self._weaken("notified" if all(self._controlled.values()) else "none")
                    return
                if descriptor == self._hello.fileno():
                    if (listener := self._welcome()) is None:
                        poll.unregister(self._hello)
                    elif listener >= 0:
                        poll.register(listener, select.POLLIN)
                elif events & select.POLLIN:
                    self._answer(descriptor)
                elif events & (select.POLLHUP | select.POLLERR):  # the last process under this filter is gone
                    poll.unregister(descriptor)
            if self._roots:
                self._look()

    def _weaken(self, counted: str) -> None:
        self._counted = min(self._counted, counted, key=_STRENGTH.index)

    def _welcome(self) -> int | None:
        """Take one process's packet; its listener, -1 where it has none, None when no more can come."""
        data, descriptors, _, _ = socket.recv_fds(self._hello, HELLO.size, 1)
        if not data:
            return None
        self._began = True
        how, pid = HELLO.unpack(data)
        if how not in _WORDS or (how == NOTIFIED) != (len(descriptors) == 1):
            raise ValueError("of another form, or no descriptor was free for its listener")
        self._weaken(_WORDS[how])
        if how == TABLE:
            self._roots.add(pid)
        for listener in descriptors:
            os.set_inheritable(listener, False)
            self._controlled[listener] = False
            return listener
        return -1

    def _welcome_the_rest(self) -> None:
        """Take the packets that have come; of a process that ended at once its own may still lie there."""
        waiting = select.poll()
        waiting.register(self._hello, select.POLLIN)
        while waiting.poll(0) and self._welcome() is not None:
            pass

    def _answer(self, listener: int) -> None:
        """Let one call go on, or refuse it, and count it once that was heard."""
        buffer = bytearray(_CALL.size)
        if not _told(listener, _RECEIVE, buffer):
            return
        call, pid, _ = _CALL.unpack(buffer)
        before = task(pid)
        answer = (-errno.EPERM, 0) if self._refuse else (0, _CONTINUE)
        if not _told(listener, _ANSWER, bytearray(_REPLY.pack(call, 0, *answer))):
            return
        if not self._controlled[listener]:
            self._controlled[listener] = True  # execs.watch's own, which starts nothing
        elif not self._failed_before(pid, before):
            if self._refuse:
                self._denied += 1
            else:
                self._let_on += 1

    def _failed_before(self, pid: int, now: Task | None) -> bool:
        """Whether this task's last call is known to have failed: it was refused, or has left no trace.

        That one was counted, and this one takes its place: looking a name up along PATH, a call for each
        folder, is one program.
        """
        if now is None:
            return False
        failed = self._recent.pop(pid, None) == now.began and (self._refuse or now.forked_only)
        self._recent[pid] = now.began
        if len(self._recent) > MAX_RECENT:
            del self._recent[next(iter(self._recent))]
        return failed

    def _look(self) -> None:
        """Count what is below the project's processes, or was and became this one's, and has exec'd."""
        found = {}
        for entry in os.listdir("/proc"):  # noqa: PTH208 -- names alone
            if entry.isdecimal() and (one := task(int(entry))) is not None:
                found[int(entry)] = one
        mine = {(pid, found[pid].began) for pid in started(found, self._roots, os.getpid())}
        self._let_on += len(mine - self._seen)
        self._seen = mine


def _told(listener: int, what: int, buffer: bytearray) -> bool:
    """Do one of the listener's two requests; False where the call's process was killed meanwhile."""
    while True:
        try:
            fcntl.ioctl(listener, what, buffer)
        except InterruptedError:
            continue  # by a signal to this process: a call that was taken must be answered
        except FileNotFoundError:
            return False
        return True


def started(tasks: dict[int, Task], roots: set[int], reaper: int) -> set[int]:
    """Of `tasks` by pid: those that exec'd and are one of `roots`, below one, or an orphan of theirs.

    An orphan is a child of `reaper` that exec'd, or below one: none of our own roles does.
    """
    children: dict[int, list[int]] = {}
    for pid, one in tasks.items():
        children.setdefault(one.parent, []).append(pid)
    found: set[int] = set()
    ahead = [*roots, *(pid for pid in children.get(reaper, ()) if not tasks[pid].forked_only)]
    while ahead:
        pid = ahead.pop()
        if pid in tasks and pid not in found:
            found.add(pid)
            ahead += children.get(pid, ())
    return {pid for pid in found if not tasks[pid].forked_only}


def task(pid: int) -> Task | None:
    """What the kernel says of a process or thread to everybody; None where it is gone or hidden."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        # Behind the name, which may hold anything: state, ppid ... flags (9th of all) ... starttime (22nd).
        words = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return Task(int(words[1]), int(words[19]), bool(int(words[6]) & _FORKED_ONLY))
    return None
