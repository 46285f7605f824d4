"""What is known about a run, as frozen values: the only input of the rules.

records/bundle_facts.py builds them from the bundle, in the same way when a record is written and when it
is verified. What a file of the bundle says is held as its own model (schema.py); here is what joins them.
Units are in the names: sec seconds, pct percent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from glasshouse.measurement.telemetry import disturbed
from glasshouse.schema import Allocation, Execs, Hardened, Launch, Release, Result, Slot, Zeroized
from glasshouse.spec import RunSpec


@dataclass(frozen=True)
class Lifecycle:
    """A protected launch as re-verified from its exchange and events.

    attestation: codes of every failed check, empty when verified; None when nothing was exchanged.
    chain: codes of every fault of the event chain, None when there is no chain. released: whether
    the payload key was granted. max_gap_sec: longest stretch between countersigned heads.
    """

    attestation: tuple[str, ...] | None
    released: bool
    chain: tuple[str, ...] | None
    max_gap_sec: float | None
    zeroization: Zeroized | None
    boot_id: str = ""  # as the controller read it before the launch
    file_barrier: str = ""  # claim `fs`: landlock | none
    swap_kib: int | None = None
    hardened: Hardened | None = None
    execs: Execs | None = None  # of a project


@dataclass(frozen=True)
class LaunchFacts:
    """One attempt at a slot: what the controller wrote of it, and what was found on reading the rest.

    code: the attempt's own, or that its result cannot be read.
    """

    record: Launch
    code: str | None
    result: Result | None
    lifecycle: Lifecycle | None

    @property
    def number(self) -> int:
        """Which attempt it is; counts from 1."""
        return self.record.launch

    @property
    def complete(self) -> bool:
        """Whether the leg ran to its end."""
        return self.record.status == "complete"


@dataclass(frozen=True)
class SlotFacts:
    """One planned slot and every launch made for it, in order."""

    plan: Slot
    launches: tuple[LaunchFacts, ...]

    @property
    def final(self) -> LaunchFacts | None:
        """The launch that counts: the complete one, else the last."""
        complete = [launch for launch in self.launches if launch.complete]
        return next(reversed(complete or self.launches), None)

    @property
    def complete(self) -> bool:
        """Whether a launch completed with a result."""
        return self.result is not None

    @property
    def result(self) -> Result | None:
        """The result that counts."""
        final = self.final
        return final.result if final is not None and final.complete else None

    @property
    def timings(self) -> Mapping[str, float]:
        """Seconds by phase of the launch that counts."""
        return {} if self.final is None else self.final.record.timings

    @cached_property
    def disturbed(self) -> tuple[str, ...]:
        """Why the leg's own telemetry says that the result that counts was disturbed."""
        result = self.result
        if result is None:
            return ()
        return tuple(disturbed(result.telemetry, (result.machine_start, result.machine_end)))

    @property
    def name(self) -> str:
        """The leg's id."""
        return f"s{self.plan.index:03d}-{self.plan.arm}"


@dataclass(frozen=True)
class RunFacts:
    """Everything the rules may look at. `failures` are reason codes of the run outside any leg.

    simulated: a fake provider rented it out, so it measures nothing.
    rented_at: Unix seconds before the create call of a machine that never came to be an allocation.
    taken_up_at: when another process took it up after its controller had ended, None where none did.
    """

    run: str
    version: str
    serial: int
    spec: RunSpec
    slots: tuple[SlotFacts, ...]
    allocation: Allocation | None
    release: Release | None
    failures: tuple[str, ...] = ()
    witnesses: tuple[str, ...] = ()
    simulated: bool = False
    rented_at: float | None = None
    taken_up_at: float | None = None

    def of(self, arm: str) -> tuple[SlotFacts, ...]:
        """Slots that count (no burn-in) of one arm."""
        return tuple(slot for slot in self.slots if slot.plan.arm == arm and not slot.plan.burn_in)

    def results(self, arm: str) -> tuple[Result, ...]:
        """Results of the complete slots that count of one arm."""
        return tuple(slot.result for slot in self.of(arm) if slot.result is not None)

    @property
    def all_results(self) -> tuple[tuple[SlotFacts, Result], ...]:
        """Every complete slot with its result, burn-in included, in order of execution."""
        return tuple((slot, slot.result) for slot in self.slots if slot.result is not None)

    @property
    def lifecycles(self) -> tuple[tuple[SlotFacts, LaunchFacts, Lifecycle], ...]:
        """Every protected launch, failed ones and burn-in included."""
        return tuple(
            (slot, launch, launch.lifecycle)
            for slot in self.slots
            for launch in slot.launches
            if launch.lifecycle is not None
        )
