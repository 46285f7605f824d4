"""What the fakes can do wrong, one by one over real HTTP: the seeds draw the same in combination."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from glasshouse.providers.fakes.clock import SimulatedClock
from glasshouse.providers.fakes.faults import FORMS, KINDS, Fault, FaultPlan
from glasshouse.providers.fakes.runpod import FakeRunPod
from glasshouse.providers.fakes.server import FakeServer
from glasshouse.providers.fakes.service import FakeService
from glasshouse.providers.fakes.state import FakeCloud
from glasshouse.providers.fakes.vastai import FakeVast

from .cloud_kit import KINDS as PROVIDERS
from .cloud_kit import NAME
from .simulation import SimulatedContainer

LIST = {"runpod": "/pods", "vastai": "/v1/instances/"}
ONE = {"runpod": "/pods/{}", "vastai": "/v0/instances/{}/"}
PRICE = {"runpod": "cost", "vastai": "dph_total"}


@dataclass
class Served:
    """A fake over HTTP whose machines live by a simulated clock, and a browser's view of it."""

    kind: str
    cloud: FakeCloud
    client: httpx.Client

    def create(self) -> httpx.Response:
        if self.kind == "runpod":
            body: dict[str, Any] = {"name": NAME, "image": "i", "gpu": {"id": "NVIDIA RTX A4000", "count": 1}}
            return self.client.post("/pods", json=body)
        return self.client.put("/v0/asks/5030/", json={"image": "i", "disk": 40, "label": NAME})

    def made(self) -> str:
        """Create a machine and return its id."""
        answer = self.create().json()
        return str(answer["id"] if self.kind == "runpod" else answer["new_contract"])

    def listed(self) -> list[str]:
        answer = self.client.get(LIST[self.kind]).json()
        return [str(each["id"]) for each in answer["pods" if self.kind == "runpod" else "instances"]]

    def look(self, machine_id: str) -> httpx.Response:
        return self.client.get(ONE[self.kind].format(machine_id))

    def delete(self, machine_id: str) -> httpx.Response:
        return self.client.delete(ONE[self.kind].format(machine_id))

    def alive(self) -> int:
        return len(self.cloud.living())

    def passes(self, seconds: float) -> None:
        self.cloud.clock.sleep(seconds)


@contextmanager
def served(kind: str, *faults: Fault) -> Iterator[Served]:
    cloud = FakeCloud(faults=FaultPlan(faults), clock=SimulatedClock())
    cloud.container = SimulatedContainer
    service = FakeService(FakeRunPod(cloud) if kind == "runpod" else FakeVast(cloud, page_size=25))
    with (
        FakeServer(service) as server,
        httpx.Client(
            base_url=server.base_url, headers={"Authorization": f"Bearer {server.key}"}, timeout=5.0
        ) as client,
    ):
        yield Served(kind, cloud, client)


def test_a_fault_says_in_words_what_it_does() -> None:
    late = Fault("create-made", 2, form="504", amount=40.0)
    assert str(late) == "the create answers 504, and the machine appears 40 s later (create-made 2 times)"
    spell = Fault("list-answers", None, begin=3.0, lasts=40.0, form="html")
    assert str(spell) == "the list answers 200 with an HTML page (list-answers from second 3 to second 43)"
    assert all(str(Fault(kind)) for kind in KINDS)
    with pytest.raises(ValueError, match="no such fault"):
        Fault("create-mad")
    with pytest.raises(ValueError, match="no such form"):
        Fault("create-made", form="418")


def test_a_fault_strikes_in_its_time_and_so_often() -> None:
    plan = FaultPlan([Fault("read-5xx", 2, begin=10.0, lasts=5.0), Fault("read-drop", None, begin=1.0)])
    assert [plan.take("read-5xx", age) is not None for age in (9.9, 10.0, 15.0, 14.9, 14.9)] == [
        False, True, False, True, False,
    ]  # fmt: skip
    assert all(plan.take("read-drop", 1.0 + age) for age in range(50))
    assert plan.struck() == {"read-5xx": 2, "read-drop": 50}


@pytest.mark.parametrize("form", sorted(FORMS.keys() - {"hang", "404", "410", "503"}))
@pytest.mark.parametrize("kind", PROVIDERS)
def test_a_create_succeeds_behind_any_answer_and_late(kind: str, form: str) -> None:
    with served(kind, Fault("create-made", form=form, amount=40.0)) as it:
        if form == "cut":
            with pytest.raises(httpx.RemoteProtocolError):
                it.create()
        else:
            answer = it.create()
            assert answer.headers["x-glasshouse-fake"] == "1"
            assert answer.status_code == (
                int(form) if form.isdigit() else 201 if form == "truncated" and kind == "runpod" else 200
            )
            if not form.isdigit():
                with pytest.raises(json.JSONDecodeError):
                    answer.json()
        it.passes(39.9)
        assert it.alive() == 0
        assert it.listed() == []
        it.passes(0.2)
        assert it.alive() == len(it.listed()) == 1


@pytest.mark.parametrize("kind", PROVIDERS)
def test_lists_and_look_ups_lag_vanish_flap_and_go_stale(kind: str) -> None:
    faults = (
        *(Fault(f"{by}-lags", None, amount=35.0) for by in ("list", "look")),
        *(Fault(f"{by}-hides", None, begin=50.0, lasts=40.0) for by in ("list", "look")),
        *(Fault(f"{by}-flaps", None, begin=100.0, lasts=100.0, amount=10.0) for by in ("list", "look")),
        *(Fault(f"{by}-stale", None, amount=20.0) for by in ("list", "look")),
    )
    with served(kind, *faults) as it:
        machine_id, shown = it.made(), []
        for _ in range(14):
            it.passes(10.0)
            shown.append(machine_id in it.listed())
            assert shown[-1] == (it.look(machine_id).status_code == 200)
            assert it.alive() == 1
        # at 10, 20, ... 140 s
        assert shown == [*[False] * 3, True, *[False] * 4, True, False, True, False, True, False]
        it.passes(70.0)
        assert it.delete(machine_id).status_code < 300
        assert (it.alive(), it.listed()) == (0, [machine_id])
        it.passes(20.0)
        assert (it.listed(), it.look(machine_id).status_code) == ([], 404)


@pytest.mark.parametrize("kind", PROVIDERS)
def test_a_delete_is_slow_or_is_refused_first(kind: str) -> None:
    faults = (Fault("delete-fails", 1, form="404"), Fault("delete-fails", 1, form="503"))
    with served(
        kind, *faults, Fault("delete-slow", None, amount=60.0), Fault("delete-done", form="504")
    ) as it:
        machine_id = it.made()
        assert [it.delete(machine_id).status_code for _ in range(3)] == [404, 503, 504]
        it.passes(59.9)
        assert (it.alive(), it.listed()) == (1, [machine_id])
        it.passes(0.2)
        assert (it.alive(), it.delete(machine_id).status_code) == (0, 404)


@pytest.mark.parametrize("kind", PROVIDERS)
def test_documents_have_unknown_keys_prices_move_and_lists_repeat(kind: str) -> None:
    faults = (Fault("list-doubles", 1), Fault("unknown-keys", 1))
    with served(kind, *faults, Fault("price-moves", None, begin=60.0, amount=3.0)) as it:
        machine_id = it.made()
        answer = it.client.get(LIST[kind]).json()
        machines = answer["pods" if kind == "runpod" else "instances"]
        assert [str(each["id"]) for each in machines] == [machine_id] * 3
        assert "xRegion" in answer
        assert "xRegion" in machines[0]
        assert it.listed() == [machine_id]
        before = machines[0][PRICE[kind]]
        it.passes(60.0)
        (machine,) = it.client.get(LIST[kind]).json()["pods" if kind == "runpod" else "instances"]
        assert machine[PRICE[kind]] == pytest.approx(3 * before)


@pytest.mark.parametrize("kind", PROVIDERS)
def test_a_list_says_that_it_is_not_whole(kind: str) -> None:
    faults = (Fault("list-cursor", 1), Fault("list-errors", 1, begin=10.0), Fault("list-link", 1, begin=20.0))
    with served(kind, *faults) as it:
        machine_id = it.made()
        answer = it.client.get(LIST[kind]).json()
        assert answer["nextCursor" if kind == "runpod" else "next_token"]
        assert it.listed() == [machine_id]
        it.passes(10.0)
        answer = it.client.get(LIST[kind]).json()
        assert answer["errors"]
        assert not answer["pods" if kind == "runpod" else "instances"]
        it.passes(10.0)
        shown = it.client.get(LIST[kind])
        assert shown.links["next"]["rel"] == "next"
        assert not shown.json()["pods" if kind == "runpod" else "instances"]
        assert it.listed() == [machine_id]


@pytest.mark.parametrize("kind", PROVIDERS)
def test_names_change_and_a_second_machine_comes(kind: str) -> None:
    faults = (Fault("name-longer", 1), Fault("create-doubles", 1, amount=18.0))
    with served(kind, *faults) as it:
        machine_id = it.made()
        assert it.listed() == [machine_id]
        it.passes(18.1)
        assert [pod.name for pod in it.cloud.living()] == [NAME, f"{NAME}-migration"]
        assert len(it.listed()) == 2
    with served(kind, Fault("name-cut", 1)) as it:
        it.made()
        (pod,) = it.cloud.living()
        assert NAME.startswith(pod.name)
        assert pod.name != NAME


@pytest.mark.parametrize("kind", PROVIDERS)
def test_a_yes_without_effect_and_an_account_that_seems_empty(kind: str) -> None:
    faults = (Fault("look-hides", 1), Fault("delete-ignored", None))
    with served(kind, *faults, Fault("account-empty", None, begin=10.0, lasts=10.0)) as it:
        it.cloud.add_foreign("someone-elses")
        machine_id = it.made()
        assert len(it.listed()) == 2
        assert it.look(machine_id).status_code == 404
        assert it.delete(machine_id).status_code < 300
        assert it.alive() == 2
        it.passes(10.0)
        assert (it.listed(), it.look(machine_id).status_code) == ([], 404)
        assert it.delete(machine_id).status_code == 404
        it.passes(10.0)
        assert it.look(machine_id).status_code == 200
        assert it.delete(machine_id).status_code < 300
        assert it.alive() == 1


@pytest.mark.parametrize("kind", PROVIDERS)
def test_the_key_and_the_quota_are_lost_in_mid_run(kind: str) -> None:
    faults = (Fault("auth", None, begin=10.0, lasts=10.0), Fault("create-balance", None, begin=30.0))
    with served(kind, *faults) as it:
        machine_id = it.made()
        it.passes(10.0)
        assert it.look(machine_id).status_code == (401 if kind == "runpod" else 404)
        it.passes(10.0)
        assert it.look(machine_id).status_code == 200
        it.passes(10.0)
        assert it.create().status_code == 402


def test_an_answer_drips_over_the_wire() -> None:
    with served("runpod", Fault("answer-drips", 1, amount=0.4)) as it:
        began = time.monotonic()
        assert it.listed() == []
        assert time.monotonic() - began >= 0.4
