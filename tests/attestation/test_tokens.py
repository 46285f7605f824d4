"""Tokens: RFC vectors, a second implementation that accepts ours, and everything that must be refused."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jws as other_jws
from joserfc.jwk import KeySet, OKPKey

from glasshouse.attestation import tokens
from glasshouse.attestation.attacks import compact
from glasshouse.attestation.broker import Broker
from glasshouse.attestation.evidence import EVIDENCE_TYP, make_evidence
from glasshouse.attestation.operator import CARD_TYP, REQUEST_TYP
from glasshouse.attestation.stage import STRICT, Stage, synthetic_reference
from glasshouse.attestation.ticket import TICKET_TYP, sign_request
from glasshouse.canonical import b64u, b64u_decode, canonical_json
from glasshouse.errors import AttestationError

VECTORS = Path(__file__).parent.parent / "vectors"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = tokens.public_bytes_of(KEY)
NOW = 1_800_000_000


def _challenge(now: int = NOW, ttl: int = 60, key: Ed25519PrivateKey = KEY) -> str:
    return tokens.sign_challenge(
        key,
        audience="store",
        now=now,
        ttl=ttl,
        run="r",
        leg="s000",
        launch=1,
        allocation_id="a",
        manifest_hash="0" * 64,
        nonce=bytes(32),
        event_key=PUBLIC,
    )


def _ear() -> str:
    return tokens.sign_ear(
        KEY, audience="store", now=NOW, ttl=60, evidence_sha256="0" * 64, ear_claims={"submods": {}}
    )


def _grant() -> str:
    return tokens.sign_grant(
        KEY,
        audience="store",
        now=NOW,
        ttl=60,
        run="r",
        leg="s000",
        launch=1,
        info=bytes(32),
        ciphertext=b"ct",
    )


Verify = Callable[..., Any]
KINDS: dict[str, tuple[Callable[[], str], Verify]] = {
    "challenge": (_challenge, tokens.verify_challenge),
    "launch": (
        lambda: tokens.verify_challenge(_challenge(), PUBLIC).launch_token.token.jws,
        tokens.verify_launch,
    ),
    "ear": (_ear, tokens.verify_ear),
    "grant": (_grant, tokens.verify_grant),
}


def _codes(verify: Verify, *args: Any, **kwargs: Any) -> tuple[str, ...]:
    with pytest.raises(AttestationError) as caught:
        verify(*args, **kwargs)
    return caught.value.codes


def test_rfc_8037_signature() -> None:
    vector = json.loads((VECTORS / "rfc8037-a4.json").read_text())
    key = Ed25519PrivateKey.from_private_bytes(b64u_decode(vector["jwk"]["d"], size=32))
    assert b64u(tokens.public_bytes_of(key)) == vector["jwk"]["x"]
    made = tokens._JWS.encode(vector["payload"].encode(), key, algorithm="EdDSA", headers={"typ": None})
    assert made == vector["jws"]
    assert (
        tokens._JWS.decode(vector["jws"], key.public_key(), algorithms=["EdDSA"])
        == vector["payload"].encode()
    )


def test_jwks_is_the_rfc_8037_form() -> None:
    vector = json.loads((VECTORS / "rfc8037-a4.json").read_text())["jwk"]
    key = tokens.jwks(b64u_decode(vector["x"]))["keys"][0]
    assert {name: key[name] for name in ("kty", "crv", "x")} == {
        "kty": "OKP",
        "crv": "Ed25519",
        "x": vector["x"],
    }
    assert "d" not in key


def test_rfc_8037_thumbprint() -> None:
    """Appendix A.3."""
    vector = json.loads((VECTORS / "rfc8037-a4.json").read_text())["jwk"]
    assert tokens.thumbprint(b64u_decode(vector["x"])) == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
    other = OKPKey.import_key({"kty": "OKP", "crv": "Ed25519", "x": b64u(PUBLIC)})
    assert tokens.thumbprint(PUBLIC) == other.thumbprint()


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind: str) -> None:
    make, verify = KINDS[kind]
    assert verify(make(), PUBLIC, NOW, audience="store").token.audience == "store"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:EdDSA is deprecated")  # RFC 9864 renames it; PyJWT and RFC 8037 say EdDSA
def test_a_second_implementation_accepts_ours(kind: str) -> None:
    key = OKPKey.import_key({"kty": "OKP", "crv": "Ed25519", "x": b64u(PUBLIC)})
    token = KINDS[kind][0]()
    verified = other_jws.deserialize_compact(token, key, algorithms=["EdDSA"])
    assert json.loads(verified.payload) == KINDS[kind][1](token, PUBLIC, NOW).token.claims
    assert verified.headers() == {"alg": "EdDSA", "typ": f"gh-{kind}+jwt", "kid": tokens.key_id(PUBLIC)}


@pytest.mark.filterwarnings("ignore:EdDSA is deprecated")
def test_a_second_implementation_accepts_a_whole_exchange(stage: Stage) -> None:
    launch = stage.launch()
    launch.honest()
    exchange = stage.broker.exchange(launch.reference.run, "s000", 1)
    assert exchange is not None
    broker = OKPKey.import_key(stage.broker.jwks()["keys"][0])
    for name in ("challenge", "launchToken", "ear", "grant"):
        other_jws.deserialize_compact(exchange.to_json()[name], broker, algorithms=["EdDSA"])
    event = {"kty": "OKP", "crv": "Ed25519", "x": b64u(tokens.public_bytes_of(launch.event_key))}
    other_jws.deserialize_compact(exchange.evidence, OKPKey.import_key(event), algorithms=["EdDSA"])


@pytest.mark.filterwarnings("ignore:EdDSA is deprecated")
def test_tokens_from_before_a_rotation_verify_with_the_key_set_after_it(stage: Stage) -> None:
    """By a second implementation that picks each token's key by its kid."""
    launch = stage.launch()
    launch.honest()
    old = stage.broker
    exchange = old.exchange(launch.reference.run, "s000", 1)
    assert exchange is not None
    new = Broker(old.store, Ed25519PrivateKey.generate(), earlier=[old.public_bytes])
    reference = synthetic_reference("again")
    new.register_payload("again", reference.manifest_hash, bytes([7] * 32), max_grants=1)
    ticket = bytearray(new.issue_ticket(reference, STRICT))
    fresh = new.challenge(sign_request(ticket, ("again", "s000", 1), broker_id=new.id, event_key=PUBLIC))
    ring = KeySet.import_key_set(new.jwks())
    for token, key in ((exchange.ear, old.id), (exchange.grant, old.id), (fresh, new.id)):
        assert other_jws.deserialize_compact(token, ring, algorithms=["EdDSA"]).headers()["kid"] == key
    # Published, and not accepted: what the old key signed opens nothing at the new one.
    assert tokens.returned_launch(exchange.launch_token, new.public_bytes, new.store.id) is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", [*KINDS, "evidence"])
def test_no_token_passes_for_another_kind(kind: str, other: str) -> None:
    if kind != other:
        token = make_evidence({}, KEY) if other == "evidence" else KINDS[other][0]()
        assert _codes(KINDS[kind][1], token, PUBLIC, NOW) == ("token-type-mismatch",)


@pytest.mark.parametrize("kind", KINDS)
def test_times_have_no_leeway(kind: str) -> None:
    make, verify = KINDS[kind]
    token = make()
    verify(token, PUBLIC, NOW)
    verify(token, PUBLIC, NOW + 59.999)
    assert _codes(verify, token, PUBLIC, NOW - 0.001) == (f"{kind}-not-yet-valid",)
    assert _codes(verify, token, PUBLIC, NOW + 60) == (f"{kind}-expired",)


def test_a_challenge_without_a_clock_is_judged_at_its_own_time() -> None:
    assert tokens.verify_challenge(_challenge(now=5), PUBLIC).server_time == 5


@pytest.mark.parametrize("kind", KINDS)
def test_audience_is_the_store(kind: str) -> None:
    make, verify = KINDS[kind]
    assert _codes(verify, make(), PUBLIC, NOW, audience="other") == (f"{kind}-audience-mismatch",)


@pytest.mark.parametrize("kind", KINDS)
def test_another_key_is_refused(kind: str) -> None:
    other = tokens.public_bytes_of(Ed25519PrivateKey.generate())
    assert _codes(KINDS[kind][1], KINDS[kind][0](), other, NOW) == ("key-id-mismatch",)


@pytest.mark.parametrize("kind", KINDS)
def test_a_forged_signature_is_refused(kind: str) -> None:
    make, verify = KINDS[kind]
    head, body, _ = make().split(".")
    forged = Ed25519PrivateKey.generate().sign(f"{head}.{body}".encode())
    assert _codes(verify, f"{head}.{body}.{b64u(forged)}", PUBLIC, NOW) == (f"{kind}-signature-invalid",)


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ({"alg": "none"}, "algorithm-not-allowed"),
        ({"alg": "HS256"}, "algorithm-not-allowed"),
        ({"alg": "Ed448"}, "algorithm-not-allowed"),
        ({"alg": ["EdDSA"]}, "algorithm-not-allowed"),
        ({"jwk": {"kty": "OKP"}}, "forbidden-header"),
        ({"jku": "https://example.invalid"}, "forbidden-header"),
        ({"x5u": "https://example.invalid"}, "forbidden-header"),
        ({"x5c": []}, "forbidden-header"),
        ({"crit": ["b64"], "b64": False}, "forbidden-header"),
        ({"zip": "DEF"}, "forbidden-header"),
        ({"typ": "JWT"}, "token-type-mismatch"),
        ({"typ": "application/gh-ear+jwt"}, "token-type-mismatch"),
        ({"typ": "GH-EAR+JWT"}, "token-type-mismatch"),
        ({"kid": "0" * 64}, "key-id-mismatch"),
        ({"kid": tokens.key_id(PUBLIC).upper()}, "key-id-mismatch"),
        ({"kid": None}, "key-id-mismatch"),
    ],
)
def test_headers_are_exact(header: dict[str, Any], code: str) -> None:
    claims = json.loads(b64u_decode(_ear().split(".")[1]))
    honest = {"alg": "EdDSA", "typ": tokens.EAR_TYP, "kid": tokens.key_id(PUBLIC)}
    tokens.verify_ear(compact(honest, claims, KEY.sign), PUBLIC, NOW)
    assert _codes(tokens.verify_ear, compact({**honest, **header}, claims, KEY.sign), PUBLIC, NOW) == (code,)


def test_a_signed_duplicate_key_is_refused() -> None:
    honest = {"alg": "EdDSA", "typ": tokens.EAR_TYP, "kid": tokens.key_id(PUBLIC)}
    claims = b64u_decode(_ear().split(".")[1])[:-1] + b',"iss":"x"}'
    assert _codes(tokens.verify_ear, compact(honest, claims, KEY.sign), PUBLIC, NOW) == ("malformed-ear",)
    header = canonical_json(honest)[:-1] + b',"alg":"none"}'
    body = b64u_decode(_ear().split(".")[1])
    assert _codes(tokens.verify_ear, compact(header, body, KEY.sign), PUBLIC, NOW) == ("malformed-ear",)


@pytest.mark.parametrize("claim", ["iat", "nbf", "exp"])
@pytest.mark.parametrize("value", [None, True, "5", [1]])
def test_times_are_whole_numbers(claim: str, value: object) -> None:
    claims = {**json.loads(b64u_decode(_ear().split(".")[1])), claim: value}
    assert _codes(tokens.verify_ear, tokens.sign_jws(claims, KEY, tokens.EAR_TYP), PUBLIC, NOW) == (
        "malformed-ear",
    )


def test_another_issuer_is_refused() -> None:
    claims = {**json.loads(b64u_decode(_ear().split(".")[1])), "iss": "someone"}
    token = tokens.sign_jws(claims, KEY, tokens.EAR_TYP)
    assert _codes(tokens.verify_ear, token, PUBLIC, NOW) == ("ear-issuer-mismatch",)


def test_size_is_bounded_before_parsing() -> None:
    token = tokens.sign_jws({"padding": "x" * tokens.MAX_TOKEN_CHARS}, KEY, tokens.EAR_TYP)
    assert _codes(tokens.verify_ear, token, PUBLIC, NOW) == ("malformed-ear",)


@pytest.mark.parametrize("name", ["run", "leg", "launch", "nonce", "cnf", "server_time"])
def test_challenge_and_launch_token_must_agree(name: str) -> None:
    claims = tokens.verify_challenge(_challenge(), PUBLIC).token.claims
    changed = {**claims, name: b64u(b"\x01" * 32) if name == "nonce" else 2}
    token = tokens.sign_jws(changed, KEY, tokens.CHALLENGE_TYP)
    expected = "malformed-challenge" if name == "server_time" else "jwt-claim-mismatch"
    assert _codes(tokens.verify_challenge, token, PUBLIC) == (expected,)


def test_grant_info_binds_every_part() -> None:
    parts = {"challenge": "c", "launch_token": "t", "evidence": "e", "ear": "r"}
    base = tokens.grant_info("broker", "run", "leg", 1, **parts)
    assert len(base) == 32
    seen = {base}
    for name, value in parts.items():
        seen.add(tokens.grant_info("broker", "run", "leg", 1, **{**parts, name: value + "x"}))
    seen.add(tokens.grant_info("brokerrun", "", "leg", 1, **parts))
    seen.add(tokens.grant_info("broker", "runleg", "", 1, **parts))
    seen.add(tokens.grant_info("broker", "run", "leg", 2, **parts))
    assert len(seen) == 8


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=200), st.sampled_from(sorted(KINDS)))
def test_any_text_is_refused_by_every_reader(text: str, kind: str) -> None:
    with pytest.raises(AttestationError):
        KINDS[kind][1](text, PUBLIC, NOW)


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(
            ["iss", "aud", "iat", "nbf", "exp", "info", "ct", "nonce", "cnf", "launch_token", "server_time"]
        ),
        st.none()
        | st.booleans()
        | st.integers(-9, 2**40)
        | st.text(max_size=50)
        | st.lists(st.none(), max_size=1),
    ),
    st.sampled_from(sorted(KINDS)),
)
def test_any_signed_claims_verify_or_are_refused(claims: dict[str, Any], kind: str) -> None:
    """Even what the right key signed must have the right form: no reader falls over a missing claim."""
    honest = json.loads(b64u_decode(KINDS[kind][0]().split(".")[1]))
    token = tokens.sign_jws({**honest, **claims}, KEY, f"gh-{kind}+jwt")
    with contextlib.suppress(AttestationError):
        assert KINDS[kind][1](token, PUBLIC, NOW).token.claims == {**honest, **claims}


def test_evidence_type_is_not_a_broker_type() -> None:
    types = {tokens.CHALLENGE_TYP, tokens.LAUNCH_TYP, tokens.EAR_TYP, tokens.GRANT_TYP}
    assert len({*types, EVIDENCE_TYP, TICKET_TYP, CARD_TYP, REQUEST_TYP}) == 8
