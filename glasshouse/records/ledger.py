"""The ledger: an append-only Merkle log of plans and row statements.

One file of canonical JSON lines; a leaf's serial is its index, so serials have no gaps. A plan is
entered before anything is rented, and ends as a row: what is open stays visible, and two published
checkpoints show whether anything was removed or altered in between (RFC 6962 consistency).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from glasshouse import host, paths
from glasshouse.canonical import CanonicalError, canonical_json, parse_canonical, record_json, sha256_hex
from glasshouse.codes import Code
from glasshouse.errors import UsageError, VerificationError
from glasshouse.records import merkle
from glasshouse.records.keys import (
    KeyEntry,
    Keyring,
    Role,
    fsync_folder,
    keyid,
    local_keyring,
    public_bytes,
    rotate,
)
from glasshouse.records.leaf_bodies import (
    KINDS,
    KeyBody,
    LeafBody,
    PlanBody,
    RetractBody,
    RowBody,
    SupersedeBody,
)
from glasshouse.records.secrets import require_clean
from glasshouse.records.signed_note import Checkpoint, open_note, parse_checkpoint, sign_note

MAX_LEAF_BYTES = 16 << 10


@dataclass(frozen=True)
class Leaf:
    """One entry: `body` is the parsed line, `data` the bytes that are hashed (without newline)."""

    serial: int
    kind: str
    body: Mapping[str, Any]
    data: bytes


@dataclass(frozen=True)
class Registered:
    """A plan that stands in the ledger: its serial, and the signed envelope that names it."""

    serial: int
    envelope: bytes


class Ledger:
    """The ledger in a folder, by default this machine's; safe across threads and processes."""

    def __init__(self, folder: Path | None = None, *, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder if folder is not None else paths.state_dir() / "ledger"
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = self._folder / "leaves.jsonl"
        self._clock = clock

    def leaves(self) -> tuple[Leaf, ...]:
        """Read all leaves; a last line without newline was never acknowledged and does not count."""
        if not self._path.exists():
            return ()
        return parse_leaves(_whole_lines(self._path.read_bytes()))

    def register_plan(self, run: str, build: Callable[[int, float], bytes]) -> Registered:
        """Enter a plan before anything is rented.

        `build(serial, now)` returns the signed envelope that names its own serial; it is called
        under the ledger's lock. Raises UsageError when the run already has a plan.
        """
        with self._locked():
            leaves = self.leaves()
            if any(leaf.kind == "plan" and leaf.body["run"] == run for leaf in leaves):
                raise UsageError("the run already has a plan in the ledger", field="run", value=run)
            now = self._clock()
            envelope = build(len(leaves), now)
            self._append(leaves, PlanBody(run, sha256_hex(envelope)), now)
            return Registered(len(leaves), envelope)

    def append_row(
        self, *, run: str, row: str, status: str, record_sha256: str, bundle_sha256: str | None
    ) -> int:
        """Resolve a run's plan with its row; return the leaf's serial.

        bundle_sha256 is the SHA-256 of bundle.dsse.json. Raises UsageError without an open plan.
        """
        with self._locked():
            leaves = self.leaves()
            plan = next((leaf for leaf in open_plans(leaves) if leaf.body["run"] == run), None)
            if plan is None:
                raise UsageError("the run has no open plan in the ledger", field="run", value=run)
            body = RowBody(run, row, status, plan.serial, record_sha256, bundle_sha256)
            return self._append(leaves, body, self._clock())

    def append(self, body: LeafBody) -> int:
        """Enter another statement and return its serial.

        Raises UsageError for a plan or row: register_plan and append_row check and enter those.
        """
        if isinstance(body, PlanBody | RowBody):
            raise UsageError("no such ledger statement", field="kind", value=body.kind)
        with self._locked():
            return self._append(self.leaves(), body, self._clock())

    def rotate(self, role: Role) -> tuple[KeyEntry, KeyEntry]:
        """Give this machine another operator or broker key from the next entry on, and enter both.

        Returns (the retired one, the new one). Nothing is entered in an empty ledger: the old key has signed
        no record. What a rotation that was cut off did not enter is entered by the next. Raises UsageError
        for the publisher's key, and in a journey's ledger.
        """
        with self._locked():
            leaves = self.leaves()
            if leaves and leaves[0].kind == "journey-log":
                raise UsageError(
                    "a journey's keys are not rotated",
                    field="rotate",
                    value=role,
                    remedy="end the journey; the next one has keys of its own",
                )
            pair = rotate(role, len(leaves))
            if leaves:
                for body in _unentered(leaves):
                    self._append(self.leaves(), body, self._clock())
            return pair

    def open_plans(self) -> tuple[Leaf, ...]:
        """Plans that have no row yet."""
        return open_plans(self.leaves())

    def checkpoint(self, key: Ed25519PrivateKey) -> str:
        """Sign the present tree head as a note; its origin and key name are the key's own log name."""
        return sign_checkpoint(self.leaves(), key)

    def _append(self, leaves: Sequence[Leaf], body: LeafBody, now: float) -> int:
        serial = len(leaves)
        line = _line(body, serial, now)
        # What a person typed, against this machine's own secrets too. Ids and digests were looked at with the
        # plan: a short secret that happens to stand in one must not keep a run from ending as a row.
        known = None if isinstance(body, RetractBody | SupersedeBody) else ()
        files = {f"ledger/{body.kind}.json": line}
        require_clean(files, known=known, undone="nothing was entered in the ledger")
        if len(line) > MAX_LEAF_BYTES:
            raise UsageError("ledger entry is too large", field="bytes", value=len(line))
        end = sum(len(leaf.data) + 1 for leaf in leaves)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "r+b") as file:
            file.truncate(end)  # drop what a crash left of an unacknowledged line
            file.seek(end)
            file.write(line + b"\n")
            file.flush()
            host.sync(file.fileno())
        fsync_folder(self._folder)
        return serial

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _unentered(leaves: Sequence[Leaf]) -> list[KeyBody]:
    """What the leaves do not say of the operator's and broker's keys that were rotated on this machine."""
    said = {(leaf.body["keyid"], leaf.body["state"]) for leaf in leaves if leaf.kind == "key"}
    entries = [entry for entry in local_keyring().entries if entry.role in ("operator", "broker")]
    bodies = [
        KeyBody(entry.keyid, entry.role, "retired") for entry in entries if entry.valid_until is not None
    ]
    bodies += [KeyBody(entry.keyid, entry.role, "added") for entry in entries if entry.valid_from is not None]
    return [body for body in bodies if (body.keyid, body.state) not in said]


def _whole_lines(data: bytes) -> bytes:
    return data[: data.rfind(b"\n") + 1]


def parse_leaves(data: bytes) -> tuple[Leaf, ...]:
    """Parse a ledger file strictly; VerificationError(ledger-malformed) on any gap or stray byte."""
    leaves: list[Leaf] = []
    if data and not data.endswith(b"\n"):
        raise VerificationError("ledger: the last line is not ended", codes=[Code.LEDGER_MALFORMED])
    for number, line in enumerate(data.split(b"\n")[:-1]):
        try:
            body = parse_canonical(line, max_bytes=MAX_LEAF_BYTES)
            if not isinstance(body, dict) or body.get("serial") != number or body.get("kind") not in KINDS:
                raise CanonicalError("serials have a gap, or a line of unknown kind")
            if body["kind"] in ("plan", "row") and not isinstance(body.get("run"), str):
                raise CanonicalError("a plan or row names no run")
        except CanonicalError as error:
            raise VerificationError(
                f"ledger line {number}: {error}", codes=[Code.LEDGER_MALFORMED]
            ) from error
        leaves.append(Leaf(number, body["kind"], body, line))
    return tuple(leaves)


def open_plans(leaves: Sequence[Leaf]) -> tuple[Leaf, ...]:
    """Plans among `leaves` that no row resolves."""
    resolved = {leaf.body["planSerial"] for leaf in leaves if leaf.kind == "row"}
    return tuple(leaf for leaf in leaves if leaf.kind == "plan" and leaf.serial not in resolved)


def open_journeys(leaves: Sequence[Leaf]) -> tuple[Leaf, ...]:
    """Journeys that one log's `leaves` opened and none of them ended: a kit left, nothing came back."""
    ended = {leaf.body["openSerial"] for leaf in leaves if leaf.kind == "journey-end"}
    return tuple(leaf for leaf in leaves if leaf.kind == "journey" and leaf.serial not in ended)


def hashes(leaves: Sequence[Leaf]) -> list[bytes]:
    """RFC 6962 leaf hashes."""
    return [merkle.leaf_hash(leaf.data) for leaf in leaves]


def log_key(public: bytes) -> str:
    """First 16 hex digits of a key's id: what its log, and the log's published folder, are named after."""
    return keyid(public)[:16]


def log_name(public: bytes) -> str:
    """Name of the log that a key signs: origin line and note key name."""
    return f"glasshouse/ledger/{log_key(public)}"


def sign_checkpoint(leaves: Sequence[Leaf], key: Ed25519PrivateKey) -> str:
    """Sign the tree head over `leaves` as a checkpoint note."""
    name = log_name(public_bytes(key))
    return sign_note(Checkpoint(name, len(leaves), merkle.root(hashes(leaves))).text(), name, key)


def prove_inclusion(leaves: Sequence[Leaf], serial: int) -> list[str]:
    """Audit path of a leaf in the tree over `leaves`, as hex."""
    return [item.hex() for item in merkle.inclusion_proof(hashes(leaves), serial)]


def prove_consistency(leaves: Sequence[Leaf], old_size: int) -> list[str]:
    """Proof that the first `old_size` leaves are where they were, as hex."""
    return [item.hex() for item in merkle.consistency_proof(hashes(leaves), old_size)]


def plan_witnesses(
    note: str, proof: Sequence[str], *, run: str, plan_sha256: str, serial: int, time: float, keyring: Keyring
) -> tuple[str, ...]:
    """Check that a plan's leaf is covered by a checkpoint note; labels of the witnesses that co-signed.

    The note's signer must be listed as publisher or operator, and not retired before the log was so long.
    Raises VerificationError: those of the note, ledger-signer-retired, ledger-not-included.
    """
    origin = note.partition("\n")[0]
    listed = (*keyring.with_role("publisher"), *keyring.with_role("operator"))
    signers = [entry for entry in listed if log_name(entry.public) == origin]
    opened = open_note(note, origin, signers, keyring.with_role("witness"))
    head = parse_checkpoint(opened.text)
    last = opened.signer.valid_until
    if last is not None and head.size - 1 > last:
        raise VerificationError(
            "the log goes on past its key's retirement", codes=[Code.LEDGER_SIGNER_RETIRED]
        )
    leaf = plan_leaf(run, plan_sha256, serial, time)
    path = [bytes.fromhex(item) for item in proof]
    if not merkle.verify_inclusion(merkle.leaf_hash(leaf), serial, head.size, path, head.root):
        raise VerificationError(
            "the plan is not in the ledger that was signed", codes=[Code.LEDGER_NOT_INCLUDED]
        )
    return tuple(sorted({entry.label for entry in opened.witnesses}))


def plan_leaf(run: str, plan_sha256: str, serial: int, time: float) -> bytes:
    """Return the bytes of a plan's leaf: they follow from the plan envelope alone."""
    return _line(PlanBody(run, plan_sha256), serial, time)


def _line(body: LeafBody, serial: int, time: float) -> bytes:
    return canonical_json({**record_json(body), "serial": serial, "time": round(time, 3)})


def check(old: Checkpoint, new: Checkpoint, proof: Sequence[str]) -> None:
    """Check that nothing was removed or altered between two checkpoints of one log.

    Raises VerificationError: ledger-other-log, ledger-shrunk, ledger-rewritten.
    """
    if old.origin != new.origin:
        raise VerificationError("the checkpoints are of two logs", codes=[Code.LEDGER_OTHER_LOG])
    if new.size < old.size:
        raise VerificationError("the newer checkpoint has fewer leaves", codes=[Code.LEDGER_SHRUNK])
    path = [bytes.fromhex(item) for item in proof]
    if not merkle.verify_consistency(old.size, new.size, old.root, new.root, path):
        raise VerificationError(
            "leaves were altered or removed between the checkpoints", codes=[Code.LEDGER_REWRITTEN]
        )


def check_leaves(leaves: Sequence[Leaf], checkpoint: Checkpoint) -> None:
    """Check that `leaves` begin with exactly what the checkpoint covers.

    Raises VerificationError: ledger-shrunk, ledger-rewritten.
    """
    if len(leaves) < checkpoint.size:
        raise VerificationError("the ledger has fewer leaves than the checkpoint", codes=[Code.LEDGER_SHRUNK])
    if merkle.root(hashes(leaves[: checkpoint.size])) != checkpoint.root:
        raise VerificationError(
            "the ledger's leaves do not give the checkpoint's root", codes=[Code.LEDGER_REWRITTEN]
        )
