"""The calls by which a project starts programs: put before the supervisor, from within the project's process.

After an exec a process is dumpable again, so the record says how many there were (exec_watch.py counts), or
the policy refuses them. A filter has each call wait until the supervisor answers. It is told nothing but that
there was a call, and of which process: what the call names lies in memory that another thread may change
meanwhile, and is the owner's secret. So the answer never depends on it.

Whoever holds the listener could let through or refuse what it likes, so it goes to the supervisor at once,
and no project's code runs in a process that has it.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

from glasshouse.codes import Code
from glasshouse.errors import LegError
from glasshouse.runtime import linux, seccomp

# One packet for each process in which a project begins: how its execs are counted, and its pid. With NOTIFIED
# comes the listener.
HELLO = struct.Struct("=BI")
NOTIFIED, TABLE, FILTERED = 1, 2, 3


def watch(descriptor: int, *, refuse: bool) -> None:
    """Have this process's execs, and those of its later children, counted; with `refuse`, refused. For good.

    For the one thread of a process that was forked to run a project, before any of its code runs.
    `descriptor`: a socket of sequenced packets, whose other end is exec_watch.ExecWatch's; it is closed.
    LegError where they are to be refused and are not, or where nobody answers.
    """
    if refuse:
        linux.refuse_programs()  # a second barrier: what follows holds by itself, also against memfd_create
    listener = seccomp.listen_to_execs(let_through=not refuse)
    with socket.socket(fileno=descriptor) as hello:
        if listener is not None:
            socket.send_fds(hello, [HELLO.pack(NOTIFIED, os.getpid())], [listener])
            os.close(listener)
        elif refuse:
            if not seccomp.refuse_execs():
                raise LegError("nothing refuses to start programs", code=Code.EXECS_NOT_REFUSED)
            hello.send(HELLO.pack(FILTERED, os.getpid()))
        else:
            hello.send(HELLO.pack(TABLE, os.getpid()))
    expected = errno.EPERM if refuse else errno.ENOENT
    # A call that can start nothing, so that what is said of the others was seen to be true once.
    try:
        os.execve("", ["-"], {})  # noqa: S606
    except OSError as error:
        if error.errno != expected:
            raise LegError("calls that start programs are not answered", code=Code.RUNTIME_ERROR) from error
