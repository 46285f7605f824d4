"""Answers that look like a proof and are none: a yes without effect, a changed name, a list that lacks some.

The real client on a simulated clock, with a real provider's waiting times.
"""

from __future__ import annotations

from typing import Any

import pytest

from glasshouse.errors import ProviderError

from .cloud_kit import KINDS, NAME
from .late_kit import LateRental, Made, late

LAG_SEC = 120.0  # the setting's default
OTHER = {"900001": "someone-elses"}


def ends(it: LateRental, **kwargs: Any) -> str:
    """Allocate; "ok" or the reason code."""
    try:
        it.allocate(**kwargs)
    except ProviderError as error:
        return str(error.code)
    return "ok"


def used(it: LateRental, seconds: float = 600.0) -> str:
    """Rent a machine and use it; its id."""
    allocation = it.allocate()
    it.clock.sleep(seconds)
    return allocation.id


# A yes to a DELETE.


@pytest.mark.parametrize("kind", KINDS)
def test_a_yes_to_the_delete_of_a_hidden_machine_is_no_end_of_it(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with late(kind, monkeypatch) as it:
        machine = used(it)
        hidden = (it.clock.passed, it.clock.passed + 90)
        since = it.server.made[machine].since
        it.server.hides = it.server.ignores = lambda age: hidden[0] <= age + since < hidden[1]
        assert it.provider.release(NAME, machine).proof == "zero"
        assert it.server.alive == 0
        assert it.clock.passed - hidden[0] < LAG_SEC + 60


@pytest.mark.parametrize("kind", KINDS)
def test_a_machine_that_was_shown_at_its_delete_is_gone_when_it_is_shown_no_more(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with late(kind, monkeypatch) as it:
        machine = used(it)
        began = it.clock.passed
        assert it.provider.release(NAME, machine).proof == "zero"
        assert it.clock.passed - began < 15


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hidden_sec", [9.0, 15.0, 60.0])
def test_a_machine_that_hides_after_a_yes_without_effect_is_found_when_it_shows(
    kind: str, hidden_sec: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    with late(kind, monkeypatch) as it:
        machine = used(it)
        began = it.clock.passed
        it.server.hides = lambda _: bool(it.server.deletes()) and it.clock.passed < began + hidden_sec
        it.server.ignores = lambda _: it.clock.passed < began + hidden_sec
        assert it.provider.release(NAME, machine).proof == "zero"
        assert it.server.alive == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("success", [True, False])
@pytest.mark.parametrize("named", ["", "someone-elses"])
def test_what_was_there_before_is_never_ended_though_a_create_is_answered_with_its_id(
    kind: str, success: bool, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = {"900001": named or ("unnamed" if kind == "runpod" else "")}
    with late(kind, monkeypatch, others=others, names="900001", success=success) as it:
        machine = it.allocate().id  # what was really made is found by its name
        assert machine in it.server.made
        proof = it.provider.release(NAME, machine)
        assert not [path for _, method, path in it.server.sent if method == "DELETE" and "900001" in path]
        assert (proof.proof, it.server.alive) == ("zero", 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_delete_that_never_does_anything_is_never_zero(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with late(kind, monkeypatch, ignores=lambda _: True) as it:
        machine = used(it)
        assert it.provider.release(NAME, machine).proof == "nonzero"


# A name that is nearly ours, or none.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "shown",
    [
        f"{NAME}-migration",
        f"copy of {NAME}",
        NAME[:-5],
        NAME[:20],
        NAME.upper(),
        NAME[3:-9],
        NAME[:9],
        NAME[-20:],
        NAME.replace("-", "_"),
        NAME.replace("-", ""),
        NAME.replace("-", " - "),
    ],
)
def test_a_machine_whose_name_is_nearly_ours_is_never_zero_and_never_ended(
    kind: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with late(kind, monkeypatch, creates=[(504, 0.0)], shown_as=lambda _: shown) as it:
        assert ends(it) == "outcome-unknown"
        assert it.provider.release(NAME, None).proof == "unknown"
        assert (len(it.server.made), it.server.alive, it.server.deletes()) == (1, 1, [])
        with it.again() as reaper:
            note = it.provider.note(NAME)
            assert reaper.release(NAME, None, it.provider.doubtful_until(NAME), note=note).proof == "unknown"
            assert reaper.release(NAME, None, it.provider.doubtful_until(NAME)).proof == "unknown"
        assert (it.server.alive, it.server.deletes()) == (1, [])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", [NAME[:-8] + "89abcdef", NAME[:-8] + "89abcdef-r2", "gh-20250101-000000-abcdef-0123abcd", "gh"]
)
def test_the_name_of_another_allocation_keeps_nobody_from_zero(
    kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with late(kind, monkeypatch) as it:
        machine = used(it)
        it.server.others["900001"] = name
        assert it.provider.release(NAME, machine).proof == "zero"


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_listed_before_the_first_create_is_not_of_it(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = {"900001": f"{NAME}-migration", "900002": ""}
    with late(kind, monkeypatch, creates=[(504, 40.0), (504, None)], others=others) as it:
        assert ends(it) == "ok"
        note, until = it.provider.note(NAME), it.provider.doubtful_until(NAME)
        with it.again() as watchdog:
            assert watchdog.release(NAME, None, until, note=note).proof == "zero"
        assert it.server.alive == 0


def test_a_contract_without_a_label_that_came_after_a_doubtful_create_is_never_zero(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with late("vastai", monkeypatch, creates=[(504, 5.0)], shown_as=lambda _: "") as it:
        assert ends(it) == "outcome-unknown"
        assert it.provider.release(NAME, None).proof == "unknown"
        assert (len(it.server.made), it.server.alive, it.server.deletes()) == (1, 1, [])
        with it.again() as reaper:
            note = it.provider.note(NAME)
            assert reaper.release(NAME, None, it.provider.doubtful_until(NAME), note=note).proof == "unknown"
        it.server.shown_as = lambda _: "mine, made by hand"  # a person says what it is
        assert it.provider.release(NAME, None).proof == "zero"


def test_a_contract_without_a_label_that_came_during_a_clean_run_is_somebody_elses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with late("vastai", monkeypatch) as it:
        machine = used(it)
        it.server.others["900001"] = ""
        assert it.provider.release(NAME, machine).proof == "zero"


def test_a_reaper_that_knows_no_list_of_before_sees_a_contract_without_a_label_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with late("vastai", monkeypatch, others={"900001": ""}) as it:
        it.server.others["900001"] = ""
        with it.again() as reaper:
            assert reaper.release(NAME, None, it.clock.now() + 300).proof == "zero"  # it was there
            came = it.clock.passed + 60
            it.server.made["1000"] = Made("", came)
            assert reaper.release(NAME, None, it.clock.now() + 300).proof == "unknown"
        assert it.server.deletes() == []


# A second machine of a create that was answered with an id.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("delay", [18.0, 100.0])
def test_a_second_machine_of_an_answered_create_is_found(
    kind: str, delay: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    with late(kind, monkeypatch, doubles=delay) as it:
        allocation = it.allocate()
        it.clock.sleep(1.0)
        began = it.clock.passed
        assert it.provider.release(NAME, allocation.id).proof == "zero"
        assert (len(it.server.made), it.server.alive) == (2, 0)
        assert it.server.deletes()[0] - began < 1
        assert it.clock.passed - began < LAG_SEC + 20


@pytest.mark.parametrize("kind", KINDS)
def test_the_watchdog_of_a_killed_controller_waits_for_that_too(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with late(kind, monkeypatch, doubles=18.0) as it:
        allocation = it.allocate()
        with it.again() as watchdog:
            until, note = it.provider.doubtful_until(NAME), it.provider.note(NAME)
            assert watchdog.release(NAME, allocation.id, until, note=note).proof == "zero"
        assert it.server.alive == 0


# An account that seems to hold nothing.


@pytest.mark.parametrize("kind", KINDS)
def test_a_machine_that_is_gone_with_all_others_of_the_account_is_not_proven_gone(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with late(kind, monkeypatch, others=OTHER) as it:
        machine = used(it)
        it.server.empty = lambda _: True
        proof = it.provider.release(NAME, machine)
        assert (proof.proof, it.server.alive) == ("unknown", 1)
        assert "every other machine" in proof.detail
        note = it.provider.note(NAME)
        with it.again() as reaper:
            assert reaper.release(NAME, machine, 0.0, note=note).proof == "unknown"
            it.server.empty = lambda _: False
            assert reaper.release(NAME, machine, 0.0, note=note).proof == "zero"
        assert it.server.alive == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("creates", [[(402, 0.0)], [(504, 0.0)], [(200, 0.0)]])
def test_nothing_is_proven_of_a_create_in_an_account_that_seems_empty(
    kind: str, creates: list[tuple[int, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    doubles = {"doubles": 5.0} if creates == [(200, 0.0)] else {}
    with late(kind, monkeypatch, creates=creates, others=OTHER, **doubles) as it:
        it.server.empty = lambda now: it.server.made != {} and now > 2.0
        it.server.hides = lambda age: age < 1.5
        ends(it)
        assert it.provider.release(NAME, None).proof == "unknown"
        ids, until = ",".join(it.provider.known_ids(NAME)) or None, it.provider.doubtful_until(NAME)
        with it.again() as reaper:
            assert reaper.release(NAME, ids, until, note=it.provider.note(NAME)).proof == "unknown"
        assert it.server.alive > 0
        it.server.empty = lambda _: False
        assert it.provider.release(NAME, None).proof == "zero"
        assert it.server.alive == 0


@pytest.mark.parametrize("kind", KINDS)
def test_that_others_have_ended_is_no_reason_for_doubt(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with late(kind, monkeypatch, others=dict(OTHER)) as it:
        machine = used(it)
        it.server.others.clear()
        began = it.clock.passed
        assert it.provider.release(NAME, machine).proof == "zero"  # it was shown when it was destroyed
        assert it.clock.passed - began < 15


@pytest.mark.parametrize("kind", KINDS)
def test_a_machine_that_vanished_is_proven_gone_where_the_account_shows_others(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with late(kind, monkeypatch, others=OTHER) as it:
        machine = used(it)
        it.server.made[machine].gone = it.clock.passed
        began = it.clock.passed
        assert it.provider.release(NAME, machine).proof == "zero"
        assert LAG_SEC < it.clock.passed - began < LAG_SEC + 30


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_account_is_believed_after_a_day(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with late(kind, monkeypatch, others=dict(OTHER)) as it:
        machine = used(it)
        it.server.made[machine].gone = it.clock.passed
        it.server.others.clear()
        assert it.provider.release(NAME, machine).proof == "unknown"
        it.clock.sleep(86400.0)
        assert it.provider.release(NAME, machine).proof == "zero"


# A list that says that it is not whole.

PARTS: dict[str, dict[str, Any]] = {
    "errors": {"errors": [{"message": "region EU could not be read"}]},
    "cursor": {"nextCursor": "b2Zmc2V0OjI1"},
    "pages": {"pagination": {"page": 1, "totalPages": 2}},
    "more": {"meta": {"hasMore": True}},
    "count": {"totalCount": 7},
    "partial": {"partial": True},
    "after": {"paging": {"after": "b2Zmc2V0OjI1"}},
    "count in words": {"total": "7"},
}
PART_HEADERS = {
    "link": {"link": '<https://late.invalid/v2/pods?page=2>; rel="next"'},
    "range": {"content-range": "items 0-0/9"},
    "next page": {"x-next-page": "2"},
    "total": {"x-total-count": "7"},
}
WHOLE: dict[str, dict[str, Any]] = {
    "nothing follows": {"nextCursor": None, "hasMore": False, "errors": [], "totalPages": 1, "totalCount": 0},
    "unknown": {"xRegion": {"tier": None, "weights": [1, 2.5]}, "deprecated": "see the changelog"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", [*PARTS, *PART_HEADERS])
def test_a_list_that_says_that_it_is_not_whole_proves_nothing(
    kind: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with late(kind, monkeypatch) as it:
        machine = used(it)
        it.server.beside = PARTS.get(part, {})
        it.server.list_headers = PART_HEADERS.get(part, {})
        proof = it.provider.release(NAME, machine)
        assert (proof.proof, it.server.alive) == ("unknown", 0)
        it.server.beside = {}
        it.server.list_headers = {"link": '<https://late.invalid/doc>; rel="help"', "x-total-count": "0"}
        assert it.provider.release(NAME, machine).proof == "zero"


@pytest.mark.parametrize("stated", [{"total_instances": 7}, {"total_instances": "7"}, {"instances_found": 7}])
def test_a_total_above_what_was_listed_is_no_whole_list_at_vastai(
    stated: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with late("vastai", monkeypatch) as it:
        machine = used(it)
        it.server.beside = {"total_instances": None, **stated}
        assert it.provider.release(NAME, machine).proof == "unknown"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("whole", WHOLE)
def test_a_list_with_members_that_nobody_knows_is_a_whole_one(
    kind: str, whole: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with late(kind, monkeypatch, beside=WHOLE[whole]) as it:
        machine = used(it)
        assert it.provider.release(NAME, machine).proof == "zero"


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_rented_while_the_list_cannot_be_read(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with late(kind, monkeypatch, beside=PARTS["errors"]) as it:
        assert ends(it) == "provider-unavailable"
        assert it.server.made == {}
        assert it.provider.release(NAME, None).proof == "zero"  # nothing was asked for


# How many doubts at once.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("most", [1, 2, 3])
def test_no_more_creates_are_unanswered_at_once_than_the_setting_says_whatever_the_cap(
    kind: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with late(kind, monkeypatch, creates=[(504, 200.0)], settings={"max_doubts": most}) as it:
        ends(it, afford=lambda _: True)
        assert it.provider.release(NAME, None).proof == "zero"
        assert it.server.alive == 0
        assert sum(at < 190 for at in it.server.asked_for()) == most


@pytest.mark.parametrize("kind", KINDS)
def test_clear_refusals_are_not_counted_for_that(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = (403, None) if kind == "vastai" else (429, None)  # the next offer; the same once more
    with late(kind, monkeypatch, creates=[refused, refused, refused, (200, 0.0)]) as it:
        assert ends(it, afford=lambda _: True) == "ok"
        assert it.clock.passed < LAG_SEC + 30
