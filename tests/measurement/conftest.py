from __future__ import annotations

from typing import Any

import pytest

from glasshouse.spec import RunSpec


def make_spec(**changes: Any) -> RunSpec:
    """A small valid spec; `measure` is merged, everything else replaces."""
    measure = {
        "warmup_sec": 5.0, "discard_sec": 1.0, "blocks": 10, "margin_pct": 2.0,
        "duration_tolerance_pct": 5.0, "head_interval_sec": 1.0,
    } | changes.pop("measure", {})  # fmt: skip
    values: dict[str, Any] = {
        "provider": {"kind": "local"},
        "gpu": {"name": "cpu"},
        "model": {
            "kind": "mlp", "name": "mlp-small", "inputs": 64, "hidden": 128, "layers": 2, "classes": 10,
            "batch": 32, "batches_per_epoch": 20, "learning_rate": 0.001,
        },
        "policy": {
            "name": "standard", "freshness_sec": 60, "require_landlock": False, "require_memfd_secret": False,
            "allow_host_key_first_use": True, "anti_debug_profile": "standard",
        },
        "measure": measure,
        "order": "abba",
        "duration": 1800.0,
        "seed": 7,
    }  # fmt: skip
    return RunSpec.model_validate(values | changes)


@pytest.fixture
def spec() -> RunSpec:
    return make_spec()
