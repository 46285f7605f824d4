"""What may be said of a record's overhead where people read it: a result, a control's outcome, or nothing.

One rule for the table after a run, `glasshouse runs` and `glasshouse show`. The record keeps every figure.
"""

from __future__ import annotations

from glasshouse.judgement.record import Figures

ARMS = {"aa": "raw against raw", "delay": "raw against raw with a known delay"}


def overhead_stated(figures: Figures) -> float | None:
    """Return the overhead in percent that a record states as a result, None where it states none.

    None for a control, which measures the method, and for blocks of which too few are left for an interval.
    """
    return None if figures.control is not None or blocks_lost(figures) else figures.overhead_pct


def control_line(figures: Figures) -> str:
    """Say that a run is a control and how it came out, "" for one that is none."""
    control = figures.control
    if control is None:
        return ""
    said = f"control {control.kind} ({ARMS[control.kind]}), not a result: {control.outcome}"
    if control.reason:
        said += f", {control.reason}"
    expected, observed = control.expected_pct, figures.overhead_pct
    if expected is not None and observed is not None and not blocks_lost(figures):
        said += f"; a difference of {expected:.2f} % was to be seen, {observed:.2f} % was"
    return said


def blocks_lost(figures: Figures) -> str:
    """Say why a block design states no figure, "" where it may state one or is none."""
    overhead = figures.overhead
    if figures.order != "abba" or overhead is None or overhead.method != "none":
        return ""
    left, dropped = overhead.blocks, overhead.dropped_blocks
    return f"{left} of {left + dropped} blocks left after dropping disturbed and incomplete ones: no figure"
