"""What the reported history can carry, computed: spread, intervals, prediction intervals. Pure.

A single pair has no variance of its own, so nothing can be weighted by precision. What is left is the
spread between pairs: Student's t on the overheads of pairs on known-distinct machines (n - 1 degrees of
freedom), and the interval in which a further pair would be expected, s * sqrt(1 + 1/n) wide. Both assume
that the pairs of a group measure one thing, which is generous to the history.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from glasshouse.measurement.stats import mean, sample_sd, t_quantile
from glasshouse.publishing import labels
from glasshouse.publishing.artifact import Artifact


@dataclass(frozen=True)
class Pool:
    """Pairs pooled: overheads in percent, their interval and that of a further pair."""

    name: str
    overheads: tuple[float, ...]
    machines: int | None  # known-distinct machines; None when they are not identified

    @property
    def n(self) -> int:
        """Number of pairs."""
        return len(self.overheads)

    @property
    def mean(self) -> float:
        """Mean overhead, percent."""
        return mean(self.overheads)

    @property
    def sd(self) -> float:
        """Sample standard deviation, percentage points."""
        return sample_sd(self.overheads)

    @property
    def interval(self) -> tuple[float, float]:
        """95% t interval of the mean."""
        half = t_quantile(0.975, self.n - 1) * self.sd / math.sqrt(self.n)
        return self.mean - half, self.mean + half

    @property
    def prediction(self) -> tuple[float, float]:
        """95% interval for one further pair of the same kind."""
        half = t_quantile(0.975, self.n - 1) * self.sd * math.sqrt(1 + 1 / self.n)
        return self.mean - half, self.mean + half


def pools(rows: Iterable[Artifact]) -> tuple[Pool, ...]:
    """Group the reported pairs: by model and GPU, sustained rows, and known-distinct machines."""
    pairs = [row for row in rows if row.evidence_tier == "reported" and row.overhead_pct is not None]
    found: list[Pool] = []
    kinds = sorted({(labels.model(row), labels.gpu(row)) for row in pairs})
    for model, gpu in kinds:
        members = [row for row in pairs if (labels.model(row), labels.gpu(row)) == (model, gpu)]
        found.append(_pool(f"{model} on {gpu}", members))
    found.append(
        _pool("All with fifteen minutes or more", [row for row in pairs if (row.duration_sec or 0) >= 900])
    )
    known = [row for row in pairs if row.provider_instance_id is not None]
    found.append(_pool("All on known-distinct machines", known))
    found.append(_pool("All", pairs))
    return tuple(pool for pool in found if pool.n > 1)


def _pool(name: str, rows: list[Artifact]) -> Pool:
    ids = {(row.provider, row.provider_instance_id) for row in rows if row.provider_instance_id is not None}
    all_known = all(row.provider_instance_id is not None for row in rows)
    overheads = tuple(row.overhead_pct for row in rows if row.overhead_pct is not None)
    return Pool(name, overheads, len(ids) if all_known else None)
