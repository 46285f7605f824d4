"""What the broker signs: challenge, launch token, EAR and grant, each a compact JWS.

Challenge and launch token name the key whose evidence answers them, as RFC 7800 and RFC 9449 do: `cnf` holds
`jkt`, the RFC 7638 thumbprint of the runtime's event key.

Every token is EdDSA over Ed25519 (RFC 8037) with its own `typ` (RFC 8725 section 3.11: explicit
typing) and `kid` = SHA-256 of the raw public key in hex. The header holds exactly `alg`, `typ` and
`kid`: `jwk`, `jku`, `x5u`, `crit` and anything else are refused, so a token can never bring its own key.
Each part is parsed strictly (canonical.parse_json: bounded, no duplicate keys) *before* PyJWT verifies
the signature; nothing reads a claim of an unverified token, except to find which key must verify it.

Time claims are checked here and not by PyJWT, against the `now` that the caller gives and with leeway 0:
PyJWT knows only the machine's clock, and tokens are judged offline long after they expired, at the time
the broker signed for.

Part of the archive that runs on the pod: standard library, cryptography and jwt only.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeGuard

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from glasshouse.canonical import (
    CanonicalError,
    b64u,
    b64u_decode,
    canonical_json,
    domain_hash,
    parse_json,
    sha256_hex,
)
from glasshouse.codes import Code
from glasshouse.errors import AttestationError

CHALLENGE_TYP = "gh-challenge+jwt"
LAUNCH_TYP = "gh-launch+jwt"
EAR_TYP = "gh-ear+jwt"
GRANT_TYP = "gh-grant+jwt"
EVIDENCE_DIGEST = "ear.glasshouse.evidence-sha256"

MAX_TOKEN_CHARS = 24 << 10
_MAX_HEADER_CHARS = 1024
_SIGNATURE_BYTES = 64
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")

# A point of small order, or one written in a second way, is no key: signatures verify under it that nobody
# made, so they prove the possession of nothing. These are the y of the points of order 1, 2, 4 and 8.
_PRIME = 2**255 - 19
_ORDER_8 = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
_SMALL_ORDER = (0, 1, _PRIME - 1, _ORDER_8, _PRIME - _ORDER_8)

# One strict JWS object: PyJWT's default list would accept every algorithm it knows.
_JWS = jwt.PyJWS(algorithms=["EdDSA"])


@dataclass(frozen=True)
class ReadToken:
    """The parts of a JWS whose form was checked and whose signature was not."""

    text: str
    kid: str
    claims: dict[str, Any]


def key_id(public_bytes: bytes) -> str:
    """Key id of a raw 32-byte Ed25519 public key: its SHA-256 in hex."""
    return sha256_hex(public_bytes)


def public_bytes_of(key: Ed25519PrivateKey) -> bytes:
    """Raw public key (32 bytes) of a private key."""
    return key.public_key().public_bytes_raw()


def is_public_key(public_bytes: bytes) -> bool:
    """Whether 32 bytes can be an honest Ed25519 public key: canonical, and of no small order."""
    y = int.from_bytes(public_bytes, "little") % 2**255
    return y < _PRIME and y not in _SMALL_ORDER


def thumbprint(public_bytes: bytes) -> str:
    """JWK thumbprint (RFC 7638, RFC 8037; base64url) of a raw 32-byte Ed25519 public key."""
    jwk = {"crv": "Ed25519", "kty": "OKP", "x": b64u(public_bytes)}
    return b64u(hashlib.sha256(canonical_json(jwk)).digest())


def check_name(value: object, field: str) -> str:
    """Return `value` if it can be a run id or leg id; raise AttestationError otherwise."""
    if not isinstance(value, str) or _NAME.match(value) is None:
        raise AttestationError(f"{field} is not a name", codes=[Code.MALFORMED_REQUEST])
    return value


def check_launch(value: object) -> int:
    """Return `value` if it is a launch number (1..999); raise AttestationError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 999:
        raise AttestationError("launch is not a launch number", codes=[Code.MALFORMED_REQUEST])
    return value


def sign_jws(claims: Mapping[str, Any], key: Ed25519PrivateKey, typ: str) -> str:
    """Sign canonical claims as a compact JWS.

    Floats are refused (CanonicalError), as in everything that is hashed.
    """
    headers = {"typ": typ, "kid": key_id(public_bytes_of(key))}
    return _JWS.encode(canonical_json(claims, floats=False), key, algorithm="EdDSA", headers=headers)


def read_jws(token: object, typ: str, *, what: str) -> ReadToken:
    """Parse a compact JWS strictly, without verifying its signature.

    Raises AttestationError with `malformed-<what>`, `algorithm-not-allowed`, `token-type-mismatch`,
    `forbidden-header` or `key-id-mismatch` (a kid that is no key id).
    """
    malformed = Code(f"malformed-{what}")
    if not isinstance(token, str) or not token.isascii() or len(token) > MAX_TOKEN_CHARS:
        raise AttestationError(f"{what} is no bounded JWS", codes=[malformed])
    parts = token.split(".")
    if len(parts) != 3 or len(parts[0]) > _MAX_HEADER_CHARS:
        raise AttestationError(f"{what} is no compact JWS", codes=[malformed])
    try:
        header = parse_json(b64u_decode(parts[0]))
        claims = parse_json(b64u_decode(parts[1]))
        signature = b64u_decode(parts[2])
    except CanonicalError as error:
        raise AttestationError(f"{what} does not parse ({error})", codes=[malformed]) from error
    if not isinstance(header, dict) or not isinstance(claims, dict):
        raise AttestationError(f"{what} holds no objects", codes=[malformed])
    if header.get("alg") != "EdDSA":
        raise AttestationError(f"{what} is not signed with EdDSA", codes=[Code.ALGORITHM_NOT_ALLOWED])
    if set(header) - {"alg", "typ", "kid"}:
        raise AttestationError(f"{what} has a header we do not take", codes=[Code.FORBIDDEN_HEADER])
    if header.get("typ") != typ:
        raise AttestationError(f"{what} has another type", codes=[Code.TOKEN_TYPE_MISMATCH])
    kid = header.get("kid")
    if not isinstance(kid, str) or re.fullmatch(r"[0-9a-f]{64}", kid) is None:
        raise AttestationError(f"{what} names no key", codes=[Code.KEY_ID_MISMATCH])
    if len(signature) != _SIGNATURE_BYTES:
        raise AttestationError(f"{what} has no Ed25519 signature", codes=[malformed])
    return ReadToken(token, kid, claims)


def check_signature(token: ReadToken, public_bytes: bytes, *, what: str) -> None:
    """Verify a parsed token against one known key; its claims may be believed from then on.

    Raises AttestationError with `key-id-mismatch` or `<what>-signature-invalid`.
    """
    if not hmac.compare_digest(token.kid, key_id(public_bytes)):
        raise AttestationError(f"{what} names another key", codes=[Code.KEY_ID_MISMATCH])
    try:
        key = Ed25519PublicKey.from_public_bytes(public_bytes)
        if not is_public_key(public_bytes):
            raise ValueError("a key that signs for everybody")
        _JWS.decode(token.text, key, algorithms=["EdDSA"])
    except (jwt.PyJWTError, ValueError, UnsupportedAlgorithm) as error:
        raise AttestationError(
            f"{what} was not signed by that key", codes=[Code(f"{what}-signature-invalid")]
        ) from error


@dataclass(frozen=True)
class Times:
    """When a token was issued, from when and until when it holds: whole Unix seconds."""

    iat: int
    nbf: int
    exp: int

    @classmethod
    def of(cls, token: ReadToken, *, what: str) -> Times:
        """Read them from a token. Raises AttestationError `malformed-<what>`."""
        iat, nbf, exp = (token.claims.get(name) for name in ("iat", "nbf", "exp"))
        if not (_is_whole(iat) and _is_whole(nbf) and _is_whole(exp)):
            raise AttestationError(f"{what} lacks iat, nbf or exp", codes=[Code(f"malformed-{what}")])
        return cls(iat, nbf, exp)

    def check(self, now: float, *, what: str) -> None:
        """Hold them against `now`, leeway 0.

        Raises AttestationError `<what>-not-yet-valid` or `<what>-expired`.
        """
        if self.iat > now or self.nbf > now:
            raise AttestationError(f"{what} is not valid yet", codes=[Code(f"{what}-not-yet-valid")])
        if self.exp <= now:
            raise AttestationError(f"{what} has expired", codes=[Code(f"{what}-expired")])


@dataclass(frozen=True)
class Token:
    """A token whose signature, issuer, audience and times hold; `claims` are all of its claims, as signed."""

    what: str
    jws: str
    audience: str
    times: Times
    claims: dict[str, Any]

    def text(self, name: str) -> str:
        """The claim of this name, which is a string; raises AttestationError `malformed-<what>`."""
        value = self.claims.get(name)
        if not isinstance(value, str):
            raise self._malformed(name)
        return value

    def whole(self, name: str) -> int:
        """The claim of this name, which is an integer; raises AttestationError `malformed-<what>`."""
        value = self.claims.get(name)
        if not _is_whole(value):
            raise self._malformed(name)
        return value

    def _malformed(self, name: str) -> AttestationError:
        return AttestationError(f"{self.what} has no usable {name}", codes=[Code(f"malformed-{self.what}")])


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def verify_typed(
    jws: str, public_bytes: bytes, now: float, audience: str | None, *, typ: str, what: str
) -> Token:
    """Verify a token of one type by one key, at a time (Unix s). Raises AttestationError."""
    read = read_jws(jws, typ, what=what)
    check_signature(read, public_bytes, what=what)
    times = Times.of(read, what=what)
    times.check(now, what=what)
    if read.claims.get("iss") != key_id(public_bytes):
        raise AttestationError(f"{what} names another issuer", codes=[Code(f"{what}-issuer-mismatch")])
    if audience is not None and read.claims.get("aud") != audience:
        raise AttestationError(f"{what} is for another store", codes=[Code(f"{what}-audience-mismatch")])
    return _token(read, times, what)


def _token(read: ReadToken, times: Times, what: str) -> Token:
    named = read.claims.get("aud")
    if not isinstance(named, str):
        raise AttestationError(f"{what} names no store", codes=[Code(f"malformed-{what}")])
    return Token(what, read.text, named, times, read.claims)


def envelope(key: Ed25519PrivateKey, audience: str, now: int, ttl: int) -> dict[str, str | int]:
    """Issuer, audience and times that every token of ours begins with; now and ttl in whole seconds."""
    return {
        "iss": key_id(public_bytes_of(key)),
        "aud": audience,
        "iat": now,
        "nbf": now,
        "exp": now + ttl,
    }


@dataclass(frozen=True)
class Binding:
    """What a challenge and its launch token say alike: for which launch, under which nonce, answered by whom.

    cnf names the key whose evidence answers: {"jkt": thumbprint}, compared as a whole. Tokens recorded before
    keys were named have none (None).
    """

    run: str
    leg: str
    launch: int
    nonce: str
    cnf: object

    @classmethod
    def of(cls, token: Token) -> Binding:
        """Read it from a token. Raises AttestationError `malformed-<what>`."""
        return cls(
            run=token.text("run"),
            leg=token.text("leg"),
            launch=token.whole("launch"),
            nonce=token.text("nonce"),
            cnf=token.claims.get("cnf"),
        )

    @property
    def where(self) -> tuple[str, str, int]:
        """Run, leg and launch number."""
        return self.run, self.leg, self.launch


_BINDING = tuple(item.name for item in fields(Binding))


@dataclass(frozen=True)
class LaunchToken:
    """A verified launch token: the challenge's binding, and on which machine which package is launched."""

    token: Token
    binding: Binding
    allocation_id: str
    manifest_hash: str

    @classmethod
    def of(cls, token: Token) -> LaunchToken:
        """Read it from a token. Raises AttestationError `malformed-launch`."""
        return cls(token, Binding.of(token), token.text("allocation_id"), token.text("manifest_hash"))


@dataclass(frozen=True)
class Challenge:
    """A verified challenge with the launch token in it; server_time in Unix seconds."""

    token: Token
    binding: Binding
    server_time: int
    launch_token: LaunchToken


def sign_challenge(
    key: Ed25519PrivateKey,
    *,
    audience: str,
    now: int,
    ttl: int,
    run: str,
    leg: str,
    launch: int,
    allocation_id: str,
    manifest_hash: str,
    nonce: bytes,
    event_key: bytes,
) -> str:
    """Sign a challenge (message 2), with its launch token inside.

    now and ttl in whole seconds; nonce 32 bytes; audience = the random id of the store that will accept it;
    event_key = the raw public key (32 bytes) that evidence must be signed by.
    Claims: envelope, run, leg, launch, nonce (base64url), cnf, server_time, launch_token.
    """
    binding = Binding(run, leg, launch, b64u(nonce), {"jkt": thumbprint(event_key)})
    common = {**envelope(key, audience, now, ttl), **asdict(binding)}
    token = sign_jws(
        {**common, "allocation_id": allocation_id, "manifest_hash": manifest_hash}, key, LAUNCH_TYP
    )
    return sign_jws({**common, "server_time": now, "launch_token": token}, key, CHALLENGE_TYP)


def verify_challenge(
    jws: str, public_bytes: bytes, now: float | None = None, *, audience: str | None = None
) -> Challenge:
    """Verify a challenge and the launch token in it.

    now=None judges it at its own issue time: the pod has no clock it trusts, and the one-use ticket already
    makes the answer fresh. Whose event key it must name is the caller's. Raises AttestationError.
    """
    read = read_jws(jws, CHALLENGE_TYP, what="challenge")
    at = read.claims.get("iat") if now is None else now
    if isinstance(at, bool) or not isinstance(at, int | float):
        raise AttestationError("challenge has no issue time", codes=[Code.MALFORMED_CHALLENGE])
    token = verify_typed(jws, public_bytes, at, audience, typ=CHALLENGE_TYP, what="challenge")
    claims = token.claims
    launch = verify_launch(claims.get("launch_token"), public_bytes, at, audience=token.audience)
    _check_nonce(claims.get("nonce"), "challenge")
    if claims.get("cnf", {}) is None:  # null is not the absence that recorded challenges have
        raise AttestationError("the challenge names no key", codes=[Code.MALFORMED_CHALLENGE])
    if claims.get("server_time") != token.times.iat:
        raise AttestationError("challenge has two times", codes=[Code.MALFORMED_CHALLENGE])
    if any(claims.get(name) != launch.token.claims.get(name) for name in (*_BINDING, "exp")):
        raise AttestationError("challenge and launch token differ", codes=[Code.JWT_CLAIM_MISMATCH])
    return Challenge(token, Binding.of(token), token.whole("server_time"), launch)


def verify_launch(
    jws: object, public_bytes: bytes, now: float, *, audience: str | None = None
) -> LaunchToken:
    """Verify a launch token. Raises AttestationError."""
    if not isinstance(jws, str):
        raise AttestationError("no launch token", codes=[Code.MALFORMED_LAUNCH])
    return LaunchToken.of(verify_typed(jws, public_bytes, now, audience, typ=LAUNCH_TYP, what="launch"))


def returned_launch(jws: object, public_bytes: bytes, audience: str) -> LaunchToken | None:
    """The launch token that came back with evidence, if that key signed it for this store; else None.

    Its times are the challenge's and are judged with it (appraise.py, step 3).
    """
    try:
        read = read_jws(jws, LAUNCH_TYP, what="launch")
        check_signature(read, public_bytes, what="launch")
        launch = LaunchToken.of(_token(read, Times.of(read, what="launch"), "launch"))
    except AttestationError:
        return None
    return launch if launch.token.audience == audience else None


def _check_nonce(value: object, what: str) -> None:
    try:
        b64u_decode(value if isinstance(value, str) else "", size=32)
    except CanonicalError as error:
        raise AttestationError(f"{what} has no 32-byte nonce", codes=[Code(f"malformed-{what}")]) from error


@dataclass(frozen=True)
class Ear:
    """A verified attestation result, as far as its readers rely on it.

    nonce and evidence_sha256 say which evidence it is about ("" where it does not say); status is affirming,
    warning, contraindicated, or none without a usable submodule.
    """

    token: Token
    nonce: str
    evidence_sha256: str
    status: str

    @classmethod
    def of(cls, token: Token) -> Ear:
        """Read it from a token; what is missing or of another type is about nothing, and releases nothing."""
        claims = token.claims
        submods = claims.get("submods")
        runtime = submods.get("runtime") if isinstance(submods, dict) else None
        status = runtime.get("ear.status") if isinstance(runtime, dict) else None
        nonce, digest = claims.get("eat_nonce"), claims.get(EVIDENCE_DIGEST)
        return cls(
            token,
            nonce if isinstance(nonce, str) else "",
            digest if isinstance(digest, str) else "",
            status if isinstance(status, str) else "none",
        )


def sign_ear(
    key: Ed25519PrivateKey,
    *,
    audience: str,
    now: int,
    ttl: int,
    evidence_sha256: str,
    ear_claims: Mapping[str, Any],
) -> str:
    """Sign an EAR (attestation result) on this evidence, over the claims that appraise.py made of it."""
    claims = {**ear_claims, EVIDENCE_DIGEST: evidence_sha256, **envelope(key, audience, now, ttl)}
    return sign_jws(claims, key, EAR_TYP)


def verify_ear(jws: str, public_bytes: bytes, now: float, *, audience: str | None = None) -> Ear:
    """Verify an EAR; what its status means is the caller's. Raises AttestationError."""
    return Ear.of(verify_typed(jws, public_bytes, now, audience, typ=EAR_TYP, what="ear"))


@dataclass(frozen=True)
class Grant:
    """A verified grant. where: its run, leg and launch as signed; info: of the HPKE ciphertext, 32 bytes."""

    token: Token
    where: tuple[object, object, object]
    info: bytes
    ciphertext: bytes


def sign_grant(
    key: Ed25519PrivateKey,
    *,
    audience: str,
    now: int,
    ttl: int,
    run: str,
    leg: str,
    launch: int,
    info: bytes,
    ciphertext: bytes,
) -> str:
    """Sign a grant: `info` (32 bytes) and the HPKE ciphertext of the payload key."""
    claims = {"run": run, "leg": leg, "launch": launch, "info": b64u(info), "ct": b64u(ciphertext)}
    return sign_jws({**envelope(key, audience, now, ttl), **claims}, key, GRANT_TYP)


def verify_grant(jws: str, public_bytes: bytes, now: float, *, audience: str | None = None) -> Grant:
    """Verify a grant. Raises AttestationError."""
    token = verify_typed(jws, public_bytes, now, audience, typ=GRANT_TYP, what="grant")
    claims = token.claims
    try:
        info = b64u_decode(claims.get("info", ""), size=32)
        ciphertext = b64u_decode(claims.get("ct", ""))
    except CanonicalError as error:
        raise AttestationError("grant holds no ciphertext", codes=[Code.MALFORMED_GRANT]) from error
    return Grant(token, (claims.get("run"), claims.get("leg"), claims.get("launch")), info, ciphertext)


def grant_info(
    broker_id: str,
    run: str,
    leg: str,
    launch: int,
    *,
    challenge: str,
    launch_token: str,
    evidence: str,
    ear: str,
) -> bytes:
    """HPKE `info` of a grant: a hash of the whole transcript (32 bytes).

    A grant thereby opens only for the exchange it answers: other implementations left the party info empty
    and could not tell one exchange's wrapped key from another's.
    """
    texts = [broker_id, run, leg, str(launch), challenge, launch_token, evidence, ear]
    return domain_hash("glasshouse/grant/v1", [text.encode("utf-8") for text in texts])


def jwks(*public: bytes) -> dict[str, list[dict[str, str]]]:
    """JWK Set (RFC 7517, RFC 8037) of raw Ed25519 public keys, each under its key id."""
    return {
        "keys": [
            {"kty": "OKP", "crv": "Ed25519", "x": b64u(raw), "kid": key_id(raw), "alg": "EdDSA", "use": "sig"}
            for raw in public
        ]
    }
