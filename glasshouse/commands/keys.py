"""The public keys that are trusted here: the committed ones, and this machine's own.

  glasshouse keys                      list them
  glasshouse keys --make               make this machine's keys now instead of at the first run
  glasshouse keys --json > ring.json   a keyring file, for `glasshouse verify --keys ring.json` elsewhere

Private keys never leave their folder.
"""

from __future__ import annotations

import argparse

from glasshouse import paths
from glasshouse.commands.terminal import emit, say, table
from glasshouse.records import keys


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--make", action="store_true", help="make this machine's keys if they are missing")


def run(args: argparse.Namespace) -> int:
    """List the keyring."""
    if args.make:
        keys.operator_key()
        keys.broker_key()
        keys.publisher_key()
        keys.owner_key()
    ring = keys.load_keyring()
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


def _range(entry: keys.KeyEntry) -> str:
    if entry.valid_from is None and entry.valid_until is None:
        return "all"
    return f"{entry.valid_from or 0} to {'now' if entry.valid_until is None else entry.valid_until}"
