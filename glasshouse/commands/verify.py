"""Recompute a run's whole record from its evidence, offline, and say how each check came out.

  glasshouse verify 20260101-120000-abcdef
  glasshouse verify runs/*/ --keys ring.json
  glasshouse verify site/research/artifacts/ROW.json
  glasshouse verify https://example.org/research/artifacts/ROW.json

RUN is a run folder, a run's id or its beginning, a bundle folder or a published row; a URL is fetched first,
with its bundle and logs. One that cannot be read is named on stderr and the others are verified; the exit
code is then 2 or 3. Keys come from --keys or from conf/trust and this machine, never from what is verified.
A signature shows that a row is unchanged, not that it is true. Of a reported row only schema, arithmetic and
its entry in a published ledger can be checked, and it says so.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from glasshouse.codes import Code
from glasshouse.commands.download import fetch_row, is_url
from glasshouse.commands.records import RUNS, pick_run
from glasshouse.commands.terminal import emit, say, table
from glasshouse.errors import GlasshouseError, UsageError
from glasshouse.judgement.rules import Check
from glasshouse.publishing.verify_artifact import check_artifact
from glasshouse.records.keys import Keyring, load_keyring
from glasshouse.records.verify import Verdict, verify

UNREAD = Code.CANNOT_BE_READ


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="RUN",
        help="a run or bundle folder, a run id or its beginning, a published row, a URL",
    )
    parser.add_argument("--out", type=Path, default=RUNS, metavar="DIR", help="where run folders are (runs)")
    parser.add_argument(
        "--keys", type=Path, metavar="FILE", help="the keyring to trust instead of the default"
    )


def run(args: argparse.Namespace) -> int:
    """Verify each path; exit code 1 when one fails, 2 or 3 when one cannot be read."""
    ring = _ring(args)
    results, code = [], 0
    for path in args.paths:
        try:
            item = _verified(path, ring, args.out)
            code = max(code, 0 if item.ok else 1)
        except GlasshouseError as error:
            item = _unread(path, error)
            code = max(code, error.exit_code)
            sys.stderr.write(f"error: {error.line()}\n")
        results.append(item)
    if args.json:
        emit({"ok": code == 0, "runs": [item.as_json() for item in results]})
        return code
    for item in results:
        if any(check.code == UNREAD for check in item.checks):
            continue  # stderr has it
        rows = [["ok" if check.ok else "FAILED", check.code, check.detail] for check in item.checks]
        say(f"{item.path}\n{table(['', 'check', 'detail'], rows)}")
        say(_said(item) + "\n")
    return code


def _ring(args: argparse.Namespace) -> Keyring:
    ring = load_keyring(args.keys, workspace=args.workspace)
    if args.keys is None and not ring.entries:
        raise UsageError(
            "no keyring: there is no key here whose signature could be believed",
            field="keys",
            value="none",
            remedy="give --keys FILE, such as conf/trust/keyring.json of the repository, if you trust that",
        )
    return ring


def _verified(path: str, ring: Keyring, out: Path) -> Verdict:
    if is_url(path):
        with tempfile.TemporaryDirectory(prefix="glasshouse-verify-") as folder:
            return replace(check_artifact(fetch_row(path, Path(folder), ring), ring), path=path)
    if path.endswith(".json"):
        return check_artifact(Path(path), ring)
    place = Path(path)
    if not place.exists() and place.name == path:  # a word, and no file here: a run's id, as for `show`
        place = _run_named(path, out)
    return verify(place, ring).verdict(path)


def _run_named(name: str, out: Path) -> Path:
    try:
        return pick_run(name, out).path
    except UsageError as error:
        if error.field != "run":
            raise
        remedy = f"{error.remedy}; or give a run or bundle folder, a row's file, a URL"
        raise UsageError(error.what, field="path", value=name, remedy=remedy) from error


def _unread(path: str, error: GlasshouseError) -> Verdict:
    """There was nothing to verify at `path`."""
    return Verdict(path, False, None, None, None, (Check(UNREAD, False, error.line()),))


def _said(item: Verdict) -> str:
    if not item.ok:
        return "NOT VERIFIED"
    said = {check.code: check.detail for check in item.checks}
    figure = "" if item.overhead_pct is None else f", overhead {item.overhead_pct:.2f} %"
    if Code.CONTROL in said:
        figure = f", a {said[Code.CONTROL]}"
    elif Code.NO_FIGURE in said:
        figure = f", {said[Code.NO_FIGURE]}"
    if Code.RETRACTED in said:
        return f"RETRACTED: its evidence verifies, and the row was {said[Code.RETRACTED]}"
    if item.signer is None:
        return f"checked, not verified by us: a reported row{figure}"
    since = f"; {said[Code.SUPERSEDED]}" if Code.SUPERSEDED in said else ""
    return f"verified as what it says: a row that is {item.status}{figure}; signed by {item.signer}{since}"
