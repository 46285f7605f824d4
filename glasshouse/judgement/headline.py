"""Which rows make a headline, and what it says. One rule, fixed beforehand; pure and deterministic.

A headline is stated for a GPU and a model together, from block designs on known-distinct allocations,
pooled by random effects (measurement/pooling.py). Every row that qualifies is in it: nobody chooses.
A row that would qualify but for its controls or its length keeps the headline waiting, never out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from glasshouse.codes import Code
from glasshouse.measurement.estimate import TOST_ALPHA, Verdict, log_from_overhead, overhead_from_log, verdict
from glasshouse.measurement.pooling import pool
from glasshouse.measurement.stats import t_quantile

# Beside these a row has to be signed, verified, neither retracted nor superseded, no control, of
# order=abba with an interval, on a rented or remote GPU, and its allocation has to be known.
MIN_ALLOCATIONS = 3  # below, the spread between machines has no interval worth the name
MARGIN_PCT = 2.0  # of the pooled equivalence verdict
BARRED_BY = (
    "simulated",
    "no-control",
    "control-failed",
    "short",
    "short-warmup",
    "host-bound",
    "order-unclear",
    "order-confounded",
    "single-sample",
    "local-pod",
    "registered-late",
)


@dataclass(frozen=True)
class Candidate:
    """A row as the rule sees it: signed, verified, unretracted, no control, of order=abba, on a GPU.

    low, high: its 95% interval in percent over n differences. allocation: what tells machines apart;
    None when it is not known.
    """

    id: str
    gpu: str
    model: str
    allocation: str | None
    overhead_pct: float
    low_pct: float | None
    high_pct: float | None
    n: int
    caveats: tuple[str, ...]

    @property
    def effect(self) -> float:
        """The log rate ratio."""
        return log_from_overhead(self.overhead_pct)

    @property
    def error(self) -> float:
        """Its standard error, from the published interval; 0 where there is none."""
        if self.low_pct is None or self.high_pct is None or self.n < 2:
            return 0.0
        width = log_from_overhead(self.low_pct) - log_from_overhead(self.high_pct)
        return width / (2.0 * t_quantile(0.975, self.n - 1))

    def bars(self) -> tuple[str, ...]:
        """Why the row is in no headline; empty when it qualifies."""
        found = [code for code in BARRED_BY if code in self.caveats]
        if self.error <= 0.0:
            found.append(Code.NO_INTERVAL)
        if self.allocation is None:
            found.append(Code.ALLOCATION_UNKNOWN)
        return tuple(found)


@dataclass(frozen=True)
class Headline:
    """What can be said of one GPU and model. Figures are percent, None before there are enough.

    rows: the ids pooled, one an allocation, the earliest of each; barred: (id, reasons) of the others.
    ci, prediction: 95% intervals of the mean over allocations and of the next one.
    """

    gpu: str
    model: str
    rows: tuple[str, ...]
    barred: tuple[tuple[str, tuple[str, ...]], ...]
    overhead_pct: float | None = None
    ci_pct: tuple[float, float] | None = None
    prediction_pct: tuple[float, float] | None = None
    verdict: Verdict | None = None

    @property
    def allocations(self) -> int:
        """Known-distinct allocations that qualify."""
        return len(self.rows)

    @property
    def stands(self) -> bool:
        """Whether there is a headline."""
        return self.overhead_pct is not None


def headlines(candidates: Iterable[Candidate]) -> tuple[Headline, ...]:
    """Apply the rule to every GPU and model that has a candidate, in the order of their names."""
    kinds: dict[tuple[str, str], list[Candidate]] = {}
    for candidate in sorted(candidates, key=lambda row: row.id):
        kinds.setdefault((candidate.gpu, candidate.model), []).append(candidate)
    return tuple(_headline(gpu, model, rows) for (gpu, model), rows in sorted(kinds.items()))


def _headline(gpu: str, model: str, rows: list[Candidate]) -> Headline:
    chosen: dict[str, Candidate] = {}
    barred: list[tuple[str, tuple[str, ...]]] = []
    for row in rows:
        bars = row.bars()
        if bars or row.allocation is None:
            barred.append((row.id, bars))
        elif row.allocation in chosen:
            barred.append((row.id, (Code.ALLOCATION_COUNTED,)))
        else:
            chosen[row.allocation] = row
    ids = tuple(row.id for row in chosen.values())
    if len(chosen) < MIN_ALLOCATIONS:
        return Headline(gpu, model, ids, tuple(barred))
    pooled = pool([row.effect for row in chosen.values()], [row.error for row in chosen.values()])
    centre, ci, prediction = pooled.overhead_pct()
    half = t_quantile(1 - TOST_ALPHA, pooled.k - 1) * pooled.se
    within = (overhead_from_log(pooled.mean + half), overhead_from_log(pooled.mean - half))
    assert math.isfinite(centre)
    return Headline(gpu, model, ids, tuple(barred), centre, ci, prediction, verdict(within, MARGIN_PCT))
