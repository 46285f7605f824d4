"""One hardened SSH connection: fabric over a paramiko client that accepts the pinned host key and no other.

fabric alone would add any host key (AutoAddPolicy), read the operator's ssh_config and agent, and wait up
to an hour for a channel; each of these is closed here.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

import fabric
import paramiko

from glasshouse.codes import Code
from glasshouse.errors import HostKeyMismatch, RemoteError, UsageError
from glasshouse.remote.endpoint import Endpoint
from glasshouse.remote.watchdog import HeardSocket, Timeouts, Watchdog

# AES-GCM first: twice the throughput of paramiko's default. No CBC, no SHA-1, no MD5.
CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes256-ctr", "aes192-ctr", "aes128-ctr")
MACS = (
    "hmac-sha2-256-etm@openssh.com",
    "hmac-sha2-512-etm@openssh.com",
    "hmac-sha2-256",
    "hmac-sha2-512",
)
RECEIVE_PACKET = 1 << 17
RECEIVE_WINDOW = 8 << 20  # bytes in flight towards us, so that a far pod's output is not latency-bound

# How much may come or go under one key before we ask for another. paramiko asks after 512 MiB, and hangs if
# the far side closes a channel at that very moment (its issue 822): a download in pieces of 32 MiB always met
# it. Servers ask for themselves, without that: asyncssh after 1 GiB, OpenSSH at its limit for AES, this one.
REKEY_BYTES = 1 << 36
_log = logging.getLogger("paramiko")
if _log.level == logging.NOTSET:
    # Every failure reaches the caller as an exception with one line; paramiko would print its traceback as
    # well.
    _log.setLevel(logging.CRITICAL + 1)


class _UnknownHostKey(paramiko.SSHException):
    """The host showed a key, and none is known for it."""


class _KnownKeysOnly(paramiko.MissingHostKeyPolicy):
    """As paramiko's RejectPolicy, with an exception that can be told from others by its type."""

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:  # noqa: ARG002
        raise _UnknownHostKey(hostname)


class Link:
    """An open connection with its watchdog. Make it with `open_link`, end it with `close`."""

    def __init__(
        self, connection: Any, transport: paramiko.Transport, watchdog: Watchdog, fingerprint: str
    ) -> None:
        self.connection = connection
        self.transport = transport
        self.watchdog = watchdog
        self.fingerprint = fingerprint

    @property
    def alive(self) -> bool:
        """Whether the transport still stands, as far as is known."""
        return self.transport.is_active()

    def close(self) -> None:
        """Close quietly, also when the peer is gone. Idempotent."""
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            self.connection.close()
        self.watchdog.kill("closed")
        self.watchdog.stop()
        self.transport.join(5.0)


def load_key(path: Path) -> paramiko.PKey:
    """Read an unencrypted private key. Raises UsageError naming provider.key, never quoting the file."""
    try:
        return paramiko.PKey.from_path(path)
    except OSError as error:
        raise UsageError(
            f"cannot read the SSH key: {error.strerror}",
            field="provider.key",
            value=path,
            remedy="give the path of a private key file",
        ) from error
    except (paramiko.SSHException, ValueError, TypeError) as error:
        raise UsageError(
            "not an unencrypted private key",
            field="provider.key",
            value=path,
            remedy="give an OpenSSH private key without a passphrase",
        ) from error


def pinned_lines(path: Path, name: str) -> tuple[str, ...]:
    """Return the lines of a known_hosts file that hold keys of host `name` (`[host]:port` off port 22).

    Raises UsageError naming provider.known_hosts: a missing file, or none for this host.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            "cannot read known_hosts", field="provider.known_hosts", value=path, remedy="give a readable file"
        ) from error
    keys = paramiko.HostKeys()
    found = []
    for line in lines:
        entry = None
        with contextlib.suppress(paramiko.SSHException, ValueError):
            entry = paramiko.hostkeys.HostKeyEntry.from_line(line) if line.strip() else None
        if (
            entry is not None
            and entry.hostnames
            and any(_names(keys, pattern, name) for pattern in entry.hostnames)
        ):
            found.append(line)
    if not found:
        raise UsageError(
            f"known_hosts has no key for {name}",
            field="provider.known_hosts",
            value=path,
            remedy="add one (ssh-keyscan, then compare the fingerprint with the host's owner)",
        )
    return tuple(found)


def _names(keys: paramiko.HostKeys, pattern: str, name: str) -> bool:
    if pattern.startswith("|1|"):
        return keys.hash_host(name, pattern) == pattern
    return pattern == name


def fetch_host_key(endpoint: Endpoint, timeouts: Timeouts) -> str:
    """Shake hands without logging in and return the host's key as one known_hosts line. Raises
    RemoteError."""
    sock = _dial(endpoint, timeouts)
    transport = None
    try:
        transport = _transport(sock)
        transport.banner_timeout = timeouts.banner
        transport.start_client(timeout=timeouts.banner)
        key = transport.get_remote_server_key()
    except (paramiko.SSHException, EOFError, OSError) as error:
        raise _not_ssh(endpoint, error) from error
    finally:
        if transport is not None:
            transport.close()
            transport.join(5.0)
        sock.close()
    return f"{endpoint.known_hosts_name} {key.get_name()} {key.get_base64()}"


def open_link(
    endpoint: Endpoint, known_hosts: tuple[str, ...], timeouts: Timeouts, deadline: float = math.inf
) -> Link:
    """Connect, check the host key against `known_hosts` lines, log in. At `deadline` the link is cut.

    Raises UsageError for the key file; HostKeyMismatch for a wrong or unknown host key; RemoteError for an
    unreachable host or a refused login.
    """
    key = load_key(endpoint.key_path)
    client = paramiko.SSHClient()
    _pin(client, known_hosts)
    client.set_missing_host_key_policy(_KnownKeysOnly())
    sock = _dial(endpoint, timeouts)
    connection = fabric.Connection(
        host=endpoint.host,
        user=endpoint.user,
        port=endpoint.port,
        # Neither ssh_config nor fabric's own files: the Endpoint says everything.
        config=fabric.Config(lazy=True, ssh_config=paramiko.SSHConfig()),
        forward_agent=False,
        inline_ssh_env=False,
        connect_kwargs={
            "sock": sock,
            "pkey": key,
            "allow_agent": False,
            "look_for_keys": False,
            "timeout": timeouts.connect,
            "banner_timeout": timeouts.banner,
            "auth_timeout": timeouts.auth,
            "channel_timeout": timeouts.channel,
            "transport_factory": _transport,
        },
    )
    connection.client = client
    try:
        connection.open()
        transport = client.get_transport()
        assert transport is not None
        fingerprint = transport.get_remote_server_key().fingerprint
        return Link(connection, transport, Watchdog(transport, sock, timeouts, deadline), fingerprint)
    except Exception as error:
        client.close()
        sock.close()
        raise _explain(endpoint, error) from error


def _explain(endpoint: Endpoint, error: Exception) -> Exception:
    """Turn what paramiko raises into one line of ours; a fault of our own passes unchanged."""
    where = f"{endpoint.host}:{endpoint.port}"
    if isinstance(error, paramiko.BadHostKeyException):
        return HostKeyMismatch(
            f"wrong host key: expected {error.expected_key.fingerprint}, found {error.key.fingerprint}",
            field="host",
            value=where,
            remedy="if the host was reinstalled, update known_hosts; otherwise someone is in between",
        )
    if isinstance(error, paramiko.AuthenticationException):
        return RemoteError(
            "the host refused our key",
            field="host",
            value=f"{endpoint.user}@{where}",
            remedy="add the public key to the host's authorized_keys",
            code=Code.LOGIN_REFUSED,
        )
    if isinstance(error, _UnknownHostKey):
        return HostKeyMismatch(
            "no known host key", field="host", value=where, remedy="add the host's key to known_hosts"
        )
    if isinstance(error, paramiko.SSHException | EOFError | OSError):
        return _not_ssh(endpoint, error)
    return error


def _not_ssh(endpoint: Endpoint, error: Exception) -> RemoteError:
    return RemoteError(
        f"the host answers, but not as an SSH server ({str(error) or type(error).__name__})",
        field="host",
        value=f"{endpoint.host}:{endpoint.port}",
        remedy="check host and port, and that sshd runs there",
    )


def _dial(endpoint: Endpoint, timeouts: Timeouts) -> HeardSocket:
    try:
        plain = socket.create_connection((endpoint.host, endpoint.port), timeout=timeouts.connect)
    except OSError as error:
        cause = error.strerror or str(error) or type(error).__name__
        raise RemoteError(
            f"cannot reach the host ({cause})",
            field="host",
            value=f"{endpoint.host}:{endpoint.port}",
            remedy="check host and port, and that the machine is up",
        ) from error
    sock = HeardSocket(plain.family, plain.type, plain.proto, fileno=plain.detach())
    sock.heard = time.monotonic()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return sock


def _transport(sock: socket.socket, disabled_algorithms: Any = None) -> paramiko.Transport:
    transport = paramiko.Transport(
        sock,
        disabled_algorithms=disabled_algorithms,
        default_window_size=RECEIVE_WINDOW,
        default_max_packet_size=RECEIVE_PACKET,
    )
    transport.packetizer.REKEY_BYTES = REKEY_BYTES
    options = transport.get_security_options()
    options.ciphers = CIPHERS
    options.digests = MACS
    return transport


def _pin(client: paramiko.SSHClient, lines: tuple[str, ...]) -> None:
    descriptor, name = tempfile.mkstemp(prefix="known-hosts-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
        client.load_host_keys(name)
    finally:
        Path(name).unlink()
