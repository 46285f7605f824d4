"""Verify a bundle offline, step by step, collecting every failure.

     1. the folder holds the files of a bundle and nothing else, all of them canonical
     2. bundle.dsse.json is signed by an operator of the keyring
     3. it names every other file, and each has the digest it names
     4. the plan is signed by the same operator, whose key is valid at the plan's ledger index
     5. the plan stands in the ledger, where the bundle claims so
     6. slots follow from the registered spec; every launch is one of them, and none started before it
     7. each protected launch: exchange and appraisal re-verified at the broker's time   (bundle_facts.py)
     8. each protected launch: event chain, countersigned heads                          (bundle_facts.py)
     9. the judgement recomputed from these facts, by the record's method, is record.json byte for byte
    10. the envelope's statement names this run, this plan and this record

A signature shows that a row is unchanged, not that it is true. A bundle whose evidence shows a
fault verifies as what it is: an excluded row, if its record says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Any

from glasshouse.canonical import CanonicalError, parse_json, sha256_hex
from glasshouse.codes import Code
from glasshouse.errors import UsageError, VerificationError
from glasshouse.judgement.conclusions import blocks_lost, control_line
from glasshouse.judgement.facts import RunFacts
from glasshouse.judgement.judge import Judgement, judge
from glasshouse.judgement.rules import Check, known_methods
from glasshouse.records.bundle import ENVELOPE, PLAN, RECORD, Found, read_bundle
from glasshouse.records.bundle_facts import Collected, collect_facts
from glasshouse.records.keys import KeyEntry, Keyring
from glasshouse.records.signing import BUNDLE_TYPE, Opened, open_statement
from glasshouse.schema import steps_words
from glasshouse.spec import RunSpec

_ONLY_VERIFY = object()


@dataclass(frozen=True)
class VerifiedRow:
    """A row whose bundle verified. Only `verify_files` can make one; publishing requires one.

    bundle_sha256 is the digest of bundle.dsse.json, which names every other file's.
    """

    judgement: Judgement
    facts: RunFacts
    signer: KeyEntry
    plan_sha256: str
    bundle_sha256: str
    created_at: float
    checks: tuple[Check, ...]
    files: Mapping[str, bytes] = field(repr=False)
    made_by: InitVar[object] = None

    def __post_init__(self, made_by: object) -> None:
        if made_by is not _ONLY_VERIFY:
            raise TypeError("a VerifiedRow is made by verification only")

    @property
    def run(self) -> str:
        """The run id."""
        return self.facts.run

    @property
    def id(self) -> str:
        """The row's permanent id."""
        return self.judgement.row


@dataclass(frozen=True)
class Verdict:
    """How what lies at `path` came out: a bundle, or a published row.

    status and overhead_pct are None where it did not hold. signer: the key's name, None where nobody known
    signed.
    """

    path: str
    ok: bool
    status: str | None
    overhead_pct: float | None
    signer: str | None
    checks: tuple[Check, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the form that `verify --json` lists."""
        return {
            "path": self.path,
            "ok": self.ok,
            "status": self.status,
            "overheadPct": self.overhead_pct,
            "signer": self.signer,
            "checks": [{"code": c.code, "ok": c.ok, "detail": c.detail} for c in self.checks],
        }


@dataclass(frozen=True)
class Verification:
    """What verification found: ok, and with it a row; else every failed check among `checks`.

    status and overhead_pct are the row's, None when nothing verified. signer: the key named by the
    keyring, None when unknown.
    """

    ok: bool
    status: str | None
    overhead_pct: float | None
    signer: KeyEntry | None
    checks: tuple[Check, ...]
    row: VerifiedRow | None

    def require(self) -> VerifiedRow:
        """Return the row; raise VerificationError with the code of every failed check."""
        if self.row is None:
            failed = [check for check in self.checks if not check.ok]
            first = failed[0].detail if failed else "nothing was verified"
            raise VerificationError(first, codes=list(dict.fromkeys(check.code for check in failed)))
        return self.row

    def verdict(self, path: str) -> Verdict:
        """Return how the bundle at `path` came out."""
        signer = None if self.signer is None else self.signer.name
        return Verdict(path, self.ok, self.status, self.overhead_pct, signer, self.checks)


def bundle_folder(path: Path) -> Path:
    """Return the bundle of a run folder or the bundle folder itself; UsageError when it is neither."""
    for folder in (path / "bundle", path):
        if folder.is_dir() and any((folder / name).exists() for name in (ENVELOPE, PLAN, RECORD)):
            return folder
    raise UsageError(
        "no evidence bundle there", field="path", value=path, remedy="give a run or bundle folder"
    )


def verify(path: Path, keyring: Keyring) -> Verification:
    """Verify a run folder or bundle folder against a keyring. UsageError when it is no such thing."""
    return verify_files(read_bundle(bundle_folder(path)), keyring)


def verify_files(found: Found, keyring: Keyring) -> Verification:
    """Verify a bundle's contents, from wherever they were read. Never raises for what they hold."""
    # 1. Listing.
    checks = [Check(code, False, detail) for code, detail in found.faults]
    if not checks:
        checks.append(
            Check(Code.FILES_LISTED, True, f"{len(found.files)} files, each where it belongs, canonical")
        )
    # 2. Envelope. Without it nothing below means anything.
    opened = _envelope(found.files, keyring, checks)
    if opened is None:
        return Verification(False, None, None, None, tuple(checks), None)
    # 3. Digests.
    _digests(found.files, opened, checks)
    # 4. to 8. Plan, ledger, schedule, launches, evidence.
    inner = {name: data for name, data in found.files.items() if name not in (ENVELOPE, RECORD)}
    collected = collect_facts(inner, keyring, opened.signer)
    checks += collected.checks
    # 9. and 10. Judgement and statement.
    judgement = _judgement(found.files, collected, checks)
    created_at = _statement(found.files, opened, collected, checks)
    if judgement is not None:
        figures = judgement.figures
        said = {Code.CONTROL: control_line(figures), Code.NO_FIGURE: blocks_lost(figures)}
        checks += [Check(code, True, text) for code, text in said.items() if text]
    if judgement is None or collected.facts is None or any(not check.ok for check in checks):
        return Verification(False, None, None, opened.signer, tuple(checks), None)
    row = VerifiedRow(
        judgement=judgement,
        facts=collected.facts,
        signer=opened.signer,
        plan_sha256=sha256_hex(found.files[PLAN]),
        bundle_sha256=sha256_hex(found.files[ENVELOPE]),
        created_at=created_at,
        checks=tuple(checks),
        files=found.files,
        made_by=_ONLY_VERIFY,
    )
    return Verification(True, judgement.status, judgement.overhead_pct, opened.signer, row.checks, row)


def _envelope(files: Mapping[str, bytes], keyring: Keyring, checks: list[Check]) -> Opened | None:
    if ENVELOPE not in files:
        return None  # the listing has said so
    try:
        opened = open_statement(files[ENVELOPE], keyring, role="operator", predicate_type=BUNDLE_TYPE)
    except VerificationError as error:
        checks += [Check(code, False, f"{ENVELOPE}: {error.what}") for code in error.codes]
        return None
    checks.append(Check(Code.BUNDLE_SIGNATURE, True, f"signed by {opened.signer.name}"))
    return opened


def _digests(files: Mapping[str, bytes], opened: Opened, checks: list[Check]) -> None:
    present = {name: sha256_hex(data) for name, data in files.items() if name != ENVELOPE}
    faults = [
        *(
            (Code.FILE_MISSING, f"{name} was signed and is missing")
            for name in opened.subjects
            if name not in present
        ),
        *(
            (Code.FILE_UNLISTED, f"{name} is not in the signed list")
            for name in present
            if name not in opened.subjects
        ),
        *(
            (Code.DIGEST_MISMATCH, f"{name} is not the file that was signed")
            for name, digest in present.items()
            if opened.subjects.get(name, digest) != digest
        ),
    ]
    checks += [Check(code, False, detail) for code, detail in faults]
    if not faults:
        checks.append(
            Check(Code.FILE_DIGESTS, True, f"{len(present)} files have the digests that were signed")
        )


def _judgement(files: Mapping[str, bytes], collected: Collected, checks: list[Check]) -> Judgement | None:
    if collected.facts is None:
        checks.append(Check(Code.RECORD_RECOMPUTED, False, f"{RECORD} cannot be recomputed from this bundle"))
        return None
    method = _method(files.get(RECORD, b""), collected.facts.spec)
    if method is None:
        checks.append(
            Check(Code.RECORD_METHOD, False, f"{RECORD} is judged by a method this version does not know")
        )
        return None
    judgement = judge(collected.facts, method)
    same = judgement.record() == files.get(RECORD)
    for slot, launch, life in collected.facts.lifecycles:
        # Faults of the evidence are in the record, or the comparison below fails.
        faults = [*(life.attestation or ()), *(life.chain or ())]
        said = "verified again" if not faults else f"found {', '.join(faults)}, as the record says"
        if not faults and life.execs is not None:
            said += f"; its project started {life.execs.words} by itself"
        if not faults and launch.result is not None and launch.result.weights is not None:
            said += f"; it says that it took {steps_words(launch.result.steps)}"
        if not faults or same:
            checks.append(Check(Code.LEG_EVIDENCE, True, f"{slot.name} launch {launch.number}: {said}"))
        else:
            detail = f"{slot.name} launch {launch.number}: {', '.join(faults)}"
            checks.append(Check(Code.LEG_EVIDENCE, False, detail))
    detail = f"{RECORD} follows from the evidence: {judgement.status}"
    checks.append(
        Check(Code.RECORD_RECOMPUTED, same, detail if same else f"{RECORD} does not follow from the evidence")
    )
    return judgement


def _method(record: bytes, spec: RunSpec) -> int | None:
    """Return the method number that a record names, None when it is not one of ours for such a run."""
    try:
        method = parse_json(record).get("method")
    except (CanonicalError, AttributeError):
        return None
    return method if type(method) is int and method in known_methods(spec) else None


def _statement(
    files: Mapping[str, bytes], opened: Opened, collected: Collected, checks: list[Check]
) -> float:
    predicate = dict(opened.predicate)
    created_at = predicate.pop("createdAt", None)
    expected = {
        "run": None if collected.plan is None else collected.plan.run,
        "recordSha256": sha256_hex(files.get(RECORD, b"")),
        "planSha256": sha256_hex(files.get(PLAN, b"")),
    }
    timed = isinstance(created_at, int | float) and not isinstance(created_at, bool)
    same = predicate == expected and timed
    checks.append(
        Check(
            Code.STATEMENT,
            same,
            "the statement names this run, plan and record" if same else "it names others",
        )
    )
    return float(created_at) if timed else 0.0
