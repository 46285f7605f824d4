"""Run one command over one SSH channel, with a deadline and bounded output.

fabric's own capture is quadratic in the output (20 MB took 28 s) and can hang past its time-out; this loop is
neither.
"""

from __future__ import annotations

import contextlib
import select
import shlex
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import paramiko

from glasshouse.codes import Code
from glasshouse.errors import OutcomeUnknown, RemoteError
from glasshouse.remote.connection import RECEIVE_PACKET, RECEIVE_WINDOW, Link
from glasshouse.remote.inflow import Inflow

PIECE = 1 << 17  # bytes handed to the channel at once; it splits them to the packet size of the far side


@dataclass(frozen=True)
class Result:
    """How a command ended: exit status (128 + n when signal n killed it) and its output.

    `truncated` says that one of the two streams was longer than the caller's bound and was cut there.
    """

    exit: int
    stdout: bytes
    stderr: bytes
    truncated: bool = False


def command_line(argv: Sequence[str]) -> str:
    """Quote `argv` for the far shell. Raises RemoteError for what no command line can carry.

    The inner sh turns death by a signal into 128 + n: SSH reports that apart, and paramiko not at all,
    which would look like a lost connection.
    """
    if not argv or any("\0" in word for word in argv):
        raise RemoteError("a command needs words without NUL")
    return shlex.join(["sh", "-c", '"$@"; exit $?', "sh", *argv])


def disk_full(text: str) -> Code | None:
    """The reason code where a command's own words say that its disk is full, else None."""
    full = any(words in text for words in ("No space left on device", "Disk quota exceeded"))
    return Code.POD_DISK_FULL if full else None


@contextlib.contextmanager
def session(link: Link, argv: Sequence[str], timeout: float) -> Iterator[paramiko.Channel]:
    """Start `argv` on a channel of its own; close it on the way out.

    `timeout`: seconds the pod may take to answer the request. Every fault of the connection, here or inside
    the with block, leaves as OutcomeUnknown.
    """
    line = command_line(argv)
    channel = None
    try:
        channel = link.transport.open_session(timeout=timeout)
        _bound(channel)
        with link.watchdog.answer_owed(timeout):
            channel.exec_command(line.encode("utf-8", "surrogateescape"))
        yield channel
    except (paramiko.SSHException, EOFError, OSError) as error:
        raise OutcomeUnknown(
            "the connection died while a command ran there",
            field="reason",
            value=link.watchdog.reason or str(error) or type(error).__name__,
        ) from error
    finally:
        if channel is not None:
            _close(channel)


def _bound(channel: paramiko.Channel) -> None:
    """Give a new channel buffers that hold what its window allows, and end the connection past that."""
    for name in ("in_buffer", "in_stderr_buffer"):
        inflow = Inflow(RECEIVE_WINDOW + RECEIVE_PACKET)
        setattr(channel, name, inflow)
        if channel.closed:  # it may have closed the former one
            inflow.close()


def receive_into(channel: paramiko.Channel, view: memoryview) -> int:
    """Fill `view` with what comes, and return how many bytes did: fewer at the end, or after the time-out."""
    inflow: Any = channel.in_buffer
    inflow.read_into(view)
    return len(channel.recv(view.nbytes))


def _close(channel: paramiko.Channel) -> None:
    # Closing sends a message; on a dead peer with a full send buffer that waits until the watchdog cuts the
    # transport, so it must not be the caller who waits.
    if channel.closed:
        channel.close()  # only frees the polling pipe
        return
    threading.Thread(target=_close_quietly, args=(channel,), name="ssh-close", daemon=True).start()


def _close_quietly(channel: paramiko.Channel) -> None:
    with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
        channel.close()


class _Bounded:
    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0
        self.cut = False

    def add(self, data: bytes) -> None:
        keep = data[: self._limit - self._size]
        self.cut = self.cut or len(keep) < len(data)
        if keep:
            self._parts.append(keep)
            self._size += len(keep)

    def value(self) -> bytes:
        return b"".join(self._parts)


def run_command(
    link: Link, argv: Sequence[str], *, stdin: bytes, timeout: float, max_output: int, request_timeout: float
) -> Result:
    """Run `argv` to its end within `timeout` seconds.

    Each stream is read to its end but kept only up to `max_output` bytes. Raises OutcomeUnknown when the
    deadline passes or the transport dies.
    """
    deadline = time.monotonic() + timeout
    out, err = _Bounded(max_output), _Bounded(max_output)
    with session(link, argv, min(request_timeout, timeout)) as channel:
        pending = memoryview(stdin)
        poller = select.poll()
        poller.register(channel.fileno(), select.POLLIN)
        channel.settimeout(min(request_timeout, timeout))
        if not pending:
            channel.shutdown_write()
        while True:
            # Looked at before draining: what came before the end is in the buffer by then.
            ended = channel.eof_received or channel.closed
            # The deadline here, too: a pod that writes as fast as we read would never let us out.
            while channel.recv_ready() and time.monotonic() < deadline:
                out.add(channel.recv(1 << 18))
            while channel.recv_stderr_ready() and time.monotonic() < deadline:
                err.add(channel.recv_stderr(1 << 18))
            if ended:
                break
            left = deadline - time.monotonic()
            if left <= 0:
                raise OutcomeUnknown(f"no end of the command within {timeout:g} s")
            if pending:
                pending = _feed(channel, pending)
            # While input waits for window there is no event to wait for: look again soon.
            poller.poll(5 if pending else min(left, 1.0) * 1000)
        channel.status_event.wait(max(0.0, deadline - time.monotonic()))
        if not channel.status_event.is_set() or channel.exit_status < 0:
            raise OutcomeUnknown(
                "the connection died while a command ran there",
                field="reason",
                value=link.watchdog.reason or "no exit status",
            )
        return Result(channel.exit_status, out.value(), err.value(), out.cut or err.cut)


def _feed(channel: paramiko.Channel, pending: memoryview) -> memoryview:
    """Send as much input as the window takes; a command that no longer reads is not an error."""
    try:
        while pending and channel.send_ready():
            sent = channel.send(bytes(pending[:PIECE]))
            if not sent:
                return memoryview(b"")
            pending = pending[sent:]
        if not pending:
            channel.shutdown_write()
    except OSError:
        return memoryview(b"")
    return pending
