"""The published run of the tamper suite: its form, and that it says what it claims to say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, ValidationError

from glasshouse.attestation.suite_report import CONTROL, SuiteReport
from glasshouse.canonical import CanonicalError, parse_json
from glasshouse.codes import Code
from glasshouse.schema import Day, Written

# The nine scenarios that were published before this software existed, by the codes they keep.
PUBLISHED: Final = (
    Code.COMPOSITE_HASH_MISMATCH,
    Code.MANIFEST_HASH_MISMATCH,
    Code.CONTAINER_ID_MISMATCH,
    Code.STALE_TIMESTAMP,
    Code.ANTI_DEBUG_DISABLED,
    Code.RUNTIME_STATE_SPOOFED,
    Code.ANTI_DEBUG_PROFILE_DOWNGRADE,
    Code.NONCE_REPLAY,
    Code.JWT_CLAIM_MISMATCH,
)

Version = Annotated[str, Field(pattern=r"^\d+\.\d+[0-9A-Za-z.+\-]{0,40}$")]


class _Dated(Written):
    """When the suite ran, and of which version of this software."""

    ran_on: Day
    version: Version


class TamperReport(SuiteReport, _Dated):
    """A run of the suite as it is published: what `tamper --json` printed, when, by which version.

    The day and the version stand first in the file: pydantic orders fields by the last base first.
    """


def tamper_bytes(report: TamperReport) -> bytes:
    """Return the file of a report."""
    return (json.dumps(report.model_dump(mode="json", by_alias=True), indent=2) + "\n").encode()


def read_tamper(path: Path, failures: list[str]) -> TamperReport | None:
    """Read the published report; None when there is none. Faults go into `failures`."""
    if not path.exists():
        return None
    data = path.read_bytes()
    try:
        parse_json(data)  # refuses a name that stands twice, which pydantic does not
        report = TamperReport.model_validate_json(data)
    except ValidationError as error:
        fields = sorted({".".join(str(part) for part in item["loc"]) for item in error.errors()})
        failures += [f"{Code.TAMPER_REPORT_SCHEMA}:{field or '(file)'}" for field in fields[:8]]
        return None
    except CanonicalError:
        failures.append(Code.TAMPER_REPORT_MALFORMED)
        return None
    failures += tamper_failures(report)
    return report


def tamper_failures(report: TamperReport) -> list[str]:
    """What a report lacks or contradicts itself in, by code."""
    named = [item.code for item in report.scenarios]
    codes = set(named)
    failures = [f"{Code.TAMPER_REPORT_TWICE}:{code}" for code in sorted(codes) if named.count(code) > 1]
    failures += [f"{Code.TAMPER_REPORT_LACKS}:{code}" for code in PUBLISHED if code not in codes]
    failures += [
        f"{Code.TAMPER_REPORT_NO_CONTROL}:{item.code}"
        for item in report.scenarios
        if not item.control and f"{item.code}{CONTROL}" not in codes
    ]
    failures += [
        f"{Code.TAMPER_REPORT_CONTRADICTS}:{item.code}"
        for item in report.scenarios
        if item.ok and not item.holds
    ]
    opened = sum(item.unwrap_calls for item in report.scenarios if not item.control)
    if report.unwrap_calls != opened or report.ok != all(item.ok for item in report.scenarios):
        failures.append(Code.TAMPER_REPORT_TOTAL)
    return failures
