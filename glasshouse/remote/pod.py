"""`Pod`: commands, files and forwarded ports on one machine, over one pinned and watched SSH connection.

    with Pod(allocation.endpoint) as pod:
        pod.put(package, f"{folder}/package.bin")
        pod.run(["setsid", ...])

Errors: a host that cannot be reached or shows a wrong key raises RemoteError; a connection that dies or a
deadline that passes raises OutcomeUnknown, since what was started may have finished: reconnect and look.
A Pod with a `deadline` of its own does nothing past it: whatever is going on then ends in RentalOver.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from glasshouse.errors import HostKeyMismatch, OutcomeUnknown, RemoteError, RentalOver
from glasshouse.remote.channel import Result, disk_full, run_command
from glasshouse.remote.connection import Link, fetch_host_key, open_link
from glasshouse.remote.endpoint import Endpoint, HostKey
from glasshouse.remote.forward import forwarded
from glasshouse.remote.transfer import TransferProgress, receive_file, send_file
from glasshouse.remote.watchdog import Timeouts
from glasshouse.retry import RetryPolicy, retry

__all__ = ["Pod", "Result", "Timeouts"]

# Seconds before each try to reconnect; a rebooting router or sshd is back within this, a dead pod is not.
RECONNECT_DELAYS = (0.0, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
_SECONDS_PER_BYTE = 1 / 250e3  # the slowest link that is still waited for


class Pod:
    """One machine. Enter to connect; leave to disconnect (what runs detached there goes on).

    `deadline`: monotonic seconds, after which nothing more is done there. `insist`: asked when no try to
    reconnect came through, whether to begin again; it may wait first.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        timeouts: Timeouts | None = None,
        deadline: float = math.inf,
        insist: Callable[[RemoteError], bool] | None = None,
    ) -> None:
        self.endpoint = endpoint
        self._timeouts = timeouts or Timeouts()
        self._deadline = deadline
        self._insist = insist
        self._known_hosts = endpoint.host_key.lines
        self._link: Link | None = None
        self._fingerprint = ""
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def host_key_fingerprint(self) -> str:
        """`SHA256:...` of the host key, as ssh-keygen prints it; "" before the first connection."""
        return self._fingerprint

    @property
    def host_key(self) -> HostKey:
        """The keys this pod is pinned to, () before a first-use host was first reached; and who vouches."""
        return HostKey(self.endpoint.host_key.source, self._known_hosts or ())

    @property
    def connected(self) -> bool:
        """Whether the connection stands, as far as is known."""
        return self._link is not None and self._link.alive

    def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes = b"",  # noqa: A002  the name that subprocess.run gave it
        timeout: float = 60.0,
        max_output: int = 1 << 20,
    ) -> Result:
        """Run a command in the login's home, without a terminal, and wait for it and its output to end.

        `argv` is quoted word by word for the far shell. `input` is its stdin. Each output stream is kept up
        to `max_output` bytes (then Result.truncated). A command to leave behind must let go of stdin,
        stdout and stderr (`setsid ... </dev/null >log 2>&1 &`). A nonzero exit is a Result. Raises
        OutcomeUnknown.
        """
        with self._in_time() as link:
            return run_command(
                link,
                argv,
                stdin=input,
                timeout=timeout,
                max_output=max_output,
                request_timeout=self._timeouts.channel,
            )

    def check(
        self,
        argv: Sequence[str],
        what: str,
        *,
        input: bytes = b"",  # noqa: A002  as in run
        timeout: float = 60.0,
        max_output: int = 1 << 20,
    ) -> bytes:
        """Run and return stdout; raise RemoteError "`what` failed" on a nonzero exit or cut output."""
        result = self.run(argv, input=input, timeout=timeout, max_output=max_output)
        if result.exit != 0 or result.truncated:
            lines = result.stderr.decode("utf-8", "replace").strip().splitlines()
            reason = lines[-1][:200] if lines else "no message"
            if result.truncated:
                reason = "its output is too long"
            raise RemoteError(
                f"{what} failed on the pod",
                field="exit",
                value=result.exit,
                remedy=reason,
                code=disk_full(reason),
            )
        return result.stdout

    def put(
        self,
        data: bytes | Path,
        path: str,
        mode: int = 0o600,
        *,
        checked: bool = True,
        progress: TransferProgress | None = None,
    ) -> None:
        """Send bytes or a local file to `path`, verified by BLAKE2b there and renamed into place.

        checked: False leaves that to whoever reads the file, where it is authenticated anyway.
        The folder is made (0700) when missing. After OutcomeUnknown: reconnect and call again, and it goes on
        from the part that arrived. `progress(bytes done, bytes in total)` is called about once a MiB.
        """
        with self._in_time() as link:
            send_file(
                link,
                self.endpoint.python,
                data,
                _plain(path),
                mode=mode,
                checked=checked,
                request_timeout=self._timeouts.channel,
                progress=progress,
            )

    def fetch(self, path: str, *, offset: int = 0, max_bytes: int = 1 << 20) -> bytes:
        """Read up to `max_bytes` from `offset` of a file; b"" at or past its end. RemoteError when
        unreadable.

        Cheap on the pod (no interpreter is started), so that polling does not disturb a measurement.
        """
        script = '{ tail -c "+$2" | head -c "$3"; } < "$1"'
        result = self.run(
            ["sh", "-c", script, "sh", _plain(path), str(offset + 1), str(max_bytes)],
            timeout=60.0 + max_bytes * _SECONDS_PER_BYTE,
            max_output=max_bytes,
        )
        if result.exit != 0:
            raise RemoteError("no such file on the pod, or not readable", field="path", value=path)
        return result.stdout

    def fetch_file(
        self,
        path: str,
        target: Path,
        *,
        max_bytes: int,
        sha256: str | None = None,
        progress: TransferProgress | None = None,
    ) -> None:
        """Copy a finished file from the pod to `target` (0600), resuming `target`.part, and verify it.

        Against `sha256` (64 hex) where that is known, else against BLAKE2b of what the pod read.

        Raises RemoteError when it is larger than `max_bytes`, missing, or damaged on the way. Not while
        something is measured: an interpreter is started there.
        """
        with self._in_time() as link:
            receive_file(
                link,
                self.endpoint.python,
                _plain(path),
                target,
                max_bytes=max_bytes,
                sha256=sha256,
                request_timeout=self._timeouts.channel,
                progress=progress,
            )

    def exists(self, path: str) -> bool:
        """Whether something is at `path`."""
        return self.run(["test", "-e", _plain(path)]).exit == 0

    @contextmanager
    def forward_remote(self, local_port: int, opening: bytes = b"") -> Iterator[int]:
        """Let the pod reach 127.0.0.1:`local_port` here; yield the port on the pod's loopback.

        Each connection here begins with `opening`, in front of what the pod sends. One forward at a time; it
        ends with the connection, so open it again after `reconnect`.
        """
        with (
            self._in_time() as link,
            forwarded(link, local_port, self._timeouts.channel, opening) as port,
        ):
            yield port

    def reconnect(self, delays: Sequence[float] = RECONNECT_DELAYS) -> None:
        """Connect anew to the same host with the same pinned key, waiting `delays` seconds before each try.

        Raises the last RemoteError; a wrong host key ends it at once, since trying again would only ask the
        same stranger, and so does the deadline.
        """
        while True:
            self.close()
            time.sleep(delays[0])
            try:
                retry(
                    lambda _: self._connect(),
                    RetryPolicy(tries=len(delays), waits=tuple(delays[1:])),
                    on=RemoteError,
                    unless=(HostKeyMismatch, RentalOver),
                )
            except (HostKeyMismatch, RentalOver):
                raise
            except RemoteError as error:
                if self._insist is None or not self._insist(error):
                    raise
            else:
                return

    def drop_transport(self) -> None:
        """Cut the socket without a word, as a failing network does; what runs on the pod is not told."""
        if self._link is not None:
            self._link.watchdog.kill("dropped")

    def close(self) -> None:
        """Disconnect. Idempotent."""
        with self._lock:
            link, self._link = self._link, None
        if link is not None:
            link.close()

    def _connect(self) -> None:
        if time.monotonic() >= self._deadline:
            raise RentalOver
        if self._known_hosts is None:
            self._known_hosts = (fetch_host_key(self.endpoint, self._timeouts),)
        link = open_link(self.endpoint, self._known_hosts, self._timeouts, self._deadline)
        with self._lock:
            self._link = link
        self._fingerprint = link.fingerprint

    @contextmanager
    def _in_time(self) -> Iterator[Link]:
        """Give the link; a connection that the deadline cut says so."""
        if time.monotonic() >= self._deadline:
            raise RentalOver
        try:
            yield self._live()
        except OutcomeUnknown as error:
            if time.monotonic() >= self._deadline:
                raise RentalOver from error
            raise

    def _live(self) -> Link:
        link = self._link
        if link is None:
            raise OutcomeUnknown("not connected to the pod", remedy="reconnect")
        return link


def _plain(path: str) -> str:
    """Keep a path that begins with a dash from being read as an option."""
    return f"./{path}" if path.startswith("-") else path
