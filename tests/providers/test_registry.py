"""Every kind of provider that the config knows can be opened."""

from __future__ import annotations

from typing import get_args

import pytest

from glasshouse import spec
from glasshouse.errors import UsageError
from glasshouse.providers import registry

CONFIGS: dict[str, spec.Provider] = {
    "local": spec.LocalProvider(kind="local"),
    "ssh": spec.SshProvider(kind="ssh", host="pod.example", user="me", key="/nowhere"),
    "runpod": spec.CloudProvider(
        kind="runpod", base_url="https://pod.example", trust_host="pod.example", image="image"
    ),
    "vastai": spec.CloudProvider(
        kind="vastai", base_url="https://pod.example", trust_host="pod.example", image="image"
    ),
}


def test_each_kind_in_the_spec_has_an_opener() -> None:
    union = get_args(spec.Provider)[0]
    kinds = {kind for model in get_args(union) for kind in get_args(model.model_fields["kind"].annotation)}
    assert set(registry._OPENERS) == kinds == set(CONFIGS)


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_it_opens(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNPOD_API_KEY", "test-key-0123456789")
    monkeypatch.setenv("VAST_API_KEY", "test-key-0123456789")
    with registry.open_provider(CONFIGS[kind]) as provider:
        assert provider.kind == kind


@pytest.mark.parametrize(
    "url",
    [
        "https://api.runpod.io.evil.example/v2", "https://evilrunpod.io/v2", "https://203.0.113.9/v2",
        "https://127.0.0.1.evil.example/", "https://[2001:db8::1]/v2", "https://console.vast.ai/api",
    ],
)  # fmt: skip
def test_a_key_is_sent_to_no_host_that_is_neither_the_vendors_nor_named(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RUNPOD_API_KEY", "test-key-0123456789")
    config = spec.CloudProvider(kind="runpod", base_url=url, image="image")
    with pytest.raises(UsageError, match="would be sent to a host that is not RunPod's") as caught:
        registry.open_provider(config)
    assert "provider.trust_host=" in str(caught.value)
    host = str(caught.value.value)
    other = config.model_copy(update={"trust_host": "another.example"})
    with pytest.raises(UsageError, match="would be sent"):
        registry.open_provider(other)
    # What was rented there is given back: the host has had the key.
    with registry.open_provider(config, rented=True):
        assert f"is sent to {host}," in capsys.readouterr().err
    with registry.open_provider(config.model_copy(update={"trust_host": host})):
        assert capsys.readouterr().err == (
            f"note: the API key in RUNPOD_API_KEY is sent to {host}, which is not RunPod's\n"
        )


@pytest.mark.parametrize(
    "url",
    ["https://api.runpod.io/v2", "https://rest.runpod.io/v1", "http://127.0.0.1:1/x", "http://localhost/x"],
)
def test_the_vendors_hosts_and_this_machine_need_no_name(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RUNPOD_API_KEY", "test-key-0123456789")
    with registry.open_provider(spec.CloudProvider(kind="runpod", base_url=url, image="image")):
        assert capsys.readouterr().err == ""
