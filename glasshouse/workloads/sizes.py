"""What a model's payload weighs, from its settings and files: nothing is made, and no library is needed."""

from __future__ import annotations

import itertools
from pathlib import Path

from glasshouse.errors import UsageError
from glasshouse.sealing.layout import TensorSpec
from glasshouse.spec import LoraModel, MlpModel, ProjectModel, RunSpec, WithheldModel
from glasshouse.workloads import project

SOURCES = Path(__file__).parent
_PAGE = 4096  # bytes of memory, of which each file in it takes whole ones


def payload_bytes(spec: RunSpec) -> int:
    """Bytes of source, data and weights that a run of this model seals; its settings, a few hundred, apart.

    Raises UsageError where they cannot be known.
    """
    model = spec.model
    if isinstance(model, WithheldModel):
        raise withheld(model)
    if isinstance(model, ProjectModel):
        return project.look(model, spec.gpu).selection.total_bytes
    if isinstance(model, MlpModel):
        return _size(SOURCES / "mlp_pod.py") + sum(item.nbytes for item in mlp_shapes(model))
    if isinstance(model, LoraModel):
        base = _base_bytes(Path(str(model.weights_path)).expanduser()) if model.weights == "sealed" else 0
        return _size(SOURCES / "lora_pod.py") + sum(item.nbytes for item in lora_shapes(model)) + base
    return _size(Path(model.entry.rpartition(":")[0])) + sum(_size(Path(item)) for item in model.data)


def scratch_bytes(found: project.Project) -> int:
    """Bytes of memory that a project's files take on the pod."""
    return sum(-(-file.size // _PAGE) * _PAGE for file in found.selection.files)


def withheld(model: WithheldModel) -> UsageError:
    """What to say where a private job's plan is all that there is of a model."""
    return UsageError(
        "the plan of a private job does not hold its model", field="model.kind", value=model.kind,
        remedy="give the model's own settings",
    )  # fmt: skip


def mlp_shapes(model: MlpModel) -> list[TensorSpec]:
    """Names and shapes of a perceptron's tensors, layer by layer: weight (outputs, inputs), then bias."""
    widths = [model.inputs, *[model.hidden] * model.layers, model.classes]
    found = []
    for layer, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        found.append(TensorSpec(f"layer{layer}.weight", "float32", (outputs, inputs)))
        found.append(TensorSpec(f"layer{layer}.bias", "float32", (outputs,)))
    return found


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


def _base_bytes(folder: Path) -> int:
    """Bytes of the tensors in a folder's .safetensors files: all but their headers."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UsageError(
            "no .safetensors file there", field="model.weights_path", value=folder,
            remedy="give a folder that save_pretrained() wrote",
        )  # fmt: skip
    total = 0
    for path in files:
        try:
            with path.open("rb") as stream:
                header = 8 + int.from_bytes(stream.read(8), "little")
        except OSError as error:
            raise _unreadable(path, error) from error
        total += max(0, _size(path) - header)
    return total


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> UsageError:
    return UsageError(
        f"cannot read the file: {error.strerror}", field="file", value=path, remedy="give a readable file"
    )
