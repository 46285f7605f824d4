"""How often something is tried again, after which waits and which errors."""

from __future__ import annotations

import math
import time

import pytest

from glasshouse.retry import Policy, retry


class Failed(Exception):
    def __init__(self, number: int, wait: float | None = None) -> None:
        super().__init__(number)
        self.wait = wait


class Stranger(Failed):
    pass


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    return waits


def failing(times: float, tried: list[int], kind: type[Failed] = Failed, wait: float | None = None):
    def step(number: int) -> str:
        tried.append(number)
        if number <= times:
            raise kind(number, wait)
        return "done"

    return step


def test_it_is_tried_until_it_returns_and_the_last_error_is_raised(waited: list[float]) -> None:
    tried, seen = list[int](), list[object]()
    policy = Policy(4, (1.0, 2.0))
    assert retry(failing(2, tried), policy, on=Failed, between=seen.append) == "done"
    assert (tried, waited, [str(each) for each in seen]) == ([1, 2, 3], [1.0, 2.0], ["1", "2"])
    with pytest.raises(Failed, match="4"):
        retry(failing(math.inf, tried), policy, on=Failed)
    assert waited == [1.0, 2.0, 1.0, 2.0, 2.0]


def test_what_another_try_does_not_mend_ends_it(waited: list[float]) -> None:
    tried: list[int] = []
    with pytest.raises(Stranger):
        retry(failing(9, tried, Stranger), Policy(4), on=Failed, unless=(Stranger,))
    with pytest.raises(Failed):
        retry(failing(9, tried), Policy(4), on=Failed, when=lambda error: error.args != (1,))
    with pytest.raises(Failed):
        retry(failing(9, tried), Policy(4, (60.0,), time.monotonic() + 30.0), on=Failed)
    assert (tried, waited) == ([1, 1, 1], [])


def test_a_wait_that_the_error_asks_for_goes_before_the_policys(waited: list[float]) -> None:
    tried: list[int] = []
    asked = iter([7.0, None])
    retry(failing(2, tried), Policy(3, (1.0,)), on=Failed, asked=lambda _: next(asked))
    assert waited == [7.0, 1.0]


def test_a_policy_may_become_known_with_the_first_answer(waited: list[float]) -> None:
    policies = iter([Policy(9, (5.0,)), Policy(3, (0.5,)), Policy(3, (0.5,))])
    with pytest.raises(Failed, match="3"):
        retry(failing(9, []), lambda: next(policies), on=Failed)
    assert waited == [5.0, 0.5]


def test_waits_that_double_stay_under_their_ceiling() -> None:
    assert Policy.doubling(6, 1.0, 5.0).waits == (1.0, 2.0, 4.0, 5.0, 5.0)
    assert Policy.doubling(1, 1.0, 5.0).wait_after(1) == 1.0
