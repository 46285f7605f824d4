"""Retract a published row: its page and evidence stay, it counts for nothing, and the reason is shown.

glasshouse unpublish ROW --reason "the pod's clock was wrong"

The retraction is entered in this machine's own log, whichever machine's log holds the row.
"""

from __future__ import annotations

import argparse

from glasshouse.commands.statement import state, statement_arguments
from glasshouse.publishing.publish import unpublish


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("row", metavar="ROW", help="the row's id")
    statement_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Retract the row."""
    return state(
        args,
        unpublish,
        args.row,
        command="unpublish",
        now=f"retracted {args.row}",
        before=f"{args.row} was retracted already",
    )
