"""One run: what it was, its figures, each check, each caveat with its meaning, and its curves.

glasshouse show 20260101-120000-abcdef
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from glasshouse.canonical import CanonicalError, parse_json
from glasshouse.commands.records import RUNS, Found, pick_run
from glasshouse.commands.terminal import emit, say, spark, table
from glasshouse.judgement.caveats import caveat
from glasshouse.judgement.rules import RULES
from glasshouse.judgement.stated import blocks_lost, overhead_stated
from glasshouse.reasons import reason


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("run", metavar="RUN", help="a run folder, a run id or its beginning, or a row id")
    parser.add_argument("--out", type=Path, default=RUNS, metavar="DIR", help="where run folders are (runs)")


def run(args: argparse.Namespace) -> int:
    """Print the run; exit code 0 whatever its status: this only shows."""
    found = pick_run(args.run, args.out)
    if args.json:
        emit({"path": str(found.path), "status": found.status, "record": found.record})
        return 0
    say(f"run {found.run}: {found.status}" + (f", row {found.row}" if found.row else ""))
    if not found.record:
        say("it has no record; `glasshouse reap` finishes what a killed controller left")
        return 0
    if found.control:
        say(f"this is a {found.control}")
    exclusion = found.record.get("exclusion")
    if exclusion:
        say(f"excluded: {', '.join(exclusion['codes'])}")
        say(f"  {exclusion['observed']}")
    _figures(found.record)
    _curves(found)
    _checks(found)
    for code in exclusion["codes"] if exclusion else ():
        why = reason(code)
        say(f"\nreason {code}: {why.title}. {why.text}")
    for code in found.caveats:
        entry = _caveat(code)
        say(f"\ncaveat {code}: {entry}")
    say("\nshown, not verified: `glasshouse verify` recomputes all of this from the bundle")
    return 0


def _figures(record: dict[str, Any]) -> None:
    figures = record.get("figures") or {}
    arms = [(_second_arm(figures), figures.get("protected")), ("raw", figures.get("raw"))]
    rows = [
        [
            name,
            arm.get("slots"),
            arm.get("units"),
            arm.get("elapsedSec"),
            arm.get("perSec"),
            arm.get("finalLoss"),
        ]
        for name, arm in arms
        if isinstance(arm, dict)
    ]
    unit = figures.get("unit") or "units"
    if rows:
        say()
        say(table(["arm", "slots", unit, "seconds", f"{unit}/s", "final loss"], rows))
    overhead = figures.get("overhead") or {}
    stated = overhead_stated(record)
    if lost := blocks_lost(record):
        say(f"\nno overhead is stated: {lost}")
    if stated is not None:
        low, high = overhead.get("ciLowPct"), overhead.get("ciHighPct")
        interval = (
            f" [{low:.2f}, {high:.2f}], n={overhead.get('n')}" if low is not None and high is not None else ""
        )
        say(f"\nsteady-state overhead {stated:.2f} %{interval}")
    fixed = figures.get("fixedCostSec")
    if isinstance(fixed, dict):
        parts = ", ".join(
            f"{name} {value:.2f}" for name, value in fixed.items() if isinstance(value, int | float)
        )
        say(f"fixed cost, seconds: {parts}")


def _curves(found: Found) -> None:
    curves = list(_results(found.path / "bundle" / "legs"))
    if (found.record.get("figures") or {}).get("order") == "abba":
        _over_slots(found.record["figures"], curves)
        return
    for leg, result in curves:
        losses = [point[1] for point in result.get("lossCurve") or []]
        rates = _rates(result.get("throughputCurve") or [])
        if losses:
            say(f"\n{leg} loss        {spark(losses)}  {losses[0]:.4g} to {losses[-1]:.4g}")
        if rates:
            say(f"{leg} throughput  {spark(rates)}  {min(rates):.4g} to {max(rates):.4g} a second")


def _over_slots(figures: dict[str, Any], curves: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Of a block design: what each arm did slot after slot, both arms on one scale."""
    slots = [slot for slot in figures.get("slots") or [] if not slot["burnIn"] and slot["perSec"] is not None]
    rates = [(slot["leg"], slot["perSec"]) for slot in slots]
    counted = {_slot(leg) for leg, _ in rates}
    ends = [(leg, result["lossCurve"][-1:]) for leg, result in curves if _slot(leg) in counted]
    losses = [(leg, end[0][1]) for leg, end in ends if end]
    unit = figures.get("unit") or "units"
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


def _second_arm(figures: dict[str, Any]) -> str:
    return "raw as protected" if figures.get("control") else "protected"


def _results(legs: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each leg's result: a file of its own for a raw leg, the `trained` event for a protected one."""
    for folder in sorted(legs.iterdir()) if legs.is_dir() else ():
        for line in _lines(folder):
            try:
                value = parse_json(line)
            except CanonicalError:
                continue
            if isinstance(value, dict) and value.get("type") == "trained":
                value = value["body"].get("result")
            if isinstance(value, dict) and "lossCurve" in value:
                yield folder.name, value


def _lines(folder: Path) -> list[bytes]:
    raw, events = folder / "result.json", folder / "events.jsonl"
    if raw.is_file():
        return [raw.read_bytes()]
    return events.read_bytes().splitlines() if events.is_file() else []


def _rates(points: list[list[float]]) -> list[float]:
    """Turn cumulated [seconds, units] into units a second between neighbouring points."""
    pairs = itertools.pairwise(points)
    return [
        (after[1] - before[1]) / (after[0] - before[0]) for before, after in pairs if after[0] > before[0]
    ]


def _checks(found: Found) -> None:
    checks = found.record.get("checks") or []
    if checks:
        say()
        # A code names the failure: beside a check that holds stands what it demands.
        demands = {rule.code: rule.text for rule in RULES}
        rows = [
            [
                ("nothing checked" if item["detail"] else "ok") if item["ok"] else "FAILED",
                item["code"],
                item["detail"] or demands.get(item["code"], ""),
            ]
            for item in checks
        ]
        say(table(["", "check", "detail"], rows))


def _caveat(code: str) -> str:
    try:
        entry = caveat(code)
    except KeyError:
        return "unknown to this version"
    return f"{entry.title}. {entry.text}"
