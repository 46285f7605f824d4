"""The processes whose death ends a leg: whoever waits for something waits for that, too.

A process that was killed may have left a child that holds its end of a channel open, so that the end of the
stream never comes. Its pidfd says that it is gone (pidfd_open(2), Linux 5.3), and stands for no process that
gets the same number later.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

_T = TypeVar("_T")
LOOK_SEC = 0.5  # between two looks at a process of which the kernel gives no pidfd


class PeerDiedError(Exception):
    """A process that the leg needs is gone; the message is its role."""


class _Peer:
    """One process, which lives when this is made, or is not yet reaped."""

    def __init__(self, pid: int) -> None:
        self._stat = Path(f"/proc/{pid}/stat")
        self.descriptor: int | None = None
        with contextlib.suppress(OSError, AttributeError):
            self.descriptor = os.pidfd_open(pid)

    def gone(self) -> bool:
        """Whether it has ended, reaped or not; where there is no pidfd."""
        try:
            return self._stat.read_bytes().rpartition(b")")[2].split()[0] in (b"Z", b"X")
        except (OSError, IndexError):
            return True

    def close(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)


class Peers:
    """Processes by role. `watch` what must live, `forget` what is about to end; used by one thread."""

    def __init__(self) -> None:
        self._peers: dict[str, _Peer] = {}

    def watch(self, role: str, pid: int) -> None:
        """From now on its death ends every wait."""
        self._peers[role] = _Peer(pid)

    def forget(self, role: str) -> None:
        """Its death is no news any more. Idempotent."""
        peer = self._peers.pop(role, None)
        if peer is not None:
            peer.close()

    def wait(self, descriptor: int | None, timeout: float | None) -> bool:
        """Wait until `descriptor` (None: nothing) can be read; False after `timeout` seconds (None: never).

        What was said is heard first: PeerDiedError is raised where there is nothing to be read.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        poll = select.poll()
        held = {peer.descriptor for peer in self._peers.values() if peer.descriptor is not None}
        for each in held if descriptor is None else {descriptor, *held}:
            poll.register(each, select.POLLIN)
        slowest = math.inf if len(held) == len(self._peers) else LOOK_SEC
        while True:
            left = min(slowest, max(0.0, deadline - time.monotonic()))
            ready = {each for each, _ in poll.poll(None if left == math.inf else math.ceil(1000 * left))}
            if descriptor in ready:
                return True
            for role, peer in self._peers.items():
                if peer.descriptor in ready or (peer.descriptor is None and peer.gone()):
                    raise PeerDiedError(role)
            if time.monotonic() >= deadline:
                return False

    def during(self, work: Callable[[], _T]) -> _T:
        """Call `work`, which waits for something else, in a thread; return or raise what it does.

        Raises PeerDiedError as soon as a peer dies: the thread is then left behind.
        """
        outcome: list[_T | BaseException] = []
        read_end, write_end = os.pipe()

        def call() -> None:
            try:
                outcome.append(work())
            except BaseException as error:  # noqa: BLE001 -- raised again below, in the thread that asked
                outcome.append(error)
            finally:
                os.close(write_end)

        threading.Thread(target=call, name="work", daemon=True).start()
        try:
            self.wait(read_end, None)
        finally:
            os.close(read_end)
        (found,) = outcome
        if isinstance(found, BaseException):
            raise found
        return found
