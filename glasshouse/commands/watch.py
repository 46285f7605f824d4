"""How a private job stands, opened with the owner's key: its curves, speed, GPUs, and what is left.

  glasshouse watch 20260101-120000-abcdef             until it has ended; Ctrl-C ends the looking alone
  glasshouse watch 20260101-120000-abcdef --json      one JSON object a record

What is drawn comes from what the job writes and prints: a Trainer's log history, tensorboard and W&B offline
files, lines of JSON, printed losses. Records come every half minute, later more rarely.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

from glasshouse.commands.logs import LOOK_SEC, NOBODY, stream
from glasshouse.commands.records import RUNS, Found, read_run
from glasshouse.commands.terminal import say
from glasshouse.commands.watched_runs import Job, Taken, explained, pick_job
from glasshouse.errors import SealError, UsageError, harmless, one_line
from glasshouse.watching.curves import Watched
from glasshouse.watching.draw import plot
from glasshouse.watching.words import as_json, length, now_lines

_CLEAR = "\x1b[H\x1b[2J"
_DRAWN = 2  # curves beneath each other


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("run", metavar="RUN", help="a run folder, a run id or its beginning")
    parser.add_argument("--once", action="store_true", help="show how it stands, and end")
    parser.add_argument("--out", type=Path, default=RUNS, metavar="DIR", help="where run folders are (runs)")


def run(args: argparse.Namespace) -> int:
    """Show each record as it comes, and at the end how it stood."""
    job = pick_job(args.run, args.out)
    live = sys.stdout.isatty() and not args.json and not args.once
    shown = time.monotonic()
    newest: Taken | None = None
    try:
        while True:
            over, followed = job.over, job.followed
            came = None
            for taken in job.new():
                came = newest = taken
                if args.json:
                    stream(_as_json(job, taken))
            if live and (came is not None or time.monotonic() - shown >= 60.0):
                shown = time.monotonic()
                sys.stdout.write(_CLEAR)
                _draw(job, newest)
            elif came is not None and not args.json and not args.once and followed:
                say(_in_a_line(came))
            sys.stdout.flush()
            if over or args.once or not followed:
                break
            time.sleep(LOOK_SEC)
    except SealError as error:
        raise explained(error) from error
    if not args.json:
        if not live or newest is None:
            _draw(job, newest)
        for line in [*job.refused, *([] if job.over or followed else [NOBODY])]:
            sys.stderr.write(f"{one_line(line)}\n")
    return 0


def _as_json(job: Job, taken: Taken) -> dict[str, object]:
    now = taken.watched.now
    assert now is not None
    return {
        "run": job.found.run,
        "leg": taken.launch.leg,
        "launch": taken.launch.launch,
        **as_json(now),
        "points": [
            {"source": source, "step": one.step, "time": one.time, "values": dict(one.values)}
            for source, one in taken.brought.points
        ],
    }


def _in_a_line(taken: Taken) -> str:
    """One record, for a stream that cannot redraw."""
    now = taken.watched.now
    assert now is not None
    return f"{length(now.elapsed_sec)}: {', '.join(now_lines(now))}"


def _draw(job: Job, newest: Taken | None) -> None:
    if newest is None:
        say(f"run {job.found.run}: no record has come home yet" if not job.over else _none(job))
        return
    watched = newest.watched
    now = watched.now
    assert now is not None
    state = read_run(job.path).status if job.over else "goes on"
    what = f"record {now.number}, {length(now.elapsed_sec)} from its beginning"
    say(f"run {job.found.run} {newest.launch.leg}-{newest.launch.launch}: {state}, {what}")
    for line in now_lines(now, job.ceiling_sec, over=job.over):
        say(line)
    for line in curve_lines(watched):
        say(line)
    if watched.unfinished and not job.over:
        say(f"> {harmless(watched.unfinished)[-200:]}")


def _none(job: Job) -> str:
    return f"run {job.found.run}: it has no records: it was over before the first, or they were not fetched"


def drawn(found: Found) -> list[str]:
    """What `show` says of a run's records: each launch's curves, or why there are none. Raises nothing."""
    try:
        job = Job(found)
        for _ in job.new():
            pass
    except (SealError, UsageError) as error:
        return ["", f"its sealed records were not opened: {error.line()}"]
    lines = []
    for (leg, launch), watched in job.watched.items():
        try:
            now = watched.now
            if now is not None:
                said = ", ".join(now_lines(now, over=job.over))
                lines += ["", f"{leg}-{launch}, {now.number} sealed records: {said}", *curve_lines(watched)]
        except Exception as error:  # noqa: BLE001  what the job wrote costs its own curves alone
            lines += ["", f"{leg}-{launch}: its records cannot be drawn: {type(error).__name__}"]
    return [*lines, *job.refused]


def curve_lines(watched: Watched, count: int = _DRAWN) -> list[str]:
    """The first curves, drawn."""
    width = min(100, max(40, shutil.get_terminal_size().columns - 2))
    moving = [(name, curve) for name, curve in watched.shown.items() if min(curve.values) < max(curve.values)]
    drawn = (plot(curve, width=width, label=name.replace("_", " ")) for name, curve in moving[:count])
    return [line for lines in drawn for line in ("", *lines)]
