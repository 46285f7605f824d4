"""Recompute a run's whole record from its evidence, offline, and say how each check came out.

  glasshouse verify 20260101-120000-abcdef
  glasshouse verify runs/*/ --keys ring.json
  glasshouse verify site/research/artifacts/ROW.json
  glasshouse verify https://example.org/research/artifacts/ROW.json

RUN is a run folder, a run's id or its beginning, a bundle folder or a published row; a URL is fetched first,
with its bundle and logs. One that cannot be read is named on stderr and the others are verified; the exit
code is then 2 or 3. Keys come from --keys or from conf/trust and this machine, never from what is verified.
A signature shows that a row is unchanged, not that it is true. Of a reported row only schema, arithmetic and
its entry in a published ledger can be checked, and it says so. Whether a published row was withdrawn, only a
log beside it can say: without one it is not verified, unless --without-log accepts that.
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
from glasshouse.paths import Workspace
from glasshouse.publishing.logs_beside import bundle_checks
from glasshouse.publishing.publication_files import ARTIFACTS, OVERLAY
from glasshouse.publishing.verify_artifact import check_artifact
from glasshouse.records.keys import Keyring, load_keyring
from glasshouse.records.verify import Verdict, bundle_folder, verify

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
    parser.add_argument(
        "--without-log",
        action="store_true",
        help="accept a row without a log that would say whether it was withdrawn",
    )


def run(args: argparse.Namespace) -> int:
    """Verify each path; exit code 1 when one fails, 2 or 3 when one cannot be read."""
    ring = _ring(args)
    results, code = [], 0
    for path in args.paths:
        try:
            item = _verified(path, ring, args)
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


def _verified(path: str, ring: Keyring, args: argparse.Namespace) -> Verdict:
    without_log: bool = args.without_log
    if is_url(path):
        with tempfile.TemporaryDirectory(prefix="glasshouse-verify-") as folder:
            fetched = fetch_row(path, Path(folder), ring)
            return replace(check_artifact(fetched, ring, without_log=without_log), path=path)
    if path.endswith(".json"):
        return check_artifact(Path(path), ring, without_log=without_log)
    place = Path(path)
    if not place.exists() and place.name == path:  # a word, and no file here: a run's id, as for `show`
        place = _run_named(path, args.out)
    found = verify(place, ring)
    verdict = found.verdict(path)
    if found.row is None:
        return verdict
    workspace: Workspace = args.workspace
    since = bundle_checks(
        bundle_folder(place),
        found.row.id,
        ring,
        (workspace.root / ARTIFACTS, workspace.work / OVERLAY),
        without_log=without_log,
    )
    checks = (*verdict.checks, *since)
    if all(check.ok for check in since):
        return replace(verdict, checks=checks)
    return replace(verdict, ok=False, status=None, overhead_pct=None, checks=checks)


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
        unasked = "; whether it was withdrawn was not checked" if Code.RETRACTION_NOT_CHECKED in said else ""
        return f"checked, not verified by us: a reported row{figure}{unasked}"
    since = f"; {said[Code.SUPERSEDED]}" if Code.SUPERSEDED in said else ""
    since += "; not published" if Code.NOT_PUBLISHED in said else ""
    since += "; whether it was withdrawn was not checked" if Code.RETRACTION_NOT_CHECKED in said else ""
    return f"verified as what it says: a row that is {item.status}{figure}; signed by {item.signer}{since}"
