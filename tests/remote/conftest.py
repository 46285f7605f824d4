"""Every test of Pod runs against both kinds of server: the embedded one and OpenSSH."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from glasshouse.providers.pod_server import USER, PodServer
from glasshouse.remote.endpoint import Endpoint, HostKey
from glasshouse.remote.pod import Pod


def embedded_endpoint(server: PodServer) -> Endpoint:
    return Endpoint(
        host="127.0.0.1",
        port=server.port,
        user=USER,
        key_path=server.key_path,
        host_key=HostKey("created", (server.known_hosts_line(),)),
        python=sys.executable,
        workdir=str(server.home),
    )


@contextmanager
def serving(place: Path) -> Iterator[PodServer]:
    """The embedded server, with its home and its keys in folders of `place`."""
    home, keys = place / "pod-home", place / "pod-keys"
    home.mkdir()
    keys.mkdir()
    server = PodServer(home, keys)
    server.start(10.0)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def pod_server(tmp_path: Path) -> Iterator[PodServer]:
    with serving(tmp_path) as server:
        yield server


@pytest.fixture(params=["embedded", pytest.param("openssh", marks=pytest.mark.sshd)])
def endpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Endpoint:
    if request.param == "embedded":
        return embedded_endpoint(request.getfixturevalue("pod_server"))
    sshd = request.getfixturevalue("sshd")
    return Endpoint(
        host=sshd.host,
        port=sshd.port,
        user=sshd.user,
        key_path=sshd.key,
        host_key=HostKey("pinned", tuple(sshd.known_hosts.read_text().splitlines())),
        python=sys.executable,
        workdir=str(tmp_path),
    )


@pytest.fixture
def pod(endpoint: Endpoint) -> Iterator[Pod]:
    with Pod(endpoint) as opened:
        yield opened
