"""Publish verified rows, and withdraw them: the only code that writes the publication.

    1. verify every bundle; one failure publishes nothing
    2. read all published logs and extend this machine's own, which must hold all that it published, in place
    3. build artifacts, apply what the logs state of each row and the controls that stand beside it
    4. search artifacts, bundles and log for secrets; one finding publishes nothing
    5. write what changed: own log and bundles first, artifacts last, each by rename

What a journey brought back is published the same way, with its log beside this machine's (journey.py).
The same call again writes nothing, and no call touches another machine's log. What was registered in
this machine's ledger and is neither published nor among the given runs is listed as withheld.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from glasshouse import host
from glasshouse.canonical import canonical_json, sha256_hex
from glasshouse.codes import Code
from glasshouse.errors import UsageError, VerificationError
from glasshouse.judgement.rules import OPEN
from glasshouse.paths import Workspace
from glasshouse.publishing.artifact import Artifact, artifact_bytes
from glasshouse.publishing.from_bundle import (
    artifact_from_verified,
    with_control_caveats,
    with_registration_caveat,
)
from glasshouse.publishing.history import read_history
from glasshouse.publishing.journey import Returned
from glasshouse.publishing.logs import (
    KEYS,
    PublishedLogs,
    extended,
    inclusion_failures,
    joined,
    read_logs,
    stated_since,
    unentered,
)
from glasshouse.publishing.publication_files import (
    ARTIFACTS,
    BUNDLES,
    HISTORY,
    LEDGER,
    OVERLAY,
    OVERLAY_BUNDLES,
    OVERLAY_LEDGER,
    OVERLAY_REFUSED,
    overlay_faults,
    overlay_keyring,
    read_artifact,
)
from glasshouse.publishing.published_log import CHECKPOINT, LEAVES, JourneyLeaf, PublishedLog
from glasshouse.records.bundle import read_bundle
from glasshouse.records.keys import Keyring, atomic_write, public_bytes
from glasshouse.records.leaf_bodies import AboutRow, JourneyEndBody, LeafBody, RetractBody, SupersedeBody
from glasshouse.records.ledger import Leaf, Ledger, log_key
from glasshouse.records.secrets import require_clean, require_public
from glasshouse.records.verify import VerifiedRow, verify

MAX_BUNDLE_BYTES = 2 << 20  # a block design of 81 slots took 1.06 MB


@dataclass(frozen=True)
class Published:
    """What a publication did: row ids, paths written relative to the root, runs withheld.

    retracted: those of the rows that stand retracted, with the reason. artifacts: the rows' own.
    opening, ending: of a journey, what opened and ended it in this machine's log, if anything did.
    """

    rows: tuple[str, ...]
    written: tuple[str, ...]
    withheld: tuple[str, ...]
    retracted: Mapping[str, str] = field(default_factory=dict)
    artifacts: tuple[Artifact, ...] = ()
    opening: JourneyLeaf | None = None
    ending: Leaf | None = None


@dataclass(frozen=True)
class _Home:
    """One machine at one publication: where it writes, its own ledger and key, and whom it trusts.

    carried: a journey's log, which is published beside this machine's own.
    """

    workspace: Workspace
    keyring: Keyring
    ledger: Ledger
    key: Ed25519PrivateKey
    local: bool
    carried: PublishedLog | None = None

    @property
    def root(self) -> Path:
        return self.workspace.work if self.local else self.workspace.root

    @property
    def artifacts(self) -> Path:
        return self.root / (OVERLAY if self.local else ARTIFACTS)

    @property
    def bundles(self) -> Path:
        return self.root / (OVERLAY_BUNDLES if self.local else BUNDLES)

    @property
    def logs(self) -> Path:
        return self.root / (OVERLAY_LEDGER if self.local else LEDGER)

    @property
    def trusted(self) -> Keyring:
        """The overlay trusts the keys of every machine that has published there."""
        return self.keyring + overlay_keyring(self.root) if self.local else self.keyring

    def read(self) -> PublishedLogs:
        """All logs as they are to be published next: this machine's own extended, after a check of all."""
        failures = overlay_faults(self.root) if self.local else []
        if failures:
            raise VerificationError(OVERLAY_REFUSED, codes=failures, remedy=f"remove {OVERLAY}")
        before = read_logs(self.logs, self.trusted, failures, beside={KEYS} if self.local else ())
        if failures:
            raise VerificationError(
                "the published ledger does not check out",
                codes=failures,
                remedy=f"restore {os.path.relpath(self.logs, self.root)}"
                + (" or remove it" if self.local else " from the last commit that builds"),
            )
        if self.carried is not None:
            before = joined(before, self.carried)
        logs = extended(before, self.ledger.leaves(), self.key, self.trusted)
        trusted = logs.still_trusted(self.trusted)
        if trusted:
            raise VerificationError(
                "a key that a log retired is still trusted",
                codes=trusted,
                remedy="restore its validUntil in conf/trust/keyring.json: glasshouse keys --trust LABEL on "
                "the machine whose key it was does so",
            )
        return logs

    def enter(self, body: LeafBody) -> None:
        """Enter a statement in this machine's ledger, unless its key is retired: none could be published."""
        valid = self.trusted.with_role("publisher", index=len(self.ledger.leaves()))
        if all(entry.public != public_bytes(self.key) for entry in valid):
            raise VerificationError(
                "this machine's publisher key is retired and enters nothing more",
                codes=[Code.LEDGER_SIGNER_RETIRED],
            )
        self.ledger.append(body)

    def write(self, logs: PublishedLogs) -> list[Path]:
        """Write this machine's own log and the journey's; others stay byte for byte."""
        written: list[Path] = []
        keys = [log_key(public_bytes(self.key)), *([] if self.carried is None else [self.carried.key])]
        own = list(filter(None, map(logs.of, keys)))
        require_clean({f"{LEDGER}/{log.key}/{LEAVES}": log.data for log in own})
        for log in own:
            written += _write(self.logs / log.key / LEAVES, log.data)
            written += _write(self.logs / log.key / CHECKPOINT, log.note.encode("utf-8"))
        if self.local:
            entries = sorted((entry.as_json() for entry in self.trusted.entries), key=canonical_json)
            written += _write(self.logs / KEYS, canonical_json({"keys": entries}))
        return written

    def failures(self, logs: PublishedLogs, rows: Mapping[str, Artifact]) -> list[str]:
        """What of the rows does not stand in the logs; an overlay row's log may have stayed elsewhere."""
        listed = {item: row for item, row in rows.items() if not self.local or item in logs.rows}
        return inclusion_failures(logs, listed)


def publish(
    paths: Sequence[Path],
    *,
    workspace: Workspace,
    keyring: Keyring,
    ledger: Ledger,
    key: Ed25519PrivateKey,
    local: bool = False,
    known_secrets: Iterable[str] | None = None,
) -> Published:
    """Publish run or bundle folders in `workspace`, and this machine's log that names them.

    local=True writes to build/artifacts, the overlay that is labelled local and never committed;
    otherwise to site/research, where bundles may hold 2 MiB each and simulated rows are refused.
    key: the publisher's, which signs the log and stands in `keyring`. known_secrets: values
    that must not occur; None takes them from the environment. Raises VerificationError (a bundle, the
    secret scan, a ledger with another past), UsageError (size, an id taken by another run).
    """
    if not paths:
        raise UsageError("nothing to publish", field="runs", value="none", remedy="give run folders")
    home = _Home(workspace, keyring, ledger, key, local)
    if not local:
        _require_publisher(home)
    rows = [_verified(path, keyring) for path in paths]
    if len({row.id for row in rows}) != len(rows):
        raise UsageError("a run was given twice", field="runs", value=len(rows))
    return _put(home, rows, known_secrets)


def publish_journey(
    returned: Returned,
    *,
    workspace: Workspace,
    keyring: Keyring,
    ledger: Ledger,
    key: Ed25519PrivateKey,
    known_secrets: Iterable[str] | None = None,
) -> Published:
    """Publish what a journey brought back, and end it in this machine's ledger where that opened it.

    keyring: the committed one with the journey's keys in it, which is written to conf/trust with the rows.
    Rows of a journey that no published log announced carry `registered-late`. Raises as `publish` does.
    """
    home = _Home(workspace, keyring, ledger, key, local=False, carried=returned.log)
    _require_publisher(home)
    if returned.log.key == log_key(public_bytes(key)):
        raise VerificationError("the archive's log is this machine's own", codes=[Code.JOURNEY_KEYS])
    rows = returned.rows(keyring)
    logs = home.read()
    opening = logs.opening(returned.log)
    own = None if opening is None else logs.of(log_key(public_bytes(key)))
    body = None if own is None else _ending(returned, logs, own)
    done = _put(home, rows, known_secrets, ending=body)
    ends = [leaf for leaf in ledger.leaves() if leaf.kind == "journey-end"]
    ended = next((leaf for leaf in reversed(ends) if leaf.body["journey"] == returned.id), None)
    return replace(done, opening=opening, ending=ended)


def _ending(returned: Returned, logs: PublishedLogs, own: PublishedLog) -> JourneyEndBody | None:
    """The leaf that ends a journey in this machine's log; None where it opened none, or has said so."""
    said = returned.log.journey
    log = logs.of(returned.log.key)
    if said is None or log is None or said.opened_in != own.key:
        return None
    body = JourneyEndBody(
        journey=said.journey,
        open_serial=said.open_serial,
        size=log.checkpoint.size,
        root=log.checkpoint.root.hex(),
        checkpoint_sha256=sha256_hex(log.note.encode("utf-8")),
    )
    now = (body.journey, body.size, body.root)
    return None if any((end.journey, end.size, end.root) == now for end in own.ends) else body


def _put(
    home: _Home,
    rows: Sequence[VerifiedRow],
    known_secrets: Iterable[str] | None,
    *,
    ending: JourneyEndBody | None = None,
) -> Published:
    """Steps 2 to 5, of verified rows. ending: body of the leaf that ends a journey."""
    local, ids = home.local, [row.id for row in rows]
    # 2. Extend the ledger.
    logs = home.read()
    # 3. Build; rows already there may gain or lose caveats by a control that comes in.
    present = _present(home.artifacts)
    built = {row.id: _not_replaced(artifact_from_verified(row), present) for row in rows}
    every = _as_stated(present | built, logs)
    simulated = [row.id for row in rows if every[row.id].evidence_tier == "simulated"]
    if simulated and not local:
        raise UsageError(
            "a simulated run measures nothing and is not published",
            field="runs",
            value=", ".join(simulated),
            remedy="--local shows it on this machine's own site, labelled simulated",
        )
    # 4. Search.
    for row in rows:
        _require_small(row, local=local)
        named = {f"bundles/{row.id}/{name}": data for name, data in row.files.items()}
        named[f"artifacts/{row.id}.json"] = artifact_bytes(every[row.id])
        require_clean(named, known=known_secrets)
    failures = home.failures(logs, every)
    failures += [
        f"{Code.LEDGER_PLAN_DIFFERS}:{row.id}" for row in rows if logs.moved(row.id, row.facts.serial)
    ]
    if failures:
        raise VerificationError("not every row stands in the ledger as it is published", codes=failures)
    if home.carried is not None:
        require_clean({f"journey/{LEAVES}": home.carried.data}, known=known_secrets)
    # Reported rows are entered too, so that none can change unseen.
    missing = [] if local else unentered(logs, every)
    for body in missing:
        home.enter(body)
    if ending is not None:
        home.enter(ending)
    if missing or ending is not None:
        logs = home.read()
    own = logs.of(log_key(public_bytes(home.key)))
    require_clean({} if own is None else {f"ledger/{LEAVES}": own.data}, known=known_secrets)
    # 5. Write.
    written = [] if home.carried is None else _write(home.workspace.keyring, home.keyring.as_bytes())
    written += home.write(logs)
    for row in rows:
        written += _write_bundle(home.bundles / row.id, row.files)
    for item, artifact in sorted(every.items()):
        written += _write(home.artifacts / f"{item}.json", artifact_bytes(artifact))
    shown = tuple(os.path.relpath(path, home.root) for path in written)
    retracted = {item: said.reason for item in ids if (said := every[item].retracted) is not None}
    withheld = _withheld(home, every.values())
    return Published(tuple(ids), shown, withheld, retracted, tuple(every[item] for item in ids))


def refresh_history(root: Path) -> Published:
    """Import conf/history again and write its rows as artifacts; rows it no longer names are removed.

    They are entered in the ledger by the next `publish`. Raises VerificationError when the figures do
    not import, or when a row of ours has taken the id of one.
    """
    rows = {row.artifact.id: row.artifact for row in read_history(root / HISTORY)}
    present = _present(root / ARTIFACTS)
    taken = [
        f"{Code.ID_USED_TWICE}:{item}" for item in rows if item in present and not present[item].reported
    ]
    if taken:
        raise VerificationError("a row of ours has the id of a reported one", codes=taken)
    written = [
        path
        for item, artifact in sorted(rows.items())
        for path in _write(root / ARTIFACTS / f"{item}.json", artifact_bytes(artifact))
    ]
    for item, artifact in present.items():
        if artifact.reported is not None and item not in rows:
            written.append(root / ARTIFACTS / f"{item}.json")
            written[-1].unlink()
    return Published(tuple(rows), tuple(os.path.relpath(path, root) for path in written), ())


def unpublish(
    row: str,
    *,
    workspace: Workspace,
    keyring: Keyring,
    ledger: Ledger,
    key: Ed25519PrivateKey,
    reason: str,
    day: str,
    local: bool = False,
) -> Published:
    """Retract a row: its page and files stay, it counts for nothing, the reason is shown and entered.

    The row may stand in another machine's log; the retraction is entered in this machine's own. day: date
    as YYYY-MM-DD. Raises UsageError for an unknown or reported row, or without a reason, VerificationError
    when this machine's ledger does not continue the log that it published.
    The reported history is a record of what others published; it is corrected, not retracted.
    """
    home = _Home(workspace, keyring, ledger, key, local)
    present, logs = _before_statement(home, "retraction", reason, {"row": row}, "is not ours to retract")
    body = RetractBody(row, date=day, reason=" ".join(reason.split()))
    return _state(home, present, None if logs.latest("retract", row) else body, row)


def supersede(
    old: str,
    new: str,
    *,
    workspace: Workspace,
    keyring: Keyring,
    ledger: Ledger,
    key: Ed25519PrivateKey,
    reason: str,
    day: str,
    local: bool = False,
) -> Published:
    """Say that row `new` takes the place of row `old`: both stay, `old` counts in no headline any more.

    `old` stands in this machine's log, or in a journey's that this log opened. day: date as YYYY-MM-DD.
    Raises UsageError for a row that is unknown, reported, retracted, another machine's or replaced by
    another already, for a row by itself and without a reason; VerificationError as `unpublish` does.
    """
    if old == new:
        raise UsageError("a row cannot supersede itself", field="new", value=new, remedy="give two rows")
    home = _Home(workspace, keyring, ledger, key, local)
    not_ours = "is not ours to supersede, nor supersedes any"
    present, logs = _before_statement(home, "supersession", reason, {"old": old, "new": new}, not_ours)
    own = log_key(public_bytes(key))
    log = logs.rows.get(old)
    away = log is not None and log.journey is not None and logs.opening(log) is not None
    if log is None or own not in (log.key, log.journey.opened_in if away and log.journey else None):
        raise UsageError(
            "another machine's log holds the row",
            field="old",
            value=old,
            remedy="supersede it on the machine that entered it, or retract it: glasshouse unpublish",
        )
    before, after = logs.latest("supersede", old), logs.latest("supersede", new)
    body = SupersedeBody(old, by=new, date=day, reason=" ".join(reason.split()))
    if before is not None:
        if before.by != new:
            raise UsageError(
                f"the row is superseded by {before.by} already",
                field="old",
                value=old,
                remedy=f"supersede that one: glasshouse supersede {before.by} {new}",
            )
        return _state(home, present, None, old)
    if after is not None:
        in_a_circle = old in _replacements(logs, new)
        raise UsageError(
            f"the row is superseded by {after.by} itself" + (", in a circle" if in_a_circle else ""),
            field="new",
            value=new,
            remedy="give a row that nothing supersedes",
        )
    for field_name, row in (("old", old), ("new", new)):
        if logs.latest("retract", row) is not None:
            raise UsageError(
                "the row is retracted and counts for nothing",
                field=field_name,
                value=row,
                remedy="a retracted row needs no other in its place, and takes no other's",
            )
    return _state(home, present, body, old)


def _before_statement(
    home: _Home, statement: str, reason: str, rows: Mapping[str, str], not_ours: str
) -> tuple[dict[str, Artifact], PublishedLogs]:
    """Refuse a statement about rows, given by field, before anything is entered; else what is published."""
    if not reason.strip():
        raise UsageError(f"a {statement} needs a reason", field="reason", value="", remedy="say why")
    require_public(reason, "reason")
    present = _present(home.artifacts)
    for field_name, row in rows.items():
        if _named(home, present, row, field_name).reported is not None:
            raise UsageError(f"a reported row {not_ours}", field=field_name, value=row)
    if not home.local:
        _require_publisher(home)
    return present, home.read()


def _replacements(logs: PublishedLogs, row: str) -> tuple[str, ...]:
    """The rows that took the place of `row`, one after the other; ends where they go round."""
    found: list[str] = []
    while (leaf := logs.latest("supersede", row)) is not None and leaf.by not in found:
        row = leaf.by
        found.append(row)
    return tuple(found)


def _named(home: _Home, present: Mapping[str, Artifact], row: str, field_name: str) -> Artifact:
    artifact = present.get(row)
    if artifact is None:
        raise UsageError(
            "no such published row",
            field=field_name,
            value=row,
            remedy=f"give the name of a file in {os.path.relpath(home.artifacts, home.root)}, without .json"
            + ("" if home.local else "; --local for a row of this machine's own site"),
        )
    return artifact


def _state(home: _Home, present: Mapping[str, Artifact], body: AboutRow | None, row: str) -> Published:
    """Enter a statement about a row, None where the logs hold it already, and write what follows from it."""
    if body is not None:
        home.enter(body)
    logs = home.read()
    written = home.write(logs)
    for item, other in sorted(_as_stated(present, logs).items()):
        written += _write(home.artifacts / f"{item}.json", artifact_bytes(other))
    return Published((row,), tuple(os.path.relpath(path, home.root) for path in written), ())


def _verified(path: Path, keyring: Keyring) -> VerifiedRow:
    """Verify one run; what is wrong names it, since many may be given."""
    try:
        row = verify(path, keyring).require()
    except VerificationError as error:
        raise VerificationError(f"{path}: {error.what}", codes=error.codes, remedy=error.remedy) from error
    if row.judgement.method == OPEN:
        raise UsageError(
            f"it is judged by method {OPEN}, which is not closed yet", field="run", value=path,
            remedy="keep it: a later version publishes it",
        )  # fmt: skip
    return row


def _present(folder: Path) -> dict[str, Artifact]:
    paths = sorted(folder.glob("*.json"))
    return {path.stem: read_artifact(path) for path in paths}


def _not_replaced(artifact: Artifact, present: Mapping[str, Artifact]) -> Artifact:
    """Refuse an id that belongs to other evidence."""
    before = present.get(artifact.id)
    if before is None:
        return artifact
    if before.run != artifact.run or before.evidence_tier != artifact.evidence_tier:
        raise UsageError("the row's id is taken by another run", field="id", value=artifact.id)
    if before.evidence != artifact.evidence:
        raise VerificationError(
            f"{artifact.id} is published with other evidence", codes=[Code.EVIDENCE_REPLACED]
        )
    return artifact


def _as_stated(rows: Mapping[str, Artifact], logs: PublishedLogs) -> dict[str, Artifact]:
    """The rows with what the logs state of each since, and with the caveats that controls leave or add."""
    stated = {
        item: row if row.reported is not None else stated_since(row, logs) for item, row in rows.items()
    }
    stated = {item: with_registration_caveat(row, late=logs.late(item)) for item, row in stated.items()}
    beside = tuple(stated.values())
    return {item: with_control_caveats(row, beside) for item, row in stated.items()}


def _require_small(row: VerifiedRow, *, local: bool) -> None:
    size = sum(len(data) for data in row.files.values())
    if not local and size > MAX_BUNDLE_BYTES:
        raise UsageError(
            "the bundle is too large to be committed",
            field="bytes",
            value=size,
            remedy=f"at most {MAX_BUNDLE_BYTES}; publish it locally, or measure with a longer head interval",
        )


def _write_bundle(folder: Path, files: Mapping[str, bytes]) -> list[Path]:
    """Write a bundle folder whole: beside its place, then renamed into it."""
    if folder.is_dir():
        found = read_bundle(folder)
        if not found.faults and dict(found.files) == dict(files):
            return []
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    for name, data in files.items():
        path = part / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    if folder.exists():
        shutil.rmtree(folder)
    part.replace(folder)
    return [folder / name for name in sorted(files)]


def _write(path: Path, data: bytes) -> list[Path]:
    with contextlib.suppress(OSError):  # not there, or something else, which the new file replaces
        if host.read_regular(path, len(data)) == data:
            return []
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, data)
    return [path]


def _require_publisher(home: _Home) -> None:
    """A log that readers cannot check is not published, and nothing is entered for it."""
    if all(entry.public != public_bytes(home.key) for entry in home.trusted.with_role("publisher")):
        raise VerificationError("conf/trust does not list this publisher", codes=[Code.SIGNER_UNKNOWN])


def _withheld(home: _Home, published: Iterable[Artifact]) -> tuple[str, ...]:
    shown = {artifact.run for artifact in published}
    leaves = [*home.ledger.leaves(), *(() if home.carried is None else home.carried.leaves)]
    runs = [str(leaf.body["run"]) for leaf in leaves if leaf.kind == "plan"]
    return tuple(run for run in runs if run not in shown)
