"""What came over a channel and nobody has read yet: bounded, and copied once.

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
    """

    def __init__(self, limit: int) -> None:
        self._cv = threading.Condition()
        self._event: threading.Event | None = None
        self._closed = False
        self._pieces = deque[bytes]()
        self._limit = limit
        self._size = 0  # of the pieces
        self._into: memoryview | None = None
        self._filled = 0  # bytes of _into

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
            if self._into is not None:
                data = self._fill(data)
                if self._filled == self._into.nbytes:
                    self._cv.notify_all()
                if not data:
                    return
            if self._size + len(data) > self._limit:
                raise paramiko.SSHException("the far side sent more than it was allowed to")
            self._pieces.append(data)
            self._size += len(data)
            if self._event is not None:
                self._event.set()
            self._cv.notify_all()

    def read_ready(self) -> bool:
        """Whether a read would give a byte at once."""
        with self._cv:
            return self._size > 0

    def read_into(self, view: memoryview) -> None:
        """Let the next `read` fill `view` and give a part of it. It waits for all of that, or the end.

        What is kept until somebody reads is taken from the kernel page by page, which costs more than to
        decrypt it; and a reader that is woken for each packet stands in its own decryption's way.
        """
        with self._cv:
            self._into, self._filled = view, 0
            while self._pieces and self._filled < view.nbytes:
                piece = self._pieces.popleft()
                if rest := self._fill(piece):
                    self._pieces.appendleft(rest)
                self._size -= len(piece) - len(rest)

    def read(self, nbytes: int, timeout: float | None = None) -> bytes | memoryview:
        """Give up to `nbytes`: b"" at the end. After `timeout` seconds what there is, or PipeTimeout."""
        with self._cv:
            into = self._into
            if into is not None:
                self._cv.wait_for(lambda: self._closed or self._filled == into.nbytes, timeout)
                self._into = None
                if not self._filled and not self._closed and into.nbytes:
                    raise PipeTimeout
                return into[: self._filled]
            if not self._cv.wait_for(lambda: self._closed or self._size or not nbytes, timeout):
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

    def _fill(self, data: bytes) -> bytes:
        """Copy what fits to where it is waited for; return the rest."""
        assert self._into is not None
        count = min(len(data), self._into.nbytes - self._filled)
        self._into[self._filled : self._filled + count] = data[:count]
        self._filled += count
        return data[count:]

    def _take(self, nbytes: int) -> bytes:
        pieces, left = list[bytes](), min(nbytes, self._size)
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
