"""The HTTP server under both fake APIs: key check, faults that any request can meet, the inspection API.

GET  /_fake/state                       what exists, what was billed, which faults struck (no key needed)
POST /_fake/faults {"kind","times"}     plan a fault
POST /_fake/exit   {"id"}               let a pod's container exit
"""

from __future__ import annotations

import hmac
import json
import re
import secrets
import socket
import threading
import time
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Protocol, Self
from urllib.parse import parse_qsl, urlsplit

from glasshouse.providers.cloud_http import FAKE_HEADER
from glasshouse.providers.fakes.state import Exchange, FakeCloud

MAX_BODY: Final = 1 << 20
STALL_SEC: Final = 4.0  # how long a hanging request hangs: longer than a test client waits
SLOW_SEC: Final = 0.3  # how long a slow create takes
_CREATE: Final = re.compile(r"/pods\Z|/v0/asks/[^/]+/?\Z")
_ONE: Final = re.compile(r"/(pods|v0/instances)/[^/]+/?\Z")
RUNPOD_PREFIX: Final = "/v2"
VAST_PREFIX: Final = "/api"


@dataclass(frozen=True)
class Request:
    """One request, after the key check. `path` is relative to the API's prefix."""

    method: str
    path: str
    query: Mapping[str, str]
    body: Any


@dataclass(frozen=True)
class Answer:
    """What goes back: JSON (`body`), plain text (`text`), lines of a stream, a stall, or a cut connection."""

    status: int
    body: Any = None
    text: str | None = None
    stream: Iterable[str] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False
    stall: bool = False


class FakeApi(Protocol):
    """One provider's routes over a FakeCloud."""

    cloud: FakeCloud
    prefix: str
    error_type: str

    @abstractmethod
    def route(self, request: Request) -> Answer:
        """Answer one request."""

    @abstractmethod
    def refuse_key(self) -> Answer:
        """What a bad key gets."""


class FakeServer:
    """Serve one fake API on a free loopback port until `close`; a context manager."""

    def __init__(self, api: FakeApi, *, key: str | None = None, port: int = 0) -> None:
        self.api = api
        self.key = key or f"fake-{secrets.token_hex(16)}"
        handler = type("Handler", (_Handler,), {"owner": self})
        self._http = _Http(("127.0.0.1", port), handler)
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, name="fake-api", daemon=True
        )
        self._thread.start()

    @property
    def cloud(self) -> FakeCloud:
        """The state behind it."""
        return self.api.cloud

    @property
    def origin(self) -> str:
        """`http://127.0.0.1:port`."""
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    @property
    def base_url(self) -> str:
        """What `provider.base_url` takes."""
        return self.origin + self.api.prefix

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

    def answer(self, method: str, target: str, authorization: str, raw: bytes) -> Answer:
        """Check the key, let faults strike, route, and keep the exchange."""
        parts = urlsplit(target)
        try:
            body = json.loads(raw) if raw.strip() else None
        except ValueError:
            return Answer(400, text="not JSON")
        if parts.path.startswith("/_fake/"):
            return self._inspect(method, parts.path, body)
        if not parts.path.startswith(self.api.prefix + "/"):
            return Answer(404, text="nothing here")
        request = Request(method, parts.path[len(self.api.prefix) :], dict(parse_qsl(parts.query)), body)
        given = authorization.removeprefix("Bearer ").encode()
        if not hmac.compare_digest(given, self.key.encode()) or self.cloud.faults.take("auth"):
            answer = self.api.refuse_key()
        else:
            if request.method in ("POST", "PUT") and _CREATE.match(request.path):
                time.sleep(SLOW_SEC if self.cloud.faults.take("create-slow") else 0.0)
            answer = _any_read(self.cloud, request) or self.api.route(request)
        self.cloud.exchanges.append(
            Exchange(method, request.path, dict(request.query), body, answer.status, answer.body)
        )
        return answer

    def _inspect(self, method: str, path: str, body: Any) -> Answer:
        try:
            if (method, path) == ("GET", "/_fake/state"):
                return Answer(200, self.cloud.snapshot())
            if (method, path) == ("POST", "/_fake/faults"):
                self.cloud.faults.add(str(body["kind"]), int(body.get("times", 1)))
                return Answer(200, {"ok": True})
            if (method, path) == ("POST", "/_fake/exit"):
                self.cloud.exit_pod(str(body["id"]))
                return Answer(200, {"ok": True})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            return Answer(400, {"ok": False, "error": str(error)})
        return Answer(404, {"ok": False})


def _any_read(cloud: FakeCloud, request: Request) -> Answer | None:
    """Faults that any reading request can meet."""
    if request.method != "GET":
        return None
    if cloud.faults.take("read-5xx"):
        return Answer(503, text="upstream connect error or disconnect/reset before headers")
    if cloud.faults.take("read-429"):
        return Answer(429, text="API requests too frequent: endpoint threshold=2.0")
    if cloud.faults.take("read-drop"):
        return Answer(0, cut=True)
    if _ONE.match(request.path) and cloud.faults.take("read-one-5xx"):
        return Answer(503, text="upstream connect error or disconnect/reset before headers")
    return None


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a stalled request must not stall the end

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up is what the faults are for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every small answer waits 40 ms for an acknowledgement
    owner: FakeServer

    def _serve(self) -> None:
        length = self.headers.get("Content-Length") or "0"
        if not length.isdigit() or int(length) > MAX_BODY:
            self.close_connection = True
            self._send(Answer(413, text="too large"))
            return
        raw = self.rfile.read(int(length))
        self._send(self.owner.answer(self.command, self.path, self.headers.get("Authorization") or "", raw))

    do_GET = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815  http.server looks for these names

    def _send(self, answer: Answer) -> None:
        if answer.stall:
            time.sleep(STALL_SEC)
        if answer.stall or answer.cut:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if answer.stream is not None:
            data, kind = "".join(f"{line}\n" for line in answer.stream).encode(), "text/event-stream"
        elif answer.text is not None:
            data, kind = answer.text.encode(), "text/plain; charset=utf-8"
        elif answer.body is None:
            data, kind = b"", ""
        else:
            data, kind = json.dumps(answer.body).encode(), "application/json"
            if answer.status >= 400:
                kind = self.owner.api.error_type
        self.send_response(answer.status)
        self.send_header(FAKE_HEADER, "1")
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if kind:
            self.send_header("Content-Type", kind)
        if answer.stream is None:
            self.send_header("Content-Length", str(len(data)))
        else:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        self.wfile.write(data)
        if answer.stream is not None:
            self.wfile.flush()
            time.sleep(0.3)  # an event stream stays open after its history

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class's name
        """Say nothing: the state is inspected instead."""
