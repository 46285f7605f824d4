"""The operator's side of a broker that runs as a process of its own: packages and tickets over HTTP.

Every request is a JWS by an operator's key, for one opening of the store, valid for a minute. What is secret
in it is sealed by HPKE, whatever carries it: the payload key to a key that the broker makes at each start and
signs in its card, the ticket to a key that the operator makes for the request. A request that is sent twice
is refused by what it asks for: a package is registered once, and a launch has one ticket. Tickets for a
package are for the operator that registered it at this start of the broker, and for nobody after the next.

    /v1/card     {} -> {"card"}           the store's id, the broker's KEM key, the type of request that its
                                          tickets sign and the line that forwards write, signed by the broker
    /v1/operate  {"request"} with action  payload   run, manifest_hash, max_grants, key -> {}
                                          ticket    reference, policy, reply_to -> {"ticket"}
                                          exchange  run, leg, launch -> {"exchange"}
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Annotated, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, TypeAdapter

from glasshouse.attestation.broker import Broker
from glasshouse.attestation.claims import Reference
from glasshouse.attestation.client import Reply, post
from glasshouse.attestation.exchange import Exchange
from glasshouse.attestation.forwards import FORWARD
from glasshouse.attestation.ticket import TICKET_TYP
from glasshouse.attestation.tokens import (
    ReadToken,
    check_name,
    envelope,
    read_jws,
    sign_jws,
    verify_typed,
)
from glasshouse.canonical import CanonicalError, b64u, b64u_decode, canonical_json, domain_hash
from glasshouse.codes import Code
from glasshouse.errors import AttestationError, SealError
from glasshouse.sealing.grant import generate_kem_key, kem_public_bytes, unwrap_key, wrap_key
from glasshouse.sealing.memory import overwrite
from glasshouse.spec import Policy

CARD_TYP = "gh-broker+jwt"
REQUEST_TYP = "gh-operator+jwt"
LIFETIME_SEC = 60
SKEW_SEC = 5  # an operator's clock may be ahead of the broker's
MAX_GRANTS = 1_000_000


# What the broker answers to an operator: a string by its name, or a recorded exchange.
Answer = Mapping[str, str | dict[str, str | list[str] | None] | None]


def _reference(value: object) -> Reference:
    return value if isinstance(value, Reference) else Reference.from_dict(value)


class _Asked(BaseModel):
    """What a signed request holds beside its envelope: exactly these names, of exactly these types."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", arbitrary_types_allowed=True)


class _Package(_Asked):
    """Keep a payload key, sealed to the broker's card."""

    action: Literal["payload"]
    run: str
    manifest_hash: str
    max_grants: Annotated[int, Field(ge=1, le=MAX_GRANTS)]
    key: str


class _Ticket(_Asked):
    """Issue a ticket for one launch, sealed to reply_to."""

    action: Literal["ticket"]
    reference: Annotated[Reference, PlainValidator(_reference), PlainSerializer(Reference.to_dict)]
    policy: Policy
    reply_to: str


class _Recorded(_Asked):
    """Show the recorded exchange of one launch."""

    action: Literal["exchange"]
    run: str
    leg: str
    launch: int


_REQUEST: TypeAdapter[_Package | _Ticket | _Recorded] = TypeAdapter(
    Annotated[_Package | _Ticket | _Recorded, Field(discriminator="action")]
)
_ENVELOPE = ("iss", "aud", "iat", "nbf", "exp")


def _payload_info(audience: str, run: str, manifest_hash: str) -> bytes:
    return domain_hash("glasshouse/payload/v1", [text.encode() for text in (audience, run, manifest_hash)])


def _ticket_info(request: str) -> bytes:
    return domain_hash("glasshouse/ticket/v1", [request.encode()])


class Desk:
    """Answers operators at a broker. find_operator: the raw public key of a key id that may ask, or None."""

    def __init__(
        self,
        broker: Broker,
        signing_key: Ed25519PrivateKey,
        find_operator: Callable[[str], bytes | None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._broker = broker
        self._key = signing_key
        self._find = find_operator
        self._clock = clock
        self._kem = generate_kem_key()
        self._owners: dict[tuple[str, str], str] = {}  # (run, manifest hash) -> key id of its operator

    def card(self) -> str:
        """The signed card: which opening of the store this is, and the key to seal payload keys to."""
        claims = envelope(self._key, self._broker.store.id, int(self._clock()), LIFETIME_SEC)
        told = {"kem": b64u(kem_public_bytes(self._kem)), "ticket": TICKET_TYP, "forward": FORWARD}
        return sign_jws({**claims, **told}, self._key, CARD_TYP)

    def operate(self, request: object) -> Answer:
        """Do what a signed request asks. Raises AttestationError; `operator-unknown` for anybody else's."""
        token = read_jws(request, REQUEST_TYP, what="request")
        public = self._find(token.kid)
        if public is None:
            raise AttestationError("no operator of this broker", codes=[Code.OPERATOR_UNKNOWN])
        verified = verify_typed(
            token.text, public, self._clock(), self._broker.store.id, typ=REQUEST_TYP, what="request"
        )
        if verified.times.exp - verified.times.iat > LIFETIME_SEC:
            raise AttestationError(
                f"a request is valid for {LIFETIME_SEC} s at most", codes=[Code.REQUEST_LIFETIME_EXCEEDED]
            )
        claims = verified.claims
        said = {name: value for name, value in claims.items() if name not in _ENVELOPE}
        try:
            asked = _REQUEST.validate_json(canonical_json(said))
            if isinstance(asked, _Package):
                return self._payload(asked, token)
            if isinstance(asked, _Ticket):
                return self._ticket(asked, token)
            return self._exchange(asked, token)
        except (TypeError, ValueError, SealError) as error:  # also ValidationError and CanonicalError
            raise AttestationError(
                "the request is not of its form", codes=[Code.MALFORMED_REQUEST]
            ) from error

    def _check_owner(self, run: str, kid: str, *, manifest_hash: str | None = None) -> None:
        """One operator's tickets must not open another's package. Raises `operator-mismatch`."""
        found = {
            owner
            for (named, package), owner in list(self._owners.items())
            if named == run and manifest_hash in (None, package)
        }
        if found != {kid}:
            raise AttestationError("the package is another operator's", codes=[Code.OPERATOR_MISMATCH])

    def _payload(self, asked: _Package, token: ReadToken) -> Answer:
        run = check_name(asked.run, "run")
        if any(named == run for named, _ in list(self._owners)):
            self._check_owner(run, token.kid)
        info = _payload_info(self._broker.store.id, run, asked.manifest_hash)
        key = unwrap_key(b64u_decode(asked.key), self._kem, info)
        try:
            self._broker.register_payload(run, asked.manifest_hash, key, max_grants=asked.max_grants)
            self._owners[run, asked.manifest_hash] = token.kid
        finally:
            overwrite(key)
        return {}

    def _ticket(self, asked: _Ticket, token: ReadToken) -> Answer:
        reply_to, reference = b64u_decode(asked.reply_to), asked.reference
        self._check_owner(reference.run, token.kid, manifest_hash=reference.manifest_hash)
        wrap_key(
            b"\x01" * 32, reply_to, _ticket_info(token.text)
        )  # a ticket that nobody could open is not issued
        ticket = self._broker.issue_ticket(reference, asked.policy)
        return {"ticket": b64u(wrap_key(ticket, reply_to, _ticket_info(token.text)))}

    def _exchange(self, asked: _Recorded, token: ReadToken) -> Answer:
        self._check_owner(asked.run, token.kid)
        found = self._broker.exchange(asked.run, asked.leg, asked.launch)
        return {"exchange": None if found is None else found.to_json()}


class RemoteBroker:
    """A broker in another process, with the calls that a run makes of its own, over loopback.

    Raises AttestationError with the broker's codes, `broker-unreachable`, or what did not verify.
    """

    def __init__(self, port: int, operator: Ed25519PrivateKey, find_broker: Callable[[str], bytes]) -> None:
        """find_broker: gives the raw public key of a broker's key id from a keyring, or raises."""
        self.port = port
        self._operator = operator
        card = post(port, "/v1/card", {}, 30.0).text("card")
        self.public_bytes = find_broker(read_jws(card, CARD_TYP, what="card").kid)
        # At its own time: an older card names a store that is closed and a key that is gone.
        at = read_jws(card, CARD_TYP, what="card").claims.get("iat", 0)
        told = verify_typed(card, self.public_bytes, at, None, typ=CARD_TYP, what="card")
        if (told.claims.get("ticket"), told.claims.get("forward")) != (TICKET_TYP, FORWARD):
            # Said here: its tickets would be issued and sent, and the first launch refused without a reason.
            raise AttestationError(
                "the broker is of another release, whose tickets or forwards this one does not use",
                codes=[Code.BROKER_PROTOCOL_MISMATCH],
                remedy="restart `glasshouse broker` with this release, or unset GLASSHOUSE_BROKER",
            )
        self._audience = told.audience
        self._kem = b64u_decode(told.text("kem"))

    def _ask(self, asked: _Asked) -> tuple[str, Reply]:
        claims = envelope(self._operator, self._audience, int(time.time()) - SKEW_SEC, LIFETIME_SEC)
        request = sign_jws({**claims, **asked.model_dump(mode="json")}, self._operator, REQUEST_TYP)
        return request, post(self.port, "/v1/operate", {"request": request}, 30.0)

    def register_payload(
        self, run: str, manifest_hash: str, payload_key: bytes | bytearray, *, max_grants: int
    ) -> None:
        """As Broker.register_payload; the key (32 bytes) travels sealed."""
        sealed = wrap_key(payload_key, self._kem, _payload_info(self._audience, run, manifest_hash))
        self._ask(
            _Package(
                action="payload",
                run=run,
                manifest_hash=manifest_hash,
                max_grants=max_grants,
                key=b64u(sealed),
            )
        )

    def issue_ticket(self, reference: Reference, policy: Policy) -> bytes:
        """As Broker.issue_ticket; the ticket (32 bytes) travels sealed."""
        key = generate_kem_key()
        asked = _Ticket(
            action="ticket",
            reference=reference,
            policy=policy,
            reply_to=b64u(kem_public_bytes(key)),
        )
        request, answer = self._ask(asked)
        try:
            return bytes(unwrap_key(b64u_decode(answer.text("ticket")), key, _ticket_info(request)))
        except (CanonicalError, SealError) as error:
            raise AttestationError(
                "the broker's answer holds no ticket", codes=[Code.MALFORMED_ANSWER]
            ) from error
        finally:
            key.wipe()

    def exchange(self, run: str, leg: str, launch: int) -> Exchange | None:
        """As Broker.exchange."""
        _, answer = self._ask(_Recorded(action="exchange", run=run, leg=leg, launch=launch))
        found = answer.members.get("exchange")
        return None if found is None else Exchange.from_json(found)
