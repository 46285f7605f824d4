"""What the events of a private job leave out: they are published as the pod signs them, so it is cut there.

A digest without a salt lets anyone confirm a guess, and sizes, counts and the course of the loss tell a model
as well as its config does. What a leg reports beyond that goes into its sealed log, for its owner (leg.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

_T = TypeVar("_T")

LOSS_DIGITS = 3  # of the final loss: enough to see that it trained
_UNSEALED = ("unsealSec", "keyAtRest", "keyResidue")
_OUTPUTS = ("plaintextSha256", "ciphertextSha256")  # the first is of salted digests: sealing/outputs.py
_BUFFER = ("readBackZero", "cache")
_RESULT = (
    "unit", "units", "steps", "elapsedSec", "setupSec", "warmupSec", "warmupUnits", "delayPct",
    "throughputCurve", "initialDigest", "outputDigest", "outputDiffers", "workloadDigest", "machineStart",
    "machineEnd", "cpuSec", "totalCpuSec", "device", "telemetry", "exit",
)  # fmt: skip


def shown(kind: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of a private job's event as it may be published."""
    if kind == "unsealed":
        return _only(body, _UNSEALED)
    if kind == "trained":
        return {"result": _result(body["result"])} if isinstance(body.get("result"), Mapping) else {}
    if kind == "sealed-outputs":
        return _only(body, _OUTPUTS)
    if kind == "zeroized":
        buffers = {place: _only(part, _BUFFER) for place, part in body["buffers"].items()}
        return {**body, "buffers": buffers, "outputs": _only(body["outputs"], _OUTPUTS)}
    return dict(body)


def _result(body: Mapping[str, Any]) -> dict[str, Any]:
    """A leg's result without digest and size of outputs, the workload's numbers, the course of the loss."""
    loss = body.get("finalLoss")
    rounded = float(f"{loss:.{LOSS_DIGITS}g}") if isinstance(loss, float) else loss
    return {**_only(body, _RESULT), "finalLoss": rounded, "lossCurve": [], "unitInfo": {}}


def _only(body: Mapping[str, _T], names: tuple[str, ...]) -> dict[str, _T]:
    return {name: body[name] for name in names if name in body}
