"""From the parsed shapes of a bundle's files to the values that are judged.

What the pod wrote may be anything: where it is not of its form there is no value, and the run is
judged without it.
"""

from __future__ import annotations

from pydantic import ValidationError

from glasshouse.judgement.facts import AllocationFacts, LegResult, Needle, ReleaseFacts, Zeroization
from glasshouse.measurement.telemetry import disturbed
from glasshouse.records import schema

WIPED = frozenset({"host", "device", "package"})  # what every leg wipes, each with its read-back


def read_result(data: bytes) -> LegResult | None:
    """Read a leg's result; None when it is not of that form.

    The pod wrote it: a report that cannot be read is a leg without result, not a bad bundle.
    """
    try:
        found = schema.Result.model_validate_json(data)
    except ValidationError:
        return None
    edges = (found.machine_start.plain(), found.machine_end.plain())
    samples = [sample.model_dump(by_alias=True, exclude_unset=True) for sample in found.telemetry]
    return LegResult(
        unit=found.unit,
        units=found.units,
        steps=found.steps,
        elapsed_sec=found.elapsed_sec,
        setup_sec=found.setup_sec,
        warmup_sec=found.warmup_sec,
        warmup_units=found.warmup_units,
        final_loss=found.final_loss,
        loss_curve=found.loss_curve,
        throughput_curve=found.throughput_curve,
        workload_digest=found.workload_digest,
        initial_digest=found.initial_digest,
        output_sha256=found.output_sha256,
        output_differs=found.output_differs,
        start=edges[0],
        end=edges[1],
        device=found.device,
        unit_info=found.unit_info,
        disturbed=tuple(disturbed(samples, edges)),
        cpu_sec=found.cpu_sec,
        total_cpu_sec=found.total_cpu_sec,
    )


def read_zeroization(data: bytes) -> Zeroization | None:
    """Read the body of the event `zeroized`; None when it is not of that form."""
    try:
        found = schema.Zeroized.model_validate_json(data)
    except ValidationError:
        return None
    if WIPED - found.buffers.keys():
        return None  # what is not named was not read back, and an empty list is no wipe
    return Zeroization(
        unwiped=tuple(name for name, part in sorted(found.buffers.items()) if not part.read_back_zero),
        needles=tuple(
            Needle(item.class_, item.positive_control, item.after, item.where.startswith("trainer/cuda"))
            for item in found.needles
        ),
        residue_scanned=found.residue == "scanned",
        unscanned_regions=found.unscanned_regions,
        trainer_exit=found.trainer_exit,
        custodian_exit=found.custodian_exit,
        tmpfs_removed=found.tmpfs_removed,
        device_cache=found.buffers["device"].cache,
    )


def allocation_facts(found: schema.Allocation) -> AllocationFacts:
    """Return what the rules look at of allocation.json."""
    return AllocationFacts(
        provider=found.provider,
        gpu_model=found.gpu_model,
        instance_id=found.instance_id,
        tier=found.tier,
        host_key_source=found.host_key_source,
        image_digest=found.image_digest,
        allocation_sha256=found.allocation_id_sha256,
        machine=None if found.machine is None else found.machine.plain(),
        usd_per_hour=found.usd_per_hour,
        rented_at=found.rented_at,
    )


def release_facts(found: schema.Release) -> ReleaseFacts:
    """Return what the rules look at of release.json."""
    return ReleaseFacts(
        proof=found.proof,
        active=found.active,
        pod_folder_removed=found.pod_folder_removed,
        processes_left=found.processes_left,
        looked_at=max(found.checked_at, default=None),
    )


def fields_of(error: ValidationError) -> str:
    """Name the fields at fault, without their values."""
    names = (".".join(str(part) for part in item["loc"]) or "(file)" for item in error.errors())
    return ", ".join(sorted(set(names)))[:300]
