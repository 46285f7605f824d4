"""The runs in runs/: what each one was, whether it counts, and the overhead it found."""

from __future__ import annotations

import argparse
from pathlib import Path

from glasshouse.commands.records import RUNS, Found, find_runs
from glasshouse.commands.terminal import columns, emit, say, table


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--out", type=Path, default=RUNS, metavar="DIR", help="where run folders are (runs)")


def run(args: argparse.Namespace) -> int:
    """List the runs, oldest first."""
    found = find_runs(args.out)
    if args.json:
        emit({"runs": [_as_json(item) for item in found]})
    elif not found:
        say(f"no runs in {args.out}; `python -m glasshouse` makes one")
    else:
        say(listed(found, columns()))
    return 0


def listed(found: list[Found], width: int | None) -> str:
    """The table. Where it is too wide for a terminal of `width`, columns are left out, never a run's id:
    the number of caveats, the overhead where no run has one, the rows' ids, until when a run is unattended.
    """
    head = ["run", "status", "overhead %", "caveats", "row, why excluded, or control"]
    rows = [
        [
            item.run,
            item.state,
            item.overhead_pct,
            len(item.caveats),
            ", ".join(item.exclusion) or item.control or item.row or "",
        ]
        for item in found
    ]
    text = table(head, rows)
    if width is None or max(map(len, text.split("\n"))) <= width:
        return text
    kept = [0, 1, *([2] if any(item.overhead_pct is not None for item in found) else [])]
    short = [
        [item.run, item.status, *(row[at] for at in kept[2:]), ", ".join(item.exclusion) or item.control]
        for row, item in zip(rows, found, strict=True)
    ]
    return table([*(head[at] for at in kept), "why excluded, or control"], short, width)


def _as_json(item: Found) -> dict[str, object]:
    control = None if item.record is None else item.record.figures.control
    until = {"unattendedUntil": item.unattended_until} if item.status == "unattended" else {}
    return {
        "path": str(item.path),
        "run": item.run,
        "id": item.row,
        "status": item.status,
        "overheadPct": item.overhead_pct,
        "control": None if control is None else control.model_dump(by_alias=True, exclude_unset=True),
        "exclusion": list(item.exclusion),
        "caveats": list(item.caveats),
        **until,
    }
