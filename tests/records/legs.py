"""How one launch of a made bundle goes: its machine, its result, its last event."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from glasshouse.canonical import sha256_hex
from glasshouse.schema import Slot

BOOT = "9c1f0a52-5f2e-4a0e-9a53-5e8a7f8d2c11"
ALLOCATION = sha256_hex(b"allocation")

EventEdit = Callable[[list[tuple[str, dict[str, Any]]]], list[tuple[str, dict[str, Any]]]]


def machine(uptime: float) -> dict[str, Any]:
    return {
        "bootId": BOOT,
        "hostnameDigest": sha256_hex(b"pod"),
        "allocation": ALLOCATION,
        "gpuNames": [],
        "gpuUuids": [],
        "pciBusIds": [],
        "driver": "",
        "eccUncorrected": [],
        "uptimeSec": uptime,
        "cpuModel": "test",
        "cpuCount": 2,
        "kernel": "6.18",
        "loadAvg1": 0.5,
    }


def leg_result(slot: Slot, rate: float = 10.0, **changes: Any) -> dict[str, Any]:
    seconds = slot.measured_sec if slot.measured_sec is not None else (slot.steps or 0) / (20 * rate)
    units = round(rate * seconds)
    start = 1000.0 + 100.0 * slot.index
    return {
        "unit": "epochs",
        "units": units,
        "steps": units * 20,
        "elapsedSec": seconds,
        "setupSec": 0.5,
        "warmupSec": slot.warmup_sec,
        "warmupUnits": 7,
        "delayPct": slot.delay_pct,
        "finalLoss": 0.25,
        "lossCurve": [[1, 0.9], [units, 0.25]],
        "throughputCurve": [[seconds, units]],
        "workloadDigest": sha256_hex(b"workload"),
        "initialDigest": sha256_hex(b"initial"),
        "outputDigest": sha256_hex(f"salted {slot.index}".encode()),
        "outputSha256": sha256_hex(f"output {slot.index}".encode()),
        "outputBytes": 1000,
        "outputDiffers": True,
        "unitInfo": {"rowsPerUnit": 640, "flopsPerUnit": 1e6, "stepsPerUnit": 20},
        "machineStart": machine(start),
        "machineEnd": machine(start + 60),
        "cpuSec": 1.5,
        "device": "cpu",
        "telemetry": [{"t": 1.0, "othersPct": 2.0, "stealPct": 0.0}],
        **changes,
    }


def zeroized_body(**changes: Any) -> dict[str, Any]:
    wiped = {"count": 4, "bytes": 4096, "readBackZero": True}
    return {
        "buffers": {
            "host": wiped,
            "device": {"count": 0, "bytes": 0, "readBackZero": True},
            "package": {"count": 1, "bytes": 4096, "readBackZero": True},
        },
        "outputs": {"plaintextSha256": sha256_hex(b"o"), "ciphertextSha256": sha256_hex(b"c"), "bytes": 9},
        "needles": [
            {
                "class": "payload-key-prefix",
                "where": "custodian",
                "needles": 1,
                "positiveControl": 3,
                "after": 0,
            },
            {
                "class": "trained-parameter",
                "where": "trainer/cpu",
                "needles": 3,
                "positiveControl": 3,
                "after": 0,
            },
        ],
        "residue": "scanned",
        "unscannedRegions": 0,
        "custodianExit": 0,
        "trainerExit": 0,
        "tmpfsRemoved": True,
        **changes,
    }


@dataclass
class Leg:
    """How one launch goes; the defaults go well. `events` edits (type, body) pairs before they are signed."""

    rate: float = 10.0
    status: str = "complete"
    code: str | None = None
    result: Mapping[str, Any] = field(default_factory=dict)
    zeroized: Mapping[str, Any] = field(default_factory=dict)
    claims: Mapping[str, Any] = field(default_factory=dict)
    reference: Mapping[str, Any] = field(default_factory=dict)
    evidence: Callable[[str], str] = lambda token: token  # what somebody makes of it on its way
    events: EventEdit = lambda items: items
    head_every_sec: float = 1.0
    raw_removed: bool = True
    suffix: str = ""
