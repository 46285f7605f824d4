"""A process of the pod that stands in for the broker: what it sees come by opens nothing, over real HTTP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from glasshouse.attestation.appraise import appraise
from glasshouse.attestation.client import post
from glasshouse.attestation.stage import STRICT, Stage, StagedLaunch
from glasshouse.attestation.tokens import public_bytes_of, thumbprint, verify_challenge, verify_launch
from glasshouse.canonical import b64u, b64u_decode
from glasshouse.errors import AttestationError, SealError
from glasshouse.sealing.grant import generate_kem_key, unwrap_key
from tests.attestation.test_appraise import FULL, _context, _honest
from tests.attestation.test_operator import tapped


def _codes(call: Callable[[], object]) -> tuple[str, ...]:
    with pytest.raises(AttestationError) as caught:
        call()
    return caught.value.codes


def _thief(launch: StagedLaunch) -> StagedLaunch:
    """Whoever has seen all of a launch that crossed the port, with keys of his own."""
    return replace(
        launch, ticket=bytes(32), event_key=Ed25519PrivateKey.generate(), kem_key=generate_kem_key()
    )


def test_what_crosses_the_port_holds_no_secret_and_serves_nobody_again(stage: Stage) -> None:
    launch = stage.launch()
    with tapped(stage.port) as (tap, seen):
        launch.port = tap
        launch.honest()
    assert [path for path, _, _ in seen] == ["/v1/challenge", "/v1/attest"]
    tokens = [str(value) for _, body, answer in seen for value in (*body.values(), *answer.values())]
    wire = "".join(tokens).encode() + b"".join(b64u_decode(part) for t in tokens for part in t.split("."))
    assert b64u(public_bytes_of(launch.event_key)).encode() in wire  # the search finds what is there
    for secret in (launch.ticket, launch.payload_key):
        assert not any(form in wire for form in (secret, b64u(secret).encode(), secret.hex().encode()))
    again = [_codes(lambda path=path, body=body: post(stage.port, path, body, 10)) for path, body, _ in seen]
    assert again == [("ticket-used",), ("nonce-replay",)]
    assert stage.unwrap_calls == 1


def test_a_request_kept_back_and_passed_on_later_gets_its_thief_no_key(stage: Stage) -> None:
    """The forward drops, somebody takes port and request, and a new forward leads him to the broker."""
    launch = stage.launch()
    taken = launch.fetch()  # byte for byte what the thief passes on
    thief = replace(_thief(launch), challenge=taken)
    assert _codes(thief.honest) == ("event-key-mismatch",)
    assert stage.unwrap_calls == 0
    exchange = stage.broker.exchange(*launch.where)
    assert exchange is not None
    assert (exchange.grant, exchange.reason_codes) == (None, ("event-key-mismatch",))
    # It costs the launch, whose repetition is good.
    assert _codes(launch.honest) == ("nonce-replay",)
    retry = stage.launch(launch.reference.run, launch=2)
    retry.payload_key = launch.payload_key
    retry.honest()
    assert stage.unwrap_calls == 1


def test_a_thief_between_both_is_given_a_grant_that_only_the_runtime_opens(stage: Stage) -> None:
    launch = stage.launch()
    with tapped(stage.port) as (tap, seen):
        launch.port = tap
        launch.honest()
    body, answer = seen[1][1:]
    thief = replace(_thief(launch), port=stage.port)
    assert _codes(lambda: thief.submit(body["evidence"])) == ("nonce-replay",)
    assert launch.released is not None
    assert launch.released.grant == answer["grant"]
    with pytest.raises(SealError):
        unwrap_key(launch.released.ciphertext, thief.kem_key, launch.released.info)


def test_a_thief_without_the_seed_gets_no_challenge(stage: Stage) -> None:
    launch = stage.launch()
    assert _codes(_thief(launch).honest) == ("ticket-unknown",)
    launch.honest()
    assert stage.unwrap_calls == 1


def test_challenge_and_launch_token_name_the_key_that_asked(stage: Stage) -> None:
    launch = stage.launch()
    challenge = launch.fetch()
    named = {"jkt": thumbprint(public_bytes_of(launch.event_key))}
    assert verify_challenge(challenge.token, launch.broker_public).binding.cnf == named
    at = challenge.server_time
    assert verify_launch(challenge.launch_token, launch.broker_public, at).binding.cnf == named


@pytest.mark.parametrize("cnf", [{}, {"jkt": ""}, {"jkt": None}, {"jkt": 1, "x": 2}, [], "", 0, False])
def test_a_challenge_that_names_no_key_of_ours_is_answered_by_none(cnf: object) -> None:
    context = _context(cnf=cnf, launch={"cnf": cnf})
    assert appraise(_honest(), FULL, STRICT, context).codes == ("event-key-mismatch",)


def test_another_key_is_listed_beside_every_other_fault() -> None:
    claims = {**_honest(), "event_key": b64u(b"\x07" * 32), "run": "x"}
    codes = appraise(claims, FULL, STRICT, _context(launch=None)).codes
    assert codes == ("composite-hash-mismatch", "jwt-claim-mismatch", "event-key-mismatch", "run-mismatch")


def test_a_recorded_challenge_of_before_keys_were_named_is_appraised_as_it_was() -> None:
    """A launch token without the name beside a challenge with it is another token, and vice versa."""
    old = _context(cnf=None, launch={"cnf": None})
    assert appraise(_honest(), FULL, STRICT, old).ok
    stripped = _context(launch={"cnf": None})
    for context in (stripped, _context(cnf=None)):
        assert appraise(_honest(), FULL, STRICT, context).codes == ("jwt-claim-mismatch",)
