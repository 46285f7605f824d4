"""The ticket: a signing key that is used once, and the request for a challenge that it signs.

A ticket is the seed of an Ed25519 key. It goes to the supervisor over the pinned SSH session and no further:
over the pod's loopback, where any process may stand in for the broker, goes a JWS by the ticket's key with
exactly these claims:

    aud         key id of the broker it is for
    run, leg, launch
    event_key   public key that the evidence will be signed by (base64url)
    ticket_key  public key of the ticket (base64url), by whose hash the broker finds it

Whoever takes a request can pass it on and no more: the challenge that it buys says whose evidence answers it
(`cnf`, tokens.py), and he cannot sign that. It holds no time, because a pod has no clock that anybody trusts;
that a ticket buys one challenge makes it fresh.

Part of the archive that runs on the pod: standard library, cryptography and jwt only.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from glasshouse.attestation.tokens import (
    check_launch,
    check_name,
    check_signature,
    public_bytes_of,
    read_jws,
    sign_jws,
)
from glasshouse.canonical import CanonicalError, b64u, b64u_decode, domain_hash
from glasshouse.codes import Code
from glasshouse.errors import AttestationError
from glasshouse.sealing.memory import overwrite

TICKET_TYP = "gh-ticket+jwt"
TICKET_BYTES = 32
_CLAIMS = {"aud", "run", "leg", "launch", "event_key", "ticket_key"}


@dataclass(frozen=True)
class Request:
    """A request whose signature holds: hash of its ticket's key, (run, leg, launch), raw event key."""

    ticket: str
    launch: tuple[str, str, int]
    event_key: bytes


def ticket_hash(public_bytes: bytes) -> str:
    """Hash (hex) under which a broker keeps a ticket, of the ticket's raw public key."""
    return domain_hash("glasshouse/ticket-key/v1", [public_bytes]).hex()


def sign_request(ticket: bytearray, launch: tuple[str, str, int], *, broker_id: str, event_key: bytes) -> str:
    """Ask for a challenge: sign with the ticket (32 bytes), which is wiped whatever happens.

    launch is (run, leg, launch number), event_key the raw public key (32 bytes) that evidence will be signed
    by. Raises ValueError for a ticket of another size.
    """
    try:
        key = Ed25519PrivateKey.from_private_bytes(ticket)
    finally:
        overwrite(ticket)
    run, leg, number = launch
    claims = {"aud": broker_id, "run": run, "leg": leg, "launch": number, "event_key": b64u(event_key)}
    return sign_jws({**claims, "ticket_key": b64u(public_bytes_of(key))}, key, TICKET_TYP)


def read_request(request: object, broker_id: str) -> Request:
    """Parse a request strictly and verify it as far as it goes without knowing the ticket.

    Nothing that this refuses depends on what tickets there are, so its codes tell nobody whether one exists:
    `malformed-request`, `algorithm-not-allowed`, `token-type-mismatch`, `forbidden-header`,
    `key-id-mismatch`, `request-signature-invalid`, `request-audience-mismatch` (all AttestationError).
    """
    token = read_jws(request, TICKET_TYP, what="request")
    claims = token.claims
    if set(claims) != _CLAIMS:
        raise AttestationError("the request has other claims", codes=[Code.MALFORMED_REQUEST])
    try:
        ticket_key = b64u_decode(claims["ticket_key"], size=32)
        event_key = b64u_decode(claims["event_key"], size=32)
    except CanonicalError as error:
        raise AttestationError("the request names no keys", codes=[Code.MALFORMED_REQUEST]) from error
    check_signature(token, ticket_key, what="request")
    launch = (
        check_name(claims["run"], "run"),
        check_name(claims["leg"], "leg"),
        check_launch(claims["launch"]),
    )
    if claims["aud"] != broker_id:
        raise AttestationError("the request is for another broker", codes=[Code.REQUEST_AUDIENCE_MISMATCH])
    return Request(ticket_hash(ticket_key), launch, event_key)
