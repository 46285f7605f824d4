"""Composing conf/, each choice once a process: it is most of what these tests cost."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from glasshouse import config
from glasshouse.paths import Workspace
from glasshouse.spec import RunSpec

CONF = Workspace.find().conf
SSH = ["provider=ssh", "provider.host=box", "provider.user=me"]


@functools.cache
def resolved(*overrides: str) -> dict[str, Any]:
    return config.resolved(overrides)


@functools.cache
def expand(*overrides: str) -> list[list[str]]:
    return config.expand(overrides)


def compose(overrides: Sequence[str]) -> RunSpec:
    """Resolve and validate, without asking that the files a spec names exist."""
    return config.validate(resolved(*overrides))
