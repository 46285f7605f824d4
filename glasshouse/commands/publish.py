"""Verify runs and publish them: artifacts and bundles under site/research/, ready for review.

  glasshouse publish runs/20260101-120000-abcdef runs/20260101-123000-bcdefg
  glasshouse publish --local runs/*/                  into build/artifacts, shown as local, never committed
  glasshouse publish --history                        import conf/history again: the reported rows

One bundle that does not verify, or one finding of the secret scan, and nothing is published. What is
published must verify by the keys in conf/trust alone (`glasshouse keys --trust LABEL` lists yours there).
This machine's ledger is published with them, as the log of its publisher key up to a checkpoint signed now;
one that does not continue what it published is refused. Other machines' logs are checked and left as they
are. Registered runs that are neither published nor given are named: a sweep is published whole, or says what
it leaves out.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from glasshouse.commands.terminal import emit, say
from glasshouse.errors import UsageError, VerificationError
from glasshouse.paths import Workspace
from glasshouse.publishing.artifact import Artifact
from glasshouse.publishing.publish import publish, refresh_history
from glasshouse.records.keys import committed_keyring, load_keyring, publisher_key
from glasshouse.records.ledger import Ledger


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run or bundle folders")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--local", action="store_true", help="into build/artifacts, for this machine's own site"
    )
    where.add_argument(
        "--history", action="store_true", help="import the reported rows in conf/history again, nothing else"
    )


def run(args: argparse.Namespace) -> int:
    """Publish the runs."""
    workspace: Workspace = args.workspace
    if args.history:
        return _history(args, workspace)
    if not args.local:
        workspace.publication("publish")
    key = publisher_key()  # before the keyring is read: made on first use, it is listed there
    ring = load_keyring(workspace=workspace) if args.local else committed_keyring(workspace.keyring)
    try:
        done = publish(
            args.runs, workspace=workspace, keyring=ring, local=args.local, ledger=Ledger(), key=key
        )
    except VerificationError as error:
        if "signer-unknown" not in error.codes:
            raise
        remedy = "`glasshouse keys --trust LABEL` lists yours in conf/trust; commit that first"
        if args.local:
            remedy = "publish it where it was made, or have its signer listed in conf/trust"
        raise VerificationError(error.what, codes=error.codes, remedy=remedy) from error
    if args.json:
        emit(
            {
                "ok": True,
                "rows": done.rows,
                "written": done.written,
                "withheld": done.withheld,
                "retracted": dict(done.retracted),
            }
        )
        return 0
    for artifact in done.artifacts:
        say(_line(artifact, local=args.local))
    say(_written(done.written) if done.written else "nothing to write: it is all there already")
    if done.withheld:
        say(f"withheld: {len(done.withheld)} registered runs are not published")
        for name in done.withheld:
            say(f"  {name}")
    return 0


def _line(artifact: Artifact, *, local: bool) -> str:
    where = " (local)" if local else ""
    if artifact.retracted is not None:
        reason = artifact.retracted.reason
        return f"published {artifact.id}{where} as RETRACTED, it counts for nothing: {reason}"
    overhead = artifact.overhead_pct
    figure = "" if overhead is None else f", overhead {overhead:.2f} %"
    return f"published {artifact.id}{where}: {artifact.status}{figure}"


def _written(paths: Sequence[str]) -> str:
    """How many files, and where; which ones, --json says."""
    bundled = sum("/bundles/" in path for path in paths)
    ledger = sum("/ledger/" in path for path in paths)
    kinds = (("artifacts", len(paths) - bundled - ledger), ("bundles", bundled), ("the ledger", ledger))
    parts = ", ".join(f"{count} in {kind}" for kind, count in kinds if count)
    return f"{len(paths)} files written: {parts} (--json lists them)"


def _history(args: argparse.Namespace, workspace: Workspace) -> int:
    if args.runs:
        raise UsageError(
            "--history takes no runs", field="runs", value=len(args.runs), remedy="leave them out"
        )
    done = refresh_history(workspace.publication("publish --history"))
    if args.json:
        emit({"ok": True, "rows": done.rows, "written": done.written, "withheld": ()})
        return 0
    say(f"{len(done.rows)} reported rows follow from conf/history")
    say(
        f"{len(done.written)} files changed"
        if done.written
        else "nothing to write: they are all there already"
    )
    for path in done.written:
        say(f"  {path}")
    return 0
