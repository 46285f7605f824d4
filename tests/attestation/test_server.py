"""The HTTP server: bounded in size, time and workers, JSON whatever comes in."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glasshouse.attestation.front import Limits
from glasshouse.attestation.http_message import MAX_BODY_BYTES
from glasshouse.attestation.server import serve
from glasshouse.attestation.stage import Stage


def _raw(port: int, data: bytes, timeout: float = 10) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout) as peer:
        try:
            peer.sendall(data)
            peer.shutdown(socket.SHUT_WR)
            chunks = []
            while chunk := peer.recv(65536):
                chunks.append(chunk)
        except (ConnectionResetError, BrokenPipeError):
            pass  # refused before it had read everything
        return b"".join(chunks) if chunks else b""


def _request(port: int, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        assert response.headers["Content-Type"] == "application/json"
        assert response.headers["Cache-Control"] == "no-store"
        assert response.headers["Server"] == "glasshouse"
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def test_health_and_keys(stage: Stage) -> None:
    assert _request(stage.port, "GET", "/healthz") == (200, {"ok": True})
    status, keys = _request(stage.port, "GET", "/.well-known/jwks.json")
    assert status == 200
    assert [key["kid"] for key in keys["keys"]] == [stage.broker.id]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "not-found"),
        ("POST", "/", 404, "not-found"),
        ("GET", "/v1/challenge", 405, "method-not-allowed"),
        ("GET", "/v1/attest", 405, "method-not-allowed"),
        ("POST", "/healthz", 405, "method-not-allowed"),
        ("GET", "/healthz?x=1", 404, "not-found"),
        ("PUT", "/v1/attest", 501, "method-not-allowed"),
        ("OPTIONS", "/v1/attest", 501, "method-not-allowed"),
        ("BREW", "/", 501, "method-not-allowed"),
    ],
)
def test_wrong_places_are_json_errors(stage: Stage, method: str, path: str, status: int, code: str) -> None:
    got, answer = _request(stage.port, method, path, b"{}" if method == "POST" else None)
    assert got == status
    assert answer["error"]["code"] == code
    assert answer["error"]["reasonCodes"] == [code]
    assert answer["error"]["message"]


def test_a_refusal_names_its_reasons(stage: Stage) -> None:
    body = json.dumps({"request": ""}).encode()
    headers = {"Content-Type": "application/json"}
    assert _request(stage.port, "POST", "/v1/challenge", body, **headers) == (
        403,
        {
            "error": {
                "code": "refused",
                "message": "request is no compact JWS",
                "reasonCodes": ["malformed-request"],
            }
        },
    )


def test_two_lengths_are_refused(stage: Stage) -> None:
    request = b"POST /v1/attest HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}"
    assert b" 411 " in _raw(stage.port, request).split(b"\r\n")[0]


def test_one_request_a_connection(stage: Stage) -> None:
    two = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 2
    assert _raw(stage.port, two).count(b"HTTP/1.1 200") == 1


def test_a_body_at_the_limit_is_read(stage: Stage) -> None:
    body = b'{"evidence":"' + b"x" * (MAX_BODY_BYTES - 33) + b'","launchToken":""}'
    assert len(body) <= MAX_BODY_BYTES
    status, answer = _request(
        stage.port, "POST", "/v1/attest", body, **{"Content-Type": "application/json; charset=utf-8"}
    )
    assert (status, answer["error"]["reasonCodes"]) == (403, ["malformed-evidence"])


def test_a_database_fault_is_answered_without_its_text(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise LookupError("a row with a secret in it")

    monkeypatch.setattr(stage.broker, "challenge", fail)
    body = b'{"request":""}'
    status, answer = _request(
        stage.port, "POST", "/v1/challenge", body, **{"Content-Type": "application/json"}
    )
    assert status == 500
    assert answer["error"]["code"] == "internal-error"
    assert "secret" not in json.dumps(answer)


def test_a_silent_peer_does_not_hold_a_worker(stage: Stage) -> None:
    with serve(stage.broker, workers=2) as server:
        silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(4)]
        started = time.monotonic()
        assert _request(server.port, "GET", "/healthz")[0] == 200
        assert time.monotonic() - started < 3
        for peer in silent:
            peer.close()


def test_a_drip_of_bytes_is_cut_at_the_deadline(stage: Stage) -> None:
    """Each byte comes soon after the one before; only the deadline of the whole head ends it."""
    with serve(stage.broker, workers=1, limits=Limits(head_sec=0.5)) as server:
        stop = threading.Event()
        cut = threading.Event()

        def drip() -> None:
            with socket.create_connection(("127.0.0.1", server.port)) as peer:
                try:
                    while not stop.wait(0.05):
                        peer.sendall(b"G")
                except OSError:
                    cut.set()

        thread = threading.Thread(target=drip)
        thread.start()
        time.sleep(0.2)
        assert _request(server.port, "GET", "/healthz")[0] == 200
        assert cut.wait(5)
        stop.set()
        thread.join()


def test_workers_are_bounded(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, most = [0], [0]
    lock = threading.Lock()

    def slow() -> dict[str, Any]:
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        time.sleep(0.05)
        with lock:
            inside[0] -= 1
        return {"keys": []}

    monkeypatch.setattr(stage.broker, "jwks", slow)
    with serve(stage.broker, workers=3) as server:
        threads = [
            threading.Thread(target=_request, args=(server.port, "GET", "/.well-known/jwks.json"))
            for _ in range(12)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert most[0] == 3


def test_nothing_is_left_after_the_block(stage: Stage) -> None:
    with serve(stage.broker) as server:
        port = server.port
        assert _request(port, "GET", "/healthz")[0] == 200
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 1)
    assert not [thread for thread in threading.enumerate() if thread.name == f"broker-http-{port}"]


@pytest.mark.parametrize(
    "line",
    [
        b"\x00\xff\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n",
    ],
)
def test_a_broken_request_is_a_json_error(stage: Stage, line: bytes) -> None:
    answer = _raw(stage.port, line)
    assert answer.endswith(b"}")
    assert b"<html" not in answer.lower()


def test_any_bytes_leave_the_server_standing(stage: Stage) -> None:
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.binary(max_size=200), st.sampled_from([b"", b"POST /v1/attest HTTP/1.1\r\n"]))
    def fuzz(data: bytes, head: bytes) -> None:
        _raw(stage.port, head + data)

    fuzz()
    assert _request(stage.port, "GET", "/healthz")[0] == 200


def test_any_json_body_is_answered(stage: Stage) -> None:
    value = st.none() | st.booleans() | st.integers() | st.text(max_size=20)
    fields = st.sampled_from(["request", "ticket", "run", "evidence", "launchToken", "x"])

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.dictionaries(fields, value, max_size=5), st.sampled_from(["/v1/attest", "/v1/challenge"]))
    def fuzz(body: dict[str, Any], path: str) -> None:
        headers = {"Content-Type": "application/json"}
        status, answer = _request(stage.port, "POST", path, json.dumps(body).encode(), **headers)
        assert status in (400, 403)
        assert answer["error"]["reasonCodes"]

    fuzz()


@pytest.mark.parametrize("request_", [None, 1, "\ud800", ["x"], "e30.e30.AAAA", "." * 60_000])
def test_any_request_is_answered(stage: Stage, request_: object) -> None:
    body = json.dumps({"request": request_}).encode()
    status, answer = _request(
        stage.port, "POST", "/v1/challenge", body, **{"Content-Type": "application/json"}
    )
    assert status == 403
    assert answer["error"]["reasonCodes"] in (["malformed-request"], ["algorithm-not-allowed"])
