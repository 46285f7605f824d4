"""Notice a peer that stopped answering, and cut the transport so that nobody waits for it.

A frozen or vanished machine leaves TCP open: reads, channel opens and even time-outs on commands hang
(measured; paramiko's own keepalive expects no reply, so it detects nothing). The watchdog asks something
that must be answered and, past a deadline in which not one byte came in, closes the socket under everybody.
"""

from __future__ import annotations

import contextlib
import math
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import paramiko

READ_AHEAD = 1 << 18  # bytes


@dataclass(frozen=True)
class Timeouts:
    """Seconds: to connect, for the SSH banner and key exchange, to log in, to open a channel or answer a
    request; between two pings; and without a byte from a peer that owes one, after which it counts as dead.
    """

    connect: float = 10.0
    banner: float = 10.0
    auth: float = 20.0
    channel: float = 15.0
    ping_every: float = 5.0
    dead_after: float = 15.0


class HeardSocket(socket.socket):
    """A socket that remembers when it last received bytes (monotonic seconds).

    It takes what there is at once: paramiko asks for 16 bytes, then for the rest of a packet, and each of
    these would be two calls of the kernel.
    """

    heard: float = 0.0
    _room: memoryview | None = None
    _ahead = memoryview(b"")

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """Receive and take note of the time. For one thread; it may hold bytes that `select` does not see."""
        if not self._ahead:
            if self._room is None:
                self._room = memoryview(bytearray(READ_AHEAD))
            count = super().recv_into(self._room, 0, flags)
            self.heard = time.monotonic()
            self._ahead = self._room[:count]
        piece = bytes(self._ahead[:bufsize])
        self._ahead = self._ahead[bufsize:]
        return piece


class Watchdog:
    """Pings one transport; `requests` must be held by whoever else makes a global request on it.

    paramiko keeps a single slot for global replies, so two requests in flight would read each other's answer.
    `deadline` (monotonic seconds): the transport is cut then, whatever goes on over it; so nothing that a
    caller waits for, however it waits, outlasts it.
    """

    def __init__(
        self,
        transport: paramiko.Transport,
        sock: HeardSocket,
        timeouts: Timeouts,
        deadline: float = math.inf,
    ) -> None:
        self.requests = threading.Lock()
        self.reason = ""
        self._transport = transport
        self._sock = sock
        self._timeouts = timeouts
        self._deadline = deadline
        self._stop = threading.Event()
        self._owed: dict[int, float] = {}
        self._owed_lock = threading.Lock()
        self._threads = [
            threading.Thread(target=target, name=f"ssh-{target.__name__.strip('_')}", daemon=True)
            for target in (self._ping, self._monitor)
        ]
        for thread in self._threads:
            thread.start()

    @contextlib.contextmanager
    def answer_owed(self, seconds: float) -> Iterator[None]:
        """While inside, the peer owes an answer: `seconds` of complete silence from now kill the
        transport."""
        token = threading.get_ident()
        with self._owed_lock:
            outer = self._owed.get(token)
            self._owed[token] = time.monotonic() + seconds
        try:
            yield
        finally:
            with self._owed_lock:
                if outer is None:
                    del self._owed[token]
                else:
                    self._owed[token] = outer

    def kill(self, reason: str) -> None:
        """Cut the socket and wake every waiter. Idempotent; the first reason stays."""
        self.reason = self.reason or reason
        self._stop.set()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._transport.close()

    def stop(self) -> None:
        """End both threads; the transport is the caller's to close, before this."""
        self._stop.set()
        for thread in self._threads:
            thread.join(5.0)

    def _ping(self) -> None:
        while not self._stop.wait(self._timeouts.ping_every):
            with (
                contextlib.suppress(OSError, EOFError, paramiko.SSHException),
                self.requests,
                self.answer_owed(self._timeouts.dead_after),
            ):
                # Every server answers, if only with "no such request": that it answers is what counts.
                self._transport.global_request("keepalive@openssh.com", wait=True)
            if not self._transport.is_active():
                return

    def _monitor(self) -> None:
        while not self._stop.wait(0.1):
            now = time.monotonic()
            if now >= self._deadline:
                self.kill("its time was over")
                return
            with self._owed_lock:
                earliest = min(self._owed.values(), default=None)
            # A slow upload may delay the answer itself, but then window updates still come in.
            if earliest is not None and now > earliest and now - self._sock.heard > self._timeouts.dead_after:
                self.kill(f"no byte from the pod for {now - self._sock.heard:.0f} s")
                return
