"""Connections to the broker: one thread reads them all and waits for none of them.

A connection costs a worker only once its whole request is there, and no longer than the answer takes to make:
slow peers, on whichever side of a request, cost a socket and what they sent. Of those there is a limit for
each allocation (forwards.py), one for all that have shown none, and one for all that have. Where a limit is
reached, the connection that has been idle or unfinished longest makes room: whoever sends a request at once
is served, however many others hold theirs back.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import queue
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http import HTTPStatus

from glasshouse.attestation.http_message import Incoming, Refused, Request, refusal
from glasshouse.codes import Code

STRANGER = ""  # whoever has shown no forward
UNKNOWN = "unknown forward"  # a label that no ticket of this opening stands behind
LINGER_SEC = 1.0  # for a peer that is still sending when it has its answer, or it might not read it
_LINGER_BYTES = 1 << 20
_PIECE = 16 << 10
_BACKLOG = 256
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_BUSY = Refused(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections at once", code=Code.BROKER_BUSY)
_LATE = Refused(HTTPStatus.REQUEST_TIMEOUT, "the request took too long", code=Code.REQUEST_TIMEOUT)


@dataclass(frozen=True)
class Limits:
    """How many connections there may be at once, and how long (s) each step of one may take.

    A request is one small message that is sent at once; 5 s for its head leave room for a lost packet or two.
    """

    strangers: int = 128
    per_allocation: int = 4
    named: int = 256
    head_sec: float = 5.0  # from accept
    request_sec: float = 15.0  # from accept, so that a drip of bytes ends, too
    answer_sec: float = 15.0  # for the peer to take its answer


class _State(enum.IntEnum):
    """What a connection waits for; those that are worth least first."""

    LINGERING = 0  # the peer has its answer
    READING = 1
    WRITING = 2
    WORKING = 3  # a worker has it: never cut


@dataclass(eq=False)
class _Peer:
    sock: socket.socket
    since: float
    until: float
    incoming: Incoming = field(default_factory=Incoming)
    account: str = STRANGER
    state: _State = _State.READING
    ended: bool = False  # it will send nothing more
    out: bytes = b""
    dropped: int = 0


# A request (or why there is none) and whose it is in; the bytes of its answer out.
Handler = Callable[[Request | Refused, str], bytes]


class Workers:
    """At most `size` threads that do jobs, in order; the first jobs start them."""

    def __init__(self, name: str, size: int) -> None:
        self._name = name
        self._size = size
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._open = 0
        self._lock = threading.Lock()

    def submit(self, job: Callable[[], None]) -> None:
        """Have a job done, which raises nothing. Raises RuntimeError where no thread can be had for it."""
        with self._lock:
            if self._open >= len(self._threads) < self._size:
                thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                thread.start()
                self._threads.append(thread)
            self._open += 1
        self._jobs.put(job)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            finally:
                with self._lock:
                    self._open -= 1

    def close(self, seconds: float) -> None:
        """Wait so long for what is being done; a thread that is stuck ends with the process."""
        for _ in self._threads:
            self._jobs.put(None)
        limit = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, limit - time.monotonic()))


class Front:
    """Listens, and has whole requests handled by workers of the kind that they are for.

    find: the account behind a forward's label, or None. choose: the workers for a request of an account.
    Raises OSError where it cannot listen.
    """

    def __init__(
        self,
        address: tuple[str, int],
        handle: Handler,
        *,
        choose: Callable[[Request | Refused, str], Workers],
        find: Callable[[str], str | None],
        limits: Limits,
    ) -> None:
        self._handle = handle
        self._choose = choose
        self._find = find
        self._limits = limits
        self._open: dict[_Peer, None] = {}  # in order of their coming
        self._done: queue.SimpleQueue[tuple[_Peer, bytes]] = queue.SimpleQueue()
        self._stop_at: float | None = None
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            self._listener.bind(address)
            self._listener.listen(_BACKLOG)
        except BaseException:
            self._listener.close()
            raise
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._wake, self._waker = socket.socketpair()
        self._wake.setblocking(False)
        self._waker.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._wake, selectors.EVENT_READ, self._woken)
        self._thread = threading.Thread(target=self._run, name="broker-http", daemon=True)

    def start(self) -> None:
        """Serve from a thread of its own."""
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Take no more, give answers under way so long, cut what is left."""
        self._stop_at = time.monotonic() + seconds
        self._nudge()
        self._thread.join()

    def _nudge(self) -> None:
        with contextlib.suppress(OSError):  # full: it is awake
            self._waker.send(b"\0")

    def _run(self) -> None:
        try:
            while not self._ended():
                for key, _ in self._selector.select(self._patience()):
                    call = key.data
                    if isinstance(call, _Peer):
                        self._event(call)
                    else:
                        call()
                self._answers()
                self._expire()
        finally:
            for peer in list(self._open):
                self._close(peer)
            for sock in (self._listener, self._wake, self._waker):
                sock.close()
            self._selector.close()

    def _ended(self) -> bool:
        if self._stop_at is None:
            return False
        if self._listener.fileno() >= 0:
            self._selector.unregister(self._listener)
            self._listener.close()
        for peer in [peer for peer in self._open if peer.state < _State.WRITING]:
            self._close(peer)
        return not self._open or time.monotonic() >= self._stop_at

    def _patience(self) -> float | None:
        """How long nothing can fall due."""
        dues = [peer.until for peer in self._open if peer.state is not _State.WORKING]
        dues += [] if self._stop_at is None else [self._stop_at]
        return max(0.0, min(dues) - time.monotonic()) if dues else None

    def _woken(self) -> None:
        with contextlib.suppress(OSError):
            while self._wake.recv(_PIECE):
                pass

    # Who comes, and who makes room

    def _accept(self) -> None:
        for _ in range(_BACKLOG):
            try:
                sock, _address = self._listener.accept()
            except OSError as error:
                if error.errno in _NO_DESCRIPTOR:
                    time.sleep(0.05)  # or the selector would say at once that somebody waits
                    if (victim := self._least(self._open)) is not None:
                        self._cut(victim, _BUSY)
                return
            sock.setblocking(False)
            now = time.monotonic()
            peer = _Peer(sock, now, now + self._limits.head_sec)
            if self._room(peer, STRANGER, self._limits.strangers):
                self._open[peer] = None
                try:
                    self._selector.register(sock, selectors.EVENT_READ, peer)
                except OSError:  # the kernel watches no more: this one is not served
                    self._close(peer)

    def _room(self, peer: _Peer, account: str, most: int) -> bool:
        """Make room for one more connection of an account; False where there is none, and it was refused."""
        mates = [each for each in self._open if each.account == account]
        if len(mates) < most:
            return True
        victim = self._least(mates)
        self._cut(peer if victim is None else victim, _BUSY)
        return victim is not None

    def _name(self, peer: _Peer, label: str) -> bool:
        """Count a connection for what its forward stands for; False where that was one too many."""
        account = self._find(label) or UNKNOWN
        if not self._room(peer, account, self._limits.per_allocation):
            return False
        named = Counter(each.account for each in self._open if each.account != STRANGER)
        if named.total() >= self._limits.named:
            greedy = max(named.values())
            victim = self._least([each for each in self._open if named.get(each.account) == greedy])
            self._cut(peer if victim is None else victim, _BUSY)
            if victim is None:
                return False
        peer.account = account
        return True

    @staticmethod
    def _least(peers: Iterable[_Peer]) -> _Peer | None:
        """The connection that is worth least; None where workers have them all."""
        idle = [peer for peer in peers if peer.state is not _State.WORKING]
        return min(idle, key=lambda peer: (peer.state is not _State.LINGERING, peer.since), default=None)

    # What a connection does

    def _event(self, peer: _Peer) -> None:
        if peer not in self._open:
            return  # cut since the selector spoke of it
        try:
            if peer.state is _State.WRITING:
                self._write(peer)
            else:
                self._read(peer, peer.sock.recv(_PIECE))
        except (BlockingIOError, InterruptedError):
            return
        except Exception:  # noqa: BLE001  (mostly a peer that went away; never a reason to end for the others)
            self._close(peer)

    def _read(self, peer: _Peer, data: bytes) -> None:
        peer.ended = peer.ended or not data
        if peer.state is _State.LINGERING:
            peer.dropped += len(data)
            if peer.ended or peer.dropped > _LINGER_BYTES:
                self._close(peer)
            return
        if data:
            peer.incoming.feed(data)
        elif peer.incoming.nothing_came:
            self._close(peer)
            return
        else:
            peer.incoming.end()
        label = peer.incoming.label
        if peer.account == STRANGER and label is not None and not self._name(peer, label):
            return
        if peer.incoming.whole:
            self._work(peer)
        elif peer.incoming.head_came:
            peer.until = peer.since + self._limits.request_sec

    def _work(self, peer: _Peer) -> None:
        self._selector.unregister(peer.sock)
        peer.state = _State.WORKING
        asked: Request | Refused
        try:
            asked = peer.incoming.request()
        except Refused as refused:
            asked = refused
        account = peer.account

        def job() -> None:
            self._done.put((peer, self._handle(asked, account)))
            self._nudge()

        self._choose(asked, account).submit(job)

    def _answers(self) -> None:
        """Begin to write what workers have answered."""
        while not self._done.empty():
            peer, answer = self._done.get()
            if peer in self._open:
                peer.out, peer.state = answer, _State.WRITING
                peer.until = time.monotonic() + self._limits.answer_sec
                self._selector.register(peer.sock, selectors.EVENT_WRITE, peer)
                self._event(peer)

    def _write(self, peer: _Peer) -> None:
        peer.out = peer.out[peer.sock.send(peer.out) :]
        if peer.out:
            return
        peer.sock.shutdown(socket.SHUT_WR)
        if peer.ended:
            self._close(peer)
            return
        peer.state, peer.until = _State.LINGERING, time.monotonic() + LINGER_SEC
        self._selector.modify(peer.sock, selectors.EVENT_READ, peer)

    def _expire(self) -> None:
        now = time.monotonic()
        due = [peer for peer in self._open if peer.until <= now and peer.state is not _State.WORKING]
        for peer in due:
            self._cut(peer, _LATE)

    def _cut(self, peer: _Peer, why: Refused) -> None:
        """End a connection, saying why where it has no part of an answer yet and takes this one at once."""
        if peer.state is _State.READING:
            with contextlib.suppress(OSError):
                peer.sock.send(refusal(why))
        self._close(peer)

    def _close(self, peer: _Peer) -> None:
        self._open.pop(peer, None)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(peer.sock)
        peer.sock.close()
