"""Verify runs and publish them: artifacts and bundles under site/research/, ready for review.

  glasshouse publish runs/20260101-120000-abcdef runs/20260101-123000-bcdefg
  glasshouse publish --local runs/*/                  into build/artifacts, shown as local, never committed
  glasshouse publish --from gpu.tar.gz                what a journey to a borrowed machine brought back
  glasshouse publish --from gpu.tar.gz --trust LABEL  and list the journey's keys in conf/trust
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

from glasshouse.codes import Code
from glasshouse.commands.confirm import confirm_argument, confirmed
from glasshouse.commands.terminal import emit, say
from glasshouse.errors import UsageError, VerificationError
from glasshouse.paths import Workspace
from glasshouse.publishing.artifact import Artifact
from glasshouse.publishing.journey import Returned, read_journey
from glasshouse.publishing.publish import Published, publish, publish_journey, refresh_history
from glasshouse.records.keys import Keyring, committed_keyring, listed_as, load_keyring, publisher_key
from glasshouse.records.ledger import Leaf, Ledger


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
    where.add_argument(
        "--from",
        dest="archive",
        type=Path,
        metavar="ARCHIVE",
        help="an archive that a journey brought back: verified first; its keys must be trusted",
    )
    parser.add_argument(
        "--trust", metavar="LABEL", help="with --from: list the journey's keys in conf/trust under this label"
    )
    confirm_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Publish the runs."""
    workspace: Workspace = args.workspace
    if args.history:
        return _history(args, workspace)
    if args.archive is not None:
        return _journey(args, workspace)
    if args.trust is not None:
        raise UsageError(
            "--trust is for an archive",
            field="trust",
            value=args.trust[:80],
            remedy="give --from ARCHIVE with it",
        )
    if not args.local:
        workspace.publication("publish")
    key = publisher_key()  # before the keyring is read: made on first use, it is listed there
    ring = load_keyring(workspace=workspace) if args.local else committed_keyring(workspace.keyring)
    try:
        done = publish(
            args.runs, workspace=workspace, keyring=ring, local=args.local, ledger=Ledger(), key=key
        )
    except VerificationError as error:
        if Code.SIGNER_UNKNOWN not in error.codes:
            raise
        remedy = "`glasshouse keys --trust LABEL` lists yours in conf/trust; commit that first"
        if args.local:
            remedy = "publish it where it was made, or have its signer listed in conf/trust"
        raise VerificationError(error.what, codes=error.codes, remedy=remedy) from error
    if args.json:
        emit(_document(done))
        return 0
    _say(done, local=args.local)
    return 0


def _journey(args: argparse.Namespace, workspace: Workspace) -> int:
    """Publish what a journey brought back."""
    if args.runs:
        raise UsageError(
            "--from takes no runs",
            field="runs",
            value=len(args.runs),
            remedy="publish those by a call of their own",
        )
    workspace.publication("publish --from")
    returned = read_journey(args.archive)
    ring = _trusting(returned, committed_keyring(workspace.keyring), args.trust)
    if args.trust is not None:
        confirmed(args.trust, "trust", yes=args.yes, shown_as=f"{args.trust}, operator")
    after = _after_end(returned, Ledger().leaves())
    key = publisher_key()
    try:
        done = publish_journey(returned, workspace=workspace, keyring=ring, ledger=Ledger(), key=key)
    except VerificationError as error:
        if Code.SIGNER_UNKNOWN not in error.codes:
            raise
        remedy = "`glasshouse keys --trust LABEL` lists this machine's, whose log is published with it"
        raise VerificationError(error.what, codes=error.codes, remedy=remedy) from error
    if args.json:
        emit(
            _document(done)
            | {
                "journey": returned.id,
                "publisher": returned.log.signer.keyid,
                "opening": None if done.opening is None else done.opening.serial,
                "ending": None if done.ending is None else done.ending.serial,
                "extra": returned.extra,
                "leftOut": dict(returned.left_out),
            }
        )
        return 0
    log = returned.log
    said = log.journey
    say(f"journey {returned.id}: {log.checkpoint.size} entries signed by publisher key {log.signer.keyid}")
    if done.opening is None:
        say("no published log announced it before its first plan: its rows carry registered-late")
    elif said is not None:
        place = f"entry {done.opening.serial} of log {said.opened_in}"
        say(f"announced as {place}, before its first plan{after}")
    for entry in returned.keyring.entries:
        say(f"  {entry.role:<9}  {entry.keyid}  trusted as {ring.find(entry.keyid, entry.role).label}")
    _say(done, local=False)
    if done.ending is not None:
        say(f"ended as entry {done.ending.serial} of this machine's ledger")
    if returned.extra:
        say(f"not published: {len(returned.extra)} further files; tar -xzf {args.archive} shows them")
    for name, why in returned.left_out:
        say(f"left out when it was packed: {name}: {why}")
    return 0


def _trusting(returned: Returned, ring: Keyring, label: str | None) -> Keyring:
    """The committed keyring with the journey's keys in it, up to the archive's last entry.

    A stranger's machine held the private keys, so they are trusted for what came back and no further. Without
    a label the keys must be listed so far already; what trusts them is named, and nothing is written.
    """
    offered = returned.keyring.entries
    signer, size = returned.log.signer.keyid, returned.log.checkpoint.size
    listed = {(entry.keyid, entry.role) for entry in ring.entries}
    known = sum((entry.keyid, entry.role) in listed for entry in offered)
    if known not in (0, len(offered)):
        raise VerificationError(
            "the archive offers a key that conf/trust lists for another machine", codes=[Code.JOURNEY_KEYS]
        )
    if label is not None:
        return listed_as(ring, offered, label, until=size - 1)
    if known and all(
        entry.public in [item.public for item in ring.with_role(entry.role, index=size - 1)]
        for entry in offered
    ):
        return ring
    leaves = Ledger().leaves()
    opened = next((leaf for leaf in leaves if _announces(leaf, signer)), None)
    announced = (
        "which this machine's ledger does not announce"
        if opened is None
        else f"which entry {opened.serial} of this machine's ledger announces"
    )
    so_far = "for so many entries the keys" if known else "the keys"
    raise UsageError(
        f"conf/trust does not list {so_far} of journey {returned.id}; its log of {size} entries, with "
        f"{len(returned.bundles)} bundles, is signed by {signer}, {announced}{_after_end(returned, leaves)}",
        field="from",
        value="not trusted",
        remedy="compare that with the kit's journey.json, then add --trust LABEL",
    )


def _after_end(returned: Returned, leaves: Sequence[Leaf]) -> str:
    """What an archive adds to a journey that `leaves` ended already, in words; "" where nothing."""
    opened = next((leaf for leaf in leaves if _announces(leaf, returned.log.signer.keyid)), None)
    serial = None if opened is None else opened.serial
    ends = (leaf for leaf in leaves if leaf.kind == "journey-end" and leaf.body["openSerial"] == serial)
    end = next(ends, None)
    added = 0 if end is None else returned.log.checkpoint.size - int(end.body["size"])
    if end is None or added <= 0:
        return ""
    what = f"{added} {'entry' if added == 1 else 'entries'}"
    late = "whose rows are registered-late"
    return f"; it ended as entry {end.serial}, and this adds {what} after its end, {late}"


def _announces(leaf: Leaf, signer: str) -> bool:
    return leaf.kind == "journey" and leaf.body["commitment"] == signer


def _document(done: Published) -> dict[str, object]:
    return {
        "ok": True,
        "rows": done.rows,
        "written": done.written,
        "withheld": done.withheld,
        "retracted": dict(done.retracted),
    }


def _say(done: Published, *, local: bool) -> None:
    for artifact in done.artifacts:
        say(_line(artifact, local=local))
    say(_written(done.written) if done.written else "nothing to write: it is all there already")
    if done.withheld:
        say(f"withheld: {len(done.withheld)} registered runs are not published")
        for name in done.withheld:
            say(f"  {name}")


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
    trust = sum(path.startswith("conf/trust/") for path in paths)
    rows = len(paths) - bundled - ledger - trust
    kinds = (("artifacts", rows), ("bundles", bundled), ("the ledger", ledger), ("conf/trust", trust))
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
