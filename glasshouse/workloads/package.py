"""What goes into a package: a workload's source, its config, its initial weights and data.

The same files and tensors serve both arms: sealed for the protected one, in the clear for the raw.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from glasshouse.canonical import canonical_json
from glasshouse.errors import UsageError
from glasshouse.runtime.harness import CONFIG_FILE, DATA_PREFIX, SOURCE_FILE
from glasshouse.sealing.container import TensorSpec
from glasshouse.spec import CustomModel, LoraModel, MlpModel, RunSpec, WithheldModel
from glasshouse.workloads.custom import check_source
from glasshouse.workloads.made import MadeWeights, Making
from glasshouse.workloads.weights import BaseWeights

SOURCES = Path(__file__).parent
MAX_FILE_BYTES = 8 << 30

Tensor = tuple[TensorSpec, memoryview]


@dataclass(frozen=True)
class Payload:
    """Everything a workload needs on the pod.

    `builder` is the name in the source that makes a session (runtime/session.py). `weights` are what is
    made for it and `base` what lies in files already; neither need be held in memory.
    """

    files: Mapping[str, bytes]
    builder: str = "build"
    weights: MadeWeights = field(default_factory=lambda: MadeWeights(lambda: iter(())), repr=False)
    base: BaseWeights | None = field(default=None, repr=False)

    def __iter__(self) -> Iterator[Tensor]:
        """Yield every tensor's spec and bytes, as often as it is asked."""
        yield from self.weights
        yield from self.base or ()


def prepare(spec: RunSpec) -> Payload:
    """Assemble the payload of a run's model. Raises UsageError for what cannot be packed."""
    model = spec.model
    if isinstance(model, WithheldModel):
        raise UsageError(
            "the plan of a private job does not hold its model", field="model.kind", value=model.kind,
            remedy="give the model's own settings",
        )  # fmt: skip
    if not isinstance(model, CustomModel) and model.batch % spec.gpu.count:
        raise UsageError(
            f"a batch of {model.batch} cannot be shared equally", field="gpu.count", value=spec.gpu.count,
            remedy=f"give a model.batch that {spec.gpu.count} divides",
        )  # fmt: skip
    if isinstance(model, MlpModel):
        return _mlp(model, spec.seed)
    if isinstance(model, LoraModel):
        return _lora(model, spec.seed)
    return _custom(model)


def _built_in(
    source: str, config: Mapping[str, Any], weights: Making, base: BaseWeights | None = None
) -> Payload:
    files = {SOURCE_FILE: (SOURCES / source).read_bytes(), CONFIG_FILE: canonical_json(config)}
    return Payload(files, weights=MadeWeights(weights), base=base)


def _mlp(model: MlpModel, seed: int) -> Payload:
    widths = [model.inputs, *[model.hidden] * model.layers, model.classes]

    def weights() -> Iterator[Tensor]:
        generator = np.random.Generator(np.random.PCG64(seed))
        for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
            # He et al. 2015: standard deviation sqrt(2 / fan-in) keeps ReLU activations level.
            scale = np.float32(math.sqrt(2.0 / fan_in))
            weight = generator.standard_normal((fan_out, fan_in), dtype=np.float32) * scale
            yield TensorSpec(f"layer{layer}.weight", "float32", (fan_out, fan_in)), weight.data.cast("B")
            bias = np.zeros(fan_out, dtype=np.float32)
            yield TensorSpec(f"layer{layer}.bias", "float32", (fan_out,)), bias.data.cast("B")

    return _built_in("mlp_pod.py", model.model_dump(exclude={"kind", "name"}), weights)


def lora_shapes(model: LoraModel) -> list[TensorSpec]:
    """Names and shapes of the adapter's tensors, from the architecture alone (Llama and Qwen2 kinds).

    A target module maps `inputs` to `outputs`; its adapter is lora_A (rank, inputs) and lora_B
    (outputs, rank): Hu et al. 2021, section 4.1. Raises UsageError for a module it does not know.
    """
    shape = model.architecture
    hidden, heads = int(shape["hidden_size"]), int(shape["num_attention_heads"])
    head = int(shape.get("head_dim") or hidden // heads)
    key_value = int(shape.get("num_key_value_heads") or heads) * head
    inner = int(shape["intermediate_size"])
    sizes = {
        "q_proj": (hidden, heads * head),
        "k_proj": (hidden, key_value),
        "v_proj": (hidden, key_value),
        "o_proj": (heads * head, hidden),
        "gate_proj": (hidden, inner),
        "up_proj": (hidden, inner),
        "down_proj": (inner, hidden),
    }
    found = []
    for layer in range(int(shape["num_hidden_layers"])):
        for module in model.target_modules:
            if module not in sizes:
                known = ", ".join(sizes)
                raise UsageError(
                    "unknown target module", field="model.target_modules", value=module, remedy=f"use {known}"
                )
            inputs, outputs = sizes[module]
            prefix = f"layers.{layer}.{module}"
            found.append(TensorSpec(f"{prefix}.lora_A", "float32", (model.rank, inputs)))
            found.append(TensorSpec(f"{prefix}.lora_B", "float32", (outputs, model.rank)))
    return found


def _lora(model: LoraModel, seed: int) -> Payload:
    if model.weights == "pretrained" and not model.file_sha256:
        raise UsageError(
            "pretrained weights need pinned digests",
            field="model.file_sha256",
            value="{}",
            remedy="give the SHA-256 of every .safetensors file, or model.weights=random",
        )
    specs = lora_shapes(model)
    base = BaseWeights(model) if model.weights == "sealed" else None

    def weights() -> Iterator[Tensor]:
        generator = np.random.Generator(np.random.PCG64(seed))
        for item in specs:
            if item.name.endswith("lora_A"):
                # peft's own start: A uniform within 1/sqrt(inputs), B zero, so the model begins unchanged.
                bound = 1.0 / math.sqrt(item.shape[1])
                values = generator.uniform(-bound, bound, item.shape).astype(np.float32)
            else:
                values = np.zeros(item.shape, dtype=np.float32)
            yield item, values.data.cast("B")

    hidden = {"kind", "name", "weights_path"}  # a path of this machine is nothing to the pod
    return _built_in("lora_pod.py", model.model_dump(mode="json", exclude=hidden), weights, base)


def _custom(model: CustomModel) -> Payload:
    path, _, name = model.entry.rpartition(":")
    source = _read(Path(path), "model.entry")
    check_source(model, source)
    files = {SOURCE_FILE: source, CONFIG_FILE: canonical_json(dict(model.params))}
    for item in model.data:
        place = f"{DATA_PREFIX}{Path(item).name}"
        if place in files:
            raise UsageError(
                "two data files of one name", field="model.data", value=Path(item).name, remedy="rename one"
            )
        files[place] = _read(Path(item), "model.data")
    return Payload(files, builder=name)


def _read(path: Path, where: str) -> bytes:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UsageError("file is too large to seal", field=where, value=path, remedy="at most 8 GiB")
        return path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"cannot read the file: {error.strerror}", field=where, value=path, remedy="give a readable file"
        ) from error
