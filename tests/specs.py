"""The one valid RunSpec that tests begin with."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from glasshouse.canonical import canonical_json
from glasshouse.spec import RunSpec


def make_spec(**changes: Any) -> RunSpec:
    """A small valid spec: a pair of a minute on this machine.

    Keyword arguments replace its top-level fields, given as models or as what JSON holds; `measure` and
    `policy`, where given as a dict, are merged instead.
    """
    values: dict[str, Any] = {
        "provider": {"kind": "local"},
        "gpu": {"name": "cpu"},
        "model": {
            "kind": "mlp", "name": "mlp", "inputs": 64, "hidden": 128, "layers": 2, "classes": 10,
            "batch": 32, "batches_per_epoch": 20, "learning_rate": 0.001,
        },
        "policy": {
            "name": "standard", "freshness_sec": 60, "require_landlock": False, "require_memfd_secret": False,
            "allow_host_key_first_use": True, "anti_debug_profile": "standard",
        },
        "measure": {
            "warmup_sec": 5.0, "discard_sec": 1.0, "blocks": 8, "burn_in_slots": 0, "margin_pct": 2.0,
            "duration_tolerance_pct": 5.0, "head_interval_sec": 1.0,
        },
        "order": "raw-first",
        "duration": 60.0,
        "seed": 7,
    }  # fmt: skip
    for name, value in changes.items():
        if isinstance(value, BaseModel):
            values[name] = value.model_dump(mode="json")
        else:
            values[name] = values[name] | value if name in ("measure", "policy") else value
    # Through JSON, as configuration comes: strict models take lists for tuples only there.
    return RunSpec.model_validate_json(canonical_json(values))
