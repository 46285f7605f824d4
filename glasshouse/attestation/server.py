"""HTTP on loopback in front of a broker: bounded workers, bounded bodies, bounded time, JSON only.

    POST /v1/challenge   {"request"}                    -> {"challenge"}      request: ticket.py
    POST /v1/attest      {"evidence", "launchToken"}    -> {"ear", "grant"}
    POST /v1/card, /v1/operate                                where operators may ask: operator.py
    GET  /.well-known/jwks.json, GET /healthz

A refusal is {"error": {"code", "reasonCodes", "message"}} and says every reason: an opaque 401 helps nobody,
and the codes tell an attacker nothing that the source does not. The server only translates: every rule is
the broker's. It is reached from the pod through an SSH forward, so any process there can talk to it.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from glasshouse.attestation.broker import Broker
from glasshouse.attestation.operator import Answer, Desk
from glasshouse.canonical import CanonicalError, canonical_json, parse_json
from glasshouse.codes import Code
from glasshouse.errors import AttestationError, GlasshouseError

MAX_BODY_BYTES = 64 << 10
MAX_WORKERS = 16
READ_TIMEOUT_SEC = 10.0  # between two bytes
CONNECTION_DEADLINE_SEC = 30.0  # from accept to answer: a drip of bytes does not hold a worker
_DRAIN_SEC = 0.5


@dataclass(frozen=True)
class Server:
    """A running server: where it listens."""

    host: str
    port: int


@contextlib.contextmanager
def serve(
    broker: Broker,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    desk: Desk | None = None,
    workers: int = MAX_WORKERS,
    read_timeout: float = READ_TIMEOUT_SEC,
    deadline: float = CONNECTION_DEADLINE_SEC,
) -> Iterator[Server]:
    """Serve `broker` from a background thread until the block ends; port 0 takes a free one.

    desk answers operators; without one nobody but the attester may ask.
    workers bounds the connections served at once (others wait in the kernel's queue); times in seconds.
    """
    server = _HttpServer(
        (host, port), broker, desk=desk, workers=workers, read_timeout=read_timeout, deadline=deadline
    )
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="broker-http", daemon=True)
    thread.start()
    try:
        yield Server(host, server.server_address[1])
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        server.drain(_DRAIN_SEC)


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # the run that embeds us never waits on a stuck peer
    request_queue_size = 256
    allow_reuse_address = False

    def __init__(
        self,
        address: tuple[str, int],
        broker: Broker,
        *,
        desk: Desk | None,
        workers: int,
        read_timeout: float,
        deadline: float,
    ) -> None:
        self.broker = broker
        self.desk = desk
        self.read_timeout = read_timeout
        self.deadline = deadline
        self._slots = threading.BoundedSemaphore(workers)
        self._open: dict[socket.socket, float] = {}
        self._open_lock = threading.Lock()
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        while not self._slots.acquire(timeout=0.1):
            self.service_actions()
        with self._open_lock:
            self._open[request] = time.monotonic()
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._open_lock:
                self._open.pop(request, None)
            self._slots.release()

    def service_actions(self) -> None:
        """Cut connections past the deadline; called between accepts and while all workers are busy."""
        self._cut(time.monotonic() - self.deadline)

    def _cut(self, before: float) -> None:
        with self._open_lock:
            for request, since in self._open.items():
                if since < before:
                    with contextlib.suppress(OSError):  # it closed by itself meanwhile
                        request.shutdown(socket.SHUT_RDWR)

    def drain(self, seconds: float) -> None:
        """Give answers under way this long, cut what is left, and wait for the workers."""
        limit = time.monotonic() + seconds
        for grace in (limit, limit + seconds):
            while self._open and time.monotonic() < grace:
                time.sleep(0.005)
            self._cut(float("inf"))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stay silent: the standard version prints tracebacks, and those can print request data."""


class _Refused(Exception):
    """Not an error of the program: an answer."""

    def __init__(self, status: HTTPStatus, code: Code, message: str) -> None:
        self.status = status
        self.code = code
        self.message = message
        super().__init__(message)


class _Handler(BaseHTTPRequestHandler):
    server: _HttpServer
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(self.server.read_timeout)

    def version_string(self) -> str:
        """The `Server` header: no versions, of us or of Python."""
        return "glasshouse"

    def do_GET(self) -> None:
        routes: dict[str, Callable[[], object]] = {
            "/.well-known/jwks.json": self.server.broker.jwks,
            "/healthz": lambda: {"ok": True},
        }
        if self.path in routes:
            self._answer(HTTPStatus.OK, routes[self.path]())
        elif self.path in ("/v1/challenge", "/v1/attest"):
            self._refuse(_Refused(HTTPStatus.METHOD_NOT_ALLOWED, Code.METHOD_NOT_ALLOWED, "use POST"))
        else:
            self._refuse(_Refused(HTTPStatus.NOT_FOUND, Code.NOT_FOUND, "no such resource"))

    def do_POST(self) -> None:
        try:
            answer: Answer
            if self.path == "/v1/challenge":
                (request,) = self._body("request")
                answer = {"challenge": self.server.broker.challenge(request)}
            elif self.path == "/v1/attest":
                release = self.server.broker.attest(*self._body("evidence", "launchToken"))
                answer = {"ear": release.ear, "grant": release.grant}
            elif self.path == "/v1/card" and self.server.desk is not None:
                self._body()
                answer = {"card": self.server.desk.card()}
            elif self.path == "/v1/operate" and self.server.desk is not None:
                answer = self.server.desk.operate(*self._body("request"))
            elif self.path in ("/.well-known/jwks.json", "/healthz"):
                raise _Refused(HTTPStatus.METHOD_NOT_ALLOWED, Code.METHOD_NOT_ALLOWED, "use GET")
            else:
                raise _Refused(HTTPStatus.NOT_FOUND, Code.NOT_FOUND, "no such resource")
        except _Refused as refused:
            self._refuse(refused)
        except AttestationError as error:
            self._answer(HTTPStatus.FORBIDDEN, _error("refused", error.what, error.codes))
        except (GlasshouseError, ValueError):
            self._refuse(_Refused(HTTPStatus.INTERNAL_SERVER_ERROR, Code.INTERNAL_ERROR, "the broker failed"))
        except OSError:
            self.close_connection = True  # the peer went away or was cut at the deadline
        except Exception:  # noqa: BLE001  (a database error, say: answered without its text, which may quote data)
            self._refuse(_Refused(HTTPStatus.INTERNAL_SERVER_ERROR, Code.INTERNAL_ERROR, "the broker failed"))
        else:
            self._answer(HTTPStatus.OK, answer)

    def _body(self, *names: str) -> tuple[object, ...]:
        """Read a JSON object with exactly these names; its values in this order, of whatever type."""
        if "Transfer-Encoding" in self.headers:
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, Code.LENGTH_REQUIRED, "chunked bodies are not taken")
        lengths = self.headers.get_all("Content-Length") or []
        if len(lengths) != 1 or not (lengths[0].isascii() and lengths[0].isdigit() and len(lengths[0]) <= 9):
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, Code.LENGTH_REQUIRED, "one Content-Length is needed")
        length = int(lengths[0])
        if length > MAX_BODY_BYTES:
            raise _Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, Code.BODY_TOO_LARGE, f"more than {MAX_BODY_BYTES} bytes"
            )
        # A browser sends this type across origins only after asking, and we answer no preflight.
        if self.headers.get_content_type() != "application/json":
            raise _Refused(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE, Code.UNSUPPORTED_MEDIA_TYPE, "send application/json"
            )
        raw = self.rfile.read(length)
        if len(raw) != length:
            raise _Refused(
                HTTPStatus.BAD_REQUEST, Code.MALFORMED_REQUEST, "the body is shorter than announced"
            )
        try:
            body = parse_json(raw, max_bytes=MAX_BODY_BYTES)
        except CanonicalError as error:
            raise _Refused(
                HTTPStatus.BAD_REQUEST, Code.MALFORMED_REQUEST, "the body is no strict JSON"
            ) from error
        if not isinstance(body, dict) or set(body) != set(names):
            raise _Refused(HTTPStatus.BAD_REQUEST, Code.MALFORMED_REQUEST, f"send exactly {', '.join(names)}")
        return tuple(body[name] for name in names)

    def _refuse(self, refused: _Refused) -> None:
        self._answer(refused.status, _error(refused.code, refused.message, (refused.code,)))

    def _answer(self, status: HTTPStatus, document: object) -> None:
        body = canonical_json(document)
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Connection", "close")  # one request a connection: nothing to smuggle behind
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            pass  # the peer went away; what happened is recorded already
        self.close_connection = True

    def send_error(
        self,
        code: int,
        message: str | None = None,  # noqa: ARG002  (it may quote the request)
        explain: str | None = None,  # noqa: ARG002
    ) -> None:
        """Answer what http.server itself refuses (a bad request line, an unknown method) in JSON too."""
        status = HTTPStatus(code)
        name = Code.METHOD_NOT_ALLOWED if status is HTTPStatus.NOT_IMPLEMENTED else Code.MALFORMED_REQUEST
        self._refuse(_Refused(status, name, status.phrase))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (http.server's signature)
        """Stay silent: the audit log is the store's."""


def _error(code: str, message: str, reason_codes: tuple[str, ...]) -> dict[str, dict[str, str | list[str]]]:
    return {"error": {"code": code, "reasonCodes": list(reason_codes), "message": message}}
