"""What may be said of a record's overhead where people read it: a result, a control's outcome, or nothing.

One rule for the table after a run, `glasshouse runs` and `glasshouse show`. The record keeps every figure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ARMS = {"aa": "raw against raw", "delay": "raw against raw with a known delay"}


def overhead_stated(record: Mapping[str, Any]) -> float | None:
    """Return the overhead in percent that a record states as a result, None where it states none.

    None for a control, which measures the method, and for blocks of which too few are left for an interval.
    """
    figures = record.get("figures") or {}
    if figures.get("control") or blocks_lost(record):
        return None
    value = figures.get("overheadPct")
    return float(value) if isinstance(value, int | float) else None


def control_line(record: Mapping[str, Any]) -> str:
    """Say that a run is a control and how it came out, "" for one that is none."""
    figures = record.get("figures") or {}
    control = figures.get("control")
    if not control:
        return ""
    kind = str(control.get("kind"))
    expected, observed = control.get("expectedPct"), figures.get("overheadPct")
    said = f"control {kind} ({ARMS.get(kind, 'unknown kind')}), not a result: {control.get('outcome')}"
    if control.get("reason"):
        said += f", {control['reason']}"
    if isinstance(expected, int | float) and isinstance(observed, int | float) and not blocks_lost(record):
        said += f"; a difference of {expected:.2f} % was to be seen, {observed:.2f} % was"
    return said


def blocks_lost(record: Mapping[str, Any]) -> str:
    """Say why a block design states no figure, "" where it may state one or is none."""
    figures = record.get("figures") or {}
    overhead = figures.get("overhead") or {}
    if figures.get("order") != "abba" or overhead.get("method", "none") != "none" or not overhead:
        return ""
    left, dropped = overhead.get("blocks", 0), overhead.get("droppedBlocks", 0)
    return f"{left} of {left + dropped} blocks left after dropping disturbed and incomplete ones: no figure"
