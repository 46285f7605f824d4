"""Throwaway SSH keys of one rental, and which host key a machine really shows.

Our host key travels inside the create call, so the host that runs the container could read it there: it shows
that we talk to the container we created, not that its host is honest (site/threat-model.md).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

import asyncssh
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


@dataclass(frozen=True)
class RentalKeys:
    """Public keys are `type base64`; the private host key goes into the create call and nowhere else."""

    client_path: Path
    client_public: str
    host_public: str
    host_private_b64: str = field(repr=False)


def make_keys(folder: Path) -> RentalKeys:
    """Make both key pairs; the client's private key is written to `folder` (0600), the host's nowhere."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    client, host = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    path = folder / "client"
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(_private(client))
    return RentalKeys(path, _public(client), _public(host), base64.b64encode(_private(host)).decode("ascii"))


def remove_keys(folder: Path) -> None:
    """Forget a rental's keys; a missing folder is fine."""
    with contextlib.suppress(OSError):
        (folder / "client").unlink(missing_ok=True)
        folder.rmdir()


def _private(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )


def _public(key: Ed25519PrivateKey) -> str:
    raw = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return raw.decode("ascii")


def fingerprint(public: str) -> str:
    """`SHA256:` and base64 without padding, as ssh-keygen -l prints it (RFC 4648, OpenSSH)."""
    digest = hashlib.sha256(base64.b64decode(public.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode("ascii").rstrip("=")


def shown_host_key(host: str, port: int, timeout: float) -> str | None:
    """The host key (`type base64`) that a server shows; None when none answers within `timeout` seconds.

    Asks for Ed25519 first, the type of our own key; falls back to whatever the server has. Nothing is sent.
    """
    for algorithms in (["ssh-ed25519"], None):
        try:
            key = asyncio.run(asyncio.wait_for(_scan(host, port, algorithms), timeout))
        except asyncssh.KeyExchangeFailed:
            continue  # no Ed25519 key there
        except (OSError, TimeoutError, asyncssh.Error, ValueError):
            return None  # ValueError: an address that is no name, as a provider may state one
        if key is not None:
            public = key.export_public_key().decode("ascii").split()
            return f"{public[0]} {public[1]}"
    return None


async def _scan(host: str, port: int, algorithms: list[str] | None) -> asyncssh.SSHKey | None:
    # config=None: the operator's ~/.ssh/config must not lead this elsewhere.
    if algorithms is None:
        return await asyncssh.get_server_host_key(host, port, config=None)
    return await asyncssh.get_server_host_key(host, port, config=None, server_host_key_algs=algorithms)
