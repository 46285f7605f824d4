"""From a bundle's files to the facts of a run: parse, re-verify each leg's evidence, join.

The same function serves the writer of a record and its verifier, so both judge the same facts.
Two kinds of fault are kept apart: what makes the bundle itself unsound is a failed check; what a
leg's evidence shows to be wrong is a fact, and the rules exclude the run for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from glasshouse import schema
from glasshouse.attestation.claims import Reference
from glasshouse.canonical import canonical_json, parse_canonical, sha256_hex
from glasshouse.codes import Code
from glasshouse.errors import GlasshouseError, UsageError, VerificationError
from glasshouse.judgement.facts import LaunchFacts, Lifecycle, RunFacts, SlotFacts
from glasshouse.judgement.rules import Check
from glasshouse.measurement.schedule import build_schedule
from glasshouse.records.chain import Chain, check_chain
from glasshouse.records.exchange import Verified, verify_exchange
from glasshouse.records.keys import KeyEntry, Keyring
from glasshouse.records.ledger import plan_witnesses
from glasshouse.records.signing import PLAN_TYPE, Opened, open_statement
from glasshouse.schema import fields_of

_LEG = re.compile(r"legs/(s(\d{3})-(raw|protected))(?:-l(\d+))?/(.+)\Z")
SIMULATED = "simulated"  # the tier of what a fake provider rents out
CLOCK_SLACK_SEC = 2.0  # the broker signs whole seconds; controller and broker may be two machines

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Collected:
    """What a bundle's files give: facts (None when unsound), the plan, and every check made."""

    facts: RunFacts | None
    plan: schema.Plan | None
    checks: tuple[Check, ...]


class _Collector:
    """Reads files by name and keeps every check."""

    def __init__(self, files: Mapping[str, bytes], keyring: Keyring, signer: KeyEntry) -> None:
        self.files = files
        self.keyring = keyring
        self.signer = signer
        self.checks: list[Check] = []
        self.allocation: schema.Allocation | None = None

    def check(self, code: Code, ok: bool, detail: str) -> bool:
        self.checks.append(Check(code, ok, detail))
        return ok

    def parse(self, name: str, model: type[M]) -> M | None:
        """Parse a file that is there by its schema; a fault is a failed check naming the fields."""
        if name not in self.files:
            return None
        try:
            return model.model_validate_json(self.files[name])
        except ValidationError as error:
            self.check(Code.FILE_MALFORMED, False, f"{name}: {fields_of(error)}")
            return None


def collect_facts(files: Mapping[str, bytes], keyring: Keyring, signer: KeyEntry) -> Collected:
    """Build the facts of a run from its bundle's files (without record and envelope).

    Never raises for what the files hold. signer: whoever signs, or signed, the bundle.
    """
    reader = _Collector(files, keyring, signer)
    plan = _plan(reader)
    if plan is None:
        return Collected(None, None, tuple(reader.checks))
    witnesses = _witnesses(reader, plan)
    slots = _schedule(reader, plan)
    allocation = reader.allocation = reader.parse("allocation.json", schema.Allocation)
    release = reader.parse("release.json", schema.Release)
    outcome = reader.parse("outcome.json", schema.Outcome)
    launches = _launches(reader, plan, slots)
    if any(not check.ok for check in reader.checks) or outcome is None:
        return Collected(None, plan, tuple(reader.checks))
    facts = RunFacts(
        run=plan.run,
        version=plan.version,
        serial=plan.serial,
        spec=plan.spec,
        slots=tuple(SlotFacts(slot, tuple(launches.get(slot.index, ()))) for slot in slots),
        allocation=allocation,
        release=release,
        failures=outcome.codes,
        witnesses=witnesses,
        simulated=outcome.simulated or (allocation is not None and allocation.tier == SIMULATED),
        rented_at=outcome.rented_at,
        taken_up_at=outcome.taken_up_at,
    )
    return Collected(facts, plan, tuple(reader.checks))


# --- plan -----------------------------------------------------------------------------------


def _plan(reader: _Collector) -> schema.Plan | None:
    try:
        data = reader.files["plan.dsse.json"]
        opened: Opened = open_statement(data, reader.keyring, role="operator", predicate_type=PLAN_TYPE)
        plan = schema.Plan.model_validate_json(canonical_json(opened.predicate))
        signer = reader.keyring.find(opened.signer.keyid, "operator", index=plan.serial)
    except KeyError:
        reader.check(Code.PLAN_SIGNATURE, False, "plan.dsse.json is missing")
        return None
    except VerificationError as error:
        reader.check(Code.PLAN_SIGNATURE, False, f"plan.dsse.json: {error.what} [{', '.join(error.codes)}]")
        return None
    except ValidationError as error:
        reader.check(Code.PLAN_FORM, False, f"plan.dsse.json: {fields_of(error)}")
        return None
    reader.check(Code.PLAN_SIGNATURE, True, f"plan {plan.serial} signed by {opened.signer.name}")
    if signer.valid_until is not None and "inclusion.json" not in reader.files:
        # Whoever has a retired key can name an entry of its time, where the published log holds another plan.
        said = f"the key was retired after ledger entry {signer.valid_until}: only the published log shows"
        reader.check(Code.SIGNER_RETIRED_SINCE, True, f"{said} that this plan was entered before")
    same = opened.signer.keyid == reader.signer.keyid
    reader.check(
        Code.PLAN_SIGNER,
        same,
        "plan and bundle have one signer" if same else "plan and bundle differ in signer",
    )
    spec = sha256_hex(canonical_json(opened.predicate["spec"]))
    reader.check(Code.PLAN_FORM, dict(opened.subjects) == {"spec": spec}, "the plan names its spec's digest")
    return plan


def _witnesses(reader: _Collector, plan: schema.Plan) -> tuple[str, ...]:
    """Check that the plan stands in the ledger, where the bundle says so; names of co-signers."""
    inclusion = reader.parse("inclusion.json", schema.Inclusion)
    if inclusion is None:
        return ()
    digest = sha256_hex(reader.files["plan.dsse.json"])
    try:
        found = plan_witnesses(
            inclusion.checkpoint,
            inclusion.proof,
            run=plan.run,
            plan_sha256=digest,
            serial=plan.serial,
            time=plan.registered_at,
            keyring=reader.keyring,
        )
    except VerificationError as error:
        reader.check(Code.PLAN_IN_LEDGER, False, f"inclusion.json: {error.what}")
        return ()
    reader.check(Code.PLAN_IN_LEDGER, True, f"leaf {plan.serial} of the signed ledger")
    return found


def _schedule(reader: _Collector, plan: schema.Plan) -> tuple[schema.Slot, ...]:
    planned = plan.schedule
    try:
        derived = build_schedule(plan.spec)
    except UsageError as error:
        reader.check(Code.SCHEDULE_FROM_SEED, False, error.what)
        return ()
    same = planned == derived
    reader.check(
        Code.SCHEDULE_FROM_SEED,
        same,
        f"all {len(planned)} slots follow from the registered spec"
        if same
        else "slots do not follow from the spec",
    )
    return planned


# --- launches -------------------------------------------------------------------------------


def _launches(
    reader: _Collector, plan: schema.Plan, slots: tuple[schema.Slot, ...]
) -> dict[int, list[LaunchFacts]]:
    found: dict[int, list[LaunchFacts]] = {}
    for folder in sorted({name.rpartition("/")[0] for name in reader.files if name.startswith("legs/")}):
        match = _LEG.match(f"{folder}/launch.json")
        assert match is not None  # names were held against the bundle's pattern
        index, suffix = int(match[2]), match[4]
        slot = slots[index] if index < len(slots) else None
        written = reader.parse(f"{folder}/launch.json", schema.Launch)
        if slot is None or slot.arm != match[3]:
            reader.check(Code.LEG_NOT_PLANNED, False, f"{folder} is no slot of the plan")
        elif written is None:
            if f"{folder}/launch.json" not in reader.files:
                reader.check(Code.FILE_MISSING, False, f"{folder}/launch.json is missing")
        elif (written.slot, written.arm) != (index, slot.arm) or suffix not in (None, str(written.launch)):
            reader.check(
                Code.LEG_MISPLACED, False, f"{folder} holds launch {written.launch} of slot {written.slot}"
            )
        elif written.started_at < plan.registered_at - CLOCK_SLACK_SEC:
            reader.check(Code.LEG_BEFORE_PLAN, False, f"{folder} started before the plan was registered")
        else:
            launch = _launch(reader, plan, slot, f"{folder}/", written)
            found.setdefault(index, []).append(launch)
    for index, launches in found.items():
        launches.sort(key=lambda launch: launch.number)
        numbers = [launch.number for launch in launches]
        complete = [launch.number for launch in launches if launch.complete]
        if numbers != list(range(1, len(numbers) + 1)) or len(complete) > 1:
            reader.check(
                Code.LAUNCHES_INCOMPLETE, False, f"slot {index} lists launches {numbers}, complete {complete}"
            )
    total = sum(len(launches) for launches in found.values())
    reader.check(Code.LEGS_AS_PLANNED, True, f"{total} launches of {len(slots)} planned slots")
    return found


def _launch(
    reader: _Collector, plan: schema.Plan, slot: schema.Slot, folder: str, written: schema.Launch
) -> LaunchFacts:
    own = {"launch.json"}
    own |= (
        {"exchange.json", "reference.json", "events.jsonl", "heads.jsonl"}
        if slot.lifecycle
        else {"result.json"}
    )
    stray = [name for name in reader.files if name.startswith(folder) and name[len(folder) :] not in own]
    if stray:
        reader.check(Code.FILE_UNLISTED, False, f"{', '.join(stray)} do not belong to this kind of leg")
    lifecycle, result, code = None, None, written.code
    if slot.lifecycle:
        lifecycle, data = _lifecycle(reader, plan, folder, written)
    else:
        data = reader.files.get(f"{folder}result.json")
    if data is not None and written.status == "complete":
        result = schema.Result.read(data)
        if result is not None and result.withholds and plan.spec.payload == "public":
            result = None
        code = code if result is not None else Code.RESULT_MALFORMED
    return LaunchFacts(written, code, result, lifecycle)


def _lifecycle(
    reader: _Collector,
    plan: schema.Plan,
    folder: str,
    written: schema.Launch,
) -> tuple[Lifecycle, bytes | None]:
    """Re-verify a protected launch; returns it with the leg result that its events hold."""
    exchange = reader.parse(f"{folder}exchange.json", schema.Exchange)
    reference = _reference(reader, f"{folder}reference.json")
    if exchange is None or reference is None:
        if exchange is not None:
            reader.check(Code.FILE_MISSING, False, f"{folder}reference.json is missing")
        events = reader.files.get(f"{folder}events.jsonl", b"")
        unopened = (Code.EVENTS_WITHOUT_GRANT,) if events else None
        return Lifecycle(None, False, unopened, None, None), None
    verified = verify_exchange(exchange, reference, plan.spec.policy, reader.keyring, index=plan.serial)
    codes = [*verified.codes, *_misplaced(plan, written, reference, reader.allocation, verified)]
    chain = _chain(reader, folder, written, exchange, verified, run=plan.run)
    claims, report = verified.claims, None
    chain_codes = None if chain is None else list(chain.codes)
    if chain is not None and chain.zeroized is not None:
        report = schema.Zeroized.read(chain.zeroized)
        if report is None:
            chain_codes = [*chain.codes, Code.ZEROIZATION_MALFORMED]
    if chain is not None and chain_codes is not None and written.status == "complete" and not chain.whole:
        chain_codes.append(Code.EVENT_ORDER)
    hardening = claims.get("hardening")
    life = Lifecycle(
        attestation=tuple(codes),
        released=verified.released,
        chain=None if chain_codes is None else tuple(dict.fromkeys(chain_codes)),
        max_gap_sec=None if chain is None else chain.max_gap_sec,
        zeroization=report,
        boot_id=reference.boot_id,
        file_barrier=str(claims.get("fs", "")),
        swap_kib=hardening.get("swap_total_kib") if isinstance(hardening, dict) else None,
        hardened=None if chain is None or chain.hardened is None else schema.Hardened.read(chain.hardened),
        execs=None if chain is None or chain.execs is None else schema.Execs.read(chain.execs),
    )
    return life, None if chain is None else chain.result


def _misplaced(
    plan: schema.Plan,
    written: schema.Launch,
    reference: Reference,
    allocation: schema.Allocation | None,
    verified: Verified,
) -> list[Code]:
    """Codes for an exchange that is sound in itself but not of this launch of this run."""
    codes = []
    if (reference.run, reference.leg, reference.launch) != (plan.run, f"s{written.slot:03d}", written.launch):
        codes.append(Code.REFERENCE_OF_ANOTHER_LAUNCH)
    if allocation is None or not allocation.agrees(reference):
        codes.append(Code.REFERENCE_OF_ANOTHER_ALLOCATION)
    if verified.at and not (
        written.started_at - CLOCK_SLACK_SEC <= verified.at <= written.ended_at + CLOCK_SLACK_SEC
    ):
        codes.append(Code.EXCHANGE_OUTSIDE_LAUNCH)
    return codes


def _chain(
    reader: _Collector,
    folder: str,
    written: schema.Launch,
    exchange: schema.Exchange,
    verified: Verified,
    *,
    run: str,
) -> Chain | None:
    events = reader.files.get(f"{folder}events.jsonl", b"")
    if exchange.grant is None:
        return Chain((Code.EVENTS_WITHOUT_GRANT,), False, None) if events else None
    if verified.event_key is None:
        return Chain((Code.EVENTS_WITHOUT_KEY,), False, None)
    return check_chain(
        events,
        reader.files.get(f"{folder}heads.jsonl", b""),
        event_key=verified.event_key,
        grant=exchange.grant,
        operator=reader.signer,
        leg=(run, f"s{written.slot:03d}", written.launch),
        released_at=verified.at,
        ended_at=written.ended_at,
    )


def _reference(reader: _Collector, name: str) -> Reference | None:
    if name not in reader.files:
        return None
    try:
        reference = Reference.from_dict(parse_canonical(reader.files[name]))
        if canonical_json(reference.to_dict()) != reader.files[name]:
            raise GlasshouseError("fields are missing")
    except (TypeError, ValueError, GlasshouseError) as error:
        reader.check(Code.FILE_MALFORMED, False, f"{name}: {type(error).__name__}")
        return None
    return reference
