"""Vast.ai: a whole rental over real HTTP and SSH, offers, pages, contracts out of errors, the dead man."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from glasshouse.errors import ProviderError, UsageError
from glasshouse.providers import bootscript, hostkeys
from glasshouse.providers.fakes.vastai import serve_vastai
from glasshouse.providers.vastai import open_vastai

from .cloud_kit import FAST, NAME, over_ssh, rented, rented_spec


def test_one_rental_from_create_to_proven_gone() -> None:
    with rented("vastai") as it:
        for number in range(5):  # with pages of two, ours stands on the third
            it.server.cloud.add_foreign(f"other-{number}")
        allocation = it.allocate()
        assert allocation.gpu_model == "RTX A4000"
        assert allocation.usd_per_hour == pytest.approx(0.12)
        assert allocation.tier == "simulated"
        assert allocation.endpoint.host_key.source == "created"
        # the first address answers nothing; the second was probed too
        assert over_ssh(allocation, "nvidia-smi -L").startswith("GPU 0: NVIDIA RTX A4000")
        proof = it.provider.release(NAME, allocation.id)
        assert (proof.proof, proof.account_total) == ("zero", 5)
        assert (it.state()["active"], it.state()["foreignActive"]) == (0, 5)


def test_ours_is_found_on_the_last_page_without_an_id() -> None:
    with rented("vastai") as it:
        for number in range(4):
            it.server.cloud.add_foreign(f"other-{number}")
        allocation = it.allocate()
        config = it.spec.provider
        with open_vastai(config, environ={"VAST_API_KEY": it.server.key}, timing=FAST) as other:  # type: ignore[arg-type]
            assert [machine.id for machine in other.find_ours()] == [allocation.id]
            assert other.release(NAME, None).proof == "zero"
        assert (it.state()["active"], it.state()["foreignActive"]) == (0, 4)


def test_offers_are_filtered_by_the_server_and_again_by_us() -> None:
    with rented("vastai") as it:
        it.allocate()
        search = next(each.request for each in it.server.cloud.exchanges if each.path == "/v0/bundles/")
        assert search["gpu_name"] == {"eq": "RTX A4000"}
        assert search["dph_total"] == {"lte": 0.2}
        assert search["direct_port_count"] == {"gte": 1}
        assert search["reliability2"] == {"gte": 0.98}
        assert search["verified"] == {"eq": True}
        assert search["datacenter"] == {"eq": True}
        assert search["duration"]["gte"] > 600


def test_a_lying_search_rents_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    from glasshouse.providers.fakes import vastai as fake

    wrong = [
        {"id": 1, "gpu_name": "RTX A4000 MIG", "num_gpus": 1, "dph_total": 0.1, "machine_id": 1},
        {"id": 2, "gpu_name": "RTX A4000", "num_gpus": 2, "dph_total": 0.1, "machine_id": 1},
        {"id": 3, "gpu_name": "RTX A4000", "num_gpus": 1, "dph_total": 0.21, "machine_id": 1},
        {"id": 4, "gpu_name": "RTX A4000", "num_gpus": 1, "dph_total": "0.1", "machine_id": 1},
        {"id": "5", "gpu_name": "RTX A4000", "num_gpus": 1, "dph_total": 0.1, "machine_id": 1},
        {"id": 6, "gpu_name": "RTX A4000", "num_gpus": 1, "dph_total": 0.0, "machine_id": 1},
        "offer",
    ]
    monkeypatch.setattr(fake.FakeVast, "_search", lambda *_: fake.Answer(200, {"offers": wrong}))
    with rented("vastai") as it:
        with pytest.raises(ProviderError, match=r"no RTX A4000 within 0\.20") as caught:
            it.allocate()
        assert caught.value.code == "no-capacity"
        assert not [each for each in it.server.cloud.exchanges if each.method == "PUT"]


def test_a_replacement_avoids_the_machine() -> None:
    with rented("vastai") as it:
        it.faults("boot-error")
        it.allocate()
        searches = [each.request for each in it.server.cloud.exchanges if each.path == "/v0/bundles/"]
        assert "machine_id" not in searches[0]
        assert searches[1]["machine_id"] == {"notin": [101]}
        assert it.state()["mostAtOnce"] == 1
        assert it.provider.release(NAME, None).proof == "zero"


def test_an_offer_that_is_gone_leads_to_the_next() -> None:
    with rented("vastai") as it:
        it.faults("create-capacity", times=2)
        allocation = it.allocate()
        assert allocation.usd_per_hour == pytest.approx(0.132)


def test_a_contract_out_of_an_error_is_destroyed() -> None:
    with rented("vastai") as it:
        it.faults("create-contract")
        allocation = it.allocate()
        state = it.state()
        assert (state["created"], state["active"], state["mostAtOnce"]) == (2, 1, 1)
        assert [pod["id"] for pod in state["pods"] if pod["active"]] == [allocation.id]


def test_loading_with_an_error_message_fails_fast() -> None:
    with rented("vastai", boot_deadline_sec=30.0) as it:
        it.faults("boot-error", times=2)
        begun = time.monotonic()
        with pytest.raises(ProviderError, match="manifest unknown"):
            it.allocate()
        assert time.monotonic() - begun < 5


def test_a_bad_key_as_404_is_not_gone() -> None:
    with rented("vastai") as it:
        allocation = it.allocate()
        config = it.spec.provider
        with open_vastai(config, environ={"VAST_API_KEY": "wrong-key-0123456789"}, timing=FAST) as other:  # type: ignore[arg-type]
            proof = other.release(NAME, allocation.id)
            assert proof.proof == "unknown"
            assert "cloud.vast.ai/instances" in proof.detail
            assert allocation.id not in proof.detail
            with pytest.raises(ProviderError, match="check the API key") as caught:
                other.find_ours()
        assert caught.value.code == "auth"
        assert it.state()["active"] == 1


def test_onstart_fits_with_the_longest_settings() -> None:
    keys = hostkeys.RentalKeys(Path("x"), "ssh-ed25519 " + "A" * 68, "ssh-ed25519 " + "B" * 68, "C" * 600)
    text = bootscript.vast_onstart(keys, 10**7, "https://console.vast.ai/api", "/opt/venv/bin/python3.11")
    assert len(text) <= bootscript.VAST_ONSTART_LIMIT
    with pytest.raises(ValueError, match="longer"):
        bootscript.vast_onstart(keys, 10**7, "https://" + "x" * 4000, "python3")


def test_the_dead_man_timer_destroys_the_machine_from_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glasshouse.providers.vastai.money.dead_man_sec", lambda _run: 1.0)
    with rented("vastai") as it:
        it.allocate()
        assert it.state()["active"] == 1
        end = time.monotonic() + 8
        while it.state()["active"] and time.monotonic() < end:
            time.sleep(0.1)
        assert it.state()["active"] == 0
        assert it.provider.release(NAME, None).proof == "zero"


def test_interruptible_bids_under_the_ceiling() -> None:
    with rented("vastai", interruptible=True) as it:
        it.allocate()
        search = next(each.request for each in it.server.cloud.exchanges if each.path == "/v0/bundles/")
        create = next(each.request for each in it.server.cloud.exchanges if each.method == "PUT")
        assert search["type"] == "bid"
        assert create["price"] == pytest.approx(0.144)
        assert create["cancel_unavail"] is True
        assert create["label"] == NAME


@pytest.mark.parametrize(("tier", "filters"), [("verified", {"verified"}), ("community", set())])
def test_tiers(tier: str, filters: set[str]) -> None:
    with rented("vastai", tier=tier) as it:
        it.allocate()
        search = next(each.request for each in it.server.cloud.exchanges if each.path == "/v0/bundles/")
        assert {"verified", "datacenter"} & search.keys() == filters


def test_an_unknown_tier_is_refused() -> None:
    with rented("vastai", tier="gold") as it, pytest.raises(UsageError, match=r"provider\.tier"):
        it.allocate()


def test_regions_reach_the_search() -> None:
    with rented("vastai", region="DE, US") as it:
        it.allocate()
        search: Any = next(each.request for each in it.server.cloud.exchanges if each.path == "/v0/bundles/")
        assert search["geolocation"] == {"in": ["DE", "US"]}


def test_waiting_times_are_a_real_providers_until_the_server_says_that_it_is_fake() -> None:
    with serve_vastai() as server:
        spec = rented_spec("vastai", server.base_url)
        with open_vastai(spec.provider, environ={"VAST_API_KEY": server.key}) as provider:  # type: ignore[arg-type]
            assert provider.api.http.timing.poll_sec == 5.0
            provider.find_ours()
            assert provider.api.http.timing.poll_sec < 1.0
