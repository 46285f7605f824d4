"""What a private job printed, opened with the owner's key: up to now, or with -f as it goes on.

  glasshouse logs 20260101-120000-abcdef
  glasshouse logs -f 20260101-120000-abcdef      until it has ended; Ctrl-C ends the looking alone

While the job runs, its lines come home every half minute, later more rarely. Once it is over its whole log is
there (of one longer than 4 MiB the beginning and the end), which `glasshouse open` writes to a file.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from glasshouse.commands.open import find_sealed
from glasshouse.commands.records import RUNS
from glasshouse.commands.terminal import say
from glasshouse.commands.watched_runs import Job, Taken, explained, pick_job
from glasshouse.errors import SealError, one_line
from glasshouse.records.keys import owner_keys
from glasshouse.sealing.outputs import open_outputs
from glasshouse.watching.lines import plain

LOOK_SEC = 1.0
NOBODY = "nobody follows this run, so nothing new comes home: `glasshouse reap` sees to it"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("run", metavar="RUN", help="a run folder, a run id or its beginning")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the job has ended")
    parser.add_argument("--out", type=Path, default=RUNS, metavar="DIR", help="where run folders are (runs)")


def run(args: argparse.Namespace) -> int:
    """Print the lines; with --json each as an object of its own line."""
    job = pick_job(args.run, args.out)
    if job.over and _print_whole(job, as_json=args.json):
        return 0
    printed = False
    try:
        while True:
            over, followed = job.over, job.followed
            for taken in job.new():
                printed |= _print(taken, as_json=args.json)
            sys.stdout.flush()
            if over or not args.follow or not followed:
                break
            time.sleep(LOOK_SEC)
    except SealError as error:
        raise explained(error) from error
    _end(job, printed, as_json=args.json)
    return 0


def _print(taken: Taken, *, as_json: bool) -> bool:
    for line in taken.brought.lines:
        _line(taken.launch.leg, taken.launch.launch, line, as_json=as_json, at=taken.record.at)
    return bool(taken.brought.lines)


def _line(leg: str, launch: int, text: str, *, as_json: bool, at: float | None) -> None:
    if as_json:
        stream({"leg": leg, "launch": launch, "at": at, "line": text})
    else:
        say(text.replace("\t", "    "))


def stream(document: Any) -> None:
    """Print one JSON document as one line, without anything that no terminal prints."""
    sys.stdout.write(json.dumps(document, ensure_ascii=True, allow_nan=False) + "\n")
    sys.stdout.flush()


def _print_whole(job: Job, *, as_json: bool) -> bool:
    """Print the log that came home sealed when the job was over; whether there is one."""
    found = False
    for item in find_sealed(job.path):
        if not item.path.name.endswith("-log.sealed"):
            continue
        try:
            with open_outputs(item.path, owner_keys(), context=item.context) as opened:
                text = bytes(opened.files.get("trainer.log", b"")).decode("utf-8", "replace")
        except SealError as error:
            raise explained(error) from error
        found = True
        for line in text.removesuffix("\n").split("\n") if text else ():
            shown = plain(line.rstrip("\r").rpartition("\r")[2])
            _line(item.leg, item.launch, shown, as_json=as_json, at=None)
    return found


def _end(job: Job, printed: bool, *, as_json: bool) -> None:
    """Say on stderr why there is no more."""
    if as_json:
        return
    said = list(job.refused)
    if not job.over and not job.followed:
        said.append(NOBODY)
    elif not printed:
        said.append("it printed nothing" if job.over else "nothing that it printed has come home yet")
    for line in said:
        sys.stderr.write(f"{one_line(line)}\n")
