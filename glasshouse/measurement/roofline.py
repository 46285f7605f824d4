"""How far a workload stays below what its GPU could do: far below, the host is what is measured.

Counts are of the arithmetic and of the least memory traffic that the method needs, by the usual
approximations, stated per model. They serve one purpose: to flag rows where kernel launches and
Python dominate, because protection that slows only the GPU would not show there.
Source: S. Williams, A. Waterman, D. Patterson, Roofline, Commun. ACM 52 (2009) 65-76.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from glasshouse.spec import Gpu, LoraModel, MlpModel, Model

HOST_BOUND_FRACTION = 0.2
_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Work:
    """Arithmetic (FLOPs, a multiply-add counts two) and memory traffic (bytes) of one unit."""

    flops: float
    bytes: float


@dataclass(frozen=True)
class LoraSizes:
    """Widths and counts of a decoder under LoRA.

    queries: width of all heads together; frozen: weights in matrix products, the output head
    among them, the embedding table and biases not; adapter: trainable weights.
    """

    hidden: int
    layers: int
    queries: int
    frozen: int
    adapter: int


@dataclass(frozen=True)
class Roofline:
    """The attainable rate (units/s) by the tighter of the two roofs, and the fraction reached."""

    bound: Literal["compute", "memory"]
    attainable_units_per_sec: float
    fraction: float


def mlp_work(model: MlpModel) -> Work:
    """One epoch: batches_per_epoch optimiser steps.

    FLOPs: 6 x batch x weights, less the input gradient that the first layer needs not; biases and
    activations are left out. Traffic a step: weights, gradients and AdamW's two moments, read or
    written ten times in all (weights forward, backward, update twice; gradient written, read; each
    moment read, written), and every layer's output moved six times.
    """
    widths = [model.inputs, *[model.hidden] * model.layers, model.classes]
    matrices = [a * b for a, b in pairwise(widths)]
    flops = 6 * model.batch * sum(matrices) - 2 * model.batch * matrices[0]
    size = _BYTES[model.dtype]
    parameters = sum(matrices) + sum(widths[1:])
    moved = size * (10 * parameters + 6 * model.batch * sum(widths[1:]) + model.batch * model.inputs)
    return Work(float(flops * model.batches_per_epoch), float(moved * model.batches_per_epoch))


def lora_work(model: LoraModel) -> Work | None:
    """One optimiser step of batch x max_length tokens; None when the architecture names no sizes.

    FLOPs: 4 x tokens x frozen matrix weights (forward, and the gradient passed through; no weight
    gradient), 12 x layers x batch x length^2 x queries for attention (causality not exploited),
    6 x tokens x adapter weights. Traffic: frozen weights twice, stored activations of
    34 x tokens x hidden bytes a layer (Korthikanti et al., arXiv:2205.05198, section 4.1, without
    the attention matrix, in 16-bit) written and read, adapter state ten times in float32.
    Recomputation, norms and the loss are left out.
    """
    sizes = lora_sizes(model)
    if sizes is None:
        return None
    tokens = model.batch * model.max_length
    flops = (
        4 * tokens * sizes.frozen
        + 12 * sizes.layers * tokens * model.max_length * sizes.queries
        + 6 * tokens * sizes.adapter
    )
    size = _BYTES[model.dtype]
    activations = 34 * tokens * sizes.hidden * sizes.layers * size // 2
    return Work(float(flops), float(2 * sizes.frozen * size + 2 * activations + 10 * 4 * sizes.adapter))


def lora_sizes(model: LoraModel) -> LoraSizes | None:
    """Sizes from the transformers configuration; None when it names no sizes.

    Matrices are those of Llama and Qwen2 (grouped queries, gated MLP), or of GPT-2. The adapter has
    rank x (inputs + outputs) weights on each target (Hu et al., arXiv:2106.09685).
    """
    hidden = _size(model, "hidden_size", "n_embd")
    layers = _size(model, "num_hidden_layers", "n_layer")
    heads = _size(model, "num_attention_heads", "n_head")
    vocabulary = _size(model, "vocab_size")
    if hidden is None or layers is None or heads is None or vocabulary is None:
        return None
    gpt2 = model.architecture.get("model_type") == "gpt2"
    inner = _size(model, "intermediate_size", "n_inner") or 4 * hidden
    head = _size(model, "head_dim") or hidden // heads
    queries = heads * head
    keys = (_size(model, "num_key_value_heads") or heads) * head
    shapes = {
        "q_proj": (hidden, queries),
        "k_proj": (hidden, keys),
        "v_proj": (hidden, keys),
        "o_proj": (queries, hidden),
        "up_proj": (hidden, inner),
        "down_proj": (inner, hidden),
        "gate_proj": (hidden, 0 if gpt2 else inner),
        "c_attn": (hidden, 3 * hidden),  # GPT-2's name for q, k and v together
    }
    frozen = layers * sum(a * b for name, (a, b) in shapes.items() if name != "c_attn") + vocabulary * hidden
    adapter = layers * sum(model.rank * sum(shapes[name]) for name in model.target_modules if name in shapes)
    return LoraSizes(hidden, layers, queries, frozen, adapter)


def work(model: Model) -> Work | None:
    """The work of one unit; None for a withheld model, and a custom one, whose arithmetic nobody declared."""
    if isinstance(model, MlpModel):
        return mlp_work(model)
    return lora_work(model) if isinstance(model, LoraModel) else None


def roofline(amount: Work, gpu: Gpu, units_per_sec: float) -> Roofline | None:
    """Compare a measured rate with the GPU's roofs; None when conf/gpu states no limits.

    gpu.peak_bf16_tflops is dense BF16; float32 work is held against it too, so its fraction is
    understated, which errs towards the caveat.
    """
    if gpu.peak_bf16_tflops is None or gpu.memory_gbps is None:
        return None
    compute_sec = amount.flops / (gpu.peak_bf16_tflops * 1e12 * gpu.count)
    memory_sec = amount.bytes / (gpu.memory_gbps * 1e9 * gpu.count)
    attainable = 1.0 / max(compute_sec, memory_sec)
    return Roofline(
        bound="compute" if compute_sec >= memory_sec else "memory",
        attainable_units_per_sec=attainable,
        fraction=units_per_sec / attainable,
    )


def host_bound(result: Roofline | None) -> bool | None:
    """Whether the fraction is below HOST_BOUND_FRACTION; None when there is no roofline."""
    return None if result is None else result.fraction < HOST_BOUND_FRACTION


def _size(model: LoraModel, *names: str) -> int | None:
    for name in names:
        value = model.architecture.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None
