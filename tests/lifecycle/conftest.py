"""A pod for the controller's steps: the embedded SSH server, in a home of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from glasshouse.providers.pod_server import PodServer
from glasshouse.remote.endpoint import Endpoint
from tests.remote.conftest import embedded_endpoint


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[Endpoint]:
    home, keys = tmp_path / "pod-home", tmp_path / "pod-keys"
    home.mkdir()
    keys.mkdir()
    server = PodServer(home, keys)
    server.start(10.0)
    yield embedded_endpoint(server)
    server.stop()
