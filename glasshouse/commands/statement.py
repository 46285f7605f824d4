"""What commands share that state something of a published row: retracted, or superseded by another."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from glasshouse.commands.confirm import confirm_argument, confirmed
from glasshouse.commands.terminal import emit, say
from glasshouse.paths import Workspace
from glasshouse.publishing.publish import Published
from glasshouse.records.keys import committed_keyring, load_keyring, publisher_key
from glasshouse.records.ledger import Ledger


def statement_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments that every statement has."""
    parser.add_argument("--reason", required=True, help="what readers are told")
    parser.add_argument("--local", action="store_true", help="rows in build/artifacts")
    confirm_argument(parser)


def state(
    args: argparse.Namespace, enter: Callable[..., Published], *rows: str, command: str, now: str, before: str
) -> int:
    """Enter a statement about `rows`, dated today (UTC); say `now`, or `before` where it stood already."""
    workspace: Workspace = args.workspace
    if not args.local:
        workspace.publication(command)
    reason = confirmed(args.reason, "reason", yes=args.yes) if args.reason.strip() else args.reason
    done = enter(
        *rows,
        workspace=workspace,
        keyring=load_keyring(workspace=workspace) if args.local else committed_keyring(workspace.keyring),
        ledger=Ledger(),
        key=publisher_key(),
        reason=reason,
        day=time.strftime("%Y-%m-%d", time.gmtime()),
        local=args.local,
    )
    if args.json:
        emit({"ok": True, "rows": done.rows, "written": done.written})
    else:
        say(f"{now}; changed: {', '.join(done.written)}" if done.written else before)
    return 0
