"""Shared by all tests: a state folder of their own, one valid RunSpec, and a real OpenSSH server."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from glasshouse import spec

SSHD = "/usr/sbin/sshd"

# Nothing here is timed: how long an example takes says how busy the machine is.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def glasshouse_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keys and state of one test; never those of the person who runs the tests."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("GLASSHOUSE_HOME", str(home))
    monkeypatch.delenv("GLASSHOUSE_STATE", raising=False)
    return home


@pytest.fixture(scope="session")
def make_spec() -> Callable[..., spec.RunSpec]:
    """Build a small valid RunSpec; keyword arguments replace its top-level fields."""

    def make(**changes: object) -> spec.RunSpec:
        values: dict[str, object] = {
            "provider": spec.LocalProvider(kind="local"),
            "gpu": spec.Gpu(name="cpu"),
            "model": spec.MlpModel(
                kind="mlp",
                name="tiny",
                inputs=8,
                hidden=8,
                layers=1,
                classes=2,
                batch=4,
                batches_per_epoch=2,
                learning_rate=0.01,
            ),
            "policy": spec.Policy(
                name="standard",
                freshness_sec=60,
                require_landlock=False,
                require_memfd_secret=False,
                allow_host_key_first_use=True,
                anti_debug_profile="standard",
            ),
            "measure": spec.Measure(
                warmup_sec=0.0,
                discard_sec=0.0,
                blocks=8,
                margin_pct=2.0,
                duration_tolerance_pct=10.0,
                head_interval_sec=1.0,
            ),
            "order": "raw-first",
            "duration": 1.0,
            "seed": 1,
        }
        return spec.RunSpec.model_validate(values | changes)

    return make


@dataclass(frozen=True)
class Sshd:
    """A real OpenSSH server on loopback; logs in root with `key`."""

    port: int
    key: Path
    known_hosts: Path
    process: subprocess.Popen[bytes]
    user: str = "root"
    host: str = "127.0.0.1"

    def sessions(self) -> list[int]:
        """The pids of the server's own processes that serve connections (not of what users run)."""
        found, ahead = list[int](), [self.process.pid]
        while ahead:
            pid = ahead.pop()
            try:
                name = Path(f"/proc/{pid}/comm").read_text(encoding="ascii")
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended while we looked
            if "sshd" in name:
                found.append(pid)
                ahead += map(int, children)
        return found[1:]


def _start_sshd(folder: Path) -> Sshd | None:
    """Start OpenSSH on a free port with the keys in `folder`; None when that port was taken meanwhile."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    config = folder / "config"
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\n"
        f"AuthorizedKeysFile {folder}/client.pub\n"
        "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
        "RekeyLimit 4M\n"  # new keys now and then, as a server asks for in a transfer of many GiB
        f"PidFile none\nMaxStartups 100\nSetEnv HOME={folder}\n"  # not the tester's shell start-up files
    )
    public = (folder / "host.pub").read_text().split()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {public[0]} {public[1]}\n")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([SSHD, "-D", "-e", "-f", config], stderr=log, stdin=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while process.poll() is None:
        # Of the port alone one could not tell whose it is; this line is written once it listens there.
        if "Server listening on" in (folder / "log").read_text():
            return Sshd(port, folder / "client", folder / "known_hosts", process)
        if time.monotonic() > deadline:
            process.kill()
            break
        time.sleep(0.02)
    process.wait()
    return None


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """Run OpenSSH's sshd for the session; mark tests that use it `sshd`."""
    if not Path(SSHD).exists():
        pytest.skip(f"no OpenSSH server at {SSHD} (apt-get install openssh-server)")
    if os.geteuid() != 0:
        pytest.skip("the OpenSSH server fixture needs root")
    folder = tmp_path_factory.mktemp("sshd")
    Path("/run/sshd").mkdir(
        mode=0o755, exist_ok=True
    )  # its privilege separation folder; sshd refuses without
    for name in ("host", "client"):
        keygen = shutil.which("ssh-keygen") or pytest.skip("no ssh-keygen")
        subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    for _ in range(5):
        server = _start_sshd(folder)
        if server is not None:
            break
    else:
        pytest.fail(f"sshd did not start: {(folder / 'log').read_text()}")
    yield server
    for pid in server.sessions():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    server.process.terminate()
    server.process.wait(10)
