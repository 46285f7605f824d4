"""Carry connections made on the pod's loopback to a port here: how the pod reaches the key broker."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from collections.abc import Iterator

import paramiko

from glasshouse.codes import Code
from glasshouse.errors import OutcomeUnknown, RemoteError
from glasshouse.remote.connection import Link

MAX_CONNECTIONS = 16
PIECE = 1 << 15


@contextlib.contextmanager
def forwarded(link: Link, local_port: int, timeout: float, opening: bytes = b"") -> Iterator[int]:
    """Ask the pod to listen on a free port of its loopback; yield that port. One forward a link at a time.

    opening: what is written to the port here before anything that the pod sends on a connection. Connections
    beyond MAX_CONNECTIONS are closed at once. On exit every connection is closed and every thread joined.
    Raises RemoteError when the pod refuses, OutcomeUnknown when the link dies.
    """
    forward = _Forward(local_port, opening)
    try:
        with link.watchdog.requests, link.watchdog.answer_owed(timeout):
            port = link.transport.request_port_forward("127.0.0.1", 0, forward.arrived)
    except (paramiko.SSHException, EOFError, OSError) as error:
        # paramiko says "denied" also of a connection that died before an answer came.
        if not isinstance(error, paramiko.SSHException) or not _answers(link, timeout):
            raise OutcomeUnknown("the connection died while a port was being forwarded") from error
        raise RemoteError(
            "the pod refuses remote port forwarding",
            remedy="allow AllowTcpForwarding in its sshd_config",
            code=Code.FORWARD_REFUSED,
        ) from error
    forward.start()
    try:
        yield port
    finally:
        with (
            contextlib.suppress(paramiko.SSHException, EOFError, OSError),
            link.watchdog.requests,
            link.watchdog.answer_owed(timeout),
        ):
            link.transport.cancel_port_forward("127.0.0.1", port)
        forward.close()


def _answers(link: Link, timeout: float) -> bool:
    """Whether the pod still answers: anything, within `timeout` seconds."""
    with (
        contextlib.suppress(paramiko.SSHException, EOFError, OSError),
        link.watchdog.requests,
        link.watchdog.answer_owed(timeout),
    ):
        link.transport.global_request("keepalive@openssh.com", wait=True)
        return link.alive
    return False


class _Forward:
    """Threads that pump between channels from the pod and sockets to `local_port`."""

    def __init__(self, local_port: int, opening: bytes) -> None:
        self._local_port = local_port
        self._opening = opening
        self._queue: queue.SimpleQueue[paramiko.Channel | None] = queue.SimpleQueue()
        self._open: set[paramiko.Channel] = set()
        self._threads: set[threading.Thread] = set()
        self._lock = threading.Lock()
        self._acceptor = threading.Thread(target=self._accept, name="forward-accept", daemon=True)

    def arrived(self, channel: paramiko.Channel, _source: tuple[str, int], _target: tuple[str, int]) -> None:
        """Take a channel over; called on paramiko's own thread, which must never wait."""
        self._queue.put(channel)

    def start(self) -> None:
        self._acceptor.start()

    def close(self) -> None:
        self._queue.put(None)
        self._acceptor.join(5.0)
        with self._lock:
            channels, threads = list(self._open), list(self._threads)
        for channel in channels:
            channel.close()
        for thread in threads:
            thread.join(5.0)

    def _accept(self) -> None:
        while (channel := self._queue.get()) is not None:
            with self._lock:
                full = len(self._open) >= MAX_CONNECTIONS
                if not full:
                    self._open.add(channel)
                    thread = threading.Thread(
                        target=self._carry, args=(channel,), name="forward", daemon=True
                    )
                    self._threads.add(thread)
            if full:
                channel.close()
            else:
                thread.start()

    def _carry(self, channel: paramiko.Channel) -> None:
        try:
            with (
                contextlib.suppress(OSError, EOFError, paramiko.SSHException),
                socket.create_connection(("127.0.0.1", self._local_port), timeout=10.0) as sock,
            ):
                sock.settimeout(None)
                sock.sendall(self._opening)
                self._pump_both(channel, sock)
        finally:
            with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
                channel.close()
            with self._lock:
                self._open.discard(channel)
                self._threads.discard(threading.current_thread())

    def _pump_both(self, channel: paramiko.Channel, sock: socket.socket) -> None:
        """Both directions at once: with one thread, two sides that send first would wait for each other."""
        back = threading.Thread(target=_pump_back, args=(sock, channel), name="forward-back", daemon=True)
        back.start()
        try:
            while data := channel.recv(PIECE):
                sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            if channel.closed:  # not merely half-closed: nobody is left to read the rest
                sock.shutdown(socket.SHUT_RDWR)
            back.join()
        except OSError:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            back.join()


def _pump_back(sock: socket.socket, channel: paramiko.Channel) -> None:
    with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
        while data := sock.recv(PIECE):
            channel.sendall(data)
        channel.shutdown_write()
    # Whoever was asked has answered, or cut it off, and closed: nothing more that the pod sends will be read,
    # and a pod that holds its end open must not hold this one.
    with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
        channel.close()
