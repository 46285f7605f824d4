"""The HTTP server under both fake APIs."""

from __future__ import annotations

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Self

from glasshouse.providers.fakes.service import Answer, FakeService
from glasshouse.providers.fakes.state import FakeCloud

MAX_BODY: Final = 1 << 20


class FakeServer:
    """Serve one fake API on a free loopback port until `close`; a context manager."""

    def __init__(self, service: FakeService, *, port: int = 0) -> None:
        self.service = service
        handler = type("Handler", (_Handler,), {"service": self.service})
        self._http = _Http(("127.0.0.1", port), handler)
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, name="fake-api", daemon=True
        )
        self._thread.start()

    @property
    def key(self) -> str:
        """The key that it takes."""
        return self.service.key

    @property
    def cloud(self) -> FakeCloud:
        """The state behind it."""
        return self.service.cloud

    @property
    def origin(self) -> str:
        """`http://127.0.0.1:port`."""
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    @property
    def base_url(self) -> str:
        """What `provider.base_url` takes."""
        return self.origin + self.service.api.prefix

    def close(self) -> None:
        """Stop serving and end every pod. Idempotent."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(10.0)
        self.cloud.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # with five, connections made at once are reset
    block_on_close = False  # a stalled request must not stall the end

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up is what the faults are for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every small answer waits 40 ms for an acknowledgement
    service: FakeService

    def _serve(self) -> None:
        length = self.headers.get("Content-Length") or "0"
        if not length.isdigit() or int(length) > MAX_BODY:
            self.close_connection = True
            self._send(Answer(413, text="too large"))
            return
        raw = self.rfile.read(int(length))
        self._send(self.service.answer(self.command, self.path, self.headers.get("Authorization") or "", raw))

    do_GET = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815  http.server looks for these names

    def _send(self, answer: Answer) -> None:
        time.sleep(answer.delay)
        if answer.cut:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        wire = self.service.wire(answer)
        self.send_response(wire.status)
        for name, value in wire.headers.items():
            self.send_header(name, value)
        if answer.stream is None:
            self.send_header("Content-Length", str(len(wire.data)))
        else:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        for wait, piece in wire.pieces:
            time.sleep(wait)
            self.wfile.write(piece)
        if answer.stream is not None:
            self.wfile.flush()
            time.sleep(0.3)  # an event stream stays open after its history

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class's name
        """Say nothing: the state is inspected instead."""
