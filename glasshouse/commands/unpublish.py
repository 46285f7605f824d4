"""Retract a published row: its page and evidence stay, it counts for nothing, and the reason is shown.

glasshouse unpublish ROW --reason "the pod's clock was wrong"

The retraction is entered in this machine's own log, whichever machine's log holds the row.
"""

from __future__ import annotations

import argparse
import time

from glasshouse.commands.terminal import emit, say
from glasshouse.paths import Workspace
from glasshouse.publishing.publish import unpublish
from glasshouse.records.keys import committed_keyring, load_keyring, publisher_key
from glasshouse.records.ledger import Ledger


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("row", metavar="ROW", help="the row's id")
    parser.add_argument("--reason", required=True, help="what readers are told")
    parser.add_argument("--local", action="store_true", help="a row in build/artifacts")


def run(args: argparse.Namespace) -> int:
    """Retract the row, dated today (UTC)."""
    day = time.strftime("%Y-%m-%d", time.gmtime())
    workspace: Workspace = args.workspace
    if not args.local:
        workspace.publication("unpublish")
    done = unpublish(
        args.row,
        workspace=workspace,
        keyring=load_keyring(workspace=workspace) if args.local else committed_keyring(workspace.keyring),
        ledger=Ledger(),
        key=publisher_key(),
        reason=args.reason,
        day=day,
        local=args.local,
    )
    if args.json:
        emit({"ok": True, "rows": done.rows, "written": done.written})
    elif done.written:
        say(f"retracted {args.row}; changed: {', '.join(done.written)}")
    else:
        say(f"{args.row} was retracted already")
    return 0
