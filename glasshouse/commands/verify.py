"""Recompute a run's whole record from its evidence, offline, and say how each check came out.

  glasshouse verify runs/20260101-120000-abcdef
  glasshouse verify runs/*/ --keys ring.json
  glasshouse verify site/research/artifacts/ROW.json
  glasshouse verify https://example.org/research/artifacts/ROW.json

PATH is a run folder, a bundle folder or a published row; a URL is fetched with its bundle first. Keys come
from --keys or from conf/trust and this machine, never from what is verified. A signature shows that a row is
unchanged, not that it is true. For a reported row only schema and arithmetic can be checked, and it says so.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from glasshouse.commands.download import fetch_row, is_url
from glasshouse.commands.terminal import emit, say, table
from glasshouse.publishing.check import check_artifact
from glasshouse.records.keys import Keyring, load_keyring
from glasshouse.records.verify import verify


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="a run or bundle folder, a published row, a URL"
    )
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
    if is_url(path):
        with tempfile.TemporaryDirectory(prefix="glasshouse-verify-") as folder:
            return check_artifact(fetch_row(path, Path(folder)), ring) | {"path": path}
    if path.endswith(".json"):
        return check_artifact(Path(path), ring)
    return verify(Path(path), ring).as_json(path)


def _verdict(item: dict[str, Any]) -> str:
    if not item["ok"]:
        return "NOT VERIFIED"
    said = {check["code"]: check["detail"] for check in item["checks"]}
    overhead = item["overheadPct"]
    figure = f", overhead {overhead:.2f} %" if isinstance(overhead, float | int) else ""
    if "control" in said:
        figure = f", a {said['control']}"
    elif "no-figure" in said:
        figure = f", {said['no-figure']}"
    if "retracted" in said:
        return f"RETRACTED: its evidence verifies, and the row was {said['retracted']}"
    if item["signer"] is None:
        return f"checked, not verified by us: a reported row{figure}"
    return f"verified as what it says: a row that is {item['status']}{figure}; signed by {item['signer']}"
