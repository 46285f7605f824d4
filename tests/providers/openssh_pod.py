"""A fake provider's pod with OpenSSH's own server in it: `server.cloud.container = OpenSshContainer`."""

from __future__ import annotations

import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from glasshouse.providers.fakes.container import Container
from tests.conftest import SSHD


@dataclass
class _Server:
    port: int
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(10)


class OpenSshContainer(Container):
    """The keys that the start script installed, served by sshd; sessions live in the container's folder."""

    def _listen(self, host_key: asyncssh.SSHKey) -> None:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        key = self.root / "etc/ssh/served"
        key.touch(mode=0o600)
        key.write_bytes(host_key.export_private_key())
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        given = " ".join(f"{name}={value}" for name, value in self._environment().items() if name[0] != "_")
        config = self.root / "etc/ssh/sshd_config"
        config.write_text(
            f"Port {port}\nListenAddress 127.0.0.1\nHostKey {key}\n"
            f"AuthorizedKeysFile {self.root}/root/.ssh/authorized_keys\n"
            "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
            f"PidFile none\nMaxStartups 100\nSetEnv {given}\n"
        )
        process = subprocess.Popen(
            [SSHD, "-D", "-e", "-f", config],
            env=self._environment(), stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._server = _Server(port, process)  # type: ignore[assignment]
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except OSError:
                assert process.poll() is None, "sshd did not start"
                assert time.monotonic() < deadline, "sshd does not answer"
                time.sleep(0.02)
            else:
                return


def sessions_of(container: Container | None) -> list[int]:
    """The pids of the server's own processes that serve connections (not of what users run)."""
    assert isinstance(container, OpenSshContainer)
    found = [container._server.process.pid]  # type: ignore[union-attr]
    for pid in found:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
        found += [int(child) for child in children if "sshd" in Path(f"/proc/{child}/comm").read_text()]
    return found[1:]
