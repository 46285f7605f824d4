"""Slow and many connections: they cost whoever makes them, and nobody else."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from glasshouse.attestation.broker import Broker
from glasshouse.attestation.forwards import opening_line
from glasshouse.attestation.front import Limits
from glasshouse.attestation.http_message import MAX_BODY_BYTES
from glasshouse.attestation.operator import Desk, RemoteBroker
from glasshouse.attestation.server import serve
from glasshouse.attestation.stage import STRICT, StagedLaunch, synthetic_reference
from glasshouse.attestation.store import Store
from glasshouse.attestation.tokens import key_id, public_bytes_of

OPERATOR, BROKER = (Ed25519PrivateKey.generate() for _ in range(2))
LISTED = {key_id(public): public for public in (public_bytes_of(OPERATOR),)}
# Nothing here ends by a deadline but what a test gives a short one.
PATIENT = Limits(head_sec=120, request_sec=120, answer_sec=120)
HEAD = b"POST /v1/challenge HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
SOON = 60.0  # seconds; a bound for a machine that has much else to do


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Store(f"sqlite:///{tmp_path / 'broker.db'}", bytes(32)) as store:
        yield Broker(store, BROKER)


@contextlib.contextmanager
def served(broker: Broker, limits: Limits = PATIENT, **more: Any) -> Iterator[int]:
    with serve(broker, desk=Desk(broker, BROKER, LISTED.get), limits=limits, **more) as server:
        yield server.port


def asked(port: int) -> RemoteBroker:
    return RemoteBroker(port, OPERATOR, lambda _kid: public_bytes_of(BROKER))


class Forwarding:
    """Carries connections to the broker as an operator's forward does: with a line in front."""

    def __init__(self, port: int, ticket: bytes) -> None:
        self._broker, self._opening = port, opening_line(ticket)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self._threads: list[threading.Thread] = []
        self._socks: list[socket.socket] = []
        self._acceptor = threading.Thread(target=self._accept)

    def __enter__(self) -> Forwarding:
        self._acceptor.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self._listener.close()
        for thread in self._threads:
            thread.join()
        for sock in self._socks:
            sock.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                here, _ = self._listener.accept()
                there = socket.create_connection(("127.0.0.1", self._broker))
                self._socks += [here, there]
                there.sendall(self._opening)
                for pair in ((here, there), (there, here)):
                    thread = threading.Thread(target=self._pump, args=pair)
                    self._threads.append(thread)
                    thread.start()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for sock, how in ((sink, socket.SHUT_WR), (source, socket.SHUT_RD)):
            with contextlib.suppress(OSError):
                sock.shutdown(how)


def connected(port: int, *pieces: bytes) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=SOON)
    for piece in pieces:
        sock.sendall(piece)
    return sock


def told(sock: socket.socket) -> tuple[int, list[str]]:
    """Status and reason codes of what a connection was answered; (0, []) where it was cut without a word."""
    chunks = []
    with contextlib.suppress(ConnectionResetError):
        while data := sock.recv(65536):
            chunks.append(data)
    head, _, body = b"".join(chunks).partition(b"\r\n\r\n")
    if not head:
        return 0, []
    return int(head.split()[1]), json.loads(body).get("error", {}).get("reasonCodes", [])


def status(port: int, opening: bytes = b"", path: str = "/healthz", method: str = "GET") -> tuple[int, Any]:
    line = f"{method} {path} HTTP/1.1\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\r\n{{}}"
    with connected(port, opening, line.encode()) as sock:
        return told(sock)


def slowly(kind: str) -> bytes:
    """What a slow peer sends before it sends no more."""
    return {
        "silent": b"",
        "head": HEAD[:20],
        "body": HEAD + b"Content-Length: 60000\r\n\r\n{",
        "line": b"GLASSHOUSE-FORW",
    }[kind]


@pytest.mark.parametrize("kind", ["silent", "head", "body"])
def test_forty_slow_connections_of_one_machine_starve_neither_another_nor_the_operator(
    broker: Broker, kind: str
) -> None:
    with served(broker) as port, contextlib.ExitStack() as until:
        operator = asked(port)
        launches = {}
        for run in ("slow", "honest"):
            reference = synthetic_reference(run)
            operator.register_payload(run, reference.manifest_hash, bytes(range(1, 33)), max_grants=3)
            launches[run] = operator.issue_ticket(reference, STRICT)
        for _ in range(40):
            sock = connected(port, opening_line(launches["slow"]), slowly(kind))
            until.callback(sock.close)
        # The other's exchange, through a forward of its own, ends with the payload key in hand.
        forward = until.enter_context(Forwarding(port, launches["honest"]))
        launch = StagedLaunch(
            forward.port, operator.public_bytes, synthetic_reference("honest"), STRICT, launches["honest"],
            bytes(range(1, 33)),
        )  # fmt: skip
        launch.honest()
        # The operator registers, gets tickets and reads what was recorded.
        found = asked(port).exchange("slow", "s000", 1), operator.exchange("honest", "s000", 1)
        assert found[0] is None
        assert found[1] is not None
        assert found[1].evidence == launch.evidence
        # And the slow machine's own supervisor is served, too: what is unfinished longest makes room.
        own = until.enter_context(Forwarding(port, launches["slow"]))
        StagedLaunch(
            own.port, operator.public_bytes, synthetic_reference("slow"), STRICT, launches["slow"],
            bytes(range(1, 33)),
        ).honest()  # fmt: skip


@pytest.mark.parametrize("kind", ["silent", "head", "body", "line"])
def test_slow_strangers_starve_nobody(broker: Broker, kind: str) -> None:
    with served(broker) as port, contextlib.ExitStack() as until:
        for _ in range(PATIENT.strangers + 20):
            until.callback(connected(port, slowly(kind)).close)
        operator = asked(port)
        operator.register_payload("run", "m" * 64, bytes(range(1, 33)), max_grants=1)
        assert status(port) == (200, [])


def test_an_allocation_has_so_many_connections_and_the_longest_unfinished_makes_room(broker: Broker) -> None:
    forwards = [bytes([number]) * 32 for number in range(3)]
    broker.forwards.add(forwards[0], "run", "one")
    broker.forwards.add(forwards[1], "run", "one")  # the next launch on the same machine
    broker.forwards.add(forwards[2], "run", "another")
    with served(broker) as port, contextlib.ExitStack() as until:
        other = until.enter_context(connected(port, opening_line(forwards[2]), HEAD))
        socks = []
        for number in range(PATIENT.per_allocation + 2):
            sock = until.enter_context(connected(port, opening_line(forwards[number % 2]), HEAD))
            socks.append(sock)
            if number >= PATIENT.per_allocation:
                assert told(socks[number - PATIENT.per_allocation]) == (503, ["broker-busy"])
        for sock in (*socks[2:], other):  # all others are still waited for
            sock.sendall(b"Content-Length: 0\r\n\r\n")
            assert told(sock) == (400, ["malformed-request"])


def test_all_allocations_together_have_a_limit_and_who_has_most_makes_room(broker: Broker) -> None:
    limits = Limits(head_sec=120, request_sec=120, named=4, per_allocation=3)
    for number in range(3):
        broker.forwards.add(bytes([number]) * 32, f"run-{number}", "machine")
    lines = [opening_line(bytes([number]) * 32) for number in range(3)]
    with served(broker, limits) as port, contextlib.ExitStack() as until:
        greedy = [until.enter_context(connected(port, lines[0], HEAD)) for _ in range(3)]
        modest = until.enter_context(connected(port, lines[1], HEAD))
        # Each is asked for something small, so that all are known to have been counted before the next comes.
        assert status(port) == (200, [])
        late = until.enter_context(connected(port, lines[2], HEAD))
        assert told(greedy[0]) == (503, ["broker-busy"])
        for sock in (modest, late, *greedy[1:]):
            sock.sendall(b"Content-Length: 0\r\n\r\n")
            assert told(sock) == (400, ["malformed-request"])


def test_what_a_forward_carries_reaches_no_path_of_the_operators(broker: Broker) -> None:
    broker.forwards.add(bytes(32), "run", "machine")
    with served(broker) as port:
        for line in (opening_line(bytes(32)), opening_line(b"\x01" * 32)):  # one known, one not
            for path in ("/v1/operate", "/v1/card"):
                assert status(port, line, path, "POST") == (404, ["not-found"])
            assert status(port, line) == (200, [])
        assert status(port, b"", "/v1/card", "POST") == (200, [])


def test_forwards_that_are_not_known_share_one_limit(broker: Broker) -> None:
    """After a restart, say: the broker's new opening knows none of the tickets behind them."""
    with served(broker) as port, contextlib.ExitStack() as until:
        socks = []
        for number in range(PATIENT.per_allocation + 1):
            line = opening_line(bytes([number]) * 32)
            socks.append(until.enter_context(connected(port, line, HEAD)))
        assert told(socks[0]) == (503, ["broker-busy"])
        assert status(port) == (200, [])


@pytest.mark.parametrize(
    ("limits", "sent"),
    [
        (Limits(head_sec=0.3, request_sec=120), HEAD),
        (Limits(head_sec=0.3, request_sec=120), b""),
        (Limits(head_sec=0.2, request_sec=0.4), HEAD + b"Content-Length: 60000\r\n\r\n{"),
    ],
)
def test_a_head_and_a_whole_request_have_a_time_and_are_told_so(
    broker: Broker, limits: Limits, sent: bytes
) -> None:
    with served(broker, limits) as port, connected(port, sent) as sock:
        assert told(sock) == (408, ["request-timeout"])


def test_a_drip_in_the_body_is_cut_although_each_byte_comes_soon(broker: Broker) -> None:
    stop = threading.Event()
    with served(broker, Limits(head_sec=5, request_sec=0.5)) as port:
        sock = connected(port, HEAD + b"Content-Length: 60000\r\n\r\n")

        def drip() -> None:
            with contextlib.suppress(OSError):
                while not stop.wait(0.02):
                    sock.sendall(b" ")

        thread = threading.Thread(target=drip)
        thread.start()
        found = told(sock)
        stop.set()
        thread.join()
        sock.close()
    assert found in ((408, ["request-timeout"]), (0, []))  # a byte on the way when it was cut takes the words


def test_a_peer_that_takes_no_answer_holds_no_worker(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers larger than any buffer on the way, which is more than the broker has to say."""
    large = {"keys": ["x" * 10_000_000]}
    monkeypatch.setattr(broker, "jwks", lambda: large)
    ask = b"GET /.well-known/jwks.json HTTP/1.1\r\n\r\n"
    with served(broker, workers=1) as port, contextlib.ExitStack() as until:
        for _ in range(2):
            sock = socket.socket()
            until.callback(sock.close)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", port))
            sock.sendall(ask)
        assert status(port) == (200, [])


def test_a_refusal_is_read_by_who_is_still_sending(broker: Broker) -> None:
    """Were the connection closed at once, what comes behind would take the refusal with it."""
    with served(broker) as port:
        for _ in range(20):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SOON)
            body = b" " * (MAX_BODY_BYTES * 8)
            connection.request("POST", "/v1/attest", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            assert answer.status == 413
            assert json.loads(answer.read())["error"]["code"] == "body-too-large"
            connection.close()


def test_the_operators_and_allocations_have_workers_of_their_own(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strangers' requests that take long to answer keep neither waiting."""
    held, free = threading.Event(), threading.Event()

    def hold() -> dict[str, Any]:
        held.set()
        free.wait(SOON)
        return {"keys": []}

    monkeypatch.setattr(broker, "jwks", hold)
    broker.forwards.add(bytes(32), "run", "machine")
    with served(broker, workers=1) as port, contextlib.ExitStack() as until:
        until.callback(free.set)
        for _ in range(5):
            sock = connected(port, b"GET /.well-known/jwks.json HTTP/1.1\r\n\r\n")
            until.callback(sock.close)
        assert held.wait(SOON)
        asked(port).register_payload("run", "m" * 64, bytes(range(1, 33)), max_grants=1)
        assert status(port, opening_line(bytes(32))) == (200, [])


def test_connections_are_gone_when_the_server_is(broker: Broker) -> None:
    with served(broker) as port:
        sock = connected(port, HEAD)
        assert status(port) == (200, [])
    assert told(sock) == (0, [])
    sock.close()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("broker-")]
