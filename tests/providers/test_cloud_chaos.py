"""Every planned fault against both clients: what comes out; nothing left, doubled, touched or leaked.

After each case: at most one machine of ours at any moment, the release ends at zero (or says loudly that it
could not), other machines of the account are untouched, and no secret stands in any log line or error.
"""

from __future__ import annotations

import logging
import re
import traceback
from dataclasses import dataclass

import pytest

from glasshouse.errors import ProviderError
from glasshouse.providers.fakes.faults import FaultPlan
from glasshouse.reasons import Place, arising

from .cloud_kit import KINDS, NAME, Rented, over_ssh, rented

OF_A_RENTAL = arising(Place.PROVIDER, Place.BOOT)
CONSOLE = {"runpod": "https://console.runpod.io/pods", "vastai": "https://cloud.vast.ai/instances/"}


@dataclass(frozen=True)
class Case:
    """Faults and how often each strikes; `ends` is "ok" or a reason code; `made` counts machines, if told."""

    faults: tuple[str, ...]
    ends: str
    times: int = 1
    made: int | None = None
    boot_deadline_sec: float = 3.0
    only: str | None = None


CASES = (
    Case((), "ok", made=1),
    # creates whose outcome is unknown: adopted, never doubled
    Case(("create-timeout-created",), "ok", made=1),
    Case(("create-timeout",), "ok", made=1),
    Case(("create-5xx-created",), "ok", made=1),
    Case(("create-5xx-created-late",), "ok", made=1),
    Case(("create-garbage-created",), "ok", made=1),
    Case(("create-5xx",), "ok", made=1),
    Case(("list-410",), "rejected", made=0),  # nothing is rented whose end could not be proven
    Case(("create-contract",), "ok", made=2, only="vastai"),
    # refusals, each by its rule
    Case(("create-429",), "ok", made=1),
    Case(("create-429-wait",), "ok", made=1),
    Case(("create-5xx",), "provider-unavailable", times=99, made=0),
    Case(("create-429",), "rate-limited", times=99, made=0),
    Case(("create-capacity",), "no-capacity", times=99, made=0),
    Case(("create-forbidden",), "no-capacity", times=99, made=0),
    Case(("create-balance",), "balance", made=0),
    Case(("create-invalid",), "rejected", made=0),
    Case(("auth",), "auth", times=3, made=0),
    # storms on reads
    Case(("read-5xx", "read-429", "read-drop"), "ok", times=1, made=1),
    # boots
    Case(("boot-error",), "ok", made=2),
    Case(("boot-exit",), "ok", made=2),
    Case(("boot-exit",), "boot-failed", times=2, made=2),
    Case(("boot-stuck",), "ok", made=2, boot_deadline_sec=2.5),  # the second boots in that
    Case(("boot-stuck",), "boot-timeout", times=2, made=2, boot_deadline_sec=0.6),
    Case(("boot-unassigned",), "boot-timeout", times=2, boot_deadline_sec=0.6),
    Case(("boot-vanish",), "boot-failed", times=2),
    Case(("boot-no-ssh",), "ssh-unreachable", times=2, boot_deadline_sec=0.7),
    Case(("boot-no-port",), "ssh-unreachable", times=2, boot_deadline_sec=0.7),
    Case(("boot-exit", "delete-noop"), "ok", made=2),
    # not what was asked for
    Case(("wrong-gpu",), "gpu-mismatch", made=1),
    Case(("price-high",), "price-above-ceiling", made=1),
    # releases
    Case(("delete-5xx",), "ok", times=3, made=1),
    Case(("delete-drop",), "ok", made=1),
    Case(("delete-noop",), "ok", times=2, made=1),
)


def cases() -> list[object]:
    return [
        pytest.param(kind, case, id=f"{kind}-{'+'.join(case.faults) or 'none'}x{case.times}")
        for case in CASES
        for kind in KINDS
        if case.only in (None, kind)
    ]


def unsecret(it: Rented, text: str) -> None:
    assert it.server.key not in text
    for exchange in it.server.cloud.exchanges:
        body = exchange.request if isinstance(exchange.request, dict) else {}
        private = body.get("env", {}).get("GLASSHOUSE_HOST_KEY")
        private = private or (re.findall(r"HK=(\S+);", body.get("onstart", "")) or [None])[0]
        assert private is None or private not in text


@pytest.mark.parametrize(("kind", "case"), cases())
def test_whatever_happens_nothing_is_left(kind: str, case: Case, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with rented(kind, boot_deadline_sec=case.boot_deadline_sec) as it:
        it.server.cloud.add_foreign("someone-elses")
        it.faults(*case.faults, times=case.times)
        said = ""
        try:
            allocation = it.allocate()
        except ProviderError as error:
            ends, said = str(error.code), "".join(traceback.format_exception(error))
            assert ends in OF_A_RENTAL
        else:
            ends = "ok"
            assert over_ssh(allocation, "echo here").strip() == "here"
        assert ends == case.ends, said
        for fault in case.faults:
            if not fault.startswith("delete"):
                assert it.state()["faults"].get(fault), f"{fault} never struck"
        if not any(fault.startswith("delete") for fault in case.faults):
            it.server.cloud.faults.clear()
        proof = it.provider.release(NAME, None)
        state = it.state()
        assert proof.proof == "zero", proof
        assert state["active"] == 0
        assert state["mostAtOnce"] <= 1
        assert state["foreignActive"] == 1
        assert case.made is None or state["created"] == case.made
        unsecret(it, caplog.text + said + "\n".join(it.said) + proof.detail + repr(proof))


@pytest.mark.parametrize("kind", KINDS)
def test_a_create_without_an_answer_and_a_list_that_is_gone_end_the_renting(kind: str) -> None:
    with rented(kind) as it:

        def progress(line: str) -> None:
            if "renting" in line:
                it.faults("create-5xx-created", "list-410")

        with pytest.raises(ProviderError) as caught:
            it.provider.allocate(NAME, it.spec, progress)
        assert caught.value.code == "outcome-unknown"
        assert it.state()["created"] == 1
        it.server.cloud.faults.clear()
        assert it.provider.release(NAME, None).proof == "zero"
        assert it.state()["active"] == 0


UNPROVEN = (
    ("delete-noop", "nonzero"),
    ("delete-5xx", "nonzero"),
    ("list-410", "unknown"),
    ("list-hides", "zero"),  # the id is known, so it is destroyed all the same
    ("auth", "unknown"),
)


@pytest.mark.parametrize(
    ("kind", "fault", "proof"),
    [
        *((kind, *row) for kind in KINDS for row in UNPROVEN),
        ("vastai", "list-repeats", "unknown"),
        ("vastai", "list-short", "unknown"),
    ],
)
def test_what_cannot_be_proven_is_said_loudly(kind: str, fault: str, proof: str) -> None:
    with rented(kind) as it:
        it.server.cloud.add_foreign("someone-elses")
        allocation = it.allocate()
        it.faults(fault, times=10_000)
        found = it.provider.release(NAME, allocation.id)
        assert found.proof == proof
        if proof != "zero":
            assert CONSOLE[kind] in found.detail
            assert allocation.id not in found.detail
            assert found.active == (1 if proof == "nonzero" else None)
        if proof == "nonzero":
            assert it.state()["active"] == 1
        # once the provider answers again, the same call ends at zero
        it.server.cloud.faults.clear()
        assert it.provider.release(NAME, allocation.id).proof == "zero"
        assert it.state()["active"] == 0
        assert it.state()["foreignActive"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_no_replacement_without_proof_of_zero(kind: str) -> None:
    with rented(kind) as it:
        it.faults("boot-error")
        it.faults("delete-noop", times=10_000)
        with pytest.raises(ProviderError) as caught:
            it.allocate()
        assert caught.value.code == "boot-failed"
        assert it.state()["created"] == 1
        it.server.cloud.faults.clear()
        assert it.provider.release(NAME, None).proof == "zero"


@pytest.mark.parametrize("kind", KINDS)
def test_a_pod_that_exits_between_legs_still_counts_and_is_released(kind: str) -> None:
    with rented(kind) as it:
        allocation = it.allocate()
        over_ssh(allocation, "setsid sleep 300 >/dev/null 2>&1 &")
        it.server.cloud.exit_pod(allocation.id)
        with pytest.raises(OSError, match="Connect"):
            over_ssh(allocation, "true")
        assert len(it.provider.find_ours()) == 1  # its disk bills on
        assert it.provider.release(NAME, allocation.id).proof == "zero"


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupt_while_booting_leaves_what_release_finds(kind: str) -> None:
    with rented(kind) as it:

        def interrupt(line: str) -> None:
            if "after" in line:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            it.provider.allocate(NAME, it.spec, interrupt)
        assert it.state()["active"] == 1
        assert it.provider.release(NAME, None).proof == "zero"
        assert it.state()["active"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_random_faults_end_at_zero(kind: str) -> None:
    kinds = (
        "create-5xx", "create-5xx-created", "create-garbage-created", "create-429", "create-capacity",
        "read-5xx", "read-429", "read-drop", "boot-error", "boot-exit", "delete-5xx", "delete-drop",
        "delete-noop",
    )  # fmt: skip
    with rented(kind, boot_sec=0.03) as it:
        it.server.cloud.add_foreign("someone-elses")
        it.server.cloud.faults = FaultPlan(seed=7, rate=0.2, kinds=kinds)
        ended = []
        for number in range(8):
            name = f"{NAME}{number}"
            try:
                it.allocate(name)
                ended.append("ok")
            except ProviderError as error:
                ended.append(str(error.code))
            proof = it.provider.release(name, None)
            if proof.proof != "zero":
                it.server.cloud.faults.clear()
                assert it.provider.release(name, None).proof == "zero"
        state = it.state()
        assert set(ended) <= {"ok", *OF_A_RENTAL}
        assert "ok" in ended
        assert sum(state["faults"].values()) > 5
        assert (state["active"], state["mostAtOnce"], state["foreignActive"]) == (0, 1, 1)
