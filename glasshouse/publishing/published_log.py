"""One published log: what stands in it, whether it is sound, and where each row is.

    <16 hex>/leaves.jsonl      every leaf up to the checkpoint, byte for byte as it was hashed
    <16 hex>/checkpoint.txt    the tree head over exactly these leaves, signed by the log's key

A log belongs to one publisher key and is named after it; a publication holds one for each (logs.py).
Leaves are an allow-list like artifacts: a field that is not named here is not published.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from glasshouse.canonical import CanonicalError, canonical_json, parse_canonical
from glasshouse.codes import Code
from glasshouse.errors import VerificationError
from glasshouse.publishing.artifact import Artifact, artifact_sha256
from glasshouse.records import merkle
from glasshouse.records.keys import KeyEntry, Keyring
from glasshouse.records.leaf_bodies import (
    JourneyBody,
    JourneyEndBody,
    JourneyLogBody,
    KeyBody,
    PlanBody,
    ReportedBody,
    RetractBody,
    RowBody,
    SupersedeBody,
)
from glasshouse.records.ledger import (
    Leaf,
    check_leaves,
    hashes,
    log_key,
    log_name,
    parse_leaves,
)
from glasshouse.records.signed_note import Checkpoint, open_note, parse_checkpoint
from glasshouse.schema import STRICT, Count, Time

LEAVES = "leaves.jsonl"
CHECKPOINT = "checkpoint.txt"
_OF_A_JOURNEY = frozenset({"journey-log", "key", "plan", "row"})


@dataclass(frozen=True, kw_only=True)
class _Entered:
    """What the ledger adds to a body. serial: index of the leaf; time: Unix seconds."""

    serial: Count
    time: Time


@checked(frozen=True, config=STRICT)
class PlanLeaf(_Entered, PlanBody):
    """A run was planned."""


@checked(frozen=True, config=STRICT)
class RowLeaf(_Entered, RowBody):
    """A plan ended as this row."""


@checked(frozen=True, config=STRICT)
class ReportedLeaf(_Entered, ReportedBody):
    """A row that others reported was published, with these bytes."""


@checked(frozen=True, config=STRICT)
class RetractLeaf(_Entered, RetractBody):
    """A row was withdrawn."""


@checked(frozen=True, config=STRICT)
class SupersedeLeaf(_Entered, SupersedeBody):
    """A row was replaced by another."""


@checked(frozen=True, config=STRICT)
class KeyLeaf(_Entered, KeyBody):
    """A key was added or retired."""


@checked(frozen=True, config=STRICT)
class JourneyLeaf(_Entered, JourneyBody):
    """A kit is about to leave for a machine without a network; what is planned there has its own log."""


@checked(frozen=True, config=STRICT)
class JourneyLogLeaf(_Entered, JourneyLogBody):
    """This log is a journey's: the first leaf, entered before the kit left, names where it was opened."""


@checked(frozen=True, config=STRICT)
class JourneyEndLeaf(_Entered, JourneyEndBody):
    """A journey came back, with a log of this size and root."""


Statement = ReportedLeaf | RetractLeaf | SupersedeLeaf  # about a row, the newest of its kind counts
Entry = PlanLeaf | RowLeaf | Statement | KeyLeaf | JourneyLeaf | JourneyLogLeaf | JourneyEndLeaf
_ENTRY: TypeAdapter[Entry] = TypeAdapter(Annotated[Entry, Field(discriminator="kind")])


@dataclass(frozen=True)
class Place:
    """Where a row stands: its log, its leaf and its plan's, each with the audit path to the signed root."""

    log: PublishedLog
    plan: PlanLeaf
    row: RowLeaf
    plan_proof: tuple[str, ...]
    row_proof: tuple[str, ...]


@dataclass(frozen=True)
class PublishedLog:
    """A log whose leaves are public, whole, and what its checkpoint signs; entries: what each leaf says."""

    leaves: tuple[Leaf, ...]
    entries: tuple[Entry, ...]
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
    def rows(self) -> Mapping[str, RowLeaf]:
        """Row entries by row id."""
        return {entry.row: entry for entry in self.entries if isinstance(entry, RowLeaf)}

    @cached_property
    def plans(self) -> tuple[PlanLeaf, ...]:
        """Every plan, open or not."""
        return tuple(entry for entry in self.entries if isinstance(entry, PlanLeaf))

    @cached_property
    def open_plans(self) -> tuple[PlanLeaf, ...]:
        """Plans that no row resolves."""
        resolved = {entry.plan_serial for entry in self.entries if isinstance(entry, RowLeaf)}
        return tuple(plan for plan in self.plans if plan.serial not in resolved)

    @property
    def journey(self) -> JourneyLogLeaf | None:
        """The entry that makes this log a journey's, None where it is a machine's own."""
        first = self.entries[0] if self.entries else None
        return first if isinstance(first, JourneyLogLeaf) else None

    @cached_property
    def ends(self) -> tuple[JourneyEndLeaf, ...]:
        """Ends of journeys that were opened here, in the order in which they were entered."""
        return tuple(entry for entry in self.entries if isinstance(entry, JourneyEndLeaf))

    @cached_property
    def open_journeys(self) -> tuple[JourneyLeaf, ...]:
        """Journeys opened here of which nothing came back."""
        ended = {entry.open_serial for entry in self.ends}
        opened = (entry for entry in self.entries if isinstance(entry, JourneyLeaf))
        return tuple(entry for entry in opened if entry.serial not in ended)

    @cached_property
    def retired(self) -> Mapping[tuple[str, str], int]:
        """Keys that the log retired, as (key id, role), each with the serial from which it signs nothing."""
        found: dict[tuple[str, str], int] = {}
        for entry in self.entries:
            if isinstance(entry, KeyLeaf) and entry.state == "retired":
                found.setdefault((entry.keyid, entry.role), entry.serial)
        return found

    def withheld(self, shown: Container[str]) -> tuple[RowLeaf, ...]:
        """Rows that were entered and are not among those shown."""
        return tuple(entry for row, entry in self.rows.items() if row not in shown)

    @cached_property
    def statements(self) -> Mapping[tuple[str, str], Statement]:
        """The newest statement of each kind (retract, supersede, reported) about each row."""
        return {(entry.kind, entry.row): entry for entry in self.entries if isinstance(entry, Statement)}

    def plan_of(self, row: RowLeaf) -> PlanLeaf:
        """The plan that a row of this log resolves: check_log has seen that there is one."""
        plan = self.entries[row.plan_serial]
        assert isinstance(plan, PlanLeaf)
        return plan

    def proof(self, serial: int) -> tuple[str, ...]:
        """Audit path of a leaf, as hex."""
        return tuple(item.hex() for item in self.tree.inclusion_proof(serial))

    def place(self, row: str) -> Place | None:
        """Where a row of ours stands, None when it is not in this log."""
        leaf = self.rows.get(row)
        if leaf is None:
            return None
        plan = self.plan_of(leaf)
        return Place(self, plan, leaf, self.proof(plan.serial), self.proof(leaf.serial))

    def inclusion(self, **named: Entry) -> bytes:
        """The file with which anyone can check that entries are in this log; canonical JSON."""
        entries = {
            name: {"leaf": dict(self.leaves[entry.serial].body), "proof": list(self.proof(entry.serial))}
            for name, entry in named.items()
        }
        return canonical_json({"checkpoint": self.note, **entries})


def check_log(data: bytes, note: str, keyring: Keyring) -> PublishedLog:
    """Check leaves and checkpoint against each other and the keyring.

    Raises VerificationError: ledger-malformed, ledger-field, ledger-plan-twice, ledger-row-without-plan,
    ledger-journey, ledger-size, ledger-shrunk, ledger-rewritten, and those of open_checkpoint.
    """
    # 1. Only public fields, serials without gaps.
    leaves = parse_leaves(data)
    entries, codes = _public(leaves)
    if codes:
        raise VerificationError("the log is not one that may be published", codes=codes)
    # 2. Every row resolves one plan of its own run, which stands before it.
    plans = {entry.serial: entry.run for entry in entries if isinstance(entry, PlanLeaf)}
    if len(set(plans.values())) != len(plans):
        codes.append(Code.LEDGER_PLAN_TWICE)
    resolved: set[int] = set()
    for entry in entries:
        if isinstance(entry, RowLeaf):
            own = plans.get(entry.plan_serial) == entry.run and entry.plan_serial < entry.serial
            if not own or entry.plan_serial in resolved:
                codes.append(f"{Code.LEDGER_ROW_WITHOUT_PLAN}:{entry.serial}")
            resolved.add(entry.plan_serial)
    # 3. A journey's log says so from the start, and speaks of its own runs and keys alone: whoever owns the
    # machine can sign it, and must not retract another's row. An end names an opening of the same journey.
    away = bool(entries) and isinstance(entries[0], JourneyLogLeaf)
    opened = {entry.serial: entry.journey for entry in entries if isinstance(entry, JourneyLeaf)}
    for entry in entries:
        if isinstance(entry, JourneyEndLeaf):
            good = opened.get(entry.open_serial) == entry.journey and entry.open_serial < entry.serial
        else:
            good = not isinstance(entry, JourneyLogLeaf) or entry.serial == 0
        if not good or (away and not _of_a_journey(entry)):
            codes.append(f"{Code.LEDGER_JOURNEY}:{entry.serial}")
    if codes:
        raise VerificationError("the log is not one that may be published", codes=codes)
    # 4. The checkpoint signs exactly these leaves.
    checkpoint, signer, witnesses = open_checkpoint(note, keyring)
    check_leaves(leaves, checkpoint)
    if len(leaves) != checkpoint.size:
        raise VerificationError("the checkpoint does not cover every leaf", codes=[Code.LEDGER_SIZE])
    return PublishedLog(leaves, entries, note, checkpoint, signer, witnesses)


def _of_a_journey(entry: Entry) -> bool:
    """Whether a journey's log may hold the entry."""
    added = not isinstance(entry, KeyLeaf) or entry.state == "added"
    return entry.kind in _OF_A_JOURNEY and added


def _public(leaves: Sequence[Leaf]) -> tuple[tuple[Entry, ...], list[str]]:
    """What the leaves say, and `ledger-field:serial:name` for what may not be published."""
    entries: list[Entry] = []
    codes: list[str] = []
    for leaf in leaves:
        try:
            entries.append(_ENTRY.validate_json(leaf.data))
        except ValidationError as error:
            names = {str(item["loc"][-1]) if item["loc"] else "kind" for item in error.errors()}
            codes += [f"{Code.LEDGER_FIELD}:{leaf.serial}:{name}" for name in sorted(names)]
    return tuple(entries), codes


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
    witnesses = tuple(sorted({entry.name for entry in opened.witnesses}))
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
