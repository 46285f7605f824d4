"""Say that one published row takes the place of another: both stay, the old one counts in no headline.

glasshouse supersede OLD NEW --reason "repeated with the clock set"

OLD's page names NEW and the reason, NEW's page names OLD. The statement is entered in this machine's own log,
which must hold OLD, or be the one that announced the journey whose log does.
"""

from __future__ import annotations

import argparse

from glasshouse.commands.statement import state, statement_arguments
from glasshouse.publishing.publish import supersede


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("old", metavar="OLD", help="the id of the row that is replaced")
    parser.add_argument("new", metavar="NEW", help="the id of the row that takes its place")
    statement_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Enter the supersession."""
    return state(
        args,
        supersede,
        args.old,
        args.new,
        command="supersede",
        now=f"{args.old} is superseded by {args.new}",
        before=f"{args.old} was superseded by {args.new} already",
    )
