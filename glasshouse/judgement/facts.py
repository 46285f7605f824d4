"""What is known about a run, as frozen values: the only input of the rules.

records/facts.py builds them from the bundle, in the same way when a record is written and when it
is verified. Units are in the names: sec seconds, pct percent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from glasshouse.measurement.schedule import Slot
from glasshouse.spec import RunSpec

Machine = Mapping[str, Any]  # what runtime/machine.py reads at one edge of a slot


@dataclass(frozen=True)
class LegResult:
    """One completed leg: the work done in the measured stretch, and what it started and ended with.

    units of `unit` in elapsed_sec; steps are optimiser steps. loss_curve: (units, loss). A loss
    that was missing or not finite is None. deterministic: the workload says that equal steps give
    equal bits on this device.
    """

    unit: str
    units: float
    steps: int
    elapsed_sec: float
    setup_sec: float
    warmup_sec: float
    warmup_units: float
    final_loss: float | None
    loss_curve: tuple[tuple[float, float | None], ...]
    throughput_curve: tuple[tuple[float, float], ...]
    workload_digest: str
    initial_digest: str
    output_sha256: str | None  # None: withheld, of a private job
    output_differs: bool
    start: Machine
    end: Machine
    device: str
    unit_info: Mapping[str, Any] = field(default_factory=dict)
    disturbed: tuple[str, ...] = ()
    cpu_sec: float | None = None  # of the training process, in the measured stretch
    total_cpu_sec: float | None = None  # from building the session to the end of training

    @property
    def per_sec(self) -> float:
        """Units per measured second; 0 where nothing was measured."""
        return self.units / self.elapsed_sec if self.elapsed_sec > 0 else 0.0

    @property
    def trained_steps(self) -> float:
        """Optimiser steps taken from the start, those of the warm-up included."""
        return (
            self.steps / self.units * (self.units + self.warmup_units)
            if self.units > 0
            else float(self.steps)
        )

    @property
    def deterministic(self) -> bool:
        """Whether the workload declares equal steps to give equal bits here."""
        return self.unit_info.get("deterministic") is True


@dataclass(frozen=True)
class Needle:
    """One class of bytes searched for in one process: hits while live, hits after the wipe.

    on_device: taken from a device's memory, which no search of a process reaches. Host memory is searched
    for it, and need not have held it.
    """

    name: str
    positive_control: int
    after: int
    on_device: bool = False


@dataclass(frozen=True)
class Zeroization:
    """What the runtime reported when it wiped: signed by the event key, last event of the chain.

    unwiped names buffer classes whose read-back was not all zero; device_cache is what became of device
    memory that was freed before (released, kept, none); exits are those of trainer and custodian as their
    supervisor reaped them, None where it did not.
    """

    unwiped: tuple[str, ...]
    needles: tuple[Needle, ...]
    residue_scanned: bool
    unscanned_regions: int
    trainer_exit: int | None
    custodian_exit: int | None
    tmpfs_removed: bool
    device_cache: str | None = None


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
    zeroization: Zeroization | None
    boot_id: str = ""  # as the controller read it before the launch
    file_barrier: str = ""  # claim `fs`: landlock | none
    swap_kib: int | None = None


@dataclass(frozen=True)
class Launch:
    """One attempt at a slot. `number` counts from 1; timings are seconds by phase name."""

    number: int
    status: Literal["complete", "failed"]
    code: str | None
    started_at: float
    ended_at: float
    timings: Mapping[str, float]
    raw_files_removed: bool | None
    result: LegResult | None
    lifecycle: Lifecycle | None


@dataclass(frozen=True)
class SlotFacts:
    """One planned slot and every launch made for it, in order."""

    plan: Slot
    launches: tuple[Launch, ...]

    @property
    def final(self) -> Launch | None:
        """The launch that counts: the complete one, else the last."""
        complete = [launch for launch in self.launches if launch.status == "complete"]
        return next(reversed(complete or self.launches), None)

    @property
    def complete(self) -> bool:
        """Whether a launch completed with a result."""
        return self.result is not None

    @property
    def result(self) -> LegResult | None:
        """The result that counts."""
        final = self.final
        return final.result if final is not None and final.status == "complete" else None

    @property
    def name(self) -> str:
        """The leg's id."""
        return f"s{self.plan.index:03d}-{self.plan.arm}"


@dataclass(frozen=True)
class AllocationFacts:
    """The machine as the provider and the controller saw it before anything was sealed."""

    provider: str
    gpu_model: str | None
    instance_id: str | None
    tier: str | None
    host_key_source: str
    image_digest: str
    allocation_sha256: str
    machine: Machine | None
    usd_per_hour: float | None = None
    rented_at: float | None = None  # Unix seconds


@dataclass(frozen=True)
class ReleaseFacts:
    """What was found when the allocation was given back, looked at twice."""

    proof: Literal["zero", "nonzero", "unknown"]
    active: int | None
    pod_folder_removed: bool | None
    processes_left: int | None
    looked_at: float | None = None  # Unix seconds of the last look


@dataclass(frozen=True)
class RunFacts:
    """Everything the rules may look at. `failures` are reason codes of the run outside any leg.

    simulated: a fake provider rented it out, so it measures nothing.
    rented_at: Unix seconds before the create call of a machine that never came to be an allocation.
    """

    run: str
    version: str
    serial: int
    spec: RunSpec
    slots: tuple[SlotFacts, ...]
    allocation: AllocationFacts | None
    release: ReleaseFacts | None
    failures: tuple[str, ...] = ()
    witnesses: tuple[str, ...] = ()
    simulated: bool = False
    rented_at: float | None = None

    def of(self, arm: str) -> tuple[SlotFacts, ...]:
        """Slots that count (no burn-in) of one arm."""
        return tuple(slot for slot in self.slots if slot.plan.arm == arm and not slot.plan.burn_in)

    def results(self, arm: str) -> tuple[LegResult, ...]:
        """Results of the complete slots that count of one arm."""
        return tuple(slot.result for slot in self.of(arm) if slot.result is not None)

    @property
    def all_results(self) -> tuple[tuple[SlotFacts, LegResult], ...]:
        """Every complete slot with its result, burn-in included, in order of execution."""
        return tuple((slot, slot.result) for slot in self.slots if slot.result is not None)

    @property
    def lifecycles(self) -> tuple[tuple[SlotFacts, Launch, Lifecycle], ...]:
        """Every protected launch, failed ones and burn-in included."""
        return tuple(
            (slot, launch, launch.lifecycle)
            for slot in self.slots
            for launch in slot.launches
            if launch.lifecycle is not None
        )
