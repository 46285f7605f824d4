from __future__ import annotations

from typing import Any

import pytest

from glasshouse.spec import RunSpec
from tests.specs import make_spec


def abba_spec(**changes: Any) -> RunSpec:
    """Ten blocks and a burn-in slot, half an hour an arm; `measure` is merged."""
    measure = {"blocks": 10, "burn_in_slots": 1} | changes.pop("measure", {})
    return make_spec(**{"order": "abba", "duration": 1800.0} | changes, measure=measure)


@pytest.fixture
def spec() -> RunSpec:
    return abba_spec()
