"""The corpus's own small publication: how lab/ was made, and how its publisher, who owns its keys, lies.

    python -m tests.conformance.lab      # writes lab/ anew, with other pod keys and digests

Its keys follow from their names, so anyone can sign with them, and nobody may trust them anywhere else.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from glasshouse.canonical import canonical_json, parse_json, sha256_hex
from glasshouse.publishing.artifact import artifact_bytes
from glasshouse.publishing.from_bundle import artifact_from_verified
from glasshouse.records.bundle import ENVELOPE, PLAN, RECORD
from glasshouse.records.keys import Keyring, public_bytes
from glasshouse.records.ledger import Ledger, log_key, parse_leaves, sign_checkpoint
from glasshouse.records.signing import BUNDLE_TYPE, sign_statement
from glasshouse.records.verify import verify
from glasshouse.spec import RunSpec
from tests.records.factory import Factory
from tests.records.legs import Leg
from tests.specs import make_spec

LAB = Path(__file__).parent / "lab"
BEGAN = 1_796_000_000.0


def key(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(
        hashlib.sha256(f"conformance corpus: {name}".encode()).digest()
    )


class Lab(Factory):
    """A factory with the corpus's keys and time."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.operator, self.broker_key = key("operator"), key("broker")
        self.publisher, self.witness = key("publisher"), key("witness")
        self.now = BEGAN
        self.ledger = Ledger(folder / "ledger", clock=lambda: self.now)
        roles = {"operator": self.operator, "broker": self.broker_key, "publisher": self.publisher}
        entries = [self._entry(role, own, f"corpus {role}") for role, own in roles.items()]
        self.keyring = Keyring((*entries, self._entry("witness", self.witness, "witness.example/w1")))


def enter(research: Path, *bodies: Mapping[str, Any]) -> None:
    """Add entries to the lab's log, as its publisher can, and sign it again."""
    (log,) = (research / "ledger").iterdir()
    data = (log / "leaves.jsonl").read_bytes()
    for body in bodies:
        last = parse_leaves(data)[-1]
        leaf = {"serial": last.serial + 1, "time": last.body["time"] + 60, **body}
        data += canonical_json(leaf) + b"\n"
    sign_log(log, data)


def sign_log(log: Path, data: bytes) -> None:
    (log / "leaves.jsonl").write_bytes(data)
    (log / "checkpoint.txt").write_text(sign_checkpoint(parse_leaves(data), key("publisher")))


def publish_again(research: Path, row: str) -> None:
    """What the owner of all keys does after an edit of a bundle: signs it, and names it in row and log."""
    bundle = research / "bundles" / row
    files = {
        str(path.relative_to(bundle)): path.read_bytes()
        for path in bundle.rglob("*")
        if path.is_file() and path.name != ENVELOPE
    }
    before = parse_json((research / "artifacts" / f"{row}.json").read_bytes())
    record = files.get(RECORD, b"")
    statement = {
        "run": before["run"],
        "recordSha256": sha256_hex(record),
        "planSha256": sha256_hex(files[PLAN]),
    }
    digests = {name: sha256_hex(data) for name, data in files.items()}
    envelope = sign_statement(key("operator"), BUNDLE_TYPE, {**statement, "createdAt": BEGAN}, digests)
    (bundle / ENVELOPE).write_bytes(envelope)
    before["evidence"]["bundleSha256"] = sha256_hex(envelope)
    (research / "artifacts" / f"{row}.json").write_bytes(canonical_json(before))
    (log,) = (research / "ledger").iterdir()
    named = {"bundleSha256": sha256_hex(envelope), "recordSha256": sha256_hex(record)}
    lines = []
    for leaf in parse_leaves((log / "leaves.jsonl").read_bytes()):
        own = leaf.kind == "row" and leaf.body["row"] == row
        lines.append(canonical_json({**leaf.body, **named}) if own else leaf.data)
    sign_log(log, b"".join(line + b"\n" for line in lines))


def make(out: Path, spec: RunSpec | None = None) -> None:
    """One good run, published; None: a pair."""
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder))
        run, files = lab.parts(spec or make_spec(), {} if spec else {1: Leg(rate=9.8)})
        bundle = Path(folder) / "bundle"
        judgement = lab.write(bundle, run, files)
        lab.ledger.append_row(
            run=run, row=judgement.row, status=judgement.status,
            record_sha256=sha256_hex((bundle / RECORD).read_bytes()),
            bundle_sha256=sha256_hex((bundle / ENVELOPE).read_bytes()),
        )  # fmt: skip
        row = verify(bundle, lab.keyring).require()
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(bundle, out / "bundles" / row.id)
        (out / "artifacts").mkdir()
        (out / "artifacts" / f"{row.id}.json").write_bytes(artifact_bytes(artifact_from_verified(row)))
        log = out / "ledger" / log_key(public_bytes(lab.publisher))
        log.mkdir(parents=True)
        sign_log(log, b"".join(leaf.data + b"\n" for leaf in lab.ledger.leaves()))
        keys = [entry.as_json() for entry in lab.keyring.entries]
        (out / "keyring.json").write_bytes(canonical_json({"keys": keys}))


if __name__ == "__main__":
    make(LAB)
