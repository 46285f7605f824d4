"""Verify a published artifact: what `glasshouse verify` does with a PATH that is a JSON file.

signed      its bundle, found beside it, is verified in full, and so are those of the controls it names; the
            artifact must follow from them
reported    schema and arithmetic, and nothing else: there is no evidence to verify, and it says so
simulated   schema only; it never passes as measured

A signed row needs the log that holds it beside it, and a journey's the log that announced it: without them
nobody can tell whether `registered-late` was cut out (registration-not-checked). Where the row's inclusion
file is published, the row must stand in that, too.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from glasshouse.codes import Code
from glasshouse.errors import GlasshouseError, UsageError, VerificationError
from glasshouse.judgement.rules import Check
from glasshouse.publishing.artifact import (
    MAX_ARTIFACT_BYTES,
    Artifact,
    artifact_bytes,
    artifact_sha256,
    parse_artifact,
)
from glasshouse.publishing.from_bundle import (
    artifact_from_verified,
    with_control_caveats,
    with_registration_caveat,
)
from glasshouse.publishing.history import recompute
from glasshouse.publishing.logs import KEYS, PublishedLogs, read_logs, statement_failures
from glasshouse.publishing.published_log import check_inclusion
from glasshouse.records.keys import Keyring
from glasshouse.records.ledger import log_key
from glasshouse.records.verify import Verdict, Verification, verify


def check_artifact(path: Path, keyring: Keyring) -> Verdict:
    """Check one artifact file; return how it came out.

    Its bundle is looked for in ../bundles/<id>/ and bundles/<id>/. Raises UsageError when the file
    cannot be read; never raises for what it holds.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_ARTIFACT_BYTES + 1)
    except OSError as error:
        raise UsageError("the artifact cannot be read", field="path", value=path) from error
    try:
        artifact = parse_artifact(data, name=path.name)
    except VerificationError as error:
        return _verdict(path, None, None, [Check(code, False, error.what) for code in error.codes])
    checks = [Check(Code.ARTIFACT_SCHEMA, True, "every field is one that may be published")]
    signer = None
    beside = _beside(path.resolve().parent, keyring)
    if artifact.evidence_tier == "reported":
        checks += _reported(artifact)
    elif artifact.evidence_tier == "signed":
        signer, found = _signed(artifact, beside)
        checks += found
    else:
        checks.append(Check(Code.MEASURED, False, "a simulated row measures nothing"))
    if artifact.retracted is not None:
        said = f"retracted on {artifact.retracted.date}, it counts for nothing: {artifact.retracted.reason}"
        checks.append(Check(Code.RETRACTED, True, said))
    if artifact.superseded_by is not None:
        checks.append(Check(Code.SUPERSEDED, True, f"superseded by {artifact.superseded_by}"))
    if artifact.evidence_tier != "simulated":
        checks.append(_ledger(artifact, beside))
    return _verdict(path, artifact, signer, checks)


@dataclass(frozen=True)
class _Beside:
    """What lies beside a published row: its folder, the logs that hold, and what is wrong with the others.

    published: whether there are logs at all. Logs that do not hold, or whose signer the keyring does not
    list, say nothing of the row.
    """

    here: Path
    keyring: Keyring
    published: bool
    logs: PublishedLogs
    failures: tuple[str, ...]

    def bundle(self, row: str) -> Path | None:
        places = (self.here.parent / "bundles" / row, self.here / "bundles" / row)
        return next((place for place in places if place.is_dir()), None)

    def verify(self, row: str, bundle: Path) -> Verification:
        """Verify a row's bundle; a key that its log retired signs nothing from there on."""
        return verify(bundle, self.logs.keyring_of(row, self.keyring))


def _beside(here: Path, keyring: Keyring) -> _Beside:
    folder = next((at for at in (here.parent / "ledger", here / "ledger") if at.is_dir()), None)
    failures: list[str] = []
    logs = PublishedLogs()
    if folder is not None:
        try:
            logs = read_logs(folder, keyring, failures, beside={KEYS})
        except OSError:
            failures.append(f"{Code.LEDGER_INCOMPLETE}:{folder.name}")
    return _Beside(here, keyring, folder is not None, logs, tuple(failures))


def _verdict(path: Path, artifact: Artifact | None, signer: str | None, checks: list[Check]) -> Verdict:
    if artifact is None or any(not check.ok for check in checks):
        return Verdict(str(path), False, None, None, signer, tuple(checks))
    return Verdict(str(path), True, artifact.status, artifact.overhead_pct, signer, tuple(checks))


def _reported(artifact: Artifact) -> list[Check]:
    published = artifact.overhead_pct
    checks: list[Check] = []
    computed = recompute(artifact) if published is not None else None
    if published is not None:
        same = computed is not None and computed.agrees(published)
        again = "cannot be recomputed" if computed is None else f"recomputed {computed.overhead_pct:.4f}%"
        checks.append(Check(Code.OVERHEAD_RECOMPUTED, same, f"published {published:.2f}%, {again}"))
    limit = "reported row: schema and arithmetic were checked; no evidence was published to verify"
    checks.append(Check(Code.NOT_VERIFIED_BY_US, True, limit))
    return checks


def _signed(artifact: Artifact, beside: _Beside) -> tuple[str | None, list[Check]]:
    folder = beside.bundle(artifact.id)
    if folder is None:
        return None, [Check(Code.BUNDLE_MISSING, False, "the evidence bundle is not beside the artifact")]
    result = beside.verify(artifact.id, folder)
    signer = None if result.signer is None else result.signer.name
    checks = list(result.checks)
    if result.row is not None:
        if beside.logs.moved(artifact.id, result.row.facts.serial):
            said = f"the plan names entry {result.row.facts.serial} of the log and stands at another"
            checks.append(Check(Code.LEDGER_PLAN_DIFFERS, False, said))
        late, unshown = _late(artifact, beside)
        if unshown:
            checks.append(Check(Code.REGISTRATION_NOT_CHECKED, False, unshown))
        alone = with_registration_caveat(artifact_from_verified(result.row), late=late)
        controls, found = _controls(artifact, alone, beside)
        checks += found
        expected = with_control_caveats(alone, controls)
        same = _follows(artifact, expected)
        said = "follows" if same else "does not follow"
        checks.append(Check(Code.ARTIFACT_RECOMPUTED, same, f"the artifact {said} from its bundle"))
    return signer, checks


def _follows(artifact: Artifact, expected: Artifact) -> bool:
    """Whether an artifact is what follows from its evidence, but for what was said of the row since."""
    stated = {"retracted": artifact.retracted, "superseded_by": artifact.superseded_by}
    return artifact_bytes(expected.model_copy(update=stated)) == artifact_bytes(artifact)


def _late(artifact: Artifact, beside: _Beside) -> tuple[bool, str]:
    """Whether the logs say that a row was registered late, and why they cannot say that it was not.

    A row that owns up to it is believed. One that does not is believed only where the whole log that holds
    it is beside it, and the one that announced its journey: else the caveat could be cut out.
    """
    owned = "registered-late" in artifact.caveats
    logs, failures = beside.logs, beside.failures
    log = logs.rows.get(artifact.id)
    if log is None:
        why = f" ({', '.join(failures)})" if failures else ""
        unshown = f"no log beside the row holds it{why}: whether it was registered in time cannot be told"
        return owned, "" if owned else unshown
    if log.journey is None or owned or not logs.late(artifact.id):
        return logs.late(artifact.id), ""
    home = log.journey.opened_in
    if logs.of(home) is not None:
        return True, ""
    faults = [code for code in failures if code.endswith(f":{home}")]
    how = f"cannot be read ({', '.join(faults)})" if faults else "is not beside the row"
    if home not in {log_key(entry.public) for entry in beside.keyring.with_role("publisher")}:
        how = "is signed by a key that the keyring does not list: give that key, too"
    return False, f"log {home} must have announced the row's journey, and {how}"


def _controls(artifact: Artifact, alone: Artifact, beside: _Beside) -> tuple[list[Artifact], list[Check]]:
    """The row's controls, each with its evidence verified: they lift or add some of its caveats.

    A file that says it is a control is no more than that, whoever put it there: where the row names it, its
    bundle must be there, too. alone: the row as its bundle has it, which says which are of its kind.
    """
    neighbours: dict[str, Artifact] = {}
    for path in sorted(beside.here.glob("*.json")):
        with contextlib.suppress(GlasshouseError):  # what is no artifact stands beside nothing
            neighbours[path.stem] = parse_artifact(path.read_bytes(), name=path.name)
    of_its_kind = with_control_caveats(alone, list(neighbours.values())).controls
    good: list[Artifact] = []
    checks = []
    for name in dict.fromkeys((*artifact.controls, *of_its_kind)):
        fault = _control_fault(name, neighbours.get(name), beside)
        if not fault:
            good.append(neighbours[name])
        elif name in artifact.controls:
            checks.append(Check(Code.CONTROL_VERIFIED, False, f"control {name}: {fault}"))
    if good:
        checks.append(
            Check(Code.CONTROL_VERIFIED, True, f"{len(good)} controls verify from their own bundles")
        )
    return good, checks


def _control_fault(name: str, control: Artifact | None, beside: _Beside) -> str:
    bundle = beside.bundle(name)
    if control is None or bundle is None:
        return f"its {'artifact' if control is None else 'bundle'} is not beside the row"
    row = beside.verify(name, bundle).row
    if row is None:
        return "its bundle does not verify"
    late, unshown = _late(control, beside)
    if unshown:
        return unshown
    alone = with_registration_caveat(artifact_from_verified(row), late=late)
    return "" if _follows(control, alone) else "it does not follow from its bundle"


def _ledger(artifact: Artifact, beside: _Beside) -> Check:
    """Check the row's place in the ledger: by its inclusion file, else by the logs beside it."""
    inclusion = beside.here.parent / "inclusion" / f"{artifact.id}.json"
    logs, failures = beside.logs, beside.failures
    said: list[str] = []
    try:
        if inclusion.exists():
            failures = ()
            data: bytes | None = inclusion.read_bytes()
        elif beside.published:
            data = logs.inclusion(artifact.id, artifact_sha256(artifact))
            # Whether it was retracted or superseded stands in the logs: the artifact can be edited by anyone.
            # What it owns up to may stand in a log that this keyring does not know.
            owned = artifact.retracted is not None or artifact.superseded_by is not None
            if artifact.evidence is not None and not (owned and failures):
                said = statement_failures(logs, artifact)
        else:
            return Check(Code.LEDGER_NOT_CHECKED, True, "no ledger is published beside the row")
        if f"{Code.LEDGER_ROW_TWICE}:{artifact.id}" in failures:
            return Check(Code.LEDGER_INCLUSION, False, "two logs hold the row (ledger-row-twice)")
        if data is not None:
            shown = check_inclusion(data, artifact, beside.keyring)
            if said:
                return Check(
                    Code.LEDGER_INCLUSION, False, f"{shown}; the logs say otherwise ({', '.join(said)})"
                )
            return Check(Code.LEDGER_INCLUSION, True, shown)
    except VerificationError as error:
        return Check(Code.LEDGER_INCLUSION, False, f"{error.what} ({', '.join(error.codes)})")
    except OSError:
        return Check(Code.LEDGER_INCLUSION, False, "the ledger beside the row cannot be read")
    if failures:
        return Check(Code.LEDGER_INCLUSION, False, f"no log that holds names the row ({', '.join(failures)})")
    if artifact.evidence is None:
        return Check(Code.LEDGER_NOT_CHECKED, True, "the row has not been entered in a log yet")
    return Check(Code.LEDGER_INCLUSION, False, "the row is in no log beside it")
