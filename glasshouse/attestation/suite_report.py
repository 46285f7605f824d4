"""What a run of the tamper suite reports: one frozen model, of which `tamper --json` prints the JSON."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from glasshouse.schema import Written

CONTROL = "/control"

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9\-]{1,80}(/control)?$")]
ReasonCode = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9\-]{1,63}$")]
What = Annotated[str, Field(max_length=2000)]


class ScenarioResult(Written):
    """One exchange with the broker: an attack, or the same steps done honestly (`/control`).

    expected: whether a release was expected. expected_codes: the exact codes that a refusal must have.
    unwrap_calls: how often a payload key was opened. ok: whether all came out as expected.
    """

    code: Name
    what: What
    released: bool
    expected: bool
    expected_codes: tuple[ReasonCode, ...]
    reason_codes: tuple[ReasonCode, ...]
    unwrap_calls: int = Field(ge=0)
    ok: bool

    @property
    def control(self) -> bool:
        """Whether it is the honest half of a pair."""
        return self.code.endswith(CONTROL)

    @property
    def holds(self) -> bool:
        """Whether it came out as it must: a control opens one key, an attack none, for its reason."""
        if self.control:
            return self.released and self.unwrap_calls == 1
        named = set(self.expected_codes) <= set(self.reason_codes)
        return not self.released and self.unwrap_calls == 0 and named


class SuiteReport(Written):
    """A run of the suite, each control before its attack. unwrap_calls sums the attacks' only."""

    ok: bool
    unwrap_calls: int = Field(ge=0)
    scenarios: tuple[ScenarioResult, ...] = Field(min_length=2, max_length=2000)
