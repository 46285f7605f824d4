"""One frozen model for each file of a bundle, and for each report of a pod: what is read is what is judged.

Strict: what the controller writes is an allow-list. Hosts, ports, accounts and paths have no field here, so
they cannot enter a bundle. Reports that the pod signed (leg results, zeroization) are read for what is
judged; the rest of them is kept as it is. Units are in the names: Sec seconds, Usd US dollars; times are
Unix seconds.
"""

from __future__ import annotations

from typing import Annotated, Literal, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError, model_validator
from pydantic.alias_generators import to_camel
from pydantic.dataclasses import dataclass as pydantic_dataclass

from glasshouse.canonical import canonical_json
from glasshouse.spec import Arm, RunSpec

Hex64 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Code = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9\-]{0,63}$")]
RunId = Annotated[str, Field(pattern=r"^20\d{6}-\d{6}-[a-z2-7]{6}$")]
Id = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.\-]{2,159}$")]  # of a published row
Day = Annotated[str, Field(pattern=r"^20\d\d-[01]\d-[0-3]\d$")]
Text = Annotated[str, Field(max_length=2000)]
SealedSalt = Annotated[str, Field(pattern=r"^[A-Za-z0-9_\-]{1558}$")]
Words = Annotated[str, Field(max_length=120, pattern=r"^[A-Za-z0-9 ._:+()\[\]\-]*$")]
Seconds = Annotated[float, Field(ge=0, le=10_000_000)]
Names = Annotated[tuple[Words, ...], Field(max_length=64)]
# What a machine or its tools say in words of their own: a form and a length each, so that nothing else of the
# pod can stand there. Also what a pod's file may hold when it is published (records/pod_strings.py).
CPU_MODEL = r"[A-Za-z0-9 ()@.,+/_\-]{0,120}"
KERNEL = r"[A-Za-z0-9._+~\-]{0,100}"
DRIVER = r"[0-9]{1,5}(?:\.[0-9]{1,5}){1,3}|"
GPU_NAME = r"[A-Za-z0-9 ()./+\-]{1,80}"
GPU_UUID = r"(?:GPU|MIG)-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[A-Z]{3}-[0-9a-f]{1,16}"
GPU_STATE = r"[0-9]{0,9}(?:\.[0-9]{1,6})?|0x[0-9a-fA-F]{1,16}|N/A|\[[A-Za-z/ ]{1,40}\]"
DEVICE_CACHE = r"[a-z][a-z\-]{0,39}"
NEEDLE_PLACE = r"(?:custodian|trainer|keeper)(?:/[a-z]{1,8})?|"
# Digits, or what nvidia-smi prints for a GPU that does not count: [N/A], [Not Supported].
Counter = Annotated[str, Field(pattern=r"^([0-9]{0,20}|\[[A-Za-z/ ]{1,40}\])$")]
Counters = Annotated[tuple[Counter, ...], Field(max_length=64)]
Work = Annotated[int, Field(ge=0, le=10**15)]
Units = (
    Work | Annotated[float, Field(ge=0, le=1e15)]
)  # whole ones, but where steps that are none were asked for
Loss = Annotated[float, Field(ge=-1e15, le=1e15)]
Time = Annotated[float, Field(ge=0, le=1e11)]
Count = Annotated[int, Field(ge=0)]
UnitInfo = bool | int | float | Words | None
Timings = dict[Annotated[str, Field(pattern=r"^[a-zA-Z0-9]{1,40}$")], Seconds]


# camelCase in the file, no unknown keys, no coercion.
STRICT = ConfigDict(
    strict=True,
    extra="forbid",
    alias_generator=to_camel,
    validate_by_name=True,
    validate_by_alias=True,
    allow_inf_nan=False,
)


class Written(BaseModel):
    """Base of what the controller writes: STRICT, and frozen."""

    model_config = ConfigDict(**STRICT, frozen=True)

    def to_bytes(self) -> bytes:
        """Return the file: canonical JSON of the fields that were given. One left to its default is left out,
        one that was given as None is null.
        """
        return canonical_json(self.model_dump(by_alias=True, exclude_unset=True))


class Report(Written):
    """Base of what somebody else wrote, such as the pod: fields beyond those named here are allowed."""

    model_config = ConfigDict(extra="ignore")

    @classmethod
    def read(cls, data: bytes) -> Self | None:
        """Read a report; None when it is not of this form.

        One of the pod's that cannot be read is a leg without it, not a bad bundle.
        """
        try:
            return cls.model_validate_json(data)
        except ValidationError:
            return None

    def said(self, name: str) -> object:
        """Return a field's value, None where the report does not have it: a default is no measurement."""
        return getattr(self, name) if name in self.model_fields_set else None


@pydantic_dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))
class Slot:
    """One timed stretch of one arm, in a process of its own. Its names stand in the plan as they are here.

    index counts from 0 over the whole run, in the order of execution. block counts abba blocks
    from 0 and is None for burn-in slots and for orders without blocks. position counts from 0
    inside the block, the pair, or the burn-in. arm is the role: in a control both roles run
    without lifecycle. warmup_sec runs first and is not counted; then either measured_sec seconds
    (steps None) or exactly `steps` optimiser steps (measured_sec None). A burn_in slot is never
    counted. delay_pct lengthens every step by that share of its own time (positive control).
    """

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


class Machine(Report):
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
    cpu_model: Annotated[str, Field(pattern=rf"^(?:{CPU_MODEL})$")] = ""

    def under(self, seen: Machine) -> Machine:
        """Return this machine with everything in its place that `seen` says; what that does not say stays."""
        return self.model_copy(update={name: getattr(seen, name) for name in seen.model_fields_set})


class SeenMachine(Machine):
    """As much of a machine as the controller reads over its own connection."""

    cpu_count: Count
    kernel: Annotated[str, Field(pattern=rf"^(?:{KERNEL})$")]


class GpuSample(Report):
    """Telemetry of one GPU at one moment, as nvidia-smi prints it."""

    sm_mhz: Annotated[str, Field(pattern=rf"^(?:{GPU_STATE})$")] = ""
    throttle: Annotated[str, Field(pattern=rf"^(?:{GPU_STATE})$")] = ""


class Sample(Report):
    """Telemetry at one moment; shares in percent of the whole machine."""

    others_pct: float = 0.0
    steal_pct: float = 0.0
    other_processes: Count = 0
    gpu: Annotated[tuple[GpuSample, ...], Field(max_length=64)] = ()


class Told(Protocol):
    """What else in a bundle says of the allocation: a launch's reference values."""

    @property
    def host_key(self) -> str:
        """How the SSH host key became known."""

    @property
    def image_digest(self) -> str:
        """The image that was rented, as `sha256:` and hex, "" where there is none."""

    @property
    def boot_id(self) -> str:
        """The boot that the controller saw."""


class Plan(Written):
    """The plan's predicate: everything that was fixed before anything was rented."""

    run: RunId
    spec: RunSpec
    schedule: tuple[Slot, ...]
    serial: Count
    registered_at: Time
    version: Words
    # The salt of what is withheld, wrapped to each of the owner's keys (records/withheld.py).
    sealed_salt: Annotated[tuple[SealedSalt, ...], Field(max_length=16)] | None = None


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

    @property
    def unproven_host_key(self) -> bool:
        """Whether the first SSH host key that was offered was believed."""
        return self.host_key_source == "first-use"

    def agrees(self, told: Told) -> bool:
        """Whether `told` is of this allocation, and of the boot that the controller saw."""
        mine = (self.host_key_source, self.image_digest)
        same = mine == (told.host_key, told.image_digest)
        return same and self.machine is not None and self.machine.boot_id == told.boot_id


class Release(Written):
    """release.json: what was found when the allocation was given back, at each time looked."""

    proof: Literal["zero", "nonzero", "unknown"]
    active: Count | None
    detail: Annotated[str, Field(max_length=300)]
    account_total: Count | None
    pod_folder_removed: bool | None
    processes_left: Count | None
    checked_at: tuple[Time, ...]

    @property
    def looked_at(self) -> float | None:
        """Unix seconds of the last look."""
        return max(self.checked_at, default=None)


class Outcome(Written):
    """outcome.json: what ended the run outside any leg (empty: nothing did), and its times.

    simulated: a fake provider answered; such a run measures nothing, however it ended.
    rented_at: before the create call of a machine that billed and never came to an allocation.json.
    taken_up_at: when another process took up a job whose controller had ended before it.
    """

    codes: tuple[Code, ...]
    started_at: Time
    ended_at: Time
    simulated: bool = False
    rented_at: Time | None = None
    taken_up_at: Time | None = None


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


class JobExit(Report):
    """How a project's command ended, as the trainer saw its process end: by a code, or by a signal."""

    code: Annotated[int, Field(ge=0, le=255)] | None
    signal: Words | None
    out_of_memory: bool
    out_of_time: bool

    @property
    def words(self) -> str:
        """It in words, without a subject: `ended with 7`."""
        if self.out_of_time:
            return "was ended at the end of its time"
        if self.signal is not None:
            return f"was killed by {self.signal}" + (", for want of memory" if self.out_of_memory else "")
        return f"ended with {self.code}"

    @property
    def short(self) -> str:
        """The same in few words, for a table: `with 7`."""
        if self.out_of_time:
            return "its time was over"
        if self.signal is not None:
            return f"by {self.signal}" + (", memory" if self.out_of_memory else "")
        return f"with {self.code}"

    @property
    def well(self) -> bool:
        """Whether it did what it was for."""
        return self.code == 0 and not self.out_of_time


def steps_words(steps: int) -> str:
    """How many optimizer steps, in words."""
    return f"{steps} optimizer step{'' if steps == 1 else 's'}"


class Weights(Report):
    """Salted digests of a sample of what a project trained: before its first step, and at its end."""

    first_digest: Hex64 | None
    last_digest: Hex64 | None

    @property
    def words(self) -> str:
        """What they tell, in words."""
        if self.first_digest is None or self.last_digest is None:
            return "whether its weights changed was not seen"
        return "its weights, where sampled, " + (
            "did not change" if self.first_digest == self.last_digest else "changed"
        )


class Result(Report):
    """A leg's result: result.json of a raw leg, the event `trained` of a protected one.

    The work done in the measured stretch, and what it started and ended with: `units` of `unit` in
    elapsed_sec; steps are optimiser steps. loss_curve: (units, loss); throughput_curve: (seconds, units). A
    loss that was missing or not finite is None. A private job's is withheld: in its place loss_finite says
    whether it was. cpu_sec: of the training process, in the measured stretch; total_cpu_sec: from building
    the session to the end of training.
    """

    unit: Words
    units: Units
    steps: Count
    elapsed_sec: Annotated[float, Field(gt=1e-6, le=10_000_000)]
    setup_sec: Seconds
    warmup_sec: Seconds
    warmup_units: Work
    final_loss: Loss | None
    loss_finite: bool | None = None
    loss_curve: Annotated[tuple[tuple[Work, Loss | None], ...], Field(max_length=1000)]
    throughput_curve: Annotated[tuple[tuple[Seconds, Work], ...], Field(max_length=1000)]
    workload_digest: Hex64
    initial_digest: Hex64
    output_sha256: Hex64 | None = None  # withheld of a private job, as are sizes and losses
    output_differs: bool
    unit_info: Annotated[dict[Words, UnitInfo], Field(max_length=64)]
    machine_start: Machine
    machine_end: Machine
    device: Words
    telemetry: Annotated[tuple[Sample, ...], Field(max_length=1000)] = ()
    cpu_sec: Seconds | None = None
    total_cpu_sec: Seconds | None = None
    exit: JobExit | None = None  # of a project, whose command ends by itself
    weights: Weights | None = None  # of a project that counted steps
    left_out: bool | None = None  # of a project: whether files of its outputs could not be carried
    undone_units: Work | None = None

    @property
    def per_sec(self) -> float:
        """Units per measured second; 0 where nothing was measured."""
        return self.units / self.elapsed_sec if self.elapsed_sec > 0 else 0.0

    @property
    def trained_steps(self) -> float:
        """Optimiser steps that what is returned has made from the initial weights.

        Those of a warm-up that was not undone included: of legs of before, whose outputs had made them.
        """
        return (
            self.steps / self.units * (self.units + self.warmup_units)
            if self.units > 0
            else float(self.steps)
        )

    @property
    def withholds(self) -> bool:
        """Whether it leaves out what only a private job's may: its outputs' digest, or its final loss."""
        return self.output_sha256 is None or (self.final_loss is None and self.loss_finite is not None)

    @property
    def deterministic(self) -> bool:
        """Whether the workload declares equal steps to give equal bits on this device."""
        return self.unit_info.get("deterministic") is True


class Ended(Report):
    """result.json of a leg: what the controller believes of how it ended. Nobody signed it.

    events_head and event_count: what the chain of a protected leg must come to.
    """

    status: Literal["complete", "failed"]
    code: Code | None = None
    reason_codes: Annotated[tuple[Code, ...], Field(max_length=64)] = ()
    timings: Timings = {}
    events_head: Hex64 | None = None
    event_count: Count | None = None


class Buffers(Report):
    """Registered buffers of one kind after the wipe; of the device's, what became of memory freed before."""

    read_back_zero: bool
    cache: Annotated[str, Field(pattern=rf"^(?:{DEVICE_CACHE})$")] | None = None


class Needle(Report):
    """One class of bytes searched for in one process: hits while live, hits after the wipe.

    where: process, and place of the bytes.
    """

    name: Annotated[Words, Field(alias="class")]
    where: Annotated[str, Field(pattern=rf"^(?:{NEEDLE_PLACE})$")] = ""
    positive_control: Count
    after: Count

    @property
    def on_device(self) -> bool:
        """Whether it was taken from a device's memory, which no search of a process reaches.

        Host memory is searched for it, and need not have held it.
        """
        return self.where.startswith("trainer/cuda")


WIPED = frozenset({"host", "device", "package"})  # what every leg wipes, each with its read-back


class Hardened(Report):
    """How a trainer was confined before it ran anything: body of an event, signed by the leg's key.

    network: what keeps a project from reaching one, or `open`. reads: what confines what it can read.
    sockets: what keeps named Unix sockets of others away.
    """

    network: Literal["namespace", "seccomp", "open"] | None = None
    reads: Literal["landlock", "mounts", "none"] | None = None
    sockets: Literal["mounts", "landlock", "refused", "none"] | None = None


EXECS_COUNTED = ("none", "table", "filter", "notified")  # the weakest word first


class Execs(Report):
    """The programs that a project started by itself: body of an event, signed by the leg's key.

    counted: how it is known. `notified`: each call was seen, so there were no more than `started`. `table`:
    looked for among the processes, so no fewer. `filter`: the kernel refused all, and nobody counted the
    calls. `none`: not known. refused: how often somebody tried, and was seen to be refused.
    """

    started: Count
    refused: Count
    counted: Literal["notified", "table", "filter", "none"]

    @property
    def shown_none(self) -> bool:
        """Whether it is shown that no program was started."""
        return self.started == 0 and self.counted in ("notified", "filter")

    @property
    def words(self) -> str:
        """What was started, in words: `at least 2 programs`."""
        if self.counted == "none" or (self.counted == "table" and self.started == 0):
            return "programs, if any, that nobody counted"
        many = f"{self.started or 'no'} program{'' if self.started in (0, 1) else 's'}"
        return f"at least {many}" if self.counted == "table" else many


class Keeping(Report):
    """What became of the process that seals checkpoints of a job: its exit, and how its work ended.

    checkpoints: how many it sealed. missed: how many it could not; of a private job whether there were any.
    """

    exit: int | None
    ended: Literal["asked", "killed", "died"]
    checkpoints: Count
    missed: Count

    @property
    def fell_short(self) -> bool:
        """Whether one was not sealed that was to be, or nobody was there to seal it."""
        return self.ended != "asked" or self.missed > 0


class Zeroized(Report):
    """What the runtime reported when it wiped: body of the last event of a whole chain, signed by its key.

    The exits are those of trainer and custodian as their supervisor reaped them, None where it did not.
    """

    buffers: dict[Words, Buffers]
    needles: tuple[Needle, ...]
    residue: Literal["scanned", "not-scanned"]
    unscanned_regions: Count
    trainer_exit: int | None
    custodian_exit: int | None
    tmpfs_removed: bool
    runtime_state: Literal["ended"] | None = None  # of a project: its processes ended, nothing was read back
    keeper: Keeping | None = None  # of a job that was to have checkpoints

    @model_validator(mode="after")
    def _names_every_buffer(self) -> Self:
        """What is not named was not read back, and an empty list is no wipe."""
        if missing := WIPED - self.buffers.keys():
            raise ValueError(f"buffers that no leg is without: {', '.join(sorted(missing))}")
        return self

    @property
    def unwiped(self) -> tuple[str, ...]:
        """Buffer classes whose read-back was not all zero."""
        return tuple(name for name, part in sorted(self.buffers.items()) if not part.read_back_zero)

    @property
    def device_cache(self) -> str | None:
        """What became of device memory that was freed before the wipe: released, kept, none."""
        return self.buffers["device"].cache


def fields_of(error: ValidationError) -> str:
    """Name the fields at fault, without their values."""
    names = (".".join(str(part) for part in item["loc"]) or "(file)" for item in error.errors())
    return ", ".join(sorted(set(names)))[:300]
