"""The embedded SSH server of `provider=local`: real sshd's behaviour, on loopback, with throwaway keys.

It runs on its own event loop in one background thread. Commands are real processes in sessions of their
own, with a minimal environment; a connection that drops closes their pipes and leaves them running, as
OpenSSH does without a terminal. Only the one throwaway key is let in; only loopback ports may be forwarded.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import asyncssh

from glasshouse.errors import ProviderError

USER = "pod"
# Bytes: larger than the defaults, since each packet costs Python time on both ends.
WINDOW, PACKET = 8 << 20, 1 << 17
_T = TypeVar("_T")


class _Door(asyncssh.SSHServer):
    """Who comes in (the throwaway key, user `pod`) and what may be forwarded (loopback, to the client)."""

    def begin_auth(self, _username: str) -> bool:
        return True

    def server_requested(self, listen_host: str, _listen_port: int) -> bool:
        return listen_host in ("127.0.0.1", "localhost")


class PodServer:
    """One loopback SSH server whose sessions live in `home`; `start` then `stop`, both from any thread."""

    def __init__(self, home: Path, key_folder: Path) -> None:
        self.home = home
        self.key_path = key_folder / "client"
        self._host_key = asyncssh.generate_private_key("ssh-ed25519")
        client_key = asyncssh.generate_private_key("ssh-ed25519")
        descriptor = os.open(self.key_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(client_key.export_private_key())
        self._client_public = client_key.export_public_key().decode("ascii")
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="local-pod", daemon=True)
        self._acceptor: asyncssh.SSHAcceptor | None = None
        self._children: set[asyncio.Task[None]] = set()

    def known_hosts_line(self) -> str:
        """The line that pins this server: `[127.0.0.1]:port ssh-ed25519 ...`."""
        public = self._host_key.export_public_key().decode("ascii").split()
        return f"[127.0.0.1]:{self.port} {public[0]} {public[1]}"

    def start(self, deadline: float) -> None:
        """Listen on a free loopback port within `deadline` seconds. Raises ProviderError."""
        self._thread.start()
        try:
            self.port = self._call(self._listen(), deadline)
        except (OSError, TimeoutError, asyncssh.Error) as error:
            self.stop()
            raise ProviderError(f"the local pod did not start: {type(error).__name__}") from error

    def stop(self) -> None:
        """Close the listener and every connection; wait a moment for children that were killed.
        Idempotent."""
        if self._loop.is_closed():
            return
        with contextlib.suppress(TimeoutError):
            self._call(self._shut(), 10.0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10.0)
        if not self._loop.is_running():
            self._loop.close()

    def _call(self, work: Coroutine[Any, Any, _T], timeout: float) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout)

    async def _listen(self) -> int:
        self._acceptor = await asyncssh.listen(
            "127.0.0.1",
            0,
            server_factory=_Door,
            server_host_keys=[self._host_key],
            authorized_client_keys=asyncssh.import_authorized_keys(self._client_public),
            process_factory=self._session,
            encoding=None,
            line_editor=False,
            allow_pty=False,
            agent_forwarding=False,
            x11_forwarding=False,
            password_auth=False,
            kbdint_auth=False,
            host_based_auth=False,
            gss_auth=False,
            gss_kex=False,
            login_timeout=15,
            window=WINDOW,
            max_pktsize=PACKET,
        )
        return int(self._acceptor.get_port())

    async def _shut(self) -> None:
        if self._acceptor is not None:
            self._acceptor.close()
            await self._acceptor.wait_closed()
        if self._children:
            await asyncio.wait(self._children, timeout=3.0)
        others = asyncio.all_tasks(self._loop) - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _session(self, channel: asyncssh.SSHServerProcess[bytes]) -> None:
        # A task of ours, not of the connection: it must outlive the connection to reap the child.
        task = self._loop.create_task(self._serve(channel))
        self._children.add(task)
        task.add_done_callback(self._children.discard)

    def _environment(self) -> dict[str, str]:
        # Never the operator's: a pod sees no keys, tokens or proxies of the machine it happens to be on.
        return {
            "HOME": str(self.home),
            "USER": USER,
            "LOGNAME": USER,
            "SHELL": "/bin/sh",
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
        }

    async def _serve(self, channel: asyncssh.SSHServerProcess[bytes]) -> None:
        if channel.command is None or channel.subsystem is not None:
            channel.exit(1)
            return
        try:
            child = await asyncio.create_subprocess_exec(
                "/bin/sh",
                "-c",
                channel.command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                cwd=self.home,
                env=self._environment(),
                start_new_session=True,
            )
        except OSError:
            channel.exit(126)
            return
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        feed = self._loop.create_task(_feed(channel.stdin, child.stdin))
        drains = [
            self._loop.create_task(_drain(child.stdout, channel.stdout)),
            self._loop.create_task(_drain(child.stderr, channel.stderr)),
        ]
        gone = self._loop.create_task(channel.channel.wait_closed())
        try:
            # As sshd: a session ends when its output has ended, or when the client has gone.
            await asyncio.wait([gone, self._loop.create_task(_all(drains))], return_when="FIRST_COMPLETED")
            if not gone.done():
                code = await child.wait()
                with contextlib.suppress(OSError, asyncssh.Error):
                    if code < 0:
                        channel.exit_with_signal(signal.Signals(-code).name.removeprefix("SIG"))
                    else:
                        channel.exit(code)
        finally:
            for task in (feed, gone, *drains):
                task.cancel()
            child.stdin.close()
            _close_pipes(child)
        await child.wait()


async def _all(tasks: list[asyncio.Task[None]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)


async def _feed(source: asyncssh.SSHReader[bytes], sink: asyncio.StreamWriter) -> None:
    """Copy the client's input to the child, then close its stdin."""
    with contextlib.suppress(OSError, asyncssh.Error):
        while data := await source.read(1 << 18):
            sink.write(data)
            await sink.drain()
    sink.close()


async def _drain(source: asyncio.StreamReader, sink: asyncssh.SSHWriter[bytes]) -> None:
    """Copy the child's output to the client until it ends or the client is gone."""
    with contextlib.suppress(OSError, asyncssh.Error):
        while data := await source.read(1 << 16):
            sink.write(data)
            await sink.drain()


def _close_pipes(child: asyncio.subprocess.Process) -> None:
    """Close our ends of stdout and stderr: a child that still writes gets SIGPIPE, as it does under sshd."""
    transport = child._transport  # type: ignore[attr-defined]  # no public way to drop a live child's pipes
    for number in (1, 2):
        pipe = transport.get_pipe_transport(number)
        if pipe is not None:
            pipe.close()
