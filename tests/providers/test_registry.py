"""Every kind of provider that the config knows can be opened."""

from __future__ import annotations

from typing import get_args

import pytest

from glasshouse import spec
from glasshouse.providers import registry

CONFIGS: dict[str, spec.Provider] = {
    "local": spec.LocalProvider(kind="local"),
    "ssh": spec.SshProvider(kind="ssh", host="pod.example", user="me", key="/nowhere"),
    "runpod": spec.CloudProvider(kind="runpod", base_url="https://pod.example", image="image"),
    "vastai": spec.CloudProvider(kind="vastai", base_url="https://pod.example", image="image"),
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
