"""Facts of a good run, and ways to spoil one thing in them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from glasshouse.judgement.facts import (
    AllocationFacts,
    Launch,
    LegResult,
    Lifecycle,
    Needle,
    ReleaseFacts,
    RunFacts,
    SlotFacts,
    Zeroization,
)
from glasshouse.measurement.schedule import Slot, build_schedule
from glasshouse.spec import RunSpec
from tests.specs import make_spec

BOOT = "boot-1"
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


def machine(**changes: Any) -> dict[str, Any]:
    values = {
        "bootId": BOOT, "hostnameDigest": "h", "allocation": "a", "gpuNames": [], "gpuUuids": [],
        "pciBusIds": [], "driver": "", "eccUncorrected": [], "uptimeSec": 1000.0, "cpuModel": "c",
    }  # fmt: skip
    return values | changes


def result(slot: Slot, rate: float = 1000.0, **changes: Any) -> LegResult:
    seconds = slot.measured_sec or (slot.steps or 0) / (20 * rate)
    units = round(rate * seconds)
    start = machine(uptimeSec=2000.0 * (slot.index + 1))
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
        "start": start,
        "end": start | {"uptimeSec": start["uptimeSec"] + 1800},
        "device": "cpu",
    }
    return LegResult(**values | changes)


def zeroization(**changes: Any) -> Zeroization:
    values: dict[str, Any] = {
        "unwiped": (),
        "needles": (
            Needle("payload-key-prefix", 2, 0),
            Needle("payload-key-prefix", 0, 0),
            Needle("marker", 1, 0),
        ),
        "residue_scanned": True,
        "unscanned_regions": 0,
        "trainer_exit": 0,
        "custodian_exit": 0,
        "tmpfs_removed": True,
    }
    return Zeroization(**values | changes)


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


def launch(slot: Slot, **changes: Any) -> Launch:
    values: dict[str, Any] = {
        "number": 1,
        "status": "complete",
        "code": None,
        "started_at": 10_000.0 * (slot.index + 1),
        "ended_at": 10_000.0 * (slot.index + 1) + 1900,
        "timings": {"sealSec": 1.0, "uploadSec": 2.0, "unsealSec": 0.5}
        if slot.lifecycle
        else {"uploadSec": 3.0},
        "raw_files_removed": None if slot.lifecycle else True,
        "result": result(slot),
        "lifecycle": lifecycle() if slot.lifecycle else None,
    }
    return Launch(**values | changes)


def failed(slot: Slot, code: str, **changes: Any) -> Launch:
    return launch(slot, **{"status": "failed", "code": code, "result": None} | changes)


def facts(spec: RunSpec | None = None, **changes: Any) -> RunFacts:
    chosen = spec or ssh_spec()
    values: dict[str, Any] = {
        "run": "20260102-030405-abcdef",
        "version": "0.1.0",
        "serial": 3,
        "spec": chosen,
        "slots": tuple(SlotFacts(slot, (launch(slot),)) for slot in build_schedule(chosen)),
        "allocation": AllocationFacts(
            chosen.provider.kind, None, None, None, "created", "", "0" * 64, machine()
        ),
        "release": ReleaseFacts("zero", 0, True, 0),
    }
    return RunFacts(**values | changes)


def with_launches(found: RunFacts, index: int, *launches: Launch) -> RunFacts:
    slots = list(found.slots)
    slots[index] = replace(slots[index], launches=launches)
    return replace(found, slots=tuple(slots))


def with_result(found: RunFacts, index: int, **changes: Any) -> RunFacts:
    done = found.slots[index].launches[-1]
    assert done.result is not None
    return with_launches(found, index, replace(done, result=replace(done.result, **changes)))


def with_lifecycle(found: RunFacts, index: int, **changes: Any) -> RunFacts:
    done = found.slots[index].launches[-1]
    assert done.lifecycle is not None
    return with_launches(found, index, replace(done, lifecycle=replace(done.lifecycle, **changes)))


def on_gpu(found: RunFacts, **changes: Any) -> RunFacts:
    """The same run with every leg on one H100."""
    gpu = {
        "gpuNames": ["NVIDIA H100 80GB HBM3"], "gpuUuids": ["GPU-1"], "pciBusIds": ["00:1"], "driver": "580",
        "eccUncorrected": ["0"],
    } | changes  # fmt: skip
    for index, slot in enumerate(found.slots):
        if slot.result is not None:
            edges = {"start": {**slot.result.start, **gpu}, "end": {**slot.result.end, **gpu}}
            found = with_result(found, index, device="cuda", **edges)
    assert found.allocation is not None
    seen = replace(found.allocation, gpu_model="NVIDIA H100 80GB HBM3", machine=machine(**gpu))
    return replace(found, allocation=seen)
