from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest

from glasshouse.measurement import randomisation
from glasshouse.measurement.randomisation import balanced_sign_p


def test_balanced_design_by_brute_force() -> None:
    rng = random.Random(1)
    for plus, size in ((5, 10), (4, 9), (2, 6), (6, 6), (0, 3)):
        contrasts = [rng.gauss(0.3, 1) for _ in range(size)]
        signs = [1] * plus + [-1] * (size - plus)
        observed = abs(sum(s * c for s, c in zip(signs, contrasts, strict=True)))
        arrangements = set(itertools.permutations(signs)) if size <= 6 else {
            tuple(1 if i in chosen else -1 for i in range(size))
            for chosen in itertools.combinations(range(size), plus)
        }  # fmt: skip
        extreme = sum(
            abs(sum(s * c for s, c in zip(arrangement, contrasts, strict=True))) >= observed - 1e-12
            for arrangement in arrangements
        )
        assert balanced_sign_p(contrasts, signs) == pytest.approx(extreme / len(arrangements), abs=1e-15)


def test_smallest_p_of_ten_balanced_blocks() -> None:
    """All blocks agree exactly: only the drawn arrangement and its mirror are as extreme."""
    signs = [1, -1] * 5
    assert balanced_sign_p([float(sign) for sign in signs], signs) == 2 / 252


def test_nothing_varies() -> None:
    assert balanced_sign_p([0.0] * 8, [1, -1] * 4) == 1.0
    assert balanced_sign_p([0.0] * 30, [1, -1] * 15) == 1.0
    assert balanced_sign_p([], []) == 1.0


@pytest.mark.parametrize("seed", range(4))
def test_convolution_is_never_below_the_exact_p_and_close(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)
    contrasts = [rng.gauss(0.25, 1) for _ in range(16)]
    signs = [1, -1] * 8
    exact = balanced_sign_p(contrasts, signs)
    monkeypatch.setattr(randomisation, "ENUMERATION_LIMIT", 0)
    assert exact - 1e-12 <= balanced_sign_p(contrasts, signs) <= exact + 0.005


def convolved_in_floats(values: list[float], observed: float, plus: int) -> float:
    """The same convolution with numpy's floats, as records were made until version 0.1.0."""
    step = math.fsum(abs(value) for value in values) / randomisation.GRID
    ticks = [round(value / step) for value in values]
    reach = sum(abs(tick) for tick in ticks)
    weight = np.zeros((plus + 1, 2 * reach + 1))
    weight[0, reach] = 1.0
    for tick in ticks:
        up, down = np.roll(weight, tick, axis=1), np.roll(weight, -tick, axis=1)
        up = np.vstack([np.zeros((1, weight.shape[1])), up[:-1]])
        weight = 0.5 * (up + down)
    final = weight[-1]
    rounding = math.fsum(abs(value / step - tick) for value, tick in zip(values, ticks, strict=True))
    threshold = observed / step - rounding - 1e-12 * randomisation.GRID
    hits = final[np.abs(np.arange(-reach, reach + 1)) >= threshold].sum()
    return min(1.0, float(hits / final.sum()))


@pytest.mark.parametrize("blocks", [21, 30, 52, 53, 54, 80, 100])
def test_whole_numbers_give_the_digits_that_floats_gave(blocks: int) -> None:
    """Up to 53 blocks floats held every count exactly; beyond, a record's six decimals are the same."""
    rng = random.Random(blocks)
    for effect in (0.0, 0.3):
        signs = [1, -1] * (blocks // 2) + [1] * (blocks % 2)
        contrasts = [sign * effect + rng.gauss(0, 1) for sign in signs]
        found = balanced_sign_p(contrasts, signs)
        observed = abs(math.fsum(s * c for s, c in zip(signs, contrasts, strict=True)))
        floats = convolved_in_floats(contrasts, observed, signs.count(1))
        assert found == floats if blocks <= 53 else round(found, 6) == round(floats, 6)


def test_many_blocks() -> None:
    rng = random.Random(9)
    signs = [1, -1] * 30
    null = balanced_sign_p([rng.gauss(0, 1) for _ in signs], signs)
    effect = balanced_sign_p([sign * (3 + rng.gauss(0, 1)) for sign in signs], signs)
    assert 0.01 < null <= 1
    assert effect < 1e-12
