"""What the events of a private job leave out: they are published as the pod signs them, so it is cut there.

A digest without a salt lets anyone confirm a guess, and sizes, counts and losses tell a model as well as its
config does. What a leg reports beyond that goes into its sealed log, for its owner (leg.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar

_T = TypeVar("_T")

UNITS = ("epochs", "steps", "units", "job")  # a workload of one's own may count in words of its own
_UNSEALED = ("unsealSec", "keyAtRest", "keyResidue")
_OUTPUTS = ("plaintextSha256", "ciphertextSha256")  # the first is of salted digests: sealing/outputs.py
_CHECKPOINT = ("number", "bytes", "ciphertextSha256", "plaintextSha256", "state", "steps")
_WATCHED = ("number", "bytes", "ciphertextSha256")
_BUFFER = ("readBackZero", "cache")
_NEEDLE = ("class", "where")
_KEEPING = ("exit", "ended", "checkpoints")
_COUNTS = ("straysKilled",)
_RESULT = (
    "units", "steps", "elapsedSec", "setupSec", "warmupSec", "warmupUnits", "delayPct",
    "throughputCurve", "initialDigest", "outputDigest", "outputDiffers", "workloadDigest", "machineStart",
    "machineEnd", "cpuSec", "totalCpuSec", "device", "telemetry", "exit", "weights",
    "leftOut",
)  # fmt: skip


def shown(kind: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of a private job's event as it may be published."""
    if kind == "unsealed":
        return _only(body, _UNSEALED)
    if kind == "trained":
        return {"result": _result(body["result"])} if isinstance(body.get("result"), Mapping) else {}
    if kind == "sealed-outputs":
        return _only(body, _OUTPUTS)
    if kind == "checkpoint-sealed":
        return _only(body, _CHECKPOINT)
    if kind == "watched":
        return _only(body, _WATCHED)
    if kind == "zeroized":
        buffers = {place: _only(part, _BUFFER) for place, part in body["buffers"].items()}
        return {
            **body,
            "buffers": buffers,
            "outputs": _only(body["outputs"], _OUTPUTS),
            "needles": [_needle(needle) for needle in body["needles"]],
            **{name: _whether(body[name]) for name in _COUNTS if name in body},
            **({"keeper": _keeping(body["keeper"])} if "keeper" in body else {}),
        }
    return dict(body)


def _result(body: Mapping[str, Any]) -> dict[str, Any]:
    """A leg's result without digest and size of outputs, the workload's numbers and words, and the loss.

    Of the loss it says whether it was finite; nothing where none was reported.
    """
    loss, unit = body.get("finalLoss"), body.get("unit")
    cut: dict[str, Any] = {"unit": unit if unit in UNITS else "units"}
    cut |= {"finalLoss": None, "lossCurve": [], "unitInfo": {}}
    if isinstance(loss, int | float) and not isinstance(loss, bool):
        cut["lossFinite"] = math.isfinite(loss)
    return {**_only(body, _RESULT), **cut}


def _needle(body: Mapping[str, Any]) -> dict[str, Any]:
    """A class of needles without how many there were: that tells how many tensors, and copies of them."""
    return {
        **_only(body, _NEEDLE),
        "positiveControl": _whether(body["positiveControl"]),
        "after": _whether(body["after"]),
    }


def _keeping(body: Mapping[str, Any]) -> dict[str, Any]:
    """How its keeper ended, without how often it failed."""
    return {**_only(body, _KEEPING), "missed": _whether(body["missed"])}


def _whether(count: int) -> int:
    """1 for any number but 0: the fields are counts, and what is judged is whether there was one."""
    return min(count, 1)


def _only(body: Mapping[str, _T], names: tuple[str, ...]) -> dict[str, _T]:
    return {name: body[name] for name in names if name in body}
