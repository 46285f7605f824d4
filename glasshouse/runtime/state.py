"""What training goes on from, of the built-in models: weights, optimizer, step, random state; no pickle.

A session's `state()` and `restore()` (session.py) are these, with the torch that only workloads import. The
tensors are those in use, not copies: whoever keeps them copies them. Which data come next follows from the
steps alone. Names: `weights.NAME`; `optimizer.NAME.step`, `.exp_avg` and `.exp_avg_sq`, none before the first
step, as in torch; `random.cpu`, and on a GPU `random.cuda`. Values: `steps`, optimizer steps made, and the
latest `loss`, None before the first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

MAX_STEPS = 10**12
WEIGHTS, OPTIMIZER, RANDOM = "weights.", "optimizer.", "random."
_MOMENTS = ("exp_avg", "exp_avg_sq")  # torch.optim.AdamW; beside them `step`, a number on the host


def taken(
    torch: Any, weights: Mapping[str, Any], optimizer: Any, device: Any, *, steps: int, loss: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (tensors, values). `weights` maps names to parameters of `optimizer`, an AdamW."""
    tensors = {f"{WEIGHTS}{name}": weight.detach() for name, weight in weights.items()}
    for name, weight in weights.items():
        for part, value in sorted(optimizer.state.get(weight, {}).items()):
            tensors[f"{OPTIMIZER}{name}.{part}"] = value
    tensors[f"{RANDOM}cpu"] = torch.get_rng_state()
    if device.type == "cuda":
        tensors[f"{RANDOM}cuda"] = torch.cuda.get_rng_state(device)
    return tensors, {"steps": steps, "loss": loss if math.isfinite(loss) else None}


def put_back(
    torch: Any,
    weights: Mapping[str, Any],
    optimizer: Any,
    device: Any,
    *,
    tensors: Mapping[str, Any],
    values: Mapping[str, Any],
) -> tuple[int, float | None]:
    """Make weights, optimizer and random state what `taken` returned; return steps and loss of then.

    What the optimizer had and is to have no longer is overwritten. Gradients go. Raises ValueError for
    another form, before anything is changed; one random state more or less is none: a GPU's is of no use to
    a processor.
    """
    steps, loss = _values(values)
    moments = {
        f"{OPTIMIZER}{name}.{part}": weights[name] for name in weights for part in _MOMENTS if steps > 0
    }
    counts = [f"{OPTIMIZER}{name}.step" for name in weights if steps > 0]
    alike = {**{f"{WEIGHTS}{name}": weight for name, weight in weights.items()}, **moments}
    random = {f"{RANDOM}cpu", f"{RANDOM}cuda"}
    _names(set(tensors), {*alike, *counts, f"{RANDOM}cpu"}, random)
    for name, like in alike.items():
        _form(name, tensors[name], tuple(like.shape), like.dtype)
    for name in counts:
        _form(name, tensors[name], (), torch.get_default_dtype())
        if float(tensors[name]) != steps:
            raise ValueError(f"{name} counts other steps than the state")
    # A state of another form of generator is refused by torch itself, which names no field.
    _form(f"{RANDOM}cpu", tensors[f"{RANDOM}cpu"], tuple(torch.get_rng_state().shape), torch.uint8)
    on_gpu = device.type == "cuda" and f"{RANDOM}cuda" in tensors
    if on_gpu:
        now = torch.cuda.get_rng_state(device)
        _form(f"{RANDOM}cuda", tensors[f"{RANDOM}cuda"], tuple(now.shape), torch.uint8)

    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(tensors[f"{WEIGHTS}{name}"])
            if weight.grad is not None:
                weight.grad.zero_()
                weight.grad = None
            _optimizer(torch, optimizer, name, weight, tensors if steps > 0 else {})
    torch.set_rng_state(tensors[f"{RANDOM}cpu"].cpu())
    if on_gpu:
        torch.cuda.set_rng_state(tensors[f"{RANDOM}cuda"].cpu(), device)
    return steps, loss


def _optimizer(torch: Any, optimizer: Any, name: str, weight: Any, tensors: Mapping[str, Any]) -> None:
    held = optimizer.state.get(weight, {})
    if not tensors:
        for value in held.values():
            value.zero_()
        optimizer.state.pop(weight, None)
        return
    if not held:
        held = {part: torch.zeros_like(weight, memory_format=torch.preserve_format) for part in _MOMENTS}
        optimizer.state[weight] = {"step": torch.tensor(0.0), **held}
    for part, value in optimizer.state[weight].items():
        value.copy_(tensors[f"{OPTIMIZER}{name}.{part}"])


def _values(values: Mapping[str, Any]) -> tuple[int, float | None]:
    if set(values) != {"steps", "loss"}:
        raise ValueError("the state's values are not steps and loss")
    steps, loss = values["steps"], values["loss"]
    if type(steps) is not int or not 0 <= steps <= MAX_STEPS:
        raise ValueError("steps is no number of steps")
    if loss is not None and (type(loss) not in (int, float) or not math.isfinite(loss)):
        raise ValueError("loss is no number")
    return steps, loss


def _names(found: set[str], needed: set[str], random: set[str]) -> None:
    if missing := needed - found:
        raise ValueError(f"the state lacks {min(missing)}, and in all {len(missing)} of {len(needed)}")
    if unknown := found - needed - random:
        raise ValueError(f"the state has {len(unknown)} tensors that this model does not have")


def _form(name: str, tensor: Any, shape: tuple[int, ...], dtype: Any) -> None:
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        raise ValueError(
            f"{name} is {tensor.dtype} {list(tensor.shape)}, and this model has {dtype} {list(shape)}"
        )
