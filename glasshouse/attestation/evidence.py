"""Evidence: what the runtime on the pod says about itself, signed by its own event key.

An EAT (RFC 9711) as a compact JWS. The signature proves possession of the event key named in the claims;
it proves nothing about the claims, which the Verifier appraises against reference values (appraise.py).

Part of the archive that runs on the pod: standard library, cryptography and jwt only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from glasshouse.attestation.tokens import check_signature, public_bytes_of, read_jws, sign_jws
from glasshouse.canonical import CanonicalError, b64u, b64u_decode, canonical_json, domain_hash
from glasshouse.codes import Code
from glasshouse.errors import AttestationError

EVIDENCE_TYP = "gh-evidence+jwt"
EAT_PROFILE = "tag:glasshouse,2026:eat/v1"
AWAITING_RELEASE = "awaiting-release"


def container_id(boot_id: str, pid_namespace: str, mount_namespace: str, host: str) -> str:
    """Id of a container in hex. host: its name's salted digest (blinding.py), as the rest can be guessed."""
    parts = [boot_id, pid_namespace, mount_namespace, host]
    return domain_hash("glasshouse/container/v1", [part.encode("utf-8") for part in parts]).hex()


def composite_hash(claims: Mapping[str, Any]) -> str:
    """Hash over every claim but `composite_hash` itself, in hex.

    Names and canonical values alternate in name order, each length-prefixed. Raises CanonicalError for
    floats and for integers of 2^53 and more.
    """
    parts: list[bytes] = []
    for name in sorted(claims):
        if name != "composite_hash":
            try:
                parts.append(name.encode("utf-8"))
            except UnicodeEncodeError as error:
                raise CanonicalError("lone surrogate in a claim name") from error
            parts.append(canonical_json(claims[name], floats=False))
    return domain_hash("glasshouse/evidence/v1", parts).hex()


def make_evidence(claims: Mapping[str, Any], event_key: Ed25519PrivateKey) -> str:
    """Sign claims as evidence.

    Adds `eat_profile`, `event_key` and `composite_hash` where they are missing and overwrites nothing:
    what is wrong in the claims stays wrong, and the Verifier says so. Raises CanonicalError.
    """
    full = {"eat_profile": EAT_PROFILE, "event_key": b64u(public_bytes_of(event_key)), **claims}
    if "composite_hash" not in full:
        full["composite_hash"] = composite_hash(full)
    return sign_jws(full, event_key, EVIDENCE_TYP)


def evidence_nonce(jws: object) -> str | None:
    """Nonce that evidence names, or None if it does not parse. Unverified: only finds the challenge."""
    try:
        nonce = read_jws(jws, EVIDENCE_TYP, what="evidence").claims.get("eat_nonce")
        b64u_decode(nonce if isinstance(nonce, str) else "", size=32)
    except (AttestationError, CanonicalError):
        return None
    return nonce


@dataclass(frozen=True)
class Evidence:
    """Evidence whose form and proof of possession hold: the claims as sent, not yet appraised, and the raw
    key (32 bytes) that signed them."""

    claims: Mapping[str, Any]
    event_key: bytes


def parse_evidence(jws: object) -> Evidence:
    """Parse evidence strictly and verify its proof of possession.

    Raises AttestationError with `malformed-evidence`, `algorithm-not-allowed`, `forbidden-header`,
    `token-type-mismatch`, `key-id-mismatch` or `evidence-signature-invalid`.
    """
    token = read_jws(jws, EVIDENCE_TYP, what="evidence")
    event_key = token.claims.get("event_key")
    try:
        public = b64u_decode(event_key if isinstance(event_key, str) else "", size=32)
    except CanonicalError as error:
        raise AttestationError("evidence names no event key", codes=[Code.MALFORMED_EVIDENCE]) from error
    check_signature(token, public, what="evidence")
    return Evidence(token.claims, public)
