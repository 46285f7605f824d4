"""What the lifecycle of a payload is expected to cost on this machine, from what it cost for others. Pure.

Each step is taken to grow linearly between two sizes that were measured, and beyond them as between the
nearest two. That is no fit and no promise: a link, a busy machine or another one cost what they cost.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from glasshouse.measurement.fixed_cost import ONCE, STEPS

FORMAT: Literal["glasshouse/bench-fixed-cost/v1"] = "glasshouse/bench-fixed-cost/v1"
MAX_SIZES = 16

_Seconds = Annotated[float, Field(ge=0, le=86_400)]


class _Written(BaseModel):
    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        validate_by_name=True,
        serialize_by_alias=True,
        allow_inf_nan=False,
    )


class Measured(_Written):
    """One payload: its bytes, and the seconds of each step, as medians over so many launches."""

    payload_bytes: int = Field(ge=1, le=2**53)
    launches: int = Field(ge=1, le=100_000)
    steps: dict[str, _Seconds] = Field(min_length=1, max_length=len(STEPS))

    @model_validator(mode="after")
    def _known(self) -> Self:
        if not set(self.steps) <= set(STEPS):
            raise ValueError("a step that the lifecycle does not have")
        return self


class Figures(_Written):
    """What was measured, by growing size. measured_at: Unix seconds."""

    format: Literal["glasshouse/bench-fixed-cost/v1"]
    measured_at: float
    sizes: tuple[Measured, ...] = Field(min_length=1, max_length=MAX_SIZES)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        found = [each.payload_bytes for each in self.sizes]
        if sorted(set(found)) != found:
            raise ValueError("sizes do not grow")
        if len({frozenset(each.steps) for each in self.sizes}) != 1:
            raise ValueError("sizes have different steps")
        return self


@dataclass(frozen=True)
class Expected:
    """Seconds: `once` a run for sealing, uploading and fetching, `launch` for each protected launch.

    `least` and `most` are the bytes between which it is known; `extrapolated`: the payload lies outside.
    """

    once: float
    launch: float
    least: int
    most: int
    extrapolated: bool

    def run(self, launches: int) -> float:
        """Seconds of a run with so many protected launches."""
        return self.once + launches * self.launch if launches else 0.0


def parse(data: bytes) -> Figures | None:
    """Read figures as they were written; None for anything else."""
    try:
        return Figures.model_validate_json(data)
    except ValidationError:
        return None


def expected(figures: Figures, payload_bytes: int) -> Expected:
    """Interpolate each step for a payload of so many bytes; none falls below zero."""
    sizes = figures.sizes
    found = {step: _at(sizes, step, payload_bytes) for step in sizes[0].steps}
    least, most = sizes[0].payload_bytes, sizes[-1].payload_bytes
    return Expected(
        once=_sum(found, [step for step in found if step in ONCE]),
        launch=_sum(found, [step for step in found if step not in ONCE]),
        least=least,
        most=most,
        extrapolated=not least <= payload_bytes <= most,
    )


def _sum(found: Mapping[str, float], steps: Sequence[str]) -> float:
    return math.fsum(found[step] for step in steps)


def _at(sizes: Sequence[Measured], step: str, payload_bytes: int) -> float:
    if len(sizes) == 1:
        return sizes[0].steps[step]
    pairs = list(itertools.pairwise(sizes))
    low, high = next((pair for pair in pairs if payload_bytes <= pair[1].payload_bytes), pairs[-1])
    share = (payload_bytes - low.payload_bytes) / (high.payload_bytes - low.payload_bytes)
    return max(0.0, low.steps[step] + share * (high.steps[step] - low.steps[step]))
