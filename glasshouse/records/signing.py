"""DSSE envelopes over in-toto Statements: what is signed, and the only way it is opened.

DSSE v1 (https://github.com/secure-systems-lab/dsse/blob/master/protocol.md) signs
PAE(payloadType, payload); the payload is an in-toto Statement v1
(https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md). Beyond both, the file
itself is canonical JSON with exactly one signature, so any changed byte of it fails.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from glasshouse.canonical import CanonicalError, canonical_json, parse_canonical
from glasshouse.codes import Code
from glasshouse.errors import VerificationError
from glasshouse.records.keys import KeyEntry, Keyring, keyid, public_bytes

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PLAN_TYPE = "tag:glasshouse,2026:plan/v1"
BUNDLE_TYPE = "tag:glasshouse,2026:bundle/v1"
_HEX64 = re.compile(r"[0-9a-f]{64}\Z")


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: what the signature is over."""
    kind = payload_type.encode("utf-8")
    return b" ".join([b"DSSEv1", b"%d" % len(kind), kind, b"%d" % len(payload), payload])


@dataclass(frozen=True)
class Opened:
    """A statement whose signature was checked: subjects (name -> SHA-256 hex), predicate, signer."""

    subjects: Mapping[str, str]
    predicate: Mapping[str, Any]
    signer: KeyEntry


def sign_statement(
    key: Ed25519PrivateKey, predicate_type: str, predicate: Mapping[str, Any], subjects: Mapping[str, str]
) -> bytes:
    """Sign an in-toto Statement; return the envelope file's bytes (canonical JSON)."""
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": subjects[name]}} for name in sorted(subjects)],
        "predicateType": predicate_type,
        "predicate": predicate,
    }
    payload = canonical_json(statement)
    envelope = {
        "payload": base64.b64encode(payload).decode("ascii"),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [
            {
                "keyid": keyid(public_bytes(key)),
                "sig": base64.b64encode(key.sign(pae(PAYLOAD_TYPE, payload))).decode("ascii"),
            }
        ],
    }
    return canonical_json(envelope)


def open_statement(
    data: bytes, keyring: Keyring, *, role: str, predicate_type: str, index: int | None = None
) -> Opened:
    """Check an envelope file and return its statement.

    `index` is the ledger index at which the key must be valid. Raises VerificationError:
    envelope-malformed, signer-unknown, signer-role, signer-retired, signature-invalid,
    statement-malformed, predicate-type.
    """
    payload, key, signature = _envelope(data)
    entry = keyring.find(key, role, index=index)
    if not entry.check(signature, pae(PAYLOAD_TYPE, payload)):
        raise VerificationError("the envelope's signature does not verify", codes=[Code.SIGNATURE_INVALID])
    try:
        statement = parse_canonical(payload)
        subjects = _subjects(statement)
    except CanonicalError as error:
        raise VerificationError(f"{Code.STATEMENT}: {error}", codes=[Code.STATEMENT_MALFORMED]) from error
    if statement["predicateType"] != predicate_type:
        raise VerificationError("the statement is of another type", codes=[Code.PREDICATE_TYPE])
    return Opened(subjects, statement["predicate"], entry)


def _envelope(data: bytes) -> tuple[bytes, str, bytes]:
    try:
        envelope = parse_canonical(data)
        if not isinstance(envelope, dict) or set(envelope) != {"payload", "payloadType", "signatures"}:
            raise CanonicalError("an envelope has exactly payload, payloadType, signatures")
        if envelope["payloadType"] != PAYLOAD_TYPE:
            raise CanonicalError("payloadType is not in-toto")
        signatures = envelope["signatures"]
        if not isinstance(signatures, list) or len(signatures) != 1:
            raise CanonicalError("exactly one signature is expected")
        entry = signatures[0]
        if not isinstance(entry, dict) or set(entry) != {"keyid", "sig"}:
            raise CanonicalError("a signature has exactly keyid and sig")
        if not isinstance(entry["keyid"], str) or _HEX64.match(entry["keyid"]) is None:
            raise CanonicalError("keyid is not 64 hex digits")
        return _b64(envelope["payload"]), entry["keyid"], _b64(entry["sig"], size=64)
    except CanonicalError as error:
        raise VerificationError(f"envelope: {error}", codes=[Code.ENVELOPE_MALFORMED]) from error


def _b64(text: Any, *, size: int | None = None) -> bytes:
    """Decode standard base64 strictly: one text for one value, or changed bits could go unseen."""
    if not isinstance(text, str):
        raise CanonicalError("not base64")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise CanonicalError("not base64") from error
    if base64.b64encode(data).decode("ascii") != text or (size is not None and len(data) != size):
        raise CanonicalError("not canonical base64 of the expected size")
    return data


def _subjects(statement: Any) -> dict[str, str]:
    names = {"_type", "subject", "predicateType", "predicate"}
    if not isinstance(statement, dict) or set(statement) != names or statement["_type"] != STATEMENT_TYPE:
        raise CanonicalError("not an in-toto Statement v1")
    if not isinstance(statement["predicate"], dict) or not isinstance(statement["subject"], list):
        raise CanonicalError("predicate is an object and subject a list")
    subjects: dict[str, str] = {}
    for item in statement["subject"]:
        if not isinstance(item, dict) or set(item) != {"name", "digest"} or not isinstance(item["name"], str):
            raise CanonicalError("a subject has exactly name and digest")
        digest = item["digest"]
        if not isinstance(digest, dict) or set(digest) != {"sha256"} or not isinstance(digest["sha256"], str):
            raise CanonicalError("a digest is exactly one sha256")
        if _HEX64.match(digest["sha256"]) is None or item["name"] in subjects:
            raise CanonicalError("a digest is not hex, or a name stands twice")
        subjects[item["name"]] = digest["sha256"]
    return subjects
