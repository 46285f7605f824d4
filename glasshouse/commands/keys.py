"""The public keys that are trusted here: the committed ones, and this machine's own.

  glasshouse keys                      list them
  glasshouse keys --make               make this machine's keys now instead of at the first run
  glasshouse keys --trust "our lab"    list this machine's keys in conf/trust, for a reviewed commit
  glasshouse keys --rotate broker      another key from the next ledger entry on; also: operator
  glasshouse keys --backup FILE        all private keys in one file, under a passphrase; --restore: back
  glasshouse keys --add-owner FILE     another key that opens your outputs, in a file that you keep elsewhere
  glasshouse keys --lock               put the private keys here under a passphrase; --unlock takes them out
  glasshouse keys --json > ring.json   a keyring file, for `glasshouse verify --keys ring.json` elsewhere

A machine whose publisher key conf/trust lists publishes into a log of its own. When a machine is lost, its
keys stay listed: what it signed is checked with them.

A key is rotated while no run is under way: a run signs its plan and its bundle with one key. The old private
key is removed; the old public key stays listed, here and in conf/trust, for what it signed. Both are entered
in the ledger, so that no edit of conf/trust brings the old one back. The publisher's key is the name of its
log and is not rotated: list another machine's keys and let the log end.

Private keys never leave their folder.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from glasshouse import paths
from glasshouse.canonical import canonical_json
from glasshouse.commands.confirm import confirm_argument, confirmed
from glasshouse.commands.terminal import emit, say, table
from glasshouse.errors import UsageError
from glasshouse.paths import Workspace
from glasshouse.records import key_backup, keys
from glasshouse.records.ledger import Ledger
from glasshouse.records.locked import new_passphrase


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--make", action="store_true", help="make this machine's keys if they are missing")
    parser.add_argument(
        "--trust", metavar="LABEL", help="add them to conf/trust/keyring.json under this label"
    )
    confirm_argument(parser)
    parser.add_argument(
        "--lock", action="store_true", help="put this machine's private keys under a passphrase"
    )
    parser.add_argument("--unlock", action="store_true", help="take them out of it again")
    parser.add_argument(
        "--add-owner", type=Path, metavar="FILE",
        help="make another key of the owner's in FILE: what is sealed from now on opens with it, too",
    )  # fmt: skip
    parser.add_argument(
        "--backup", type=Path, metavar="FILE", help="all keys in one new file, under a passphrase"
    )
    parser.add_argument("--restore", type=Path, metavar="FILE", help="the missing keys out of a backup")
    parser.add_argument(
        "--rotate", choices=("operator", "broker"), help="retire this machine's key and make another"
    )


def run(args: argparse.Namespace) -> int:
    """List the keyring."""
    workspace: Workspace = args.workspace
    if args.rotate:
        _rotate(args.rotate, workspace)
    _kept(args)
    publication = workspace.publication("keys --trust") if args.trust is not None else None
    if args.trust is not None:
        keys.listed_as(keys.committed_keyring(workspace.keyring), keys.local_keyring().entries, args.trust)
        confirmed(args.trust, "trust", yes=args.yes, shown_as=f"{args.trust}, operator")
    if args.make or args.trust is not None:
        keys.make_all()
    if publication is not None:
        _trust(args.trust, workspace.keyring)
    ring = keys.load_keyring(workspace=workspace)
    if args.json:
        emit({"keys": [entry.as_json() for entry in ring.entries]})
        return 0
    if not ring.entries:
        say("no keys yet; a first run makes them, or `glasshouse keys --make`")
        return 0
    rows = [
        [
            entry.role,
            entry.keyid[:16],
            entry.label,
            "this machine" if entry.local else "conf/trust",
            _range(entry),
        ]
        for entry in ring.entries
    ]
    say(table(["role", "key id", "label", "listed by", "valid for ledger entries"], rows))
    say(f"\nprivate keys are in {paths.keys_dir()}")
    return 0


def _kept(args: argparse.Namespace) -> None:
    """What keeps private keys: a passphrase, a second key of the owner's, a backup."""
    done = []
    if args.lock and args.unlock:
        raise UsageError("both at once", field="lock", value="--unlock", remedy="give one of them")
    if args.restore is not None:
        found = key_backup.restore(args.restore)
        done.append(f"restored: {', '.join(found)}" if found else "restored: nothing was missing")
    if args.make or args.backup or args.add_owner or args.lock:
        keys.make_all()
    if args.lock or args.unlock:
        changed = keys.relock(new_passphrase("this machine's keys") if args.lock else None)
        done.append(f"{'under a passphrase' if args.lock else 'under none'}: {', '.join(changed)}")
    if args.add_owner is not None:
        name = keys.add_owner(args.add_owner)
        done.append(f"another key of the owner's, {name}, is in {args.add_owner}: keep it elsewhere")
    if args.backup is not None:
        done.append(f"in {args.backup}, under its passphrase: {', '.join(key_backup.back_up(args.backup))}")
    for line in done:
        sys.stderr.write(f"{line}\n")


def _trust(label: str, path: Path) -> None:
    """Add this machine's public keys to the committed keyring; keys that stand there stay as they are."""
    ring = keys.committed_keyring(path)
    ring = keys.listed_as(ring, keys.local_keyring().entries, label)
    path.parent.mkdir(parents=True, exist_ok=True)
    keys.atomic_write(path, ring.as_bytes())


def _rotate(role: keys.Role, workspace: Workspace) -> None:
    """Rotate a key here, and in the committed keyring where that lists it."""
    path = workspace.keyring
    ring = keys.committed_keyring(path)
    own = {entry.keyid for entry in keys.local_keyring().with_role(role)}
    if any(entry.keyid in own for entry in ring.with_role(role)):
        workspace.publication(f"keys --rotate {role}")  # others must learn of it: nothing is rotated without
    retired, added = Ledger().rotate(role)
    entries: list[keys.KeyEntry] = []
    for entry in ring.entries:
        if (entry.keyid, entry.role) == (retired.keyid, role):
            entries.append(replace(entry, valid_until=retired.valid_until))
            entries.append(replace(added, label=entry.label, local=False))
        else:
            entries.append(entry)
    if len(entries) != len(ring.entries):
        keys.atomic_write(path, canonical_json({"keys": [entry.as_json() for entry in entries]}))


def _range(entry: keys.KeyEntry) -> str:
    if entry.valid_from is None and entry.valid_until is None:
        return "all"
    return f"{entry.valid_from or 0} to {'now' if entry.valid_until is None else entry.valid_until}"
