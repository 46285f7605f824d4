"""The estimator of the steady-state overhead: slot rates in, one Estimate out. Pure.

    y        = ln(units / elapsed), the log rate of a slot
    d        = mean y(protected) - mean y(raw), per block of slots
    overhead = 100 (1 - e^d) percent of throughput; on one pair it is (raw - protected) / raw

The interval is Student's t on the d of the blocks, each slot of which is a process of its own. It is never
taken over steps, which are many but not independent. Ends are transformed as the centre is.

Sources: within-block contrasts, G. W. Cochran and G. M. Cox, Experimental Designs, 2nd ed., 1957,
chapter 4; log ratios of times, T. Hoefler and R. Belli, Scientific Benchmarking of Parallel
Computing Systems, SC15; relaunching as the unit of repetition, T. Kalibera and R. Jones,
Rigorous Benchmarking in Reasonable Time, ISMM 2013.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from glasshouse.measurement.randomisation import balanced_sign_p
from glasshouse.measurement.stats import mean, sample_sd, t_quantile, t_tail
from glasshouse.spec import Arm

Verdict = Literal["within", "exceeds", "inconclusive"]
Method = Literal["t-blocks", "single-pair", "none"]

TOST_ALPHA = 0.05


@dataclass(frozen=True)
class SlotRate:
    """What one slot did: `units` of work in `elapsed_sec` seconds, both device-synchronised.

    position counts from 0 inside its block. disturbed: telemetry.disturbed named a reason.
    """

    position: int
    arm: Arm
    units: float
    elapsed_sec: float
    disturbed: bool = False

    @property
    def usable(self) -> bool:
        """Whether a log rate exists: positive, finite work and time."""
        return all(math.isfinite(value) and value > 0 for value in (self.units, self.elapsed_sec))


@dataclass(frozen=True)
class Block:
    """The slots of one block, in any order: four for abba, two for a pair."""

    slots: tuple[SlotRate, ...]


@dataclass(frozen=True)
class Dropped:
    """Blocks left out whole. `blocks` are indices into the sequence given.

    protected and raw count the disturbed slots in those blocks by arm: an imbalance would mean
    that dropping selects. incomplete counts blocks that lacked a slot or had one without work.
    """

    blocks: tuple[int, ...] = ()
    protected: int = 0
    raw: int = 0
    incomplete: int = 0


@dataclass(frozen=True)
class Estimate:
    """Overhead in percent of throughput, positive when protection costs. None: cannot be said.

    ci_*: 95%; tost_*: the 90% interval the verdict rests on. n, blocks: blocks that were used, and
    carry the interval. sd_log: sample deviation of the d.
    order_effect_pct: how much slower the second slot of a neighbouring pair runs than the first,
    whatever its arm, with its 95% interval; a raw-first pair shows the overhead plus about this,
    a protected-first pair minus it. leave_one_out: overhead_pct without each unit of n in turn.
    """

    overhead_pct: float | None
    ci_low_pct: float | None
    ci_high_pct: float | None
    n: int
    method: Method
    verdict: Verdict
    margin_pct: float
    mde80_pct: float | None
    tost_low_pct: float | None
    tost_high_pct: float | None
    tost_p: float | None
    order_effect_pct: float | None
    order_effect_low_pct: float | None
    order_effect_high_pct: float | None
    randomisation_p: float | None
    leave_one_out: tuple[float, ...]
    blocks: int
    dropped: Dropped
    mean_log: float | None
    sd_log: float | None


def overhead_from_log(d: float) -> float:
    """100 (1 - e^d): the share of throughput lost, in percent, for a log rate ratio d."""
    return -100.0 * math.expm1(d)


def log_from_overhead(percent: float) -> float:
    """The log rate ratio of an overhead in percent (below 100). Raises ValueError otherwise."""
    return math.log1p(-percent / 100.0)


def pair_overhead_pct(raw_rate: float, protected_rate: float) -> float:
    """(raw - protected) / raw in percent, as published for single pairs; raw_rate > 0."""
    return 100.0 * (raw_rate - protected_rate) / raw_rate


def estimate_blocks(blocks: Sequence[Block], margin_pct: float) -> Estimate:
    """Estimate the overhead from `blocks`, dropping disturbed and incomplete ones whole.

    Total: any input gives an Estimate, with None where too little is left. n < 2 blocks give no
    interval; the verdict is then inconclusive.
    """
    kept, dropped = _sift(blocks)
    values = [_difference(block) for block in kept]
    enough = len(values) >= 2
    centre = mean(values) if values else None
    overhead = None if centre is None else overhead_from_log(centre)

    ci: tuple[float, float] | None = None
    tost: tuple[float, float] | None = None
    tost_p = mde80 = sd = None
    if enough and centre is not None:
        sd = sample_sd(values)
        error = sd / math.sqrt(len(values))
        df = len(values) - 1
        ci = _interval(centre, error, df, 0.05)
        tost = _interval(centre, error, df, 2 * TOST_ALPHA)
        tost_p = _tost_p(centre, error, df, margin_pct)
        mde80 = overhead_from_log(-(t_quantile(0.975, df) + t_quantile(0.80, df)) * error)
    order, order_ci = _order_effect(kept)
    return Estimate(
        overhead_pct=overhead,
        ci_low_pct=ci[0] if ci else None,
        ci_high_pct=ci[1] if ci else None,
        n=len(values),
        method=_method(kept),
        verdict=verdict(tost, margin_pct),
        margin_pct=margin_pct,
        mde80_pct=mde80,
        tost_low_pct=tost[0] if tost else None,
        tost_high_pct=tost[1] if tost else None,
        tost_p=tost_p,
        order_effect_pct=order,
        order_effect_low_pct=order_ci[0] if order_ci else None,
        order_effect_high_pct=order_ci[1] if order_ci else None,
        randomisation_p=_randomisation_p(kept, values) if enough else None,
        leave_one_out=tuple(
            overhead_from_log(mean(values[:skip] + values[skip + 1 :])) for skip in range(len(values))
        )
        if enough
        else (),
        blocks=len(kept),
        dropped=dropped,
        mean_log=centre,
        sd_log=sd,
    )


def verdict(tost_pct: tuple[float, float] | None, margin_pct: float) -> Verdict:
    """Two one-sided tests at TOST_ALPHA against +-margin_pct, by the 90% interval.

    within: the interval lies inside the margin; exceeds: it lies wholly outside, on either side (a
    row that gains beyond the margin is not equivalent either; its sign says so); else
    inconclusive. Source: D. J. Schuirmann, J. Pharmacokinet. Biopharm. 15 (1987) 657-680.
    """
    if tost_pct is None:
        return "inconclusive"
    low, high = tost_pct
    if -margin_pct < low and high < margin_pct:
        return "within"
    if low > margin_pct or high < -margin_pct:
        return "exceeds"
    return "inconclusive"


def _sift(blocks: Sequence[Block]) -> tuple[list[Block], Dropped]:
    """Split off the blocks that are disturbed or incomplete. The largest size is the whole one."""
    size = max((len(block.slots) for block in blocks), default=0)
    kept: list[Block] = []
    left_out: list[int] = []
    disturbed: Counter[Arm] = Counter()
    incomplete = 0
    for index, block in enumerate(blocks):
        arms = Counter(slot.arm for slot in block.slots)
        whole = (
            len(block.slots) == size
            and arms["raw"] == arms["protected"] > 0
            and all(slot.usable for slot in block.slots)
        )
        troubled = [slot.arm for slot in block.slots if slot.disturbed]
        if whole and not troubled:
            kept.append(block)
            continue
        left_out.append(index)
        disturbed.update(troubled)
        incomplete += not whole
    return kept, Dropped(tuple(left_out), disturbed["protected"], disturbed["raw"], incomplete)


def _log_rates(block: Block) -> list[float]:
    """The y of a block's slots in order of position."""
    ordered = sorted(block.slots, key=lambda slot: slot.position)
    return [math.log(slot.units / slot.elapsed_sec) for slot in ordered]


def _difference(block: Block) -> float:
    """The block's d: mean log rate of the protected slots minus that of the raw ones."""
    rates: dict[Arm, list[float]] = {"protected": [], "raw": []}
    for slot in block.slots:
        rates[slot.arm].append(math.log(slot.units / slot.elapsed_sec))
    return mean(rates["protected"]) - mean(rates["raw"])


def _interval(centre: float, error: float, df: int, alpha: float) -> tuple[float, float]:
    """The 1 - alpha interval in percent; the transformation reverses the ends."""
    half = t_quantile(1 - alpha / 2, df) * error
    return overhead_from_log(centre + half), overhead_from_log(centre - half)


def _tost_p(centre: float, error: float, df: int, margin_pct: float) -> float:
    """The larger of the two one-sided p-values against -margin and +margin."""
    bounds = (log_from_overhead(margin_pct), log_from_overhead(-margin_pct))
    if error == 0.0:
        return 0.0 if bounds[0] < centre < bounds[1] else 1.0
    return max(t_tail((centre - bounds[0]) / error, df), t_tail((bounds[1] - centre) / error, df))


def _order_effect(kept: Sequence[Block]) -> tuple[float | None, tuple[float, float] | None]:
    """Mean slowdown of the second of two neighbouring slots, and its 95% interval over blocks."""
    effects = []
    for block in kept:
        rates = _log_rates(block)
        effects.append(mean([rates[i + 1] - rates[i] for i in range(0, len(rates) - 1, 2)]))
    if not effects or len(kept[0].slots) < 4:
        return None, None  # a pair's order cannot be told from its arms
    centre = mean(effects)
    if len(effects) < 2:
        return overhead_from_log(centre), None
    error = sample_sd(effects) / math.sqrt(len(effects))
    return overhead_from_log(centre), _interval(centre, error, len(effects) - 1, 0.05)


def _randomisation_p(kept: Sequence[Block], differences: Sequence[float]) -> float:
    """The exact p of no effect, over the registered shuffle."""
    signs = [_sign(block) for block in kept]
    contrasts = [sign * difference for sign, difference in zip(signs, differences, strict=True)]
    return balanced_sign_p(contrasts, signs)


def _sign(block: Block) -> int:
    """+1 when the first slot is protected (ABBA, or a protected-first pair), else -1."""
    return 1 if min(block.slots, key=lambda slot: slot.position).arm == "protected" else -1


def _method(kept: Sequence[Block]) -> Method:
    if not kept:
        return "none"
    if len(kept) >= 2:
        return "t-blocks"
    return "single-pair" if len(kept) == 1 and len(kept[0].slots) == 2 else "none"
