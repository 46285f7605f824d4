"""When a run counts: every condition of "verified" as a named rule. Pure.

A rule lists what it found wrong; nothing found means it holds. A rule looks only at what exists:
a leg that never ran is `protected-incomplete`, not also a list of everything it did not do. Only
attestation is demanded of every planned protected slot: none may pass by not having been looked at.
A rule that had nothing to look at holds, and says in its detail that nothing was checked.
A row for which any rule fails is excluded, with every failed rule's code, and still published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from glasshouse.codes import Code
from glasshouse.judgement.facts import RunFacts, SlotFacts
from glasshouse.judgement.nothing_to_check import (
    asks_gpu,
    no_gpu_seen,
    no_policy,
    no_raw_files,
    no_results,
    no_slots,
    none_chained,
    none_protected,
    none_released,
    of_a_project,
    of_no_project,
)
from glasshouse.measurement.telemetry import same_machine
from glasshouse.reasons import REASONS
from glasshouse.spec import RunSpec

# The number of the way of judging. A record names the one it was judged by and is verified by the same. A new
# rule or caveat, or a change to what one finds or how a figure is rounded, takes the next number and leaves
# records of older ones as they are.
METHOD = 2
# The next number is open: what it judges so far are private jobs. Method 2 knows nothing of projects, and of
# other jobs it wants a warm-up. What is judged by it is not published before it is closed.
OPEN = 3
SHOWN = 4  # findings spelt out per check
SLOW_UNIT = 3.0  # how much longer than the mean the last unit of a stretch may take


@dataclass(frozen=True)
class Check:
    """One named check: what was looked at, whether it holds, and what was found when it does not.

    vacuous: it holds because there was nothing to look at; its detail says what was missing.
    reworded: it holds in another way than the method's text says; its detail says in which.
    """

    code: str
    ok: bool
    detail: str
    vacuous: bool = False
    reworded: bool = False


@dataclass(frozen=True)
class Rule:
    """A condition of "verified": the reason code of its failure, and the test.

    absent: says why there is nothing to look at, "" where there is something.
    instead: what was demanded of a run in place of the rule's text, "" where that is what was. (The text
        stands in published artifacts, so it stays.)
    since: the method number from which it applies (see METHOD).
    skip: of which runs it says nothing at all, not even that there was nothing to look at.
    earlier: other tests that stood here, each with the last method number of which it was the test.
    """

    code: Code
    find: Callable[[RunFacts], Iterable[str]]
    absent: Callable[[RunFacts], str] = lambda _: ""
    instead: Callable[[RunFacts], str] = lambda _: ""
    since: int = 1
    skip: Callable[[RunFacts], bool] | None = None
    earlier: Mapping[int, Callable[[RunFacts], Iterable[str]]] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """What it demands, as the catalogue of reasons says it."""
        return REASONS[self.code].demand


def method_of(spec: RunSpec) -> int:
    """The number by which a run of this spec is judged today: jobs by the open one."""
    return OPEN if spec.payload == "private" else METHOD


def known_methods(spec: RunSpec) -> range:
    """The numbers by which a run of this spec may have been judged. Projects are new with the open one."""
    return range(OPEN if spec.workload == "project" else 1, method_of(spec) + 1)


def check_rules(facts: RunFacts, method: int | None = None) -> tuple[Check, ...]:
    """Apply every rule; failures of launches and of the run itself follow under their own codes.

    method: None takes the number by which such a run is judged today.
    """
    method = method_of(facts.spec) if method is None else method
    ended = _failures(facts)
    checks = []
    for rule in RULES:
        if rule.since > method:
            continue
        if rule.skip is not None and rule.skip(facts):
            continue
        find = next((test for until, test in sorted(rule.earlier.items()) if method <= until), rule.find)
        found = [*find(facts), *ended.pop(rule.code, [])]
        absent = "" if found else rule.absent(facts)
        instead = "" if found or absent else rule.instead(facts)
        detail = _joined(found) or absent or instead or rule.text
        checks.append(Check(rule.code, not found, detail, bool(absent), bool(instead)))
    checks += [Check(code, False, _joined(where)) for code, where in ended.items()]
    return tuple(checks)


def _joined(found: list[str]) -> str:
    more = len(found) - SHOWN
    return "; ".join(found[:SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _failures(facts: RunFacts) -> dict[str, list[str]]:
    """Codes with which a slot's last launch or the run itself ended, and what ended so."""
    found: dict[str, list[str]] = {}
    for slot in facts.slots:
        final = slot.final
        if not slot.complete and final is not None and final.code:
            found.setdefault(final.code, []).append(f"{slot.name} launch {final.number} ended so")
    for code in facts.failures:
        found.setdefault(code, []).append("the run ended so")
    return found


# --- the rules ------------------------------------------------------------------------------


def _incomplete(arm: str) -> Callable[[RunFacts], Iterator[str]]:
    def find(facts: RunFacts) -> Iterator[str]:
        for slot in facts.slots:
            if slot.plan.arm == arm and not slot.complete:
                launches = len(slot.launches)
                yield f"{slot.name} has no result after {launches} launch{'' if launches == 1 else 'es'}"

    return find


def _attestation(facts: RunFacts) -> Iterator[str]:
    for slot in facts.slots:
        if not slot.plan.lifecycle:
            continue
        life = None if slot.final is None else slot.final.lifecycle
        if life is None:
            yield f"{slot.name}: no evidence" + ("" if slot.launches else ", it was never launched")
        elif life.attestation:
            yield f"{slot.name}: {', '.join(life.attestation)}"
        elif life.attestation is None or not life.released:
            yield f"{slot.name}: no exchange shows that the payload was released to it"


def _chain(facts: RunFacts) -> Iterator[str]:
    for slot, launch, life in facts.lifecycles:
        if life.chain:
            yield f"{slot.name} launch {launch.number}: {', '.join(life.chain)}"
        elif life.chain is None and (life.released or launch.complete):
            yield f"{slot.name} launch {launch.number}: no events"


def _zeroized(facts: RunFacts) -> Iterator[str]:
    for slot, launch, life in facts.lifecycles:
        if not life.released and not launch.complete:
            continue
        where = f"{slot.name} launch {launch.number}"
        report = life.zeroization
        if report is None:
            yield f"{where}: released, and no zeroization report"
            continue
        if report.unwiped:
            yield f"{where}: not read back as zero: {', '.join(report.unwiped)}"
        for process, code in (("trainer", report.trainer_exit), ("custodian", report.custodian_exit)):
            if code != 0:
                yield (
                    f"{where}: {process} not reaped"
                    if code is None
                    else f"{where}: {process} ended with {code}"
                )
        if not report.tmpfs_removed:
            yield f"{where}: scratch folder not removed"


def _ended(facts: RunFacts) -> Iterator[str]:
    yield from _zeroized(facts)
    for slot, launch, life in facts.lifecycles:
        if life.zeroization is not None and life.zeroization.runtime_state != "ended":
            yield f"{slot.name} launch {launch.number}: nothing says that its processes ended"


def _policy(facts: RunFacts) -> Iterator[str]:
    policy = facts.spec.policy
    for slot, launch, life in facts.lifecycles:
        where = f"{slot.name} launch {launch.number}"
        begun = life.hardened is not None or life.zeroization is not None
        reads = None if life.hardened is None else life.hardened.reads
        if policy.require_confined_reads and begun and reads in (None, "none"):
            yield f"{where}: nothing shows that what it read was confined"
        if not policy.refuse_execs:
            continue
        if life.execs is None and life.zeroization is not None:
            yield f"{where}: nothing shows that it started no program"
        elif life.execs is not None and not life.execs.shown_none:
            yield f"{where}: it started {life.execs.words}"


def _job(facts: RunFacts) -> Iterator[str]:
    for slot, result in facts.all_results:
        if result.exit is None:
            yield f"{slot.name}: how its command ended is not said"
        elif not result.exit.well:
            yield f"{slot.name}: its command {result.exit.words}"


def _left_out(facts: RunFacts) -> Iterator[str]:
    for slot, result in facts.all_results:
        if result.left_out:
            yield f"{slot.name}: files of its outputs could not be carried, and were lost with the machine"


def _cleanup(facts: RunFacts) -> Iterator[str]:
    release = facts.release
    if release is None:
        yield "nothing shows that the allocation was given back"
        return
    if release.proof != "zero":
        active = "" if release.active is None else f", {release.active} active"
        yield f"proof is {release.proof}{active}"
    if release.pod_folder_removed is False:
        yield "the pod folder is still there"
    if release.processes_left:
        yield f"{release.processes_left} processes of ours still run"


def _raw_files(facts: RunFacts) -> Iterator[str]:
    for slot in facts.slots:
        for launch in slot.launches:
            if (
                slot.plan.arm == "raw"
                and not slot.plan.lifecycle
                and launch.record.raw_files_removed is False
            ):
                yield f"{slot.name} launch {launch.number}: raw files were not removed"


def _same_machine(facts: RunFacts) -> Iterator[str]:
    edges = [edge for _, result in facts.all_results for edge in (result.machine_start, result.machine_end)]
    if not edges:
        return
    if facts.allocation is not None and facts.allocation.machine is not None:
        # The controller reads less about the machine than a leg does: what it did not read is not compared.
        edges.insert(0, edges[0].under(facts.allocation.machine))
    yield from same_machine(edges)
    for slot, launch, life in facts.lifecycles:
        if launch.result is not None and launch.result.machine_start.boot_id != life.boot_id:
            yield f"{slot.name}: not the boot that the controller saw"
    if asks_gpu(facts) and not all(edge.gpu_uuids for edge in edges):
        yield "gpu-uuid-missing"


def _gpu(facts: RunFacts) -> Iterator[str]:
    gpu = facts.spec.gpu
    if gpu.name == "cpu":
        yield from (f"{slot.name} ran on {r.device}" for slot, r in facts.all_results if r.device != "cpu")
    if not asks_gpu(facts):
        return
    allocation, names = facts.allocation, set(gpu.provider_names.values())
    if allocation is not None and allocation.gpu_model is not None and allocation.gpu_model not in names:
        yield f"asked for {gpu.name}, given {allocation.gpu_model}"
    # What the driver calls it, where config says so: providers have names of their own.
    driver = {gpu.provider_names["driver"]} if "driver" in gpu.provider_names else names
    for slot, result in facts.all_results:
        found = result.machine_start.gpu_names
        if any(name not in driver for name in found):
            yield f"{slot.name}: asked for {gpu.name}, the driver reports {', '.join(found)}"
        if len(found) < gpu.count:
            yield f"{slot.name}: {len(found)} GPUs, asked for {gpu.count}"
        # A simulated GPU has a name and nothing behind it; such a row never passes as measured.
        if result.device == "cpu" and not facts.simulated:
            yield f"{slot.name} ran on the processor"


def _one_value(name: str) -> Callable[[RunFacts], Iterator[str]]:
    def find(facts: RunFacts) -> Iterator[str]:
        results = facts.all_results
        for slot, result in results:
            if not getattr(result, name):
                yield f"{slot.name} has none"
            elif getattr(result, name) != getattr(results[0][1], name):
                yield f"{slot.name} differs from {results[0][0].name}"

    return find


def _loss_missing(facts: RunFacts) -> Iterator[str]:
    for slot, result in facts.all_results:
        if result.final_loss is None and result.loss_finite is None:
            yield f"{slot.name} reports no final loss"


def _loss_withheld(facts: RunFacts) -> str:
    if any(result.loss_finite is not None for _, result in facts.all_results):
        return (
            "every leg reports that its final loss was finite; of a private job the loss itself is withheld"
        )
    return ""


def _loss_finite(facts: RunFacts) -> Iterator[str]:
    for slot, result in facts.all_results:
        if any(loss is None for _, loss in result.loss_curve):
            yield f"{slot.name}: a loss on the way was not finite"
        if result.loss_finite is False:
            yield f"{slot.name}: its final loss was not finite"


def _unchanged(facts: RunFacts) -> Iterator[str]:
    for slot, result in facts.all_results:
        if not result.output_differs:
            yield f"{slot.name} ended with the weights it began with"


def equal_outputs(facts: RunFacts, method: int = METHOD) -> list[tuple[SlotFacts, SlotFacts, bool]]:
    """Return (protected, raw, explained) slots with equal final digests.

    Explained: what both returned has made equally many steps from the initial weights, and the run is of
    fixed steps or the workload declares itself deterministic there; then equal bits are what should come out.
    A warm-up counts where it was not undone, as in legs of before.
    Method 1 wanted warm-up and measured stretch to be equal each by itself, which blocks of a fixed
    time fail by chance.
    """
    pairs = []
    for one in facts.of("protected"):
        for other in facts.of("raw"):
            left, right = one.result, other.result
            if left is None or right is None or left.output_sha256 != right.output_sha256:
                continue
            same_work = left.trained_steps == right.trained_steps
            if method == 1:
                same_work = (left.steps, left.warmup_units) == (right.steps, right.warmup_units)
            fixed = facts.spec.total_steps is not None or (left.deterministic and right.deterministic)
            pairs.append((one, other, same_work and fixed))
    return pairs


def _equal_adapters(facts: RunFacts, method: int = METHOD) -> Iterator[str]:
    if facts.spec.model.kind == "lora":
        for one, other, explained in equal_outputs(facts, method):
            if not explained:
                yield f"{one.name} and {other.name} ended with the same adapter"


def _duration(facts: RunFacts) -> Iterator[str]:
    tolerance = facts.spec.measure.duration_tolerance_pct / 100
    for slot, result in facts.all_results:
        planned = slot.plan.measured_sec
        if planned is None or slot.plan.burn_in:
            continue
        # A stretch ends on the first whole unit past its time, and that one may be a slow one.
        unit_sec = result.elapsed_sec / result.units if result.units > 0 else 0.0
        late = max(planned * (1 + tolerance), planned + SLOW_UNIT * unit_sec)
        if not planned * (1 - tolerance) <= result.elapsed_sec <= late:
            yield f"{slot.name} measured {result.elapsed_sec:.3f} s of {planned:g} s planned"
    for slot, result in facts.all_results:
        if result.units <= 0 or result.elapsed_sec <= 0:
            yield f"{slot.name} measured no work"


def _steps(facts: RunFacts, method: int = OPEN) -> Iterator[str]:
    for slot, result in facts.all_results:
        planned = slot.plan.steps
        if planned is None:
            continue
        # Legs of before did whole units only: the last one took the count past it, by less than itself.
        per_unit = result.steps / result.units if result.units > 0 and method < OPEN else 1
        if not planned <= result.steps < planned + max(per_unit, 1):
            yield f"{slot.name} took {result.steps} steps of {planned} planned"
        elif method >= OPEN and result.warmup_units:
            yield f"{slot.name} returned {result.trained_steps:g} steps: its warm-up was not undone"


RULES: tuple[Rule, ...] = (
    Rule(Code.RAW_INCOMPLETE, _incomplete("raw"), no_slots("raw")),
    Rule(Code.PROTECTED_INCOMPLETE, _incomplete("protected"), no_slots("protected")),
    Rule(Code.ATTESTATION_NOT_VERIFIED, _attestation, none_protected),
    Rule(Code.EVENT_CHAIN_BROKEN, _chain, none_chained),
    Rule(Code.RUNTIME_NOT_ZEROIZED, _zeroized, none_released, skip=of_a_project),
    Rule(Code.RAW_FILES_NOT_REMOVED, _raw_files, no_raw_files),
    Rule(Code.CLEANUP_NOT_PROVEN, _cleanup),
    Rule(Code.SAME_MACHINE_NOT_PROVEN, _same_machine, no_results),
    Rule(Code.GPU_NOT_AS_ASKED, _gpu, no_gpu_seen),
    Rule(Code.WORKLOAD_DIGEST_MISMATCH, _one_value("workload_digest"), no_results),
    Rule(Code.INITIAL_WEIGHTS_MISMATCH, _one_value("initial_digest"), no_results, skip=of_a_project),
    Rule(Code.FINAL_LOSS_MISSING, _loss_missing, no_results, _loss_withheld, skip=of_a_project),
    Rule(Code.NON_FINITE_LOSS, _loss_finite, no_results, skip=of_a_project),
    Rule(Code.ADAPTER_UNCHANGED, _unchanged, no_results, skip=of_a_project),
    Rule(
        Code.ADAPTER_DIGESTS_EQUAL,
        _equal_adapters,
        no_results,
        skip=of_a_project,
        earlier={1: partial(_equal_adapters, method=1)},
    ),
    Rule(Code.DURATION_OUT_OF_TOLERANCE, _duration, no_results, skip=of_a_project),
    Rule(
        Code.STEPS_NOT_AS_PLANNED,
        _steps,
        no_results,
        skip=of_a_project,
        earlier={METHOD: partial(_steps, method=METHOD)},
    ),
    Rule(Code.JOB_FAILED, _job, no_results, since=OPEN, skip=of_no_project),
    Rule(Code.OUTPUTS_LEFT_OUT, _left_out, no_results, since=OPEN, skip=of_no_project),
    Rule(Code.RUNTIME_NOT_ENDED, _ended, none_released, since=OPEN, skip=of_no_project),
    Rule(Code.POLICY_NOT_KEPT, _policy, no_policy, since=OPEN, skip=of_no_project),
)
