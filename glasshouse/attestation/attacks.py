"""The moves of an attacker against broker and client, from which scenarios.py builds the tamper suite.

A claim attack signs its lie properly and recomputes the composite hash, unless it says otherwise: an attacker
on the pod can do both. Attacks on the client (a hijacked port that answers in the broker's place) reuse the
control's finished exchange, since there the attacker has what the broker once sent.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from glasshouse.attestation.client import Challenge, check_challenge, check_release
from glasshouse.attestation.evidence import EAT_PROFILE, EVIDENCE_TYP, composite_hash
from glasshouse.attestation.stage import Attack, Stage, StagedLaunch, with_launch_token
from glasshouse.attestation.ticket import TICKET_TYP
from glasshouse.attestation.tokens import (
    LAUNCH_TYP,
    key_id,
    public_bytes_of,
    sign_challenge,
    sign_jws,
)
from glasshouse.canonical import b64u, b64u_decode, canonical_json, sha256_hex
from glasshouse.sealing.grant import generate_kem_key, kem_public_bytes

Claims = dict[str, Any]


def change_claims(change: Callable[[Claims], object]) -> Attack:
    """Change honest claims, sign them, send them."""

    def attack(_stage: Stage, mine: StagedLaunch, _control: StagedLaunch) -> None:
        claims = mine.claims()
        change(claims)
        mine.submit(mine.sign(claims))

    return attack


def set_claims(**values: Any) -> Attack:
    """Change top-level claims."""
    return change_claims(lambda claims: claims.update(values))


def set_hardening(**values: Any) -> Attack:
    """Change claims of `hardening`."""
    return change_claims(lambda claims: claims["hardening"].update(values))


def forge_jws(forge: Callable[[StagedLaunch, Claims], str]) -> Attack:
    """Build the evidence JWS by hand from complete honest claims."""

    def attack(_stage: Stage, mine: StagedLaunch, _control: StagedLaunch) -> None:
        claims = {"event_key": b64u(public_bytes_of(mine.event_key)), **mine.claims()}
        claims["eat_profile"] = EAT_PROFILE
        claims["composite_hash"] = composite_hash(claims)
        mine.submit(forge(mine, claims))

    return attack


def compact(header: Claims | bytes, payload: Claims | bytes, sign: Callable[[bytes], bytes]) -> str:
    """A compact JWS from any header and payload; `sign` gets the signing input."""
    parts = [part if isinstance(part, bytes) else canonical_json(part) for part in (header, payload)]
    text = f"{b64u(parts[0])}.{b64u(parts[1])}"
    return f"{text}.{b64u(sign(text.encode('ascii')))}"


def _header(mine: StagedLaunch, **changed: Any) -> Claims:
    kid = key_id(public_bytes_of(mine.event_key))
    return {"alg": "EdDSA", "typ": EVIDENCE_TYP, "kid": kid, **changed}


def with_header(**changed: Any) -> Attack:
    """Sign honest claims under a changed header."""
    return forge_jws(lambda mine, claims: compact(_header(mine, **changed), claims, mine.event_key.sign))


def hs256(mine: StagedLaunch, claims: Claims) -> str:
    """An HMAC keyed with the public key: what a verifier that lets the token choose would accept."""
    secret = public_bytes_of(mine.event_key)
    header = _header(mine, alg="HS256")
    return compact(header, claims, lambda data: hmac.new(secret, data, hashlib.sha256).digest())


def embedded_key(mine: StagedLaunch, claims: Claims) -> str:
    """Sign with a key of our own, handed along in the header."""
    other = Ed25519PrivateKey.generate()
    jwk = {"kty": "OKP", "crv": "Ed25519", "x": b64u(public_bytes_of(other))}
    return compact(_header(mine, jwk=jwk), claims, other.sign)


def unsigned_change(name: str, value: Callable[[], str]) -> Attack:
    """Change a claim in transit, composite hash and all, without the key to sign it."""

    def forge(mine: StagedLaunch, claims: Claims) -> str:
        changed = {**claims, name: value()}
        changed["composite_hash"] = composite_hash(changed)
        signature = b64u_decode(mine.sign(claims).split(".")[2])
        kid = key_id(b64u_decode(changed["event_key"]))
        return compact(_header(mine, kid=kid), changed, lambda _data: signature)

    return forge_jws(forge)


def duplicate_claim(mine: StagedLaunch, claims: Claims) -> str:
    """Name a claim twice, so that two parsers may read two values."""
    payload = canonical_json(claims)[:-1] + b',"runtime_state":"awaiting-release"}'
    return compact(_header(mine), payload, mine.event_key.sign)


def deep_claim(mine: StagedLaunch, claims: Claims) -> str:
    """Nest beyond what a parser should follow."""
    payload = canonical_json(claims)[:-1] + b',"deep":' + b"[" * 500 + b"]" * 500 + b"}"
    return compact(_header(mine), payload, mine.event_key.sign)


def replay(_stage: Stage, _mine: StagedLaunch, control: StagedLaunch) -> None:
    """Send the control's evidence once more."""
    control.submit(control.evidence)


def replay_after_restart(stage: Stage, _mine: StagedLaunch, control: StagedLaunch) -> None:
    """Send the control's evidence to the broker restarted on the same store."""
    _broker, port = stage.open_broker()
    replace(control, port=port).submit(control.evidence)


def restored_backup(stage: Stage, mine: StagedLaunch, _control: StagedLaunch) -> None:
    """Answer a challenge at a broker that opened the store anew: to it, a restored backup."""
    evidence = mine.sign(mine.claims())
    _broker, port = stage.open_broker()
    replace(mine, port=port).submit(evidence)


def restored_ticket(stage: Stage, mine: StagedLaunch, _control: StagedLaunch) -> None:
    """Spend a ticket at a broker that opened the store anew."""
    _broker, port = stage.open_broker()
    replace(mine, port=port).honest()


def other_launch_token(_stage: Stage, mine: StagedLaunch, control: StagedLaunch) -> None:
    """Honest evidence with the control's launch token."""
    challenge = with_launch_token(mine.fetch(), control.fetch().launch_token)
    mine.submit(mine.sign(mine.claims()), challenge)


def forged_launch_token(_stage: Stage, mine: StagedLaunch, _control: StagedLaunch) -> None:
    """Honest evidence with a launch token that we signed ourselves."""
    challenge = mine.fetch()
    claims = json.loads(b64u_decode(challenge.launch_token.split(".")[1]))
    forged = sign_jws(claims, Ed25519PrivateKey.generate(), LAUNCH_TYP)
    mine.submit(mine.sign(mine.claims()), with_launch_token(challenge, forged))


def other_nonce(_stage: Stage, mine: StagedLaunch, _control: StagedLaunch) -> None:
    """A nonce that no challenge holds."""
    mine.submit(mine.sign({**mine.claims(), "eat_nonce": b64u(bytes(32))}))


def other_evidence(stage: Stage, mine: StagedLaunch, _control: StagedLaunch) -> None:
    """Evidence of another pod, honest there, signed for our challenge."""
    nonce = mine.fetch().nonce  # first: evidence from before our challenge would be stale
    mine.submit(mine.sign({**stage.launch().claims(), "eat_nonce": nonce}))


def late_evidence(stage: Stage, mine: StagedLaunch, _control: StagedLaunch) -> None:
    """Honest evidence, after the challenge expired."""
    claims = mine.claims()
    stage.clock.shift = mine.policy.freshness_sec + 1
    claims["iat"] += mine.policy.freshness_sec + 1
    mine.submit(mine.sign(claims))


def late_ticket(stage: Stage, mine: StagedLaunch, _control: StagedLaunch) -> None:
    """An honest exchange, after the ticket expired."""
    stage.clock.shift = 901
    mine.honest()


def other_event_key(_stage: Stage, mine: StagedLaunch, _control: StagedLaunch) -> None:
    """Honest evidence, signed by another key than the request named."""
    claims = mine.claims()
    mine.event_key = Ed25519PrivateKey.generate()
    mine.submit(mine.sign(claims))


def relayed_request(_stage: Stage, mine: StagedLaunch, _control: StagedLaunch) -> None:
    """Pass on a request that came by, unchanged, and answer its challenge with keys of our own."""
    mine.fetch()
    replace(mine, event_key=Ed25519PrivateKey.generate(), kem_key=generate_kem_key()).honest()


def relayed_challenge(_stage: Stage, mine: StagedLaunch, _control: StagedLaunch) -> None:
    """Evidence with keys of our own that names the event key whose request we passed on."""
    claims = {**mine.claims(), "event_key": b64u(public_bytes_of(mine.event_key))}
    own = Ed25519PrivateKey.generate()
    kid = key_id(public_bytes_of(mine.event_key))
    claims |= {"eat_profile": EAT_PROFILE, "kem_key": b64u(kem_public_bytes(generate_kem_key()))}
    claims["composite_hash"] = composite_hash(claims)
    mine.submit(compact(_header(mine, kid=kid), claims, own.sign))


def replayed_request(stage: Stage, mine: StagedLaunch, _control: StagedLaunch) -> None:
    """Send a request twice."""
    request = mine.request()
    stage.post("/v1/challenge", {"request": request})
    stage.post("/v1/challenge", {"request": request})


def forge_request(forge: Callable[[StagedLaunch, StagedLaunch, Claims], str]) -> Attack:
    """Build the request by hand from the claims of an honest one; `forge` gets the control's launch, too."""

    def attack(stage: Stage, mine: StagedLaunch, control: StagedLaunch) -> None:
        claims = json.loads(b64u_decode(mine.request().split(".")[1]))
        stage.post("/v1/challenge", {"request": forge(mine, control, claims)})

    return attack


def ticket_key(launch: StagedLaunch) -> Ed25519PrivateKey:
    """The signing key that a launch's ticket is the seed of."""
    return Ed25519PrivateKey.from_private_bytes(launch.ticket)


def signed_request(**changed: Any) -> Attack:
    """Change a request and sign it by its ticket."""
    return forge_request(
        lambda mine, _control, claims: sign_jws({**claims, **changed}, ticket_key(mine), TICKET_TYP)
    )


def request_by_a_stranger(_mine: StagedLaunch, _control: StagedLaunch, claims: Claims) -> str:
    """A request of a key that nobody was given."""
    own = Ed25519PrivateKey.generate()
    return sign_jws({**claims, "ticket_key": b64u(public_bytes_of(own))}, own, TICKET_TYP)


def request_by_another_ticket(mine: StagedLaunch, control: StagedLaunch, claims: Claims) -> str:
    """A request that names one ticket and is signed by another."""
    kid = key_id(public_bytes_of(ticket_key(mine)))
    return compact({"alg": "EdDSA", "typ": TICKET_TYP, "kid": kid}, claims, ticket_key(control).sign)


def request_for_own_event_key(mine: StagedLaunch, _control: StagedLaunch, claims: Claims) -> str:
    """A request that came by, with an event key of our own in it."""
    head, _, signature = mine.request().split(".")
    changed = {**claims, "event_key": b64u(public_bytes_of(Ed25519PrivateKey.generate()))}
    return f"{head}.{b64u(canonical_json(changed))}.{signature}"


def unsigned_request(mine: StagedLaunch, _control: StagedLaunch, claims: Claims) -> str:
    """A request with alg none."""
    kid = key_id(public_bytes_of(ticket_key(mine)))
    return compact({"alg": "none", "typ": TICKET_TYP, "kid": kid}, claims, lambda _data: b"")


def evidence_as_request(mine: StagedLaunch, _control: StagedLaunch, claims: Claims) -> str:
    """A request typed as evidence."""
    return sign_jws(claims, ticket_key(mine), EVIDENCE_TYP)


def clear_ticket(stage: Stage, mine: StagedLaunch, _control: StagedLaunch) -> None:
    """The ticket itself, as it was sent before it signed."""
    run, leg, launch = mine.where
    stage.post("/v1/challenge", {"ticket": b64u(mine.ticket), "run": run, "leg": leg, "launch": launch})


def used_ticket(_stage: Stage, _mine: StagedLaunch, control: StagedLaunch) -> None:
    """The control's ticket once more."""
    replace(control, challenge=None).honest()


def stolen_ticket(_stage: Stage, mine: StagedLaunch, control: StagedLaunch) -> None:
    """A neighbour's fresh ticket, for our own launch."""
    replace(control, ticket=mine.ticket, challenge=None).honest()


def superseded(asked: bool) -> Attack:
    """A ticket, or a challenge (asked), taken while a launch failed, used once the leg is launched again."""

    def attack(stage: Stage, mine: StagedLaunch, _control: StagedLaunch) -> None:
        if asked:
            mine.fetch()
        stage.launch(mine.reference.run, launch=mine.reference.launch + 1)
        mine.honest()

    return attack


def raw_body(raw: bytes, **headers: str) -> Attack:
    """Post these bytes as evidence; an empty header value leaves the header out."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda stage, _mine, _control: stage.post("/v1/attest", raw, names)


def duplicate_body(stage: Stage, mine: StagedLaunch, _control: StagedLaunch) -> None:
    """Name the evidence twice in the body."""
    challenge = mine.fetch()
    evidence = mine.sign(mine.claims())
    body = canonical_json({"evidence": evidence, "launchToken": challenge.launch_token})
    stage.post("/v1/attest", body[:-1] + b',"evidence":"x"}')


def oversized_evidence(_stage: Stage, mine: StagedLaunch, _control: StagedLaunch) -> None:
    """Evidence beyond the size of a token."""
    mine.submit(mine.sign({**mine.claims(), "padding": "x" * 30_000}))


def beyond_grant_limit(stage: Stage, _mine: StagedLaunch, _control: StagedLaunch) -> None:
    """An honest exchange in a run that has had every grant it was planned for (here: one)."""
    run = stage.new_run()
    stage.broker.register_payload(run, sha256_hex(f"manifest {run}".encode()), b"\x07" * 32, max_grants=1)
    launch = stage.launch(run)
    where = (run, "s999", 1)
    stage.broker.store.reserve_grant(
        "booked", *where, manifest_hash=launch.reference.manifest_hash, now=int(stage.clock())
    )
    launch.honest()


def forged_challenge(_stage: Stage, mine: StagedLaunch, _control: StagedLaunch) -> None:
    """A challenge that we signed ourselves, shown to the client."""
    forged = sign_challenge(
        Ed25519PrivateKey.generate(),
        audience="0" * 32,
        now=1,
        ttl=60,
        run=mine.reference.run,
        leg=mine.reference.leg,
        launch=mine.reference.launch,
        allocation_id=mine.reference.allocation_id,
        manifest_hash=mine.reference.manifest_hash,
        nonce=bytes(32),
        event_key=public_bytes_of(mine.event_key),
    )
    check_challenge(forged, mine.where, mine.broker_public, public_bytes_of(mine.event_key))


def foreign_challenge(_stage: Stage, mine: StagedLaunch, _control: StagedLaunch) -> None:
    """The broker's challenge for our launch, asked for by somebody else's key, shown to the client."""
    own = public_bytes_of(Ed25519PrivateKey.generate())
    check_challenge(mine.fetch().token, mine.where, mine.broker_public, own)


@dataclass(frozen=True)
class Sent:
    """What a client checks of an answer, and what it checks it against."""

    ear: str
    grant: str
    evidence: str
    challenge: Challenge
    broker_public: bytes


def change_answer(change: Callable[[Sent, StagedLaunch], Sent]) -> Attack:
    """A hijacked port: what the control was sent, changed, checked as the client would."""

    def attack(_stage: Stage, mine: StagedLaunch, control: StagedLaunch) -> None:
        if control.released is None:
            raise RuntimeError("the control was not released")
        sent = change(
            Sent(
                ear=control.released.ear,
                grant=control.released.grant,
                evidence=control.evidence,
                challenge=control.fetch(),
                broker_public=control.broker_public,
            ),
            mine,
        )
        check_release(sent.ear, sent.grant, sent.evidence, sent.challenge, sent.broker_public)

    return attack


def resigned(token: str, typ: str) -> str:
    """A token's claims, signed again with a key of our own."""
    claims = json.loads(b64u_decode(token.split(".")[1]))
    return sign_jws(claims, Ed25519PrivateKey.generate(), typ)


def shift_challenge(seconds: int) -> Attack:
    """Check the answer as if the challenge had been given at another time (seconds)."""
    return change_answer(
        lambda sent, _mine: replace(
            sent, challenge=replace(sent.challenge, server_time=sent.challenge.server_time + seconds)
        )
    )


def another_transcript(sent: Sent, mine: StagedLaunch) -> Sent:
    """Put another challenge into the transcript."""
    return replace(sent, challenge=replace(sent.challenge, token=mine.fetch().token))
