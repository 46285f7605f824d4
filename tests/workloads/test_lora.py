"""The LoRA workload: architectures on the meta device, the adapter, the token stream, pinned files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glasshouse.errors import UsageError
from glasshouse.workloads.package import Payload
from glasshouse.workloads.sizes import lora_shapes
from tests.workloads.conftest import digests, in_memory, load_model, session_of, train

pytestmark = [
    pytest.mark.train,
    # peft 0.21 asks transformers 5 by a name that transformers will drop in version 6.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

MakePayload = Callable[..., Payload]
LORA = ["qwen2-tiny", "llama-tiny", "qwen2.5-0.5b", "qwen2.5-7b", "tinyllama-1.1b"]


def on_meta(name: str, **changes: object) -> Any:
    """The real session of a model of conf/model, with shapes and no storage."""
    import torch

    from glasshouse.workloads import lora_pod

    model = load_model(name, **changes)
    return lora_pod.LoraSession(model.model_dump(mode="json"), _adapter(model), torch.device("meta"))


def _adapter(model: Any) -> dict[str, Any]:
    zeros = memoryview(bytearray(max(item.nbytes for item in lora_shapes(model))))
    return {item.name: (item, zeros[: item.nbytes]) for item in lora_shapes(model)}


@pytest.mark.parametrize(
    ("name", "trainable", "total"),
    [
        # As published, see conf/history/published-rows.json.
        ("qwen2.5-0.5b", 270_336, None),
        ("qwen2.5-7b", 1_261_568, 7_616_878_080),
        # TinyLlama's model card states 1.1 B: 1,100,048,384 weights, counted from its own config.
        ("tinyllama-1.1b", None, 1_100_048_384 + 22 * 4 * (2048 + 2048 + 2048 + 256)),
    ],
)
def test_parameter_counts(name: str, trainable: int | None, total: int | None) -> None:
    info = on_meta(name).info
    if trainable is not None:
        assert info["trainableParams"] == trainable
    if total is not None:
        assert info["totalParams"] == total


@pytest.mark.parametrize(
    "modules", [("q_proj", "v_proj"), ("k_proj", "o_proj", "gate_proj", "up_proj", "down_proj")]
)
@pytest.mark.parametrize("name", LORA)
def test_the_packages_shapes_are_peft_s(name: str, modules: tuple[str, ...]) -> None:
    # The session refuses an adapter of other names; the shapes are compared here.
    session = on_meta(name, target_modules=list(modules))
    expected = {item.name: item.shape for item in lora_shapes(load_model(name, target_modules=list(modules)))}
    assert {key: tuple(value.shape) for key, value in session.trainable().items()} == expected


def test_an_unknown_target_module_is_one_line(payload_of: MakePayload) -> None:
    with pytest.raises(UsageError, match=r"model\.target_modules=query"):
        payload_of(load_model("qwen2-tiny", target_modules=["query"]))


def test_it_begins_with_the_packages_adapter_and_the_model_unchanged(payload_of: MakePayload) -> None:
    import torch

    payload = payload_of(load_model("qwen2-tiny"))
    tensors, session = in_memory(payload), session_of(payload)
    for name, value in session.trainable().items():
        item, view = tensors[name]
        assert torch.equal(value, torch.frombuffer(view, dtype=torch.float32).reshape(item.shape))
        assert bool(value.any()) == name.endswith("lora_A")
    with torch.no_grad():
        batch = session.tokens[:2]
        adapted = session.model(input_ids=batch).logits
        with session.model.disable_adapter():
            assert torch.equal(adapted, session.model(input_ids=batch).logits)


def test_only_the_adapter_is_trained(payload_of: MakePayload) -> None:
    session = session_of(payload_of(load_model("qwen2-tiny")))
    frozen = {
        name: value.detach().clone()
        for name, value in session.model.named_parameters()
        if not value.requires_grad
    }
    before = digests(session)
    for _ in range(3):
        session.run_unit()
    assert digests(session) != before
    after = dict(session.model.named_parameters())
    assert frozen
    assert all(value.equal(after[name]) for name, value in frozen.items())
    assert len(after) - len(frozen) == len(session.trainable()) == 2 * 2 * 2


def test_tokens_come_in_order_and_begin_again(payload_of: MakePayload) -> None:
    session = session_of(payload_of(load_model("qwen2-tiny", examples=5, batch=2, max_length=8)))
    seen: list[Any] = []
    session.model.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(kwargs["input_ids"].clone()), with_kwargs=True
    )
    for _ in range(4):
        session.run_unit()
    expected = [[0, 1], [2, 3], [4, 0], [1, 2]]
    assert [batch.tolist() for batch in seen] == [session.tokens[rows].tolist() for rows in expected]
    assert session.given()["tokens"] is session.tokens
    assert session.info["tokensPerUnit"] == 16


def test_gradients_are_clipped(payload_of: MakePayload) -> None:
    import torch

    session = session_of(payload_of(load_model("qwen2-tiny", grad_clip=1e-3)))
    session.run_unit()
    norms = torch.stack([value.grad.norm() for value in session.adapter.values() if value.grad is not None])
    assert float(norms.norm()) <= 1e-3 * 1.001


def test_equal_seeds_give_equal_bits_and_the_loss_falls(payload_of: MakePayload) -> None:
    model = load_model("qwen2-tiny", examples=1, learning_rate=0.02)
    one = session_of(payload_of(model))
    one.run_unit()
    first = one.loss()
    for _ in range(19):
        one.run_unit()
    assert one.loss() < 0.95 * first
    assert one.info["deterministic"]
    assert digests(train(payload_of(model), 20)) == digests(one)
    assert digests(train(payload_of(model, seed=2), 20)) != digests(one)


# --- pretrained weights ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A tiny model on disk as save_pretrained() writes it, in two shards, with the digests of its files."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("saved")
    architecture = dict(load_model("qwen2-tiny").architecture)
    shape = transformers.AutoConfig.for_model(architecture.pop("model_type"), **architecture)
    torch.manual_seed(99)
    transformers.AutoModelForCausalLM.from_config(shape).save_pretrained(folder, max_shard_size="1MB")
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 1
    return folder, {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_pretrained_weights_are_loaded_from_pinned_files(
    payload_of: MakePayload, saved: tuple[Path, dict[str, str]]
) -> None:
    from safetensors.torch import load_file

    folder, pinned = saved
    model = load_model("qwen2-tiny", weights="pretrained", model_id=str(folder), file_sha256=pinned)
    session = session_of(payload_of(model))
    held = dict(session.model.get_base_model().named_parameters())
    for path in folder.glob("*.safetensors"):
        for name, value in load_file(path).items():
            found = held.get(name, held.get(name.replace("_proj.", "_proj.base_layer.")))
            assert found is not None
            assert value.equal(found.detach())
    session.run_unit()
    assert session.loss() > 0


@pytest.mark.parametrize("fault", ["digest", "unpinned", "missing"])
def test_a_file_that_is_not_the_pinned_one_is_refused(
    payload_of: MakePayload, saved: tuple[Path, dict[str, str]], fault: str
) -> None:
    folder, pinned = saved
    pinned = dict(pinned)
    first = min(pinned)
    if fault == "digest":
        pinned[first] = hashlib.sha256(b"another file").hexdigest()
    elif fault == "unpinned":
        del pinned[first]
    else:
        pinned["model-99999-of-99999.safetensors"] = pinned[first]
    model = load_model("qwen2-tiny", weights="pretrained", model_id=str(folder), file_sha256=pinned)
    with pytest.raises((ValueError, FileNotFoundError), match=r"digest|No such file"):
        session_of(payload_of(model))


def test_pretrained_without_digests_is_refused_before_anything_starts(payload_of: MakePayload) -> None:
    with pytest.raises(UsageError, match="pinned digests") as refused:
        payload_of(load_model("qwen2.5-7b", weights="pretrained"))
    assert refused.value.exit_code == 2


def test_the_packed_config_names_no_path_of_ours(
    payload_of: MakePayload, saved: tuple[Path, dict[str, str]]
) -> None:
    payload = payload_of(load_model("qwen2-tiny", weights="sealed", weights_path=str(saved[0])))
    assert str(saved[0]).encode() not in b"".join(payload.files.values())
    assert json.loads(payload.files["config.json"])["weights"] == "sealed"
