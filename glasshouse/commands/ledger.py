"""The ledger: every plan entered before anything was rented, and the row that each became.

  glasshouse ledger list
  glasshouse ledger checkpoint > checkpoint        the tree head, signed with the publisher's key
  glasshouse ledger check OLD NEW                  was anything removed or altered between two checkpoints?
  glasshouse ledger check OLD NEW --leaves FILE    against a published log's leaves instead of this machine's

A publication holds one log for each publisher key, in site/research/ledger/KEY/: compare checkpoints of one
log with that log's leaves.jsonl. `check` recomputes both roots from the leaves. Exit code 1 when they do not
fit.
"""

from __future__ import annotations

import argparse
import errno
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glasshouse.codes import Code
from glasshouse.commands.terminal import emit, say, table
from glasshouse.errors import UsageError, VerificationError
from glasshouse.publishing.logs import MAX_LEAVES_BYTES
from glasshouse.records import keys, ledger
from glasshouse.records.signed_note import MAX_NOTE_BYTES, Checkpoint, open_note, parse_checkpoint


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("action", choices=["list", "checkpoint", "check"], nargs="?", default="list")
    parser.add_argument("checkpoints", nargs="*", type=Path, metavar="CHECKPOINT", help="for check: OLD NEW")
    parser.add_argument(
        "--leaves", type=Path, metavar="FILE", help="a ledger file; default: this machine's ledger"
    )
    parser.add_argument(
        "--keys", type=Path, metavar="FILE", help="the keyring that must list the log's signer"
    )


def run(args: argparse.Namespace) -> int:
    """Do one of the three."""
    if args.action == "check":
        return _check(args)
    if args.checkpoints:
        raise UsageError(
            "too many arguments", field="command", value=f"ledger {args.action}", remedy="it takes no files"
        )
    leaves = _leaves(args.leaves)
    if args.action == "checkpoint":
        if not keys.local_keyring().with_role("publisher"):
            sys.stderr.write("making this machine's publisher key; `glasshouse keys` lists it\n")
        note = ledger.sign_checkpoint(leaves, keys.publisher_key())
        emit({"checkpoint": note, "size": len(leaves)}) if args.json else say(note.rstrip("\n"))
    else:
        _list(leaves, as_json=args.json)
    return 0


def _list(leaves: Sequence[ledger.Leaf], *, as_json: bool) -> None:
    waiting = {leaf.serial for leaf in ledger.open_plans(leaves)}
    away = {leaf.serial for leaf in ledger.open_journeys(leaves)}
    if as_json:
        emit(
            {
                "leaves": [dict(leaf.body) for leaf in leaves],
                "openPlans": sorted(waiting),
                "openJourneys": sorted(away),
            }
        )
        return
    rows = [
        [leaf.serial, leaf.kind, _when(leaf.body), _named(leaf.body), _state(leaf, waiting | away)]
        for leaf in leaves
    ]
    say(
        table(["serial", "kind", "time (UTC)", "run or journey", "state"], rows)
        if rows
        else "the ledger is empty"
    )


def _when(body: Any) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(float(body.get("time", 0))))


def _named(body: Any) -> str:
    return str(body.get("run") or body.get("journey") or "")


def _state(leaf: ledger.Leaf, waiting: set[int]) -> str:
    if leaf.kind == "plan":
        return "open: no row yet" if leaf.serial in waiting else "resolved"
    if leaf.kind == "journey":
        return "open: nothing came back yet" if leaf.serial in waiting else "came back"
    if leaf.kind == "journey-end":
        return f"ends entry {leaf.body.get('openSerial')}, with a log of {leaf.body.get('size')} entries"
    return str(leaf.body.get("status", ""))


def _check(args: argparse.Namespace) -> int:
    if len(args.checkpoints) != 2:
        raise UsageError(
            "check compares two checkpoints", field="command", value="ledger check", remedy="give OLD NEW"
        )
    ring = keys.load_keyring(args.keys, workspace=args.workspace)
    old, new = (_checkpoint(path, ring) for path in args.checkpoints)
    if old.origin != new.origin:
        raise UsageError(
            "the checkpoints are of two logs",
            field="checkpoint",
            value=new.origin,
            remedy=f"compare it with another one of that log; OLD is of {old.origin}",
        )
    own = {ledger.log_name(entry.public) for entry in keys.local_keyring().with_role("publisher")}
    if args.leaves is None and new.origin not in own:
        raise UsageError(
            "the checkpoints are of another machine's log",
            field="checkpoint",
            value=new.origin,
            remedy="give that log's leaves.jsonl with --leaves FILE",
        )
    leaves = _leaves(args.leaves)
    # Both roots are recomputed from the same leaves, so NEW holds everything OLD held, in its place.
    ledger.check_leaves(leaves, new)
    ledger.check_leaves(leaves, old)
    ledger.check(old, new, ledger.prove_consistency(leaves[: new.size], old.size))
    if args.json:
        emit({"ok": True, "origin": new.origin, "oldSize": old.size, "newSize": new.size})
    else:
        say(f"ok: the first {old.size} of {new.size} entries are unchanged ({new.origin})")
    return 0


def _checkpoint(path: Path, ring: keys.Keyring) -> Checkpoint:
    try:
        note = _bounded(path, MAX_NOTE_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            "checkpoint cannot be read", field="checkpoint", value=path, remedy="give a file that holds one"
        ) from error
    try:
        checkpoint = parse_checkpoint(note[: note.rfind("\n\n") + 1])
    except VerificationError as error:
        raise UsageError(
            f"not a checkpoint: {error.what}",
            field="checkpoint",
            value=path,
            remedy="give what `glasshouse ledger checkpoint` printed, or a published checkpoint file",
        ) from error
    signers = ring.with_role("publisher")
    for signer in signers:
        if ledger.log_name(signer.public) == checkpoint.origin:
            open_note(note, checkpoint.origin, [signer])
            return checkpoint
    raise VerificationError(
        f"{path.name}: the keyring lists no publisher of {checkpoint.origin}",
        codes=[Code.SIGNER_UNKNOWN],
        remedy="give the signer's keyring with --keys FILE",
    )


def _leaves(path: Path | None) -> tuple[ledger.Leaf, ...]:
    if path is None:
        return ledger.Ledger().leaves()
    remedy = "give a log's leaves.jsonl, or the state folder's"
    try:
        return ledger.parse_leaves(_bounded(path, MAX_LEAVES_BYTES))
    except OSError as error:
        raise UsageError("ledger cannot be read", field="leaves", value=path, remedy=remedy) from error
    except VerificationError as error:
        raise UsageError(
            f"not a ledger file: {error.what}", field="leaves", value=path, remedy=remedy
        ) from error


def _bounded(path: Path, limit: int) -> bytes:
    """Read a file that somebody sent: a pipe too, but not without end. Raises OSError."""
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"larger than {limit} bytes")
    return data
