"""provider=ssh: a given host, here the embedded server and OpenSSH; release proves that we left it clean."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import pytest

from glasshouse import spec
from glasshouse.errors import RemoteError, UsageError
from glasshouse.providers.pod_server import USER, PodServer
from glasshouse.providers.ssh import SshProvider
from glasshouse.remote.pod import Pod, Timeouts
from tests.providers.test_local import alive, new_name, silent
from tests.remote.conftest import serving
from tests.specs import make_spec


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PodServer]:
    with serving(tmp_path) as running:
        (running.key_path.parent / "known_hosts").write_text(running.known_hosts_line() + "\n")
        yield running


def embedded(server: PodServer, **changes: object) -> spec.SshProvider:
    values: dict[str, object] = {
        "kind": "ssh",
        "host": "127.0.0.1",
        "port": server.port,
        "user": USER,
        "key": str(server.key_path),
        "known_hosts": str(server.key_path.parent / "known_hosts"),
        "python": sys.executable,
    }
    return spec.SshProvider.model_validate(values | changes)


@pytest.fixture(params=["embedded", pytest.param("openssh", marks=pytest.mark.sshd)])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> spec.SshProvider:
    if request.param == "embedded":
        return embedded(request.getfixturevalue("server"))
    sshd = request.getfixturevalue("sshd")
    return spec.SshProvider(
        kind="ssh",
        host=sshd.host,
        port=sshd.port,
        user=sshd.user,
        key=str(sshd.key),
        known_hosts=str(sshd.known_hosts),
        python=sys.executable,
        workdir=str(tmp_path / "work dir".replace(" ", "-")),
    )


def test_an_allocation_is_a_private_folder_and_release_proves_it_gone(config: spec.SshProvider) -> None:
    name = new_name()
    with SshProvider(config) as provider:
        allocation = provider.allocate(name, make_spec(), silent)
        assert allocation.endpoint.host_key.source == "pinned"
        folder = f"{allocation.endpoint.workdir}/{name}"
        with Pod(allocation.endpoint) as pod:
            assert pod.run(["stat", "-c", "%a", folder]).stdout == b"700\n"
            script = "trap '' TERM HUP; echo $$ > \"$1/pid\"; while :; do sleep 0.2; done"
            detach = 'setsid sh -c "$1" sh "$2" </dev/null >/dev/null 2>&1 &'
            pod.run(["sh", "-c", detach, "sh", script, folder])
            deadline = time.monotonic() + 5
            while not (text := pod.run(["cat", f"{folder}/pid"]).stdout):
                assert time.monotonic() < deadline
            assert alive(int(text))
            proof = provider.release(name, allocation.id)
            assert pod.run(["echo", "not ours to kill"]).exit == 0
            assert not pod.exists(folder)
    assert (proof.proof, proof.active, proof.processes_left, proof.folder_removed) == ("zero", 0, 0, True)
    assert not alive(int(text))


def test_another_process_releases_by_name_alone(config: spec.SshProvider) -> None:
    name = new_name()
    with SshProvider(config) as provider:
        allocation = provider.allocate(name, make_spec(), silent)
    with SshProvider(config) as other:
        assert other.release(name, None).proof == "zero"
    with Pod(allocation.endpoint) as pod:
        assert not pod.exists(f"{allocation.endpoint.workdir}/{name}")


def test_first_use_is_recorded_and_pinned_in_the_allocation(server: PodServer) -> None:
    name = new_name()
    with SshProvider(embedded(server, known_hosts=None)) as provider:
        allocation = provider.allocate(name, make_spec(), silent)
        assert allocation.endpoint.host_key.source == "first-use"
        assert allocation.endpoint.host_key.lines == (server.known_hosts_line(),)
        assert provider.release(name).proof == "zero"


def test_a_host_that_cannot_be_asked_proves_nothing(server: PodServer) -> None:
    name = new_name()
    with SshProvider(embedded(server), Timeouts(connect=1, banner=1, channel=1)) as provider:
        provider.allocate(name, make_spec(), silent)
        server.stop()
        proof = provider.release(name)
    assert (proof.proof, proof.active) == ("unknown", None)
    assert "cannot reach" in proof.detail


def test_a_host_that_is_not_linux_is_refused_before_anything_is_put_there(
    server: PodServer, tmp_path: Path
) -> None:
    python = tmp_path / "mac-python"
    python.write_text('#!/bin/sh\ncase "$*" in *sys.platform*) echo darwin 3 13;; *) exit 9;; esac\n')
    python.chmod(0o755)
    name = new_name()
    with SshProvider(embedded(server, python=str(python))) as provider:
        with pytest.raises(RemoteError, match="the host is not Linux") as caught:
            provider.allocate(name, make_spec(), silent)
        assert (caught.value.field, caught.value.value, caught.value.exit_code) == ("platform", "darwin", 3)
        assert not (server.home / name).exists()
        assert provider.release(name).proof == "zero"


def test_an_interpreter_that_vanished_proves_nothing(server: PodServer) -> None:
    with SshProvider(embedded(server, python="/nowhere/python3")) as provider:
        assert provider.release(new_name()).proof == "unknown"


@pytest.mark.parametrize(
    ("changes", "error", "field"),
    [
        ({"key": "/nowhere/key"}, UsageError, "provider.key"),
        ({"known_hosts": "/nowhere/known_hosts"}, UsageError, "provider.known_hosts"),
        ({"known_hosts": os.devnull}, UsageError, "provider.known_hosts"),
        ({"python": "/nowhere/python3"}, RemoteError, "provider.python"),
        ({"workdir": "/proc/nowhere"}, RemoteError, "exit"),
    ],
)
def test_what_is_wrong_is_named(
    server: PodServer, changes: dict[str, object], error: type, field: str
) -> None:
    with SshProvider(embedded(server, **changes)) as provider, pytest.raises(error) as caught:
        provider.allocate(new_name(), make_spec(), silent)
    assert (type(caught.value), caught.value.field) == (error, field)
    assert caught.value.exit_code == (2 if error is UsageError else 3)
    # What is wrong on this side is known before a plan is registered; the other side is not asked then.
    with SshProvider(embedded(server, **changes)) as provider:
        if error is UsageError:
            with pytest.raises(UsageError) as early:
                provider.check(make_spec())
            assert early.value.field == field
        else:
            provider.check(make_spec())


def test_a_changed_host_key_stops_the_allocation(server: PodServer, tmp_path: Path) -> None:
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode().strip()
    path = tmp_path / "known_hosts"
    path.write_text(f"[127.0.0.1]:{server.port} {other}\n")
    with (
        SshProvider(embedded(server, known_hosts=str(path))) as provider,
        pytest.raises(RemoteError, match="wrong host key"),
    ):
        provider.allocate(new_name(), make_spec(), silent)
    assert list(server.home.iterdir()) == []
