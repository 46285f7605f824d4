"""The charts of the site: rows in, figures out. Pure; drawing.py holds the geometry."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from glasshouse.measurement.fixed_cost import STEPS, overhead_at
from glasshouse.publishing import labels
from glasshouse.publishing.artifact import Artifact, Curve
from glasshouse.publishing.drawing import (
    WIDTH,
    Drawing,
    Figure,
    Lane,
    Mark,
    decimals,
    lanes,
    path,
    scale,
    ticks,
    y_axis,
)

MOST = 80  # rows in one chart
PHASES = tuple(step.removesuffix("Sec") for step in STEPS)


def symbol(row: Artifact) -> str:
    """Shape by order of the legs, so that colour is never the only cue."""
    return {"raw-first": "square", "abba": "triangle", None: "diamond"}.get(row.order, "dot")


def paint(row: Artifact) -> str:
    """CSS class of a row's mark: evidence tier first, then order."""
    return f"m-{row.evidence_tier} o-{row.order or 'unclear'}"


_LEGEND = {
    "raw-first": ("square o-raw-first", "raw leg first"),
    "protected-first": ("dot o-protected-first", "protected leg first"),
    None: ("diamond o-unclear", "order unclear"),
    "abba": ("triangle o-abba", "alternating blocks"),
}


def _legend(rows: Iterable[Artifact]) -> tuple[tuple[str, str], ...]:
    """What is drawn, and nothing else: a key for each order, one for intervals, one for hollow marks."""
    shown = list(rows)
    orders = {row.order for row in shown}
    keys = [item for order, item in _LEGEND.items() if order in orders]
    if any(_ends(row) for row in shown):
        keys += [("line c-interval", "95% interval")]
    if any(row.evidence_tier == "reported" for row in shown):
        keys += [("dot hollow", "hollow: reported, not verified by us")]
    return tuple(keys)


def _with_overhead(rows: Iterable[Artifact]) -> list[Artifact]:
    """Results alone: a control's figure shows whether the instrument works, and is no overhead."""
    return [
        row
        for row in rows
        if row.overhead_pct is not None
        and row.status != "excluded"
        and row.retracted is None
        and row.control == "none"
    ]


def newest(rows: Sequence[Artifact], count: int = MOST) -> tuple[Artifact, ...]:
    """The newest `count` rows that a chart can show; a picture of a thousand rows shows none."""
    shown = sorted(_with_overhead(rows), key=lambda row: (row.date, row.id))
    return tuple(shown[-count:])


def _ends(row: Artifact) -> tuple[float, float] | None:
    overhead = row.overhead
    if overhead is None or overhead.ci_low_pct is None or overhead.ci_high_pct is None:
        return None
    return overhead.ci_low_pct, overhead.ci_high_pct


def labelled_lanes(
    name: str,
    title: str,
    desc: str,
    rows: Sequence[Lane],
    *,
    table: tuple[tuple[str, ...], tuple[tuple[str, ...], ...]],
    legend: tuple[tuple[str, str], ...],
    unit: str = "%",
) -> Figure:
    """Lanes at both widths, the axis reaching over all marks and zero."""
    values = [0.0, *(x for row in rows for _, _, x in row.points)]
    values += [x for row in rows for _, start, end in (*row.spans, *row.boxes) for x in (start, end)]

    def label(value: float, digits: int) -> str:
        return labels.percent(value, digits) if unit == "%" else labels.tick(value, digits) + unit

    low, high = min(values), max(values)
    wide = lanes(rows, low, high, label=label, narrow=False)
    narrow = lanes(rows, low, high, label=label, narrow=True)
    return Figure(name, title, desc, wide, table[0], table[1], legend, narrow)


def overhead_dots(
    rows: Sequence[Artifact], *, name: str = "overhead", title: str, desc: str
) -> Figure | None:
    """Overhead of each row as a mark with its interval, grouped by model and GPU, with a line at zero."""
    shown = sorted(
        newest(rows),
        key=lambda row: (labels.model(row), labels.gpu(row), labels.measured_seconds(row) or 0, row.id),
    )
    if not shown:
        return None
    drawn = [
        Lane(
            label=f"{labels.length(row)}, {labels.order(row)}",
            value=labels.percent(row.overhead_pct),
            points=((symbol(row), paint(row), row.overhead_pct or 0.0),),
            spans=((f"c-interval {paint(row)}", *ends),) if (ends := _ends(row)) else (),
            group=f"{labels.model(row)} on {labels.gpu(row)}",
        )
        for row in shown
    ]
    if len(shown) < len(_with_overhead(rows)):
        desc += f" Only the newest {len(shown)} rows are drawn; the results table holds all."
    body = tuple(
        (
            labels.title(row),
            row.evidence_tier,
            labels.percent(row.overhead_pct),
            labels.interval(*(_ends(row) or (None, None))),
        )
        for row in shown
    )
    head = ("Row", "Tier", "Overhead", "95% interval")
    return labelled_lanes(name, title, desc, drawn, table=(head, body), legend=_legend(shown))


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
    """Pair rows that differ in order only: same provider, GPU, model, length and tier, in order of date."""
    keys = ("provider", "gpu", "model", "duration_sec", "steps", "target_steps", "evidence_tier", "control")
    alike: dict[tuple[object, ...], dict[str | None, list[Artifact]]] = {}
    for row in sorted(_with_overhead(rows), key=lambda row: (row.date, row.id)):
        kind = tuple(getattr(row, key) for key in keys)
        alike.setdefault(kind, {}).setdefault(row.order, []).append(row)
    found = [
        OrderPair(first, second)
        for orders in alike.values()
        for first, second in zip(orders.get("raw-first", ()), orders.get("protected-first", ()), strict=False)
    ]
    return tuple(sorted(found, key=lambda pair: -abs(pair.gap)))


def order_effect(rows: Sequence[Artifact]) -> Figure | None:
    """Each pair of rows that differ in order only, joined: the length of the bar is not protection."""
    pairs = order_pairs(rows)
    if not pairs:
        return None
    drawn: list[Lane] = []
    body: list[tuple[str, ...]] = []
    for pair in pairs:
        both = (pair.raw_first, pair.protected_first)
        first, second = (row.overhead_pct or 0.0 for row in both)
        setting = f"{labels.model(both[0])}, {labels.gpu(both[0])}, {labels.length(both[0])}"
        gap = f"{abs(pair.gap):.2f}"
        points = tuple((symbol(row), paint(row), row.overhead_pct or 0.0) for row in both)
        drawn.append(Lane(setting, f"{gap} pts", points, (("c-span", first, second),)))
        body.append((setting, labels.percent(first), labels.percent(second), f"{gap} points"))
    widest = pairs[0]
    desc = (
        f"{len(pairs)} settings measured in both orders, each in a run of its own. The widest "
        f"pair is {abs(widest.gap):.1f} points apart, {labels.percent(widest.raw_first.overhead_pct)} and "
        f"{labels.percent(widest.protected_first.overhead_pct)}: far more than any cost claimed."
    )
    table = (("Setting", "Raw first", "Protected first", "Apart"), tuple(body))
    legend = (_LEGEND["raw-first"], _LEGEND["protected-first"])
    return labelled_lanes(
        "order-effect", "The same measurement with the legs swapped", desc, drawn, table=table, legend=legend
    )


def raw_speed(rows: Sequence[Artifact], *, gpu: str, model: str) -> Figure | None:
    """Rates of both arms of like rows: how much machines differ before protection comes in."""
    shown = [row for row in _with_overhead(rows) if row.gpu == gpu and row.model == model]
    shown = sorted(
        (row for row in shown if labels.rate(row, "raw")), key=lambda row: labels.rate(row, "raw") or 0.0
    )
    if len(shown) < 2:
        return None
    drawn: list[Lane] = []
    body: list[tuple[str, ...]] = []
    raws: list[float] = []
    for row in shown:
        raw, protected = labels.rate(row, "raw") or 0.0, labels.rate(row, "protected") or 0.0
        raws.append(raw)
        points = (("dot", "arm-raw", raw), ("dot", "arm-protected", protected))
        label = f"{labels.length(row)}, {labels.order(row)}"
        drawn.append(Lane(label, f"{raw:,.0f}", points, (("c-span", raw, protected),)))
        body.append((labels.title(row), labels.number(raw), labels.number(protected)))
    unit, model_name = shown[0].unit, labels.model(shown[0])
    desc = (
        f"Unprotected speed runs from {min(raws):,.0f} to {max(raws):,.0f} {unit} per second, a factor of "
        f"{max(raws) / min(raws):.2f} between runs on one GPU type."
    )
    return labelled_lanes(
        f"raw-speed-{gpu}",
        f"Speed of {model_name} on {labels.gpu(shown[0])}, {unit} per second",
        desc,
        drawn,
        table=(("Row", f"Raw, {unit}/s", f"Protected, {unit}/s"), tuple(body)),
        legend=(("dot arm-raw", "raw leg (its rate is given)"), ("dot arm-protected", "protected leg")),
        unit="",
    )


def fixed_cost(rows: Sequence[Artifact]) -> Figure | None:
    """Seconds that protection adds once a run, phase by phase, one stacked bar a row."""
    shown = [row for row in rows if row.fixed_cost_sec][-MOST:]
    if not shown:
        return None
    drawn: list[Lane] = []
    body: list[tuple[str, ...]] = []
    totals: list[float] = []
    for row in shown:
        parts = [(row.fixed_cost_sec or {}).get(phase, 0.0) for phase in PHASES]
        edges = [sum(parts[:index]) for index in range(len(parts) + 1)]
        boxes = tuple(
            (f"p-{index}", start, end) for index, (start, end) in enumerate(pairwise(edges)) if end > start
        )
        label = f"{labels.model(row)}, {labels.gpu(row)}, {labels.order(row)}"
        drawn.append(Lane(label, labels.seconds(edges[-1]), (), boxes=boxes))
        body.append((labels.title(row), *(labels.number(part) for part in parts), labels.number(edges[-1])))
        totals.append(edges[-1])
    span = labels.seconds(totals[0]) + " in all."
    if len(totals) > 1:
        span = f"between {labels.seconds(min(totals))} and {labels.seconds(max(totals))} in all."
    return labelled_lanes(
        "fixed-cost",
        "What protection costs once a run, in seconds",
        f"Seconds spent on {', '.join(PHASES)}; {span} A longer run pays the same once.",
        drawn,
        table=(("Row", *(f"{phase}, s" for phase in PHASES), "Total, s"), tuple(body)),
        legend=tuple((f"swatch p-{index}", phase) for index, phase in enumerate(PHASES)),
        unit=f"{labels.NBSP}s",
    )


def by_length(rows: Sequence[Artifact]) -> Figure | None:
    """Overhead against measured length (logarithmic), one mark a row."""
    pairs = [(row, length) for row in newest(rows) if (length := labels.measured_seconds(row))]
    if len(pairs) < 2:
        return None
    values = [row.overhead_pct or 0.0 for row, _ in pairs]
    at_values = ticks(min(0.0, *values), max(0.0, *values))
    height = 330.0
    up = scale(at_values[0], at_values[-1], height - 50, 16)
    low = math.log10(min(length for _, length in pairs)) - 0.1
    high = math.log10(max(length for _, length in pairs)) + 0.1
    across = scale(low, high, 64, WIDTH - 20)
    marks = [*y_axis(at_values, up, 64, WIDTH - 20, percent=True)]
    for second in (1, 5, 10, 60, 300, 900, 1800, 3600, 14400, 86400):
        if low <= math.log10(second) <= high:
            x = across(math.log10(second))
            marks.append(Mark("text", "t-axis", x, height - 28, text=labels.seconds(second), anchor="middle"))
            marks.append(Mark("line", "c-tick", x, height - 50, x, height - 44))
    marks.append(
        Mark("text", "t-axis", WIDTH - 20, height - 8, text="measured time of one arm", anchor="end")
    )
    for row, length in pairs:
        x = across(math.log10(length))
        if ends := _ends(row):
            marks.append(Mark("line", f"c-interval {paint(row)}", x, up(ends[0]), x, up(ends[1])))
        marks.append(Mark(symbol(row), paint(row), x, up(row.overhead_pct or 0.0)))
    long_rows = [row.overhead_pct or 0.0 for row, length in pairs if length >= 900 and _ends(row) is None]
    desc = f"{len(pairs)} rows."
    if long_rows:
        desc += (
            f" Single pairs of fifteen minutes and more still run from {labels.percent(min(long_rows))} to "
            f"{labels.percent(max(long_rows))}: longer runs alone did not settle the figure."
        )
    body = tuple(
        (labels.title(row), labels.seconds(length), labels.percent(row.overhead_pct))
        for row, length in sorted(pairs, key=lambda pair: pair[1])
    )
    wide = Drawing(WIDTH, height, tuple(marks))
    head = ("Row", "Measured", "Overhead")
    return Figure(
        "by-length", "Overhead by run length", desc, wide, head, body, _legend(row for row, _ in pairs)
    )


def cost_by_length(row: Artifact) -> Figure | None:
    """Overhead in all of a run of length W: fixed seconds spread over W, and the steady state.

    Of an inconclusive row only the band is drawn: its point is noise, and must not be extrapolated.
    """
    # A single pair's percentage is not a steady state: only a row with an interval is extrapolated.
    ends = _ends(row)
    if row.overhead_pct is None or not row.fixed_cost_sec or ends is None or max(ends) >= 100:
        return None
    fixed = sum(row.fixed_cost_sec.get(phase, 0.0) for phase in PHASES)
    low, high = ends
    open_end = row.overhead is not None and row.overhead.verdict == "inconclusive"

    def total(raw_seconds: float, steady_pct: float) -> float:
        return overhead_at(raw_seconds, fixed, steady_pct)

    points = (60.0, 600.0, 3600.0, 21600.0, 86400.0)
    lengths = [points[0] * (points[-1] / points[0]) ** (index / 60) for index in range(61)]
    at_values = ticks(min(0.0, *(total(x, low) for x in lengths)), max(total(x, high) for x in lengths))
    height = 280.0
    up = scale(at_values[0], at_values[-1], height - 50, 16)
    across = scale(math.log10(points[0]), math.log10(points[-1]), 64, WIDTH - 40)
    marks = [*y_axis(at_values, up, 64, WIDTH - 20, percent=True)]
    for point in points:
        x = across(math.log10(point))
        marks.append(Mark("text", "t-axis", x, height - 28, text=_length(point), anchor="middle"))
    at = [(across(math.log10(x)), x) for x in lengths]
    edge = [(x, up(total(length, high))) for x, length in at]
    edge += [(x, up(total(length, low))) for x, length in reversed(at)]
    marks.append(Mark("path", "c-band", text=path(edge) + "Z"))
    legend = [("swatch c-band", "95% interval of the steady state, and the fixed cost")]
    desc = f"Fixed cost {labels.seconds(fixed)}, steady state {labels.interval(*ends)}. "
    if open_end:
        desc += "At this margin the steady state was not told from zero: no line is drawn in the band. "
    else:
        steady = up(row.overhead_pct)
        marks.append(Mark("line", "c-steady", 64, steady, WIDTH - 20, steady))
        line = path((x, up(total(length, row.overhead_pct))) for x, length in at)
        marks.append(Mark("path", "c-protected", text=line))
        legend += [
            ("line c-protected", "fixed cost and steady state"),
            ("line c-steady", "steady state alone"),
        ]
    desc += "; ".join(
        f"{name} pays {labels.interval(total(length, low), total(length, high))}"
        for name, length in (("A run of one minute", 60.0), ("one of an hour", 3600.0))
    )
    body = tuple(
        (
            _length(point),
            labels.DASH if open_end else labels.percent(total(point, row.overhead_pct)),
            labels.interval(total(point, low), total(point, high)),
        )
        for point in points
    )
    wide = Drawing(WIDTH, height, tuple(marks))
    head = ("Raw training time", "Overhead in all", "95% interval")
    title = "What a whole run pays, by its length"
    return Figure("cost-by-length", title, desc + ".", wide, head, body, tuple(legend))


def _length(seconds: float) -> str:
    return labels.seconds(seconds) if seconds < 3600 else f"{seconds / 3600:g}{labels.NBSP}h"


def curves(
    name: str, title: str, protected: Curve, raw: Curve, *, x_label: str, y_label: str
) -> Figure | None:
    """Two curves over one pair of axes: the protected arm and the raw one."""
    points = [*protected, *raw]
    if len(protected) < 2:
        return None
    x_ticks = ticks(0.0, max(point[0] for point in points))
    y_ticks = ticks(min(point[1] for point in points), max(point[1] for point in points), 5)
    height = 260.0
    across = scale(x_ticks[0], x_ticks[-1], 76, WIDTH - 20)
    up = scale(y_ticks[0], y_ticks[-1], height - 50, 16)
    marks = [*y_axis(y_ticks, up, 76, WIDTH - 20)]
    marks += [
        Mark("text", "t-axis", across(value), height - 28, text=text, anchor="middle")
        for value, text in ((value, labels.tick(value, decimals(x_ticks))) for value in x_ticks)
    ]
    marks.append(Mark("text", "t-axis", WIDTH - 20, height - 8, text=x_label, anchor="end"))
    for css, curve in (("c-raw", raw), ("c-protected", protected)):
        if len(curve) > 1:
            line = path((across(point[0]), up(point[1])) for point in curve)
            marks.append(Mark("path", css, text=line))
    body = tuple(
        (arm, labels.number(float(point[0])), labels.number(float(point[1])))
        for arm, curve in (("protected", protected), ("raw", raw))
        for point in thinned(curve, 12)
    )
    desc = f"{y_label.capitalize()} over {x_label}, in the first complete slot of each arm. "
    desc += f"The protected one ends at {labels.number(float(protected[-1][1]))}"
    desc += f", the raw one at {labels.number(float(raw[-1][1]))}." if raw else "."
    legend = [("line c-protected", "protected")] + ([("line c-raw", "raw")] if raw else [])
    wide = Drawing(WIDTH, height, tuple(marks))
    return Figure(name, title, desc, wide, ("Arm", x_label, y_label), body, tuple(legend))


def thinned(curve: Curve, count: int) -> Curve:
    """At most `count` points of a curve, its ends included."""
    if len(curve) <= count:
        return curve
    return tuple(curve[round(index * (len(curve) - 1) / (count - 1))] for index in range(count))


def throughput(curve: Curve) -> Curve:
    """Turn cumulative (seconds, units) into (seconds, units per second) between neighbours."""
    pairs = pairwise(curve)
    return tuple(
        (end[0], (end[1] - start[1]) / (end[0] - start[0])) for start, end in pairs if end[0] > start[0]
    )
