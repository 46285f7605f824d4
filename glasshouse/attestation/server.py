"""HTTP on loopback in front of a broker: bounded connections, bodies, time and workers, JSON only.

    POST /v1/challenge   {"request"}                    -> {"challenge"}      request: ticket.py
    POST /v1/attest      {"evidence", "launchToken"}    -> {"ear", "grant"}
    POST /v1/card, /v1/operate                                where operators may ask: operator.py
    GET  /.well-known/jwks.json, GET /healthz

A refusal is {"error": {"code", "reasonCodes", "message"}} and says every reason: an opaque 401 helps nobody,
and the codes tell an attacker nothing that the source does not. The server only translates: every rule is
the broker's. It is reached from the pod through an SSH forward, so any process there can talk to it.

Three kinds of callers have workers of their own, so that none waits for another's: operators, allocations
(connections that came with a forward's label: forwards.py) and strangers (all others). What an allocation's
forward carries never reaches the operators' paths.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus

from glasshouse.attestation.broker import Broker
from glasshouse.attestation.front import STRANGER, Front, Limits, Workers
from glasshouse.attestation.http_message import (
    MAX_BODY_BYTES,
    Refused,
    Request,
    answer,
    error,
    malformed,
    refusal,
)
from glasshouse.attestation.operator import Answer, Desk
from glasshouse.canonical import CanonicalError, parse_json
from glasshouse.codes import Code
from glasshouse.errors import AttestationError

MAX_WORKERS = 5  # of each of three kinds: together no more than the connections that SQLAlchemy's pool has
_DRAIN_SEC = 0.5
_OPERATORS = ("/v1/card", "/v1/operate")
_FAILED = Refused(HTTPStatus.INTERNAL_SERVER_ERROR, "the broker failed", code=Code.INTERNAL_ERROR)


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
    limits: Limits | None = None,
) -> Iterator[Server]:
    """Serve `broker` from a background thread until the block ends; port 0 takes a free one.

    desk answers operators; without one nobody but the attester may ask.
    workers bounds the requests of each kind of caller that are handled at once; the others wait in order.
    """
    service = _Service(broker, desk)
    pools = [Workers(f"broker-{kind}", workers) for kind in ("operators", "allocations", "strangers")]
    operators, allocations, strangers = pools

    def choose(asked: Request | Refused, account: str) -> Workers:
        if account != STRANGER:
            return allocations
        return operators if isinstance(asked, Request) and asked.path in _OPERATORS else strangers

    front = Front(
        (host, port), service.handle, choose=choose, find=broker.forwards.find, limits=limits or Limits()
    )
    front.start()
    try:
        yield Server(host, front.port)
    finally:
        front.stop(_DRAIN_SEC)
        for pool in pools:
            pool.close(_DRAIN_SEC)


class _Service:
    """Turns requests into calls of the broker, and what comes of them into answers."""

    def __init__(self, broker: Broker, desk: Desk | None) -> None:
        self._broker = broker
        self._desk = desk

    def handle(self, asked: Request | Refused, account: str) -> bytes:
        """The answer to a request, or to what is none; raises nothing."""
        try:
            if isinstance(asked, Refused):
                raise asked
            return answer(HTTPStatus.OK, self._do(asked, account))
        except Refused as refused:
            return refusal(refused)
        except AttestationError as wrong:
            return answer(HTTPStatus.FORBIDDEN, error("refused", wrong.what, wrong.codes))
        except Exception:  # noqa: BLE001  (a database error, say: answered without its text, which may quote data)
            return refusal(_FAILED)

    def _do(self, asked: Request, account: str) -> object:
        seen: dict[str, Callable[[], object]] = {
            "/.well-known/jwks.json": self._broker.jwks,
            "/healthz": lambda: {"ok": True},
        }
        done: dict[str, Callable[[], Answer]] = {
            "/v1/challenge": lambda: self._challenge(asked, account),
            "/v1/attest": lambda: self._attest(asked, account),
        }
        if (desk := self._desk) is not None and account == STRANGER:
            done["/v1/card"] = lambda: _card(desk, asked)
            done["/v1/operate"] = lambda: desk.operate(*_body(asked, "request"))
        if asked.method not in ("GET", "POST"):
            raise Refused(HTTPStatus.NOT_IMPLEMENTED, "use GET or POST", code=Code.METHOD_NOT_ALLOWED)
        if asked.path in (done if asked.method == "GET" else seen):
            use = "POST" if asked.method == "GET" else "GET"
            raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, f"use {use}", code=Code.METHOD_NOT_ALLOWED)
        call = (seen if asked.method == "GET" else done).get(asked.path)
        if call is None:
            raise Refused(HTTPStatus.NOT_FOUND, "no such resource", code=Code.NOT_FOUND)
        return call()

    def _challenge(self, asked: Request, account: str) -> Answer:
        (request,) = _body(asked, "request")
        return {"challenge": self._broker.challenge(request, account)}

    def _attest(self, asked: Request, account: str) -> Answer:
        evidence, launch_token = _body(asked, "evidence", "launchToken")
        release = self._broker.attest(evidence, launch_token, account)
        return {"ear": release.ear, "grant": release.grant}


def _card(desk: Desk, asked: Request) -> Answer:
    _body(asked)
    return {"card": desk.card()}


def _body(asked: Request, *names: str) -> tuple[object, ...]:
    """The values of a JSON object with exactly these names, in this order, of whatever type."""
    length = asked.content_length()
    # A browser sends this type across origins only after asking, and we answer no preflight.
    kind = next(iter(asked.header("content-type")), "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send application/json", code=Code.UNSUPPORTED_MEDIA_TYPE
        )
    if len(asked.body) != length:
        raise malformed("the body is shorter than announced")
    try:
        body = parse_json(asked.body, max_bytes=MAX_BODY_BYTES)
    except CanonicalError as wrong:
        raise malformed("the body is no strict JSON") from wrong
    if not isinstance(body, dict) or set(body) != set(names):
        raise malformed(f"send exactly {', '.join(names)}")
    return tuple(body[name] for name in names)
