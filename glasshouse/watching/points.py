"""What was measured at one moment of a training, whoever wrote it down; and one name for what has many."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

MAX_VALUES = 64
MAX_NAME = 80
_MOST = 1e100
_SUMMARY = {"train_runtime", "total_flos"}
LOSS, EVAL_LOSS, RATE, TOKENS_SEC = "loss", "eval_loss", "learning_rate", "tokens_per_sec"
TOKENS, STEP, EPOCH, TOTAL = "tokens", "step", "epoch", "total_steps"

_EVAL = re.compile(
    r"(?:eval|evaluation|val|valid|validation|test|dev)_(.+)|(.+)_(?:eval|val|valid|validation)\Z"
)
_TRAIN = re.compile(r"(?:train|training)_(.+)|(.+)_(?:train|training)\Z")
_ALIASES = {
    "lr": RATE,
    "learningrate": RATE,
    "tokens_per_second": TOKENS_SEC,
    "tokens_sec": TOKENS_SEC,
    "tokens_s": TOKENS_SEC,
    "tok_s": TOKENS_SEC,
    "tok_sec": TOKENS_SEC,
    "tokens_per_sec": TOKENS_SEC,
    "num_input_tokens_seen": TOKENS,
    "num_tokens": TOKENS,
    "tokens_seen": TOKENS,
    "total_tokens": TOKENS,
    "global_step": STEP,
    "_step": STEP,
    "iter": STEP,
    "iteration": STEP,
    "iterations": STEP,
    "max_steps": TOTAL,
    "num_steps": TOTAL,
    "gradient_norm": "grad_norm",
    "gradnorm": "grad_norm",
}


@dataclass(frozen=True)
class Point:
    """Finite numbers by the names of `named`; step None where none was said; time in Unix seconds."""

    values: Mapping[str, float]
    step: int | None = None
    time: float | None = None


def named(tag: str) -> str:
    """One name for a quantity: `train/loss`, `Loss/train` and `loss` are the same; so are `lr` and others."""
    name = re.sub(r"[^a-z0-9]+", "_", tag[:MAX_NAME].lower()).strip("_")
    if name in _ALIASES:
        return _ALIASES[name]
    if (found := _EVAL.match(name)) is not None:
        return f"eval_{found[1] or found[2]}"
    if (found := _TRAIN.match(name)) is not None:
        name = found[1] or found[2]
    return _ALIASES.get(name, name)


def point(values: Iterable[tuple[str, object]], time: float | None = None) -> Point | None:
    """The numbers among `values` as a point; None where there are none. A step stands among them.

    None also of a Trainer's summary at its end, whose `train_loss` is the mean over the whole training.
    """
    kept: dict[str, float] = {}
    said = list(values)
    if not _SUMMARY.isdisjoint(tags := {tag for tag, _ in said}) and "train_loss" in tags:
        return None
    for tag, value in said:
        number = number_of(value)
        name = named(tag)
        if number is not None and name and name not in kept:
            kept[name] = number
        if len(kept) == MAX_VALUES:
            break
    step = kept.pop(STEP, None)
    whole = None if step is None or not 0 <= step < 2**53 else int(step)
    return Point(kept, whole, time) if kept else None


def number_of(value: object) -> float | None:
    """A finite number, also where it stands in a string; None for anything else, or one that nobody draws."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and len(value) > 40:
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    if not math.isfinite(number) or abs(number) > _MOST:
        return None
    return number if abs(number) > 1 / _MOST else 0.0
