"""RunPod: one whole rental over real HTTP and SSH, host keys, candidates, and the OpenAPI document."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from glasshouse.errors import ProviderError, UsageError
from glasshouse.providers import bootscript
from glasshouse.providers.cloud import keys_folder
from glasshouse.providers.registry import open_provider
from glasshouse.providers.runpod import open_runpod

from .cloud_kit import FAST, NAME, openapi_document, over_ssh, rented, rented_spec


def test_one_rental_from_create_to_proven_gone() -> None:
    with rented("runpod") as it:
        it.server.cloud.add_foreign("someone-elses-pod")
        allocation = it.allocate()
        assert allocation.gpu_model == "NVIDIA RTX A4000"
        assert allocation.usd_per_hour == 0.25
        assert allocation.image_digest == "sha256:" + "ab" * 32
        assert allocation.endpoint.host_key.source == "created"
        assert allocation.endpoint.workdir == ".glasshouse"
        # its real SSH server holds the key that travelled in the create call, and our login key
        assert (
            over_ssh(allocation, "nvidia-smi --query-gpu=name --format=csv,noheader").strip()
            == "NVIDIA RTX A4000"
        )
        assert over_ssh(allocation, "python3 -c 'import cryptography; print(1)'").strip() == "1"
        assert it.provider.known_ids(NAME) == (allocation.id,)
        proof = it.provider.release(NAME, allocation.id)
        assert (proof.proof, proof.active, proof.account_total) == ("zero", 0, 1)
        assert len(proof.checked_at) == 2
        assert it.state()["active"] == 0
        assert it.state()["foreignActive"] == 1
        assert not keys_folder(NAME).exists()


def test_what_a_fake_rents_is_simulated_for_good() -> None:
    with rented("runpod") as it:
        assert not it.provider.simulated
        assert it.allocate().tier == "simulated"
        assert it.provider.simulated


def test_the_login_key_is_private_and_the_host_key_is_kept_nowhere() -> None:
    with rented("runpod") as it:
        allocation = it.allocate()
        assert allocation.endpoint.key_path.stat().st_mode & 0o777 == 0o600
        assert [path.name for path in keys_folder(NAME).iterdir()] == ["client"]
        environment = over_ssh(allocation, "env")
        assert "GLASSHOUSE_HOST_KEY" not in environment


def test_release_needs_no_id_and_no_memory_of_the_create() -> None:
    with rented("runpod") as it:
        it.allocate()
        config = it.spec.provider
        with open_runpod(config, environ={"RUNPOD_API_KEY": it.server.key}, timing=FAST) as other:  # type: ignore[arg-type]
            assert [machine.name for machine in other.find_ours()] == [NAME]
            assert other.release(NAME, None).proof == "zero"
            assert other.find_ours("gh-") == ()
        assert it.state()["active"] == 0


def test_names_that_only_begin_alike_are_left_alone() -> None:
    with rented("runpod") as it:
        near = it.server.cloud.add_foreign(NAME + "x")
        assert it.provider.release(NAME, None).proof == "unknown"
        assert it.provider.release(NAME, near.id).proof == "unknown"  # a person must say whose it is
        assert it.server.cloud.get(near.id) is not None


def test_reap_prefixes_are_ours_or_refused() -> None:
    with rented("runpod") as it:
        for prefix in ("", "g", "gh", "x", "gh-*", "gh- "):
            with pytest.raises(UsageError):
                it.provider.find_ours(prefix)
        with pytest.raises(ProviderError, match="not an allocation name"):
            it.provider.release("gh-", None)


def test_host_key_from_the_log_when_ours_was_not_installed() -> None:
    with rented("runpod") as it:
        it.faults("start-ignored")
        allocation = it.allocate()
        assert allocation.endpoint.host_key.source == "provider-log"
        assert over_ssh(allocation, "echo pinned").strip() == "pinned"


def test_host_key_at_first_use_when_nobody_vouches() -> None:
    with rented("runpod") as it:
        it.faults("start-ignored", "log-empty")
        allocation = it.allocate()
        assert allocation.endpoint.host_key.source == "first-use"
        assert allocation.endpoint.host_key.lines is not None


def test_a_log_that_vouches_for_another_key_is_never_overruled() -> None:
    with rented("runpod", boot_deadline_sec=1.5) as it:
        it.faults("start-ignored", "log-lies", times=2)
        with pytest.raises(ProviderError, match="neither ours nor in the machine's log") as caught:
            it.allocate()
        assert caught.value.code == "host-key-mismatch"
        assert it.state()["active"] == 0


def test_a_replacement_avoids_the_data_centre() -> None:
    with rented("runpod") as it:
        it.faults("boot-error")
        allocation = it.allocate()
        creates = [each for each in it.server.cloud.exchanges if each.method == "POST"]
        assert "dataCenterIds" not in creates[0].request
        assert creates[1].request["dataCenterIds"] == ["FAKE-B-1"]
        assert creates[1].request["name"] == f"{NAME}-r2"
        assert allocation.name == NAME
        assert it.state()["mostAtOnce"] == 1
        assert it.provider.release(NAME, None).proof == "zero"
        assert it.state()["active"] == 0


def test_a_region_without_another_choice_gets_no_replacement() -> None:
    with rented("runpod", region="FAKE-A-1") as it:
        it.faults("boot-error")
        with pytest.raises(ProviderError, match="has no NVIDIA RTX A4000"):
            it.allocate()
        assert it.state()["created"] == 1


def test_the_failure_carries_the_providers_own_words() -> None:
    with rented("runpod") as it:
        it.faults("boot-error", times=2)
        with pytest.raises(ProviderError, match="manifest unknown: no such image") as caught:
            it.allocate()
        assert caught.value.code == "boot-failed"
        assert caught.value.exit_code == 3


def test_regions_are_tried_in_turn() -> None:
    with rented("runpod", region="FAKE-B-1, FAKE-A-1") as it:
        it.faults("create-capacity")
        it.allocate()
        tried = [each.request["dataCenterIds"] for each in it.server.cloud.exchanges if each.method == "POST"]
        assert tried == [["FAKE-B-1"], ["FAKE-A-1"]]


def test_a_dearer_list_price_is_refused_before_any_create() -> None:
    with rented("runpod", gpu={"max_usd_per_hour": {"runpod": 0.2}}) as it:
        with pytest.raises(ProviderError, match=r"0\.25 USD an hour, accepted are 0\.20") as caught:
            it.allocate()
        assert caught.value.code == "price-above-ceiling"
        assert it.state()["created"] == 0


def test_an_unknown_gpu_name_is_refused_before_any_create() -> None:
    with rented("runpod", gpu={"provider_names": {"runpod": "NVIDIA RTX A400"}}) as it:
        with pytest.raises(ProviderError, match="called exactly NVIDIA RTX A400") as caught:
            it.allocate()
        assert caught.value.code == "gpu-unknown"
        assert it.state()["created"] == 0


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"interruptible": True}, "provider.interruptible"),
        ({"tier": "gold"}, "provider.tier"),
        ({"gpu": {"provider_names": {}}}, "gpu.provider_names.runpod"),
        ({"gpu": {"max_usd_per_hour": {}}}, "gpu.max_usd_per_hour.runpod"),
    ],
)
def test_what_cannot_be_rented_is_refused_before_any_request(settings: dict[str, Any], field: str) -> None:
    with rented("runpod", **settings) as it:
        with pytest.raises(UsageError) as caught:
            it.allocate()
        assert caught.value.field == field
        assert it.server.cloud.exchanges == []


def test_no_key_is_one_line_and_exit_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNPOD_API_KEY", raising=False)
    with pytest.raises(UsageError, match="RUNPOD_API_KEY") as caught:
        open_provider(rented_spec("runpod").provider)
    assert caught.value.exit_code == 2


def test_the_start_command_runs_an_sshd_where_the_image_has_no_start_script(tmp_path: Path) -> None:
    sshd = tmp_path / "usr/sbin/sshd"
    sshd.parent.mkdir(parents=True)
    sshd.write_text(f'#!/bin/sh\nenv > {tmp_path}/env; echo "$@" > {tmp_path}/args\n')
    sshd.chmod(0o700)
    environment = {
        "GLASSHOUSE_ROOT": str(tmp_path), "PATH": "/usr/bin:/bin", "PUBLIC_KEY": "ssh-ed25519 AAAA",
        "GLASSHOUSE_HOST_KEY": "c2VjcmV0", "GLASSHOUSE_HOST_PUBLIC": "ssh-ed25519 BBBB",
        "RUNPOD_POD_ID": "pod",
    }  # fmt: skip
    (tmp_path / "etc/ssh").mkdir(parents=True)
    (tmp_path / "etc/ssh/ssh_host_rsa_key").write_text("the image's own")
    subprocess.run(shlex.split(bootscript.runpod_start(0)), env=environment, check=True, timeout=10)
    assert (tmp_path / "args").read_text() == "-D -e\n"
    assert (tmp_path / "root/.ssh/authorized_keys").read_text() == "ssh-ed25519 AAAA\n"
    assert (tmp_path / "etc/ssh/ssh_host_ed25519_key").read_text() == "secret"
    assert (tmp_path / "etc/ssh/ssh_host_ed25519_key").stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "etc/ssh/ssh_host_rsa_key").exists()
    assert "GLASSHOUSE_HOST_KEY" not in (tmp_path / "env").read_text()


def test_the_dead_man_timer_asks_for_the_end_and_if_that_fails_for_a_stop(tmp_path: Path) -> None:
    for name, text in (
        ("usr/sbin/sshd", "exit 0"),
        ("bin/runpodctl", f'echo "$@" >> {tmp_path}/asked; exit 1'),
    ):
        place = tmp_path / name
        place.parent.mkdir(parents=True)
        place.write_text(f"#!/bin/sh\n{text}\n")
        place.chmod(0o700)
    environment = {
        "GLASSHOUSE_ROOT": str(tmp_path), "PATH": f"{tmp_path}/bin:/usr/bin:/bin", "PUBLIC_KEY": "x",
        "GLASSHOUSE_HOST_KEY": "c2VjcmV0", "GLASSHOUSE_HOST_PUBLIC": "y", "RUNPOD_POD_ID": "pod7",
    }  # fmt: skip
    subprocess.run(shlex.split(bootscript.runpod_start(0)), env=environment, check=True, timeout=10)
    asked, end = tmp_path / "asked", time.monotonic() + 10
    while (not asked.exists() or asked.read_text().count("\n") < 2) and time.monotonic() < end:
        time.sleep(0.02)
    assert asked.read_text() == "remove pod pod7\nstop pod pod7\n"


class Contract:
    """The OpenAPI document as JSON Schema 2020-12, which OpenAPI 3.1 schemas are."""

    def __init__(self, path: Path) -> None:
        self.document = json.loads(path.read_text(encoding="utf-8"))

    def operation(self, method: str, path: str) -> Any:
        for template, item in self.document["paths"].items():
            pattern = re.sub(r"\\\{[^/]+\\\}", "[^/]+", re.escape(template))
            if re.fullmatch(pattern, f"/v2{path}"):
                return item[method.lower()]
        raise AssertionError(f"no operation {method} {path}")

    def check(self, schema: Any, value: Any) -> None:
        whole = {**schema, "components": self.document["components"]}
        jsonschema.Draft202012Validator(whole).validate(value)

    def resolve(self, node: Any) -> Any:
        while "$ref" in node:
            target = self.document
            for part in node["$ref"].removeprefix("#/").split("/"):
                target = target[part]
            node = target
        return node


def test_requests_and_answers_hold_against_the_openapi_document() -> None:
    """Both sides: what our client sends, and what the fake that stands for the API answers."""
    path = openapi_document()
    if path is None:
        pytest.skip("RunPod's OpenAPI document is not here: set GLASSHOUSE_RUNPOD_OPENAPI to its path")
    contract = Contract(path)
    with rented("runpod", region="FAKE-A-1,FAKE-B-1") as it:
        it.server.cloud.add_foreign("someone-elses-pod")
        it.faults("create-capacity", "boot-error", "create-429-wait")
        allocation = it.allocate()
        it.server.cloud.exit_pod(allocation.id)
        assert it.provider.release(NAME, None).proof == "zero"
        exchanges = list(it.server.cloud.exchanges)
    seen = set()
    for each in exchanges:
        operation = contract.operation(each.method, each.path)
        seen.add((operation["operationId"], each.status))
        parameters = {
            parameter["name"]: parameter
            for parameter in map(contract.resolve, operation.get("parameters", []))
            if parameter["in"] == "query"
        }
        assert each.query.keys() <= parameters.keys()
        if each.request is not None:
            contract.check(operation["requestBody"]["content"]["application/json"]["schema"], each.request)
        answer = contract.resolve(
            operation["responses"].get(str(each.status)) or operation["responses"]["default"]
        )
        for kind, content in answer.get("content", {}).items():
            if kind in ("application/json", "application/problem+json"):
                contract.check(content["schema"], each.answer)
    assert {("createPod", 201), ("createPod", 400), ("createPod", 429), ("listPods", 200)} <= seen
    assert {
        ("getPod", 200),
        ("getPod", 404),
        ("deletePod", 204),
        ("getPodLogs", 200),
        ("listGpuTypes", 200),
    } <= seen


def test_the_openapi_check_can_fail() -> None:
    path = openapi_document()
    if path is None:
        pytest.skip("RunPod's OpenAPI document is not here: set GLASSHOUSE_RUNPOD_OPENAPI to its path")
    contract = Contract(path)
    schema = contract.operation("POST", "/pods")["requestBody"]["content"]["application/json"]["schema"]
    good = {"name": "n", "image": "i", "gpu": {"id": "g", "count": 1}}
    contract.check(schema, good)
    for bad in ({**good, "gpuTypeId": "x"}, {"name": "n"}, {**good, "env": {"A": 1}}):
        with pytest.raises(jsonschema.ValidationError):
            contract.check(schema, bad)
