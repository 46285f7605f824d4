"""One way to try again: how often, after which waits, until when, after which errors."""

from __future__ import annotations

import pytest

from glasshouse import retry as module
from glasshouse.errors import HostKeyMismatch, OutcomeUnknown, RemoteError
from glasshouse.retry import RetryPolicy, retry


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Every wait; time passes by waits alone."""
    waits: list[float] = []
    monkeypatch.setattr(module.time, "sleep", waits.append)
    monkeypatch.setattr(module.time, "monotonic", lambda: sum(waits))
    return waits


class Step:
    """Fails with these errors, one after the other, then returns."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.numbers: list[int] = []

    def __call__(self, number: int) -> str:
        self.numbers.append(number)
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def test_it_is_tried_until_it_goes_well(clock: list[float]) -> None:
    step, told = Step(OutcomeUnknown("a"), OutcomeUnknown("b")), []
    assert retry(step, RetryPolicy(tries=3), on=OutcomeUnknown, between=told.append) == "done"
    assert step.numbers == [1, 2, 3]
    assert [error.what for error in told] == ["a", "b"]
    assert clock == [0.0, 0.0]


def test_the_last_error_is_the_one_that_is_raised(clock: list[float]) -> None:
    step, told = Step(*(OutcomeUnknown(str(number)) for number in range(5))), []
    with pytest.raises(OutcomeUnknown, match="2"):
        retry(step, RetryPolicy(tries=3), on=OutcomeUnknown, between=told.append)
    assert len(told) == 2  # nothing is mended after the last try
    assert len(clock) == 2


def test_the_last_wait_stands_for_all_that_follow(clock: list[float]) -> None:
    with pytest.raises(OutcomeUnknown):
        retry(Step(*[OutcomeUnknown("x")] * 9), RetryPolicy(tries=5, waits=(1.0, 2.0)), on=OutcomeUnknown)
    assert clock == [1.0, 2.0, 2.0, 2.0]


def test_no_try_begins_after_the_deadline(clock: list[float]) -> None:
    step = Step(*[OutcomeUnknown("x")] * 9)
    with pytest.raises(OutcomeUnknown):
        retry(step, RetryPolicy(tries=9, waits=(2.0,), deadline=5.0), on=OutcomeUnknown)
    assert step.numbers == [1, 2, 3]
    assert clock == [2.0, 2.0]


def test_other_errors_end_it_at_once(clock: list[float]) -> None:
    for error in (HostKeyMismatch("a stranger"), ValueError("ours")):
        step = Step(error)
        with pytest.raises(type(error)):
            retry(step, RetryPolicy(tries=3), on=RemoteError, unless=(HostKeyMismatch,))
        assert step.numbers == [1]
    assert clock == []


def test_what_mending_raises_ends_it(clock: list[float]) -> None:
    def mend(_: OutcomeUnknown) -> None:
        raise HostKeyMismatch("a stranger")

    step = Step(OutcomeUnknown("x"))
    with pytest.raises(HostKeyMismatch):
        retry(step, RetryPolicy(tries=3), on=OutcomeUnknown, between=mend)
    assert step.numbers == [1]


def test_an_error_says_whether_another_try_may_go_better_and_when(clock: list[float]) -> None:
    step = Step(OutcomeUnknown("mended"), OutcomeUnknown("for good"))
    with pytest.raises(OutcomeUnknown, match="for good"):
        retry(step, RetryPolicy(tries=9), on=OutcomeUnknown, when=lambda error: error.what == "mended")
    assert step.numbers == [1, 2]
    asked = iter([7.0, None])
    step = Step(OutcomeUnknown("a"), OutcomeUnknown("b"))
    retry(step, RetryPolicy(3, (1.0,)), on=OutcomeUnknown, asked=lambda _: next(asked))
    assert clock == [0.0, 7.0, 1.0]


def test_a_policy_may_become_known_with_the_first_answer(clock: list[float]) -> None:
    policies = iter([RetryPolicy(9, (5.0,)), RetryPolicy(3, (0.5,)), RetryPolicy(3, (0.5,))])
    step = Step(*[OutcomeUnknown("x")] * 9)
    with pytest.raises(OutcomeUnknown):
        retry(step, lambda: next(policies), on=OutcomeUnknown)
    assert (step.numbers, clock) == ([1, 2, 3], [5.0, 0.5])


def test_waits_that_double_stay_under_their_ceiling() -> None:
    assert RetryPolicy.doubling(6, 1.0, 5.0).waits == (1.0, 2.0, 4.0, 5.0, 5.0)
    assert RetryPolicy.doubling(1, 1.0, 5.0).wait_after(1) == 1.0
