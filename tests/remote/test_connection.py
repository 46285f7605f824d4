"""Who is on the other end, and what happens when they go away."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import pytest

from glasshouse.errors import HostKeyMismatch, OutcomeUnknown, RemoteError, UsageError
from glasshouse.providers.pod_server import PodServer
from glasshouse.remote.connection import pinned_lines
from glasshouse.remote.endpoint import Endpoint, HostKey
from glasshouse.remote.pod import Pod, Timeouts
from tests.remote.conftest import embedded_endpoint

QUICK = Timeouts(connect=2, banner=1, auth=2, channel=2, ping_every=0.2, dead_after=1.0)


def wait_for(condition: object, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


@pytest.mark.sshd  # for its ssh-keygen
def test_the_fingerprint_is_the_one_ssh_keygen_prints(endpoint: Endpoint, pod: Pod, tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    lines.write_text("\n".join(endpoint.host_key.lines or ()) + "\n")
    printed = subprocess.run(["ssh-keygen", "-lf", lines], capture_output=True, text=True, check=True).stdout
    assert printed.split()[1] == pod.host_key_fingerprint
    assert pod.host_key == endpoint.host_key


def test_a_wrong_host_key_is_refused_naming_both(endpoint: Endpoint) -> None:
    other = asyncssh.generate_private_key("ssh-ed25519")
    line = f"{endpoint.known_hosts_name} {other.export_public_key().decode().strip()}"
    with Pod(endpoint) as pod:
        found = pod.host_key_fingerprint
    with (
        pytest.raises(RemoteError) as caught,
        Pod(dataclasses.replace(endpoint, host_key=HostKey("pinned", (line,)))),
    ):
        pass
    assert other.get_fingerprint() in caught.value.line()
    assert found in caught.value.line()
    assert caught.value.exit_code == 3


def test_a_host_without_a_pinned_key_is_refused(endpoint: Endpoint) -> None:
    with (
        pytest.raises(HostKeyMismatch, match="no known host key"),
        Pod(dataclasses.replace(endpoint, host_key=HostKey("pinned", ()))),
    ):
        pass


def test_first_use_records_and_pins_the_key(endpoint: Endpoint) -> None:
    with Pod(dataclasses.replace(endpoint, host_key=HostKey("first-use", None))) as pod:
        assert pod.host_key.source == "first-use"
        assert pod.host_key_fingerprint.startswith("SHA256:")
        assert pod.host_key.lines == endpoint.host_key.lines
        pod.reconnect()
        assert pod.run(["true"]).exit == 0


def test_a_key_pinned_at_first_use_holds_when_another_server_takes_the_port(
    pod_server: PodServer, tmp_path: Path
) -> None:
    endpoint = dataclasses.replace(embedded_endpoint(pod_server), host_key=HostKey("first-use", None))
    with Pod(endpoint, timeouts=QUICK) as pod:
        pod_server.stop()
        (tmp_path / "keys2").mkdir()
        impostor = PodServer(pod_server.home, tmp_path / "keys2")
        impostor.start(10, port=endpoint.port)
        try:
            began = time.monotonic()
            with pytest.raises(HostKeyMismatch, match="wrong host key"):
                pod.reconnect()
            assert time.monotonic() - began < 2  # not tried again
        finally:
            impostor.stop()


def test_an_unreachable_host_is_one_line(pod_server: PodServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    endpoint = dataclasses.replace(embedded_endpoint(pod_server), port=port)
    with (
        pytest.raises(RemoteError, match=rf"cannot reach the host .*\(host=127.0.0.1:{port}\)") as caught,
        Pod(endpoint),
    ):
        pass
    assert caught.value.exit_code == 3
    assert "\n" not in caught.value.line()


@pytest.mark.parametrize("known", [True, False])
def test_a_server_that_says_nothing_does_not_hold_us(pod_server: PodServer, known: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        endpoint = dataclasses.replace(embedded_endpoint(pod_server), port=mute.getsockname()[1])
        if not known:
            endpoint = dataclasses.replace(endpoint, host_key=HostKey("first-use", None))
        began = time.monotonic()
        with pytest.raises(RemoteError, match="not as an SSH server"), Pod(endpoint, timeouts=QUICK):
            pass
        assert time.monotonic() - began < 4


def test_a_login_with_another_key_is_refused(endpoint: Endpoint, tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_bytes(asyncssh.generate_private_key("ssh-ed25519").export_private_key())
    with (
        pytest.raises(RemoteError, match="refused our key"),
        Pod(dataclasses.replace(endpoint, key_path=path)),
    ):
        pass


@pytest.mark.parametrize("kind", ["missing", "encrypted", "garbage", "folder"])
def test_a_key_file_of_no_use_is_a_usage_error(pod_server: PodServer, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "key"
    if kind == "encrypted":
        path.write_bytes(
            asyncssh.generate_private_key("ssh-ed25519").export_private_key(
                passphrase="secret", rounds=1, ignore_few_rounds=True
            )
        )
    elif kind == "garbage":
        path.write_text("hunter2")
    elif kind == "folder":
        path.mkdir()
    endpoint = dataclasses.replace(embedded_endpoint(pod_server), key_path=path)
    with pytest.raises(UsageError, match=r"provider\.key") as caught, Pod(endpoint):
        pass
    assert "hunter2" not in caught.value.line()


def test_the_operators_ssh_config_and_agent_play_no_part(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "config").write_text(
        f"Host *\n  ProxyCommand touch {tmp_path}/proxied\n  User nobody\n"
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "no-agent"))
    with Pod(endpoint) as pod:
        assert pod.run(["true"]).exit == 0
    assert not (tmp_path / "proxied").exists()


@pytest.mark.sshd  # for its ssh-keygen
def test_pinned_lines_finds_plain_and_hashed_names(tmp_path: Path) -> None:
    public = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode().strip()
    path = tmp_path / "known_hosts"
    path.write_text(f"# note\n\nother {public}\n[pod.example]:2222,alias {public}\nhost {public}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", path], check=True, capture_output=True)
    assert "pod.example" not in path.read_text()
    with path.open("a") as file:
        file.write("nonsense\nhost ssh-ed25519 nonsense\n")
    (line,) = pinned_lines(path, "[pod.example]:2222")
    assert line.startswith("|1|")
    with pytest.raises(UsageError, match=r"no key for pod\.example"):
        pinned_lines(path, "pod.example")
    with pytest.raises(UsageError, match=r"provider\.known_hosts"):
        pinned_lines(tmp_path / "missing", "host")


def test_a_detached_command_outlives_a_dropped_connection(pod: Pod) -> None:
    folder = f"{pod.endpoint.workdir}/leg"
    pod.check(["mkdir", "-p", folder], "making a folder")
    script = "sleep 1; echo finished > result.tmp; mv result.tmp result"
    detach = f"cd {folder!r} && setsid sh -c {script!r} </dev/null >log 2>&1 &"
    assert pod.run(["sh", "-c", detach]).exit == 0
    pod.drop_transport()
    with pytest.raises(OutcomeUnknown):
        pod.run(["true"])
    assert not pod.connected
    pod.reconnect()
    wait_for(lambda: pod.exists(f"{folder}/result"))
    assert pod.fetch(f"{folder}/result") == b"finished\n"


def test_a_command_that_was_running_goes_on_when_the_connection_drops(pod: Pod) -> None:
    path = f"{pod.endpoint.workdir}/late"
    cut = threading.Timer(0.5, pod.drop_transport)
    cut.start()
    began = time.monotonic()
    with pytest.raises(OutcomeUnknown, match="died while a command ran"):
        pod.run(["sh", "-c", 'sleep 1.5; echo done > "$1"', "sh", path])
    assert time.monotonic() - began < 1.4
    cut.join()
    pod.reconnect()
    wait_for(lambda: pod.exists(path))


def test_reconnect_gives_up_after_its_delays(pod_server: PodServer) -> None:
    with Pod(embedded_endpoint(pod_server), timeouts=QUICK) as pod:
        pod_server.stop()
        with pytest.raises(RemoteError, match="cannot reach"):
            pod.reconnect(delays=(0.0, 0.1, 0.1))
        with pytest.raises(OutcomeUnknown, match="not connected"):
            pod.run(["true"])


CONTROLLER = """
import sys, time
from pathlib import Path
from glasshouse.providers.pod_server import PodServer
home, keys = Path(sys.argv[1]), Path(sys.argv[2])
server = PodServer(home, keys)
server.start(10)
print(server.known_hosts_line(), flush=True)
time.sleep(60)
"""


@pytest.fixture
def freezable(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Endpoint, object]]:
    """An endpoint, and a function that returns the pids to stop so that its server freezes."""
    if request.param == "openssh":
        sshd = request.getfixturevalue("sshd")
        lines = tuple(sshd.known_hosts.read_text().splitlines())
        yield (
            Endpoint(
                sshd.host,
                sshd.port,
                sshd.user,
                sshd.key,
                HostKey("pinned", lines),
                sys.executable,
                str(tmp_path),
            ),
            sshd.sessions,
        )
        return
    home, keys = tmp_path / "home", tmp_path / "keys"
    home.mkdir()
    keys.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", CONTROLLER, home, keys], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        port = int(line.split()[0].partition("]:")[2])
        yield (
            Endpoint(
                "127.0.0.1",
                port,
                "pod",
                keys / "client",
                HostKey("created", (line,)),
                sys.executable,
                str(home),
            ),
            lambda: [process.pid],
        )
        process.kill()


@pytest.mark.parametrize("when", ["before", "during"])
@pytest.mark.parametrize(
    "freezable", ["embedded", pytest.param("openssh", marks=pytest.mark.sshd)], indirect=True
)
def test_a_frozen_server_is_an_unknown_outcome_within_the_deadline(
    freezable: tuple[Endpoint, object], when: str
) -> None:
    endpoint, pids = freezable
    with Pod(endpoint, timeouts=QUICK) as pod:
        pod.run(["true"])
        stopped = list(pids())  # type: ignore[operator]
        freeze = threading.Timer(
            0.5 if when == "during" else 0.0, lambda: [os.kill(p, signal.SIGSTOP) for p in stopped]
        )
        freeze.start()
        if when == "before":
            freeze.join()
        began = time.monotonic()
        try:
            with pytest.raises(OutcomeUnknown):
                pod.run(["sleep", "30"], timeout=25)
            assert time.monotonic() - began < 5
        finally:
            for pid in stopped:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)


def test_a_quiet_long_command_is_not_mistaken_for_a_dead_pod(endpoint: Endpoint) -> None:
    with Pod(endpoint, timeouts=QUICK) as pod:
        assert pod.run(["sleep", "1.7"]).exit == 0  # longer than dead_after without a byte of output
