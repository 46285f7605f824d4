"""Finish what a killed controller left: release its machine, prove that nothing is left, record the run.

  glasshouse reap --dry-run    say what would be done
  glasshouse reap              do it
  glasshouse reap --elsewhere  also what controllers on other hosts left, in a journal shared with them

Exit code 4 when something of ours may still be running; the lines above it say what and where.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from glasshouse.commands.terminal import emit, say, table
from glasshouse.errors import CleanupNotProven
from glasshouse.lifecycle.reap import Reaped, reap_all, watch
from glasshouse.lifecycle.ui import Screen
from glasshouse.lifecycle.watchdog import wait_for_end

CLEAN_UP_NOT_PROVEN = CleanupNotProven.exit_code


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    parser.add_argument(
        "--elsewhere", action="store_true", help="also runs of other hosts, of which you know that they ended"
    )
    # What a run starts beside itself: it waits on stdin, and finishes the run when its controller dies.
    parser.add_argument("--watch", type=Path, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Reap every dead allocation in the journal."""
    screen = Screen(quiet=args.json)
    if args.watch is not None:
        if not wait_for_end():
            watch(args.watch, screen)
        return 0
    found = reap_all(screen, dry_run=args.dry_run, elsewhere=args.elsewhere)
    code = max((_code(item) for item in found), default=0)
    if args.json:
        emit({"ok": code == 0, "allocations": [asdict(item) for item in found]})
    elif found:
        rows = [[item.state, item.proof or "-", item.provider, item.name, item.detail] for item in found]
        say(table(["state", "left", "provider", "allocation", "detail"], rows))
    else:
        say("nothing to reap: every allocation in the journal is proven gone")
    return code


def _code(item: Reaped) -> int:
    settled = item.state in ("live", "elsewhere", "would-reap") or item.proof == "zero"
    return 0 if settled else CLEAN_UP_NOT_PROVEN
