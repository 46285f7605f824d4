"""Verify a published artifact: what `glasshouse verify` does with a PATH that is a JSON file.

signed      its bundle, found beside it, is verified in full, and so are those of the controls it names; the
            artifact must follow from them
reported    schema and arithmetic, and nothing else: there is no evidence to verify, and it says so
simulated   schema only; it never passes as measured

A signed row needs the log that holds it beside it, and a journey's the log that announced it: without them
nobody can tell whether `registered-late` was cut out (registration-not-checked). Every row, and every control
that it hangs on, is asked about in these logs, since its own file does not show whether it was withdrawn
(retraction-not-checked; logs_beside.py). Where the row's inclusion file is published, the row must stand in
that, too.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from glasshouse import host
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
from glasshouse.publishing.logs import stated_since, statement_failures
from glasshouse.publishing.logs_beside import Beside, read_beside, withdrawn
from glasshouse.publishing.published_log import check_inclusion
from glasshouse.records.keys import Keyring
from glasshouse.records.ledger import log_key
from glasshouse.records.verify import Verdict

MAX_INCLUSION_BYTES = 1 << 20


def check_artifact(path: Path, keyring: Keyring, *, without_log: bool = False) -> Verdict:
    """Check one artifact file; return how it came out.

    without_log: accept that no log can be had that would say whether it was withdrawn since.
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
    beside = read_beside(path.resolve().parent, keyring, without_log=without_log)
    if artifact.evidence_tier == "reported":
        checks += _reported(artifact)
    elif artifact.evidence_tier == "signed":
        signer, found = _signed(artifact, beside)
        checks += found
    else:
        checks.append(Check(Code.MEASURED, False, "a simulated row measures nothing"))
    if artifact.retracted is not None:
        said = withdrawn(artifact.retracted.date, artifact.retracted.reason)
        checks.append(Check(Code.RETRACTED, True, said))
    if artifact.superseded_by is not None:
        checks.append(Check(Code.SUPERSEDED, True, f"superseded by {artifact.superseded_by}"))
    if artifact.evidence_tier != "simulated":
        checks += _ledger(artifact, beside)
    return _verdict(path, artifact, signer, checks)


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


def _signed(artifact: Artifact, beside: Beside) -> tuple[str | None, list[Check]]:
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


def _late(artifact: Artifact, beside: Beside) -> tuple[bool, str]:
    """Whether the logs say that a row was registered late, and why they cannot say that it was not.

    A row that owns up to it is believed. One that does not is believed only where the whole log that holds
    it is beside it, and the one that announced its journey: else the caveat could be cut out.
    """
    owned = "registered-late" in artifact.caveats
    logs, failures = beside.logs, beside.failures
    log = logs.rows.get(artifact.id)
    if log is None and beside.accepted:
        return owned, ""
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


def _controls(artifact: Artifact, alone: Artifact, beside: Beside) -> tuple[list[Artifact], list[Check]]:
    """The row's controls, each with its evidence verified: they lift or add some of its caveats.

    A file that says it is a control is no more than that, whoever put it there: where the row names it, its
    bundle must be there, too. alone: the row as its bundle has it, which says which are of its kind.
    """
    neighbours: dict[str, Artifact] = {}
    for path in sorted(beside.here.glob("*.json")):
        with contextlib.suppress(GlasshouseError, OSError):  # what is no artifact stands beside nothing
            data = host.read_regular(path, MAX_ARTIFACT_BYTES)
            neighbours[path.stem] = parse_artifact(data, name=path.name)
    # A control's own file does not show whether it was withdrawn, so it cannot take itself away either.
    logs = beside.logs
    said = {name: stated_since(row, logs) if logs.logs else row for name, row in neighbours.items()}
    of_its_kind = with_control_caveats(alone, list(said.values())).controls
    good: list[Artifact] = []
    checks = []
    for name in dict.fromkeys((*artifact.controls, *of_its_kind)):
        fault = _control_fault(name, neighbours.get(name), beside)
        differs = [] if fault or not logs.logs else statement_failures(logs, neighbours[name])
        if differs:
            text = f"control {name}: the logs say otherwise ({', '.join(differs)})"
            checks.append(Check(Code.CONTROL_VERIFIED, False, text))
        if not fault:
            good.append(said[name])
        elif name in artifact.controls:
            checks.append(Check(Code.CONTROL_VERIFIED, False, f"control {name}: {fault}"))
    if good:
        checks.append(
            Check(Code.CONTROL_VERIFIED, True, f"{len(good)} controls verify from their own bundles")
        )
    return good, checks


def _control_fault(name: str, control: Artifact | None, beside: Beside) -> str:
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


def _ledger(artifact: Artifact, beside: Beside) -> list[Check]:
    """Check the row's place in the ledger, by its inclusion file and the logs, and what these say of it.

    An inclusion file says nothing of a withdrawal: the logs are asked besides.
    """
    inclusion = beside.here.parent / "inclusion" / f"{artifact.id}.json"
    gap = beside.not_asked()
    checks = [] if gap is None else [gap]
    logs, failures = beside.logs, beside.failures
    try:
        shown: bytes | None = host.read_regular(inclusion, MAX_INCLUSION_BYTES)
    except FileNotFoundError:
        shown = None
    except OSError:
        return [
            *checks,
            Check(Code.LEDGER_INCLUSION, False, "the inclusion file beside the row cannot be read"),
        ]
    entry = logs.inclusion(artifact.id, artifact_sha256(artifact))
    if shown is None and entry is None and not beside.published:
        return checks
    # What the row owns up to may stand in a log that this keyring does not know.
    owned = artifact.retracted is not None or artifact.superseded_by is not None
    differs = [] if not logs.logs or (owned and failures) else statement_failures(logs, artifact)
    if artifact.evidence is None:  # what superseded a reported row, its own history says
        differs = [code for code in differs if code.startswith(Code.LEDGER_RETRACTION_DIFFERS)]
    if f"{Code.LEDGER_ROW_TWICE}:{artifact.id}" in failures:
        return [*checks, Check(Code.LEDGER_INCLUSION, False, "two logs hold the row (ledger-row-twice)")]
    if differs:
        text = f"the logs say otherwise ({', '.join(differs)})"
        return [*checks, Check(Code.LEDGER_INCLUSION, False, text)]
    try:
        found = [
            check_inclusion(data, artifact, beside.keyring) for data in (shown, entry) if data is not None
        ]
    except VerificationError as error:
        return [*checks, Check(Code.LEDGER_INCLUSION, False, f"{error.what} ({', '.join(error.codes)})")]
    if entry is not None or (found and not beside.published):
        asked = f"; {beside.asked()}" if gap is None else ""
        return [*checks, Check(Code.LEDGER_INCLUSION, True, f"{found[-1]}{asked}")]
    if failures:
        text = f"no log that holds names the row ({', '.join(failures)})"
        return [*checks, Check(Code.LEDGER_INCLUSION, False, text)]
    if artifact.evidence is None:
        return [*checks, Check(Code.LEDGER_NOT_CHECKED, True, "the row has not been entered in a log yet")]
    return [*checks, Check(Code.LEDGER_INCLUSION, False, "the row is in no log beside it")]
