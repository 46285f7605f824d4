"""What goes into a package: a workload's source, its config, its initial weights and data.

The same files and tensors serve both arms: sealed for the protected one, in the clear for the raw.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from glasshouse.canonical import canonical_json
from glasshouse.errors import UsageError
from glasshouse.runtime.harness import CONFIG_FILE, DATA_PREFIX, SOURCE_FILE
from glasshouse.sealing.container import TensorSpec
from glasshouse.spec import CustomModel, LoraModel, MlpModel, ProjectModel, RunSpec, WithheldModel
from glasshouse.workloads import project
from glasshouse.workloads.custom import check_source, check_steps
from glasshouse.workloads.made import MadeWeights, Making
from glasshouse.workloads.sizes import SOURCES, lora_shapes, mlp_shapes, scratch_bytes, withheld
from glasshouse.workloads.weights import BaseWeights

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
    tree: Iterable[Tensor] = field(default=(), repr=False)  # a project's files
    project: project.Project | None = field(default=None, repr=False)
    scratch_bytes: int = 0  # of memory that a project's files take on the pod
    ranks: int = 1  # processes that a project's command starts, one a GPU where there are any
    notes: tuple[str, ...] = ()  # what a person is told of it before anything is rented

    @property
    def needs(self) -> bool:
        """Whether wheels may belong to it, which nobody can choose before the machine was asked."""
        return self.project is not None and bool(self.project.needs.requirements)

    def __iter__(self) -> Iterator[Tensor]:
        """Yield every tensor's spec and bytes, as often as it is asked."""
        yield from self.weights
        yield from self.base or ()
        yield from self.tree


def prepare(spec: RunSpec) -> Payload:
    """Assemble the payload of a run's model. Raises UsageError for what cannot be packed."""
    model = spec.model
    if isinstance(model, WithheldModel):
        raise withheld(model)
    if isinstance(model, ProjectModel):
        found = project.look(model, spec.gpu)
        files, tree = project.packed(found)
        return Payload(
            files,
            builder="",
            tree=tree,
            project=found,
            scratch_bytes=scratch_bytes(found),
            ranks=found.command.ranks,
            notes=tuple(found.lines),
        )
    if not isinstance(model, CustomModel) and model.batch % spec.gpu.count:
        raise UsageError(
            f"a batch of {model.batch} cannot be shared equally", field="gpu.count", value=spec.gpu.count,
            remedy=f"give a model.batch that {spec.gpu.count} divides",
        )  # fmt: skip
    if isinstance(model, MlpModel):
        return _mlp(model, spec.seed)
    if isinstance(model, LoraModel):
        return _lora(model, spec.seed)
    return _custom(spec, model)


def bring(payload: Payload, wheels: Sequence[Path], unpacked_bytes: int) -> Payload:
    """Return a project's payload with these wheels. unpacked_bytes: what is in them takes on the pod."""
    assert payload.project is not None
    files, tree = project.packed(payload.project, wheels)
    room = scratch_bytes(payload.project) + sum(path.stat().st_size for path in wheels) + unpacked_bytes
    return replace(payload, files=files, tree=tree, scratch_bytes=room)


def _built_in(
    source: str, config: Mapping[str, Any], weights: Making, base: BaseWeights | None = None
) -> Payload:
    files = {SOURCE_FILE: (SOURCES / source).read_bytes(), CONFIG_FILE: canonical_json(config)}
    return Payload(files, weights=MadeWeights(weights), base=base)


def _mlp(model: MlpModel, seed: int) -> Payload:
    def weights() -> Iterator[Tensor]:
        generator = np.random.Generator(np.random.PCG64(seed))
        for item in mlp_shapes(model):
            if item.name.endswith(".weight"):
                # He et al. 2015: standard deviation sqrt(2 / fan-in) keeps ReLU activations level.
                scale = np.float32(math.sqrt(2.0 / item.shape[1]))
                values = generator.standard_normal(item.shape, dtype=np.float32) * scale
            else:
                values = np.zeros(item.shape, dtype=np.float32)
            yield item, values.data.cast("B")

    return _built_in("mlp_pod.py", model.model_dump(exclude={"kind", "name"}), weights)


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


def _custom(spec: RunSpec, model: CustomModel) -> Payload:
    path, _, name = model.entry.rpartition(":")
    source = _read(Path(path), "model.entry")
    check_source(model, source)
    check_steps(spec, source)
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
