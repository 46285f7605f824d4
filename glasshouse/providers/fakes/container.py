"""One fake pod: a folder that plays the container's root, the start script run in it, and a real SSH server.

The start script is the very text of the create call (bootscript.py), run with GLASSHOUSE_ROOT. What would
reach outside the folder (`service`, `runpodctl`, `nvidia-smi`) is a stub in its `bin`. Commands that come in
by SSH are real processes of this machine, with a minimal environment; they end with the container.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import asyncssh

from glasshouse.providers.pod_server import PodServer
from glasshouse.remote.sweep_script import NAME, SCRATCH, cgroups, remove

MARK: Final = "GLASSHOUSE_FAKE_POD"
START_DEADLINE_SEC: Final = 20.0
_START_SH: Final = """\
mkdir -p "$GLASSHOUSE_ROOT/root/.ssh"
if [ -n "$PUBLIC_KEY" ]; then echo "$PUBLIC_KEY" >> "$GLASSHOUSE_ROOT/root/.ssh/authorized_keys"; fi
"""
_SMI: Final = """\
#!/usr/bin/env python3
import sys
known = {known!r}
names = [a.split("=", 1)[1] for a in sys.argv[1:] if a.startswith("--query-gpu=")]
if "-L" in sys.argv:
    print("GPU 0: {name} (UUID: {uuid})")
elif names:
    for gpu in range({count}):
        print(", ".join(known.get(field, "[N/A]") for field in names[0].split(",")))
else:
    print("NVIDIA-SMI (simulated): {count} x {name}")
"""


class Container:
    """A pod's processes and files. `start` and `stop` once each; `log` holds its start's output lines."""

    def __init__(self, place: Path, mark: str, *, name: str, gpu: str, gpus: int) -> None:
        self.root = place
        self._name = name if NAME.match(name) else ""
        self.mark = mark
        self.log: list[str] = []
        self._server: _PodSsh | None = None
        self._gpu, self._gpus = gpu, gpus

    @property
    def port(self) -> int:
        """The SSH server's port on loopback; 0 while none listens."""
        return self._server.port if self._server is not None else 0

    def start(
        self, command: Sequence[str] | None, env: Mapping[str, str], *, ssh: bool = True, log: str = "true"
    ) -> None:
        """Run `command` (None: the image's own start), then listen.

        `log` is "true" for a log with the host key's fingerprint, "empty", or "lies".
        Raises ProviderError when the server does not start.
        """
        self._furnish()
        # /start.sh is what the image would run by itself; the client's command replaces it and calls it.
        argv = list(command) if command is not None else ["bash", str(self.root / "start.sh")]
        full = {**self._environment(), **env}
        subprocess.run(
            argv, cwd=self.root, env=full, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True, timeout=START_DEADLINE_SEC, check=False,
        )  # fmt: skip
        host_key = self._host_key()
        if log != "empty":
            shown = host_key if log == "true" else asyncssh.generate_private_key("ssh-ed25519")
            self.log.append("SSH host key fingerprints:")
            self.log.append(f"256 {shown.get_fingerprint()} root@simulated (ED25519)")
        if ssh:
            self._listen(host_key)

    def stop(self) -> None:
        """End every process, the server, and the folder. Idempotent."""
        self.halt()
        for base in map(Path, SCRATCH):  # what a real machine would take with it
            with contextlib.suppress(OSError):
                for entry in base.iterdir():
                    if self._name and entry.name.startswith(self._name):
                        remove(entry)
        for cgroup in cgroups(self._name) if self._name else ():
            with contextlib.suppress(OSError):
                cgroup.rmdir()
        remove(self.root)

    def halt(self) -> None:
        """End every process and the server, as when a container exits; files stay. Idempotent."""
        _kill(self.mark, self.root)
        if self._server is not None:
            self._server.stop()
            self._server = None
        _kill(self.mark, self.root)

    def _furnish(self) -> None:
        for folder in ("bin", "etc/ssh", "root", "run", "tmp", "keys"):
            (self.root / folder).mkdir(parents=True, exist_ok=True, mode=0o700)
        (self.root / "start.sh").write_text(_START_SH, encoding="ascii")
        known = {
            "name": self._gpu,
            "uuid": f"GPU-{uuid.uuid5(uuid.NAMESPACE_OID, self.mark)}",
            "driver_version": "0.0",
            "pci.bus_id": "00000000:00:00.0",
            "count": str(self._gpus),
            "index": "0",
        }
        smi = _SMI.format(known=known, name=self._gpu, uuid=known["uuid"], count=self._gpus)
        for name, text in (
            ("service", "#!/bin/sh\nexit 0\n"),
            ("runpodctl", "#!/bin/sh\nexit 1\n"),
            ("nvidia-smi", smi),
        ):
            path = self.root / "bin" / name
            path.write_text(text, encoding="utf-8")
            path.chmod(0o700)

    def _environment(self) -> dict[str, str]:
        interpreter = Path(sys.executable).parent  # so that `python3` there has what ours has
        return {
            "HOME": str(self.root / "root"),
            "USER": "root",
            "LOGNAME": "root",
            "SHELL": "/bin/sh",
            "LANG": "C.UTF-8",
            "TMPDIR": str(self.root / "tmp"),
            "PATH": f"{self.root / 'bin'}:{interpreter}:/usr/local/bin:/usr/bin:/bin",
            "GLASSHOUSE_ROOT": str(self.root),
            MARK: self.mark,
        }

    def _host_key(self) -> asyncssh.SSHKey:
        path = self.root / "etc/ssh/ssh_host_ed25519_key"
        if path.exists():
            return asyncssh.read_private_key(path)
        return asyncssh.generate_private_key("ssh-ed25519")  # as sshd's own first start would

    def _listen(self, host_key: asyncssh.SSHKey) -> None:
        authorized = self.root / "root/.ssh/authorized_keys"
        keys = authorized.read_text(encoding="ascii") if authorized.exists() else ""
        environment = {key: value for key, value in self._environment().items() if key != "GLASSHOUSE_ROOT"}
        server = _PodSsh(self.root, host_key, keys, environment)
        server.start(START_DEADLINE_SEC)
        self._server = server


class _PodSsh(PodServer):
    """The embedded SSH server, with the host key and the login keys that the container holds."""

    def __init__(
        self, root: Path, host_key: asyncssh.SSHKey, authorized: str, environment: dict[str, str]
    ) -> None:
        super().__init__(root / "root", root / "keys")
        self._host_key = host_key
        if authorized.strip():
            self._client_public = authorized
        self._given = environment

    def _environment(self) -> dict[str, str]:
        return dict(self._given)


def _kill(mark: str, root: Path, rounds: int = 40) -> None:
    """SIGKILL every process of a container: marked, working in its folder, or descended from one."""
    for _ in range(rounds):
        found = _processes_of(mark, root)
        if not found:
            return
        for pid in found:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _processes_of(mark: str, root: Path) -> set[int]:
    needle, inside = f"{MARK}={mark}\0".encode(), f"{root}/"
    parents: dict[int, tuple[int, int]] = {}
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            continue
        if fields[0] in (b"Z", b"X"):
            continue
        pid = int(entry.name)
        parents[pid] = (int(fields[1]), int(fields[3]))
        with contextlib.suppress(OSError):
            if needle in (entry / "environ").read_bytes() + b"\0":
                found.add(pid)
        with contextlib.suppress(OSError):
            if f"{(entry / 'cwd').readlink()}/".startswith(inside):
                found.add(pid)
    while True:
        grown = {pid for pid, (parent, session) in parents.items() if parent in found or session in found}
        if grown <= found:
            return found - {os.getpid()}
        found |= grown
