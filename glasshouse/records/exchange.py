"""Re-verify a recorded attestation exchange offline, as the broker judged it.

Keys come from the keyring. Tokens are judged at the time the broker signed into the attestation
result, not by today's clock; the appraisal runs again on the recorded evidence and reference values
under the plan's policy, and must come out claim for claim as the broker signed it.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from glasshouse.attestation.appraise import Answer, appraise, refusal
from glasshouse.attestation.claims import Reference
from glasshouse.attestation.evidence import Evidence, parse_evidence
from glasshouse.attestation.tokens import (
    CHALLENGE_TYP,
    EAR_TYP,
    Times,
    check_signature,
    grant_info,
    read_jws,
    returned_launch,
    verify_challenge,
    verify_ear,
    verify_grant,
)
from glasshouse.canonical import sha256_hex
from glasshouse.codes import Code
from glasshouse.errors import AttestationError, VerificationError
from glasshouse.records.keys import Keyring
from glasshouse.schema import Exchange
from glasshouse.spec import Policy

_BUILD = re.compile(r"glasshouse [0-9][0-9A-Za-z.+]{0,31}")
_VERIFIER = "ear.verifier-id"
# Claims that signing adds to an attestation result; the rest must equal the recomputed ones.
_ENVELOPE = ("iss", "aud", "iat", "nbf", "exp", "ear.glasshouse.evidence-sha256")


@dataclass(frozen=True)
class Verified:
    """An exchange as re-verified: codes of every fault or refusal, empty when it was sound and granted.

    released: a valid grant stands at its end. at: the broker's time of appraisal, Unix seconds.
    event_key: raw key from the evidence, None when the evidence itself did not parse.
    """

    codes: tuple[str, ...]
    released: bool
    at: float
    event_key: bytes | None = None
    claims: Mapping[str, Any] = field(default_factory=dict)


def verify_exchange(
    exchange: Exchange, reference: Reference, policy: Policy, keyring: Keyring, *, index: int | None = None
) -> Verified:
    """Re-verify one exchange; never raises for what the bundle holds.

    index: ledger index at which the broker's key must be valid. The codes are those of the tokens,
    of the appraisal and of the keyring, and: ear-differs, ear-not-of-challenge, grant-info-mismatch,
    grant-claim-mismatch, released-on-refusal, exchange-refused.
    """
    try:
        return _verify(exchange, reference, policy, keyring, index)
    except (AttestationError, VerificationError) as error:
        return Verified(error.codes, released=exchange.grant is not None, at=0.0)


def _is_release_of_ours(verifier: object) -> bool:
    """Whether a result's verifier claim names a release of ours, of any version.

    A later release comes to the same verdict under its own name: that must not make old rows fail.
    """
    if not isinstance(verifier, dict) or verifier.keys() != {"developer", "build"}:
        return False
    build = verifier["build"]
    return verifier["developer"] == "glasshouse" and isinstance(build, str) and bool(_BUILD.fullmatch(build))


def _verify(
    exchange: Exchange, reference: Reference, policy: Policy, keyring: Keyring, index: int | None
) -> Verified:
    # 1. The broker's key, by the keyring.
    broker_id = read_jws(exchange.challenge, CHALLENGE_TYP, what="challenge").kid
    public = keyring.find(broker_id, "broker", index=index).public
    # 2. The challenge, and the attestation result at its own time, both of one store.
    challenge = verify_challenge(exchange.challenge, public)
    store = challenge.token.audience
    unjudged = read_jws(exchange.ear, EAR_TYP, what="ear")
    check_signature(unjudged, public, what="ear")
    at = Times.of(unjudged, what="ear").iat
    ear = verify_ear(exchange.ear, public, at, audience=store)
    codes: list[str] = []
    where = reference.where
    if (
        ear.evidence_sha256 != sha256_hex(exchange.evidence.encode("utf-8"))
        or ear.nonce != challenge.binding.nonce
        or challenge.binding.where != where
    ):
        codes.append(Code.EAR_NOT_OF_CHALLENGE)
    # 3. The appraisal again, on the recorded evidence and reference values.
    answer = Answer(challenge, returned_launch(exchange.launch_token, public, store), at)
    evidence: Evidence | None = None
    try:
        evidence = parse_evidence(exchange.evidence)
        appraisal = appraise(evidence.claims, reference, policy, answer)
    except AttestationError as error:
        appraisal = refusal(error.codes, reference, policy, answer)
    said = {name: value for name, value in ear.token.claims.items() if name not in _ENVELOPE}
    expected = dict(appraisal.ear_claims)
    if _is_release_of_ours(verifier := said.get(_VERIFIER)):
        expected[_VERIFIER] = verifier
    if said != expected:
        codes.append(Code.EAR_DIFFERS)
    codes += appraisal.codes
    # 4. The grant: bound to every byte above.
    released = exchange.grant is not None
    if exchange.grant is not None:
        challenge.token.times.check(at, what="challenge")
        grant = verify_grant(exchange.grant, public, at, audience=store)
        info = grant_info(
            broker_id,
            *where,
            challenge=exchange.challenge,
            launch_token=exchange.launch_token,
            evidence=exchange.evidence,
            ear=exchange.ear,
        )
        if not hmac.compare_digest(grant.info, info):
            codes.append(Code.GRANT_INFO_MISMATCH)
        if grant.where != where:
            codes.append(Code.GRANT_CLAIM_MISMATCH)
        if exchange.reason_codes or not appraisal.ok:
            codes.append(Code.RELEASED_ON_REFUSAL)
    elif not codes:
        codes += exchange.reason_codes or [Code.EXCHANGE_REFUSED]
    found = tuple(dict.fromkeys(codes))
    if evidence is None:
        return Verified(found, released, float(at))
    return Verified(found, released, float(at), evidence.event_key, evidence.claims)
