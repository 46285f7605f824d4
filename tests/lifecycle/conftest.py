"""A pod for the controller's steps: the embedded SSH server, in a home of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from glasshouse.remote.endpoint import Endpoint
from glasshouse.remote.pod import Pod
from tests.remote.conftest import embedded_endpoint, serving


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[Endpoint]:
    with serving(tmp_path) as server:
        yield embedded_endpoint(server)


@pytest.fixture
def pod(endpoint: Endpoint) -> Iterator[Pod]:
    with Pod(endpoint) as opened:
        yield opened
