"""Verify runs and publish them: artifacts and bundles under site/research/, ready for review.

  glasshouse publish runs/20260101-120000-abcdef runs/20260101-123000-bcdefg
  glasshouse publish --local runs/*/                  into build/artifacts, shown as local, never committed

One bundle that does not verify, or one finding of the secret scan, and nothing is published. What is
published must verify by the keys in conf/trust alone (`glasshouse keys --trust LABEL` lists yours there).
Registered runs that are neither published nor given are named: a sweep is published whole, or says what
it leaves out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from glasshouse.commands.terminal import emit, say
from glasshouse.conf_files import conf_dir
from glasshouse.errors import VerificationError
from glasshouse.publishing.publish import publish
from glasshouse.publishing.store import committed_keyring
from glasshouse.records.keys import load_keyring
from glasshouse.records.ledger import Ledger


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run or bundle folders")
    parser.add_argument(
        "--local", action="store_true", help="into build/artifacts, for this machine's own site"
    )


def run(args: argparse.Namespace) -> int:
    """Publish the runs."""
    root = conf_dir().parent
    ring = load_keyring() if args.local else committed_keyring(root)
    try:
        done = publish(args.runs, root=root, keyring=ring, local=args.local, ledger=Ledger())
    except VerificationError as error:
        if "signer-unknown" not in error.codes or args.local:
            raise
        remedy = "`glasshouse keys --trust LABEL` lists yours in conf/trust; commit that first"
        raise VerificationError(error.what, codes=error.codes, remedy=remedy) from error
    if args.json:
        emit({"ok": True, "rows": done.rows, "written": done.written, "withheld": done.withheld})
        return 0
    for row in done.rows:
        say(f"published {row}" + (" (local)" if args.local else ""))
    say(f"{len(done.written)} files written" if done.written else "nothing to write: it is all there already")
    for path in done.written:
        say(f"  {path}")
    if done.withheld and not args.local:
        say(f"withheld: {len(done.withheld)} registered runs are not published")
        for name in done.withheld:
            say(f"  {name}")
    return 0
