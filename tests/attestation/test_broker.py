"""The broker: order of steps, what is recorded, what is never written, and who may ask."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from glasshouse.attestation import broker as broker_module
from glasshouse.attestation.attacks import ticket_key
from glasshouse.attestation.client import submit_evidence
from glasshouse.attestation.exchange import Exchange
from glasshouse.attestation.forwards import opening_line
from glasshouse.attestation.stage import STRICT, Stage, StagedLaunch, synthetic_reference
from glasshouse.attestation.ticket import sign_request, ticket_hash
from glasshouse.attestation.tokens import (
    public_bytes_of,
    verify_challenge,
    verify_ear,
    verify_grant,
)
from glasshouse.canonical import b64u, canonical_json
from glasshouse.errors import AttestationError


def _exchange(stage: Stage, launch: StagedLaunch) -> Exchange:
    name = launch.reference
    exchange = stage.broker.exchange(name.run, name.leg, name.launch)
    assert exchange is not None
    return exchange


def _request(stage: Stage, run: str) -> str:
    where = (run, "s000", 1)
    return sign_request(bytearray(32), where, broker_id=stage.broker.id, event_key=bytes(32))


def _codes(error: pytest.ExceptionInfo[AttestationError]) -> tuple[str, ...]:
    return error.value.codes


def test_an_exchange_is_recorded_for_the_bundle(stage: Stage) -> None:
    launch = stage.launch()
    launch.honest()
    exchange = _exchange(stage, launch)
    assert set(exchange.to_json()) == {
        "ticketSha256",
        "challenge",
        "launchToken",
        "evidence",
        "ear",
        "grant",
        "reasonCodes",
    }
    assert exchange.ticket_sha256 == ticket_hash(public_bytes_of(ticket_key(launch)))
    assert exchange.evidence == launch.evidence
    assert exchange.reason_codes == ()
    at = verify_challenge(exchange.challenge, stage.broker.public_bytes).server_time
    ear = verify_ear(exchange.ear, stage.broker.public_bytes, at + 60, audience=stage.broker.store.id)
    assert ear.status == "affirming"
    assert verify_grant(exchange.grant, stage.broker.public_bytes, at + 60).where[0] == launch.reference.run


def test_a_refused_exchange_is_recorded_with_every_code_and_its_ear(stage: Stage) -> None:
    launch = stage.launch()
    claims = {**launch.claims(), "boot_id": "other", "runtime_state": "other"}
    with pytest.raises(AttestationError) as error:
        launch.submit(launch.sign(claims))
    assert _codes(error) == ("boot-id-mismatch", "runtime-state-spoofed")
    exchange = _exchange(stage, launch)
    assert exchange.grant is None
    assert exchange.reason_codes == ("boot-id-mismatch", "runtime-state-spoofed")
    ear = verify_ear(exchange.ear, stage.broker.public_bytes, stage.clock() + 1)
    assert ear.status == "contraindicated"
    assert (
        tuple(ear.token.claims["submods"]["runtime"]["ear.glasshouse.reason-codes"]) == exchange.reason_codes
    )


def test_evidence_with_a_broken_signature_spends_the_challenge(stage: Stage) -> None:
    launch = stage.launch()
    good = launch.sign(launch.claims())
    bad = f"{good.rpartition('.')[0]}.{b64u(bytes(64))}"
    with pytest.raises(AttestationError) as error:
        launch.submit(bad)
    assert _codes(error) == ("evidence-signature-invalid",)
    assert _exchange(stage, launch).reason_codes == ("evidence-signature-invalid",)
    with pytest.raises(AttestationError) as error:
        launch.submit(good)
    assert _codes(error) == ("nonce-replay",)
    assert stage.unwrap_calls == 0


def test_the_challenge_is_consumed_before_appraisal(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash inside appraisal must cost the challenge, or crashing the broker would be worth something."""
    launch = stage.launch()
    challenge = launch.fetch()
    evidence = launch.sign(launch.claims())
    seen: list[bool] = []

    def crash(*_args: object, **_kwargs: object) -> None:
        with pytest.raises(AttestationError, match="answered before"):
            stage.broker.store.consume_challenge(challenge.nonce, 1)
        seen.append(True)
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(broker_module, "appraise", crash)
        with pytest.raises(RuntimeError, match="power cut"):
            stage.broker.attest(evidence, challenge.launch_token)
    assert seen == [True]
    with pytest.raises(AttestationError) as error:
        stage.broker.attest(evidence, challenge.launch_token)
    assert _codes(error) == ("nonce-replay",)
    assert stage.unwrap_calls == 0


def test_a_crash_after_booking_loses_the_grant_and_never_doubles_it(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = stage.launch()
    challenge = launch.fetch()
    evidence = launch.sign(launch.claims())

    def crash(*_args: object) -> bytes:
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(broker_module, "sign_grant", lambda *_args, **_kwargs: crash())
        with pytest.raises(RuntimeError):
            stage.broker.attest(evidence, challenge.launch_token)
    assert stage.broker.store.grant_count(launch.reference.run) == 1
    with pytest.raises(AttestationError):
        stage.broker.attest(evidence, challenge.launch_token)
    assert stage.broker.store.grant_count(launch.reference.run) == 1


def test_one_release_for_a_hundred_requests_over_http(stage: Stage) -> None:
    launch = stage.launch()
    challenge = launch.fetch()
    evidence = launch.sign(launch.claims())

    def submit(_index: int) -> tuple[str, ...]:
        try:
            submit_evidence(launch.port, evidence, challenge, launch.broker_public)
        except AttestationError as error:
            return error.codes
        return ()

    with ThreadPoolExecutor(100) as pool:
        outcomes = list(pool.map(submit, range(100)))
    assert outcomes.count(()) == 1
    assert outcomes.count(("nonce-replay",)) == 99
    assert stage.unwrap_calls == 1
    assert stage.broker.store.grant_count(launch.reference.run) == 1


@pytest.mark.parametrize("replayed", [False, True], ids=["signed-anew", "same-bytes"])
def test_one_challenge_for_a_hundred_requests_over_http(stage: Stage, replayed: bool) -> None:
    launch = stage.launch()
    request = launch.request()

    def fetch(_index: int) -> tuple[str, ...]:
        thief = StagedLaunch(
            launch.port, launch.broker_public, launch.reference, STRICT, launch.ticket, launch.payload_key
        )
        try:
            if replayed:
                stage.post("/v1/challenge", {"request": request})
            else:
                thief.fetch()
        except AttestationError as error:
            return error.codes
        return ()

    with ThreadPoolExecutor(100) as pool:
        outcomes = list(pool.map(fetch, range(100)))
    assert outcomes.count(()) == 1
    assert outcomes.count(("ticket-used",)) == 99
    assert [line.event for line in stage.broker.store.audit_log(launch.reference.run)][
        -1
    ] == "challenge-issued"


def test_launches_at_once_each_get_their_own_key(stage: Stage) -> None:
    launches = [stage.launch() for _ in range(16)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(StagedLaunch.honest, launches))
    assert stage.unwrap_calls == 16
    assert len({launch.payload_key for launch in launches}) == 16


def test_a_retry_is_a_new_launch_and_counted(stage: Stage) -> None:
    first = stage.launch()
    run = first.reference.run
    with pytest.raises(AttestationError) as error:
        stage.launch(run)
    assert _codes(error) == ("ticket-issued",)
    for number in (2, 3):
        retry = stage.launch(run, launch=number)
        retry.payload_key = first.payload_key
        retry.honest()
    with pytest.raises(AttestationError) as error:
        stage.launch(run, launch=4)
    assert _codes(error) == ("launch-limit-reached",)
    assert stage.broker.store.grant_count(run) == 2


@pytest.mark.parametrize("asked", [False, True], ids=["ticket", "challenge"])
def test_what_is_left_of_a_launch_that_was_repeated_opens_nothing(stage: Stage, asked: bool) -> None:
    """Whoever has the ticket, or its challenge, of a launch that broke off, and now a new forward."""
    first = stage.launch()
    if asked:
        first.fetch()
    retry = stage.launch(first.reference.run, launch=2)
    retry.payload_key = first.payload_key
    for code in ("launch-superseded", "nonce-replay" if asked else "launch-superseded"):
        with pytest.raises(AttestationError) as error:
            first.honest()
        assert _codes(error) == (code,)
    assert stage.unwrap_calls == 0
    retry.honest()
    assert stage.unwrap_calls == 1


def test_no_ticket_without_a_registered_package(stage: Stage) -> None:
    with pytest.raises(AttestationError) as error:
        stage.broker.issue_ticket(synthetic_reference("nobody"), STRICT)
    assert _codes(error) == ("payload-unknown",)


@pytest.mark.parametrize("name", ["", "a/b", "../x", "x" * 65, "a b", "-x", "x\n"])
def test_names_are_names(stage: Stage, name: str) -> None:
    for call in (
        lambda: stage.broker.register_payload(name, "m", bytes(32), max_grants=1),
        lambda: stage.broker.issue_ticket(synthetic_reference(name), STRICT),
        lambda: stage.broker.challenge(_request(stage, name)),
    ):
        with pytest.raises(AttestationError) as error:
            call()
        assert _codes(error) == ("malformed-request",)


@pytest.mark.parametrize(("key", "grants"), [(bytes(31), 1), (b"", 1), (bytes(32), 0)])
def test_payloads_are_checked(stage: Stage, key: bytes, grants: int) -> None:
    with pytest.raises(AttestationError):
        stage.broker.register_payload("run", "m" * 64, key, max_grants=grants)


def test_no_secret_is_written_anywhere(stage: Stage, tmp_path: Path) -> None:
    honest, refused = stage.launch(), stage.launch()
    honest.honest()
    with pytest.raises(AttestationError):
        refused.submit(refused.sign({**refused.claims(), "boot_id": "other"}))
    texts = [
        repr(stage.broker.store.audit_log()),
        repr(_exchange(stage, honest)),
        repr(_exchange(stage, refused)),
    ]
    for launch in (honest, refused):
        for secret in (launch.ticket, launch.payload_key):
            for form in (secret.hex(), b64u(secret), repr(secret)):
                assert not any(form in text for text in texts)
            for path in tmp_path.iterdir():
                data = path.read_bytes()
                assert secret not in data
                assert b64u(secret).encode() not in data
                assert secret.hex().encode() not in data


def test_the_audit_log_tells_the_story(stage: Stage) -> None:
    launch = stage.launch()
    launch.honest()
    with pytest.raises(AttestationError):
        launch.submit(launch.evidence)
    lines = [(line.event, line.codes) for line in stage.broker.store.audit_log()]
    assert lines == [
        ("payload-registered", ()),
        ("ticket-issued", ()),
        ("challenge-issued", ()),
        ("grant-issued", ()),
        ("evidence-refused", ("nonce-replay",)),
    ]
    assert len(stage.broker.store.audit_log(launch.reference.run)) == 4


def test_an_unknown_launch_has_no_exchange(stage: Stage) -> None:
    assert stage.broker.exchange("run", "s000", 1) is None


def test_strangers_cannot_fill_the_audit_log(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_module, "MAX_KNOCKS_LOGGED", 3)
    for _ in range(10):
        with pytest.raises(AttestationError):
            stage.broker.challenge(_request(stage, "run"))
    assert len(stage.broker.store.audit_log()) == 3
    stage.launch().honest()
    assert stage.broker.store.audit_log()[-1].event == "grant-issued"


def test_one_machine_cannot_use_up_what_the_audit_log_has_for_others(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_module, "MAX_KNOCKS_OF_ONE", 3)
    monkeypatch.setattr(broker_module, "MAX_KNOCKS_LOGGED", 8)
    for caller in ("one", "two", "", "three"):
        for number in range(10):
            call = (
                partial(stage.broker.attest, "no evidence", "no token", caller)
                if number % 2
                else partial(stage.broker.challenge, _request(stage, "run"), caller)
            )
            with pytest.raises(AttestationError):
                call()
    assert len(stage.broker.store.audit_log()) == 3 + 3 + 2
    assert len(stage.broker._knocks) <= 4


def test_the_server_says_whose_connection_a_refused_request_came_by(stage: Stage) -> None:
    launch = stage.launch()
    request = json.dumps({"request": _request(stage, "run")}).encode()
    head = b"POST /v1/challenge HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    for opening in (b"", opening_line(launch.ticket), opening_line(bytes(32))):
        with socket.create_connection(("127.0.0.1", stage.port), timeout=60) as sock:
            sock.sendall(opening + head % len(request) + request)
            assert b"ticket-unknown" in b"".join(iter(lambda: sock.recv(4096), b""))
    callers = {"": 1, f"{launch.reference.run} {launch.reference.allocation_id}": 1, "unknown forward": 1}
    assert stage.broker._knocks == callers


@pytest.mark.parametrize("sent", ["\ud800", "x" * 60_000, "\u20ac", 7, None])
def test_what_cannot_be_a_launch_token_is_not_recorded_and_keeps_no_record_from_its_reader(
    stage: Stage, sent: object
) -> None:
    launch = stage.launch()
    evidence = launch.sign(launch.claims())
    with pytest.raises(AttestationError) as error:
        stage.broker.attest(evidence, sent)
    assert _codes(error) == ("jwt-claim-mismatch",)
    recorded = _exchange(stage, launch)
    assert (recorded.evidence, recorded.launch_token, recorded.grant) == (evidence, "", None)
    assert canonical_json(recorded.to_json())
