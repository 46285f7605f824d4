"""The client, against a broker that is down, a port that was hijacked, and clocks that disagree."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glasshouse.attestation import client
from glasshouse.attestation.client import fetch_challenge, submit_evidence
from glasshouse.attestation.stage import Stage
from glasshouse.errors import AttestationError

PUBLIC = bytes(range(32))


@contextlib.contextmanager
def hijacked(*answers: bytes) -> Iterator[int]:
    """A port that sends these bytes to whoever connects, one answer a connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        for answer in answers:
            peer, _ = listener.accept()
            with peer, peer.makefile("rb") as request, contextlib.suppress(ConnectionError):
                # The whole request, or closing would reset the connection under the answer.
                length = 0
                while (line := request.readline()).strip():
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                request.read(length)
                peer.sendall(answer)
                peer.shutdown(socket.SHUT_WR)
                while request.read(65536):
                    pass

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        thread.join()
        listener.close()


def http(body: bytes, status: int = 200) -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


def _fetch_codes(port: int, timeout: float = 5) -> tuple[str, ...]:
    with pytest.raises(AttestationError) as caught:
        fetch_challenge(port, "request", ("run", "s000", 1), PUBLIC, PUBLIC, timeout=timeout)
    return caught.value.codes


def test_no_broker_is_one_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert _fetch_codes(port) == ("broker-unreachable",)


def test_a_broker_that_never_answers_is_one_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert _fetch_codes(listener.getsockname()[1], timeout=0.2) == ("broker-unreachable",)


def test_an_answer_that_drips_is_given_up_although_each_byte_comes_soon() -> None:
    """Whoever took over the port could hold a leg, or an operator's run, for days."""
    cut = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            peer, _ = listener.accept()
            with peer:
                ends = time.monotonic() + 30
                while time.monotonic() < ends:
                    try:
                        peer.sendall(b"H")
                    except OSError:
                        cut.set()
                        return
                    time.sleep(0.02)

        thread = threading.Thread(target=drip)
        thread.start()
        assert _fetch_codes(listener.getsockname()[1], timeout=0.5) == ("broker-unreachable",)
        assert cut.wait(30)
        thread.join()


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"", "broker-unreachable"),
        (b"not http\r\n\r\n", "broker-unreachable"),
        (http(b""), "malformed-answer"),
        (http(b"[]"), "malformed-answer"),
        (http(b'{"challenge":1}'), "malformed-answer"),
        (http(b'{"challenge":"x"}'), "malformed-challenge"),
        (http(b'{"challenge":"a","challenge":"b"}'), "malformed-answer"),
        (http(b" " * (client.MAX_RESPONSE_BYTES + 1)), "malformed-answer"),
        (http(b"{}", 403), "malformed-answer"),
        (http(b'{"error":{"reasonCodes":["a-code"]}}', 403), "a-code"),
        (http(b'{"error":{"reasonCodes":[5],"code":"fallback"}}', 500), "fallback"),
        # What is shown on a terminal, and is no code:
        (http(b'{"error":{"reasonCodes":["\\u001b[31mred","No such","\\u20ac"]}}', 500), "malformed-answer"),
        (http(b'{"error":{"code":"\\u001b]0;title"}}', 500), "malformed-answer"),
        (
            b"HTTP/1.1 302 X\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 2\r\n\r\n{}",
            "malformed-answer",
        ),
    ],
)
def test_a_hijacked_port_is_not_believed(answer: bytes, code: str) -> None:
    with hijacked(answer) as port:
        assert _fetch_codes(port) == (code,)


def test_codes_of_a_refusal_are_bounded() -> None:
    codes = ["x" * 1000] * 100
    answer = http(json.dumps({"error": {"reasonCodes": codes}}).encode(), 403)
    with hijacked(answer) as port, pytest.raises(AttestationError) as caught:
        submit_evidence(port, "e", _some_challenge(), PUBLIC)
    assert len(caught.value.codes) == 64
    assert max(map(len, caught.value.codes)) == 64


def _some_challenge() -> client.Challenge:
    now = time.monotonic()
    return client.Challenge("c", "l", "n", "run", "s000", 1, "a", 1_800_000_000, now, now)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=300), st.booleans())
def test_any_answer_is_refused(data: bytes, wrapped: bool) -> None:
    with hijacked(http(data) if wrapped else data) as port:
        assert _fetch_codes(port, timeout=2)


def test_a_challenge_for_another_launch_is_refused(stage: Stage) -> None:
    """A broker that answers for the wrong launch, signed: only the client's own knowledge helps."""
    mine, other = stage.launch(), stage.launch()
    answer = http(json.dumps({"challenge": other.fetch().token}).encode())
    with hijacked(answer) as mine.port, pytest.raises(AttestationError) as caught:
        mine.fetch()
    assert caught.value.codes == ("jwt-claim-mismatch",)


def test_a_challenge_for_another_event_key_is_refused(stage: Stage) -> None:
    """Somebody had the ticket first, and lets the runtime answer what was asked in his name."""
    mine = stage.launch()
    thief = replace(mine, event_key=Ed25519PrivateKey.generate())
    answer = http(json.dumps({"challenge": thief.fetch().token}).encode())
    with hijacked(answer) as mine.port, pytest.raises(AttestationError) as caught:
        mine.fetch()
    assert caught.value.codes == ("event-key-mismatch",)


def test_the_pods_clock_is_never_asked(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    wall = time.time
    monkeypatch.setattr(client.time, "time", lambda: wall() + 86_400)
    launch = stage.launch()
    # The broker runs in this process too: give it the true clock back.
    monkeypatch.setattr(stage.broker, "_clock", wall)
    skew = launch.fetch().clock_skew_sec()
    launch.submit(launch.sign({**launch.claims(), "clock_skew_sec": skew}))
    assert launch.released is not None
    assert skew in (86_400, 86_401)


def test_claimed_time_advances_with_our_own_clock(stage: Stage) -> None:
    challenge = stage.launch().fetch()
    later = replace(challenge, asked=challenge.asked - 30, received=challenge.received - 30)
    assert later.iat() - challenge.iat() in (30, 31)
    assert challenge.judging_time() > challenge.iat()


def test_release_is_refused_for_a_contraindicated_ear(stage: Stage) -> None:
    """A broker that signs a bad result and a grant all the same: the client does not decrypt."""
    honest, refused = stage.launch(), stage.launch()
    honest.honest()
    with pytest.raises(AttestationError):
        refused.submit(refused.sign({**refused.claims(), "boot_id": "other"}))
    exchange = stage.broker.exchange(refused.reference.run, "s000", 1)
    assert exchange is not None
    assert honest.released is not None
    with pytest.raises(AttestationError) as caught:
        client.check_release(
            exchange.ear,
            honest.released.grant,
            refused.evidence,
            refused.fetch(),
            stage.broker.public_bytes,
        )
    assert caught.value.codes == ("ear-mismatch",)
