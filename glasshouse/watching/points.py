"""What was measured at one moment of a training, whoever wrote it down; and one name for what has many."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

MAX_VALUES = 64
MAX_NAME = 80
MAX_STEP = 2**53
WORK = 50_000  # of one record: some ten milliseconds
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


class Work:
    """What may still be done about one record, whatever a job put into it: lines, fields, values, and places
    that are looked at.
    """

    def __init__(self, left: int = WORK) -> None:
        self.left = left

    def spend(self, count: int = 1) -> bool:
        """Whether there is room for so much more of it; where there is not, none is left."""
        self.left = self.left - count if self.left >= count else 0
        return self.left > 0


@functools.lru_cache(4096)
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
    whole = None if number_of(step, 0, MAX_STEP) is None else int(step or 0)
    return Point(kept, whole, moment(time)) if kept else None


def number_of(value: object, low: float = -_MOST, high: float = _MOST) -> float | None:
    """A finite number from `low` to `high`, also where it stands in a string; None for anything else.

    Whatever number comes from a job, its machine or its files goes through here before it is used.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and len(value) > 40:
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    if not math.isfinite(number) or not low <= number <= high:
        return None
    return number if abs(number) > 1 / _MOST else 0.0


def moment(value: object) -> float | None:
    """A time in Unix seconds; None for what can be none."""
    return number_of(value, 1e9, 1e11)


def total_of(value: object) -> float | None:
    """How many steps are to be made; None for none, fewer, or more than anybody makes."""
    return number_of(value, 1, MAX_STEP)
