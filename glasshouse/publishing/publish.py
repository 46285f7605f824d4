"""Publish verified rows, and withdraw them: the only code that writes the publication.

    1. verify every bundle; one failure publishes nothing
    2. build artifacts, apply the controls that stand beside each row
    3. search artifacts and bundles for secrets; one finding publishes nothing
    4. write what changed: bundles first, artifacts last, each by rename

The same call again writes nothing. What was registered in the ledger and is neither published nor
among the given runs is listed as withheld.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from glasshouse.errors import UsageError, VerificationError
from glasshouse.publishing.artifact import Artifact, Retraction, artifact_bytes, parse_artifact
from glasshouse.publishing.secrets import require_clean
from glasshouse.publishing.signed import artifact_from_verified, with_control_caveats
from glasshouse.publishing.store import ARTIFACTS, BUNDLES, OVERLAY
from glasshouse.records.keys import Keyring, atomic_write
from glasshouse.records.ledger import Ledger
from glasshouse.records.verify import VerifiedRow, verify

MAX_BUNDLE_BYTES = 1 << 20


@dataclass(frozen=True)
class Published:
    """What a publication did: row ids, paths written relative to the root, runs withheld."""

    rows: tuple[str, ...]
    written: tuple[str, ...]
    withheld: tuple[str, ...]


def publish(
    paths: Sequence[Path],
    *,
    root: Path,
    keyring: Keyring,
    local: bool = False,
    ledger: Ledger | None = None,
    known_secrets: Iterable[str] | None = None,
) -> Published:
    """Publish run or bundle folders under `root` (the repository).

    local=True writes to build/artifacts, the overlay that is labelled local and never committed;
    otherwise to site/research, where bundles may hold 1 MiB each and simulated rows are refused.
    known_secrets: values that must not occur; None takes them from the environment. Raises
    VerificationError (a bundle, the secret scan), UsageError (size, an id taken by another run).
    """
    if not paths:
        raise UsageError("nothing to publish", field="runs", value="none", remedy="give run folders")
    # 1. Verify.
    rows = [verify(path, keyring).require() for path in paths]
    ids = [row.id for row in rows]
    if len(set(ids)) != len(ids):
        raise UsageError("a run was given twice", field="runs", value=len(ids))
    artifacts_at, bundles_at = _folders(root, local=local)
    present = _present(artifacts_at)
    # 2. Build; rows already there may gain or lose caveats by a control that comes in.
    every = present | {row.id: _kept(artifact_from_verified(row), present) for row in rows}
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
    # 4. Write.
    written: list[Path] = []
    for row in rows:
        written += _write_bundle(bundles_at / row.id, row.files)
    for item, artifact in sorted(every.items()):
        written += _write(artifacts_at / f"{item}.json", artifact_bytes(artifact))
    shown = tuple(os.path.relpath(path, root) for path in written)
    return Published(tuple(ids), shown, _withheld(ledger, every.values()))


def unpublish(row: str, *, root: Path, reason: str, day: str, local: bool = False) -> Published:
    """Retract a row: its page and files stay, it counts for nothing, the reason is shown.

    day: date as YYYY-MM-DD. Raises UsageError for an unknown or reported row, or without a reason.
    The reported history is a record of what others published; it is corrected, not retracted.
    """
    if not reason.strip():
        raise UsageError("a retraction needs a reason", field="reason", value="", remedy="say why")
    artifacts_at, _ = _folders(root, local=local)
    present = _present(artifacts_at)
    artifact = present.get(row)
    if artifact is None:
        raise UsageError("no such published row", field="row", value=row)
    if artifact.reported is not None:
        raise UsageError("a reported row is not ours to retract", field="row", value=row)
    retraction = artifact.retracted or Retraction(date=day, reason=" ".join(reason.split()))
    every = present | {row: artifact.model_copy(update={"retracted": retraction})}
    every = {item: with_control_caveats(other, tuple(every.values())) for item, other in every.items()}
    require_clean({f"artifacts/{row}.json": artifact_bytes(every[row])})
    written: list[Path] = []
    for item, other in sorted(every.items()):
        written += _write(artifacts_at / f"{item}.json", artifact_bytes(other))
    return Published((row,), tuple(os.path.relpath(path, root) for path in written), ())


def _folders(root: Path, *, local: bool) -> tuple[Path, Path]:
    if local:
        return root / OVERLAY, root / OVERLAY / "bundles"
    return root / ARTIFACTS, root / BUNDLES


def _present(folder: Path) -> dict[str, Artifact]:
    paths = sorted(folder.glob("*.json"))
    return {path.stem: parse_artifact(path.read_bytes(), name=path.name) for path in paths}


def _kept(artifact: Artifact, present: Mapping[str, Artifact]) -> Artifact:
    """Keep what was stated about a row since; refuse an id that belongs to other evidence."""
    before = present.get(artifact.id)
    if before is None:
        return artifact
    if before.run != artifact.run or before.evidence_tier != artifact.evidence_tier:
        raise UsageError("the row's id is taken by another run", field="id", value=artifact.id)
    if before.evidence != artifact.evidence:
        raise VerificationError(
            f"{artifact.id} is published with other evidence", codes=["evidence-replaced"]
        )
    return artifact.model_copy(update={"retracted": before.retracted, "superseded_by": before.superseded_by})


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


def _withheld(ledger: Ledger | None, published: Iterable[Artifact]) -> tuple[str, ...]:
    if ledger is None:
        return ()
    shown = {artifact.run for artifact in published}
    runs = [str(leaf.body["run"]) for leaf in ledger.leaves() if leaf.kind == "plan"]
    return tuple(run for run in runs if run not in shown)
