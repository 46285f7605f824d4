"""What a payload is said to weigh is what is packed, but for a few hundred bytes of settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from glasshouse.errors import UsageError
from glasshouse.records.plan import public_spec
from glasshouse.spec import RunSpec
from glasshouse.workloads.package import prepare
from glasshouse.workloads.sizes import payload_bytes
from tests.specs import make_spec
from tests.workloads.conftest import load_model

SETTINGS = 2048


def check(spec: RunSpec) -> int:
    payload, said = prepare(spec), payload_bytes(spec)
    packed = sum(map(len, payload.files.values())) + sum(view.nbytes for _, view in payload)
    assert 0 <= packed - said < SETTINGS
    return said


@pytest.mark.parametrize("name", ["mlp", "qwen2-tiny"])
def test_of_built_in_models(name: str) -> None:
    assert check(make_spec(model=load_model(name))) > 4096


def test_of_a_workload_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(bytes(100_000))
    model = {
        "kind": "custom", "name": "clocked", "entry": "tests/e2e/workloads/clocked.py:Clocked",
        "data": [str(tmp_path / "data.bin")],
    }  # fmt: skip
    assert check(make_spec(model=model)) > 100_000
    (tmp_path / "data.bin").unlink()
    with pytest.raises(UsageError, match="cannot read the file"):
        payload_bytes(make_spec(model=model))


def test_of_sealed_base_weights(tmp_path: Path) -> None:
    plain = load_model("qwen2-tiny")
    shape = [int(plain.architecture["vocab_size"]), int(plain.architecture["hidden_size"])]  # type: ignore[union-attr]
    size = shape[0] * shape[1] * 4
    header = json.dumps(
        {"model.embed_tokens.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}
    ).encode()
    model = load_model("qwen2-tiny", weights="sealed", weights_path=str(tmp_path))
    with pytest.raises(UsageError, match=r"no \.safetensors file there"):
        payload_bytes(make_spec(model=model))
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))
    assert check(make_spec(model=model)) > size


def test_of_a_private_plan_nothing_is_known() -> None:
    with pytest.raises(UsageError, match="does not hold its model"):
        payload_bytes(public_spec(make_spec(payload="private", order="protected-only")))
