"""Say that one published row takes the place of another: both stay, the old one counts in no headline.

glasshouse supersede OLD NEW --reason "repeated with the clock set"

OLD's page names NEW and the reason, NEW's page names OLD. The statement is entered in this machine's own log,
which must hold OLD, or be the one that announced the journey whose log does.
"""

from __future__ import annotations

import argparse
import time

from glasshouse.commands.terminal import emit, say
from glasshouse.paths import Workspace
from glasshouse.publishing.publish import supersede
from glasshouse.records.keys import committed_keyring, load_keyring, publisher_key
from glasshouse.records.ledger import Ledger


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("old", metavar="OLD", help="the id of the row that is replaced")
    parser.add_argument("new", metavar="NEW", help="the id of the row that takes its place")
    parser.add_argument("--reason", required=True, help="what readers are told")
    parser.add_argument("--local", action="store_true", help="rows in build/artifacts")


def run(args: argparse.Namespace) -> int:
    """Enter the supersession, dated today (UTC)."""
    day = time.strftime("%Y-%m-%d", time.gmtime())
    workspace: Workspace = args.workspace
    if not args.local:
        workspace.publication("supersede")
    done = supersede(
        args.old,
        args.new,
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
        say(f"{args.old} is superseded by {args.new}; changed: {', '.join(done.written)}")
    else:
        say(f"{args.old} was superseded by {args.new} already")
    return 0
