"""What came over a channel and nobody has read yet: bounded, and joined once.

paramiko's own buffer holds whatever a server sends, also past the window that it was given, copies it three
times on its way out and wakes its reader for every packet.
"""

from __future__ import annotations

import threading
from collections import deque

import paramiko
from paramiko.buffered_pipe import PipeTimeout


class Inflow:
    """One stream of a channel, in the place and with the methods of paramiko's BufferedPipe.

    It holds `limit` bytes at most.
    `least`: a reader that asks for as many bytes is not woken for fewer, unless nothing more comes.
    """

    def __init__(self, limit: int) -> None:
        self.least = 1
        self._cv = threading.Condition()
        self._event: threading.Event | None = None
        self._closed = False
        self._pieces = deque[bytes]()
        self._limit = limit
        self._size = 0
        self._wanted = 1

    def set_event(self, event: threading.Event) -> None:
        """Keep `event` set while there is something to read, and from the end on."""
        with self._cv:
            self._event = event
            if self._closed or self._size:
                event.set()
            else:
                event.clear()

    def feed(self, data: bytes) -> None:
        """Take what came. SSHException, which ends the transport, where the far side overran its window."""
        with self._cv:
            if self._size + len(data) > self._limit:
                raise paramiko.SSHException("the far side sent more than it was allowed to")
            self._pieces.append(data)
            self._size += len(data)
            if self._event is not None:
                self._event.set()
            if self._size >= self._wanted:
                self._cv.notify_all()

    def read_ready(self) -> bool:
        """Whether a read would give a byte at once."""
        with self._cv:
            return self._size > 0

    def read(self, nbytes: int, timeout: float | None = None) -> bytes:
        """Give up to `nbytes`: b"" at the end. After `timeout` seconds what there is, or PipeTimeout."""
        with self._cv:
            self._wanted = min(nbytes, self.least)
            self._cv.wait_for(lambda: self._closed or self._size >= self._wanted, timeout)
            self._wanted = 1
            if not self._size and not self._closed and nbytes:
                raise PipeTimeout
            return self._take(nbytes)

    def empty(self) -> bytes:
        """Give all there is."""
        with self._cv:
            return self._take(self._size)

    def close(self) -> None:
        """Nothing more comes."""
        with self._cv:
            self._closed = True
            self._cv.notify_all()
            if self._event is not None:
                self._event.set()

    def __len__(self) -> int:
        return self._size

    def _take(self, nbytes: int) -> bytes:
        pieces, left = [], min(nbytes, self._size)
        self._size -= left
        while left:
            piece = self._pieces.popleft()
            if len(piece) > left:
                self._pieces.appendleft(piece[left:])
                piece = piece[:left]
            pieces.append(piece)
            left -= len(piece)
        if not self._size and self._event is not None and not self._closed:
            self._event.clear()
        return b"".join(pieces)
