"""What goes into a package: a workload's source, its config, its initial weights.

The same files and tensors serve both arms: sealed for the protected one, in the clear for the raw.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from glasshouse.canonical import canonical_json
from glasshouse.errors import UsageError
from glasshouse.sealing.container import TensorSpec
from glasshouse.spec import CustomModel, LoraModel, MlpModel, RunSpec

SOURCES = Path(__file__).parent


@dataclass(frozen=True)
class Payload:
    """Everything a workload needs on the pod. `tensors` yields (spec, bytes) and may be called again."""

    entry: str
    files: dict[str, bytes]
    tensor_specs: tuple[TensorSpec, ...]
    tensors: Any = field(repr=False)  # Callable[[], Iterator[tuple[TensorSpec, memoryview]]]
    synthetic: bool
    random_weights: bool


def prepare(spec: RunSpec) -> Payload:
    """Assemble the payload of a run's model. Raises UsageError for what cannot be packed."""
    model = spec.model
    if isinstance(model, MlpModel):
        return _mlp(model, spec.seed)
    if isinstance(model, LoraModel):
        raise UsageError(
            "this model has no workload yet",
            field="model",
            value=model.name,
            remedy="use model=mlp or model=mlp-large",
        )
    assert isinstance(model, CustomModel)
    raise UsageError(
        "this model has no workload yet",
        field="model",
        value=model.name,
        remedy="use model=mlp or model=mlp-large",
    )


def _mlp(model: MlpModel, seed: int) -> Payload:
    widths = [model.inputs, *[model.hidden] * model.layers, model.classes]
    specs: list[TensorSpec] = []
    for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
        specs.append(TensorSpec(f"layer{layer}.weight", "float32", (fan_out, fan_in)))
        specs.append(TensorSpec(f"layer{layer}.bias", "float32", (fan_out,)))

    def tensors() -> Iterator[tuple[TensorSpec, memoryview]]:
        generator = np.random.Generator(np.random.PCG64(seed))
        for item in specs:
            if len(item.shape) == 2:
                # He et al. 2015: standard deviation sqrt(2 / fan-in) keeps ReLU activations level.
                scale = math.sqrt(2.0 / item.shape[1])
                values = generator.standard_normal(item.shape, dtype=np.float32) * np.float32(scale)
            else:
                values = np.zeros(item.shape, dtype=np.float32)
            yield item, values.data.cast("B")

    config = model.model_dump(exclude={"kind", "name"})
    files = {
        "workload.py": (SOURCES / "mlp_pod.py").read_bytes(),
        "config.json": canonical_json(config),
    }
    return Payload("workload.py", files, tuple(specs), tensors, synthetic=True, random_weights=True)
