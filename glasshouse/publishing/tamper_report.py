"""The published run of the tamper suite: its form, and that it says what it claims to say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field, ValidationError

from glasshouse.canonical import CanonicalError, parse_json
from glasshouse.codes import Code
from glasshouse.publishing.artifact import Code as CodeWord
from glasshouse.publishing.artifact import Day, Public, Text

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

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9\-]{1,80}(/control)?$")]
Version = Annotated[str, Field(pattern=r"^\d+\.\d+[0-9A-Za-z.+\-]{0,40}$")]


class Scenario(Public):
    """One exchange with the broker: an attack, or the same steps done honestly (`/control`)."""

    code: Name
    what: Text
    released: bool
    expected: bool
    expected_codes: tuple[CodeWord, ...]
    reason_codes: tuple[CodeWord, ...]
    unwrap_calls: int = Field(ge=0)
    ok: bool

    @property
    def control(self) -> bool:
        """Whether it is the honest half of a pair."""
        return self.code.endswith("/control")

    @property
    def holds(self) -> bool:
        """Whether it came out as it must: a control opens one key, an attack none, for its reason."""
        if self.control:
            return self.released and self.unwrap_calls == 1
        named = set(self.expected_codes) <= set(self.reason_codes)
        return not self.released and self.unwrap_calls == 0 and named


class TamperReport(Public):
    """A run of the suite as it is published: what `tamper --json` printed, when, by which version."""

    ran_on: Day
    version: Version
    ok: bool
    unwrap_calls: int = Field(ge=0)
    scenarios: tuple[Scenario, ...] = Field(min_length=2, max_length=2000)


def read_tamper(path: Path, failures: list[str]) -> Mapping[str, Any] | None:
    """Read the published report; None when there is none. Faults go into `failures`."""
    if not path.exists():
        return None
    try:
        document = parse_json(path.read_bytes())
        report = TamperReport.model_validate_json(path.read_bytes())
    except ValidationError as error:
        fields = sorted({".".join(str(part) for part in item["loc"]) for item in error.errors()})
        failures += [f"{Code.TAMPER_REPORT_SCHEMA}:{field or '(file)'}" for field in fields[:8]]
        return None
    except CanonicalError:
        failures.append(Code.TAMPER_REPORT_MALFORMED)
        return None
    failures += tamper_failures(report)
    return dict(document)


def tamper_failures(report: TamperReport) -> list[str]:
    """What a report lacks or contradicts itself in, by code."""
    named = [item.code for item in report.scenarios]
    codes = set(named)
    failures = [f"{Code.TAMPER_REPORT_TWICE}:{code}" for code in sorted(codes) if named.count(code) > 1]
    failures += [f"{Code.TAMPER_REPORT_LACKS}:{code}" for code in PUBLISHED if code not in codes]
    failures += [
        f"{Code.TAMPER_REPORT_NO_CONTROL}:{item.code}"
        for item in report.scenarios
        if not item.control and f"{item.code}/control" not in codes
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
