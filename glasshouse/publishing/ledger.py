"""One published log: what stands in it, whether it is sound, and where each row is.

    <16 hex>/leaves.jsonl      every leaf up to the checkpoint, byte for byte as it was hashed
    <16 hex>/checkpoint.txt    the tree head over exactly these leaves, signed by the log's key

A log belongs to one publisher key and is named after it; a publication holds one for each (logs.py).
Leaves are an allow-list like artifacts: a field that is not named here is not published.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from glasshouse.canonical import CanonicalError, canonical_json, parse_canonical
from glasshouse.codes import Code
from glasshouse.errors import VerificationError
from glasshouse.publishing.artifact import Artifact, Day, Hex32, Id, Public, Text, artifact_sha256
from glasshouse.publishing.artifact import Code as CodeWord
from glasshouse.records import merkle
from glasshouse.records.keys import KeyEntry, Keyring
from glasshouse.records.ledger import (
    Leaf,
    check_leaves,
    hashes,
    log_key,
    log_name,
    open_journeys,
    open_plans,
    parse_leaves,
)
from glasshouse.records.note import Checkpoint, open_note, parse_checkpoint

LEAVES = "leaves.jsonl"
CHECKPOINT = "checkpoint.txt"
_OF_A_JOURNEY = frozenset({"journey-log", "key", "plan", "row"})

JourneyId = Annotated[str, Field(pattern=r"^20\d{6}-[a-z2-7]{6}$")]
LogKey = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Seed = Annotated[int, Field(ge=0, le=2**53 - 1)]
BudgetSec = Annotated[int, Field(ge=1, le=86_400)]
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
    status: CodeWord
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
    date: Day
    reason: Text


class KeyLeaf(_Leaf):
    """A key was added or retired."""

    kind: Literal["key"]
    keyid: Hex32
    role: CodeWord
    state: Literal["added", "retired"]


class JourneyLeaf(_Leaf):
    """A kit is about to leave for a machine without a network; what is planned there has its own log."""

    kind: Literal["journey"]
    journey: JourneyId
    seed: Seed
    budget_sec: BudgetSec
    commitment: Hex32 = Field(description="id of the publisher key that will sign the journey's log")


class JourneyLogLeaf(_Leaf):
    """This log is a journey's: the first leaf, entered before the kit left, names where it was opened."""

    kind: Literal["journey-log"]
    journey: JourneyId
    seed: Seed
    budget_sec: BudgetSec
    opened_in: LogKey
    open_serial: Serial


class JourneyEndLeaf(_Leaf):
    """A journey came back, with a log of this size and root."""

    kind: Literal["journey-end"]
    journey: JourneyId
    open_serial: Serial
    size: Serial
    root: Hex32
    checkpoint_sha256: Hex32


_ANY: TypeAdapter[Any] = TypeAdapter(
    Annotated[
        PlanLeaf
        | RowLeaf
        | ReportedLeaf
        | RetractLeaf
        | SupersedeLeaf
        | KeyLeaf
        | JourneyLeaf
        | JourneyLogLeaf
        | JourneyEndLeaf,
        Field(discriminator="kind"),
    ]
)


@dataclass(frozen=True)
class Place:
    """Where a row stands: its log, its leaf and its plan's, each with the audit path to the signed root."""

    log: PublishedLog
    plan: Leaf
    row: Leaf
    plan_proof: tuple[str, ...]
    row_proof: tuple[str, ...]


@dataclass(frozen=True)
class PublishedLog:
    """A log whose leaves are public, whole, and what its checkpoint signs."""

    leaves: tuple[Leaf, ...]
    note: str
    checkpoint: Checkpoint
    signer: KeyEntry
    witnesses: tuple[str, ...]

    @property
    def key(self) -> str:
        """First 16 hex digits of the id of the key that signs the log: its folder's name."""
        return log_key(self.signer.public)

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
    def plans(self) -> tuple[Leaf, ...]:
        """Every plan, open or not."""
        return tuple(leaf for leaf in self.leaves if leaf.kind == "plan")

    @cached_property
    def open_plans(self) -> tuple[Leaf, ...]:
        """Plans that no row resolves."""
        return open_plans(self.leaves)

    @property
    def journey(self) -> Leaf | None:
        """The leaf that makes this log a journey's, None where it is a machine's own."""
        first = self.leaves[0] if self.leaves else None
        return first if first is not None and first.kind == "journey-log" else None

    @cached_property
    def open_journeys(self) -> tuple[Leaf, ...]:
        """Journeys opened here of which nothing came back."""
        return open_journeys(self.leaves)

    def withheld(self, shown: Container[str]) -> tuple[Leaf, ...]:
        """Rows that were entered and are not among those shown."""
        return tuple(leaf for row, leaf in self.rows.items() if row not in shown)

    @cached_property
    def statements(self) -> Mapping[tuple[str, str], Leaf]:
        """The newest statement of each kind (retract, supersede, reported) about each row."""
        return {
            (leaf.kind, str(leaf.body["row"])): leaf
            for leaf in self.leaves
            if leaf.kind not in ("plan", "row") and "row" in leaf.body
        }

    def proof(self, serial: int) -> tuple[str, ...]:
        """Audit path of a leaf, as hex."""
        return tuple(item.hex() for item in self.tree.inclusion_proof(serial))

    def place(self, row: str) -> Place | None:
        """Where a row of ours stands, None when it is not in this log."""
        leaf = self.rows.get(row)
        if leaf is None:
            return None
        plan = self.leaves[int(leaf.body["planSerial"])]
        return Place(self, plan, leaf, self.proof(plan.serial), self.proof(leaf.serial))

    def inclusion(self, **named: Leaf) -> bytes:
        """The file with which anyone can check that leaves are in this log; canonical JSON."""
        entries = {
            name: {"leaf": dict(leaf.body), "proof": list(self.proof(leaf.serial))}
            for name, leaf in named.items()
        }
        return canonical_json({"checkpoint": self.note, **entries})


def check_log(data: bytes, note: str, keyring: Keyring) -> PublishedLog:
    """Check leaves and checkpoint against each other and the keyring.

    Raises VerificationError: ledger-malformed, ledger-field, ledger-plan-twice, ledger-row-without-plan,
    ledger-journey, ledger-size, ledger-shrunk, ledger-rewritten, and those of open_checkpoint.
    """
    # 1. Only public fields, serials without gaps.
    leaves = parse_leaves(data)
    codes = [f"{Code.LEDGER_FIELD}:{leaf.serial}:{name}" for leaf in leaves for name in _not_public(leaf)]
    if codes:
        raise VerificationError("the log is not one that may be published", codes=codes)
    # 2. Every row resolves one plan of its own run, which stands before it.
    plans = {leaf.serial: leaf.body["run"] for leaf in leaves if leaf.kind == "plan"}
    if len(set(plans.values())) != len(plans):
        codes.append(Code.LEDGER_PLAN_TWICE)
    resolved: set[object] = set()
    for leaf in leaves:
        if leaf.kind == "row":
            serial = leaf.body.get("planSerial")
            own = serial in plans and plans[serial] == leaf.body["run"] and serial < leaf.serial
            if not own or serial in resolved:
                codes.append(f"{Code.LEDGER_ROW_WITHOUT_PLAN}:{leaf.serial}")
            resolved.add(serial)
    # 3. A journey's log says so from the start, and speaks of its own runs and keys alone: whoever owns the
    # machine can sign it, and must not retract another's row. An end names an opening of the same journey.
    away = bool(leaves) and leaves[0].kind == "journey-log"
    opened = {leaf.serial: leaf.body.get("journey") for leaf in leaves if leaf.kind == "journey"}
    for leaf in leaves:
        if leaf.kind == "journey-end":
            serial = leaf.body.get("openSerial")
            good = serial in opened and opened[serial] == leaf.body.get("journey") and serial < leaf.serial
        else:
            good = leaf.kind != "journey-log" or leaf.serial == 0
        if not good or (away and not _of_a_journey(leaf)):
            codes.append(f"{Code.LEDGER_JOURNEY}:{leaf.serial}")
    if codes:
        raise VerificationError("the log is not one that may be published", codes=codes)
    # 4. The checkpoint signs exactly these leaves.
    checkpoint, signer, witnesses = open_checkpoint(note, keyring)
    check_leaves(leaves, checkpoint)
    if len(leaves) != checkpoint.size:
        raise VerificationError("the checkpoint does not cover every leaf", codes=[Code.LEDGER_SIZE])
    return PublishedLog(leaves, note, checkpoint, signer, witnesses)


def _of_a_journey(leaf: Leaf) -> bool:
    """Whether a journey's log may hold the leaf."""
    return leaf.kind in _OF_A_JOURNEY and (leaf.kind != "key" or leaf.body["state"] == "added")


def _not_public(leaf: Leaf) -> list[str]:
    try:
        _ANY.validate_json(leaf.data)
    except ValidationError as error:
        return sorted({str(item["loc"][-1]) if item["loc"] else "kind" for item in error.errors()})
    return []


def open_checkpoint(note: str, keyring: Keyring) -> tuple[Checkpoint, KeyEntry, tuple[str, ...]]:
    """Open a checkpoint note that a listed publisher signed: (checkpoint, signer, witnesses' labels).

    A retired key's log stays listed and readable up to the last index that the keyring names. Raises
    VerificationError: note-malformed, note-signature, note-unsigned, ledger-signer-unknown,
    ledger-signer-retired.
    """
    origin = note.partition("\n")[0]
    signers = [entry for entry in keyring.with_role("publisher") if log_name(entry.public) == origin]
    if not signers:
        raise VerificationError(
            "the keyring lists no publisher of this log", codes=[Code.LEDGER_SIGNER_UNKNOWN]
        )
    opened = open_note(note, origin, signers, keyring.with_role("witness"))
    checkpoint = parse_checkpoint(opened.text)
    valid = keyring.with_role("publisher", index=max(checkpoint.size - 1, 0))
    signer = next((entry for entry in valid if entry.public == opened.signer.public), None)
    if signer is None:
        raise VerificationError(
            "the log goes on past its key's retirement", codes=[Code.LEDGER_SIGNER_RETIRED]
        )
    witnesses = tuple(sorted({entry.label for entry in opened.witnesses}))
    return checkpoint, signer, witnesses


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
                raise VerificationError(f"the {name} is not in the log", codes=[Code.LEDGER_NOT_INCLUDED])
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
        raise VerificationError("the inclusion file is malformed", codes=[Code.LEDGER_MALFORMED]) from error
    if not same:
        raise VerificationError("the log holds another row under this id", codes=[Code.LEDGER_ROW_DIFFERS])
    seen = f"co-signed by {', '.join(witnesses)}" if witnesses else "unwitnessed"
    return f"entry {row['serial']} of {checkpoint.size}, signed by {signer.name}, {seen}"
