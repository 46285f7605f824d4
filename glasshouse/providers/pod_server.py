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
import subprocess
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import IO, Any, TypeVar

import asyncssh

from glasshouse.errors import ProviderError

USER = "pod"
# Bytes: larger than the defaults, since each packet costs Python time on both ends.
WINDOW, PACKET = 8 << 20, 1 << 17
_T = TypeVar("_T")


class _Door(asyncssh.SSHServer):
    """Who comes in (the throwaway key) and what may be forwarded (loopback, to the client)."""

    def __init__(self, connections: set[asyncssh.SSHServerConnection]) -> None:
        self._connections = connections
        self._connection: asyncssh.SSHServerConnection | None = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        self._connections.add(conn)

    def connection_lost(self, _error: Exception | None) -> None:
        if self._connection is not None:
            self._connections.discard(self._connection)

    def begin_auth(self, _username: str) -> bool:
        return True

    def server_requested(self, listen_host: str, _listen_port: int) -> bool:
        return listen_host in ("127.0.0.1", "localhost")


class PodServer:
    """One loopback SSH server whose sessions live in `home`; `start` then `stop`, both from any thread.

    threads: OMP_NUM_THREADS of every session; None leaves it unset.
    """

    def __init__(self, home: Path, key_folder: Path, *, threads: int | None = None) -> None:
        self.home = home
        self._threads = threads
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
        self._connections: set[asyncssh.SSHServerConnection] = set()
        self._sessions: set[asyncio.Task[None]] = set()

    def known_hosts_line(self) -> str:
        """The line that pins this server: `[127.0.0.1]:port ssh-ed25519 ...`."""
        public = self._host_key.export_public_key().decode("ascii").split()
        return f"[127.0.0.1]:{self.port} {public[0]} {public[1]}"

    def start(self, deadline: float, port: int = 0) -> None:
        """Listen on loopback (0: a free port) within `deadline` seconds. Raises ProviderError."""
        self._thread.start()
        try:
            self.port = self._call(self._listen(port), deadline)
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

    async def _listen(self, port: int) -> int:
        self._acceptor = await asyncssh.listen(
            "127.0.0.1",
            port,
            server_factory=lambda: _Door(self._connections),
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
        for connection in list(self._connections):
            connection.abort()
        if self._sessions:
            await asyncio.wait(self._sessions, timeout=3.0)
        others = asyncio.all_tasks(self._loop) - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _session(self, channel: asyncssh.SSHServerProcess[bytes]) -> None:
        # A task of ours, not of the connection, so that the connection's end does not cancel it half-way.
        task = self._loop.create_task(self._serve(channel))
        self._sessions.add(task)
        task.add_done_callback(self._sessions.discard)

    def _environment(self) -> dict[str, str]:
        # Never the operator's: a pod sees no keys, tokens or proxies of the machine it happens to be on.
        threads = {} if self._threads is None else {"OMP_NUM_THREADS": str(self._threads)}
        return {
            **threads,
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
            child = subprocess.Popen(
                ["/bin/sh", "-c", channel.command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=self.home,
                env=self._environment(),
                start_new_session=True,
            )
        except OSError:
            channel.exit(126)
            return
        exited = self._reap(child)
        stdin, (stdout, out_pipe), (stderr, err_pipe) = (
            await _writer(child.stdin),
            await _reader(child.stdout),
            await _reader(child.stderr),
        )
        feed = self._loop.create_task(_feed(channel.stdin, stdin))
        drains = [
            self._loop.create_task(_drain(stdout, channel.stdout)),
            self._loop.create_task(_drain(stderr, channel.stderr)),
        ]
        gone: asyncio.Future[None] = self._loop.create_task(channel.channel.wait_closed())
        ended: asyncio.Future[None] = self._loop.create_task(_all(drains))
        try:
            # As sshd: a session ends when its output has ended, or when the client has gone.
            await asyncio.wait([gone, ended], return_when=asyncio.FIRST_COMPLETED)
            if not gone.done():
                both: list[asyncio.Future[Any]] = [gone, exited]
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if exited.done():
                _report(channel, exited.result())
        finally:
            for task in (feed, gone, ended, *drains):
                task.cancel()
            # A child that still writes gets SIGPIPE from here on, and otherwise lives, as under sshd.
            if stdin.transport.get_write_buffer_size():
                stdin.transport.abort()  # close() would wait for a child that no longer reads
            for pipe in (stdin, out_pipe, err_pipe):
                pipe.close()

    def _reap(self, child: subprocess.Popen[bytes]) -> asyncio.Future[int]:
        """Wait for a child on a thread of its own: it may outlive its session, and this server."""
        exited: asyncio.Future[int] = self._loop.create_future()

        def tell(code: int) -> None:
            if not exited.done():
                exited.set_result(code)

        def wait() -> None:
            code = child.wait()
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks any more
                self._loop.call_soon_threadsafe(tell, code)

        threading.Thread(target=wait, name=f"reap-{child.pid}", daemon=True).start()
        return exited


def _report(channel: asyncssh.SSHServerProcess[bytes], code: int) -> None:
    with contextlib.suppress(OSError, asyncssh.Error):
        if code < 0:
            channel.exit_with_signal(signal.Signals(-code).name.removeprefix("SIG"))
        else:
            channel.exit(code)


async def _reader(pipe: IO[bytes] | None) -> tuple[asyncio.StreamReader, asyncio.ReadTransport]:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=PACKET)
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    return reader, transport


async def _writer(pipe: IO[bytes] | None) -> asyncio.StreamWriter:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_write_pipe(
        lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader()), pipe
    )
    return asyncio.StreamWriter(transport, protocol, None, loop)


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
        # A whole packet at once: with each goes another to be ignored, and both are made in Python.
        while data := await source.read(PACKET):
            sink.write(data)
            await sink.drain()
