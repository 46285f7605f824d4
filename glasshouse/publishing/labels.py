"""Names and number formats used on pages and charts. Pure; no markup."""

from __future__ import annotations

import time
from collections.abc import Iterable

from glasshouse.publishing.artifact import Artifact

MINUS = "\N{MINUS SIGN}"
NBSP = "\N{NO-BREAK SPACE}"
DASH = "\N{EN DASH}"

GPUS = {
    "h100": "H100",
    "h200": "H200",
    "pro6000": "RTX PRO 6000",
    "a4000": "RTX A4000",
    "rtx4090": "RTX 4090",
    "rtx3090": "RTX 3090",
    "cpu": "CPU",
}
PROVIDERS = {
    "runpod": "RunPod",
    "vastai": "Vast.ai",
    "local": "the publisher's machine",
    "ssh": "SSH host",
}
ORDERS = {
    "raw-first": "raw first",
    "protected-first": "protected first",
    "abba": "ABBA blocks",
    "protected-only": "protected only",
}
CONTROLS = {"aa": "A/A control", "delay": "delay control"}
MODELS = {
    "mlp": "MLP",
    "Qwen/Qwen2.5-0.5B-Instruct": "Qwen2.5 0.5B",
    "Qwen/Qwen2.5-7B-Instruct": "Qwen2.5 7B",
}


def percent(value: float | None, digits: int = 2) -> str:
    """Signed percent with a real minus sign; an en dash when there is none."""
    if value is None:
        return DASH
    text = f"{abs(value):.{digits}f}%"
    if float(f"{value:.{digits}f}") == 0:
        return text
    return (MINUS if value < 0 else "+") + text


def tick(value: float, digits: int) -> str:
    """A number at an axis, with thousands separators and a real minus sign; zero has no sign."""
    text = f"{abs(value):,.{digits}f}"
    return MINUS + text if float(f"{value:.{digits}f}") < 0 else text


def interval(low: float | None, high: float | None) -> str:
    """ "-0.40% to +1.20%", or an en dash."""
    if low is None or high is None:
        return DASH
    return f"{percent(low)} to {percent(high)}"


def seconds(value: float | None) -> str:
    """A length of time in the unit a person would use."""
    if value is None:
        return DASH
    if value >= 60 and value % 60 == 0:
        return f"{value / 60:g}{NBSP}min"
    return f"{value:,.3g}{NBSP}s" if value < 1000 else f"{value:,.0f}{NBSP}s"


def number(value: float | int | None) -> str:
    """A count or rate with thousands separators; integers stay whole, small losses scientific."""
    if value is None:
        return DASH
    if isinstance(value, int):
        return f"{value:,}"
    if value and abs(value) < 1e-3:
        return f"{value:.4g}".replace("-", MINUS)
    return f"{value:,.3f}".rstrip("0").rstrip(".")


def gpu(row: Artifact) -> str:
    """Short GPU name."""
    if row.gpu is None:
        return row.gpu_model or "not stated"
    if no_gpu(row):
        return "CPU"
    if row.gpu == "auto":  # whatever the machine had; a machine without a GPU names none
        return row.gpu_model or "not stated"
    return GPUS.get(row.gpu, row.gpu)


def no_gpu(row: Artifact) -> bool:
    """Whether a signed run took what the machine had, and the machine named no GPU."""
    return row.evidence_tier == "signed" and row.gpu in ("auto", "cpu") and row.gpu_model is None


def model(row: Artifact) -> str:
    """Short model name."""
    return MODELS.get(row.model, row.model)


def name(row: Artifact) -> str:
    """Short name of what was run: the model, and of a control which one it is."""
    return f"{model(row)}, {CONTROLS[row.control]}" if row.control != "none" else model(row)


def provider(row: Artifact) -> str:
    """Provider name for readers."""
    return "not stated" if row.provider is None else PROVIDERS.get(row.provider, row.provider)


def order(row: Artifact) -> str:
    """Order of the legs for readers."""
    return "unclear" if row.order is None else ORDERS[row.order]


def length(row: Artifact) -> str:
    """How long an arm ran: seconds, or steps for fixed-step rows."""
    if row.duration_sec is not None:
        return seconds(row.duration_sec)
    steps = row.target_steps or row.steps
    if steps is None:
        return DASH
    return f"{steps:,}{NBSP}step{'' if steps == 1 else 's'}"


def measured_seconds(row: Artifact) -> float | None:
    """Measured seconds of an arm, whichever field holds them; for sorting and axes."""
    return row.duration_sec or row.raw_elapsed_sec or row.raw_train_elapsed_sec


def title(row: Artifact) -> str:
    """The heading of a row page."""
    return f"{name(row)} on {gpu(row)}, {length(row)}, {order(row)}"


def titles(rows: Iterable[Artifact]) -> dict[str, str]:
    """The heading of each row's page by its id: where two would read alike, what differs is added."""
    alike: dict[str, list[Artifact]] = {}
    for row in rows:
        alike.setdefault(title(row), []).append(row)
    found: dict[str, str] = {}
    for text, group in alike.items():
        heads = {row.id: text for row in group}
        for facet in (_fate, _blocks, _threads, lambda row: row.date, lambda row: row.id):
            if len(set(heads.values())) == len(heads):
                break
            said = {row.id: facet(row) for row in group}
            if len(set(said.values())) > 1:
                heads = {key: f"{head}, {said[key]}" if said[key] else head for key, head in heads.items()}
        found |= heads
    return found


def _fate(row: Artifact) -> str:
    return "excluded" if row.exclusion else ""


def _blocks(row: Artifact) -> str:
    blocks = (row.settings or {}).get("blocks")
    return f"{blocks} blocks" if row.order == "abba" and blocks else ""


def _threads(row: Artifact) -> str:
    threads = (row.settings or {}).get("threads")
    return f"{threads} thread{'' if threads == 1 else 's'}" if threads else "all threads"


def rate(row: Artifact, arm: str) -> float | None:
    """Work units per second of one arm ("protected" or "raw"), published or derived."""
    for name in ("epochs_per_sec", "steps_per_sec", "units_per_sec"):
        value: float | None = getattr(row, f"{arm}_{name}")
        if value is not None:
            return value
    elapsed: float | None = getattr(row, f"{arm}_elapsed_sec")
    count: float | None = getattr(row, f"{arm}_steps") or getattr(row, f"{arm}_epochs")
    return count / elapsed if count and elapsed else None


def why_no_interval(row: Artifact) -> str:
    """One sentence for a row without an interval."""
    if row.overhead_pct is None:
        return "There is no overhead here, so there is no interval."
    if row.overhead is not None and row.overhead.method == "single-pair":
        return (
            "One pair of legs is one difference. It has no spread of its own, so no interval can be given: "
            "anything that changed between the two legs, their order included, is in the figure."
        )
    return "The method of this row gives no interval."


def moment(seconds: float) -> str:
    """A time of the ledger for readers: UTC, to the second."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))
