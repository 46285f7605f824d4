"""The Attester's side of the exchange: two HTTP requests to the broker, everything verified.

The port on the pod's loopback is forwarded to the broker by SSH, and any process of the pod may have taken
it over: nothing unsigned is believed, and nothing is sent that would serve anybody else. The ticket, broker
key and run/leg/launch come from the supervisor's stdin, over the pinned SSH session.

Part of the archive that runs on the pod: standard library, cryptography and jwt only.
"""

from __future__ import annotations

import hmac
import http.client
import io
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from glasshouse.attestation.tokens import (
    Challenge as SignedChallenge,
)
from glasshouse.attestation.tokens import (
    grant_info,
    key_id,
    thumbprint,
    verify_challenge,
    verify_ear,
    verify_grant,
)
from glasshouse.canonical import CanonicalError, canonical_json, parse_json, sha256_hex
from glasshouse.codes import Code
from glasshouse.errors import AttestationError

MAX_RESPONSE_BYTES = 256 << 10
_MAX_HEAD_BYTES = 64 << 10
_CODE = re.compile(r"[a-z0-9][a-z0-9:._-]{0,63}")
# Server time is cut to whole seconds, and the broker's clock may be slewed while we work.
_CLOCK_SLACK_SEC = 2.0


@dataclass(frozen=True)
class Challenge:
    """A verified challenge. server_time in Unix seconds; asked and received in monotonic seconds here."""

    token: str
    launch_token: str
    nonce: str
    run: str
    leg: str
    launch: int
    audience: str
    server_time: int
    asked: float
    received: float

    def iat(self) -> int:
        """The claim `iat`: server time plus our own monotonic time since, so never ahead of the broker."""
        return self.server_time + int(time.monotonic() - self.received)

    def judging_time(self) -> float:
        """When to judge the broker's answer, in Unix seconds: never behind the broker's clock."""
        return self.server_time + (time.monotonic() - self.asked) + _CLOCK_SLACK_SEC

    def clock_skew_sec(self) -> int:
        """Seconds that this machine's wall clock is ahead of the broker's: a claim, never a "stale"."""
        return round(time.time() - self.server_time - (time.monotonic() - self.received))


@dataclass(frozen=True)
class Released:
    """A verified release. `ciphertext` opens only with the KEM key of the evidence and `info`."""

    ear: str
    grant: str
    info: bytes
    ciphertext: bytes


def fetch_challenge(
    port: int,
    request: str,
    launch: tuple[str, str, int],
    broker_public: bytes,
    event_key: bytes,
    *,
    timeout: float = 30.0,
) -> Challenge:
    """Spend a signed request (ticket.py) on a challenge for (run, leg, launch) and verify it.

    event_key: the raw public key (32 bytes) that the request named; timeout in seconds. Raises
    AttestationError with the broker's reason codes, `broker-unreachable`, or what did not verify.
    """
    asked = time.monotonic()
    token = post(port, "/v1/challenge", {"request": request}, timeout).text("challenge")
    received = time.monotonic()
    signed = check_challenge(token, launch, broker_public, event_key)
    run, leg, number = launch
    return Challenge(
        token=token,
        launch_token=signed.launch_token.token.jws,
        nonce=signed.binding.nonce,
        run=run,
        leg=leg,
        launch=number,
        audience=signed.token.audience,
        server_time=signed.server_time,
        asked=asked,
        received=received,
    )


def check_challenge(
    token: str, launch: tuple[str, str, int], broker_public: bytes, event_key: bytes
) -> SignedChallenge:
    """Verify that a challenge is the broker's, for our launch, and answered by our evidence.

    Raises AttestationError; `event-key-mismatch` where only somebody else's evidence answers it.
    """
    signed = verify_challenge(token, broker_public)
    if signed.binding.where != launch:
        raise AttestationError("the challenge is for another launch", codes=[Code.JWT_CLAIM_MISMATCH])
    if signed.binding.cnf != {"jkt": thumbprint(event_key)}:
        raise AttestationError("the challenge is for another event key", codes=[Code.EVENT_KEY_MISMATCH])
    return signed


def submit_evidence(
    port: int, evidence: str, challenge: Challenge, broker_public: bytes, *, timeout: float = 30.0
) -> Released:
    """Send evidence (a compact JWS) and verify EAR and grant before anything is decrypted.

    Raises AttestationError with every reason code of a refusal, or with what did not verify.
    """
    answer = post(port, "/v1/attest", {"evidence": evidence, "launchToken": challenge.launch_token}, timeout)
    return check_release(answer.text("ear"), answer.text("grant"), evidence, challenge, broker_public)


def check_release(
    ear: str, grant: str, evidence: str, challenge: Challenge, broker_public: bytes
) -> Released:
    """Verify what the broker answered against the whole transcript. Raises AttestationError.

    1. EAR: signed by the broker, for this evidence and nonce, not contraindicated.
    2. Grant: signed by the broker, for this run, leg and launch.
    3. info: recomputed from the transcript, equal to the signed one.
    """
    now = challenge.judging_time()
    # 1.
    result = verify_ear(ear, broker_public, now, audience=challenge.audience)
    if (
        result.nonce != challenge.nonce
        or result.evidence_sha256 != sha256_hex(evidence.encode("ascii"))
        or result.status not in ("affirming", "warning")
    ):
        raise AttestationError("the EAR is not about this evidence", codes=[Code.EAR_MISMATCH])
    # 2.
    granted = verify_grant(grant, broker_public, now, audience=challenge.audience)
    expected = (challenge.run, challenge.leg, challenge.launch)
    if granted.where != expected:
        raise AttestationError("the grant is for another launch", codes=[Code.GRANT_MISMATCH])
    # 3.
    info = grant_info(
        key_id(broker_public),
        *expected,
        challenge=challenge.token,
        launch_token=challenge.launch_token,
        evidence=evidence,
        ear=ear,
    )
    if not hmac.compare_digest(info, granted.info):
        raise AttestationError("the grant answers another exchange", codes=[Code.GRANT_INFO_MISMATCH])
    return Released(ear, grant, info, granted.ciphertext)


@dataclass(frozen=True)
class Reply:
    """What the broker answered: the members of one JSON object."""

    members: dict[str, Any]

    def text(self, name: str) -> str:
        """The member of this name, a string. Raises AttestationError `malformed-answer`."""
        value = self.members.get(name)
        if not isinstance(value, str):
            raise AttestationError(f"the broker's answer has no {name}", codes=[Code.MALFORMED_ANSWER])
        return value


def post(port: int, path: str, body: Mapping[str, str], timeout: float) -> Reply:
    """Ask the broker on this port of loopback. Raises AttestationError.

    timeout: seconds for all of it, however slowly whoever answers there goes about it.
    """
    try:
        status, raw = _answered(port, path, canonical_json(body), timeout)
    except (OSError, http.client.HTTPException) as error:
        raise AttestationError("the broker did not answer", codes=[Code.BROKER_UNREACHABLE]) from error
    try:
        answer = parse_json(raw, max_bytes=MAX_RESPONSE_BYTES)
    except CanonicalError as error:
        raise AttestationError("the broker's answer does not parse", codes=[Code.MALFORMED_ANSWER]) from error
    if not isinstance(answer, dict):
        raise AttestationError("the broker's answer is no object", codes=[Code.MALFORMED_ANSWER])
    if status != 200:
        _refuse(answer.get("error"))
    return Reply(answer)


class _Received:
    """What came over a connection, as http.client reads it from one."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def _answered(port: int, path: str, body: bytes, timeout: float) -> tuple[int, bytes]:
    """Status and body of what is answered within `timeout` seconds: all that comes until it is closed."""
    until = time.monotonic() + timeout
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    data = bytearray()
    with socket.create_connection(("127.0.0.1", port), timeout) as sock:
        sock.sendall(head.encode("ascii") + body)
        while len(data) <= _MAX_HEAD_BYTES + MAX_RESPONSE_BYTES:
            # A time-out holds for one call: a port that somebody took over could drip for ever.
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError("the answer took too long")
            sock.settimeout(left)
            piece = sock.recv(1 << 16)
            if not piece:
                break
            data += piece
    response = http.client.HTTPResponse(_Received(bytes(data)))  # type: ignore[arg-type]
    response.begin()
    return response.status, response.read(MAX_RESPONSE_BYTES + 1)


def _refuse(error: object) -> NoReturn:
    codes: list[str] = []
    if isinstance(error, dict):
        listed = error.get("reasonCodes")
        named = listed[:64] if isinstance(listed, list) else []
        codes = [code for code in map(_code, named) if code] or [_code(error.get("code"))]
    raise AttestationError("the broker refused", codes=list(filter(None, codes)) or [Code.MALFORMED_ANSWER])


def _code(given: object) -> str:
    """What may be a reason code, of a newer broker, say: it is shown, and has no control characters."""
    found = _CODE.match(given) if isinstance(given, str) else None
    return "" if found is None else found[0]
