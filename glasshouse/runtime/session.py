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
    run_steps(n) -> None            optional: do n optimiser steps, fewer than a unit has
    state() -> (tensors, values)    optional, as restore(): see below
    restore(tensors, values) -> None

`state()` is all that training goes on from: what is trained, optimizer, step, random and data state, as
(dict[str, Tensor], dict of JSON values). The tensors may be those in use: whoever keeps them copies them.
`restore()` puts back what an earlier `state()` of such a session returned, so that what is trained from there
comes out as it did then; ValueError for names, shapes or dtypes that are not its own, before anything is
changed. Every built-in has both (state.py). They undo a warm-up, and are what a checkpoint is. The process's
own random states need not be among it (randomness.py). The name `glasshouse` (RESERVED) among the values is
ours: what we keep with a checkpoint, how many optimizer steps were made by then and those random states.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

SESSION_PARTS = (
    "unit", "steps_per_unit", "info", "run_unit", "synchronize", "loss", "trainable", "buffers",
)  # fmt: skip

RESERVED = "glasshouse"  # among the values of a state: ours

Report = Callable[[str, object], None]  # kind of a message, its body as Channel.send takes it


class Tensor(Protocol):
    """What is used of a torch tensor; nothing here imports torch."""

    device: Any
    dtype: Any
    shape: Any

    def detach(self) -> Tensor: ...  # noqa: D102 -- as torch documents them
    def contiguous(self) -> Tensor: ...  # noqa: D102
    def cpu(self) -> Tensor: ...  # noqa: D102
    def numel(self) -> int: ...  # noqa: D102
    def element_size(self) -> int: ...  # noqa: D102
    def data_ptr(self) -> int: ...  # noqa: D102
    def clone(self) -> Tensor: ...  # noqa: D102
    def zero_(self) -> Tensor: ...  # noqa: D102
    def untyped_storage(self) -> Any: ...  # noqa: D102


class Session(Protocol):
    """What a workload builds; see the module's docstring."""

    unit: str
    steps_per_unit: int
    info: dict[str, Any]

    def run_unit(self) -> None: ...  # noqa: D102 -- described above, once
    def synchronize(self) -> None: ...  # noqa: D102
    def loss(self) -> float: ...  # noqa: D102
    def trainable(self) -> dict[str, Tensor]: ...  # noqa: D102
    def buffers(self) -> list[Any]: ...  # noqa: D102


class Restorable(Session, Protocol):
    """A session whose state can be kept and put back."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]: ...  # noqa: D102
    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None: ...  # noqa: D102


def restorable(session: Session) -> TypeGuard[Restorable]:
    """Whether its state can be kept and put back: both methods are there, and not two plain attributes."""
    return all(callable(getattr(session, name, None)) for name in ("state", "restore"))


MAX_NUMBER = 10_000_000.0  # of seconds, steps or per cent


def check_number(value: object, name: str, *, needed: bool = True) -> None:
    """Refuse a launch parameter that is no number from 0 to MAX_NUMBER: ValueError."""
    if value is None and not needed:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_NUMBER:
        raise ValueError(f"{name} is not a number in range")


@dataclass(frozen=True)
class Stretch:
    """What to measure: warm-up seconds, then `measured_sec` seconds or `steps` optimiser steps."""

    warmup_sec: float
    measured_sec: float | None
    steps: int | None
    delay_pct: float = 0.0

    @classmethod
    def from_json(cls, value: object) -> Stretch:
        """Read a slot's timing from launch parameters; KeyError, TypeError or ValueError for another form."""
        if not isinstance(value, dict):
            raise TypeError("the stretch is no object")
        for name, needed in {
            "warmup_sec": True,
            "measured_sec": False,
            "steps": False,
            "delay_pct": False,
        }.items():
            check_number(value.get(name), name, needed=needed)
        return cls(
            warmup_sec=float(value["warmup_sec"]),
            measured_sec=None if value["measured_sec"] is None else float(value["measured_sec"]),
            steps=None if value["steps"] is None else int(value["steps"]),
            delay_pct=float(value.get("delay_pct", 0.0)),
        )
