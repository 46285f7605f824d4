"""How a job stands, in lines of text and as JSON."""

from __future__ import annotations

from typing import Any

from glasshouse.watching.curves import Now
from glasshouse.watching.draw import number
from glasshouse.watching.points import EPOCH, EVAL_LOSS, LOSS, RATE
from glasshouse.watching.record import Gpu

_SHOWN = {
    LOSS: "loss",
    EVAL_LOSS: "eval loss",
    RATE: "learning rate",
    "grad_norm": "grad norm",
    EPOCH: "epoch",
}


def length(seconds: float) -> str:
    """A length of time, roughly."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"


def now_lines(now: Now, ceiling_sec: float | None = None, *, over: bool = False) -> list[str]:
    """How it stands, or stood when it was over, in a few lines.

    ceiling_sec: when it is asked to end, where that was said.
    """
    said = []
    if now.done is not None:
        what = "its progress bar:" if now.by_bar else "step"
        of = ""
        if now.total:
            of = f" of {number(now.total)} ({100 * min(1.0, now.done / now.total):.0f} %)"
        said.append(f"{what} {number(now.done)}{of}")
    if now.per_sec:
        rate = (
            f"{number(now.per_sec)} a second" if now.per_sec >= 1 else f"{number(1 / now.per_sec)} s a step"
        )
        said.append(rate)
    if now.tokens_sec is not None:
        said.append(f"{number(round(now.tokens_sec))} tokens a second")
    if now.left_sec is not None and not over:
        said.append(f"about {length(now.left_sec)} left")
    if ceiling_sec is not None and not over:
        left = max(0.0, ceiling_sec - now.elapsed_sec)
        said.append(f"asked to end in {length(left)} at the latest (model.max_hours)")
    if now.next_checkpoint_sec is not None and not over:
        said.append(f"next checkpoint in {length(max(0.0, now.next_checkpoint_sec))}")
    lines = [", ".join(said)] if said else []
    values = [f"{name} {number(now.values[key])}" for key, name in _SHOWN.items() if key in now.values]
    lines += ["   ".join(values)] if values else ["no loss was seen yet"]
    return [*lines, *(_gpu_line(place, gpu) for place, gpu in enumerate(now.gpus))]


def _gpu_line(place: int, gpu: Gpu) -> str:
    said = [
        None if gpu.util_pct is None else f"{number(gpu.util_pct)} %",
        None if gpu.mem_mib is None or gpu.mem_total_mib is None
        else f"{gpu.mem_mib / 1024:.1f} of {gpu.mem_total_mib / 1024:.0f} GiB",
        None if gpu.power_w is None else f"{gpu.power_w:.0f} W",
        None if gpu.temp_c is None else f"{gpu.temp_c:.0f} °C",
    ]  # fmt: skip
    return f"GPU {place}: " + (", ".join(one for one in said if one is not None) or "its driver says nothing")


def as_json(now: Now) -> dict[str, Any]:
    """The same as JSON; null is not known. Seconds; `at` in Unix seconds by the machine's clock."""
    return {
        "number": now.number,
        "at": now.at,
        "elapsedSec": now.elapsed_sec,
        "done": now.done,
        "total": now.total,
        "byProgressBar": now.by_bar,
        "perSec": now.per_sec,
        "leftSec": now.left_sec,
        "tokensPerSec": now.tokens_sec,
        "nextCheckpointSec": now.next_checkpoint_sec,
        "loss": now.values.get(LOSS),
        "learningRate": now.values.get(RATE),
        "values": dict(now.values),
        "gpus": [
            {
                "utilPct": gpu.util_pct,
                "memMib": gpu.mem_mib,
                "memTotalMib": gpu.mem_total_mib,
                "powerW": gpu.power_w,
                "tempC": gpu.temp_c,
            }
            for gpu in now.gpus
        ],
    }
