"""Where attacks are played: a real broker over HTTP, a synthetic attester, a clock that can be set.

The attester claims what an honest runtime would. It tests the broker and the client, not the pod.
"""

from __future__ import annotations

import contextlib
import hmac
import http.client
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from glasshouse.attestation.broker import Broker
from glasshouse.attestation.claims import Claims, GpuClaim, Hardening, Reference
from glasshouse.attestation.client import Challenge, Released, fetch_challenge, submit_evidence
from glasshouse.attestation.evidence import make_evidence
from glasshouse.attestation.server import serve
from glasshouse.attestation.store import Store
from glasshouse.attestation.ticket import sign_request
from glasshouse.attestation.tokens import key_id, public_bytes_of
from glasshouse.canonical import b64u, canonical_json, parse_json, sha256_hex
from glasshouse.codes import Code
from glasshouse.errors import AttestationError
from glasshouse.sealing.grant import KemKey, generate_kem_key, kem_public_bytes, unwrap_key
from glasshouse.spec import Policy

GPU = "NVIDIA H100 80GB HBM3"

STRICT = Policy(
    name="strict",
    freshness_sec=60,
    require_landlock=True,
    require_memfd_secret=True,
    allow_host_key_first_use=False,
    anti_debug_profile="strict",
)


def honest_claims(reference: Reference, policy: Policy, *, nonce: str, iat: int, kem_key: bytes) -> Claims:
    """Claims of an honest runtime in the place that `reference` describes, without event key and composite.

    nonce base64url, iat in Unix seconds, kem_key 1216 raw bytes.
    """
    gpu = reference.gpu_name
    return Claims(
        eat_nonce=nonce,
        iat=iat,
        run=reference.run,
        leg=reference.leg,
        launch=reference.launch,
        allocation_id=reference.allocation_id,
        container_id=reference.container_id,
        manifest_hash=reference.manifest_hash,
        runtime_sha256=reference.runtime_sha256,
        interpreter_sha256=reference.interpreter_sha256,
        interpreter_isolated=True,
        python_version=reference.python_version or "3.11.7",
        distributions_sha256=reference.distributions_sha256 or sha256_hex(b"distributions"),
        boot_id=reference.boot_id,
        pid_namespace=reference.pid_namespace,
        image_digest=reference.image_digest,
        kem_key=b64u(kem_key),
        anti_debug_profile=policy.anti_debug_profile,
        hardening=Hardening(
            dumpable=0,
            core_limit=0,
            no_new_privs=True,
            tracer_pid=0,
            landlock_abi=7,
            memfd_secret=True,
            swap_total_kib=0,
            subreaper=True,
        ),
        fs="landlock",
        gpu=None if gpu is None else GpuClaim([gpu], ["GPU-0"], "580.00"),
        clock_skew_sec=0,
    )


def synthetic_reference(run: str, leg: str = "s000", launch: int = 1, **changed: Any) -> Reference:
    """Reference values of a launch that does not exist, distinct for every run."""
    values: dict[str, Any] = {
        "allocation_id": f"allocation-{run}",
        "container_id": sha256_hex(f"container {run}".encode()),
        "manifest_hash": sha256_hex(f"manifest {run}".encode()),
        "runtime_sha256": sha256_hex(b"runtime"),
        "interpreter_sha256": sha256_hex(b"interpreter"),
        "boot_id": f"boot-{run}",
        "pid_namespace": "pid:[4026531836]",
        "image_digest": "sha256:" + sha256_hex(b"image"),
        "gpu_name": GPU,
        "host_key": "created",
    }
    return Reference(run=run, leg=leg, launch=launch, **{**values, **changed})


@dataclass
class Clock:
    """The broker's clock on a stage: begins at `start` (Unix s), plus `shift` (s), which a scenario may set.

    It runs as the machine's monotonic clock does, by which attesters reckon: were it the wall clock, one
    that is set while the suite runs would make honest evidence stale.
    """

    start: float = field(default_factory=time.time)
    shift: float = 0.0
    began: float = field(default_factory=time.monotonic)

    def __call__(self) -> float:
        """Unix seconds."""
        return self.start + (time.monotonic() - self.began) + self.shift


@dataclass
class StagedLaunch:
    """One synthetic launch: what its supervisor would hold."""

    port: int
    broker_public: bytes
    reference: Reference
    policy: Policy
    ticket: bytes
    payload_key: bytes
    event_key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    kem_key: KemKey = field(default_factory=generate_kem_key)
    challenge: Challenge | None = None
    evidence: str = ""
    released: Released | None = None

    @property
    def where(self) -> tuple[str, str, int]:
        """Run, leg and launch number."""
        return self.reference.where

    def request(self) -> str:
        """The request for a challenge, signed by the ticket."""
        return sign_request(
            bytearray(self.ticket),
            self.where,
            broker_id=key_id(self.broker_public),
            event_key=public_bytes_of(self.event_key),
        )

    def fetch(self) -> Challenge:
        """Spend the ticket on a challenge, once; later calls return the same."""
        if self.challenge is None:
            event_key = public_bytes_of(self.event_key)
            self.challenge = fetch_challenge(
                self.port, self.request(), self.where, self.broker_public, event_key
            )
        return self.challenge

    def claims(self) -> dict[str, Any]:
        """Honest claims for this launch's challenge."""
        challenge = self.fetch()
        return honest_claims(
            self.reference,
            self.policy,
            nonce=challenge.nonce,
            iat=challenge.iat(),
            kem_key=kem_public_bytes(self.kem_key),
        ).to_json()

    def sign(self, claims: Mapping[str, Any]) -> str:
        """Sign claims as evidence, with the composite hash recomputed unless the claims hold one."""
        return make_evidence(claims, self.event_key)

    def submit(self, evidence: str, challenge: Challenge | None = None) -> None:
        """Send evidence and open the grant; returns only with the payload key in hand."""
        self.evidence = evidence
        released = submit_evidence(self.port, evidence, challenge or self.fetch(), self.broker_public)
        opened = unwrap_key(released.ciphertext, self.kem_key, released.info)
        if not hmac.compare_digest(bytes(opened), self.payload_key):
            raise AttestationError("another key came out", codes=[Code.PAYLOAD_KEY_MISMATCH])
        self.released = released

    def honest(self) -> None:
        """The whole exchange as an honest runtime does it."""
        self.submit(self.sign(self.claims()))


class Stage:
    """A broker over HTTP with a durable store, and launches to play on it."""

    def __init__(self, folder: Path, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        self._url = f"sqlite:///{folder / 'broker.db'}"
        self._kek = secrets.token_bytes(32)
        self._signing_key = Ed25519PrivateKey.generate()
        self._stores: list[Store] = []
        self._stack = contextlib.ExitStack()
        self._runs = 0
        self.broker, self.port = self.open_broker()

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()

    def open_broker(self) -> tuple[Broker, int]:
        """Open the same database once more, as after a restart, behind a server of its own."""
        store = self._stack.enter_context(Store(self._url, self._kek))
        self._stores.append(store)
        broker = Broker(store, self._signing_key, self.clock)
        return broker, self._stack.enter_context(serve(broker)).port

    @property
    def unwrap_calls(self) -> int:
        """Payload keys opened so far, by every broker of this stage."""
        return sum(store.unwrap_calls for store in self._stores)

    def new_run(self) -> str:
        """A run id not used on this stage before."""
        self._runs += 1
        return f"tamper-{self._runs:03d}"

    def launch(self, run: str | None = None, *, policy: Policy = STRICT, **changed: Any) -> StagedLaunch:
        """Issue a ticket for a launch of a new run, with a payload of its own, or of a registered run."""
        reference = synthetic_reference(run or self.new_run(), **changed)
        payload_key = secrets.token_bytes(32)
        if not self.broker.store.has_payload(reference.run, reference.manifest_hash):
            self.broker.register_payload(reference.run, reference.manifest_hash, payload_key, max_grants=3)
        ticket = self.broker.issue_ticket(reference, policy)
        return StagedLaunch(self.port, self.broker.public_bytes, reference, policy, ticket, payload_key)

    def post(
        self, path: str, body: bytes | Mapping[str, str | int], headers: Mapping[str, str] | None = None
    ) -> None:
        """Send raw bytes to the broker; raise AttestationError with the codes of its refusal."""
        raw = body if isinstance(body, bytes) else canonical_json(body)
        sent = {"Content-Type": "application/json", "Content-Length": str(len(raw)), **(headers or {})}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.putrequest("POST", path)
            for name, value in sent.items():
                if value:
                    connection.putheader(name, value)
            connection.endheaders(raw)
            response = connection.getresponse()
            answer = parse_json(response.read())
        finally:
            connection.close()
        if response.status != 200:
            raise AttestationError("refused", codes=answer["error"]["reasonCodes"])


# An attack gets the stage, a fresh launch of its own, and the control's finished one. It raises
# AttestationError when it was refused; returning means that it got through.
Attack = Callable[[Stage, StagedLaunch, StagedLaunch], None]


@dataclass(frozen=True)
class Scenario:
    """One attack. `codes` are the exact reason codes it must be refused with."""

    code: str
    what: str
    codes: tuple[str, ...]
    attack: Attack
    setup: Mapping[str, Any] = field(
        default_factory=dict
    )  # for the attack's launch; the control stays honest


def with_launch_token(challenge: Challenge, token: str) -> Challenge:
    """The challenge with another launch token, for attacks that swap it."""
    return replace(challenge, launch_token=token)
