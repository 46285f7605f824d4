"""What a run or sweep would do, how long it may take and what it can cost at most.

  glasshouse plan -m gpu=h100,pro6000 duration=1800
  glasshouse plan -m gpu=h100,pro6000 duration=1800 --against main    the change as Markdown, for a review

Reads conf/, and what bench/lifecycle.py measured on this machine: no key, no network, nothing rented. "At
most" is what the cost cap is held against: every boot attempt and every leg at its deadline, at the dearest
price that conf/gpu accepts. Of a project it says what it needs and the machine has, as far as that is known
(of provider=local: its interpreter is asked). What the lifecycle is expected to cost (expected.py) bounds
nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glasshouse import config
from glasshouse.commands.against import difference
from glasshouse.commands.expected import FixedCost, fixed_cost
from glasshouse.commands.needed import needed
from glasshouse.commands.records import RUNS
from glasshouse.commands.terminal import columns, emit, say, table
from glasshouse.errors import UsageError
from glasshouse.lifecycle.goes_on import planned_lines
from glasshouse.measurement.schedule import build_schedule
from glasshouse.paths import Workspace
from glasshouse.providers.money import (
    beside_usd,
    cap_usd,
    ceiling_sec,
    cost_ceiling,
    machines,
    rental_deadline_sec,
)
from glasshouse.runtime.comes_back import WHOLE
from glasshouse.runtime.params import GRACE_SEC
from glasshouse.schema import Slot
from glasshouse.spec import CloudProvider, Job, ProjectModel, RunSpec
from glasshouse.workloads.folder_lines import comes_back, size_words
from glasshouse.workloads.outlook import Outlook


@dataclass(frozen=True)
class Cell:
    """One run of a plan. hours and max_usd bound it; scheduled_hours is warm-up and measured time alone,
    None where the work is fixed instead of the time. fixed_cost is what its lifecycle is expected to take.
    needs: what becomes of a project's requirements and imports; None of other models.
    """

    overrides: list[str]
    spec: RunSpec
    slots: tuple[Slot, ...]
    hours: float
    scheduled_hours: float | None
    max_usd: float
    fixed_cost: FixedCost
    needs: Outlook | None = None


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("overrides", nargs="*", metavar="NAME=VALUE", help="as for a run")
    parser.add_argument("-m", "--multirun", action="store_true", help="a sweep over comma-separated values")
    parser.add_argument(
        "--out", type=Path, default=RUNS, metavar="DIR", help="where from= looks for RUN (runs)"
    )
    parser.add_argument("--against", metavar="REF", help="print what differs from conf/ at this git revision")


def run(args: argparse.Namespace) -> int:
    """Print the plan, or with --against the difference."""
    if args.against:
        found = difference(args.overrides, args.against, sweep=args.multirun, conf=_reviewed(args))
        if args.json:
            emit(found.as_json())
        else:
            say(found.markdown())
        return 0
    cells = plan(args.overrides, sweep=args.multirun, conf=args.workspace.conf, runs=args.out)
    if args.json:
        emit(as_json(cells))
    else:
        _print(cells)
    return 0


def _reviewed(args: argparse.Namespace) -> Path:
    """Return the conf/ that git knows. Raises UsageError for settings that came in a wheel."""
    workspace: Workspace = args.workspace
    if not workspace.source and args.conf is None:
        raise UsageError(
            "the settings of an installed program have no history",
            field="against",
            value=args.against,
            remedy="give --conf DIR, conf/ in a clone of the repository",
        )
    return workspace.conf


def plan(overrides: Sequence[str], *, sweep: bool, conf: Path | None = None, runs: Path = RUNS) -> list[Cell]:
    """Resolve every cell and bound its time and cost. Raises UsageError."""
    if sweep or config.wants_sweep(overrides, conf=conf):
        cells = config.expand(overrides, conf=conf)
    else:
        cells = [list(overrides)]
    return [_cell(cell, config.load(cell, conf=conf, runs=runs), conf) for cell in cells]


def _cell(overrides: list[str], spec: RunSpec, conf: Path | None) -> Cell:
    slots = build_schedule(spec)
    timed = [slot.warmup_sec + slot.measured_sec for slot in slots if slot.measured_sec is not None]
    return Cell(
        overrides=overrides,
        spec=spec,
        slots=slots,
        hours=rental_deadline_sec(spec) / 3600 * machines(spec),
        scheduled_hours=sum(timed) / 3600 if len(timed) == len(slots) else None,
        max_usd=cost_ceiling(spec) * machines(spec),
        fixed_cost=fixed_cost(spec, slots),
        needs=needed(spec, conf),
    )


def as_json(cells: Sequence[Cell]) -> dict[str, Any]:
    """Return the plan's JSON form; hours and maxUsd are ceilings. besideUsd: of one machine that a create
    without an answer may make beside the budgeted one, where the cap holds for it. fixedCost: expected.
    ceilingSec: after which a job is asked to end, from its start; null of a run that measures.
    """
    return {
        "cells": [
            {
                "overrides": cell.overrides,
                "spec": cell.spec.model_dump(mode="json"),
                "slots": len(cell.slots),
                "scheduledHours": cell.scheduled_hours,
                "machines": machines(cell.spec),
                "ceilingSec": ceiling_sec(cell.spec),
                "hours": cell.hours,
                "maxUsd": cell.max_usd,
                "besideUsd": beside_usd(cell.spec),
                "fixedCost": cell.fixed_cost.as_json(),
                "needs": None if cell.needs is None else cell.needs.as_json(),
            }
            for cell in cells
        ],
        "hours": sum(cell.hours for cell in cells),
        "maxUsd": sum(cell.max_usd for cell in cells),
        "capUsd": cap_usd([cell.spec for cell in cells]),
    }


def _print(cells: Sequence[Cell]) -> None:
    rows = [
        [
            number,
            " ".join(cell.overrides) or "(defaults)",
            cell.spec.provider.kind,
            cell.spec.gpu.name,
            cell.spec.model.name,
            cell.spec.order,
            cell.spec.amount,
            len(cell.slots),
            None if cell.scheduled_hours is None else cell.scheduled_hours * 60,
            cell.hours * 60,
            cell.max_usd,
        ]
        for number, cell in enumerate(cells)
    ]
    header = [
        "cell", "overrides", "provider", "gpu", "model", "order", "each arm", "slots",
        "scheduled min", "at most min", "at most USD",
    ]  # fmt: skip
    if all(cell.spec.job for cell in cells):
        _print_jobs(cells)
    else:
        say(table(header, rows))
        say()
        for number, cell in enumerate(cells):
            if not cell.spec.job:
                say(f"cell {number} schedule: {drawn(cell.slots)}")
        say("P protected, R raw, one fresh process each; [ ] burn-in, not counted")
    say()
    costs = [cell.fixed_cost.words() for cell in cells]
    for number, words in enumerate(costs[:1] if len(set(costs)) == 1 else costs):
        say(words if len(set(costs)) == 1 else f"cell {number} {words}")
    for number, cell in enumerate(cells):
        for line in [] if cell.needs is None else cell.needs.lines():
            say(line if len(cells) == 1 else f"cell {number} {line}")
    models = [cell.spec.model for cell in cells]
    for words in dict.fromkeys(comes_back(m.outputs) for m in models if isinstance(m, ProjectModel)):
        say(words)
    for words in dict.fromkeys(filter(None, (_checkpoint_line(cell.spec) for cell in cells))):
        say(words)
    for words in dict.fromkeys(_memory_line(cell) for cell in cells if cell.spec.workload == "project"):
        say(words)
    for words in dict.fromkeys(_ceiling_line(cell.spec) for cell in cells if cell.spec.job):
        say(words)
    for words in dict.fromkeys(line for cell in cells for line in _going_on_lines(cell.spec)):
        say(words)
    for words in dict.fromkeys(line for cell in cells for line in planned_lines(cell.spec)):
        say(words)
    say()
    for words in dict.fromkeys(_machines_line(cell) for cell in cells if machines(cell.spec) > 1):
        say(words)
    total = sum(cell.max_usd for cell in cells)
    if not total and all(cell.spec.job and not cell.spec.paid for cell in cells):
        say("nothing is rented: it costs nothing")
        return
    say(f"together at most {sum(cell.hours for cell in cells):.2f} h and {total:.2f} USD")
    if total > 0:
        say(_cap_line(total, cap_usd([cell.spec for cell in cells])))
        for line in dict.fromkeys(map(_beside_line, (cell.spec for cell in cells))):
            if line:
                say(line)


def _print_jobs(cells: Sequence[Cell]) -> None:
    """The table of private jobs, where no arm is compared and, on a machine of one's own, nothing is paid."""
    paid = any(cell.spec.paid for cell in cells)
    header = ["cell", "provider", "gpu", "model", "until", *(["at most min", "at most USD"] if paid else [])]
    rows: list[list[object]] = [
        [
            number,
            cell.spec.provider.kind,
            cell.spec.gpu.name,
            cell.spec.model.name,
            "its command ends" if cell.spec.workload == "project" else cell.spec.amount,
            *([cell.hours * 60, cell.max_usd] if paid else []),
        ]
        for number, cell in enumerate(cells)
    ]
    if len(cells) > 1:  # one cell's are what was typed, a project's command among them
        header.append("settings")
        for row, cell in zip(rows, cells, strict=True):
            row.append(" ".join(cell.overrides) or "(defaults)")
    say(table(header, rows, columns() if len(cells) > 1 else None))


def _machines_line(cell: Cell) -> str:
    """How many machines a job may take that can be taken away, and what each may cost."""
    count = machines(cell.spec)
    return (
        f"interruptible: up to {count} machines, one after the other, each for at most "
        f"{cell.hours / count:.2f} h and {cell.max_usd / count:.2f} USD. One that is taken away is replaced "
        "once it is proven gone, and the job goes on from its last checkpoint, while a controller lives "
        f"(model.max_resumes={count - 1})"
    )


def _ceiling_line(spec: RunSpec) -> str:
    """When a job is asked to end, and by which setting."""
    hours = (ceiling_sec(spec) or 0.0) / 3600
    given = isinstance(spec.model, Job) and spec.model.max_hours is not None
    why = "model.max_hours"
    if not given and spec.duration is not None:
        extra = spec.measure.leg_deadline_extra_sec
        why = f"duration, and {extra:g} s to start in: measure.leg_deadline_extra_sec"
    elif not given:
        why = "the longest that there is: model.max_hours sets another"
    return (
        f"ceiling: {hours:.4g} h from its start ({why}); it is asked to end then, has {GRACE_SEC:.0f} s to "
        "save, and what it has comes back"
    )


def _going_on_lines(spec: RunSpec) -> list[str]:
    if spec.continues is None:
        return []
    from glasshouse.lifecycle.resumed import line  # noqa: PLC0415  it needs what opens a seal

    return line(spec)


def _checkpoint_line(spec: RunSpec) -> str:
    """What a job's checkpoints are of, and the room that they need; "" of a run that has none."""
    model = spec.model
    if spec.payload != "private" or not isinstance(model, Job) or not model.checkpoint_min:
        return ""
    of = "what it goes on from"
    if isinstance(model, ProjectModel):
        whole = model.outputs == WHOLE
        of = "what it made or changed by then" if whole else f"{model.outputs} as it is then"
    return (
        f"checkpoints: every {model.checkpoint_min:g} min (model.checkpoint_min), {of}; two are kept: "
        "the machine's disk needs room for two, for a third while one is fetched, and this one for two"
    )


def _memory_line(cell: Cell) -> str:
    """What of a project's memory is known before a machine is, and what only the machine tells."""
    known = cell.fixed_cost.payload_bytes
    least = "all of the project's files" if known is None else f"at least {size_words(known)}"
    kind = cell.spec.provider.kind
    rented = isinstance(cell.spec.provider, CloudProvider)
    asked = f"{kind}'s create call has no field to ask for it, so " if rented else ""
    return (
        f"shared memory needed: {least}, and room for what it writes; {asked}whether the machine has it is "
        "found out there, before anything is uploaded"
    )


def _cap_line(total: float, cap: float | None) -> str:
    if cap is None:
        return "no cap is set, so nothing would be rented: export GLASSHOUSE_MAX_USD or give spend.max_usd="
    return f"cap {cap:.2f} USD: " + (
        "it fits" if total <= cap else "it does not fit, so nothing would be rented"
    )


def _beside_line(spec: RunSpec) -> str:
    """What creates without an answer can cost beside that; "" on a free provider."""
    if not isinstance(spec.provider, CloudProvider):
        return ""
    most, one = spec.provider.max_doubts, beside_usd(spec)
    return (
        f"beside that, where the cap holds for it: a create that gets no answer may make a machine of up to "
        f"{one:.2f} USD; at most {most} of them at once (provider.max_doubts)"
    )


def drawn(slots: Sequence[Slot]) -> str:
    """Draw a schedule as letters, a block or pair a word."""
    words: dict[tuple[bool, int | None], str] = {}
    for slot in slots:
        key = (slot.burn_in, slot.block)
        words[key] = words.get(key, "") + slot.arm[0].upper()
    return " ".join(f"[{word}]" if burn_in else word for (burn_in, _), word in words.items())
