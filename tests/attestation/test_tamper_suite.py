"""The tamper suite: complete, exact, and able to fail."""

from __future__ import annotations

from typing import Any

import pytest

from glasshouse.attestation import broker as broker_module
from glasshouse.attestation import store as store_module
from glasshouse.attestation.appraise import Appraisal, appraise
from glasshouse.attestation.claims import CLAIMS
from glasshouse.attestation.scenarios import PUBLISHED, SCENARIOS
from glasshouse.attestation.suite_report import SuiteReport
from glasshouse.attestation.tamper_suite import run_suite

NINE = [
    "composite-hash-mismatch",
    "manifest-hash-mismatch",
    "container-id-mismatch",
    "stale-timestamp",
    "anti-debug-disabled",
    "runtime-state-spoofed",
    "anti-debug-profile-downgrade",
    "nonce-replay",
    "jwt-claim-mismatch",
]


@pytest.fixture(scope="module")
def suite() -> SuiteReport:
    return run_suite()


def test_the_suite_passes(suite: SuiteReport) -> None:
    assert [row for row in suite.scenarios if not row.ok] == []
    assert suite.ok is True
    assert suite.unwrap_calls == 0
    assert SuiteReport.model_validate_json(suite.to_bytes()) == suite


def test_the_nine_published_scenarios_come_first_and_exact(suite: SuiteReport) -> None:
    attacks = [row for row in suite.scenarios if not row.expected]
    assert [row.code for row in attacks[:9]] == NINE
    for row in attacks[:9]:
        assert row.reason_codes == (row.code,)


def test_each_attack_has_a_released_control_beside_it(suite: SuiteReport) -> None:
    rows = suite.scenarios
    assert len(rows) == 2 * len(SCENARIOS)
    for control, attack in zip(rows[::2], rows[1::2], strict=True):
        assert control.code == f"{attack.code}/control"
        assert (control.released, control.unwrap_calls, control.reason_codes) == (True, 1, ())
        assert (attack.released, attack.unwrap_calls) == (False, 0)
        assert attack.reason_codes == attack.expected_codes != ()


def test_codes_are_unique(suite: SuiteReport) -> None:
    codes = [row.code for row in suite.scenarios]
    assert len(set(codes)) == len(codes)
    assert len(SCENARIOS) >= 80


def test_every_claim_that_can_be_refused_is_attacked() -> None:
    """But for the nonce, by which evidence finds its challenge: one of another is unknown or spent."""
    attacked = {code for scenario in SCENARIOS for code in scenario.codes}
    declared = {claim.code for claim in CLAIMS.values() if claim.code}
    assert declared - attacked == {"nonce-mismatch"}


def _ignore(code: str) -> Any:
    """A Verifier that overlooks one kind of failure."""

    def lax(*args: Any) -> Appraisal:
        appraisal = appraise(*args)
        checks = tuple(check for check in appraisal.checks if check.code != code)
        return Appraisal(checks, all(check.ok for check in checks), appraisal.ear_claims)

    return lax


@pytest.mark.parametrize("code", [*(code for code in NINE if code != "nonce-replay"), "event-key-mismatch"])
def test_a_verifier_that_overlooks_one_thing_is_caught(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_module, "appraise", _ignore(code))
    scenario = next(scenario for scenario in SCENARIOS if scenario.code == code)
    result = run_suite((scenario,))
    assert result.ok is False
    assert result.unwrap_calls == 1


def test_a_store_that_forgets_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    consume = store_module.Store.consume_challenge

    def forget(self: store_module.Store, nonce: str, now: int) -> dict[str, Any]:
        with self._transaction() as tx:
            tx.execute(store_module.challenges.update().values(consumed=None))
        return consume(self, nonce, now)

    monkeypatch.setattr(store_module.Store, "consume_challenge", forget)
    scenario = next(scenario for scenario in PUBLISHED if scenario.code == "nonce-replay")
    result = run_suite((scenario,))
    assert result.ok is False


def test_a_broker_that_refuses_everything_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def grumpy(*_args: Any) -> Appraisal:
        return broker_module.refusal(("composite-hash-mismatch",), *_args[1:])

    monkeypatch.setattr(broker_module, "appraise", grumpy)
    result = run_suite(PUBLISHED[:1])
    assert [row.ok for row in result.scenarios] == [False, True]
    assert result.ok is False
