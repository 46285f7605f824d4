"""Machines that nobody saw come: creates under way at an interrupt, late doubles, ids that cannot be read.

And what must not cry wolf: a key that was refused before any create.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from glasshouse.errors import ProviderError
from glasshouse.providers.cloud_api import CloudApi
from glasshouse.providers.hostkeys import shown_host_key

from .cloud_kit import FAST, KINDS, NAME, Rented, rented

SLOWER = replace(FAST, doubt_sec=1.0)  # a slow create takes a third of that


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Python's own answer to Ctrl-C, also where whoever started the tests had it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def _interrupt_when(it: Rented, fault: str) -> threading.Thread:
    """Send this process what Ctrl-C sends, once `fault` has struck."""

    def wait() -> None:
        end = time.monotonic() + 10
        while not it.state()["faults"].get(fault) and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by", ["itself", "another process"])
def test_a_create_under_way_at_an_interrupt_is_awaited_before_anything_is_called_zero(
    kind: str, by: str
) -> None:
    with rented(kind, timing=SLOWER, request_timeout_sec=5.0) as it:
        it.faults("create-slow")
        sender = _interrupt_when(it, "create-slow")
        with pytest.raises(KeyboardInterrupt):
            it.allocate()
        sender.join()
        # The provider is still at it, and nobody waits for its answer.
        if by == "itself":
            proof = it.provider.release(NAME, None)
        else:  # the watchdog, or reap, after a kill
            with it.again() as other:
                proof = other.release(NAME, None)
        assert proof.proof == "zero"
        state = it.state()
        assert (state["created"], state["active"]) == (1, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_machine_out_of_a_create_that_was_given_up_does_not_stay_beside_the_next(kind: str) -> None:
    with rented(kind, boot_sec=0.8) as it:
        it.faults("create-5xx-created-later")
        allocation = it.allocate(afford=lambda _: True)
        state = it.state()
        # It was there for a while; from here on, only one of the two bills.
        assert (state["created"], state["active"]) == (2, 1)
        (left,) = [pod for pod in it.server.cloud.living() if not pod.foreign]
        assert left.id == allocation.id
        assert it.provider.release(NAME, allocation.id).proof == "zero"
        assert it.state()["active"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_an_id_that_came_to_light_is_told_before_its_delete(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rented(kind, boot_sec=0.8) as it:
        told: set[str] = set()
        api, unknown = type(it.provider.api), []
        destroy = api.destroy

        def watched(self: CloudApi, machine_id: str) -> bool:
            unknown.extend({machine_id} - told)
            return destroy(self, machine_id)

        monkeypatch.setattr(api, "destroy", watched)
        it.faults("create-5xx-created-later")
        it.provider.allocate(
            NAME, it.spec, lambda _: told.update(it.provider.known_ids(NAME)), lambda _: True
        )
        assert it.state()["created"] == 2
        assert it.provider.release(NAME, None).proof == "zero"
        assert unknown == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_machine_that_cannot_be_read_is_destroyed_by_the_id_of_its_create(kind: str) -> None:
    with rented(kind) as it:
        it.server.cloud.add_foreign("someone-elses")
        allocation = it.allocate()
        it.faults("list-410", "read-one-5xx", times=10_000)
        proof = it.provider.release(NAME, allocation.id)
        assert proof.proof == "unknown"  # nobody could look
        assert it.state()["active"] == 0  # and yet it is gone
        assert it.state()["foreignActive"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_machine_of_ours_under_another_name_is_neither_destroyed_nor_called_gone(kind: str) -> None:
    with rented(kind) as it:
        allocation = it.allocate()
        (pod,) = it.server.cloud.living()
        pod.name = "renamed in the console"
        proof = it.provider.release(NAME, allocation.id)
        assert proof.proof == "unknown"
        assert "under another name" in proof.detail
        assert it.state()["active"] == 1
        pod.name = NAME
        assert it.provider.release(NAME, allocation.id).proof == "zero"


@pytest.mark.parametrize("kind", KINDS)
def test_no_replacement_when_the_budgeted_time_is_too_far_gone(kind: str) -> None:
    with rented(kind, boot_deadline_sec=1.5) as it:
        measure = it.spec.measure.model_copy(
            update={"warmup_sec": 0.0, "leg_deadline_factor": 1.0, "leg_deadline_extra_sec": 0.0}
        )
        it.spec = it.spec.model_copy(update={"measure": measure, "duration": 0.01})
        it.faults("create-timeout", "boot-stuck")  # one takes longer than is left for the other's replacement
        with pytest.raises(ProviderError) as caught:
            it.allocate()
        assert caught.value.code == "boot-timeout"
        assert it.state()["created"] == 1
        assert it.provider.release(NAME, None).proof == "zero"


@pytest.mark.parametrize("kind", KINDS)
def test_a_refused_key_before_any_create_leaves_nothing_to_prove(kind: str) -> None:
    with rented(kind) as it:
        it.faults("auth", times=10_000)
        with pytest.raises(ProviderError) as caught:
            it.allocate()
        assert caught.value.code == "auth"
        asked = len(it.server.cloud.exchanges)
        assert it.provider.release(NAME, None).proof == "zero"
        assert len(it.server.cloud.exchanges) == asked
        with it.again() as other:  # a process that knows nothing must ask
            assert other.release(NAME, None).proof == "unknown"


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_refused_from_the_create_on_is_loud(kind: str) -> None:
    with rented(kind) as it:

        def refuse_from_here(line: str) -> None:
            if "renting" in line:
                it.faults("auth", times=10_000)

        with pytest.raises(ProviderError):
            it.provider.allocate(NAME, it.spec, refuse_from_here)
        assert it.provider.release(NAME, None).proof == "unknown"


def test_an_address_that_is_no_name_has_no_key() -> None:
    assert shown_host_key("a..b", 22, 1.0) is None
    assert shown_host_key("a" * 300, 22, 1.0) is None
