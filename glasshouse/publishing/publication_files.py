"""The publication on disk: read and check it before a page is made.

    site/research/artifacts/<id>.json   committed rows
    site/research/bundles/<id>/         their evidence bundles
    site/research/ledger/<key>/         the ledger: one log for each publisher key, up to a signed checkpoint
    site/research/tamper-report.json    the last published run of the tamper suite
    conf/history/                       published figures and our remarks, from which reported rows follow
    build/artifacts/                    local rows (git-ignored): an overlay, labelled local

The overlay of an installed program lies in the current folder, which may be a stranger's: no link in it is
followed, only regular files of bounded size are read, and of a bundle only what belongs to one is shown.

A committed artifact is never taken at its word: a reported one must equal, byte for byte, what the
importer makes of the figures; a signed one must equal what its bundle verifies to, and stand in the ledger.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from glasshouse import host
from glasshouse.codes import Code
from glasshouse.errors import GlasshouseError, VerificationError
from glasshouse.paths import Workspace
from glasshouse.publishing.artifact import MAX_ARTIFACT_BYTES, Artifact, artifact_bytes, parse_artifact
from glasshouse.publishing.claim_sources import Sourced, read_claim_sources
from glasshouse.publishing.from_bundle import (
    artifact_from_verified,
    with_control_caveats,
    with_registration_caveat,
)
from glasshouse.publishing.history import Remarks, read_history, read_remarks
from glasshouse.publishing.logs import KEYS, PublishedLogs, inclusion_failures, read_logs
from glasshouse.publishing.tamper_report import TamperReport, read_tamper
from glasshouse.records.bundle import read_bundle
from glasshouse.records.keys import MAX_KEYRING_BYTES, Keyring, committed_keyring, parse_keyring
from glasshouse.records.verify import verify

ARTIFACTS = Path("site/research/artifacts")
BUNDLES = Path("site/research/bundles")
LEDGER = Path("site/research/ledger")
TAMPER = Path("site/research/tamper-report.json")
HISTORY = Path("conf/history")
TEMPLATES = Path("templates/pages")
OVERLAY = Path("build/artifacts")
OVERLAY_BUNDLES = OVERLAY / "bundles"
OVERLAY_LEDGER = OVERLAY / "ledger"
OVERLAY_REFUSED = "the local rows in build/artifacts do not check out"
OVERLAY_SWITCH = "GLASSHOUSE_SITE_LOCAL"  # "0" leaves the overlay out even when it is there


@dataclass(frozen=True)
class Publication:
    """Everything `pages.render` needs, read and checked."""

    artifacts: tuple[Artifact, ...]
    local: frozenset[str]  # ids that come from the overlay
    bundles: Mapping[str, tuple[str, ...]]  # id -> files of its bundle, relative to it
    remarks: Remarks
    templates: Mapping[str, str]
    tamper: TamperReport | None
    keyring: Keyring = field(default_factory=Keyring)
    logs: PublishedLogs = field(default_factory=PublishedLogs)
    local_keyring: Keyring = field(default_factory=Keyring)
    local_logs: PublishedLogs = field(default_factory=PublishedLogs)
    claims: Mapping[str, Sourced] = field(default_factory=dict)  # id -> what its claims were held against


def read_publication(workspace: Workspace, *, overlay: bool | None = None) -> Publication:
    """Read the publication of a workspace. Raises VerificationError listing everything that is wrong.

    overlay=None reads build/artifacts when it is there, unless GLASSHOUSE_SITE_LOCAL=0.
    """
    if overlay is None:
        overlay = os.environ.get(OVERLAY_SWITCH, "1") != "0"
    failures: list[str] = []
    root, work = workspace.root, workspace.work
    keyring = committed_keyring(workspace.keyring)
    committed = _read_artifacts(root / ARTIFACTS, failures)
    failures += _reported_failures(root, committed)
    unread: list[str] = []
    logs = read_logs(root / LEDGER, keyring, unread)
    failures += _signed_failures(root / BUNDLES, committed, keyring, logs)
    failures += [*unread, *logs.still_trusted(keyring)]
    if not unread:  # a log that does not hold has been named; what the others lack follows
        failures += inclusion_failures(logs, committed)
    strange = overlay_faults(work) if overlay else []
    overlay = overlay and not strange
    local = _read_artifacts(work / OVERLAY, strange) if overlay else {}
    local_keyring = overlay_keyring(work) if overlay else Keyring()
    local_logs = _local_logs(work, local, local_keyring, strange) if overlay else PublishedLogs()
    strange += [
        f"{Code.OVERLAY_ROW_NOT_OURS}:{item}" for item, row in local.items() if row.reported is not None
    ]
    local_bundles = _local_bundles(work / OVERLAY_BUNDLES, local, strange)
    if strange and not failures:
        remedy = f"remove {OVERLAY}, or leave it out: --committed, or {OVERLAY_SWITCH}=0"
        raise VerificationError(OVERLAY_REFUSED, codes=strange, remedy=remedy)
    failures += strange
    failures += [f"{Code.ID_USED_TWICE}:{item}" for item in sorted(committed.keys() & local.keys())]
    bundles = {
        item: _bundle_files(root / BUNDLES / item) for item in committed if (root / BUNDLES / item).is_dir()
    }
    every = {**committed, **local}
    for item, artifact in every.items():
        if artifact.superseded_by is not None and artifact.superseded_by not in every:
            failures.append(f"{Code.SUPERSEDED_BY_UNKNOWN}:{item}")
        if artifact.evidence_tier == "simulated" and item in committed:
            failures.append(f"{Code.SIMULATED_ROW_PUBLISHED}:{item}")
    tamper = read_tamper(root / TAMPER, failures)
    if failures:
        raise VerificationError("the publication does not check out", codes=failures)
    return Publication(
        artifacts=tuple(every[item] for item in sorted(every)),
        local=frozenset(local),
        bundles={**bundles, **local_bundles},
        remarks=read_remarks(root / HISTORY),
        templates=read_templates(root),
        tamper=tamper,
        keyring=keyring,
        logs=logs,
        local_keyring=local_keyring,
        local_logs=local_logs,
        claims={
            item: read_claim_sources((work / OVERLAY_BUNDLES if item in local else root / BUNDLES) / item)
            for item in every
        },
    )


def _local_logs(
    work: Path, local: Mapping[str, Artifact], keyring: Keyring, failures: list[str]
) -> PublishedLogs:
    """The overlay's logs, one for each machine that published here; a row's log may be elsewhere."""
    logs = read_logs(work / OVERLAY_LEDGER, keyring, failures, beside={KEYS})
    failures += inclusion_failures(logs, {item: row for item, row in local.items() if item in logs.rows})
    return logs


def overlay_keyring(work: Path) -> Keyring:
    """The keys of the machines whose rows are in the overlay; they vouch for nothing else."""
    path = work / OVERLAY_LEDGER / KEYS
    try:
        return parse_keyring(host.read_regular(path, MAX_KEYRING_BYTES))
    except FileNotFoundError:
        return Keyring()
    except OSError as error:
        raise VerificationError(f"{path}: {error.strerror}", codes=[Code.KEYRING_UNREADABLE]) from error


def overlay_faults(work: Path) -> list[str]:
    """The overlay's folders that are no folders but links or files: `overlay-folder:PATH`."""
    folders = (OVERLAY.parent, OVERLAY, OVERLAY_BUNDLES, OVERLAY_LEDGER)
    return [f"{Code.OVERLAY_FOLDER}:{path}" for path in folders if not _is_folder_or_absent(work / path)]


def _is_folder_or_absent(path: Path) -> bool:
    return not path.is_symlink() and (path.is_dir() or not path.exists())


def _local_bundles(
    folder: Path, local: Mapping[str, Artifact], failures: list[str]
) -> dict[str, tuple[str, ...]]:
    """The files of the overlay's bundles, by row; what is no plain bundle goes to `failures`."""
    bundles: dict[str, tuple[str, ...]] = {}
    for item in local:
        if not _is_folder_or_absent(folder / item):
            failures.append(f"{Code.OVERLAY_FOLDER}:{OVERLAY_BUNDLES / item}")
        elif (folder / item).is_dir():
            found = read_bundle(folder / item)
            failures += sorted({f"{code}:{item}" for code, _ in found.faults})
            bundles[item] = tuple(sorted(found.files))
    return bundles


def read_templates(root: Path) -> dict[str, str]:
    """Read the page templates, by file name."""
    return {path.name: path.read_text("utf-8") for path in sorted((root / TEMPLATES).glob("*.j2"))}


def read_artifact(path: Path) -> Artifact:
    """Read a published row's file. Raises VerificationError: artifact-unreadable, and as parse_artifact."""
    try:
        data = host.read_regular(path, MAX_ARTIFACT_BYTES)
    except OSError as error:
        raise VerificationError(
            f"{path.name} cannot be read: {error.strerror}", codes=[Code.ARTIFACT_UNREADABLE]
        ) from error
    return parse_artifact(data, name=path.name)


def _read_artifacts(folder: Path, failures: list[str]) -> dict[str, Artifact]:
    found: dict[str, Artifact] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            artifact = read_artifact(path)
        except VerificationError as error:
            failures += [f"{code}:{ascii(path.name)[1:-1]}" for code in error.codes]
            continue
        if artifact.id != path.stem:
            failures.append(f"{Code.ID_IS_NOT_FILE_NAME}:{path.name}")
        found[artifact.id] = artifact
    return found


def _reported_failures(root: Path, committed: Mapping[str, Artifact]) -> list[str]:
    """Reported rows are a function of conf/history: any edit of one, or a missing one, shows."""
    expected = {row.artifact.id: row.artifact for row in read_history(root / HISTORY)}
    published = {item for item, artifact in committed.items() if artifact.evidence_tier == "reported"}
    failures = [f"{Code.REPORTED_ROW_MISSING}:{item}" for item in sorted(expected.keys() - published)]
    failures += [f"{Code.REPORTED_ROW_UNKNOWN}:{item}" for item in sorted(published - expected.keys())]
    failures += [
        f"{Code.REPORTED_ROW_EDITED}:{item}"
        for item in sorted(published & expected.keys())
        if artifact_bytes(committed[item]) != artifact_bytes(expected[item])
    ]
    return failures


def _signed_failures(
    folder: Path, committed: Mapping[str, Artifact], keyring: Keyring, logs: PublishedLogs
) -> list[str]:
    """Signed rows are a function of their bundles, of the logs and of the controls beside them."""
    failures: list[str] = []
    for item, artifact in committed.items():
        if artifact.evidence_tier != "signed":
            continue
        if not (folder / item).is_dir():
            failures.append(f"{Code.BUNDLE_MISSING}:{item}")
            continue
        try:
            row = verify(folder / item, logs.keyring_of(item, keyring)).require()
        except GlasshouseError as error:
            codes = error.codes if isinstance(error, VerificationError) else (Code.BUNDLE_UNREADABLE,)
            failures += [f"{code}:{item}" for code in codes]
            continue
        if logs.moved(item, row.facts.serial):
            failures.append(f"{Code.LEDGER_PLAN_DIFFERS}:{item}")
        alone = with_registration_caveat(artifact_from_verified(row), late=logs.late(item))
        expected = with_control_caveats(alone, tuple(committed.values()))
        stated = {"retracted": artifact.retracted, "superseded_by": artifact.superseded_by}
        if artifact_bytes(expected.model_copy(update=stated)) != artifact_bytes(artifact):
            failures.append(f"{Code.SIGNED_ROW_EDITED}:{item}")
    present = {path.name for path in folder.iterdir() if path.is_dir()} if folder.is_dir() else set()
    failures += [f"{Code.BUNDLE_WITHOUT_ROW}:{item}" for item in sorted(present - committed.keys())]
    return failures


def _bundle_files(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()))
