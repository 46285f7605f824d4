"""Publish verified rows, and withdraw them: the only code that writes the publication.

    1. verify every bundle; one failure publishes nothing
    2. build artifacts, apply the controls that stand beside each row
    3. search artifacts, bundles and ledger for secrets; one finding publishes nothing
    4. extend the published ledger by this machine's, which must hold all that was published, in place
    5. write what changed: ledger and bundles first, artifacts last, each by rename

The same call again writes nothing. What was registered in the ledger and is neither published nor
among the given runs is listed as withheld.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from glasshouse.canonical import canonical_json
from glasshouse.errors import UsageError, VerificationError
from glasshouse.publishing import ledger as published_ledger
from glasshouse.publishing.artifact import Artifact, Retraction, artifact_bytes, parse_artifact
from glasshouse.publishing.history import read_history
from glasshouse.publishing.ledger import CHECKPOINT, KEYS, LEAVES, PublishedLedger, inclusion_failures
from glasshouse.publishing.secrets import require_clean
from glasshouse.publishing.signed import artifact_from_verified, with_control_caveats
from glasshouse.publishing.store import ARTIFACTS, BUNDLES, HISTORY, LEDGER, OVERLAY, OVERLAY_LEDGER
from glasshouse.records.keys import Keyring, atomic_write, parse_keyring, public_bytes
from glasshouse.records.ledger import Leaf, Ledger, log_name
from glasshouse.records.verify import VerifiedRow, verify

MAX_BUNDLE_BYTES = 1 << 20


@dataclass(frozen=True)
class Published:
    """What a publication did: row ids, paths written relative to the root, runs withheld.

    retracted: those of the rows that stand retracted, with the reason.
    """

    rows: tuple[str, ...]
    written: tuple[str, ...]
    withheld: tuple[str, ...]
    retracted: Mapping[str, str] = field(default_factory=dict)


def publish(
    paths: Sequence[Path],
    *,
    root: Path,
    keyring: Keyring,
    ledger: Ledger,
    key: Ed25519PrivateKey,
    local: bool = False,
    known_secrets: Iterable[str] | None = None,
) -> Published:
    """Publish run or bundle folders under `root` (the repository), and the ledger that names them.

    local=True writes to build/artifacts, the overlay that is labelled local and never committed;
    otherwise to site/research, where bundles may hold 1 MiB each and simulated rows are refused.
    key: the publisher's, which signs the checkpoint and stands in `keyring`. known_secrets: values
    that must not occur; None takes them from the environment. Raises VerificationError (a bundle, the
    secret scan, a ledger with another past), UsageError (size, an id taken by another run).
    """
    if not paths:
        raise UsageError("nothing to publish", field="runs", value="none", remedy="give run folders")
    if not local:
        _require_publisher(keyring, key)
    # 1. Verify.
    rows = [_verified(path, keyring) for path in paths]
    ids = [row.id for row in rows]
    if len(set(ids)) != len(ids):
        raise UsageError("a run was given twice", field="runs", value=len(ids))
    artifacts_at, bundles_at = _folders(root, local=local)
    present = _present(artifacts_at)
    # 2. Build; rows already there may gain or lose caveats by a control that comes in.
    stated = published_ledger.statements(ledger.leaves())
    built = {row.id: _kept(artifact_from_verified(row), present, stated) for row in rows}
    every = present | built
    every = {item: with_control_caveats(row, tuple(every.values())) for item, row in every.items()}
    simulated = [row.id for row in rows if every[row.id].evidence_tier == "simulated"]
    if simulated and not local:
        raise UsageError(
            "a simulated run measures nothing and is not published",
            field="runs",
            value=", ".join(simulated),
            remedy="--local shows it on this machine's own site, labelled simulated",
        )
    # 3. Search.
    for row in rows:
        _require_small(row, local=local)
        named = {f"bundles/{row.id}/{name}": data for name, data in row.files.items()}
        named[f"artifacts/{row.id}.json"] = artifact_bytes(every[row.id])
        require_clean(named, known=known_secrets)
    # 4. Extend the ledger. Reported rows are entered too, so that none can change unseen.
    log = _extended(root, ledger, key, keyring, local=local)
    failures = [] if local else inclusion_failures(log, every)
    if failures:
        raise VerificationError("not every row stands in the ledger as it is published", codes=failures)
    missing = [] if local else published_ledger.unentered(log.leaves, every)
    for body in missing:
        ledger.append("reported", body)
    if missing:
        log = _extended(root, ledger, key, keyring, local=local)
    require_clean({f"ledger/{LEAVES}": log.data}, known=known_secrets)
    # 5. Write.
    written = _write_ledger(root, log, keyring, local=local)
    for row in rows:
        written += _write_bundle(bundles_at / row.id, row.files)
    for item, artifact in sorted(every.items()):
        written += _write(artifacts_at / f"{item}.json", artifact_bytes(artifact))
    shown = tuple(os.path.relpath(path, root) for path in written)
    retracted = {item: said.reason for item in ids if (said := every[item].retracted) is not None}
    return Published(tuple(ids), shown, _withheld(ledger, every.values()), retracted)


def refresh_history(root: Path) -> Published:
    """Import conf/history again and write its rows as artifacts; rows it no longer names are removed.

    They are entered in the ledger by the next `publish`. Raises VerificationError when the figures do
    not import, or when a row of ours has taken the id of one.
    """
    rows = {row.artifact.id: row.artifact for row in read_history(root / HISTORY)}
    present = _present(root / ARTIFACTS)
    taken = [f"id-used-twice:{item}" for item in rows if item in present and not present[item].reported]
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
    root: Path,
    keyring: Keyring,
    ledger: Ledger,
    key: Ed25519PrivateKey,
    reason: str,
    day: str,
    local: bool = False,
) -> Published:
    """Retract a row: its page and files stay, it counts for nothing, the reason is shown and entered.

    day: date as YYYY-MM-DD. Raises UsageError for an unknown or reported row, or without a reason,
    VerificationError when this machine's ledger is not the one it was published from.
    The reported history is a record of what others published; it is corrected, not retracted.
    """
    if not reason.strip():
        raise UsageError("a retraction needs a reason", field="reason", value="", remedy="say why")
    artifacts_at, _ = _folders(root, local=local)
    present = _present(artifacts_at)
    artifact = present.get(row)
    if artifact is None:
        raise UsageError(
            "no such published row",
            field="row",
            value=row,
            remedy=f"give the name of a file in {os.path.relpath(artifacts_at, root)}, without .json"
            + ("" if local else "; --local for a row of this machine's own site"),
        )
    if artifact.reported is not None:
        raise UsageError("a reported row is not ours to retract", field="row", value=row)
    _extended(root, ledger, key, keyring, local=local)  # refuse before anything is entered
    stated = published_ledger.statements(ledger.leaves())
    retraction = _kept(artifact, present, stated).retracted
    entered = retraction is not None
    retraction = retraction or Retraction(date=day, reason=" ".join(reason.split()))
    every = present | {row: artifact.model_copy(update={"retracted": retraction})}
    every = {item: with_control_caveats(other, tuple(every.values())) for item, other in every.items()}
    require_clean({f"artifacts/{row}.json": artifact_bytes(every[row])})
    if not entered:
        ledger.append("retract", {"row": row, "date": retraction.date, "reason": retraction.reason})
    log = _extended(root, ledger, key, keyring, local=local)
    written = _write_ledger(root, log, keyring, local=local)
    for item, other in sorted(every.items()):
        written += _write(artifacts_at / f"{item}.json", artifact_bytes(other))
    return Published((row,), tuple(os.path.relpath(path, root) for path in written), ())


def _verified(path: Path, keyring: Keyring) -> VerifiedRow:
    """Verify one run; what is wrong names it, since many may be given."""
    try:
        return verify(path, keyring).require()
    except VerificationError as error:
        raise VerificationError(f"{path}: {error.what}", codes=error.codes, remedy=error.remedy) from error


def _folders(root: Path, *, local: bool) -> tuple[Path, Path]:
    if local:
        return root / OVERLAY, root / OVERLAY / "bundles"
    return root / ARTIFACTS, root / BUNDLES


def _present(folder: Path) -> dict[str, Artifact]:
    paths = sorted(folder.glob("*.json"))
    return {path.stem: parse_artifact(path.read_bytes(), name=path.name) for path in paths}


def _kept(
    artifact: Artifact, present: Mapping[str, Artifact], stated: Mapping[tuple[str, str], Leaf]
) -> Artifact:
    """Add what the ledger states about a row since; refuse an id that belongs to other evidence."""
    retract, supersede = stated.get(("retract", artifact.id)), stated.get(("supersede", artifact.id))
    said = artifact.model_copy(
        update={
            "retracted": None
            if retract is None
            else Retraction(date=retract.body["date"], reason=retract.body["reason"]),
            "superseded_by": None if supersede is None else str(supersede.body["by"]),
        }
    )
    before = present.get(artifact.id)
    if before is None:
        return said
    if before.run != artifact.run or before.evidence_tier != artifact.evidence_tier:
        raise UsageError("the row's id is taken by another run", field="id", value=artifact.id)
    if before.evidence != artifact.evidence:
        raise VerificationError(
            f"{artifact.id} is published with other evidence", codes=["evidence-replaced"]
        )
    return said


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
    same = folder.is_dir() and {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    } == dict(files)
    if same:
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
    if path.exists() and path.read_bytes() == data:
        return []
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, data)
    return [path]


def _require_publisher(keyring: Keyring, key: Ed25519PrivateKey) -> None:
    """A checkpoint that readers cannot check is not published, and nothing is entered for it."""
    if all(entry.public != public_bytes(key) for entry in keyring.with_role("publisher")):
        raise VerificationError("conf/trust does not list this publisher", codes=["signer-unknown"])


def _extended(
    root: Path, ledger: Ledger, key: Ed25519PrivateKey, keyring: Keyring, *, local: bool
) -> PublishedLedger:
    """The ledger to publish next, checked against the one that was published."""
    folder, failures = root / (OVERLAY_LEDGER if local else LEDGER), list[str]()
    ring = keyring
    if local and (folder / KEYS).exists():
        ring = keyring + parse_keyring((folder / KEYS).read_bytes())
    before = published_ledger.read_ledger(folder, ring, failures)
    if failures:
        raise VerificationError("the published ledger does not check out", codes=failures)
    if local and before is not None and before.checkpoint.origin != log_name(public_bytes(key)):
        before = None  # another home's log: its rows stay in the overlay, shown as not in this ledger
    return published_ledger.extended(before, ledger.leaves(), key, keyring)


def _write_ledger(root: Path, log: PublishedLedger, keyring: Keyring, *, local: bool) -> list[Path]:
    folder = root / (OVERLAY_LEDGER if local else LEDGER)
    written = _write(folder / LEAVES, log.data) + _write(folder / CHECKPOINT, log.note.encode("utf-8"))
    if local:
        ring = canonical_json({"keys": [entry.as_json() for entry in keyring.entries]})
        written += _write(folder / KEYS, ring)
    return written


def _withheld(ledger: Ledger, published: Iterable[Artifact]) -> tuple[str, ...]:
    shown = {artifact.run for artifact in published}
    runs = [str(leaf.body["run"]) for leaf in ledger.leaves() if leaf.kind == "plan"]
    return tuple(run for run in runs if run not in shown)
