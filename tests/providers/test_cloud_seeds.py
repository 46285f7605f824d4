"""Five faults at once, drawn from seeds, against both clients on a simulated clock: no machine is lost.

A seed that fails prints what it drew, in words, what happened, and how to run it again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import pytest

from glasshouse.providers.base import ReleaseProof
from glasshouse.providers.cloud import Cloud
from glasshouse.providers.fakes.faults import Fault
from glasshouse.spec import CloudProvider

from .chaos import HIDDEN_SEC, LATE_AFTER_REFUSAL_SEC, LATE_SEC, TOGETHER, Drawn, Stop, draw
from .cloud_kit import KINDS, rented_spec
from .simulation import Outcome, report, simulate, violations

IN_SUITE = 200
SOAKED = 10_000
CHUNK = 1_000


def _broken(outcomes: Iterable[Outcome]) -> list[str]:
    return [report(outcome) for outcome in outcomes if violations(outcome)]


def _simulated(kind: str, seeds: range) -> Iterator[Outcome]:
    return (simulate(draw(kind, seed)) for seed in seeds)


@pytest.mark.parametrize("begin", range(0, IN_SUITE, IN_SUITE // 4))
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_five_faults_do_together_no_machine_is_lost(kind: str, begin: int) -> None:
    outcomes = list(_simulated(kind, range(begin, begin + IN_SUITE // 4)))
    broken = _broken(outcomes)
    assert not broken, "\n\n".join(broken[:3])
    ended = Counter(outcome.ended for outcome in outcomes)
    assert ended["ok"] >= 5  # got its machine
    assert len(ended) >= 5


@pytest.mark.parametrize("kind", KINDS)
def test_the_seeds_reach_what_they_are_for(kind: str) -> None:
    drawn = [draw(kind, seed) for seed in range(IN_SUITE)]
    stops = Counter((each.stop.how, each.stop.by) for each in drawn if each.stop is not None)
    assert len(stops) == 6  # killed and interrupted, each in three ways
    assert min(stops.values()) >= 3
    assert sum(each.truthful for each in drawn) > IN_SUITE / 20
    drawn_kinds = {fault.kind for each in drawn for fault in each.faults}
    assert {
        "create-made",
        "create-fails",
        "create-hangs",
        "list-lags",
        "look-hides",
        "list-flaps",
    } <= drawn_kinds
    assert {
        "delete-slow",
        "delete-fails",
        "auth",
        "price-moves",
        "answer-drips",
        "list-cursor",
    } <= drawn_kinds
    assert {
        "create-doubles",
        "delete-ignored",
        "list-errors",
        "list-link",
        "name-longer",
        "name-cut",
        "account-empty",
    } <= drawn_kinds


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("begin", range(0, SOAKED, CHUNK))
@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_seeds(kind: str, begin: int) -> None:
    broken = _broken(_simulated(kind, range(begin, begin + CHUNK)))
    assert not broken, "\n\n".join(broken[:3])


def _story(kind: str, *faults: Fault, stop: Stop | None = None) -> Outcome:
    return simulate(Drawn(kind, 0, faults, stop, used_sec=0.0, beside=0, page_size=25))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["hang", "429"])  # lost, or refused: what it made shows under another name
def test_no_further_create_goes_out_while_the_account_seems_empty(kind: str, form: str) -> None:
    outcome = _story(
        kind,
        Fault("create-made", 2, form=form, amount=15.0),
        Fault("name-longer", 1),
        Fault("account-empty", None, 20.0, 900.0),
    )
    assert not violations(outcome)
    assert outcome.most_at_once == 1
    assert not any("renting" in line for line in outcome.log[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_no_further_create_goes_out_when_the_last_list_leaves_out_what_is_called_nearly_like_ours(
    kind: str,
) -> None:
    outcome = _story(
        kind,
        Fault("create-made", 1, form="429", amount=16.0),
        Fault("name-cut", 2),
        Fault("list-hides", None, 104.9, 24.0),
    )
    assert not violations(outcome)
    assert outcome.most_at_once == 1


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_called_nearly_like_ours_is_not_gone_when_one_list_leaves_it_out(kind: str) -> None:
    outcome = _story(
        kind,
        Fault("create-made", 4, form="429"),
        Fault("name-cut", 1),
        Fault("list-hides", None, 109.2, 20.0),
        Fault("look-hides", None, 109.2, 20.0),
        stop=Stop("killed", "second", 51.8),
    )
    assert not violations(outcome)
    assert len(outcome.left) == 1
    assert {proven.proof for proven in outcome.proofs} == {"unknown"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_is_a_story_of_its_own_and_always_the_same(kind: str) -> None:
    drawn = [draw(kind, seed) for seed in range(100)]
    assert drawn == [draw(kind, seed) for seed in range(100)]
    assert len({str(each) for each in drawn}) == 100
    assert all(len(each.faults) >= TOGETHER for each in drawn)
    first, again = simulate(drawn[0]), simulate(drawn[0])
    assert first.log == again.log


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_drawn_stays_within_the_doubt_that_the_settings_state(kind: str) -> None:
    settings = rented_spec(kind).provider
    assert isinstance(settings, CloudProvider)
    assert settings.doubt_sec > LATE_SEC + HIDDEN_SEC
    assert settings.lag_sec > LATE_AFTER_REFUSAL_SEC + HIDDEN_SEC


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_that_always_says_zero_is_found_out(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cloud, "release", lambda *_, **__: ReleaseProof("zero", 0, "nobody looked"))
    broken = _broken(_simulated(kind, range(10)))
    assert any("proven zero, and" in each for each in broken)


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_that_never_says_zero_is_found_out(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cloud, "release", lambda *_, **__: ReleaseProof("unknown", None, "who knows"))
    broken = _broken(_simulated(kind, range(8)))
    assert any("not proven zero" in each for each in broken)


@pytest.mark.parametrize("kind", KINDS)
def test_a_doubt_that_is_too_short_is_found_out(kind: str) -> None:
    outcomes = (simulate(draw(kind, seed), lag_sec=15.0) for seed in range(IN_SUITE))
    assert any(violations(outcome) for outcome in outcomes)  # ends with the first
