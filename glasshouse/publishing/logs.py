"""All published logs: one for each publisher key, and what they say together.

    <16 hex of the key's id>/    one log (published_log.py)

Any machine whose publisher key the keyring lists keeps a log of its own and extends no other. So
machines publish side by side, and a log whose machine is lost stays at its last checkpoint, its open
plans open for good. A run and a row stand in one log only; what was stated of a row since counts
whichever log holds it, so that any of the publisher's machines can retract any row.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, overload

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from glasshouse import host
from glasshouse.codes import Code
from glasshouse.errors import VerificationError
from glasshouse.publishing.artifact import Artifact, Retraction, artifact_sha256
from glasshouse.publishing.published_log import (
    CHECKPOINT,
    LEAVES,
    JourneyEndLeaf,
    JourneyLeaf,
    Place,
    PlanLeaf,
    PublishedLog,
    ReportedLeaf,
    RetractLeaf,
    RowLeaf,
    Statement,
    SupersedeLeaf,
    check_log,
)
from glasshouse.records.keys import Keyring, public_bytes
from glasshouse.records.leaf_bodies import ReportedBody
from glasshouse.records.ledger import Leaf, check_leaves, log_key, sign_checkpoint
from glasshouse.records.signed_note import MAX_NOTE_BYTES

MAX_LEAVES_BYTES = 128 << 20
KEYS = "keyring.json"  # beside local logs: the keys of the machines that keep them

GETTING_THERE_SEC = 600  # from the announcement to the borrowed machine, beyond the journey's budget

_FOLDER = re.compile(r"[0-9a-f]{16}\Z")


@dataclass(frozen=True)
class PublishedLogs:
    """Sound logs, in the order of their keys; `faults` says what is wrong between them."""

    logs: tuple[PublishedLog, ...] = ()

    def of(self, key: str) -> PublishedLog | None:
        """The log of a key, given by the first 16 hex digits of its id."""
        return next((log for log in self.logs if log.key == key), None)

    def replaced(self, log: PublishedLog) -> PublishedLogs:
        """The same with `log` as the log of its key."""
        others = [other for other in self.logs if other.key != log.key]
        return PublishedLogs(tuple(sorted([*others, log], key=lambda item: item.key)))

    @property
    def faults(self) -> list[str]:
        """Runs and rows that stand more than once: ledger-run-twice, ledger-row-twice."""
        runs = Counter(plan.run for log in self.logs for plan in log.plans)
        rows = Counter(entry.row for log in self.logs for entry in log.entries if isinstance(entry, RowLeaf))
        return [
            f"{code}:{name}"
            for code, counted in ((Code.LEDGER_RUN_TWICE, runs), (Code.LEDGER_ROW_TWICE, rows))
            for name, times in sorted(counted.items())
            if times > 1
        ]

    @cached_property
    def rows(self) -> Mapping[str, PublishedLog]:
        """The log that holds each row of ours, by row id."""
        return {row: log for log in self.logs for row in log.rows}

    @property
    def plans(self) -> tuple[PlanLeaf, ...]:
        """Plans of all logs, open or not."""
        return tuple(leaf for log in self.logs for leaf in log.plans)

    @property
    def open_plans(self) -> tuple[PlanLeaf, ...]:
        """Plans of all logs that no row resolves."""
        return tuple(leaf for log in self.logs for leaf in log.open_plans)

    @property
    def open_journeys(self) -> tuple[JourneyLeaf, ...]:
        """Journeys of all logs of which nothing came back."""
        return tuple(leaf for log in self.logs for leaf in log.open_journeys)

    def opening(self, log: PublishedLog) -> JourneyLeaf | None:
        """The entry that opened a journey's log: in the log it names, of the same journey, key and budget.

        None where there is none, or where it is not older than the first plan. A journey's log opens none.
        """
        said = log.journey
        home = None if said is None else self.of(said.opened_in)
        if said is None or home is None or home.journey is not None or said.open_serial >= len(home.entries):
            return None
        entry = home.entries[said.open_serial]
        if not isinstance(entry, JourneyLeaf) or entry.commitment != log.signer.keyid:
            return None
        told = (said.journey, said.seed, said.budget_sec)
        if (entry.journey, entry.seed, entry.budget_sec) != told:
            return None
        return None if any(plan.time <= entry.time for plan in log.plans) else entry

    def ended(self, log: PublishedLog) -> JourneyEndLeaf | None:
        """The first entry that ended a journey, in the log that opened it; None while it is away."""
        opening = self.opening(log)
        home = None if opening is None or log.journey is None else self.of(log.journey.opened_in)
        if opening is None or home is None:
            return None
        return next((end for end in home.ends if end.open_serial == opening.serial), None)

    def late(self, row: str) -> bool:
        """Whether a row's journey was not announced, or its plan does not belong to what was announced.

        The plan must be entered within the budget from the announcement, with GETTING_THERE_SEC to spare,
        and stand among the entries that the journey's log had when the journey was first ended.
        """
        log = self.rows.get(row)
        if log is None or log.journey is None:
            return False
        opening, ended = self.opening(log), self.ended(log)
        if opening is None:
            return True
        plan = log.plan_of(log.rows[row])
        until = opening.time + opening.budget_sec + GETTING_THERE_SEC
        return plan.time > until or (ended is not None and plan.serial >= ended.size)

    def withheld(self, shown: Collection[str]) -> tuple[RowLeaf, ...]:
        """Rows of all logs that are not among those shown."""
        return tuple(leaf for log in self.logs for leaf in log.withheld(shown))

    def place(self, row: str) -> Place | None:
        """Where a row of ours stands, and in which log; None when it is in none."""
        log = self.rows.get(row)
        return None if log is None else log.place(row)

    def stated(self, kind: str, row: str) -> tuple[PublishedLog, Statement] | None:
        """The newest statement of a kind about a row, and its log: the newest by time of each log's last."""
        return max(self._said(kind, row), key=_time, default=None)

    @overload
    def latest(self, kind: Literal["retract"], row: str) -> RetractLeaf | None: ...
    @overload
    def latest(self, kind: Literal["supersede"], row: str) -> SupersedeLeaf | None: ...
    def latest(self, kind: str, row: str) -> Statement | None:
        """The newest statement of a kind about a row, in whichever log."""
        found = self.stated(kind, row)
        return None if found is None else found[1]

    def keyring_of(self, row: str, keyring: Keyring) -> Keyring:
        """`keyring` less the keys that the log which holds the row has retired, from there on."""
        log = self.rows.get(row)
        return keyring if log is None else keyring.without(log.retired)

    def moved(self, row: str, serial: int) -> bool:
        """Whether a row's plan, which names entry `serial`, stands at another one of its log."""
        place = self.place(row)
        return place is not None and place.plan.serial != serial

    def still_trusted(self, keyring: Keyring) -> list[str]:
        """ledger-key-trusted:KEY for each key that `keyring` trusts beyond its retirement in a log."""
        found = {
            entry.keyid[:16]
            for log in self.logs
            for entry, narrowed in zip(keyring.entries, keyring.without(log.retired).entries, strict=True)
            if narrowed != entry
        }
        return [f"{Code.LEDGER_KEY_TRUSTED}:{key}" for key in sorted(found)]

    def entered(self, artifact: Artifact) -> bool:
        """Whether a log's last word on a reported row is its present bytes."""
        digest = artifact_sha256(artifact)
        return any(entry.artifact_sha256 == digest for _, entry in self._reported(artifact.id))

    def inclusion(self, item: str, sha256: str) -> bytes | None:
        """The file with which anyone can check that a row is in a log, or None where none names it.

        sha256: of the row's present bytes. A reported row that changed since it was entered gets the file
        of what was entered, which its bytes do not fit.
        """
        place = self.place(item)
        if place is not None:
            return place.log.inclusion(plan=place.plan, row=place.row)
        said = self._reported(item)
        if not said:
            return None
        present = [(log, entry) for log, entry in said if entry.artifact_sha256 == sha256]
        log, entry = max(present or said, key=_time)
        return log.inclusion(row=entry)

    def _said(self, kind: str, row: str) -> list[tuple[PublishedLog, Statement]]:
        return [(log, entry) for log in self.logs if (entry := log.statements.get((kind, row))) is not None]

    def _reported(self, row: str) -> list[tuple[PublishedLog, ReportedLeaf]]:
        return [(log, entry) for log, entry in self._said("reported", row) if isinstance(entry, ReportedLeaf)]


def _time(said: tuple[PublishedLog, Statement]) -> float:
    return said[1].time


def read_logs(
    folder: Path, keyring: Keyring, failures: list[str], *, beside: Collection[str] = ()
) -> PublishedLogs:
    """Read every log in `folder`, strictly: the sound ones come back, every fault goes to `failures`.

    beside: names of files that may lie beside the logs. A log's own faults are named `code:log`.
    Codes: ledger-stray, ledger-incomplete, ledger-folder-name, ledger-run-twice, ledger-row-twice, and
    those of check_log.
    """
    if folder.exists() and not folder.is_dir():
        failures.append(f"{Code.LEDGER_STRAY}:{folder.name}")
        return PublishedLogs()
    logs: list[PublishedLog] = []
    for path in sorted(folder.iterdir()) if folder.exists() else ():
        if path.name in beside and path.is_file():
            continue
        if _FOLDER.match(path.name) is None or path.is_symlink() or not path.is_dir():
            failures.append(f"{Code.LEDGER_STRAY}:{ascii(path.name)[1:-1]}")
            continue
        log = _read_log(path, keyring, failures)
        logs += [log] if log is not None else []
    found = PublishedLogs(tuple(logs))
    failures += found.faults
    return found


def _read_log(folder: Path, keyring: Keyring, failures: list[str]) -> PublishedLog | None:
    stray = sorted({path.name for path in folder.iterdir()} - {LEAVES, CHECKPOINT})
    failures += [f"{Code.LEDGER_STRAY}:{folder.name}/{ascii(name)[1:-1]}" for name in stray]
    try:
        leaves = host.read_regular(folder / LEAVES, MAX_LEAVES_BYTES)
        note = host.read_regular(folder / CHECKPOINT, MAX_NOTE_BYTES).decode("utf-8")
        log = check_log(leaves, note, keyring)
    except VerificationError as error:
        failures += [f"{code}:{folder.name}" for code in error.codes]
        return None
    except (OSError, UnicodeDecodeError):
        failures.append(f"{Code.LEDGER_INCOMPLETE}:{folder.name}")
        return None
    if log.key != folder.name:
        failures.append(f"{Code.LEDGER_FOLDER_NAME}:{folder.name}")
        return None
    return log


def inclusion_failures(logs: PublishedLogs, rows: Mapping[str, Artifact]) -> list[str]:
    """What of the published rows does not stand in the logs as it is published.

    Signed rows need a leaf with their evidence; what was said of one since (retracted, superseded)
    needs a leaf too, in whichever log, so that it cannot be edited in.
    """
    failures: list[str] = []
    for item, artifact in rows.items():
        if artifact.evidence is None:
            continue
        place = logs.place(item)
        if place is None:
            failures.append(f"{Code.ROW_NOT_IN_LEDGER}:{item}")
            continue
        told = (place.row.run, place.row.status, place.row.bundle_sha256)
        if told != (artifact.run, artifact.status, artifact.evidence.bundle_sha256):
            failures.append(f"{Code.LEDGER_ROW_DIFFERS}:{item}")
        if place.plan.plan_sha256 != artifact.evidence.plan_sha256:
            failures.append(f"{Code.LEDGER_PLAN_DIFFERS}:{item}")
        failures += statement_failures(logs, artifact)
    return failures


def statement_failures(logs: PublishedLogs, artifact: Artifact) -> list[str]:
    """What the logs say of a row since it was entered and its artifact does not, or the other way round."""
    failures = []
    retract, supersede = logs.latest("retract", artifact.id), logs.latest("supersede", artifact.id)
    said = None if retract is None else (retract.date, retract.reason)
    shown = None if artifact.retracted is None else (artifact.retracted.date, artifact.retracted.reason)
    if said != shown:
        failures.append(f"{Code.LEDGER_RETRACTION_DIFFERS}:{artifact.id}")
    if (None if supersede is None else supersede.by) != artifact.superseded_by:
        failures.append(f"{Code.LEDGER_SUPERSESSION_DIFFERS}:{artifact.id}")
    return failures


def stated_since(row: Artifact, logs: PublishedLogs) -> Artifact:
    """The row as the logs have it, whatever its own file says of a withdrawal or of a successor."""
    retract, supersede = logs.latest("retract", row.id), logs.latest("supersede", row.id)
    return row.model_copy(
        update={
            "retracted": None if retract is None else Retraction(date=retract.date, reason=retract.reason),
            "superseded_by": None if supersede is None else supersede.by,
        }
    )


def extended(
    before: PublishedLogs, leaves: Sequence[Leaf], key: Ed25519PrivateKey, keyring: Keyring
) -> PublishedLogs:
    """The logs to publish next: the key's own holds `leaves`, the others stay as they are.

    What the own log held when it was published must stand in `leaves`, in place. Its note stays, with
    its co-signatures, while nothing was added. Raises VerificationError: ledger-shrunk,
    ledger-rewritten, ledger-run-twice, ledger-row-twice, and those of check_log.
    """
    own = before.of(log_key(public_bytes(key)))
    if own is not None:
        try:
            check_leaves(leaves, own.checkpoint)
        except VerificationError as error:
            raise VerificationError(
                "this machine's ledger is not a continuation of the log published under its key",
                codes=error.codes,
                remedy="restore its state folder; if that is lost, move its publisher key away: a new key "
                "begins a log of its own",
            ) from error
    if len(leaves) == (0 if own is None else own.checkpoint.size):
        return before
    data = b"".join(leaf.data + b"\n" for leaf in leaves)
    after = before.replaced(check_log(data, sign_checkpoint(leaves, key), keyring))
    if after.faults:
        raise VerificationError(
            "runs of this machine's ledger are published in another log",
            codes=after.faults,
            remedy="publish a ledger under one key: the publisher key that lay beside it when it was begun",
        )
    return after


def joined(before: PublishedLogs, log: PublishedLog) -> PublishedLogs:
    """The logs with a journey's among them; what was published of it before must stand in it, in place.

    One that is shorter than what was published, and agrees with it, changes nothing. Raises
    VerificationError: ledger-rewritten, ledger-run-twice, ledger-row-twice.
    """
    known = before.of(log.key)
    if known is not None:
        shorter, longer = sorted((known, log), key=lambda item: item.checkpoint.size)
        check_leaves(longer.leaves, shorter.checkpoint)
        if longer is known or known.checkpoint.size == log.checkpoint.size:
            return before  # with the co-signatures that its note may have gained
    after = before.replaced(log)
    if after.faults:
        raise VerificationError("runs of the journey are published in another log", codes=after.faults)
    return after


def unentered(logs: PublishedLogs, rows: Mapping[str, Artifact]) -> list[ReportedBody]:
    """Bodies of the leaves that reported rows still need: those whose present bytes no log holds."""
    return [
        ReportedBody(item, artifact_sha256(artifact))
        for item, artifact in sorted(rows.items())
        if artifact.reported is not None and not logs.entered(artifact)
    ]
