"""Starts OpenSSH's own server for tests."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

SSHD = "/usr/sbin/sshd"
_COMMON = (
    "ListenAddress 127.0.0.1\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
    "PermitRootLogin prohibit-password\nPidFile none\nMaxStartups 100\n"
    "RekeyLimit 4M\n"  # new keys now and then, as a server asks for in a transfer of many GiB
)


def start_sshd(
    folder: Path, host_key: Path, authorized_keys: Path, lines: str, env: Mapping[str, str] | None = None
) -> tuple[subprocess.Popen[bytes], int]:
    """Start sshd on a free port of loopback; (process, port). Its config and log are written to `folder`.

    `lines`: more of its configuration. AssertionError with the log when it does not start.
    """
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # its privilege separation folder; it refuses without
    config, log = folder / "sshd_config", folder / "sshd.log"
    for _ in range(5):  # something else may take the port before sshd does
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        config.write_text(
            f"{_COMMON}Port {port}\nHostKey {host_key}\nAuthorizedKeysFile {authorized_keys}\n{lines}"
        )
        with log.open("wb") as out:
            command = [SSHD, "-D", "-e", "-f", str(config)]
            process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stderr=out)
        deadline = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < deadline:
            # Of the port alone one could not tell whose it is; this line is written once it listens there.
            if b"Server listening on" in log.read_bytes():
                return process, port
            time.sleep(0.02)
        process.kill()
        process.wait()
    raise AssertionError(f"sshd did not start: {log.read_text()}")
