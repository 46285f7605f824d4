"""Evidence: the composite hash by its written definition, proof of possession, strict parsing."""

from __future__ import annotations

import contextlib
import hashlib
import json
import string
import subprocess
import sys
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from glasshouse.attestation.attacks import compact
from glasshouse.attestation.evidence import (
    EVIDENCE_TYP,
    composite_hash,
    container_id,
    evidence_nonce,
    make_evidence,
    parse_evidence,
)
from glasshouse.attestation.tokens import key_id, public_bytes_of, sign_jws
from glasshouse.canonical import CanonicalError, b64u, b64u_decode
from glasshouse.errors import AttestationError

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
CLAIMS: dict[str, Any] = {
    "run": "r",
    "launch": 1,
    "eat_nonce": b64u(bytes(32)),
    "hardening": {"b": True, "a": 0},
}


def test_composite_hash_is_the_written_definition() -> None:
    def prefixed(data: bytes) -> bytes:
        return len(data).to_bytes(8, "big") + data

    expected = prefixed(b"glasshouse/evidence/v1")
    for name, value in (("alpha", b'"x"'), ("beta", b'{"a":0,"b":[true,null]}'), ("zeta", b"-5")):
        expected += prefixed(name.encode()) + prefixed(value)
    claims = {"zeta": -5, "alpha": "x", "composite_hash": "ignored", "beta": {"b": [True, None], "a": 0}}
    assert composite_hash(claims) == hashlib.sha256(expected).hexdigest()


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.text(string.ascii_letters, max_size=4), st.text(max_size=4) | st.integers(-9, 9), max_size=4
    ),
    st.dictionaries(
        st.text(string.ascii_letters, max_size=4), st.text(max_size=4) | st.integers(-9, 9), max_size=4
    ),
)
def test_different_claims_have_different_composites(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert (composite_hash(one) == composite_hash(two)) == (one == two)


@pytest.mark.parametrize("value", [0.5, 1.0, 2**53, -(2**53), "\ud800", {"a": [1e300]}])
def test_values_without_one_form_are_refused(value: object) -> None:
    with pytest.raises(CanonicalError):
        composite_hash({"claim": value})


def test_a_claim_name_without_utf8_is_refused() -> None:
    with pytest.raises(CanonicalError):
        composite_hash({"\ud800": 1})


def test_container_id_keeps_its_parts_apart() -> None:
    one = container_id("boot", "pid:[1]", "mnt:[2]", "host")
    assert len(bytes.fromhex(one)) == 32
    assert one != container_id("bootpid", ":[1]", "mnt:[2]", "host")
    assert "host" not in one


def test_round_trip_adds_what_is_missing() -> None:
    claims = parse_evidence(make_evidence(CLAIMS, KEY)).claims
    assert {name: claims[name] for name in CLAIMS} == CLAIMS
    assert b64u_decode(claims["event_key"]) == public_bytes_of(KEY)
    assert claims["composite_hash"] == composite_hash(claims)


def test_nothing_that_is_given_is_overwritten() -> None:
    given_claims = {**CLAIMS, "composite_hash": "wrong", "eat_profile": "other"}
    claims = parse_evidence(make_evidence(given_claims, KEY)).claims
    assert claims["composite_hash"] == "wrong"
    assert claims["eat_profile"] == "other"


def test_the_event_key_must_be_the_signer() -> None:
    other = b64u(public_bytes_of(Ed25519PrivateKey.generate()))
    with pytest.raises(AttestationError) as caught:
        parse_evidence(make_evidence({**CLAIMS, "event_key": other}, KEY))
    assert caught.value.codes == ("key-id-mismatch",)


P = 2**255 - 19
ORDER_8 = bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05")


@pytest.mark.parametrize("sign", [0, 1])
@pytest.mark.parametrize(
    "y", [0, 1, P - 1, int.from_bytes(ORDER_8, "little"), P - int.from_bytes(ORDER_8, "little"), P, P + 1]
)
def test_a_key_under_which_nobody_s_signature_verifies_proves_no_possession(y: int, sign: int) -> None:
    """R the neutral element and S = 0 is a signature of one message in eight, or of all, under such a key."""
    public = (y | sign << 255).to_bytes(32, "little")
    signature = (1).to_bytes(32, "little") + bytes(32)
    key = Ed25519PublicKey.from_public_bytes(public)
    header = {"alg": "EdDSA", "typ": EVIDENCE_TYP, "kid": key_id(public)}
    taken = 0
    for number in range(100):
        token = compact(header, {"event_key": b64u(public), "n": number}, lambda _data: signature)
        with contextlib.suppress(InvalidSignature):
            key.verify(signature, token.rpartition(".")[0].encode())
            taken += 1
        with pytest.raises(AttestationError) as caught:
            parse_evidence(token)
        assert caught.value.codes == ("evidence-signature-invalid",)
    assert taken


def test_a_claimed_key_id_does_not_help() -> None:
    other = Ed25519PrivateKey.generate()
    honest = make_evidence({**CLAIMS, "event_key": b64u(public_bytes_of(other))}, other)
    head, _body, signature = honest.split(".")
    body = make_evidence({**CLAIMS, "event_key": b64u(public_bytes_of(other)), "run": "x"}, other).split(".")[
        1
    ]
    with pytest.raises(AttestationError) as caught:
        parse_evidence(f"{head}.{body}.{signature}")
    assert caught.value.codes == ("evidence-signature-invalid",)


@pytest.mark.parametrize("event_key", [None, 5, "", "AAAA", "!" * 43, b64u(bytes(33))])
def test_evidence_without_a_usable_key_is_malformed(event_key: object) -> None:
    token = sign_jws({**CLAIMS, "event_key": event_key}, KEY, EVIDENCE_TYP)
    with pytest.raises(AttestationError) as caught:
        parse_evidence(token)
    assert caught.value.codes == ("malformed-evidence",)


def test_nonce_is_found_without_trust() -> None:
    assert evidence_nonce(make_evidence(CLAIMS, KEY)) == CLAIMS["eat_nonce"]
    for bad in (None, 7, "", "a.b.c", make_evidence({**CLAIMS, "eat_nonce": "AAAA"}, KEY)):
        assert evidence_nonce(bad) is None


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 255))
def test_any_changed_character_is_refused(position: int, byte: int) -> None:
    token = make_evidence(CLAIMS, KEY)
    position %= len(token)
    changed = token[:position] + chr(byte) + token[position + 1 :]
    if changed != token:
        with pytest.raises(AttestationError):
            parse_evidence(changed)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(_JSON, _JSON)
def test_any_header_and_payload_parse_or_are_refused(header: object, payload: object) -> None:
    parts = [b64u(json.dumps(part).encode()) for part in (header, payload)]
    with pytest.raises(AttestationError):
        parse_evidence(f"{parts[0]}.{parts[1]}.{b64u(bytes(64))}")


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=64) | st.binary(max_size=64) | st.none() | st.integers())
def test_any_input_parses_or_is_refused(data: object) -> None:
    with pytest.raises(AttestationError):
        parse_evidence(data)


def test_kid_is_the_hash_of_the_raw_key() -> None:
    assert key_id(public_bytes_of(KEY)) == hashlib.sha256(public_bytes_of(KEY)).hexdigest()


def test_the_pod_archive_needs_no_more_than_it_ships() -> None:
    code = "import sys\nbefore = set(sys.modules)\n"
    code += "".join(f"import glasshouse.attestation.{name}\n" for name in ("evidence", "tokens", "client"))
    code += "print(*set(sys.modules) - before)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    ours = {name for name in loaded if name.startswith("glasshouse")}
    top = "glasshouse glasshouse.canonical glasshouse.codes glasshouse.errors glasshouse.attestation"
    assert ours == {
        *top.split(),
        *(f"glasshouse.attestation.{name}" for name in ("evidence", "tokens", "client")),
    }
    foreign = {name.partition(".")[0] for name in loaded} - set(sys.stdlib_module_names)
    assert foreign <= {
        "glasshouse",
        "jwt",
        "cryptography",
        "_openssl",
        "_cffi_backend",
        "bcrypt",
    }  # the last three: its own
