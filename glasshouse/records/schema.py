"""The shapes of a bundle's files, strict: what the controller writes is an allow-list.

Hosts, ports, accounts and paths have no field here, so they cannot enter a bundle. Reports that the
pod signed (leg results, zeroization) are read for what is judged; the rest of them is kept as it is.
Units are in the names: Sec seconds, Usd US dollars; times are Unix seconds.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny
from pydantic.alias_generators import to_camel

from glasshouse.canonical import canonical_json
from glasshouse.spec import Arm, RunSpec

Hex64 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Code = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9\-]{0,63}$")]
RunId = Annotated[str, Field(pattern=r"^20\d{6}-\d{6}-[a-z2-7]{6}$")]
Words = Annotated[str, Field(max_length=120, pattern=r"^[A-Za-z0-9 ._:+()\[\]\-]*$")]
Seconds = Annotated[float, Field(ge=0, le=10_000_000)]
Names = Annotated[tuple[Words, ...], Field(max_length=64)]
# Digits, or what nvidia-smi prints for a GPU that does not count: [N/A], [Not Supported].
Counter = Annotated[str, Field(pattern=r"^([0-9]{0,20}|\[[A-Za-z/ ]{1,40}\])$")]
Counters = Annotated[tuple[Counter, ...], Field(max_length=64)]
Work = Annotated[int, Field(ge=0, le=10**15)]  # whole units: a leg ends on one
Loss = Annotated[float, Field(ge=-1e15, le=1e15)]
Time = Annotated[float, Field(ge=0, le=1e11)]
Count = Annotated[int, Field(ge=0)]
Timings = dict[Annotated[str, Field(pattern=r"^[a-zA-Z0-9]{1,40}$")], Seconds]


class Written(BaseModel):
    """Base of what the controller writes: camelCase in the file, no unknown keys, no coercion."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        allow_inf_nan=False,
    )

    def to_bytes(self) -> bytes:
        """Return the file: canonical JSON of the fields that were given. One left to its default is left out,
        one that was given as None is null.
        """
        return canonical_json(self.model_dump(by_alias=True, exclude_unset=True))


class Signed(Written):
    """Base of what the pod signed: fields beyond those judged are allowed."""

    model_config = ConfigDict(extra="ignore")


class SlotPlan(BaseModel):
    """A planned slot, with the field names of measurement/schedule.py's Slot."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    index: Count
    block: Count | None
    position: Count
    arm: Arm
    lifecycle: bool
    warmup_sec: float
    measured_sec: float | None
    steps: int | None
    burn_in: bool
    delay_pct: float


class Machine(Signed):
    """What runtime/machine.py reads of a machine, or as much of it as the controller read itself.

    Counters are as nvidia-smi prints them: digits, or words for a GPU that does not count.
    """

    boot_id: Words
    allocation: Words
    uptime_sec: Seconds
    driver: Words
    hostname_digest: Words = ""
    gpu_names: Names = ()
    gpu_uuids: Names = ()
    pci_bus_ids: Names = ()
    ecc_uncorrected: Counters = ()
    cpu_model: Annotated[str, Field(max_length=200)] = ""

    def plain(self) -> dict[str, Any]:
        """Return the fields that were there, by their names in the file."""
        return self.model_dump(by_alias=True, exclude_unset=True)


class SeenMachine(Machine):
    """As much of a machine as the controller reads over its own connection."""

    cpu_count: Count
    kernel: Annotated[str, Field(max_length=400)]


class GpuSample(Signed):
    """Telemetry of one GPU at one moment, as nvidia-smi prints it."""

    sm_mhz: Annotated[str, Field(max_length=40)] = ""
    throttle: Annotated[str, Field(max_length=40)] = ""


class Sample(Signed):
    """Telemetry at one moment; shares in percent of the whole machine."""

    others_pct: float = 0.0
    steal_pct: float = 0.0
    other_processes: Count = 0
    gpu: Annotated[tuple[GpuSample, ...], Field(max_length=64)] = ()


class Plan(Written):
    """The plan's predicate: everything that was fixed before anything was rented."""

    run: RunId
    spec: RunSpec
    schedule: tuple[SlotPlan, ...]
    serial: Count
    registered_at: Time
    version: Words


class Allocation(Written):
    """allocation.json. `machine` is the controller's own look at the machine, None if it never came up.

    rented_at: just before the create call of a paid provider, from when it may bill.
    """

    provider: Literal["local", "ssh", "runpod", "vastai"]
    gpu_model: Words | None
    instance_id: Words | None
    tier: Words | None
    host_key_source: Literal["created", "pinned", "provider-log", "first-use"]
    image_digest: Annotated[str, Field(pattern=r"^(sha256:[0-9a-f]{64})?$")]
    usd_per_hour: Annotated[float, Field(ge=0)] | None
    allocation_id_sha256: Hex64
    machine: SerializeAsAny[Machine] | None
    rented_at: Time | None = None


class Release(Written):
    """release.json: what was found when the allocation was given back, at each time looked."""

    proof: Literal["zero", "nonzero", "unknown"]
    active: Count | None
    detail: Annotated[str, Field(max_length=300)]
    account_total: Count | None
    pod_folder_removed: bool | None
    processes_left: Count | None
    checked_at: tuple[Time, ...]


class Outcome(Written):
    """outcome.json: what ended the run outside any leg (empty: nothing did), and its times.

    simulated: a fake provider answered; such a run measures nothing, however it ended.
    rented_at: before the create call of a machine that billed and never came to an allocation.json.
    """

    codes: tuple[Code, ...]
    started_at: Time
    ended_at: Time
    simulated: bool = False
    rented_at: Time | None = None


class Launch(Written):
    """launch.json: one attempt at a slot, by the controller's clock."""

    slot: Count
    arm: Arm
    launch: Annotated[int, Field(ge=1, le=999)]
    status: Literal["complete", "failed"]
    code: Code | None
    timings: Timings
    raw_files_removed: bool | None
    started_at: Time
    ended_at: Time


class Exchange(Written):
    """exchange.json, as the broker recorded it; grant None and reason codes when it refused."""

    ticket_sha256: Hex64
    challenge: str
    launch_token: str
    evidence: str
    ear: str
    grant: str | None
    reason_codes: tuple[Code, ...]


class Inclusion(Written):
    """inclusion.json: a checkpoint note that covers the plan's leaf, and the leaf's audit path."""

    checkpoint: Annotated[str, Field(max_length=64 << 10)]
    proof: Annotated[tuple[Hex64, ...], Field(max_length=64)]


class Head(Written):
    """One line of heads.jsonl: the operator's countersignature of an event chain's head."""

    run: RunId
    leg: str
    launch: Count
    seq: Count
    head: Hex64
    time: Time
    sig: str


class Result(Signed):
    """A leg's result: result.json of a raw leg, the event `trained` of a protected one."""

    unit: Words
    units: Work
    steps: Count
    elapsed_sec: Annotated[float, Field(gt=1e-6, le=10_000_000)]
    setup_sec: Seconds
    warmup_sec: Seconds
    warmup_units: Work
    final_loss: Loss | None
    loss_curve: Annotated[tuple[tuple[Work, Loss | None], ...], Field(max_length=1000)]
    throughput_curve: Annotated[tuple[tuple[Seconds, Work], ...], Field(max_length=1000)]
    workload_digest: Hex64
    initial_digest: Hex64
    output_sha256: Hex64 | None = None  # withheld of a private job, as are sizes and the loss curve
    output_differs: bool
    unit_info: Annotated[dict[Words, bool | int | float | Words | None], Field(max_length=64)]
    machine_start: Machine
    machine_end: Machine
    device: Words
    telemetry: Annotated[tuple[Sample, ...], Field(max_length=1000)] = ()
    cpu_sec: Seconds | None = None
    total_cpu_sec: Seconds | None = None


class Ended(Signed):
    """result.json of a leg: what the controller believes of how it ended. Nobody signed it.

    events_head and event_count: what the chain of a protected leg must come to.
    """

    status: Literal["complete", "failed"]
    code: Code | None = None
    reason_codes: Annotated[tuple[Code, ...], Field(max_length=64)] = ()
    timings: Timings = {}
    events_head: Hex64 | None = None
    event_count: Count | None = None


class BufferReport(Signed):
    """Registered buffers of one kind after the wipe; of the device's, what became of memory freed before."""

    read_back_zero: bool
    cache: Annotated[str, Field(max_length=200)] | None = None


class NeedleReport(Signed):
    """One class of needle: hits while live, hits after the wipe; where: process, and place of the bytes."""

    class_: Annotated[Words, Field(alias="class")]
    where: Annotated[str, Field(max_length=200)] = ""
    positive_control: Count
    after: Count


class Zeroized(Signed):
    """Body of the last event of a whole chain."""

    buffers: dict[Words, BufferReport]
    needles: tuple[NeedleReport, ...]
    residue: Literal["scanned", "not-scanned"]
    unscanned_regions: Count
    trainer_exit: int | None
    custodian_exit: int | None
    tmpfs_removed: bool
