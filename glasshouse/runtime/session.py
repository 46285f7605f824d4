"""What a workload is to the runtime, and what is measured of it.

A workload is a module with `build(config, tensors, device) -> session`; a session has

    unit: str                       what is counted: "epochs", "steps"
    steps_per_unit: int             optimiser steps in one unit
    info: dict                      rows, tokens, FLOPs a unit; parameter counts
    run_unit() -> None              do one unit; may return before the device has finished
    synchronize() -> None           wait for the device
    loss() -> float                 the latest loss (synchronises)
    trainable() -> dict[str, Tensor]   what is trained, in a fixed order
    buffers() -> list[Tensor]       everything that holds data, weights or their descendants
    given() -> dict[str, Tensor]    optional: what else both arms must begin with, such as the token stream
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

SESSION_PARTS = (
    "unit", "steps_per_unit", "info", "run_unit", "synchronize", "loss", "trainable", "buffers",
)  # fmt: skip

Report = Callable[[str, dict[str, Any]], None]


class Session(Protocol):
    """What a workload builds; see the module's docstring."""

    unit: str
    steps_per_unit: int
    info: dict[str, Any]

    def run_unit(self) -> None: ...  # noqa: D102 -- described above, once
    def synchronize(self) -> None: ...  # noqa: D102
    def loss(self) -> float: ...  # noqa: D102
    def trainable(self) -> dict[str, Any]: ...  # noqa: D102
    def buffers(self) -> list[Any]: ...  # noqa: D102


@dataclass(frozen=True)
class Stretch:
    """What to measure: warm-up seconds, then `measured_sec` seconds or `steps` optimiser steps."""

    warmup_sec: float
    measured_sec: float | None
    steps: int | None
    delay_pct: float = 0.0

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Stretch:
        """Read a slot's timing from launch parameters."""
        return cls(
            warmup_sec=float(value["warmup_sec"]),
            measured_sec=None if value["measured_sec"] is None else float(value["measured_sec"]),
            steps=None if value["steps"] is None else int(value["steps"]),
            delay_pct=float(value.get("delay_pct", 0.0)),
        )
