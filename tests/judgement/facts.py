"""Facts of a good run, and ways to spoil one thing in them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from glasshouse.judgement.facts import LaunchFacts, Lifecycle, RunFacts, SlotFacts
from glasshouse.measurement.schedule import build_schedule
from glasshouse.schema import (
    Allocation,
    Buffers,
    GpuSample,
    Launch,
    Machine,
    Needle,
    Release,
    Result,
    Sample,
    Slot,
    Zeroized,
)
from glasshouse.spec import RunSpec
from tests.specs import make_spec

BOOT = "boot-1"
EDGES = ("machine_start", "machine_end")
THROTTLED = (Sample(gpu=(GpuSample(throttle="0x0000000000000008"),)),)  # telemetry of a disturbed leg
H100 = {
    "name": "h100",
    "provider_names": {"runpod": "NVIDIA H100 80GB HBM3", "driver": "NVIDIA H100 80GB HBM3"},
    "peak_bf16_tflops": 989.0,
    "memory_gbps": 3350.0,
}
LORA = {
    "kind": "lora", "name": "qwen", "model_id": "Qwen/x", "learning_rate": 1e-5,
    "architecture": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100},
}  # fmt: skip


def ssh_spec(**changes: Any) -> RunSpec:
    """A pair of half an hour an arm, on a machine of our own."""
    provider = {"kind": "ssh", "host": "withheld", "user": "withheld", "key": "withheld"}
    return make_spec(**{"provider": provider, "gpu": {"name": "auto"}, "duration": 1800.0} | changes)


def machine(**changes: Any) -> Machine:
    values = {
        "boot_id": BOOT, "hostname_digest": "h", "allocation": "a", "gpu_names": (), "gpu_uuids": (),
        "pci_bus_ids": (), "driver": "", "ecc_uncorrected": (), "uptime_sec": 1000.0, "cpu_model": "c",
    }  # fmt: skip
    return Machine(**values | changes)


def result(slot: Slot, rate: float = 1000.0, **changes: Any) -> Result:
    seconds = slot.measured_sec or (slot.steps or 0) / (20 * rate)
    units = round(rate * seconds)
    start = machine(uptime_sec=2000.0 * (slot.index + 1))
    values: dict[str, Any] = {
        "unit": "epochs",
        "units": units,
        "steps": units * 20,
        "elapsed_sec": seconds,
        "setup_sec": 0.5,
        "warmup_sec": slot.warmup_sec,
        "warmup_units": 9,
        "final_loss": 0.5,
        "loss_curve": ((1.0, 0.9), (float(units), 0.5)),
        "throughput_curve": ((seconds, float(units)),),
        "workload_digest": "w",
        "initial_digest": "i",
        "output_sha256": f"o{slot.index}",
        "output_differs": True,
        "unit_info": {},
        "machine_start": start,
        "machine_end": start.model_copy(update={"uptime_sec": start.uptime_sec + 1800}),
        "device": "cpu",
    }
    return Result.model_construct(**values | changes)  # short words stand for digests


def needle(name: str, live: int, after: int, where: str = "trainer/heap") -> Needle:
    return Needle(name=name, where=where, positive_control=live, after=after)


def zeroization(unwiped: tuple[str, ...] = (), device_cache: str | None = None, **changes: Any) -> Zeroized:
    wiped = {name: Buffers(read_back_zero=name not in unwiped) for name in ("host", "device", "package")}
    wiped["device"] = wiped["device"].model_copy(update={"cache": device_cache})
    values: dict[str, Any] = {
        "buffers": wiped,
        "needles": (
            needle("payload-key-prefix", 2, 0),
            needle("payload-key-prefix", 0, 0),
            needle("marker", 1, 0),
        ),
        "residue": "scanned",
        "unscanned_regions": 0,
        "trainer_exit": 0,
        "custodian_exit": 0,
        "tmpfs_removed": True,
    }
    return Zeroized(**values | changes)


def lifecycle(**changes: Any) -> Lifecycle:
    values: dict[str, Any] = {
        "attestation": (),
        "released": True,
        "chain": (),
        "max_gap_sec": 1.5,
        "zeroization": zeroization(),
        "boot_id": BOOT,
        "file_barrier": "landlock",
        "swap_kib": 0,
    }
    return Lifecycle(**values | changes)


def launch(slot: Slot, **changes: Any) -> LaunchFacts:
    number, read = changes.pop("number", 1), {"result", "lifecycle"}
    written = {
        "slot": slot.index,
        "arm": slot.arm,
        "launch": number,
        "status": "complete",
        "code": None,
        "started_at": 10_000.0 * (slot.index + 1),
        "ended_at": 10_000.0 * (slot.index + 1) + 1900,
        "timings": {"sealSec": 1.0, "uploadSec": 2.0, "unsealSec": 0.5}
        if slot.lifecycle
        else {"uploadSec": 3.0},
        "raw_files_removed": None if slot.lifecycle else True,
    } | {name: value for name, value in changes.items() if name not in read}
    found = {"result": result(slot), "lifecycle": lifecycle() if slot.lifecycle else None}
    found |= {name: value for name, value in changes.items() if name in read}
    return LaunchFacts(Launch(**written), written["code"], **found)


def failed(slot: Slot, code: str, **changes: Any) -> LaunchFacts:
    return launch(slot, **{"status": "failed", "code": code, "result": None} | changes)


def facts(spec: RunSpec | None = None, **changes: Any) -> RunFacts:
    chosen = spec or ssh_spec()
    values: dict[str, Any] = {
        "run": "20260102-030405-abcdef",
        "version": "0.1.0",
        "serial": 3,
        "spec": chosen,
        "slots": tuple(SlotFacts(slot, (launch(slot),)) for slot in build_schedule(chosen)),
        "allocation": allocation(chosen.provider.kind),
        "release": release(),
    }
    return RunFacts(**values | changes)


def allocation(provider: Any = "ssh", **changes: Any) -> Allocation:
    values: dict[str, Any] = {
        "provider": provider, "gpu_model": None, "instance_id": None, "tier": None,
        "host_key_source": "created", "image_digest": "", "usd_per_hour": None,
        "allocation_id_sha256": "0" * 64, "machine": machine(),
    }  # fmt: skip
    return Allocation(**values | changes)


def release(**changes: Any) -> Release:
    values: dict[str, Any] = {
        "proof": "zero", "active": 0, "detail": "", "account_total": None, "pod_folder_removed": True,
        "processes_left": 0, "checked_at": (),
    }  # fmt: skip
    return Release(**values | changes)


def with_launches(found: RunFacts, index: int, *launches: LaunchFacts) -> RunFacts:
    slots = list(found.slots)
    slots[index] = replace(slots[index], launches=launches)
    return replace(found, slots=tuple(slots))


def with_result(found: RunFacts, index: int, **changes: Any) -> RunFacts:
    done = found.slots[index].launches[-1]
    assert done.result is not None
    return with_launches(found, index, replace(done, result=done.result.model_copy(update=changes)))


def with_lifecycle(found: RunFacts, index: int, **changes: Any) -> RunFacts:
    done = found.slots[index].launches[-1]
    assert done.lifecycle is not None
    return with_launches(found, index, replace(done, lifecycle=replace(done.lifecycle, **changes)))


def on_gpu(found: RunFacts, **changes: Any) -> RunFacts:
    """The same run with every leg on one H100."""
    gpu = {
        "gpu_names": ("NVIDIA H100 80GB HBM3",), "gpu_uuids": ("GPU-1",), "pci_bus_ids": ("00:1",),
        "driver": "580", "ecc_uncorrected": ("0",),
    } | changes  # fmt: skip
    for index, slot in enumerate(found.slots):
        if slot.result is not None:
            edges = {edge: getattr(slot.result, edge).model_copy(update=gpu) for edge in EDGES}
            found = with_result(found, index, device="cuda", **edges)
    assert found.allocation is not None
    seen = {"gpu_model": "NVIDIA H100 80GB HBM3", "machine": machine(**gpu)}
    return replace(found, allocation=found.allocation.model_copy(update=seen))
