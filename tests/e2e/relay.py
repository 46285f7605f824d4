"""A relay in front of an SSH server on loopback that counts what goes each way."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Relay:
    """Its port, and the bytes that it has passed on: `sent` to the server, `received` from it."""

    port: int
    sent: int = 0
    received: int = 0
    _changing: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def pump(self, source: socket.socket, target: socket.socket, name: str) -> None:
        """Pass on what comes until one side ends, and count it."""
        with contextlib.suppress(OSError):
            while part := source.recv(1 << 18):
                target.sendall(part)
                with self._changing:
                    setattr(self, name, getattr(self, name) + len(part))
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def relay(to: int) -> Iterator[Relay]:
    """Serve a relay to `to`, a port of loopback, until this is left."""
    with socket.create_server(("127.0.0.1", 0)) as server, contextlib.ExitStack() as until:
        made = Relay(server.getsockname()[1])

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    near, _ = server.accept()
                    far = socket.create_connection(("127.0.0.1", to))
                    for end in (near, far):
                        until.callback(end.close)
                    for ends in ((near, far, "sent"), (far, near, "received")):
                        threading.Thread(target=made.pump, args=ends, daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield made
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
