"""Answers that come late, and "no" that was none: what lists and look-ups do not show is not thereby gone.

The real client on a simulated clock, with a real provider's waiting times.
"""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from glasshouse.errors import ProviderError
from glasshouse.providers.base import Waits

from .cloud_kit import KINDS, NAME
from .late_kit import START, LateRental, late

DOUBT_SEC, LAG_SEC = 300.0, 120.0  # the settings' defaults


def ends(it: LateRental, **kwargs: Any) -> str:
    """Allocate; "ok" or the reason code."""
    try:
        it.allocate(**kwargs)
    except ProviderError as error:
        return str(error.code)
    return "ok"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("delay", [5.0, 13.0, 40.0, 150.0, 290.0])
def test_a_machine_that_comes_long_after_its_create_was_given_up_is_adopted_not_doubled(
    kind: str, delay: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    with late(kind, monkeypatch, creates=[(504, delay), (504, None)]) as it:
        assert ends(it) == "ok"
        assert it.provider.release(NAME, None).proof == "zero"
        assert (len(it.server.made), it.server.most, it.server.alive) == (1, 1, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_that_fails_for_a_minute_ends_no_wait(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with late(kind, monkeypatch, creates=[(504, 120.0), (504, None)], list_fails=(30.0, 110.0)) as it:
        assert ends(it) == "ok"
        assert it.provider.release(NAME, None).proof == "zero"
        assert (len(it.server.made), it.server.alive) == (1, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_four_lost_answers_and_a_list_that_is_late_leave_nothing(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each of them made its machine at once, and for a minute nothing shows it.
    plan: dict[str, Any] = {"creates": [(504, 0.0)], "hides": lambda age: age < 60}
    with late(kind, monkeypatch, **plan) as it:
        ends(it, afford=lambda _: True)
        assert it.provider.release(NAME, None).proof == "zero"
        assert it.server.alive == 0
        assert len(it.server.made) > 1  # the cap held for more, and so they came to be
    with late(kind, monkeypatch, **plan) as it:
        assert ends(it) == "ok"  # the cap holds for one
        assert it.provider.release(NAME, None).proof == "zero"
        assert (it.server.most, it.server.alive) == (1, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_machine_goes_out_beside_a_doubtful_one_only_as_far_as_the_cap_holds(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def two(beside: int) -> bool:
        asked.append(beside)
        return beside < 2

    with late(kind, monkeypatch, creates=[(504, 100.0)], settings={"max_doubts": 3}) as it:
        ends(it, afford=two)
        assert it.provider.release(NAME, None).proof == "zero"
        assert it.server.alive == 0
        assert it.server.most <= 2
        assert set(asked) >= {1, 2}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("status", "code"), [(402, "balance"), (422, "rejected"), (400, "no-capacity")])
def test_a_machine_behind_a_clear_refusal_is_found_when_the_list_catches_up(
    kind: str, status: int, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with late(kind, monkeypatch, creates=[(status, 0.0), (400, None)], hides=lambda age: age < 12) as it:
        assert ends(it) in (code, "ok")
        assert it.provider.release(NAME, None).proof == "zero"
        assert (len(it.server.made), it.server.most, it.server.alive) == (1, 1, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_refusal_is_doubted_for_less_and_costs_no_time_where_the_cap_holds(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with late(kind, monkeypatch, creates=[(403, None)]) as it:
        assert ends(it, afford=lambda _: True) == "no-capacity"
        assert it.clock.passed < 5  # one look a candidate, and the next
        began = it.clock.passed
        assert it.provider.release(NAME, None).proof == "zero"
        assert LAG_SEC - 5 < it.clock.passed - began < LAG_SEC + 20


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("delete_hides", [False, True])
@pytest.mark.parametrize("hidden", [(0.0, 35.0), (3.0, 43.0)])
def test_an_id_of_ours_is_destroyed_also_while_nothing_shows_it(
    kind: str, hidden: tuple[float, float], delete_hides: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, end = hidden
    hides = {"hides": lambda age: begin <= age < end, "delete_hides": delete_hides}
    with late(kind, monkeypatch, **hides) as it:
        assert ends(it) == "ok"
        (machine,) = it.server.made.values()
        it.clock.passed = max(it.clock.passed, machine.since + begin + 1)
        if not begin <= it.clock.passed - machine.since < end:  # it was waited for
            machine.since = it.clock.passed - begin - 1
        began = it.clock.passed
        assert it.provider.release(NAME, None).proof == "zero"
        assert it.server.alive == 0
        assert it.server.deletes()[0] - began < 1
        assert it.clock.passed - began < LAG_SEC + 30


@pytest.mark.parametrize("kind", KINDS)
def test_an_id_of_ours_is_destroyed_by_another_process_that_was_told_of_it(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with late(kind, monkeypatch, hides=lambda age: 10.0 <= age < 43.0) as it:
        allocation = it.allocate()
        (machine,) = it.server.made.values()
        machine.since = it.clock.passed - 11
        with it.again() as other:
            assert other.release(NAME, allocation.id, 0.0).proof == "zero"
        assert it.server.alive == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_create_that_hung_when_its_controller_was_killed_is_awaited_to_the_end_of_its_doubt(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with late(kind, monkeypatch, creates=[(504, 100.0)]) as it:
        written: list[float] = []  # what a journal would hold when the create is sent

        def progress(line: str) -> None:
            if "renting" in line:
                written.append(it.provider.doubtful_until(NAME))

        create = it.server._create

        def hang(body: Any) -> Any:
            create(body)
            raise KeyboardInterrupt

        monkeypatch.setattr(it.server, "_create", hang)
        with pytest.raises(KeyboardInterrupt):
            it.provider.allocate(NAME, it.spec, progress)
        monkeypatch.undo()
        assert written == [pytest.approx(it.clock.now() + DOUBT_SEC, abs=2)]
        with it.again() as watchdog:
            shown: list[str] = []
            proof = watchdog.release(NAME, None, written[0], Waits(shown.append))
        assert (proof.proof, it.server.alive) == ("zero", 0)
        assert any("4 min" in line for line in shown)
        assert it.clock.now() >= written[0]


@pytest.mark.parametrize("kind", KINDS)
def test_while_a_create_is_in_doubt_the_end_of_the_wait_is_unknown_and_says_until_when(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with late(kind, monkeypatch, creates=[(504, 200.0)]) as it:
        assert ends(it, afford=lambda _: False) == "ok"
    with late(kind, monkeypatch, creates=[(402, 60.0)]) as it:
        assert ends(it) == "balance"
        shown: list[str] = []
        proof = it.provider.release(NAME, None, None, Waits(shown.append, lambda: len(shown) > 1))
        assert proof.proof == "unknown"
        assert proof.doubt_until == pytest.approx(START + LAG_SEC, abs=3)
        assert "may yet appear" in proof.detail
        with it.again() as watchdog:  # told by the journal
            assert watchdog.release(NAME, None, proof.doubt_until).proof == "zero"
        assert it.server.alive == 0


@pytest.mark.parametrize("kind", KINDS)
def test_where_every_create_was_answered_truly_zero_is_proven_in_seconds(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with late(kind, monkeypatch) as it:
        allocation = it.allocate()
        assert it.provider.doubtful_until(NAME) <= it.clock.now() + LAG_SEC
        it.clock.sleep(LAG_SEC)  # of use
        began = it.clock.passed
        assert it.provider.release(NAME, allocation.id).proof == "zero"
        assert it.clock.passed - began < 15


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_delete_of_a_known_id_waits_for_no_list(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with late(kind, monkeypatch) as it:
        allocation = it.allocate()
        it.server.list_sec = 1e9
        sent, began = len(it.server.sent), it.clock.passed
        proof = it.provider.release(NAME, allocation.id)
        assert (proof.proof, it.server.alive) == ("unknown", 0)
        assert it.server.deletes()[0] - began < 1
        asked = [method for _, method, path in it.server.sent[sent:] if not path.endswith(("pods", "s/"))]
        assert asked[:2] == ["GET", "DELETE"]  # its name, and then its end


@pytest.mark.parametrize("kind", KINDS)
def test_a_look_up_that_hangs_delays_the_first_delete_by_seconds(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with late(kind, monkeypatch) as it:
        allocation = it.allocate()
        it.server.answer_sec = 1e9
        began = it.clock.passed
        assert it.provider.release(NAME, allocation.id).proof == "unknown"
        assert it.server.deletes()[0] - began <= 10.5


@pytest.mark.parametrize("kind", KINDS)
def test_a_revoked_key_is_insisted_on_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with late(kind, monkeypatch) as it:
        plan = it.server

        def revoke(line: str) -> None:
            if line.endswith("created"):
                plan.refuses_from = it.clock.passed

        with pytest.raises(ProviderError) as caught:
            it.provider.allocate(NAME, it.spec, revoke)
        assert caught.value.code == "auth"
        assert 170 < it.clock.passed < 230
        began = it.clock.passed
        proof = it.provider.release(NAME, None)
        assert proof.proof == "unknown"
        assert "401" in proof.detail
        assert it.clock.passed - began < 5
        plan.refuses_from = float("inf")  # and once it is accepted again, all is as ever
        assert it.provider.release(NAME, None).proof == "zero"
        assert it.server.alive == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_machine_that_comes_and_goes_for_ever_is_unknown_in_the_end(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flaps = {"hides": lambda age: int(age / 20) % 2 == 1, "delete_hides": True}
    with late(kind, monkeypatch, **flaps) as it:
        allocation = it.allocate()
        monkeypatch.setattr(it.server, "_answer", _no_delete(it))
        proof = it.provider.release(NAME, allocation.id)
        assert proof.proof in ("unknown", "nonzero")
        assert it.server.alive == 1
        assert it.clock.passed < 1000


def _no_delete(it: LateRental) -> Any:
    """DELETE says that there is no such machine, and ends none."""
    answer = it.server._answer

    def lies(status: int, body: Any) -> Any:
        if it.server.sent[-1][1] == "DELETE":
            for one in it.server.made.values():
                one.gone = None
            return answer(404, {"detail": "none", "error": "no_such_instance"})
        return answer(status, body)

    return lies


def test_runpod_accepts_a_deletion_with_204_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with late("runpod", monkeypatch) as it:
        allocation = it.allocate()
        began = it.clock.passed
        it.server.hides = lambda _: it.clock.passed - began < 10  # as in a gateway's trouble
        answer = it.server.handle_request

        def troubled(request: httpx.Request) -> httpx.Response:
            if request.method == "DELETE" and it.clock.passed - began < 10:
                it.clock.sleep(0.1)
                return httpx.Response(200, json={"title": "Error", "status": 500, "detail": "upstream"})
            return answer(request)

        monkeypatch.setattr(it.server, "handle_request", troubled)
        assert it.provider.release(NAME, allocation.id).proof == "zero"
        assert it.server.alive == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_word_ends_the_wait_within_a_second(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with late(kind, monkeypatch, creates=[(504, None)]) as it:
        ends(it, afford=lambda _: True)
        asked = it.clock.passed + 50.3
        waits = Waits(lambda _: None, lambda: it.clock.passed >= asked)
        assert it.provider.release(NAME, None, None, waits).proof == "unknown"
        assert asked <= it.clock.passed < asked + 2
