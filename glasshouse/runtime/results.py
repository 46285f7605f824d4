"""What a leg reports, as values: its result, what was wiped and searched, and how it ended.

Their JSON (canonical.record_json) is what stands in events.jsonl and result.json, and what schema.py
reads. Part of the archive that runs on the pod: standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_OPTIONAL = {"optional": True}


@dataclass(frozen=True)
class MachineReading:
    """The machine as the same-machine proof needs it; measurement/telemetry.py compares two of them.

    One entry a GPU in the lists; uptime in seconds; load_avg1 is the load average over one minute.
    """

    boot_id: str
    hostname_digest: str
    allocation: str
    gpu_names: list[str]
    gpu_uuids: list[str]
    pci_bus_ids: list[str]
    driver: str
    ecc_uncorrected: list[str]
    uptime_sec: float
    cpu_model: str
    cpu_count: int
    kernel: str
    load_avg1: float


@dataclass(frozen=True)
class JobExit:
    """How a project's command ended: with a code, or by a signal, and whether for want of memory or time."""

    code: int | None
    signal: str | None
    out_of_memory: bool
    out_of_time: bool


@dataclass(frozen=True)
class Weights:
    """Salted digests of a sample of what a project trained (64 hex): before its first step, and at the end.

    None: there is none (steps.py says of what).
    """

    first_digest: str | None
    last_digest: str | None


@dataclass(frozen=True)
class LegResult:
    """What one leg measured. Times in seconds; curves are pairs [units, loss] and [seconds, units].

    units is no whole number where the steps asked for were none of units. warmup_units: of the warm-up, those
    that what is returned has made as well; undone_units: those that were undone, None without a warm-up.

    Digests are salted, but for output_sha256: that of the outputs as a safetensors file of output_bytes.
    """

    unit: str
    units: int | float
    steps: int
    elapsed_sec: float
    setup_sec: float
    warmup_sec: float
    warmup_units: int
    delay_pct: float
    final_loss: float | None  # None: of a project, which reports none
    loss_curve: list[list[float]]
    throughput_curve: list[list[float]]
    initial_digest: str
    output_digest: str
    output_differs: bool
    output_sha256: str
    output_bytes: int
    workload_digest: str
    unit_info: Mapping[str, Any]  # the workload's own numbers
    machine_start: MachineReading
    machine_end: MachineReading
    cpu_sec: float
    total_cpu_sec: float
    device: str
    telemetry: Sequence[Mapping[str, Any]]  # machine.Telemetry
    exit: JobExit | None = field(default=None, metadata=_OPTIONAL)  # of a project, as is the next
    weights: Weights | None = field(default=None, metadata=_OPTIONAL)  # where it counted steps
    # Of a project: whether files of its outputs could not be carried, too large ones as a rule.
    left_out: bool | None = field(default=None, metadata=_OPTIONAL)
    undone_units: int | None = field(default=None, metadata=_OPTIONAL)


@dataclass(frozen=True)
class Wiped:
    """Memory of one place that was overwritten: how many pieces, bytes, and whether zeros were read back.

    cache: what became of device memory that was freed before (wipe.release_device_cache); None: not asked.
    """

    count: int = 0
    bytes: int = 0
    read_back_zero: bool = True
    cache: str | None = field(default=None, metadata=_OPTIONAL)


@dataclass(frozen=True)
class WipeReport:
    """What a trainer overwrote: tensors on host and device, other ranks' together, and the package."""

    host: Wiped
    device: Wiped
    ranks: Wiped | None = field(default=None, metadata=_OPTIONAL)
    package: Wiped | None = field(default=None, metadata=_OPTIONAL)


@dataclass(frozen=True)
class Unsealed:
    """What the custodian unsealed, how long that took, where the key lay, and the memory it needed in KiB.

    owner_public_key (base64url) is for the supervisor alone, and no part of the event.
    """

    tensors: int
    files: int
    bytes: int
    unseal_sec: float
    key_at_rest: str
    held_kib: int
    peak_rss_kib: int
    owner_public_key: str


@dataclass(frozen=True)
class NeedleReport:
    """What a search from outside found: one class of needles, in one process, before and after the wipe."""

    klass: str = field(metadata={"json": "class"})
    where: str
    needles: int
    positive_control: int
    after: int


@dataclass(frozen=True)
class Keeping:
    """What became of the keeper: its exit code, negative for a signal, None where it was not reaped.

    ended: `asked`, it ended its work when told to, and its memory was searched; `killed`, it did not; `died`,
    by itself. checkpoints: how many were sealed. missed: how many could not be.
    """

    exit: int | None
    ended: str
    checkpoints: int
    missed: int


@dataclass(frozen=True)
class Zeroized:
    """The last event of a leg that ended well: what was wiped, searched, reaped and removed."""

    buffers: Mapping[str, Any]  # WipeReport, as the trainer said it
    outputs: Mapping[str, Any]  # of the event sealed-outputs
    needles: list[NeedleReport]
    residue: str
    scanned_by: Mapping[str, str]  # role -> how its memory was read
    unscanned_regions: int
    custodian_exit: int
    trainer_exit: int
    strays_killed: int
    tmpfs_removed: bool
    # "ended": the workload's own memory went back with its processes; None: it was overwritten and read back.
    runtime_state: str | None = field(default=None, metadata=_OPTIONAL)
    keeper: Keeping | None = field(default=None, metadata=_OPTIONAL)  # of a job that was to have checkpoints


@dataclass(frozen=True)
class Execs:
    """The programs that a project started by itself: how many, and how that is known.

    counted: `notified`, each call was seen by the supervisor, so there were no more than `started` (a call
    that found no program in the end is among them); `table`, they were looked for among the processes, so
    there were at least as many; `filter`, the kernel refused all, uncounted; `none`, nobody counted.
    refused: tasks whose calls were answered with a refusal.
    """

    started: int
    refused: int
    counted: str


@dataclass(frozen=True)
class ProtectedEnd:
    """result.json of a protected leg; code None: it completed."""

    arm: str
    status: str
    code: str | None
    reason_codes: list[str]
    events_head: str | None
    event_count: int
    timings: Mapping[str, float]


@dataclass(frozen=True)
class RawEnd:
    """result.json of a raw leg; code None: it completed. result is a LegResult, as the trainer said it.

    raw_files_removed: the folder that the workload may write to is gone.
    """

    arm: str
    status: str
    code: str | None
    result: Mapping[str, Any] | None
    raw_files_removed: bool
    timings: Mapping[str, float]
