"""Curves as lines of text, for a terminal: dots of Braille, two across and four down in each character."""

from __future__ import annotations

import math
from collections.abc import Sequence

from glasshouse.watching.curves import Curve

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # Unicode 15.0, block Braille Patterns
_EMPTY = 0x2800


def plot(curve: Curve, *, width: int = 64, height: int = 8, label: str = "") -> list[str]:
    """Draw a curve in `height` lines of `width` characters with their scale, and one of x beneath."""
    xs, values = curve.xs, curve.values
    if not xs:
        return []
    low, high = min(values), max(values)
    first, last = min(xs), max(xs)
    names = [number(high), *[""] * (height - 2), number(low)]
    margin = max(map(len, names))
    room = max(8, width - margin - 2)
    cells = [[0] * room for _ in range(height)]
    points = [
        (_place(x, first, last, 2 * room - 1), _place(high - value + low, low, high, 4 * height - 1))
        for x, value in zip(xs, values, strict=True)
    ]
    for before, after in zip(points, points[1:] or points, strict=False):
        for across, down in _between(before, after):
            cells[down // 4][across // 2] |= _DOTS[down % 4][across % 2]
    lines = [
        f"{name.rjust(margin)} ┤{''.join(chr(_EMPTY + cell) for cell in row)}".rstrip(chr(_EMPTY))
        for name, row in zip(names, cells, strict=True)
    ]
    what = "step" if curve.stepped else "reported"
    begin, end = number(first), f"{what} {number(last)}"
    gap = max(1, room - len(begin) - len(end))
    lines.append(f"{' ' * margin}  {begin}{' ' * gap}{end}")
    return [label, *lines] if label else lines


def number(value: float) -> str:
    """A number in few characters."""
    if value == int(value) and abs(value) < 1e7:
        return str(int(value))
    return f"{value:.4g}"


def _place(value: float, low: float, high: float, most: int) -> int:
    span = high - low
    if not span or not math.isfinite(span):
        return most // 2
    return min(most, max(0, round((value - low) / span * most)))


def _between(begin: tuple[int, int], end: tuple[int, int]) -> Sequence[tuple[int, int]]:
    """The dots of a straight line."""
    across, down = end[0] - begin[0], end[1] - begin[1]
    count = max(abs(across), abs(down), 1)
    return [
        (begin[0] + round(across * at / count), begin[1] + round(down * at / count))
        for at in range(count + 1)
    ]
