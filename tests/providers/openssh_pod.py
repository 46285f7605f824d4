"""A fake provider's pod with OpenSSH's own server in it: `server.cloud.container = OpenSshContainer`."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from glasshouse.providers.fakes.container import Container
from tests.sshd import start_sshd


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
        key = self.root / "etc/ssh/served"
        key.touch(mode=0o600)
        key.write_bytes(host_key.export_private_key())
        given = " ".join(f"{name}={value}" for name, value in self._environment().items() if name[0] != "_")
        process, port = start_sshd(
            self.root / "etc/ssh", key, self.root / "root/.ssh/authorized_keys",
            f"SetEnv {given}\n", self._environment(),
        )  # fmt: skip
        self._server = _Server(port, process)  # type: ignore[assignment]


def sessions_of(container: Container | None) -> list[int]:
    """The pids of the server's own processes that serve connections (not of what users run)."""
    assert isinstance(container, OpenSshContainer)
    found = [container._server.process.pid]  # type: ignore[union-attr]
    for pid in found:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
        found += [int(child) for child in children if "sshd" in Path(f"/proc/{child}/comm").read_text()]
    return found[1:]
