from __future__ import annotations

import pytest

from glasshouse.measurement.roofline import (
    Work,
    host_bound,
    lora_sizes,
    lora_work,
    mlp_work,
    roofline,
    work,
)
from glasshouse.spec import CustomModel, Gpu, LoraModel, MlpModel

# Sizes of Qwen2.5-7B and 0.5B as in the config.json of their model repositories.
QWEN_7B: dict[str, int | float | bool | str] = {
    "model_type": "qwen2", "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "intermediate_size": 18944, "vocab_size": 152064,
}  # fmt: skip
QWEN_05B: dict[str, int | float | bool | str] = {
    "model_type": "qwen2", "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14,
    "num_key_value_heads": 2, "intermediate_size": 4864, "vocab_size": 151936,
}  # fmt: skip


def lora(architecture: dict[str, int | float | bool | str]) -> LoraModel:
    return LoraModel(
        kind="lora", name="m", model_id="x/y", architecture=architecture, learning_rate=1e-4, max_length=64
    )


def test_mlp_by_hand() -> None:
    model = MlpModel(
        kind="mlp", name="m", inputs=3, hidden=5, layers=2, classes=2, batch=7, batches_per_epoch=11,
        learning_rate=0.1,
    )  # fmt: skip
    # Forward 2BMN a layer, weight gradient the same, input gradient the same except in the first.
    forward = 2 * 7 * (3 * 5 + 5 * 5 + 5 * 2)
    inputs = 2 * 7 * (5 * 5 + 5 * 2)
    assert mlp_work(model).flops == 11 * (2 * forward + inputs)
    parameters = 15 + 25 + 10 + 5 + 5 + 2
    assert mlp_work(model).bytes == 11 * 4 * (10 * parameters + 6 * 7 * 12 + 7 * 3)
    half = model.model_copy(update={"dtype": "bfloat16"})
    assert mlp_work(half).bytes == mlp_work(model).bytes / 2


def test_adapter_sizes_are_the_published_ones() -> None:
    """270,336 and 1,261,568 trainable parameters: the published rows of 2026-05-21."""
    small, large = lora_sizes(lora(QWEN_05B)), lora_sizes(lora(QWEN_7B))
    assert small is not None
    assert large is not None
    assert small.adapter == 270_336
    assert large.adapter == 1_261_568
    # Published total 7,616,878,080 = frozen matrices + embedding + biases + norms + adapter.
    embedding, biases, norms = 152064 * 3584, 28 * (3584 + 2 * 512), (2 * 28 + 1) * 3584
    assert large.frozen + embedding + biases + norms + large.adapter == 7_616_878_080


def test_lora_flops_are_near_four_per_weight_and_token() -> None:
    model = lora(QWEN_7B)
    amount, sizes = lora_work(model), lora_sizes(model)
    assert amount is not None
    assert sizes is not None
    assert amount.flops == pytest.approx(4 * 64 * sizes.frozen, rel=0.01)
    assert amount.bytes == pytest.approx(2 * 2 * sizes.frozen, rel=0.05)


def test_gpt2_sizes() -> None:
    """GPT-2 small: 124,439,808 parameters (Hugging Face model card), tied head."""
    gpt2: dict[str, int | float | bool | str] = {
        "model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257,
    }  # fmt: skip
    sizes = lora_sizes(lora(gpt2).model_copy(update={"target_modules": ("c_attn",)}))
    assert sizes is not None
    positions, norms, biases = 1024 * 768, (2 * 12 + 1) * 2 * 768, 12 * (4 * 768 + 5 * 768)
    assert sizes.frozen + positions + norms + biases == 124_439_808
    assert sizes.adapter == 12 * 4 * (768 + 3 * 768)


def test_unknown_sizes_and_workloads_have_no_work() -> None:
    assert lora_work(lora({"model_type": "mamba"})) is None
    assert work(CustomModel(kind="custom", name="c", entry="a.py:Workload")) is None


def test_roofs() -> None:
    gpu = Gpu(name="h100", peak_bf16_tflops=1000.0, memory_gbps=3000.0)
    heavy = roofline(Work(1e15, 1e9), gpu, 0.5)
    assert heavy is not None
    assert (heavy.bound, heavy.attainable_units_per_sec, heavy.fraction) == ("compute", 1.0, 0.5)
    assert host_bound(heavy) is False
    light = roofline(Work(1e9, 3e12), gpu, 0.1)
    assert light is not None
    assert light.bound == "memory"
    assert light.fraction == pytest.approx(0.1)
    assert host_bound(light) is True
    two = roofline(Work(1e15, 1e9), gpu.model_copy(update={"count": 2}), 0.5)
    assert two is not None
    assert two.fraction == 0.25
    assert roofline(Work(1.0, 1.0), Gpu(name="cpu"), 1.0) is None
    assert host_bound(None) is None
