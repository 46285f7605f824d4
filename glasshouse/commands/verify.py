"""Recompute a run's whole record from its evidence, offline, and say how each check came out.

  glasshouse verify runs/20260101-120000-abcdef
  glasshouse verify runs/*/ --keys ring.json

PATH is a run folder or a bundle folder. Keys come from --keys or from conf/trust and this machine, never
from the bundle. A signature shows that a row is unchanged, not that it is true.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from glasshouse.commands.terminal import emit, say, table
from glasshouse.records.keys import Keyring, load_keyring
from glasshouse.records.verify import verify


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a run folder or a bundle folder")
    parser.add_argument(
        "--keys", type=Path, metavar="FILE", help="the keyring to trust instead of the default"
    )


def run(args: argparse.Namespace) -> int:
    """Verify each path; exit code 1 when one fails."""
    ring = load_keyring(args.keys)
    results = [_verified(path, ring) for path in args.paths]
    good = all(item["ok"] for item in results)
    if args.json:
        emit({"ok": good, "runs": results})
        return 0 if good else 1
    for item in results:
        rows = [
            ["ok" if check["ok"] else "FAILED", check["code"], check["detail"]] for check in item["checks"]
        ]
        say(f"{item['path']}\n{table(['', 'check', 'detail'], rows)}")
        say(_verdict(item) + "\n")
    return 0 if good else 1


def _verified(path: str, ring: Keyring) -> dict[str, Any]:
    return verify(Path(path), ring).as_json(path)


def _verdict(item: dict[str, Any]) -> str:
    if not item["ok"]:
        return "NOT VERIFIED"
    overhead = item["overheadPct"]
    figure = f", overhead {overhead:.2f} %" if isinstance(overhead, float | int) else ""
    return f"verified as what it says: a {item['status']} row{figure}, signed by {item['signer']}"
