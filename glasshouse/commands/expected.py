"""What a planned run's lifecycle is expected to cost in seconds, from what was measured on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from glasshouse.errors import UsageError
from glasshouse.lifecycle import bench_figures
from glasshouse.measurement.expected_cost import Expected, expected
from glasshouse.schema import Slot
from glasshouse.spec import RunSpec
from glasshouse.workloads.sizes import payload_bytes

UNKNOWN = "not known: run bench/lifecycle.py once"
DIGITS = 3  # of seconds


@dataclass(frozen=True)
class FixedCost:
    """Of one run: payload_bytes, how many protected launches it plans, and what these are expected to take.

    `expected` is None where that is not known, and `why` says so. `over_link`: the pod is another machine
    than the one that was measured.
    """

    payload_bytes: int | None
    launches: int
    expected: Expected | None
    why: str = ""
    over_link: bool = False

    def words(self) -> str:
        """One line, for people."""
        found = self.expected
        if not self.launches:
            return "fixed cost: none, since no launch is protected"
        if found is None or self.payload_bytes is None:
            return f"fixed cost expected: {self.why}"
        launches = "launch" if self.launches == 1 else "launches"
        taken = "extrapolated from" if found.extrapolated else "from"
        link = "; a link to the pod and its processors are not in it" if self.over_link else ""
        return (
            f"fixed cost expected: {found.launch:.1f} s a launch, and {found.once:.1f} s once for sealing, "
            f"uploading and fetching: {found.run(self.launches):.1f} s for {self.launches} {launches}, "
            f"{megabytes(self.payload_bytes)} MB of payload ({taken} {megabytes(found.least)} to "
            f"{megabytes(found.most)} MB measured on this machine{link})"
        )

    def as_json(self) -> dict[str, Any]:
        """The same for programs. Seconds; those that are not known are null."""
        found = self.expected
        return {
            "payloadBytes": self.payload_bytes,
            "launches": self.launches,
            "launchSec": None if found is None else round(found.launch, DIGITS),
            "onceSec": None if found is None else round(found.once, DIGITS),
            "runSec": None if found is None else round(found.run(self.launches), DIGITS),
            "measuredBytes": None if found is None else [found.least, found.most],
            "extrapolated": None if found is None else found.extrapolated,
            "note": self.words(),
        }


def fixed_cost(spec: RunSpec, slots: Sequence[Slot]) -> FixedCost:
    """What the lifecycle of a run with these slots is expected to cost."""
    launches, over_link = sum(1 for slot in slots if slot.lifecycle), spec.provider.kind != "local"
    try:
        size = payload_bytes(spec)
    except UsageError as error:
        return FixedCost(None, launches, None, f"not known: {error.line()}", over_link)
    figures = bench_figures.read() or bench_figures.published_figures()
    if figures is None:
        return FixedCost(size, launches, None, UNKNOWN, over_link)
    return FixedCost(size, launches, expected(figures, size), "", over_link)


def megabytes(count: int) -> str:
    """Bytes in MB, with a tenth where that says something."""
    return f"{count / 1e6:.0f}" if count >= 100e6 else f"{count / 1e6:.1f}"
