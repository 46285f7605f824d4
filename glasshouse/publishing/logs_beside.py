"""The logs beside a published row, and what they say of it since: they are asked about every row and control.

Whether a row was withdrawn stands in the logs alone: anyone can edit its file. So a published row, and a
bundle beside one, need a log that holds; where none can be had, `retraction-not-checked` says so, and
`--without-log` accepts it. A run that was never published is asked about in this machine's own ledger.

No copy of a log shows what was entered after it was made: what is said here is what stood in the log that was
there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from glasshouse import host, paths
from glasshouse.codes import Code
from glasshouse.errors import VerificationError
from glasshouse.judgement.rules import Check
from glasshouse.publishing.labels import moment
from glasshouse.publishing.logs import KEYS, MAX_LEAVES_BYTES, PublishedLogs, joined, read_logs
from glasshouse.records.keys import Keyring
from glasshouse.records.ledger import Leaf, log_key, parse_leaves
from glasshouse.records.verify import Verification, verify

LOG_FOLDERS = ("ledger", "local-ledger")  # committed, and a machine's own; a built site has both


@dataclass(frozen=True)
class Beside:
    """What lies beside a published row: its folder, the logs that hold, and what is wrong with the others.

    published: whether there are logs at all. Logs that do not hold, or whose signer the keyring does not
    list, say nothing of the row. without_log: whoever asks accepts that there is none.
    """

    here: Path
    keyring: Keyring
    published: bool
    logs: PublishedLogs
    failures: tuple[str, ...]
    without_log: bool = False

    def bundle(self, row: str) -> Path | None:
        """The row's bundle, in ../bundles/<id>/ or bundles/<id>/."""
        places = (self.here.parent / "bundles" / row, self.here / "bundles" / row)
        return next((place for place in places if place.is_dir()), None)

    def verify(self, row: str, bundle: Path) -> Verification:
        """Verify a row's bundle; a key that its log retired signs nothing from there on."""
        return verify(bundle, self.logs.keyring_of(row, self.keyring))

    @property
    def accepted(self) -> bool:
        """Whether there is no log that holds, and whoever asks accepts that."""
        return self.without_log and not self.logs.logs

    @property
    def unasked(self) -> tuple[str, ...]:
        """What is wrong with logs of listed publishers, or with the whole folder: they cannot be asked.

        A log of somebody whom the keyring does not list is nobody's: it says nothing, and hides nothing.
        """
        listed = {log_key(entry.public) for entry in self.keyring.with_role("publisher")}
        return tuple(
            fault
            for fault in self.failures
            if (log := fault.rpartition(":")[2].partition("/")[0]) in listed or log in LOG_FOLDERS
        )

    def not_asked(self) -> Check | None:
        """`retraction-not-checked` where no log can be asked, or one of a listed publisher cannot."""
        if not self.published:
            why = "no log is beside it"
        elif self.unasked:
            why = f"a log beside it cannot be read ({', '.join(self.unasked)})"
        elif not self.logs.logs:
            faults = f" ({', '.join(self.failures)})" if self.failures else ""
            why = f"no log beside it is signed by a publisher of the keyring{faults}"
        else:
            return None
        unknown = f"{why}: whether it was withdrawn since cannot be told"
        if self.without_log:
            return Check(Code.RETRACTION_NOT_CHECKED, True, f"{unknown}; accepted by --without-log")
        return Check(Code.RETRACTION_NOT_CHECKED, False, f"{unknown}; --without-log accepts that")

    def asked(self) -> str:
        """In words, which logs were asked and up to where: nothing later is known."""
        count = len(self.logs.logs)
        times = [log.entries[-1].time for log in self.logs.logs if log.entries]
        until = f", up to {moment(max(times))[:10]}" if times else ""
        return f"{count} log{'' if count == 1 else 's'} asked{until}"


def read_beside(here: Path, keyring: Keyring, *, without_log: bool = False) -> Beside:
    """Read the logs beside the artifacts in `here`: in ../ledger, ../local-ledger and ledger."""
    folders = [here.parent / name for name in LOG_FOLDERS] + [here / "ledger"]
    failures: list[str] = []
    logs, published = PublishedLogs(), False
    for folder in folders:
        if not folder.is_dir():
            continue
        published = True
        try:
            found = read_logs(folder, keyring, failures, beside={KEYS})
        except OSError:
            failures.append(f"{Code.LEDGER_INCOMPLETE}:{folder.name}")
            continue
        if not logs.logs:
            logs = found
            continue
        for log in found.logs:
            try:  # a machine's own copy of its log may be longer than the committed one, never another
                logs = joined(logs, log)
            except VerificationError as error:
                failures += [f"{code}:{log.key}" for code in error.codes]
    return Beside(here, keyring, published, logs, tuple(dict.fromkeys(failures)), without_log)


def bundle_checks(
    bundle: Path, row: str, keyring: Keyring, publications: Sequence[Path], *, without_log: bool
) -> tuple[Check, ...]:
    """What is said of a bundle's row since: by the logs beside it where it is published, else by our ledger.

    publications: folders of artifacts of this machine's own, in which the row of a run folder may stand.
    """
    near = bundle.resolve().parents
    around = [near[1] / "artifacts", near[1]] if near[0].name == "bundles" else []
    for here in dict.fromkeys([*around, *publications]):
        listed = any((here / f"{name}.json").is_file() for name in (row, bundle.name))
        beside = read_beside(here, keyring, without_log=without_log) if listed or here in around else None
        if beside is None or not (listed or row in beside.logs.rows):
            continue
        if (gap := beside.not_asked()) is not None:
            return (gap,)
        if row not in beside.logs.rows:
            said = "no log beside it holds the row: whether it was withdrawn since cannot be told"
            return (Check(Code.RETRACTION_NOT_CHECKED, False, said),)
        return _said(beside, row)
    return (_own_ledger(row, without_log=without_log),)


def _said(beside: Beside, row: str) -> tuple[Check, ...]:
    checks = [Check(Code.LEDGER_INCLUSION, True, f"published; {beside.asked()}")]
    if (gone := beside.logs.latest("retract", row)) is not None:
        checks.append(Check(Code.RETRACTED, True, withdrawn(gone.date, gone.reason)))
    if (after := beside.logs.latest("supersede", row)) is not None:
        checks.append(Check(Code.SUPERSEDED, True, f"superseded by {after.by}"))
    return tuple(checks)


def withdrawn(date: str, reason: str) -> str:
    """What is said of a row that counts for nothing."""
    return f"retracted on {date}, it counts for nothing: {reason}"


def _own_ledger(row: str, *, without_log: bool) -> Check:
    """What this machine's own ledger says of a row that was never published. Nobody signed it."""
    try:
        leaves = _own_leaves()
    except (OSError, VerificationError) as error:
        why = error.what if isinstance(error, VerificationError) else str(error.strerror)
        said = f"not published, and this machine's ledger cannot be read ({why})"
        return Check(Code.RETRACTION_NOT_CHECKED, without_log, said)
    gone = next((leaf for leaf in reversed(leaves) if _names(leaf, "retract", row)), None)
    if gone is not None:
        return Check(Code.RETRACTED, True, withdrawn(str(gone.body["date"]), str(gone.body["reason"])))
    entered = next((leaf for leaf in leaves if _names(leaf, "row", row)), None)
    where = "this machine's ledger does not hold it"
    if entered is not None:
        where = f"this machine's ledger holds it as entry {entered.serial} and no withdrawal"
    return Check(Code.NOT_PUBLISHED, True, f"not published beside it; {where}")


def _own_leaves() -> tuple[Leaf, ...]:
    path = paths.state_path() / "ledger" / "leaves.jsonl"
    try:
        data = host.read_regular(path, MAX_LEAVES_BYTES)
    except FileNotFoundError:
        return ()
    return parse_leaves(data[: data.rfind(b"\n") + 1])  # a line that was not ended was never acknowledged


def _names(leaf: Leaf, kind: str, row: str) -> bool:
    wanted = ("date", "reason") if kind == "retract" else ()
    return leaf.kind == kind and leaf.body.get("row") == row and all(name in leaf.body for name in wanted)
