"""Charts as data: axes, marks and the table beneath. templates/figure.html.j2 draws them as inline SVG.

Geometry is in SVG user units; colours are CSS classes, so that themes and print restyle them. Every
figure carries a title, a description that says what the picture says, and its numbers as a table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from glasshouse.publishing import words
from glasshouse.publishing.artifact import Artifact, Curve

WIDTH = 720.0


@dataclass(frozen=True)
class Mark:
    """One shape: kind line|dot|square|diamond|rect|path|text, coordinates, CSS class, optional text."""

    kind: str
    css: str
    x: float = 0.0
    y: float = 0.0
    x2: float = 0.0
    y2: float = 0.0
    text: str = ""
    anchor: str = "start"
    href: str = ""


@dataclass(frozen=True)
class Figure:
    """A drawable figure with its alternative: title, description, table."""

    id: str
    title: str
    desc: str
    height: float
    marks: tuple[Mark, ...]
    head: tuple[str, ...]
    body: tuple[tuple[str, ...], ...]
    legend: tuple[tuple[str, str], ...] = ()  # (css of the key, text)
    width: float = WIDTH


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
    return tuple(round(index * step, 10) for index in range(first, last + 1))


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """A linear scale from [low, high] to [start, end]."""
    span = (high - low) or 1.0
    return lambda value: round(start + (value - low) / span * (end - start), 2)


def symbol(row: Artifact) -> str:
    """Shape by order of the legs, so that colour is never the only cue."""
    if row.order == "raw-first":
        return "square"
    return "diamond" if row.order is None else "dot"


def paint(row: Artifact) -> str:
    """CSS class of a row's mark: evidence tier first, then order."""
    return f"m-{row.evidence_tier} o-{row.order or 'unclear'}"


ORDER_LEGEND = (
    ("square o-raw-first", "raw leg first"),
    ("dot o-protected-first", "protected leg first"),
    ("diamond o-unclear", "order unclear"),
)


def _with_overhead(rows: Iterable[Artifact]) -> list[Artifact]:
    return [row for row in rows if row.overhead_pct is not None and row.status != "excluded"]


def _legend(rows: Iterable[Artifact]) -> tuple[tuple[str, str], ...]:
    orders = {row.order for row in rows}
    legend = [
        item
        for item, name in zip(ORDER_LEGEND, ("raw-first", "protected-first", None), strict=True)
        if name in orders
    ]
    if "abba" in orders:
        legend.append(("dot o-abba", "ABBA blocks, with 95% interval"))
    return tuple(legend)


def overhead_dots(
    rows: Sequence[Artifact], *, name: str = "overhead", title: str, desc: str, root: str = ""
) -> Figure:
    """Overhead of each row as a dot with its interval, grouped by model and GPU, with a line at zero."""
    shown = sorted(
        _with_overhead(rows),
        key=lambda row: (words.model(row), words.gpu(row), words.measured_seconds(row) or 0, row.id),
    )
    values = [0.0]
    for row in shown:
        values.append(row.overhead_pct or 0.0)
        if row.overhead and row.overhead.ci_low_pct is not None and row.overhead.ci_high_pct is not None:
            values += [row.overhead.ci_low_pct, row.overhead.ci_high_pct]
    marks_at = ticks(min(values), max(values), 8)
    at = scale(marks_at[0], marks_at[-1], 214, WIDTH - 74)
    marks: list[Mark] = []
    y = 30.0
    group = ""
    for row in shown:
        heading = f"{words.model(row)} on {words.gpu(row)}"
        if heading != group:
            y += 14 if group else 0
            marks.append(Mark("text", "t-group", 0, y + 4, text=heading))
            y += 22
            group = heading
        marks.append(Mark("line", "c-row", 214, y, WIDTH - 74, y))
        label = f"{words.length(row)}, {words.order(row)}"
        marks.append(Mark("text", "t-label", 14, y + 4, text=label, href=f"{root}rows/{row.id}/"))
        overhead = row.overhead
        if overhead and overhead.ci_low_pct is not None and overhead.ci_high_pct is not None:
            marks.append(
                Mark(
                    "line",
                    f"c-interval {paint(row)}",
                    at(overhead.ci_low_pct),
                    y,
                    at(overhead.ci_high_pct),
                    y,
                )
            )
        value = row.overhead_pct or 0.0
        marks.append(Mark(symbol(row), paint(row), at(value), y))
        marks.append(Mark("text", "t-value", WIDTH, y + 4, text=words.percent(value), anchor="end"))
        y += 22
    height = y + 26
    axis = _x_axis(marks_at, at, 18, height - 30, suffix="%")
    table = tuple(
        (
            words.title(row),
            row.evidence_tier,
            words.percent(row.overhead_pct),
            words.interval(row.overhead.ci_low_pct, row.overhead.ci_high_pct) if row.overhead else words.DASH,
        )
        for row in shown
    )
    return Figure(
        name,
        title,
        desc,
        height,
        (*axis, *marks),
        ("Row", "Tier", "Overhead", "95% interval"),
        table,
        _legend(shown),
    )


def _x_axis(
    at_values: Sequence[float], at: Callable[[float], float], top: float, bottom: float, suffix: str = ""
) -> tuple[Mark, ...]:
    marks: list[Mark] = []
    for value in at_values:
        x = at(value)
        marks.append(Mark("line", "c-zero" if value == 0 else "c-grid", x, top, x, bottom))
        text = words.percent(value, 0) if suffix == "%" else f"{value:g}{suffix}"
        marks.append(Mark("text", "t-axis", x, bottom + 18, text=text, anchor="middle"))
    return tuple(marks)


@dataclass(frozen=True)
class OrderPair:
    """Two rows alike but for the order of their legs."""

    raw_first: Artifact
    protected_first: Artifact

    @property
    def gap(self) -> float:
        """Overhead raw-first minus overhead protected-first, in percentage points."""
        return (self.raw_first.overhead_pct or 0.0) - (self.protected_first.overhead_pct or 0.0)


def order_pairs(rows: Iterable[Artifact]) -> tuple[OrderPair, ...]:
    """Find rows that differ in order only: same provider, GPU, model and length."""
    shown = _with_overhead(rows)
    found = [
        OrderPair(first, second)
        for first in shown
        for second in shown
        if first.order == "raw-first" and second.order == "protected-first" and _alike(first, second)
    ]
    return tuple(sorted(found, key=lambda pair: -abs(pair.gap)))


def _alike(first: Artifact, second: Artifact) -> bool:
    keys = ("provider", "gpu", "model", "duration_sec", "steps", "target_steps", "evidence_tier")
    return all(getattr(first, key) == getattr(second, key) for key in keys)


def order_effect(rows: Sequence[Artifact]) -> Figure | None:
    """Each pair of rows that differ in order only, joined: the length of the bar is not protection."""
    pairs = order_pairs(rows)
    if not pairs:
        return None
    values = [0.0]
    for pair in pairs:
        values += [pair.raw_first.overhead_pct or 0.0, pair.protected_first.overhead_pct or 0.0]
    marks_at = ticks(min(values), max(values), 8)
    at = scale(marks_at[0], marks_at[-1], 214, WIDTH - 84)
    marks: list[Mark] = []
    y = 34.0
    for pair in pairs:
        first, second = pair.raw_first, pair.protected_first
        label = f"{words.model(first)}, {words.gpu(first)}, {words.length(first)}"
        marks.append(Mark("text", "t-label", 0, y + 4, text=label))
        x1, x2 = at(first.overhead_pct or 0.0), at(second.overhead_pct or 0.0)
        marks.append(Mark("line", "c-span", x1, y, x2, y))
        marks.append(Mark(symbol(first), paint(first), x1, y))
        marks.append(Mark(symbol(second), paint(second), x2, y))
        marks.append(Mark("text", "t-value", WIDTH, y + 4, text=f"{abs(pair.gap):.2f} pts", anchor="end"))
        y += 30
    height = y + 22
    axis = _x_axis(marks_at, at, 16, height - 30, suffix="%")
    widest = pairs[0]
    return Figure(
        "order-effect",
        "The same measurement with the legs swapped",
        f"{len(pairs)} pairs of rows that differ in which leg ran first, and in the machine rented. The widest pair "
        f"is {abs(widest.gap):.1f} points apart, {words.percent(widest.raw_first.overhead_pct)} and "
        f"{words.percent(widest.protected_first.overhead_pct)}: far more than any cost claimed for protection.",
        height,
        (*axis, *marks),
        ("Setting", "Raw first", "Protected first", "Apart"),
        tuple(
            (
                f"{words.model(pair.raw_first)} on {words.gpu(pair.raw_first)}, {words.length(pair.raw_first)}",
                words.percent(pair.raw_first.overhead_pct),
                words.percent(pair.protected_first.overhead_pct),
                f"{abs(pair.gap):.2f} points",
            )
            for pair in pairs
        ),
        ORDER_LEGEND[:2],
    )


def raw_speed(rows: Sequence[Artifact], *, gpu: str, model: str) -> Figure | None:
    """Rates of both arms of like rows: how much machines differ before protection comes in."""
    shown = [
        row
        for row in _with_overhead(rows)
        if row.gpu == gpu and row.model == model and words.rate(row, "raw")
    ]
    if len(shown) < 2:
        return None
    rates = [rate for row in shown for arm in ("raw", "protected") if (rate := words.rate(row, arm))]
    marks_at = ticks(0.0, max(rates), 6)
    at = scale(0.0, marks_at[-1], 214, WIDTH - 20)
    marks: list[Mark] = []
    body: list[tuple[str, ...]] = []
    y = 34.0
    for row in sorted(shown, key=lambda item: words.rate(item, "raw") or 0.0):
        raw, protected = words.rate(row, "raw") or 0.0, words.rate(row, "protected") or 0.0
        marks.append(Mark("text", "t-label", 0, y + 4, text=f"{words.length(row)}, {words.order(row)}"))
        marks.append(Mark("line", "c-span", at(raw), y, at(protected), y))
        marks.append(Mark("dot", "arm-raw", at(raw), y))
        marks.append(Mark("dot", "arm-protected", at(protected), y))
        body.append((words.title(row), words.number(raw), words.number(protected)))
        y += 28
    raws = [words.rate(row, "raw") or 0.0 for row in shown]
    unit = shown[0].unit
    return Figure(
        f"raw-speed-{gpu}",
        f"Speed of the same workload on {words.gpu(shown[0])} rentals",
        f"Unprotected speed runs from {min(raws):,.0f} to {max(raws):,.0f} {unit} per second, a factor of "
        f"{max(raws) / min(raws):.2f} between rentals of one GPU type.",
        y + 22,
        (*_x_axis(marks_at, at, 16, y - 8), *marks),
        ("Row", f"Raw, {unit}/s", f"Protected, {unit}/s"),
        tuple(body),
        (("dot arm-raw", "raw leg"), ("dot arm-protected", "protected leg")),
    )


def by_length(rows: Sequence[Artifact]) -> Figure | None:
    """Overhead against measured length (logarithmic), one mark a row."""
    shown = [row for row in _with_overhead(rows) if words.measured_seconds(row)]
    if len(shown) < 2:
        return None
    lengths = [words.measured_seconds(row) or 1.0 for row in shown]
    y_ticks = ticks(
        min(0.0, *(row.overhead_pct or 0.0 for row in shown)), max(row.overhead_pct or 0.0 for row in shown)
    )
    height = 330.0
    up = scale(y_ticks[0], y_ticks[-1], height - 50, 16)
    low, high = math.log10(min(lengths)) - 0.1, math.log10(max(lengths)) + 0.1
    across = scale(low, high, 64, WIDTH - 20)
    marks = [*_y_axis(y_ticks, up, 64, WIDTH - 20, percent=True)]
    for second in (1, 5, 10, 60, 300, 900, 1800, 3600, 14400, 86400):
        if low <= math.log10(second) <= high:
            x = across(math.log10(second))
            text = words.seconds(second)
            marks.append(Mark("text", "t-axis", x, height - 28, text=text, anchor="middle"))
            marks.append(Mark("line", "c-tick", x, height - 50, x, height - 44))
    marks.append(
        Mark("text", "t-axis", WIDTH - 20, height - 8, text="measured time of one leg", anchor="end")
    )
    for row, length in zip(shown, lengths, strict=True):
        x, y = across(math.log10(length)), up(row.overhead_pct or 0.0)
        if row.overhead and row.overhead.ci_low_pct is not None and row.overhead.ci_high_pct is not None:
            ends = up(row.overhead.ci_low_pct), up(row.overhead.ci_high_pct)
            marks.append(Mark("line", f"c-interval {paint(row)}", x, ends[0], x, ends[1]))
        marks.append(Mark(symbol(row), paint(row), x, y))
    long_rows = [row.overhead_pct or 0.0 for row, length in zip(shown, lengths, strict=True) if length >= 900]
    desc = f"{len(shown)} rows."
    if long_rows:
        desc += (
            f" Legs of fifteen minutes and more still run from {words.percent(min(long_rows))} to "
            f"{words.percent(max(long_rows))}: longer runs alone did not settle the figure."
        )
    body = tuple(
        (words.title(row), words.seconds(length), words.percent(row.overhead_pct))
        for row, length in sorted(zip(shown, lengths, strict=True), key=lambda pair: pair[1])
    )
    return Figure(
        "by-length", "Overhead by run length", desc, height, tuple(marks), ("Row", "Measured", "Overhead"), body,
        _legend(shown),
    )  # fmt: skip


def _y_axis(
    at_values: Sequence[float],
    up: Callable[[float], float],
    left: float,
    right: float,
    *,
    percent: bool = False,
) -> tuple[Mark, ...]:
    marks: list[Mark] = []
    for value in at_values:
        y = up(value)
        marks.append(Mark("line", "c-zero" if percent and value == 0 else "c-grid", left, y, right, y))
        text = words.percent(value, 0) if percent else f"{value:,.4g}"
        marks.append(Mark("text", "t-axis", left - 8, y + 4, text=text, anchor="end"))
    return tuple(marks)


PHASES = ("seal", "upload", "attest", "release", "unseal", "zeroize")


def fixed_cost(rows: Sequence[Artifact]) -> Figure | None:
    """Seconds that protection adds once a run, phase by phase, one stacked bar a row."""
    shown = [row for row in rows if row.fixed_cost_sec]
    if not shown:
        return None
    totals = [sum((row.fixed_cost_sec or {}).get(phase, 0.0) for phase in PHASES) for row in shown]
    marks_at = ticks(0.0, max(*totals, 0.1), 6)
    at = scale(0.0, marks_at[-1], 214, WIDTH - 74)
    marks: list[Mark] = []
    y = 24.0
    for row, total in zip(shown, totals, strict=True):
        marks.append(
            Mark(
                "text",
                "t-label",
                0,
                y + 13,
                text=f"{words.model(row)}, {words.gpu(row)}, {words.length(row)}",
            )
        )
        edge = 0.0
        for index, phase in enumerate(PHASES):
            part = (row.fixed_cost_sec or {}).get(phase, 0.0)
            if part > 0:
                marks.append(Mark("rect", f"p-{index}", at(edge), y, at(edge + part), y + 18))
            edge += part
        marks.append(Mark("text", "t-value", WIDTH, y + 13, text=words.seconds(total), anchor="end"))
        y += 30
    body = tuple(
        (
            words.title(row),
            *(words.number((row.fixed_cost_sec or {}).get(phase)) for phase in PHASES),
            f"{total:.3f}",
        )
        for row, total in zip(shown, totals, strict=True)
    )
    return Figure(
        "fixed-cost",
        "What protection costs once a run",
        f"Seconds spent on {', '.join(PHASES)}; between {min(totals):.2f} s and {max(totals):.2f} s in all. A longer "
        "run pays the same once.",
        y + 26,
        (*_x_axis(marks_at, at, 12, y, suffix=" s"), *marks),
        ("Row", *(f"{phase}, s" for phase in PHASES), "Total, s"),
        body,
        tuple((f"swatch p-{index}", phase) for index, phase in enumerate(PHASES)),
    )


def cost_by_length(row: Artifact) -> Figure | None:
    """Total overhead of a run of length W: fixed seconds spread over W, plus the steady state."""
    if row.overhead_pct is None or not row.fixed_cost_sec or row.overhead_pct >= 100:
        return None
    fixed = sum(row.fixed_cost_sec.get(phase, 0.0) for phase in PHASES)
    slow = 1 / (1 - row.overhead_pct / 100)  # protected seconds for one raw second
    lengths = [60.0 * 2 ** (index / 4) for index in range(45)]

    def total(raw_seconds: float) -> float:
        return 100 * (1 - raw_seconds / (raw_seconds * slow + fixed))

    curve = tuple((length, total(length)) for length in lengths)
    y_ticks = ticks(min(0.0, *(point[1] for point in curve)), max(point[1] for point in curve))
    height = 280.0
    up = scale(y_ticks[0], y_ticks[-1], height - 50, 16)
    across = scale(math.log10(lengths[0]), math.log10(lengths[-1]), 64, WIDTH - 20)
    marks = [*_y_axis(y_ticks, up, 64, WIDTH - 20, percent=True)]
    for length in (60, 600, 3600, 21600, 86400):
        if lengths[0] <= length <= lengths[-1]:
            x = across(math.log10(length))
            label = words.seconds(length) if length < 3600 else f"{length / 3600:g}{words.NBSP}h"
            marks.append(Mark("text", "t-axis", x, height - 28, text=label, anchor="middle"))
    marks.append(Mark("path", "c-protected", text=_path((across(math.log10(x)), up(y)) for x, y in curve)))
    steady = up(row.overhead_pct)
    marks.append(Mark("line", "c-interval", 64, steady, WIDTH - 20, steady))
    points = (60.0, 600.0, 3600.0, 21600.0, 86400.0)
    return Figure(
        "cost-by-length",
        "What a whole run would pay, by its length",
        f"Fixed cost {fixed:.2f} s and steady state {words.percent(row.overhead_pct)}. A one-minute run pays "
        f"{words.percent(total(60))}, a one-hour run {words.percent(total(3600))}; the line is the steady state.",
        height,
        tuple(marks),
        ("Raw training time", "Share of the time spent on protection"),
        tuple((words.seconds(point), words.percent(total(point))) for point in points),
    )


def _path(points: Iterable[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points)


def curves(
    name: str, title: str, protected: Curve, raw: Curve, *, x_label: str, y_label: str
) -> Figure | None:
    """Two curves over one axis: the protected arm and the raw one."""
    points = [*protected, *raw]
    if len(protected) < 2:
        return None
    x_ticks = ticks(0.0, max(point[0] for point in points))
    y_ticks = ticks(min(point[1] for point in points), max(point[1] for point in points), 5)
    height = 260.0
    across = scale(x_ticks[0], x_ticks[-1], 76, WIDTH - 20)
    up = scale(y_ticks[0], y_ticks[-1], height - 50, 16)
    marks = [*_y_axis(y_ticks, up, 76, WIDTH - 20)]
    for value in x_ticks:
        text = f"{value:,.6g}"
        marks.append(Mark("text", "t-axis", across(value), height - 28, text=text, anchor="middle"))
    marks.append(Mark("text", "t-axis", WIDTH - 20, height - 8, text=x_label, anchor="end"))
    for css, curve in (("c-raw", raw), ("c-protected", protected)):
        if len(curve) > 1:
            marks.append(Mark("path", css, text=_path((across(point[0]), up(point[1])) for point in curve)))
    body = tuple(
        (arm, words.number(float(point[0])), words.number(float(point[1])))
        for arm, curve in (("protected", protected), ("raw", raw))
        for point in _thin(curve, 12)
    )
    ends = f"The protected arm ends at {words.number(float(protected[-1][1]))}"
    if raw:
        ends += f", the raw arm at {words.number(float(raw[-1][1]))}"
    return Figure(
        name, title, f"{y_label} over {x_label}. {ends}.", height, tuple(marks), ("Arm", x_label, y_label), body,
        (("line c-protected", "protected"), ("line c-raw", "raw")) if raw else (("line c-protected", "protected"),),
    )  # fmt: skip


def _thin(curve: Curve, count: int) -> Curve:
    if len(curve) <= count:
        return curve
    return tuple(curve[round(index * (len(curve) - 1) / (count - 1))] for index in range(count))


def throughput(curve: Curve) -> Curve:
    """Turn cumulative (seconds, units) into (seconds, units per second) between neighbours."""
    pairs = pairwise(curve)
    return tuple(
        (end[0], (end[1] - start[1]) / (end[0] - start[0])) for start, end in pairs if end[0] > start[0]
    )
