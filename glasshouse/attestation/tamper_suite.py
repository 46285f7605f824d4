"""The tamper suite: attack the real broker over HTTP, each attack beside an honest exchange.

`run_suite()` starts a broker with a durable store in a temporary folder (stage.py) and plays every scenario
of scenarios.py against it. A suite in which everything is refused shows nothing, so each scenario first runs
its control: the same steps without the attack, ending with the payload key in the attester's hands. Calls of
`Store.unwrap` are counted around each: 0 for an attack, exactly 1 for a control.
suite_report.py holds what it reports.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from glasshouse.attestation.scenarios import SCENARIOS
from glasshouse.attestation.stage import Clock, Scenario, Stage
from glasshouse.attestation.suite_report import CONTROL, ScenarioResult, SuiteReport
from glasshouse.errors import AttestationError


def run_suite(scenarios: Sequence[Scenario] = SCENARIOS, clock: Clock | None = None) -> SuiteReport:
    """Play every scenario (at least one) and its control, whose code is the scenario's with "/control".

    clock: the broker's, where it is not to begin now.
    """
    rows: list[ScenarioResult] = []
    total = 0
    with (
        tempfile.TemporaryDirectory(prefix="glasshouse-tamper-") as folder,
        Stage(Path(folder), clock) as stage,
    ):
        for scenario in scenarios:
            with _count(stage) as calls:
                control, outcome = stage.launch(), _Outcome()
                with outcome:
                    control.honest()
            honest = f"{scenario.code}{CONTROL}"
            rows.append(_row(honest, "the same steps, honest", (), outcome, calls[0]))
            mine = stage.launch(**scenario.setup)
            with _count(stage) as calls:
                outcome = _Outcome()
                with outcome:
                    scenario.attack(stage, mine, control)
            stage.clock.shift = 0.0
            total += calls[0]
            rows.append(_row(scenario.code, scenario.what, scenario.codes, outcome, calls[0]))
    return SuiteReport(ok=all(row.ok for row in rows), unwrap_calls=total, scenarios=tuple(rows))


class _Outcome:
    """Catches a refusal and keeps its codes; anything else that goes wrong stays an error of the suite."""

    codes: tuple[str, ...] = ()
    released = False

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> bool:
        self.released = error is None
        if isinstance(error, AttestationError):
            self.codes = error.codes
            return True
        return False


@contextlib.contextmanager
def _count(stage: Stage) -> Iterator[list[int]]:
    before = stage.unwrap_calls
    calls = [0]
    yield calls
    calls[0] = stage.unwrap_calls - before


def _row(code: str, what: str, codes: tuple[str, ...], outcome: _Outcome, calls: int) -> ScenarioResult:
    expected = not codes
    ok = outcome.released == expected and outcome.codes == codes and calls == int(expected)
    return ScenarioResult(
        code=code,
        what=what,
        released=outcome.released,
        expected=expected,
        expected_codes=codes,
        reason_codes=outcome.codes,
        unwrap_calls=calls,
        ok=ok,
    )
