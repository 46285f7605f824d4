from __future__ import annotations

import base64
import copy
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError as ForeignError
from securesystemslib.signer._key import SSlibKey

from glasshouse.canonical import canonical_json, parse_json
from glasshouse.errors import VerificationError
from glasshouse.records.keys import KeyEntry, Keyring, keyid, public_bytes
from glasshouse.records.signing import (
    BUNDLE_TYPE,
    PLAN_TYPE,
    open_statement,
    pae,
    sign_statement,
)

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "dsse.json").read_text(encoding="utf-8"))
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = public_bytes(KEY)
RING = Keyring((KeyEntry(keyid(PUBLIC), "operator", PUBLIC, "operator"),))
SUBJECTS = {"b": "11" * 32, "a": "22" * 32}


def signed(**changes: Any) -> bytes:
    values: dict[str, Any] = {"predicate": {"run": "r"}, "subjects": SUBJECTS} | changes
    return sign_statement(KEY, BUNDLE_TYPE, values["predicate"], values["subjects"])


def opened(data: bytes, keyring: Keyring = RING, **changes: Any) -> Any:
    return open_statement(data, keyring, **({"role": "operator", "predicate_type": BUNDLE_TYPE} | changes))


def refused(data: bytes, keyring: Keyring = RING, **changes: Any) -> tuple[str, ...]:
    with pytest.raises(VerificationError) as caught:
        opened(data, keyring, **changes)
    return caught.value.codes


def resigned(payload: bytes, **changes: Any) -> bytes:
    """An envelope whose signature is good, around any payload."""
    kind = str(changes.get("payloadType", "application/vnd.in-toto+json"))
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": kind,
        "signatures": [
            {"keyid": keyid(PUBLIC), "sig": base64.b64encode(KEY.sign(pae(kind, payload))).decode()}
        ],
    }
    return canonical_json(envelope | changes)


@pytest.mark.parametrize("vector", VECTORS["pae"])
def test_pae_is_the_specifications(vector: dict[str, str]) -> None:
    assert pae(vector["type"], vector["payload"].encode()) == vector["pae"].encode()


@pytest.mark.parametrize("vector", VECTORS["ed25519"])
def test_ed25519_is_rfc_8032(vector: dict[str, str]) -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(vector["secret"]))
    assert public_bytes(key).hex() == vector["public"]
    assert key.sign(bytes.fromhex(vector["message"])).hex() == vector["signature"]


def test_round_trip() -> None:
    found = opened(signed())
    assert found.subjects == SUBJECTS
    assert found.predicate == {"run": "r"}
    assert found.signer is RING.entries[0]


def test_securesystemslib_accepts_our_envelope() -> None:
    envelope = Envelope.from_dict(json.loads(signed()))
    key = SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(PUBLIC), keyid=keyid(PUBLIC))
    assert envelope.verify([key], 1) == {keyid(PUBLIC): key}
    statement = json.loads(envelope.payload)
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["subject"][0] == {"name": "a", "digest": {"sha256": "22" * 32}}


def test_securesystemslib_refuses_what_we_refuse() -> None:
    changed = json.loads(signed())
    changed["payload"] = base64.b64encode(
        base64.b64decode(changed["payload"]).replace(b'"r"', b'"q"')
    ).decode()
    key = SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(PUBLIC), keyid=keyid(PUBLIC))
    with pytest.raises(ForeignError):
        Envelope.from_dict(copy.deepcopy(changed)).verify([key], 1)  # it empties what it is given
    assert refused(canonical_json(changed)) == ("signature-invalid",)


def test_every_byte_of_the_file_counts() -> None:
    data = signed()
    for position in range(len(data)):
        for bit in (1, 0x20):
            flipped = data[:position] + bytes([data[position] ^ bit]) + data[position + 1 :]
            assert refused(flipped), position
    assert refused(data + b"\n") == ("envelope-malformed",)
    assert refused(data[:-1]) == ("envelope-malformed",)


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_with_a_code(data: bytes) -> None:
    assert refused(data) == ("envelope-malformed",)


def test_signer_rules() -> None:
    assert refused(signed(), Keyring()) == ("signer-unknown",)
    assert refused(signed(), role="broker") == ("signer-role",)
    entry = KeyEntry(keyid(PUBLIC), "operator", PUBLIC, "operator", valid_from=3, valid_until=5)
    for index, ok in ((2, False), (3, True), (5, True), (6, False)):
        if ok:
            assert opened(signed(), Keyring((entry,)), index=index).signer is entry
        else:
            assert refused(signed(), Keyring((entry,)), index=index) == ("signer-retired",)


def test_a_known_keyid_with_another_key_fails() -> None:
    other = public_bytes(Ed25519PrivateKey.generate())
    assert refused(signed(), Keyring((KeyEntry(keyid(PUBLIC), "operator", other, "x"),))) == (
        "signature-invalid",
    )


def test_types_are_held_apart() -> None:
    assert refused(signed(), predicate_type=PLAN_TYPE) == ("predicate-type",)
    assert refused(resigned(b"{}", payloadType="text/plain")) == ("envelope-malformed",)


GOOD = {
    "_type": "https://in-toto.io/Statement/v1",
    "subject": [{"name": "a", "digest": {"sha256": "22" * 32}}],
    "predicateType": BUNDLE_TYPE,
    "predicate": {},
}
ITEM: dict[str, Any] = {"name": "a", "digest": {"sha256": "22" * 32}}


@pytest.mark.parametrize(
    "payload",
    [
        b"not json",
        b'{"a":1, "b":2}',
        canonical_json([]),
        canonical_json(GOOD | {"more": 1}),
        canonical_json(GOOD | {"_type": "https://in-toto.io/Statement/v0.1"}),
        canonical_json(GOOD | {"predicate": []}),
        canonical_json(GOOD | {"subject": {}}),
        canonical_json(GOOD | {"subject": [ITEM, ITEM]}),
        canonical_json(GOOD | {"subject": [ITEM | {"uri": "x"}]}),
        canonical_json(GOOD | {"subject": [ITEM | {"digest": {"sha256": "22" * 31}}]}),
        canonical_json(GOOD | {"subject": [ITEM | {"digest": {"sha256": "22" * 32, "md5": ""}}]}),
        canonical_json(GOOD | {"subject": [ITEM | {"name": 3}]}),
    ],
)
def test_malformed_statements_are_refused_though_signed(payload: bytes) -> None:
    assert refused(resigned(payload)) == ("statement-malformed",)
    assert opened(resigned(canonical_json(GOOD))).subjects == {"a": "22" * 32}


def test_envelope_forms() -> None:
    good = parse_json(signed())
    signature = good["signatures"][0]
    forms: list[dict[str, Any]] = [
        {"signatures": []},
        {"signatures": [signature, signature]},
        {"signatures": [signature | {"cert": ""}]},
        {"signatures": [signature | {"keyid": "AB" * 32}]},
        {"signatures": [signature | {"sig": signature["sig"].rstrip("=")}]},
        {"signatures": "x"},
        {"payload": good["payload"] + "\n"},
        {"payload": None},
        {"note": "x"},
    ]
    for changes in forms:
        assert refused(canonical_json(good | changes)) == ("envelope-malformed",), changes
    assert refused(json.dumps(good).encode()) == ("envelope-malformed",)
