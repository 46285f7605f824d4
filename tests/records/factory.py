"""Builds evidence bundles that are real in every part but the training itself.

Real keys and ledger, a real broker with a durable store, real evidence, grants, events and heads. What a
test wants to be wrong it passes in, before anything is signed, so that only that is wrong.
"""

from __future__ import annotations

import itertools
import os
import secrets
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from glasshouse.attestation.broker import Broker
from glasshouse.attestation.claims import Reference
from glasshouse.attestation.evidence import make_evidence
from glasshouse.attestation.stage import honest_claims
from glasshouse.attestation.store import Store
from glasshouse.attestation.ticket import sign_request
from glasshouse.attestation.tokens import verify_challenge
from glasshouse.canonical import canonical_json, parse_json, sha256_hex
from glasshouse.errors import AttestationError
from glasshouse.judgement.judge import Judgement
from glasshouse.measurement.schedule import build_schedule
from glasshouse.records.bundle import write_bundle
from glasshouse.records.chain import sign_head
from glasshouse.records.keys import KeyEntry, Keyring, keyid, public_bytes
from glasshouse.records.ledger import Ledger, prove_inclusion
from glasshouse.records.plan import register_plan
from glasshouse.records.signed_note import cosign
from glasshouse.runtime.events import EventWriter
from glasshouse.schema import Slot
from glasshouse.sealing.grant import generate_kem_key, kem_public_bytes
from glasshouse.spec import RunSpec

from .legs import ALLOCATION, BOOT, Leg, leg_result, machine, zeroized_body

_KEM = kem_public_bytes(generate_kem_key())
_RUNS = itertools.count()


class Factory:
    """Keys, broker, ledger and the parts of one run after another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.operator = Ed25519PrivateKey.generate()
        self.broker_key = Ed25519PrivateKey.generate()
        self.witness = Ed25519PrivateKey.generate()
        self.publisher = Ed25519PrivateKey.generate()
        self.now = float(int(time.time()))
        self.ledger = Ledger(folder / "ledger", clock=lambda: self.now)
        self.keyring = Keyring(
            (
                self._entry("operator", self.operator, "test operator"),
                self._entry("broker", self.broker_key, "test broker"),
                self._entry("publisher", self.publisher, "test publisher"),
                self._entry("witness", self.witness, "witness.example/w1"),
            )
        )

    @staticmethod
    def _entry(role: str, key: Ed25519PrivateKey, label: str) -> KeyEntry:
        public = public_bytes(key)
        return KeyEntry(keyid(public), role, public, label)

    def parts(
        self,
        spec: RunSpec,
        legs: Mapping[int, Leg | Sequence[Leg]] | None = None,
        *,
        codes: Sequence[str] = (),
        **changes: Any,
    ) -> tuple[str, dict[str, bytes]]:
        """(run id, bundle files) of a run whose slots go as `legs` says; None as a leg: it never ran.

        changes: fields of allocation.json and release.json, by file: allocation={...}, release={...}.
        """
        run = time.strftime("%Y%m%d-%H%M%S", time.gmtime(self.now)) + "-" + f"run{_name(next(_RUNS))}"
        registered = register_plan(self.ledger, self.operator, run, spec)
        files = {"plan.dsse.json": registered.envelope}
        began = self.now
        self.now += 5
        allocation = {
            "provider": spec.provider.kind,
            "gpuModel": None,
            "instanceId": None,
            "tier": None,
            "hostKeySource": "created",
            "imageDigest": "",
            "usdPerHour": None,
            "allocationIdSha256": ALLOCATION,
            "machine": machine(900.0),
        } | changes.get("allocation", {})
        if spec.gpu.provider_names:
            allocation["gpuModel"] = allocation["gpuModel"] or next(iter(spec.gpu.provider_names.values()))
        files["allocation.json"] = canonical_json(allocation)
        with (
            tempfile.TemporaryDirectory() as place,
            Store(f"sqlite:///{place}/b.db", secrets.token_bytes(32)) as store,
        ):
            broker = Broker(store, self.broker_key, lambda: self.now)
            broker.register_payload(run, sha256_hex(run.encode()), secrets.token_bytes(32), max_grants=100)
            for slot in build_schedule(spec):
                planned = (legs or {}).get(slot.index, Leg())
                tries = list(planned) if isinstance(planned, Sequence) else [planned]
                for number, leg in enumerate(tries, start=1):
                    suffix = leg.suffix or ("" if number == 1 else f"-l{number}")
                    where = f"legs/s{slot.index:03d}-{slot.arm}{suffix}/"
                    made = self._launch(
                        broker=broker,
                        run=run,
                        spec=spec,
                        slot=slot,
                        number=number,
                        leg=leg,
                        allocation=allocation,
                    )
                    files |= {where + name: data for name, data in made.items()}
        release = {
            "proof": "zero",
            "active": 0,
            "detail": "nothing of ours is left",
            "accountTotal": None,
            "podFolderRemoved": True,
            "processesLeft": 0,
            "checkedAt": [self.now, self.now + 1],
        } | changes.get("release", {})
        files["release.json"] = canonical_json(release)
        self.now += 2
        outcome = {"codes": list(codes), "startedAt": began, "endedAt": self.now}
        files["outcome.json"] = canonical_json(outcome)
        return run, files

    def inclusion(self, files: Mapping[str, bytes], *, witnessed: bool = False) -> bytes:
        """inclusion.json for the plan among `files`."""
        digest = sha256_hex(files["plan.dsse.json"])
        leaves = self.ledger.leaves()
        serial = next(leaf.serial for leaf in leaves if leaf.body.get("planSha256") == digest)
        note = self.ledger.checkpoint(self.publisher)
        if witnessed:
            note = cosign(note, "witness.example/w1", self.witness, int(self.now))
        return canonical_json({"checkpoint": note, "proof": prove_inclusion(leaves, serial)})

    def write(self, folder: Path, run: str, files: Mapping[str, bytes], **changes: Any) -> Judgement:
        """write_bundle with this factory's keys."""
        arguments: dict[str, Any] = {"key": self.operator, "keyring": self.keyring, "now": self.now} | changes
        return write_bundle(folder, files, run=run, **arguments)

    # --- one launch -------------------------------------------------------------------------

    def _launch(
        self,
        *,
        broker: Broker,
        run: str,
        spec: RunSpec,
        slot: Slot,
        number: int,
        leg: Leg,
        allocation: dict[str, Any],
    ) -> dict[str, bytes]:
        started = self.now
        files: dict[str, bytes] = {}
        result = leg_result(slot, leg.rate, **leg.result)
        if slot.lifecycle:
            files |= self._protected(
                broker=broker,
                run=run,
                spec=spec,
                slot=slot,
                number=number,
                leg=leg,
                allocation=allocation,
                result=result,
            )
        else:
            self.now += 1 + result["elapsedSec"]
            if leg.status == "complete":
                files["result.json"] = canonical_json(result)
        timings = {"sealSec": 0.5, "uploadSec": 1.0, "attestSec": 0.2, "unsealSec": 0.1, "zeroizeSec": 0.3}
        files["launch.json"] = canonical_json(
            {
                "slot": slot.index,
                "arm": slot.arm,
                "launch": number,
                "status": leg.status,
                "code": leg.code,
                "timings": timings if slot.lifecycle else {"uploadSec": 1.5},
                "rawFilesRemoved": None if slot.lifecycle else leg.raw_removed,
                "startedAt": started,
                "endedAt": self.now,
            }
        )
        self.now += 1
        return files

    def _protected(
        self,
        *,
        broker: Broker,
        run: str,
        spec: RunSpec,
        slot: Slot,
        number: int,
        leg: Leg,
        allocation: dict[str, Any],
        result: dict[str, Any],
    ) -> dict[str, bytes]:
        leg_id = f"s{slot.index:03d}"
        values: dict[str, Any] = {
            "run": run,
            "leg": leg_id,
            "launch": number,
            "allocation_id": "pod-1",
            "container_id": sha256_hex(b"container"),
            "manifest_hash": sha256_hex(run.encode()),
            "runtime_sha256": sha256_hex(b"runtime"),
            "interpreter_sha256": sha256_hex(b"interpreter"),
            "boot_id": BOOT,
            "pid_namespace": "4026531836",
            "image_digest": allocation["imageDigest"],
            "host_key": allocation["hostKeySource"],
        }
        reference = Reference(**values | dict(leg.reference))
        files = {"reference.json": canonical_json(reference.to_dict())}
        ticket = broker.issue_ticket(reference, spec.policy)
        event_key = Ed25519PrivateKey.generate()
        where = (reference.run, reference.leg, reference.launch)
        request = sign_request(
            bytearray(ticket), where, broker_id=broker.id, event_key=public_bytes(event_key)
        )
        challenge = verify_challenge(broker.challenge(request), broker.public_bytes)
        self.now += 1
        claims = honest_claims(
            reference, spec.policy, nonce=challenge.binding.nonce, iat=int(self.now), kem_key=_KEM
        ).to_json()
        evidence = leg.evidence(make_evidence({**claims, **leg.claims}, event_key))
        try:
            released = broker.attest(evidence, challenge.launch_token.token.jws)
        except AttestationError:
            files["exchange.json"] = canonical_json(broker.exchange(run, leg_id, number).to_json())
            return files
        files["exchange.json"] = canonical_json(broker.exchange(run, leg_id, number).to_json())
        items: list[tuple[str, dict[str, Any]]] = [
            ("released", {"run": run, "leg": leg_id, "launch": number}),
            ("unsealed", {"bytes": 1000}),
            ("trainer-hardened", {"dumpable": 0}),
            ("progress", {"phase": "measure", "elapsedSec": 1.0, "units": 3}),
            ("trained", {"result": result}),
            ("sealed-outputs", {"bytes": 9}),
            ("zeroized", zeroized_body(**leg.zeroized)),
        ]
        if leg.status == "failed":
            items = [*items[:4], ("failed", {"code": leg.code or "workload-error"})]
        events = write_events(event_key, released.grant, leg.events(items))
        files["events.jsonl"] = events
        files["heads.jsonl"] = self.heads(events, run, leg_id, number, every=leg.head_every_sec)
        return files

    def heads(
        self,
        events: bytes,
        run: str,
        leg: str,
        launch: int,
        *,
        every: float = 1.0,
        key: Ed25519PrivateKey | None = None,
        advance: bool = True,
    ) -> bytes:
        """Countersign after each event, `every` seconds apart."""
        at, lines = self.now, []
        for seq, line in enumerate(events.splitlines()):
            at += every
            head = sha256_hex(line)
            signer = key or self.operator
            lines.append(sign_head(signer, run=run, leg=leg, launch=launch, seq=seq, head=head, time=at))
        if advance:
            self.now = at
        return b"".join(line + b"\n" for line in lines)


def write_events(key: Ed25519PrivateKey, grant: str, items: Sequence[tuple[str, dict[str, Any]]]) -> bytes:
    """Sign events with the supervisor's own writer."""
    with tempfile.TemporaryFile() as file:
        writer = EventWriter(file.fileno(), key, time.monotonic())
        writer.begin(grant)
        for kind, body in items:
            writer.append(kind, body)
        return os.pread(file.fileno(), 1 << 24, 0)


def edited(data: bytes, **changes: Any) -> bytes:
    """A canonical JSON object with other fields."""
    return canonical_json(parse_json(data) | changes)


def _name(number: int) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz"
    return "".join(letters[number // 26**power % 26] for power in (2, 1, 0))
