"""An operator at a broker in another process: what it may ask, and what nobody else can read or repeat."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glasshouse.attestation.broker import Broker
from glasshouse.attestation.client import post
from glasshouse.attestation.operator import CARD_TYP, REQUEST_TYP, Desk, RemoteBroker
from glasshouse.attestation.server import serve
from glasshouse.attestation.stage import STRICT, StagedLaunch, synthetic_reference
from glasshouse.attestation.store import Store
from glasshouse.attestation.tokens import envelope, key_id, public_bytes_of, read_jws, sign_jws
from glasshouse.canonical import b64u, b64u_decode, canonical_json
from glasshouse.errors import AttestationError

OPERATOR, ANOTHER, STRANGER, BROKER = (Ed25519PrivateKey.generate() for _ in range(4))
LISTED = {key_id(public): public for public in map(public_bytes_of, (OPERATOR, ANOTHER))}
REFERENCE = synthetic_reference("run")
PAYLOAD_KEY = bytes(range(1, 33))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Broker, int]]:
    with Store(f"sqlite:///{tmp_path / 'broker.db'}", bytes(32)) as store:
        broker = Broker(store, BROKER)
        with serve(broker, desk=Desk(broker, BROKER, LISTED.get)) as server:
            yield broker, server.port


def remote(port: int, key: Ed25519PrivateKey = OPERATOR) -> RemoteBroker:
    return RemoteBroker(port, key, lambda _kid: public_bytes_of(BROKER))


def codes_of(call: Callable[[], object]) -> tuple[str, ...]:
    with pytest.raises(AttestationError) as error:
        call()
    return error.value.codes


def test_a_package_a_ticket_and_an_exchange_through_another_process_s_broker(
    served: tuple[Broker, int],
) -> None:
    broker, port = served
    asked = remote(port)
    asked.register_payload("run", REFERENCE.manifest_hash, PAYLOAD_KEY, max_grants=2)
    ticket = asked.issue_ticket(REFERENCE, STRICT)
    assert asked.exchange("run", "s000", 1) is None
    launch = StagedLaunch(port, asked.public_bytes, REFERENCE, STRICT, ticket, PAYLOAD_KEY)
    launch.honest()  # ends with the payload key in hand
    assert broker.store.unwrap_calls == 1
    found = asked.exchange("run", "s000", 1)
    assert found is not None
    assert (found.evidence, found.reason_codes) == (launch.evidence, ())


def test_nobody_else_may_ask(served: tuple[Broker, int]) -> None:
    broker, port = served
    assert codes_of(lambda: remote(port, STRANGER).exchange("run", "s000", 1)) == ("operator-unknown",)
    stranger = remote(port, STRANGER)
    call = lambda: stranger.register_payload("run", "m" * 64, PAYLOAD_KEY, max_grants=1)  # noqa: E731
    assert codes_of(call) == ("operator-unknown",)
    assert not broker.store.has_payload("run", "m" * 64)


def test_one_operator_gets_no_ticket_for_anothers_package(served: tuple[Broker, int]) -> None:
    broker, port = served
    remote(port).register_payload("run", REFERENCE.manifest_hash, PAYLOAD_KEY, max_grants=2)
    thief = remote(port, ANOTHER)
    for call in (
        lambda: thief.issue_ticket(REFERENCE, STRICT),
        lambda: thief.exchange("run", "s000", 1),
        lambda: thief.register_payload("run", "0" * 64, PAYLOAD_KEY, max_grants=2),
    ):
        assert codes_of(call) == ("operator-mismatch",)
    assert [line.event for line in broker.store.audit_log()] == ["payload-registered"]
    thief.register_payload("another", REFERENCE.manifest_hash, PAYLOAD_KEY, max_grants=2)
    # Nor after a restart, when the broker no longer knows whose it was.
    with serve(broker, desk=Desk(broker, BROKER, LISTED.get)) as again:
        late = remote(again.port, ANOTHER)
        assert codes_of(lambda: late.issue_ticket(REFERENCE, STRICT)) == ("operator-mismatch",)
        call = partial(late.register_payload, "run", REFERENCE.manifest_hash, PAYLOAD_KEY, max_grants=2)
        assert codes_of(call) == ("payload-registered",)
        late.register_payload("run", "0" * 64, PAYLOAD_KEY, max_grants=2)
        assert codes_of(lambda: late.issue_ticket(REFERENCE, STRICT)) == ("operator-mismatch",)


def test_a_broker_that_the_keyring_does_not_list_is_given_nothing(served: tuple[Broker, int]) -> None:
    with pytest.raises(AttestationError) as error:
        RemoteBroker(served[1], OPERATOR, lambda _kid: public_bytes_of(STRANGER))
    assert error.value.codes == ("key-id-mismatch",)


@pytest.mark.parametrize("lacking", ["ticket", "forward"])
def test_a_broker_of_another_release_is_given_nothing(tmp_path: Path, lacking: str) -> None:
    """Its store is opened as it is; what it does not share is how a ticket is used, or a forward begins."""

    class Older(Desk):
        def card(self) -> str:
            claims = dict(read_jws(super().card(), CARD_TYP, what="card").claims)
            del claims[lacking]
            return sign_jws(claims, BROKER, CARD_TYP)

    with Store(f"sqlite:///{tmp_path / 'broker.db'}", bytes(32)) as store:
        broker = Broker(store, BROKER)
        with serve(broker, desk=Older(broker, BROKER, LISTED.get)) as server:
            assert codes_of(lambda: remote(server.port)) == ("broker-protocol-mismatch",)


def test_without_a_desk_nobody_may_ask(served: tuple[Broker, int]) -> None:
    with serve(served[0]) as bare:
        assert codes_of(lambda: remote(bare.port)) == ("not-found",)


def _request(audience: str, at: int | None = None, typ: str = REQUEST_TYP, **fields: Any) -> str:
    claims = envelope(OPERATOR, audience, int(time.time()) if at is None else at, 60)
    return sign_jws({**claims, **fields}, OPERATOR, typ)


def test_requests_are_for_one_store_one_minute_and_one_purpose(served: tuple[Broker, int]) -> None:
    broker, port = served
    ask = {"action": "exchange", "run": "run", "leg": "s000", "launch": 1}
    good = _request(broker.store.id, **ask)
    remote(port).register_payload("run", REFERENCE.manifest_hash, PAYLOAD_KEY, max_grants=2)
    assert post(port, "/v1/operate", {"request": good}, 10).members == {"exchange": None}
    now = int(time.time())
    for request, code in (
        (_request("0" * 32, **ask), "request-audience-mismatch"),
        (_request(broker.store.id, now - 61, **ask), "request-expired"),
        (_request(broker.store.id, now + 60, **ask), "request-not-yet-valid"),
        (_request(broker.store.id, typ="gh-grant+jwt", **ask), "token-type-mismatch"),
        (_request(broker.store.id, **{**ask, "action": "unwrap"}), "malformed-request"),
        (_request(broker.store.id, action="ticket"), "malformed-request"),
        (_request(broker.store.id, action="payload", run="run", manifest_hash="m", max_grants=True, key="AA"),
         "malformed-request"),
        (good[:-6] + "AAAAAA", "malformed-request"),
        (5, "malformed-request"),
    ):  # fmt: skip
        found = codes_of(lambda request=request: post(port, "/v1/operate", {"request": request}, 10))
        assert found in {(code,), ("request-signature-invalid",)}, (code, found)


@pytest.mark.parametrize(
    ("times", "code"),
    [
        ({}, None),
        ({"iat": -59, "nbf": -59, "exp": 1}, None),
        ({"exp": 61}, "request-lifetime-exceeded"),
        ({"iat": -1, "nbf": -1, "exp": 60}, "request-lifetime-exceeded"),
        ({"exp": 10**9}, "request-lifetime-exceeded"),
        ({"iat": -(10**9), "exp": 1}, "request-lifetime-exceeded"),
        ({"iat": 1, "exp": 61}, "request-not-yet-valid"),
        ({"nbf": 1}, "request-not-yet-valid"),
        ({"iat": -60, "nbf": -60, "exp": 0}, "request-expired"),
    ],
)
def test_a_request_is_valid_for_a_minute_however_it_is_dated(
    tmp_path: Path, times: dict[str, int], code: str | None
) -> None:
    """Its sender dates it SKEW_SEC back, which is how far its clock may be ahead: a later date is refused."""
    now = 1_800_000_000
    with Store(f"sqlite:///{tmp_path / 'broker.db'}", bytes(32)) as store:
        broker = Broker(store, BROKER)
        desk = Desk(broker, BROKER, LISTED.get, clock=lambda: now + 0.5)
        broker.register_payload("run", REFERENCE.manifest_hash, PAYLOAD_KEY, max_grants=2)
        desk._owners["run", REFERENCE.manifest_hash] = key_id(public_bytes_of(OPERATOR))
        shifted = {"iat": now, "nbf": now, "exp": now + 60}
        shifted |= {name: now + seconds for name, seconds in times.items()}
        ask = {"action": "exchange", "run": "run", "leg": "s000", "launch": 1}
        request = _request(store.id, now, **shifted, **ask)
        if code is None:
            assert desk.operate(request) == {"exchange": None}
        else:
            assert codes_of(lambda: desk.operate(request)) == (code,)


_NOW = 1_800_000_000
_TIME = st.integers(_NOW - 70, _NOW + 70) | st.integers(-(2**53) + 1, 2**53 - 1) | st.none() | st.booleans()


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.fixed_dictionaries({}, optional={"iat": _TIME, "nbf": _TIME, "exp": _TIME}))
def test_whatever_its_times_a_request_is_done_within_its_minute_or_refused(
    desk: Desk, times: dict[str, int | None]
) -> None:
    ask = {"action": "exchange", "run": "run", "leg": "s000", "launch": 1}
    claims: dict[str, Any] = envelope(OPERATOR, desk._broker.store.id, _NOW, 60)
    request = sign_jws({**claims, **ask, **times}, OPERATOR, REQUEST_TYP)
    iat, nbf, exp = ({**claims, **times}[name] for name in ("iat", "nbf", "exp"))
    whole = all(type(value) is int for value in (iat, nbf, exp))
    if whole and iat <= _NOW and nbf <= _NOW < exp <= iat + 60:
        assert desk.operate(request) == {"exchange": None}
    else:
        assert codes_of(lambda: desk.operate(request))


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A desk at _NOW, with a package of OPERATOR's."""
    with Store(f"sqlite:///{tmp_path / 'broker.db'}", bytes(32)) as store:
        broker = Broker(store, BROKER)
        broker.register_payload("run", REFERENCE.manifest_hash, PAYLOAD_KEY, max_grants=2)
        made = Desk(broker, BROKER, LISTED.get, clock=lambda: _NOW)
        made._owners["run", REFERENCE.manifest_hash] = key_id(public_bytes_of(OPERATOR))
        yield made


@contextmanager
def tapped(port: int) -> Iterator[tuple[int, list[tuple[str, dict[str, Any], dict[str, Any]]]]]:
    """Somebody between operator and broker: the port there, and (path, request, answer) of what went by."""
    seen: list[tuple[str, dict[str, Any], dict[str, Any]]] = []

    class Tap(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, body, post(port, self.path, body, 10).members))
            answer = canonical_json(seen[-1][2])
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Tap) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_address[1], seen
        finally:
            server.shutdown()
            thread.join()


def test_what_is_secret_is_sealed_on_the_way_and_a_repeated_request_gets_nothing(
    served: tuple[Broker, int],
) -> None:
    port = served[1]
    with tapped(port) as (tap, seen):
        asked = remote(tap)
        asked.register_payload("run", REFERENCE.manifest_hash, PAYLOAD_KEY, max_grants=2)
        ticket = asked.issue_ticket(REFERENCE, STRICT)
    inner = [b64u_decode(body["request"].split(".")[1]) for _, body, _ in seen[1:]]
    wire = b"".join([*inner, *(canonical_json([body, answer]) for _, body, answer in seen)])
    assert REFERENCE.manifest_hash.encode() in wire  # the search finds what is there to be found
    for secret in (PAYLOAD_KEY, ticket):
        assert b64u(secret).encode() not in wire
        assert secret.hex().encode() not in wire
    again = [body for _, body, _ in seen[1:]]
    repeated = [codes_of(lambda body=body: post(port, "/v1/operate", body, 10)) for body in again]
    assert repeated == [("payload-registered",), ("ticket-issued",)]
