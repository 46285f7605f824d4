"""Payloads as the pod gets them: source executed from memory, tensors as views of one private region."""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from glasshouse import config, spec
from glasshouse.runtime import harness
from glasshouse.workloads.package import Payload, prepare
from tests.specs import make_spec

Tensors = dict[str, tuple[Any, memoryview]]


def load_model(name: str, **changes: object) -> spec.LoraModel | spec.MlpModel:
    """A model of conf/model, with fields replaced."""
    values = config.resolved([f"model={name}"])
    values["model"].update(changes)
    return config.validate(values).model


def in_memory(payload: Payload) -> Tensors:
    """The payload's tensors at page-aligned places of private memory, as both arms find them."""
    found = list(payload)
    sizes = [-(-view.nbytes // 4096) * 4096 for _, view in found]
    region = mmap.mmap(-1, max(4096, sum(sizes)), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    whole, place, tensors = memoryview(region), 0, {}
    for (item, view), size in zip(found, sizes, strict=True):
        whole[place : place + view.nbytes] = view
        tensors[item.name] = (item, whole[place : place + view.nbytes])
        place += size
    return tensors


def session_of(payload: Payload, device: str = "cpu") -> Any:
    return harness.Workload(payload.files, in_memory(payload), payload.builder).build(device)


@pytest.fixture
def payload_of() -> Callable[..., Payload]:
    def make(model: object, **changes: object) -> Payload:
        return prepare(make_spec(model=model, **changes))

    return make


def digests(session: Any, salt: bytes = b"s" * 32) -> tuple[str, str]:
    """(digest of what is trained, SHA-256 of its canonical safetensors export)."""
    found = session.trainable()
    return harness.tensor_digest(found, salt), harness.export_digest(found)[0]


def train(payload: Payload, units: int) -> Any:
    session = session_of(payload)
    for _ in range(units):
        session.run_unit()
    return session


def custom(path: Path, name: str = "Workload", **changes: object) -> spec.CustomModel:
    values: Mapping[str, object] = {"kind": "custom", "name": "custom", "entry": f"{path}:{name}", **changes}
    return spec.CustomModel.model_validate_json(json.dumps(values))
