"""An exact randomisation test: the p-value under the assignments that could have been drawn.

`balanced_sign_p` is the registered abba shuffle: signs were dealt to blocks with the number of pluses fixed.
It is two-sided and does not sample. Source: E. S. Edgington and P. Onghena, Randomization Tests, 2007.
Conditioning on the blocks that remain after drops keeps the test exact, since the
remaining arrangement is uniform over those with the same number of pluses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

ENUMERATION_LIMIT = 20  # 20 choose 10 = 184,756 arrangements
GRID = 1 << 14  # steps in the sum of all absolute values, for more blocks than that
_TOLERANCE = 1e-12  # relative: sums in another order must tie with the observed one


def balanced_sign_p(contrasts: Sequence[float], signs: Sequence[int]) -> float:
    """P(|sum s*c| >= observed) over all arrangements of the same signs, each +1 or -1.

    contrasts: per block, (outer slots minus inner slots) of y, which no assignment changes under
    the null hypothesis; signs: +1 for ABBA, -1 for BAAB. Up to ENUMERATION_LIMIT blocks every
    arrangement is enumerated, beyond that see `_convolved`. One block or none gives 1.
    """
    plus = sum(1 for sign in signs if sign > 0)
    observed = abs(math.fsum(s * c for s, c in zip(signs, contrasts, strict=True)))
    slack = _slack(contrasts)
    if len(contrasts) > ENUMERATION_LIMIT:
        return _convolved(contrasts, observed, plus)
    total = math.fsum(contrasts)
    # sum s*c = 2 * (sum over the pluses) - total
    hits = sum(abs(2 * sum(chosen) - total) >= observed - slack for chosen in combinations(contrasts, plus))
    return hits / math.comb(len(contrasts), plus)


def _slack(values: Sequence[float]) -> float:
    return _TOLERANCE * math.fsum(abs(value) for value in values)


def _convolved(values: Sequence[float], observed: float, plus: int) -> float:
    """The same probability by convolving the exact distribution of the sum on a grid of values.

    Values are rounded to steps of (sum of absolute values) / GRID, and the observed sum is lowered by the
    sum of all roundings, the most that they can move any sum: the result is never below the exact p,
    and above it only by arrangements within that distance. No sampling, and counted in whole numbers.
    Exactly `plus` of the signs are +1.
    """
    step = math.fsum(abs(value) for value in values) / GRID
    if step == 0.0:
        return 1.0
    ticks = [round(value / step) for value in values]
    reach = sum(abs(tick) for tick in ticks)
    # counts[k] is one integer of many fields: field reach + s counts arrangements with k pluses and sum s.
    # To add a tick to every sum is then one shift. No field overflows: there are 2^n arrangements at most.
    size = len(values) // 8 + 1  # bytes of a field
    counts = {0: 1 << (8 * size * reach)}
    for done, tick in enumerate(ticks, start=1):
        up, down = _shifted(counts, 8 * size * tick), _shifted(counts, -8 * size * tick)
        # Of k only what can still end at `plus`.
        needed = range(max(0, plus - (len(ticks) - done)), min(plus, done) + 1)
        counts = {k: up.get(k - 1, 0) + down.get(k, 0) for k in needed}
    fields = counts[plus].to_bytes(size * (2 * reach + 1), "little")
    rounding = math.fsum(abs(value / step - tick) for value, tick in zip(values, ticks, strict=True))
    threshold = observed / step - rounding - _TOLERANCE * GRID
    hits = sum(
        int.from_bytes(fields[size * (reach + s) : size * (reach + s + 1)], "little")
        for s in range(-reach, reach + 1)
        if abs(s) >= threshold
    )
    return hits / math.comb(len(values), plus)


def _shifted(counts: Mapping[int, int], bits: int) -> dict[int, int]:
    return {k: value << bits if bits >= 0 else value >> -bits for k, value in counts.items()}
