"""The published part of the ledger: what stands in it, whether it is sound, and where each row is.

    leaves.jsonl      every leaf up to the checkpoint, byte for byte as it was hashed
    checkpoint.txt    the tree head over exactly these leaves, signed by the publisher

Leaves are an allow-list like artifacts: a field that is not named here is not published. Publishing
only ever extends what was published before; a ledger with another past is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field, TypeAdapter, ValidationError

from glasshouse.canonical import CanonicalError, canonical_json, parse_canonical
from glasshouse.errors import VerificationError
from glasshouse.publishing.artifact import Artifact, Code, Day, Hex32, Id, Public, Text, artifact_sha256
from glasshouse.records import merkle
from glasshouse.records.keys import KeyEntry, Keyring, public_bytes
from glasshouse.records.ledger import (
    Leaf,
    check_leaves,
    hashes,
    log_name,
    open_plans,
    parse_leaves,
    sign_checkpoint,
)
from glasshouse.records.note import Checkpoint, open_note, parse_checkpoint

LEAVES = "leaves.jsonl"
CHECKPOINT = "checkpoint.txt"
KEYS = "keyring.json"  # beside a local ledger: the keys of the machine that keeps it

RunId = Annotated[str, Field(pattern=r"^20\d{6}-\d{6}-[a-z2-7]{6}$")]
Serial = Annotated[int, Field(ge=0)]
Time = Annotated[float, Field(ge=0, le=1e11)]


class _Leaf(Public):
    serial: Serial
    time: Time


class PlanLeaf(_Leaf):
    """A run was planned."""

    kind: Literal["plan"]
    run: RunId
    plan_sha256: Hex32


class RowLeaf(_Leaf):
    """A plan ended as this row."""

    kind: Literal["row"]
    run: RunId
    row: Id
    status: Code
    plan_serial: Serial
    record_sha256: Hex32
    bundle_sha256: Hex32 | None


class ReportedLeaf(_Leaf):
    """A row that others reported was published, with these bytes."""

    kind: Literal["reported"]
    row: Id
    artifact_sha256: Hex32


class RetractLeaf(_Leaf):
    """A row was withdrawn."""

    kind: Literal["retract"]
    row: Id
    date: Day
    reason: Text


class SupersedeLeaf(_Leaf):
    """A row was replaced by another."""

    kind: Literal["supersede"]
    row: Id
    by: Id


class KeyLeaf(_Leaf):
    """A key was added or retired."""

    kind: Literal["key"]
    keyid: Hex32
    role: Code
    state: Literal["added", "retired"]


_ANY: TypeAdapter[Any] = TypeAdapter(
    Annotated[
        PlanLeaf | RowLeaf | ReportedLeaf | RetractLeaf | SupersedeLeaf | KeyLeaf, Field(discriminator="kind")
    ]
)


@dataclass(frozen=True)
class Place:
    """Where a row stands: its leaf and its plan's, each with the audit path to the signed root."""

    plan: Leaf
    row: Leaf
    plan_proof: tuple[str, ...]
    row_proof: tuple[str, ...]


@dataclass(frozen=True)
class PublishedLedger:
    """A ledger whose leaves are public, whole, and what the checkpoint signs."""

    leaves: tuple[Leaf, ...]
    note: str
    checkpoint: Checkpoint
    signer: KeyEntry
    witnesses: tuple[str, ...]

    @property
    def data(self) -> bytes:
        """The leaves file."""
        return b"".join(leaf.data + b"\n" for leaf in self.leaves)

    @cached_property
    def tree(self) -> merkle.Tree:
        """The Merkle tree over the leaves."""
        return merkle.Tree(hashes(self.leaves))

    @cached_property
    def rows(self) -> Mapping[str, Leaf]:
        """Row leaves by row id."""
        return {str(leaf.body["row"]): leaf for leaf in self.leaves if leaf.kind == "row"}

    @cached_property
    def open_plans(self) -> tuple[Leaf, ...]:
        """Plans that no row resolves."""
        return open_plans(self.leaves)

    def latest(self, kind: str, row: str) -> Leaf | None:
        """The newest statement of a kind about a row."""
        return self._statements.get((kind, row))

    @cached_property
    def _statements(self) -> Mapping[tuple[str, str], Leaf]:
        return statements(self.leaves)

    def proof(self, serial: int) -> tuple[str, ...]:
        """Audit path of a leaf, as hex."""
        return tuple(item.hex() for item in self.tree.inclusion_proof(serial))

    def place(self, row: str) -> Place | None:
        """Where a row of ours stands, None when it is not in this ledger."""
        leaf = self.rows.get(row)
        if leaf is None:
            return None
        plan = self.leaves[int(leaf.body["planSerial"])]
        return Place(plan, leaf, self.proof(plan.serial), self.proof(leaf.serial))

    def inclusion(self, row: str) -> bytes | None:
        """The file with which anyone can check that a row is in the ledger; canonical JSON."""
        place, reported = self.place(row), self.latest("reported", row)
        named: dict[str, Any] = {}
        if place is not None:
            named["plan"] = {"leaf": dict(place.plan.body), "proof": list(place.plan_proof)}
            named["row"] = {"leaf": dict(place.row.body), "proof": list(place.row_proof)}
        elif reported is not None:
            named["row"] = {"leaf": dict(reported.body), "proof": list(self.proof(reported.serial))}
        return canonical_json({"checkpoint": self.note, **named}) if named else None


def statements(leaves: Sequence[Leaf]) -> dict[tuple[str, str], Leaf]:
    """The newest statement of each kind (retract, supersede, reported) about each row."""
    return {
        (leaf.kind, str(leaf.body["row"])): leaf
        for leaf in leaves
        if leaf.kind not in ("plan", "row") and "row" in leaf.body
    }


def read_ledger(folder: Path, keyring: Keyring, failures: list[str]) -> PublishedLedger | None:
    """Read a published ledger; None, and every fault in `failures`, when it is not there or not sound."""
    paths = [folder / LEAVES, folder / CHECKPOINT]
    if not any(path.exists() for path in paths):
        return None
    try:
        data, note = paths[0].read_bytes(), paths[1].read_text("utf-8")
        return check_ledger(data, note, keyring)
    except VerificationError as error:
        failures += error.codes
    except (OSError, UnicodeDecodeError):
        failures.append("ledger-incomplete")
    return None


def check_ledger(data: bytes, note: str, keyring: Keyring) -> PublishedLedger:
    """Check leaves and checkpoint against each other and the keyring.

    Raises VerificationError: ledger-malformed, ledger-field, ledger-plan-twice, ledger-row-without-plan,
    ledger-size, ledger-shrunk, ledger-rewritten, and those of open_checkpoint.
    """
    # 1. Only public fields, serials without gaps.
    leaves = parse_leaves(data)
    codes = [f"ledger-field:{leaf.serial}:{name}" for leaf in leaves for name in _not_public(leaf)]
    # 2. Every row resolves one plan of its own run, which stands before it.
    plans = {leaf.serial: leaf.body["run"] for leaf in leaves if leaf.kind == "plan"}
    if len(set(plans.values())) != len(plans):
        codes.append("ledger-plan-twice")
    resolved: set[object] = set()
    for leaf in leaves:
        if leaf.kind == "row":
            serial = leaf.body.get("planSerial")
            own = serial in plans and plans[serial] == leaf.body["run"] and serial < leaf.serial
            if not own or serial in resolved:
                codes.append(f"ledger-row-without-plan:{leaf.serial}")
            resolved.add(serial)
    if codes:
        raise VerificationError("the ledger is not one that may be published", codes=codes)
    # 3. The checkpoint signs exactly these leaves.
    checkpoint, signer, witnesses = open_checkpoint(note, keyring)
    check_leaves(leaves, checkpoint)
    if len(leaves) != checkpoint.size:
        raise VerificationError("the checkpoint does not cover every leaf", codes=["ledger-size"])
    return PublishedLedger(leaves, note, checkpoint, signer, witnesses)


def _not_public(leaf: Leaf) -> list[str]:
    try:
        _ANY.validate_json(leaf.data)
    except ValidationError as error:
        return sorted({str(item["loc"][-1]) if item["loc"] else "kind" for item in error.errors()})
    return []


def open_checkpoint(note: str, keyring: Keyring) -> tuple[Checkpoint, KeyEntry, tuple[str, ...]]:
    """Open a checkpoint note that a listed publisher signed: (checkpoint, signer, witnesses' labels).

    Raises VerificationError: note-malformed, note-signature, note-unsigned, signer-unknown.
    """
    origin = note.partition("\n")[0]
    signers = [entry for entry in keyring.with_role("publisher") if log_name(entry.public) == origin]
    if not signers:
        raise VerificationError(
            "the keyring lists no publisher of this ledger", codes=["ledger-signer-unknown"]
        )
    opened = open_note(note, origin, signers, keyring.with_role("witness"))
    witnesses = tuple(sorted({entry.label for entry in opened.witnesses}))
    return parse_checkpoint(opened.text), opened.signer, witnesses


def inclusion_failures(ledger: PublishedLedger | None, rows: Mapping[str, Artifact]) -> list[str]:
    """What of the published rows does not stand in the ledger as it is published.

    Signed rows need a leaf with their evidence; what was said of one since (retracted, superseded)
    needs a leaf too, so that it cannot be edited in.
    """
    failures: list[str] = []
    for item, artifact in rows.items():
        if artifact.evidence is None:
            continue
        if ledger is None:
            failures.append(f"ledger-missing:{item}")
            continue
        place = ledger.place(item)
        if place is None:
            failures.append(f"row-not-in-ledger:{item}")
            continue
        told = (place.row.body["run"], place.row.body["status"], place.row.body["bundleSha256"])
        if told != (artifact.run, artifact.status, artifact.evidence.bundle_sha256):
            failures.append(f"ledger-row-differs:{item}")
        if place.plan.body["planSha256"] != artifact.evidence.plan_sha256:
            failures.append(f"ledger-plan-differs:{item}")
        failures += _statement_failures(ledger, artifact)
    return failures


def _statement_failures(ledger: PublishedLedger, artifact: Artifact) -> list[str]:
    failures = []
    retract, supersede = ledger.latest("retract", artifact.id), ledger.latest("supersede", artifact.id)
    said = None if retract is None else (retract.body["date"], retract.body["reason"])
    shown = None if artifact.retracted is None else (artifact.retracted.date, artifact.retracted.reason)
    if said != shown:
        failures.append(f"ledger-retraction-differs:{artifact.id}")
    if (None if supersede is None else supersede.body["by"]) != artifact.superseded_by:
        failures.append(f"ledger-supersession-differs:{artifact.id}")
    return failures


def extended(
    before: PublishedLedger | None, leaves: Sequence[Leaf], key: Ed25519PrivateKey, keyring: Keyring
) -> PublishedLedger:
    """The ledger to publish next: this machine's, when it holds everything that was published, in place.

    The note stays as it is, with its co-signatures, while nothing was added. Raises VerificationError:
    ledger-other-log, ledger-shrunk, ledger-rewritten, and those of check_ledger.
    """
    if before is not None:
        what = "this machine's ledger is not a continuation of the published one"
        remedy = "publish from the machine that keeps the ledger, or restore its state folder"
        if before.checkpoint.origin != log_name(public_bytes(key)):
            raise VerificationError(what, codes=["ledger-other-log"], remedy=remedy)
        try:
            check_leaves(leaves, before.checkpoint)
        except VerificationError as error:
            raise VerificationError(what, codes=error.codes, remedy=remedy) from error
        if len(leaves) == before.checkpoint.size:
            return before
    data = b"".join(leaf.data + b"\n" for leaf in leaves)
    return check_ledger(data, sign_checkpoint(leaves, key), keyring)


def unentered(leaves: Sequence[Leaf], rows: Mapping[str, Artifact]) -> list[dict[str, str]]:
    """Bodies of the leaves that reported rows still need: new ones, and those whose bytes changed."""
    latest = {leaf.body["row"]: leaf.body["artifactSha256"] for leaf in leaves if leaf.kind == "reported"}
    return [
        {"row": item, "artifactSha256": digest}
        for item, artifact in sorted(rows.items())
        if artifact.reported is not None and latest.get(item) != (digest := artifact_sha256(artifact))
    ]


def check_inclusion(data: bytes, artifact: Artifact, keyring: Keyring) -> str:
    """Check a row's inclusion file; return what it shows, in words.

    Raises VerificationError: ledger-malformed, ledger-not-included, ledger-row-differs, and those of
    open_checkpoint.
    """
    try:
        found = parse_canonical(data)
        checkpoint, signer, witnesses = open_checkpoint(str(found["checkpoint"]), keyring)
        for name in found.keys() & {"plan", "row"}:
            leaf, path = found[name]["leaf"], [bytes.fromhex(item) for item in found[name]["proof"]]
            digest, at = merkle.leaf_hash(canonical_json(leaf)), leaf["serial"]
            if not merkle.verify_inclusion(digest, at, checkpoint.size, path, checkpoint.root):
                raise VerificationError(f"the {name} is not in the ledger", codes=["ledger-not-included"])
        row = found["row"]["leaf"]
        if artifact.evidence is not None:
            same = (row["row"], row["bundleSha256"], found["plan"]["leaf"]["planSha256"]) == (
                artifact.id,
                artifact.evidence.bundle_sha256,
                artifact.evidence.plan_sha256,
            ) and row["planSerial"] == found["plan"]["leaf"]["serial"]
        else:
            same = (row["row"], row["artifactSha256"]) == (artifact.id, artifact_sha256(artifact))
    except (CanonicalError, KeyError, TypeError, ValueError) as error:
        raise VerificationError("the inclusion file is malformed", codes=["ledger-malformed"]) from error
    if not same:
        raise VerificationError("the ledger holds another row under this id", codes=["ledger-row-differs"])
    seen = f"co-signed by {', '.join(witnesses)}" if witnesses else "unwitnessed"
    return f"entry {row['serial']} of {checkpoint.size}, signed by {signer.name}, {seen}"
