"""Rentals whose pods run OpenSSH: the pinned key, replacements, a container that exits, a frozen server."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from glasshouse.errors import ProviderError
from tests.sshd import SSHD

from .cloud_kit import KINDS, NAME, over_ssh, rented
from .openssh_pod import OpenSshContainer

pytestmark = [
    pytest.mark.sshd,
    pytest.mark.skipif(not Path(SSHD).exists() or os.geteuid() != 0, reason="needs sshd and root"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_the_key_of_the_create_call_is_what_openssh_shows(kind: str) -> None:
    with rented(kind) as it:
        it.server.cloud.container = OpenSshContainer
        it.faults("boot-exit")
        allocation = it.allocate()
        assert allocation.endpoint.host_key.source == "created"
        assert over_ssh(allocation, "echo here").strip() == "here"
        assert it.state()["created"] == 2  # the first one's container exited
        it.server.cloud.exit_pod(allocation.id)
        with pytest.raises(OSError, match="Connect"):
            over_ssh(allocation, "true")
        assert it.provider.release(NAME, allocation.id).proof == "zero"
        assert (it.state()["active"], it.state()["mostAtOnce"]) == (0, 1)


def test_a_key_out_of_the_log_and_a_log_that_lies() -> None:
    with rented("runpod") as it:
        it.server.cloud.container = OpenSshContainer
        it.faults("start-ignored")
        assert it.allocate().endpoint.host_key.source == "provider-log"
        assert it.provider.release(NAME, None).proof == "zero"
        it.faults("start-ignored", "log-lies", times=2)
        with pytest.raises(ProviderError) as caught:
            it.allocate()
        assert caught.value.code == "host-key-mismatch"
        assert it.provider.release(NAME, None).proof == "zero"


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_server_is_released_like_any_other(kind: str) -> None:
    with rented(kind) as it:
        it.server.cloud.container = OpenSshContainer
        allocation = it.allocate()
        (pod,) = it.server.cloud.living()
        assert pod.container is not None
        process: subprocess.Popen[bytes] = pod.container._server.process  # type: ignore[union-attr,attr-defined]
        process.send_signal(signal.SIGSTOP)
        assert it.provider.release(NAME, allocation.id).proof == "zero"
        assert it.state()["active"] == 0
