"""Shared by all tests: a state folder of their own, and a real OpenSSH server."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.sshd import SSHD, start_sshd

# Nothing here is timed: how long an example takes says how busy the machine is.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

# A suite that a shell starts in the background is made to ignore Ctrl-C, and so is every program that it
# starts: those that are to be interrupted then run on.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the browser's files: they wait more than they compute, and at the end they run alone.

    Whole runs stay among the quick tests: many at once disturb each other's measurements. `testpaths` cannot
    say an order, since pytest 9 joins nested ones.
    """
    items.sort(key=lambda item: not item.nodeid.startswith("tests/site/"))


@pytest.fixture(autouse=True)
def glasshouse_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keys and state of one test; never those of the person who runs the tests."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("GLASSHOUSE_HOME", str(home))
    monkeypatch.delenv("GLASSHOUSE_STATE", raising=False)
    return home


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


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """Run OpenSSH's sshd for the session; mark tests that use it `sshd`."""
    if not Path(SSHD).exists():
        pytest.skip(f"no OpenSSH server at {SSHD} (apt-get install openssh-server)")
    if os.geteuid() != 0:
        pytest.skip("the OpenSSH server fixture needs root")
    folder = tmp_path_factory.mktemp("sshd")
    for name in ("host", "client"):
        keygen = shutil.which("ssh-keygen") or pytest.skip("no ssh-keygen")
        subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    process, port = start_sshd(
        folder, folder / "host", folder / "client.pub",
        f"SetEnv HOME={folder}\n",  # not the tester's shell start-up files
    )  # fmt: skip
    public = (folder / "host.pub").read_text().split()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {public[0]} {public[1]}\n")
    server = Sshd(port, folder / "client", folder / "known_hosts", process)
    yield server
    for pid in server.sessions():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    server.process.terminate()
    server.process.wait(10)
