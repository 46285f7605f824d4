"""The publication on disk: read and check it before a page is made.

    site/research/artifacts/<id>.json   committed rows
    site/research/bundles/<id>/         their evidence bundles
    site/research/ledger/<key>/         the ledger: one log for each publisher key, up to a signed checkpoint
    site/research/tamper-report.json    the last published run of the tamper suite
    conf/history/                       published figures and our remarks, from which reported rows follow
    build/artifacts/                    local rows (git-ignored): an overlay, labelled local

A committed artifact is never taken at its word: a reported one must equal, byte for byte, what the
importer makes of the figures; a signed one must equal what its bundle verifies to, and stand in the ledger.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glasshouse.errors import GlasshouseError, VerificationError
from glasshouse.publishing.artifact import Artifact, artifact_bytes, parse_artifact
from glasshouse.publishing.history import Remarks, read_history, read_remarks
from glasshouse.publishing.logs import KEYS, PublishedLogs, inclusion_failures, read_logs
from glasshouse.publishing.signed import (
    artifact_from_verified,
    with_control_caveats,
    with_registration_caveat,
)
from glasshouse.publishing.tamper import read_tamper
from glasshouse.records.keys import Keyring, parse_keyring
from glasshouse.records.verify import verify

ARTIFACTS = Path("site/research/artifacts")
BUNDLES = Path("site/research/bundles")
LEDGER = Path("site/research/ledger")
TAMPER = Path("site/research/tamper-report.json")
HISTORY = Path("conf/history")
KEYRING = Path("conf/trust/keyring.json")
TEMPLATES = Path("templates/pages")
OVERLAY = Path("build/artifacts")
OVERLAY_LEDGER = OVERLAY / "ledger"
OVERLAY_SWITCH = "GLASSHOUSE_SITE_LOCAL"  # "0" leaves the overlay out even when it is there


@dataclass(frozen=True)
class Publication:
    """Everything `pages.render` needs, read and checked."""

    artifacts: tuple[Artifact, ...]
    local: frozenset[str]  # ids that come from the overlay
    bundles: Mapping[str, tuple[str, ...]]  # id -> files of its bundle, relative to it
    remarks: Remarks
    templates: Mapping[str, str]
    tamper: Mapping[str, Any] | None
    keyring: Keyring = field(default_factory=Keyring)
    logs: PublishedLogs = field(default_factory=PublishedLogs)
    local_keyring: Keyring = field(default_factory=Keyring)
    local_logs: PublishedLogs = field(default_factory=PublishedLogs)


def read_publication(root: Path, *, overlay: bool | None = None) -> Publication:
    """Read the publication under `root`. Raises VerificationError listing everything that is wrong.

    overlay=None reads build/artifacts when it is there, unless GLASSHOUSE_SITE_LOCAL=0.
    """
    if overlay is None:
        overlay = os.environ.get(OVERLAY_SWITCH, "1") != "0"
    failures: list[str] = []
    keyring = committed_keyring(root)
    committed = _read_artifacts(root / ARTIFACTS, failures)
    failures += _reported_failures(root, committed)
    unread: list[str] = []
    logs = read_logs(root / LEDGER, keyring, unread)
    failures += _signed_failures(root / BUNDLES, committed, keyring, logs)
    failures += unread
    if not unread:  # a log that does not hold has been named; what the others lack follows
        failures += inclusion_failures(logs, committed)
    local = _read_artifacts(root / OVERLAY, failures) if overlay else {}
    local_keyring = overlay_keyring(root) if overlay else Keyring()
    local_logs = _local_logs(root, local, local_keyring, failures) if overlay else PublishedLogs()
    failures += [f"overlay-row-not-ours:{item}" for item, row in local.items() if row.reported is not None]
    failures += [f"id-used-twice:{item}" for item in sorted(committed.keys() & local.keys())]
    bundles = {
        item: _bundle_files(base / item)
        for base, items in ((root / BUNDLES, committed), (root / OVERLAY / "bundles", local))
        for item in items
        if (base / item).is_dir()
    }
    every = {**committed, **local}
    for item, artifact in every.items():
        if artifact.superseded_by is not None and artifact.superseded_by not in every:
            failures.append(f"superseded-by-unknown:{item}")
        if artifact.evidence_tier == "simulated" and item in committed:
            failures.append(f"simulated-row-published:{item}")
    tamper = read_tamper(root / TAMPER, failures)
    if failures:
        raise VerificationError("the publication does not check out", codes=failures)
    return Publication(
        artifacts=tuple(every[item] for item in sorted(every)),
        local=frozenset(local),
        bundles=bundles,
        remarks=read_remarks(root / HISTORY),
        templates=read_templates(root),
        tamper=tamper,
        keyring=keyring,
        logs=logs,
        local_keyring=local_keyring,
        local_logs=local_logs,
    )


def _local_logs(
    root: Path, local: Mapping[str, Artifact], keyring: Keyring, failures: list[str]
) -> PublishedLogs:
    """The overlay's logs, one for each machine that published here; a row's log may be elsewhere."""
    logs = read_logs(root / OVERLAY_LEDGER, keyring, failures, beside={KEYS})
    failures += inclusion_failures(logs, {item: row for item, row in local.items() if item in logs.rows})
    return logs


def overlay_keyring(root: Path) -> Keyring:
    """The keys of the machines whose rows are in the overlay; they vouch for nothing else."""
    path = root / OVERLAY_LEDGER / KEYS
    return parse_keyring(path.read_bytes()) if path.exists() else Keyring()


def read_templates(root: Path) -> dict[str, str]:
    """Read the page templates, by file name."""
    return {path.name: path.read_text("utf-8") for path in sorted((root / TEMPLATES).glob("*.j2"))}


def _read_artifacts(folder: Path, failures: list[str]) -> dict[str, Artifact]:
    found: dict[str, Artifact] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            artifact = parse_artifact(path.read_bytes(), name=path.name)
        except VerificationError as error:
            failures += [f"{code}:{path.name}" for code in error.codes]
            continue
        if artifact.id != path.stem:
            failures.append(f"id-is-not-file-name:{path.name}")
        found[artifact.id] = artifact
    return found


def _reported_failures(root: Path, committed: Mapping[str, Artifact]) -> list[str]:
    """Reported rows are a function of conf/history: any edit of one, or a missing one, shows."""
    expected = {row.artifact.id: row.artifact for row in read_history(root / HISTORY)}
    published = {item for item, artifact in committed.items() if artifact.evidence_tier == "reported"}
    failures = [f"reported-row-missing:{item}" for item in sorted(expected.keys() - published)]
    failures += [f"reported-row-unknown:{item}" for item in sorted(published - expected.keys())]
    failures += [
        f"reported-row-edited:{item}"
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
            failures.append(f"bundle-missing:{item}")
            continue
        try:
            row = verify(folder / item, keyring).require()
        except GlasshouseError as error:
            codes = error.codes if isinstance(error, VerificationError) else ("bundle-unreadable",)
            failures += [f"{code}:{item}" for code in codes]
            continue
        alone = with_registration_caveat(artifact_from_verified(row), late=logs.late(item))
        expected = with_control_caveats(alone, tuple(committed.values()))
        stated = {"retracted": artifact.retracted, "superseded_by": artifact.superseded_by}
        if artifact_bytes(expected.model_copy(update=stated)) != artifact_bytes(artifact):
            failures.append(f"signed-row-edited:{item}")
    present = {path.name for path in folder.iterdir() if path.is_dir()} if folder.is_dir() else set()
    failures += [f"bundle-without-row:{item}" for item in sorted(present - committed.keys())]
    return failures


def committed_keyring(root: Path) -> Keyring:
    """The keyring that the publication carries; a machine's own keys never vouch for committed rows."""
    path = root / KEYRING
    return parse_keyring(path.read_bytes()) if path.exists() else Keyring()


def _bundle_files(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()))
