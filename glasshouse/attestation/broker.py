"""The key broker: issues tickets and challenges, has evidence appraised, releases the payload key.

The order of `attest` is the protocol's and is numbered in the code: a challenge is consumed, durably, before
a single claim is appraised, and the payload key is opened only after appraisal and a booked grant.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from glasshouse.attestation.appraise import Answer, Appraisal, Reference, appraise, refusal
from glasshouse.attestation.evidence import evidence_nonce, parse_evidence
from glasshouse.attestation.exchange import Exchange
from glasshouse.attestation.forwards import Forwards
from glasshouse.attestation.store import AskedChallenge, SpentTicket, Store
from glasshouse.attestation.ticket import TICKET_BYTES, read_request, ticket_hash
from glasshouse.attestation.tokens import (
    MAX_TOKEN_CHARS,
    check_launch,
    check_name,
    grant_info,
    jwks,
    key_id,
    public_bytes_of,
    returned_launch,
    sign_challenge,
    sign_ear,
    sign_grant,
    verify_challenge,
)
from glasshouse.canonical import b64u, b64u_decode, sha256_hex
from glasshouse.codes import Code
from glasshouse.errors import AttestationError
from glasshouse.sealing.grant import wrap_key
from glasshouse.spec import Policy

TICKET_LIFETIME_SEC = 900
RESULT_LIFETIME_SEC = 300  # of EAR and grant
MAX_KNOCKS_LOGGED = 10_000  # refusals that belong to no launch, in one opening
MAX_KNOCKS_OF_ONE = 1_000  # of these, by the connections of one allocation, or of all that show none


@dataclass(frozen=True)
class Release:
    """The broker's answer to evidence that was appraised well: two compact JWS."""

    ear: str
    grant: str


class Broker:
    """Verifier and key broker over one store. Thread-safe; the HTTP server only translates to it.

    clock returns Unix seconds. earlier: raw public keys it signed with before; they are published, and
    nothing is accepted under them.
    """

    def __init__(
        self,
        store: Store,
        signing_key: Ed25519PrivateKey,
        clock: Callable[[], float] = time.time,
        *,
        earlier: Sequence[bytes] = (),
    ) -> None:
        self.store = store
        self._key = signing_key
        self._clock = clock
        self._earlier = tuple(earlier)
        self._knocks: Counter[str] = Counter()  # how many refusals of a caller were logged
        self._lock = threading.Lock()
        self.forwards = Forwards()
        self.public_bytes = public_bytes_of(signing_key)
        self.id = key_id(self.public_bytes)

    def _now(self) -> int:
        return int(self._clock())

    def jwks(self) -> dict[str, list[dict[str, str]]]:
        """JWK Set of the signing key, and behind it of those before: what they signed stays verifiable."""
        return jwks(self.public_bytes, *self._earlier)

    def register_payload(
        self, run: str, manifest_hash: str, payload_key: bytes | bytearray, *, max_grants: int
    ) -> None:
        """Keep a payload key (32 bytes). max_grants bounds the whole run: planned launches + retries."""
        if len(payload_key) != 32 or max_grants < 1:
            raise AttestationError("no 32-byte key, or no grant allowed", codes=[Code.MALFORMED_REQUEST])
        check_name(run, "run")
        self.store.put_payload(run, manifest_hash, bytes(payload_key), max_grants)
        self.store.log(Code.PAYLOAD_REGISTERED, self._now(), (run, "", 0))

    def issue_ticket(self, reference: Reference, policy: Policy) -> bytes:
        """Make a one-use ticket for one launch, with what its evidence will be held against.

        Returns the seed of its signing key (32 bytes), of which nothing is kept. Raises AttestationError:
        `payload-unknown`, `ticket-issued` (a retry is a new launch number), or `launch-limit-reached` beyond
        the policy's retries.
        """
        run = check_name(reference.run, "run")
        leg = check_name(reference.leg, "leg")
        launch = check_launch(reference.launch)
        if launch > 1 + policy.launch_retries:
            raise AttestationError("the leg has had its retries", codes=[Code.LAUNCH_LIMIT_REACHED])
        if not self.store.has_payload(run, reference.manifest_hash):
            raise AttestationError("no such package is registered", codes=[Code.PAYLOAD_UNKNOWN])
        ticket = secrets.token_bytes(TICKET_BYTES)
        now = self._now()
        self.store.put_ticket(
            ticket_hash(public_bytes_of(Ed25519PrivateKey.from_private_bytes(ticket))),
            run,
            leg,
            launch,
            reference=json.dumps(reference.to_dict()),
            policy=policy.model_dump_json(),
            expires=now + TICKET_LIFETIME_SEC,
        )
        self.store.log(Code.TICKET_ISSUED, now, (run, leg, launch))
        self.forwards.add(ticket, run, reference.allocation_id)
        return ticket

    def challenge(self, request: object, caller: str = "") -> str:
        """Spend a ticket on a signed challenge: a request (compact JWS) in, a challenge (compact JWS) out.

        A request that is refused spends nothing. What is wrong with a ticket is told to its holder only: the
        signature is verified before a ticket is looked for. caller: whose connection it came by, "" where
        that is not known. Raises AttestationError.
        """
        now = self._now()
        try:
            asked = read_request(request, self.id)
            ticket = self.store.spend_ticket(asked.ticket, asked.launch, now)
        except AttestationError as error:
            self._log_refusal("challenge-refused", now, error, caller)
            raise
        reference, policy = _expected(ticket)
        nonce = secrets.token_bytes(32)
        token = sign_challenge(
            self._key,
            audience=self.store.id,
            now=now,
            ttl=policy.freshness_sec,
            run=reference.run,
            leg=reference.leg,
            launch=reference.launch,
            allocation_id=reference.allocation_id,
            manifest_hash=reference.manifest_hash,
            nonce=nonce,
            event_key=asked.event_key,
        )
        self.store.put_challenge(b64u(nonce), ticket.sha256, token, asked.launch, at=now)
        return token

    def attest(self, evidence: object, launch_token: object, caller: str = "") -> Release:
        """Appraise evidence and release the payload key, or refuse with every reason code.

        caller: as for `challenge`. Raises AttestationError. A refusal that belongs to a challenge is recorded
        as its exchange.
        """
        now = self._now()
        # 1. Which challenge? By form only; evidence that names none goes to the log and no further.
        nonce = evidence_nonce(evidence)
        try:
            if nonce is None or not isinstance(evidence, str):
                parse_evidence(evidence)
                raise AttestationError("evidence has no nonce", codes=[Code.MALFORMED_EVIDENCE])
            # 2. Consume it, durably, before anything is appraised.
            asked = self.store.consume_challenge(nonce, now)
        except AttestationError as error:
            self._log_refusal("evidence-refused", now, error, caller)
            raise
        reference, policy = _expected(asked)
        challenge = verify_challenge(asked.token, self.public_bytes)
        # 3. Appraise.
        answer = Answer(challenge, returned_launch(launch_token, self.public_bytes, self.store.id), now)
        appraisal, kem_key = _appraise(evidence, reference, policy, answer)
        # 4. Sign the EAR.
        ear = sign_ear(
            self._key,
            audience=self.store.id,
            now=now,
            ttl=RESULT_LIFETIME_SEC,
            evidence_sha256=sha256_hex(evidence.encode("utf-8")),
            ear_claims=appraisal.ear_claims,
        )
        exchange = Exchange(
            ticket_sha256=asked.ticket,
            challenge=asked.token,
            launch_token=_as_token(launch_token),
            evidence=evidence,
            ear=ear,
        )
        # 5. to 7. Release.
        try:
            if not appraisal.ok:
                raise AttestationError("the evidence was refused", codes=appraisal.codes)
            grant = self._grant(exchange, reference, nonce, kem_key, now)
        except AttestationError as error:
            refused = replace(exchange, reason_codes=tuple(error.codes))
            self.store.put_exchange(*reference.where, refused, at=now)
            raise
        self.store.put_exchange(*reference.where, replace(exchange, grant=grant), at=now)
        return Release(ear, grant)

    def _grant(self, exchange: Exchange, reference: Reference, nonce: str, kem_key: str, now: int) -> str:
        where = reference.where
        # 5. Book the grant, durably: it can be lost now, never given twice.
        self.store.reserve_grant(nonce, *where, manifest_hash=reference.manifest_hash, now=now)
        # 6. Bind it to the whole transcript and wrap the key.
        info = grant_info(
            self.id,
            *where,
            challenge=exchange.challenge,
            launch_token=exchange.launch_token,
            evidence=exchange.evidence,
            ear=exchange.ear,
        )
        payload_key = self.store.unwrap(reference.run, reference.manifest_hash)
        try:
            ciphertext = wrap_key(payload_key, b64u_decode(kem_key), info)
        finally:
            payload_key[:] = bytes(len(payload_key))
        # 7. Sign it.
        return sign_grant(
            self._key,
            audience=self.store.id,
            now=now,
            ttl=RESULT_LIFETIME_SEC,
            run=reference.run,
            leg=reference.leg,
            launch=reference.launch,
            info=info,
            ciphertext=ciphertext,
        )

    def _log_refusal(self, event: str, now: int, error: AttestationError, caller: str) -> None:
        # Anybody on the pod can knock: what that writes is bounded, for each caller, so that none uses up
        # what is there to show another's; what a launch writes is never cut.
        with self._lock:
            if self._knocks[caller] >= MAX_KNOCKS_OF_ONE or self._knocks.total() >= MAX_KNOCKS_LOGGED:
                return
            self._knocks[caller] += 1
        self.store.log(event, now, None, error.codes)

    def exchange(self, run: str, leg: str, launch: int) -> Exchange | None:
        """The exchange of a launch for the bundle, or None when no evidence named its challenge."""
        return self.store.exchange(run, leg, launch)


def _as_token(sent: object) -> str:
    """What may be recorded as a launch token: text that could be one. Anything else fits no launch anyway."""
    return sent if isinstance(sent, str) and sent.isascii() and len(sent) <= MAX_TOKEN_CHARS else ""


def _expected(row: SpentTicket | AskedChallenge) -> tuple[Reference, Policy]:
    """What evidence is held against, as it was said when the ticket was issued."""
    reference = Reference.from_dict(json.loads(row.reference))
    return reference, Policy.model_validate_json(row.policy)


def _appraise(evidence: str, reference: Reference, policy: Policy, answer: Answer) -> tuple[Appraisal, str]:
    """Appraise evidence; with the KEM key to wrap to, which means something only if the appraisal is good."""
    try:
        claims = parse_evidence(evidence).claims
    except AttestationError as error:
        return refusal(error.codes, reference, policy, answer), ""
    return appraise(claims, reference, policy, answer), claims.get("kem_key", "")
