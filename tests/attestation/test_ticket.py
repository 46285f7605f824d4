"""The request for a challenge: signed by the ticket, exact in every field; a wrong one spends nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from joserfc import jws as other_jws
from joserfc.jwk import OKPKey

from glasshouse.attestation.attacks import compact, ticket_key
from glasshouse.attestation.stage import Stage, StagedLaunch
from glasshouse.attestation.ticket import TICKET_TYP, Request, read_request, sign_request, ticket_hash
from glasshouse.attestation.tokens import key_id, public_bytes_of, sign_jws
from glasshouse.canonical import b64u, b64u_decode, canonical_json
from glasshouse.errors import AttestationError

SEED = bytes(range(32))
TICKET = Ed25519PrivateKey.from_private_bytes(SEED)
TICKET_PUBLIC = public_bytes_of(TICKET)
EVENT_KEY = bytes(range(32, 64))
BROKER = "b" * 64
WHERE = ("run", "s000", 1)
HEADER = {"alg": "EdDSA", "typ": TICKET_TYP, "kid": key_id(TICKET_PUBLIC)}


def _request() -> str:
    return sign_request(bytearray(SEED), WHERE, broker_id=BROKER, event_key=EVENT_KEY)


def _claims(request: str) -> dict[str, Any]:
    claims: dict[str, Any] = json.loads(b64u_decode(request.split(".")[1]))
    return claims


def _codes(request: object, broker_id: str = BROKER) -> tuple[str, ...]:
    with pytest.raises(AttestationError) as caught:
        read_request(request, broker_id)
    return caught.value.codes


def _signed(claims: dict[str, Any], key: Ed25519PrivateKey = TICKET, **header: Any) -> str:
    """By hand, so that a float can be signed, too."""
    return compact({**HEADER, **header}, claims, key.sign)


def test_a_request_says_what_was_signed_and_the_seed_is_gone() -> None:
    seed = bytearray(SEED)
    request = sign_request(seed, WHERE, broker_id=BROKER, event_key=EVENT_KEY)
    assert seed == bytes(32)
    assert read_request(request, BROKER) == Request(ticket_hash(TICKET_PUBLIC), WHERE, EVENT_KEY)
    for secret in (SEED, SEED.hex().encode(), b64u(SEED).encode()):
        assert secret not in b"".join(b64u_decode(part) for part in request.split("."))


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_seed_of_another_size_is_refused_and_wiped(size: int) -> None:
    seed = bytearray(b"\x01" * size)
    with pytest.raises(ValueError, match="32 bytes"):
        sign_request(seed, WHERE, broker_id=BROKER, event_key=EVENT_KEY)
    assert seed == bytes(size)


@pytest.mark.filterwarnings("ignore:EdDSA is deprecated")
def test_a_second_implementation_accepts_ours() -> None:
    key = OKPKey.import_key({"kty": "OKP", "crv": "Ed25519", "x": b64u(TICKET_PUBLIC)})
    verified = other_jws.deserialize_compact(_request(), key, algorithms=["EdDSA"])
    assert verified.headers() == HEADER
    assert json.loads(verified.payload) == {
        "aud": BROKER,
        "run": "run",
        "leg": "s000",
        "launch": 1,
        "event_key": b64u(EVENT_KEY),
        "ticket_key": b64u(TICKET_PUBLIC),
    }


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"aud": "c" * 64}, "request-audience-mismatch"),
        ({"aud": None}, "request-audience-mismatch"),
        ({"aud": [BROKER]}, "request-audience-mismatch"),
        ({"run": "a/b"}, "malformed-request"),
        ({"run": None}, "malformed-request"),
        ({"leg": ""}, "malformed-request"),
        *(({"launch": value}, "malformed-request") for value in (0, -1, 1000, True, "1", None, 1.5)),
        ({"event_key": b64u(bytes(31))}, "malformed-request"),
        ({"event_key": 5}, "malformed-request"),
        ({"ticket_key": b64u(EVENT_KEY)}, "key-id-mismatch"),
        ({"ticket_key": b64u(TICKET_PUBLIC) + "="}, "malformed-request"),
        ({"iat": 1}, "malformed-request"),
        ({"jwk": {}}, "malformed-request"),
    ],
)
def test_a_changed_request_is_refused_although_signed(changed: dict[str, Any], code: str) -> None:
    assert _codes(_signed({**_claims(_request()), **changed})) == (code,)


@pytest.mark.parametrize("name", ["aud", "run", "leg", "launch", "event_key", "ticket_key"])
def test_a_claim_left_out_is_refused_although_signed(name: str) -> None:
    claims = _claims(_request())
    del claims[name]
    assert _codes(_signed(claims)) == ("malformed-request",)


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ({"alg": "none"}, "algorithm-not-allowed"),
        ({"alg": "HS256"}, "algorithm-not-allowed"),
        ({"typ": "gh-evidence+jwt"}, "token-type-mismatch"),
        ({"typ": "gh-operator+jwt"}, "token-type-mismatch"),
        ({"jwk": {"kty": "OKP", "crv": "Ed25519", "x": b64u(TICKET_PUBLIC)}}, "forbidden-header"),
        ({"kid": "0" * 64}, "key-id-mismatch"),
    ],
)
def test_headers_are_exact(header: dict[str, Any], code: str) -> None:
    assert _codes(_signed(_claims(_request()), **header)) == (code,)


def test_a_claim_named_twice_is_refused_although_signed() -> None:
    payload = canonical_json(_claims(_request()))[:-1] + b',"launch":2}'
    assert _codes(compact(HEADER, payload, TICKET.sign)) == ("malformed-request",)


def test_another_key_signs_for_no_ticket() -> None:
    other = Ed25519PrivateKey.generate()
    assert _codes(_signed(_claims(_request()), other)) == ("request-signature-invalid",)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=200) | st.none() | st.integers() | st.binary())
def test_anything_is_refused_by_the_reader(request: object) -> None:
    assert _codes(request)


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, 10_000), char=st.sampled_from("AZaz09-_.=~ "))
def test_one_other_character_anywhere_is_refused(at: int, char: str) -> None:
    request = _request()
    at %= len(request)
    changed = request[:at] + char + request[at + 1 :]
    if changed != request:
        assert _codes(changed)


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=70),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=8), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(["aud", "run", "leg", "launch", "event_key", "x"]), anything))
def test_any_signed_claims_are_read_or_refused(changed: dict[str, Any]) -> None:
    claims = {**_claims(_request()), **changed}
    try:
        found = read_request(sign_jws(claims, TICKET, TICKET_TYP), BROKER)
    except AttestationError:
        return
    assert found.launch == (claims["run"], claims["leg"], claims["launch"])
    assert (claims["aud"], b64u(found.event_key)) == (BROKER, claims["event_key"])


# --- at the broker --------------------------------------------------------------------------


def _ask(stage: Stage, request: str) -> tuple[str, ...]:
    try:
        stage.post("/v1/challenge", {"request": request})
    except AttestationError as error:
        return error.codes
    return ()


def test_no_other_request_is_answered_and_none_spends_the_ticket(stage: Stage) -> None:
    """Every field changed to anything, as it came by (unsigned) or by the ticket's own holder (signed)."""
    launch = stage.launch()
    honest, key = launch.request(), ticket_key(launch)
    claims = _claims(honest)
    head, _, signature = honest.split(".")

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        name=st.sampled_from(sorted(claims)),
        value=anything | st.sampled_from(["other", 2, b64u(bytes(32)), b64u(EVENT_KEY)]),
        signed=st.booleans(),
    )
    def attack(name: str, value: object, signed: bool) -> None:
        # An event key of his choice is what a ticket's holder may ask for; nobody else signs it.
        if value == claims[name] or (signed and name == "event_key"):
            return
        payload = canonical_json({**claims, name: value})
        if signed:
            header = {"alg": "EdDSA", "typ": TICKET_TYP, "kid": key_id(public_bytes_of(key))}
            assert _ask(stage, compact(header, payload, key.sign))
        else:
            assert _ask(stage, f"{head}.{b64u(payload)}.{signature}")

    attack()
    events = {line.event for line in stage.broker.store.audit_log(launch.reference.run)}
    assert events == {"payload-registered", "ticket-issued"}
    launch.honest()
    assert stage.unwrap_calls == 1


@pytest.mark.parametrize("change", ["signature", "audience", "run", "leg", "launch", "form"])
def test_a_request_that_is_refused_spends_nothing(stage: Stage, change: str) -> None:
    launch = stage.launch()
    head, body, signature = launch.request().split(".")
    claims = _claims(f"{head}.{body}.{signature}")
    key = ticket_key(launch)
    wrong, code = {
        "signature": (f"{head}.{body}.{b64u(bytes(64))}", "request-signature-invalid"),
        "audience": (sign_jws({**claims, "aud": BROKER}, key, TICKET_TYP), "request-audience-mismatch"),
        "run": (sign_jws({**claims, "run": "other"}, key, TICKET_TYP), "ticket-mismatch"),
        "leg": (sign_jws({**claims, "leg": "s001"}, key, TICKET_TYP), "ticket-mismatch"),
        "launch": (sign_jws({**claims, "launch": 2}, key, TICKET_TYP), "ticket-mismatch"),
        "form": (f"{head}.{body}", "malformed-request"),
    }[change]
    assert _ask(stage, wrong) == (code,)
    assert _ask(stage, wrong) == (code,)
    launch.honest()
    assert _ask(stage, wrong) == (("ticket-used",) if code == "ticket-mismatch" else (code,))
    assert stage.unwrap_calls == 1


def test_refusals_do_not_tell_whether_a_ticket_exists(stage: Stage) -> None:
    """Whoever lacks the seed gets the same answer for a ticket that waits, one that was used, and none."""
    waiting, used = stage.launch(), stage.launch()
    used.honest()
    nobody = StagedLaunch(**{**vars(stage.launch()), "ticket": bytes(32)})
    own = Ed25519PrivateKey.generate()
    answers = set()
    for launch in (waiting, used, nobody):
        public = public_bytes_of(ticket_key(launch))
        claims = _claims(launch.request())
        header = {"alg": "EdDSA", "typ": TICKET_TYP, "kid": key_id(public)}
        answers.add(_ask(stage, compact(header, claims, own.sign)))
    assert answers == {("request-signature-invalid",)}
