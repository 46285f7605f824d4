"""Messages between the processes on the pod: framed JSON, raw bytes and descriptors.

A frame is a 4-byte length, a JSON object, and `nbytes` raw bytes where the object names them.
Raw bytes never pass through a Python `bytes` or `str` on the sending side, so that a needle that
is sent leaves no copy behind in the memory that is about to be scanned.
"""

from __future__ import annotations

import array
import json
import os
import socket
import struct
import threading
import time
from typing import Any, NamedTuple

from glasshouse.canonical import record_json
from glasshouse.codes import Code, known
from glasshouse.errors import LegError
from glasshouse.runtime.peers import PeerDiedError, Peers

MAX_FRAME = 4 << 20
MAX_DESCRIPTORS = 16


class ChannelClosedError(Exception):
    """The peer is gone."""


class Message(NamedTuple):
    """One message: what it is, its JSON object (whose sender may run code that is not ours), raw bytes."""

    kind: str
    body: dict[str, Any]
    raw: bytearray


class Channel:
    """One end of a Unix stream socket between two roles.

    `peers`: whose death ends a wait, too; the channel then counts as closed, once all that was said is read.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.peers: Peers | None = None
        self._sending = threading.Lock()  # two threads of a supervisor speak to the trainer

    def fileno(self) -> int:
        """Return the descriptor, for select."""
        return self.sock.fileno()

    def close(self) -> None:
        """Close this end."""
        self.sock.close()

    def send(self, kind: str, body: object = None, raw: bytearray | memoryview | None = None) -> None:
        """Send one message. `body` is a record or an object of JSON data; `raw` is sent uncopied."""
        frame = {"kind": kind, "body": record_json(body) or {}, "nbytes": len(raw) if raw is not None else 0}
        data = json.dumps(frame, separators=(",", ":"), allow_nan=False).encode()
        if len(data) > MAX_FRAME:
            raise LegError("a message is too large", code=Code.MESSAGE_TOO_LARGE)
        try:
            with self._sending:
                self.sock.settimeout(None)  # a receive may have left the rest of its deadline behind
                self.sock.sendall(struct.pack(">I", len(data)) + data)
                if raw:
                    self.sock.sendall(raw)
        except OSError as error:
            raise ChannelClosedError(kind) from error

    def send_descriptors(self, descriptors: list[int]) -> None:
        """Pass open descriptors (SCM_RIGHTS), announced by a message of kind `descriptors`."""
        self.send("descriptors", {"count": len(descriptors)})
        if descriptors:
            socket.send_fds(self.sock, [b"F"], descriptors)

    def receive(self, timeout: float | None = None) -> Message:
        """Wait for one message. Raises LegError after `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        (size,) = struct.unpack(">I", self._exactly(4, deadline))
        if size > MAX_FRAME:
            raise ChannelClosedError("oversized frame")
        message, nbytes = _parse(bytes(self._exactly(size, deadline)))
        return message._replace(raw=self._exactly(nbytes, deadline))

    def expect(self, kind: str, timeout: float | None = None) -> Message:
        """Wait for a message of `kind`; a `failed` message becomes a LegError with its code."""
        found = self.receive(timeout)
        if found.kind == "failed":
            raise LegError("a process of the leg failed", code=failure_code(found.body))
        if found.kind != kind:
            raise LegError(f"expected {kind}, got {found.kind}", code=Code.RUNTIME_ERROR)
        return found

    def receive_descriptors(self, timeout: float | None = None) -> list[int]:
        """Receive what send_descriptors sent."""
        count = self.expect("descriptors", timeout).body.get("count")
        if not isinstance(count, int) or not 0 <= count <= MAX_DESCRIPTORS:
            raise ChannelClosedError("malformed frame")
        if count == 0:
            return []
        # recvmsg with exactly one data byte, so that no byte of the next frame is swallowed.
        size = array.array("i").itemsize
        try:
            self._await(timeout)
            _, ancillary, _, _ = self.sock.recvmsg(1, socket.CMSG_LEN(count * size))
        except TimeoutError as error:
            raise LegError("a process of the leg did not answer", code=Code.RUNTIME_TIMEOUT) from error
        except OSError as error:
            raise ChannelClosedError("receive") from error
        descriptors = array.array("i")
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(data[: len(data) - len(data) % size])
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        return list(descriptors)

    def _await(self, timeout: float | None) -> None:
        """Have the next read end in time, and not outlast a peer. Raises ChannelClosedError."""
        self.sock.settimeout(timeout)
        if self.peers is not None:
            try:
                self.peers.wait(self.sock.fileno(), timeout)
            except PeerDiedError as error:
                raise ChannelClosedError(str(error)) from error

    def _exactly(self, size: int, deadline: float | None) -> bytearray:
        data = bytearray(size)
        view = memoryview(data)
        have = 0
        while have < size:
            remaining = None if deadline is None else deadline - time.monotonic()
            if remaining is not None and remaining <= 0:
                raise LegError("a process of the leg did not answer", code=Code.RUNTIME_TIMEOUT)
            try:
                self._await(remaining)
                count = self.sock.recv_into(view[have:])
            except TimeoutError as error:
                raise LegError("a process of the leg did not answer", code=Code.RUNTIME_TIMEOUT) from error
            except OSError as error:
                raise ChannelClosedError("receive") from error
            if count == 0:
                raise ChannelClosedError("end of stream")
            have += count
        return data


def failure_code(body: object) -> Code:
    """Return the reason code of a `failed` message: one of ours, and nothing else goes to plain logs."""
    return known(body.get("code") if isinstance(body, dict) else None, Code.RUNTIME_ERROR)


def _parse(data: bytes) -> tuple[Message, int]:
    """Take a frame apart: a message without its raw bytes, and how many of them follow.

    The trainer runs code that is not ours.
    """
    try:
        frame = json.loads(data)
        kind, body, nbytes = frame["kind"], frame["body"], frame["nbytes"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ChannelClosedError("malformed frame") from error
    if not isinstance(kind, str) or not isinstance(body, dict) or type(nbytes) is not int:
        raise ChannelClosedError("malformed frame")
    if not 0 <= nbytes <= MAX_FRAME:
        raise ChannelClosedError("oversized raw part")
    return Message(kind, body, bytearray()), nbytes


def channel_pair() -> tuple[Channel, Channel]:
    """Return two connected ends."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return Channel(left), Channel(right)
