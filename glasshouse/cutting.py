"""A time by which an HTTP answer has come whole: httpx's own begin anew with every byte, of headers too."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpcore


class Cutter:
    """Cuts the connection of one client's request when its time is over. One request at a time.

    `trace` goes into the request's extensions; `armed` is off where no network is used.
    """

    def __init__(self, *, armed: bool = True) -> None:
        self._armed = armed
        self._stream: httpcore.NetworkStream | None = None

    @contextmanager
    def after(self, seconds: float) -> Iterator[threading.Event]:
        """Cut what is asked inside after so many seconds. Yields an event that is set once it was cut.

        A body without a length ends with the connection: whoever reads one asks the event.
        """
        cut = threading.Event()
        timer = threading.Timer(seconds, self._cut, (cut,))
        timer.daemon = True
        if self._armed:
            timer.start()
        try:
            yield cut
        finally:
            timer.cancel()

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Keep hold of the connection (httpcore's hook; after TLS began it is another one)."""
        made = info.get("return_value")
        if event.endswith(".complete") and isinstance(made, httpcore.NetworkStream):
            self._stream = made

    def _cut(self, cut: threading.Event) -> None:
        cut.set()
        held = None if self._stream is None else self._stream.get_extra_info("socket")
        if isinstance(held, socket.socket):
            with contextlib.suppress(OSError):
                # Not SSLSocket's own, which takes its TLS state from under the thread that reads.
                socket.socket.shutdown(held, socket.SHUT_RDWR)
