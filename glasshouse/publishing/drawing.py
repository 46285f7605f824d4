"""Charts as data: marks, scales, axes. templates/pages/macros.html.j2 draws a Figure as inline SVG.

Geometry is in SVG user units; colours are CSS classes, so that themes and print restyle them. Every
figure carries a title, a description that says what the picture says, and its numbers as a table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from glasshouse.publishing import labels

WIDTH = 720.0


@dataclass(frozen=True)
class Mark:
    """One shape: kind line|dot|square|diamond|triangle|rect|path|text, coordinates, CSS class, text."""

    kind: str
    css: str
    x: float = 0.0
    y: float = 0.0
    x2: float = 0.0
    y2: float = 0.0
    text: str = ""
    anchor: str = "start"


@dataclass(frozen=True)
class Drawing:
    """Marks on a canvas of width x height user units."""

    width: float
    height: float
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Figure:
    """A figure with its alternatives: title, description, table; `narrow` is drawn on small screens."""

    id: str
    title: str
    desc: str
    wide: Drawing
    head: tuple[str, ...]
    body: tuple[tuple[str, ...], ...]
    legend: tuple[tuple[str, str], ...] = ()  # (css of the key, text)
    narrow: Drawing | None = None


@dataclass(frozen=True)
class Lane:
    """One horizontal line of a chart: a label, a value, marks at x values (data units)."""

    label: str
    value: str
    points: tuple[tuple[str, str, float], ...]  # (shape, css, x)
    spans: tuple[tuple[str, float, float], ...] = ()  # (css, from, to)
    group: str = ""
    boxes: tuple[tuple[str, float, float], ...] = ()  # filled parts, (css, from, to)


def lanes(
    rows: Sequence[Lane], low: float, high: float, *, label: Callable[[float, int], str], narrow: bool
) -> Drawing:
    """Draw lanes over a common x axis. Wide: labels to the left; narrow: labels above each line.

    label: what to write at a tick, given its value and the decimals that tell it from its neighbours.
    """
    width, left, right, step = (340.0, 20.0, 20.0, 38.0) if narrow else (WIDTH, 214.0, 78.0, 24.0)
    at_values = ticks(low, high, 4 if narrow else 8)
    digits = decimals(at_values)
    at = scale(at_values[0], at_values[-1], left, width - right)
    marks: list[Mark] = []
    y, group = 26.0, ""
    for row in rows:
        if row.group != group:
            y += 12 if group else 0
            marks.append(Mark("text", "t-group", 0, y + 4, text=row.group))
            y += step if narrow else 22
            group = row.group
        text_y = y - 11 if narrow else y + 4
        marks.append(Mark("line", "c-row", left, y, width - right, y))
        marks.append(Mark("text", "t-label", 14 if group and not narrow else 0, text_y, text=row.label))
        marks += [Mark("rect", css, at(start), y - 8, at(end), y + 8) for css, start, end in row.boxes]
        marks += [Mark("line", css, at(start), y, at(end), y) for css, start, end in row.spans]
        marks += [Mark(shape, css, at(x), y) for shape, css, x in row.points]
        marks.append(Mark("text", "t-value", width, text_y, text=row.value, anchor="end"))
        y += step
    bottom = y - step + 18
    axis: list[Mark] = []
    for value in at_values:
        x = at(value)
        axis.append(Mark("line", "c-zero" if value == 0 else "c-grid", x, 8, x, bottom))
        axis.append(Mark("text", "t-axis", x, bottom + 16, text=label(value, digits), anchor="middle"))
    return Drawing(width, bottom + 24, (*axis, *marks))


def ticks(low: float, high: float, count: int = 6) -> tuple[float, ...]:
    """Round tick values covering [low, high], about `count` of them."""
    if not high > low:
        high = low + 1.0
    step = 10 ** math.floor(math.log10((high - low) / count))
    for factor in (1, 2, 5, 10):
        if (high - low) / (step * factor) <= count:
            step *= factor
            break
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    # Rounded to what the step tells apart: 3 * 0.1 is not 0.3.
    digits = max(0, 2 - math.floor(math.log10(step)))
    return tuple(round(index * step, digits) for index in range(first, last + 1))


def decimals(at_values: Sequence[float]) -> int:
    """Digits behind the point that tell each tick from its neighbours: -0.5 is not to read as 0."""
    step = min((b - a for a, b in pairwise(at_values)), default=1.0)
    return max(0, -math.floor(math.log10(step) + 1e-9))


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """A linear scale from [low, high] to [start, end]."""
    span = (high - low) or 1.0
    return lambda value: round(start + (value - low) / span * (end - start), 2)


def y_axis(
    at_values: Sequence[float],
    up: Callable[[float], float],
    left: float,
    right: float,
    *,
    percent: bool = False,
) -> tuple[Mark, ...]:
    """Grid lines and labels of a vertical axis."""
    marks: list[Mark] = []
    digits = decimals(at_values)
    for value in at_values:
        y = up(value)
        marks.append(Mark("line", "c-zero" if percent and value == 0 else "c-grid", left, y, right, y))
        text = labels.percent(value, digits) if percent else labels.tick(value, digits)
        marks.append(Mark("text", "t-axis", left - 8, y + 4, text=text, anchor="end"))
    return tuple(marks)


def path(points: Iterable[tuple[float, float]]) -> str:
    """An SVG path through points."""
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points)
