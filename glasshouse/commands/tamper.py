"""Attack the key broker in every way we know, and show that no key was opened for any of them.

  glasshouse tamper
  glasshouse tamper --out tamper.dsse.json    a signed in-toto test result beside the table
  glasshouse tamper --publish                 the run that the site shows: site/research/tamper-report.json

Each attack stands beside the same steps done honestly, which must be released. Runs against the real HTTP
server on loopback, with a store of its own. Exit code 1 on any deviation.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from glasshouse import __version__
from glasshouse.attestation.suite_report import SuiteReport
from glasshouse.attestation.tamper_suite import run_suite
from glasshouse.canonical import sha256_hex
from glasshouse.commands.terminal import emit, require_writable, say, table
from glasshouse.publishing.publication_files import TAMPER
from glasshouse.publishing.tamper_report import TamperReport, tamper_bytes
from glasshouse.records import keys
from glasshouse.records.signing import sign_statement

TEST_RESULT = "https://in-toto.io/attestation/test-result/v0.1"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write a signed in-toto test result")
    parser.add_argument("--publish", action="store_true", help="also write the report that the site shows")


def run(args: argparse.Namespace) -> int:
    """Play the suite."""
    if args.out is not None:
        require_writable("out", args.out)
    publication = args.workspace.publication("tamper --publish") if args.publish else None
    report = run_suite()
    if args.out is not None:
        keys.atomic_write(args.out, signed(report))
    if publication is not None:
        published = TamperReport(
            ran_on=time.strftime("%Y-%m-%d", time.gmtime()),
            version=__version__,
            ok=report.ok,
            unwrap_calls=report.unwrap_calls,
            scenarios=report.scenarios,
        )
        keys.atomic_write(publication / TAMPER, tamper_bytes(published))
    if args.json:
        emit(report.model_dump(mode="json", by_alias=True))
    else:
        _print(report)
    return 0 if report.ok else 1


def signed(report: SuiteReport) -> bytes:
    """Sign the report as an in-toto test result (v0.1); its subject is the report's canonical bytes."""
    names: dict[bool, list[str]] = {True: [], False: []}
    for scenario in report.scenarios:
        names[scenario.ok].append(scenario.code)
    predicate = {
        "result": "PASSED" if report.ok else "FAILED",
        "configuration": [],
        "passedTests": names[True],
        "failedTests": names[False],
        "unwrapCalls": report.unwrap_calls,
    }
    return sign_statement(
        keys.operator_key(),
        TEST_RESULT,
        predicate,
        {"tamper-report.json": sha256_hex(report.to_bytes())},
    )


def _print(report: SuiteReport) -> None:
    rows = [
        [
            "ok" if item.ok else "DEVIATES",
            item.code,
            "released" if item.released else "refused",
            ", ".join(item.reason_codes),
        ]
        for item in report.scenarios
    ]
    say(table(["", "scenario", "broker", "reason codes"], rows))
    attacks = sum(not item.expected for item in report.scenarios)
    good = "as expected" if report.ok else "WITH DEVIATIONS"
    say(f"\n{attacks} attacks, {len(rows) - attacks} controls, {good}")
    say(f"payload keys opened for attacks: {report.unwrap_calls}")
