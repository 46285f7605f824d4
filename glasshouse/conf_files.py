"""Which groups a conf/ offers, found without loading Hydra."""

from __future__ import annotations

from pathlib import Path

GROUPS = ("provider", "gpu", "model", "policy", "measure", "experiment")


def options(group: str, conf: Path) -> list[str]:
    """Return the names that `group=` accepts, sorted."""
    return sorted(path.stem for path in (conf / group).glob("*.yaml"))
