"""One run: what it was, its figures, each check, each caveat with its meaning, and its curves.

glasshouse show 20260101-120000-abcdef
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from glasshouse.commands.records import RUNS, Found, pick_run
from glasshouse.commands.terminal import columns, emit, folded, say, spark, table
from glasshouse.extras import missing
from glasshouse.judgement.caveats import caveat
from glasshouse.judgement.conclusions import blocks_lost, overhead_stated
from glasshouse.judgement.record import ChainFigures, CheckLine, Figures
from glasshouse.judgement.rules import RULES
from glasshouse.reasons import reason
from glasshouse.schema import Report, Result, steps_words


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("run", metavar="RUN", help="a run folder, a run id or its beginning, or a row id")
    parser.add_argument("--out", type=Path, default=RUNS, metavar="DIR", help="where run folders are (runs)")


def run(args: argparse.Namespace) -> int:
    """Print the run; exit code 0 whatever its status: this only shows."""
    found = pick_run(args.run, args.out)
    if args.json:
        returned = _returned(found.path / "bundle" / "legs")
        until = {"unattendedUntil": found.unattended_until} if found.status == "unattended" else {}
        emit(
            {
                "path": str(found.path),
                "status": found.status,
                **until,
                "record": found.as_json(),
                "returned": None if returned is None else returned.as_json(),
            }
        )
        return 0
    say(f"run {found.run}: {found.state}" + (f", row {found.row}" if found.row else ""))
    record = found.record
    if found.status == "unattended":
        say("its controller is gone; `glasshouse reap` asks its machine, and fetches what it left sealed")
        return 0
    if found.status == "running":
        look = f": `glasshouse watch {found.run}` shows how it stands" if found.is_job else ""
        say(f"its controller is running{look}")
        _watched(found)
        return 0
    if record is None:
        say("it has no record; `glasshouse reap` finishes what a killed controller left")
        _watched(found)
        return 0
    if found.control:
        say(f"this is a {found.control}")
    if record.exclusion is not None:
        say(f"excluded: {', '.join(record.exclusion.codes)}")
        say(f"  {record.exclusion.observed}")
    _figures(record.figures, job=found.is_job)
    if (returned := _returned(found.path / "bundle" / "legs")) is not None:
        say(returned.words(record.figures))
    curves = list(_results(found.path / "bundle" / "legs"))
    if record.figures.order == "abba":
        _over_slots(record.figures, curves)
    else:
        _of_each_leg(curves)
    _watched(found)
    _checks(record.checks)
    for code in record.reasons:
        why = reason(code)
        say(folded(f"\nreason {code}: {why.title}. {why.text}", columns()))
    for code in found.caveats:
        entry = _caveat(code)
        say(folded(f"\ncaveat {code}: {entry}", columns()))
    say("\nshown, not verified: `glasshouse verify` recomputes all of this from the bundle")
    return 0


class _Curves(Report):
    """Of a leg's result, what can be drawn: (units, loss) and (seconds, units)."""

    loss_curve: tuple[tuple[float, float | None], ...]
    throughput_curve: tuple[tuple[float, float], ...] = ()


class _Body(Report):
    result: _Curves


class _Trained(Report):
    """The event in which a protected leg reports its result."""

    type: Literal["trained"]
    body: _Body


@dataclass(frozen=True)
class Returned:
    """Whose weights came home, and how many optimizer steps these had made from the initial ones.

    warmup_steps: those among them that were made before the measured stretch, by legs of before.
    """

    leg: str
    steps: int
    warmup_steps: int

    def as_json(self) -> dict[str, str | int]:
        """Return what --json shows of it."""
        return {"leg": self.leg, "steps": self.steps, "warmupSteps": self.warmup_steps}

    def words(self, figures: Figures) -> str:
        """It in one line."""
        arm = figures.protected
        share = (
            f", its share of {arm.steps} in {arm.slots} slots" if arm is not None and arm.slots > 1 else ""
        )
        warm = f", {self.warmup_steps} of them while it warmed up" if self.warmup_steps else ""
        since = "the initial ones"
        if (chain := figures.chain) is not None:
            since = f"{_what(chain)} of {chain.runs[-1]}"
            if chain.steps is not None:
                since += f", {chain.steps} from the initial ones"
        return f"returned: weights of {self.leg}, {steps_words(self.steps)} from {since}{share}{warm}"


class _TrainedBody(Report):
    result: Result


class _Told(Report):
    """The event `trained`, with all of its result."""

    type: Literal["trained"]
    body: _TrainedBody


def _returned(legs: Path) -> Returned | None:
    """Of the last protected leg, what it returned; None where none trained, or a project did."""
    for folder in sorted(legs.iterdir(), reverse=True) if legs.is_dir() else ():
        events = folder / "events.jsonl"
        for line in events.read_bytes().splitlines() if events.is_file() else ():
            told = _Told.read(line)
            if told is not None and told.body.result.exit is None:
                made = round(told.body.result.trained_steps)
                return Returned(folder.name, made, made - told.body.result.steps)
    return None


def _done(figures: Figures) -> None:
    """Of a private job, where nothing is measured: what it did."""
    arm = figures.protected
    if arm is None:
        return
    told: dict[str, object] = {"steps": arm.steps or None}
    if figures.unit not in (None, "job"):
        told[str(figures.unit)] = arm.units
    told["seconds"] = arm.elapsed_sec
    if arm.final_loss is not None:
        told["final loss"] = arm.final_loss
    say()
    say(table(list(told), [list(told.values())]))


def _figures(figures: Figures, *, job: bool = False) -> None:
    unit = figures.unit or "units"
    rows = [
        [name, arm.slots, arm.units, arm.elapsed_sec, arm.per_sec, arm.final_loss]
        for name, arm in ((_second_arm(figures), figures.protected), ("raw", figures.raw))
        if arm is not None
    ]
    if job:
        _done(figures)
    elif rows:
        say()
        say(table(["arm", "slots", unit, "seconds", f"{unit}/s", "final loss"], rows))
    if lost := blocks_lost(figures):
        say(f"\nno overhead is stated: {lost}")
    stated, overhead = overhead_stated(figures), figures.overhead
    if stated is not None:
        interval = ""
        if overhead is not None and overhead.ci_low_pct is not None and overhead.ci_high_pct is not None:
            interval = f" [{overhead.ci_low_pct:.2f}, {overhead.ci_high_pct:.2f}], n={overhead.n}"
        say(f"\nsteady-state overhead {stated:.2f} %{interval}")
    if figures.fixed_cost_sec is not None:
        parts = ", ".join(f"{name} {value:.2f}" for name, value in figures.fixed_cost_sec.items())
        say(folded(f"fixed cost, seconds: {parts}", columns()))
    if figures.weights is not None and figures.protected is not None:
        say(f"the command counted {steps_words(figures.protected.steps)}; {figures.weights.words}")
    if figures.chain is not None:
        say(_chain(figures.chain, project=figures.unit == "job"))
    if figures.execs is not None:
        refused = f", refused {figures.execs.refused} times" if figures.execs.refused else ""
        say(f"the command started {figures.execs.words} by itself{refused}")


def _chain(chain: ChainFigures, *, project: bool) -> str:
    """What a job went on from, in a line."""
    most = "at most " if project else ""  # those after its last save were made again
    steps = "" if chain.steps is None else f"; {most}{chain.steps} optimizer steps in all runs together"
    before = ", ".join(chain.runs)
    return f"went on from {_what(chain)} of {chain.runs[-1]} (runs before: {before}){steps}"


def _what(chain: ChainFigures) -> str:
    return "the outputs" if chain.number is None else f"checkpoint {chain.number}"


def _of_each_leg(curves: Sequence[tuple[str, _Curves]]) -> None:
    for leg, result in curves:
        losses = [loss for _, loss in result.loss_curve if loss is not None]
        rates = _rates(result.throughput_curve)
        if losses:
            say(f"\n{leg} loss        {spark(losses)}  {losses[0]:.4g} to {losses[-1]:.4g}")
        if rates:
            say(f"{leg} throughput  {spark(rates)}  {min(rates):.4g} to {max(rates):.4g} a second")


def _watched(found: Found) -> None:
    """Of a private job whose sealed records are at home: its curves, which nothing public has."""
    if not (found.path / "watch").is_dir():
        return
    if missing("run"):
        say(
            "\nits curves are sealed for you: `glasshouse watch` opens them, and needs more than is installed"
        )
        return
    from glasshouse.commands.watch import drawn  # noqa: PLC0415  it needs what opens a seal

    for line in drawn(found):
        say(line)


def _over_slots(figures: Figures, curves: Sequence[tuple[str, _Curves]]) -> None:
    """Of a block design: what each arm did slot after slot, both arms on one scale."""
    rates = [
        (slot.leg, slot.per_sec) for slot in figures.slots if not slot.burn_in and slot.per_sec is not None
    ]
    counted = {_slot(leg) for leg, _ in rates}
    ends = [(leg, result.loss_curve[-1][1]) for leg, result in curves if result.loss_curve]
    losses = [(leg, loss) for leg, loss in ends if loss is not None and _slot(leg) in counted]
    unit = figures.unit or "units"
    for what, points in ((f"{unit}/s of each slot", rates), ("final loss of each slot", losses)):
        if not points:
            continue
        scale = [value for _, value in points]
        say(f"\n{what}, in the order they ran, both arms on one scale:")
        for arm, name in (("protected", _second_arm(figures)), ("raw", "raw")):
            own = [value for leg, value in points if f"-{arm}" in leg]
            if own:
                drawn = spark(own, scale=scale)
                say(f"{name:<{len(_second_arm(figures))}}  {drawn}  {min(own):.4g} to {max(own):.4g}")


def _slot(leg: str) -> str:
    """Return a slot's name without arm and launch: s003 of s003-protected-l2."""
    return leg.partition("-")[0]


def _second_arm(figures: Figures) -> str:
    return "raw as protected" if figures.control is not None else "protected"


def _results(legs: Path) -> Iterator[tuple[str, _Curves]]:
    """Yield each leg's result: a file of its own for a raw leg, the `trained` event for a protected one."""
    for folder in sorted(legs.iterdir()) if legs.is_dir() else ():
        raw, events = folder / "result.json", folder / "events.jsonl"
        if raw.is_file() and (result := _Curves.read(raw.read_bytes())) is not None:
            yield folder.name, result
        for line in events.read_bytes().splitlines() if events.is_file() else ():
            if (event := _Trained.read(line)) is not None:
                yield folder.name, event.body.result


def _rates(points: Sequence[tuple[float, float]]) -> list[float]:
    """Turn cumulated (seconds, units) into units a second between neighbouring points."""
    pairs = itertools.pairwise(points)
    return [
        (after[1] - before[1]) / (after[0] - before[0]) for before, after in pairs if after[0] > before[0]
    ]


def _checks(checks: Sequence[CheckLine]) -> None:
    if checks:
        say()
        # A code names the failure: beside a check that holds stands what it demands.
        demands: dict[str, str] = {rule.code: rule.text for rule in RULES}
        rows = [
            [
                ("nothing checked" if item.vacuous else "ok") if item.ok else "FAILED",
                item.code,
                item.detail or demands.get(item.code, ""),
            ]
            for item in checks
        ]
        say(table(["", "check", "detail"], rows, columns()))


def _caveat(code: str) -> str:
    try:
        entry = caveat(code)
    except KeyError:
        return "unknown to this version"
    return f"{entry.title}. {entry.text}"
