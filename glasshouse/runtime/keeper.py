"""The keeper: a process beside a private job that seals checkpoints of it, and records for whoever watches.

Forked by the trainer once that is confined, and before any code of the owner's runs: it runs none, and holds
nothing of the package but the owner's public key. Its parent is the supervisor, so that it is no child of
the trainer's, which ends all of those before outputs are sealed. It reads one folder, changes no file, and
has one channel to the supervisor and one pipe for ciphertext.

    keeper                                      supervisor (kept.py)
    descriptors, hardened                  ->
    sealing, bytes in the pipe, sealed     ->   a file, once size and digest are right; and its event
                                           <-   kept, or not-kept
    given-up: so many bytes were for nothing ->
                                           <-   stop, with or without one more checkpoint
    ended, a marker                        ->   its memory is searched, before and after the marker's wipe
                                           <-   wipe, exit

Nothing that becomes of it ends the job.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import secrets
import select
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from glasshouse.errors import LegError, SealError
from glasshouse.runtime import looking, residue
from glasshouse.runtime.cadence import watch_every
from glasshouse.runtime.channel import Channel, ChannelClosedError, Message
from glasshouse.runtime.confine import close_inherited
from glasshouse.runtime.linux import (
    PR_SET_PDEATHSIG,
    gpu_devices,
    harden,
    hardening_state,
    prctl,
    restrict_writes,
)
from glasshouse.runtime.looking import Look, Mark, TooManyError
from glasshouse.runtime.params import LaunchParams
from glasshouse.runtime.sealer import seal_tree
from glasshouse.sealing.container import OpenedPackage
from glasshouse.sealing.memory import forbid, overwrite
from glasshouse.sealing.outputs import SealedOutputs, seal_outputs

MIN_EVERY_SEC = 1.0  # between two of a kind, whatever was asked for
REST_SEC = 2.0  # a folder that stays the same for so long rests; of a short cadence a part of that
WAIT_SHARE = 0.5  # of the cadence: for so long a folder that does not rest is waited for
TRIES = 3  # of one checkpoint, which the job wrote to while it was sealed
ANSWER_SEC = 600.0  # for the supervisor to have written to disk what it was given
MARKER_BYTES = 24
MAX_RECORD_BYTES = 56 << 10  # sealed and padded, all of a run up to this have one size (padding.py: FLOOR)
RECORD = "record"  # the one file in a sealed record
NICE = 10  # the job goes first
LAST_SEC = 30.0  # for the checkpoint of the end, which is given up then


@dataclass(frozen=True)
class Ends:
    """What a keeper has of its supervisor: its end of the channel, and the pipe's end for ciphertext."""

    channel: Channel
    pipe: int

    @property
    def descriptors(self) -> tuple[int, int]:
        """Both."""
        return self.channel.fileno(), self.pipe

    def close(self) -> None:
        """Close both."""
        self.channel.close()
        os.close(self.pipe)


@dataclass(frozen=True)
class Duties:
    """What a keeper is to do.

    folder: what checkpoints are of. steps: how many optimizer steps were made by now, None where nobody
    counts them. collect: what a record for whoever watches holds, given the seconds until the next checkpoint
    falls due (None: none does); None: there are no records. only: which files of the folder count, by
    relative path; None: all. marked_only: nothing is taken but what is marked as whole. unable: a file that
    is there once nothing comes any more of what should.
    """

    folder: Path
    owner_public: bytes
    context: Mapping[str, str]
    checkpoint_sec: float
    ready: str
    watch_sec: float
    steps: Callable[[], int | None]
    collect: Callable[[float | None], bytes] | None = None
    only: Callable[[str], bool] | None = None
    marked_only: bool = False
    unable: Path | None = None

    @classmethod
    def of(
        cls,
        launch: LaunchParams,
        folder: Path,
        owner_public: bytes,
        steps: Callable[[], int | None],
        *,
        collect: Callable[[float | None], bytes] | None = None,
        only: Callable[[str], bool] | None = None,
    ) -> Duties:
        """What a launch asks for."""
        return cls(
            folder, owner_public, launch.sealed_under, launch.checkpoint_sec, launch.checkpoint_ready,
            launch.watch_sec, steps, collect, only,
        )  # fmt: skip


def fork(ends: Ends, duties: Duties, package: OpenedPackage, *, supervisor: int) -> None:
    """Start a keeper, and close `ends` here. Of all other descriptors it has none.

    For a process of one thread. Where no process is to be had there is no keeper, and the supervisor sees it.
    """
    try:
        between = os.fork()
    except OSError:
        ends.close()
        return
    if between == 0:
        try:
            own = os.getpid()
            if os.fork() == 0:
                _main(ends, duties, package, between=own, supervisor=supervisor)
        finally:
            os._exit(0)
    os.waitpid(between, 0)
    ends.close()


def _main(
    ends: Ends,
    duties: Duties,
    package: OpenedPackage,
    *,
    between: int,
    supervisor: int,
) -> None:
    """Run the keeper to its exit; never returns."""
    code = 1
    try:
        close_inherited(ends.descriptors)
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):  # nothing of it may print: tracebacks hold data
            os.dup2(null, stream)
        os.close(null)
        while os.getppid() == between:
            time.sleep(0.001)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == supervisor:
            _let_go(package)
            _serve(ends, duties)
            code = 0
    except (ChannelClosedError, LegError, OSError):
        pass
    finally:
        os._exit(code)


def _let_go(package: OpenedPackage | None) -> None:
    """Give back what this process inherited of the package's plaintext; the trainer's pages stay."""
    while package is not None:
        package.region.madvise(mmap.MADV_DONTNEED)
        forbid(package.region)  # empty from here on, so there is nothing to search
        package = package.beside


def _serve(ends: Ends, duties: Duties) -> None:
    channel = ends.channel
    opened = residue.open_self()
    channel.send_descriptors(opened)
    for descriptor in opened:
        os.close(descriptor)
    harden()
    with contextlib.suppress(OSError):  # within the trainer's own domain, which holds in any case
        restrict_writes([], [device for device in gpu_devices() if device.is_relative_to("/dev")])
    with contextlib.suppress(OSError):
        os.nice(NICE)
    os.set_blocking(ends.pipe, False)
    channel.send("hardened", {**asdict(hardening_state()), "pid": os.getpid()})
    keeper = _Keeper(ends, duties)
    with contextlib.suppress(_StoppedError):
        keeper.run()
    with contextlib.suppress(_StoppedError):
        keeper.last()
    marker = bytearray(secrets.token_bytes(MARKER_BYTES))  # what a search of this process must find
    channel.send("ended", raw=marker)
    while True:
        kind = channel.receive().kind
        if kind == "scan":
            residue.serve(channel)
        elif kind == "wipe":
            overwrite(marker)
            channel.send("wiped")
        elif kind == "exit":
            return


class _StoppedError(Exception):
    """The supervisor has said that it is to end."""


class _Pipe:
    """Where ciphertext goes; a write ends in _StoppedError where the supervisor wants no more.

    heed: whether it does; a record for whoever watches is small, and what it has is in no other. until: when
    a write ends so in any case (monotonic seconds).
    """

    def __init__(self, ends: Ends, *, heed: bool = True, until: float = math.inf) -> None:
        self._ends, self._heed, self._until = ends, heed, until
        self.bytes = 0

    def write(self, data: bytes | memoryview, /) -> int | None:
        """Write what the pipe takes."""
        poll = select.poll()
        if self._heed:
            poll.register(self._ends.channel.fileno(), select.POLLIN)
        poll.register(self._ends.pipe, select.POLLOUT)
        while True:
            left = self._until - time.monotonic()
            ready = dict(poll.poll(None if left == math.inf else max(0, math.ceil(left * 1000))))
            if left <= 0:
                raise _StoppedError
            if self._ends.channel.fileno() in ready:
                raise _StoppedError
            with contextlib.suppress(BlockingIOError):
                count = os.write(self._ends.pipe, data)
                self.bytes += count
                return count

    def check(self) -> None:
        """Raise _StoppedError as `write` does."""
        if time.monotonic() >= self._until:
            raise _StoppedError
        if self._heed and select.select([self._ends.channel], [], [], 0)[0]:
            raise _StoppedError


Seal = Callable[[_Pipe, Mapping[str, str]], SealedOutputs]


class _Keeper:
    """Its two timers. A record that falls due while a checkpoint is sealed comes after it."""

    def __init__(self, ends: Ends, duties: Duties) -> None:
        self._ends, self._duties = ends, duties
        self._channel = ends.channel
        self._numbers = {"checkpoint": 1, "watch": 1}
        now = time.monotonic()
        self._every = max(duties.checkpoint_sec, MIN_EVERY_SEC) if duties.checkpoint_sec else math.inf
        self._watch_every = (
            max(duties.watch_sec, MIN_EVERY_SEC) if duties.watch_sec and duties.collect else math.inf
        )
        self._next_look, self._next_watch = now + self._every, now + self._watch_every
        self._rest = min(REST_SEC, self._every / 4)
        self._late: float | None = None  # while a checkpoint is due: when it is taken as it is
        self._start = self._began = now
        self._last: Look = {}
        self._tries = 0
        self._taken: Look = {}
        self._marked: frozenset[Mark] = frozenset()  # what was marked by the last checkpoint
        self._heard = False  # that it is to stop
        self._one_more = False  # checkpoint, before that
        self._until = math.inf  # of the last

    def run(self) -> None:
        """Work until the supervisor says that it is enough: raises _StoppedError."""
        while True:
            due = min(self._next_look, self._next_watch)
            wait = None if due == math.inf else max(0.0, due - time.monotonic())
            if select.select([self._channel], [], [], wait)[0]:
                raise _StoppedError
            if time.monotonic() >= self._next_watch:
                self._watch()
                every = watch_every(time.monotonic() - self._start, self._watch_every)
                self._next_watch = max(self._next_watch + every, time.monotonic())
            if time.monotonic() >= self._next_look:
                try:
                    self._look()
                except TooManyError:
                    self._channel.send("missed", {"kind": "checkpoint"})
                    self._began = time.monotonic()
                    self._due_again()

    def last(self) -> None:
        """After the job's end: a checkpoint of that, if it is wanted, and one more record.

        So whoever watches has all of it.
        """
        if not self._heard:
            self._hear(self._channel.expect("stop", ANSWER_SEC))
        if self._one_more:
            self._until = time.monotonic() + LAST_SEC
            with contextlib.suppress(_StoppedError, TooManyError):
                self._take(self._seen(), anyhow=True)
        if self._watch_every == math.inf:
            return
        self._every = math.inf  # no checkpoint falls due any more
        self._watch()

    def _hear(self, stop: Message) -> None:
        self._heard, self._one_more = True, stop.body.get("oneMore") is True

    def _look(self) -> None:
        if self._duties.unable is not None and self._duties.unable.exists():
            self._channel.send("missed", {"kind": "checkpoint"})
            self._next_look = math.inf
            return
        now, seen = time.monotonic(), self._seen()
        if self._late is None:  # a checkpoint falls due
            fresh = not self._duties.marked_only or looking.marks(seen, self._duties.ready) - self._marked
            if looking.is_empty(seen) or seen == self._taken or not fresh:
                self._next_look = now + self._every
                return
            self._late, self._began, self._tries = now + WAIT_SHARE * self._every, now, 0
            rests = False
        else:
            rests = seen == self._last
        self._last = seen
        if not rests and now < self._late:
            self._next_look = now + self._rest
            return
        self._take(seen, anyhow=now >= self._late or self._tries + 1 >= TRIES)

    def _take(self, before: Look, *, anyhow: bool) -> None:
        """Seal the folder, which looked so `before`. `anyhow`: also where it is written to meanwhile."""
        duties, after = self._duties, before
        steps = duties.steps()
        marked = looking.marks(before, duties.ready)
        if duties.marked_only and not marked - self._marked:
            self._due_again()
            return

        def seal(pipe: _Pipe, context: Mapping[str, str]) -> SealedOutputs:
            def only(name: str) -> bool:  # asked of every file before any is read, and there may be many
                pipe.check()
                return duties.only is None or duties.only(name)

            return seal_tree(
                pipe, duties.folder, owner_public=duties.owner_public, context=context, extra={},
                only=only, padded=True, threads=1, beat=pipe.check,
            )  # fmt: skip

        def described() -> dict[str, Any] | None:
            nonlocal after
            after = self._seen()
            touched = looking.changed(before, after)
            whole = any(mark.root not in touched for mark in marked - self._marked)
            if not whole and (duties.marked_only or (after != before and not anyhow)):
                return None
            return {"state": "whole" if whole else "unmarked", "steps": steps}

        self._tries += 1
        sealed = self._seal("checkpoint", seal, described)
        if sealed is None:  # written to: once it rests again
            self._last, self._next_look = after, time.monotonic() + self._rest
            return
        if sealed:
            self._taken, self._marked = before, marked
        self._due_again()

    def _seen(self) -> dict[str, looking.Entry]:
        return looking.look(self._duties.folder, self._duties.only, beat=_Pipe(self._ends).check)

    def _due_again(self) -> None:
        self._late = None
        self._next_look = max(self._began + self._every, time.monotonic() + MIN_EVERY_SEC / 2)

    def _watch(self) -> None:
        assert self._duties.collect is not None
        due = None if self._every == math.inf else max(0.0, self._next_look - time.monotonic())
        data = self._duties.collect(due)
        if len(data) > MAX_RECORD_BYTES:
            self._channel.send("missed", {"kind": "watch"})
            return

        def seal(pipe: _Pipe, context: Mapping[str, str]) -> SealedOutputs:
            return seal_outputs(
                pipe, owner_public=self._duties.owner_public, context=context,
                files={RECORD: data}, tensors=(), threads=1, padded=True,
            )  # fmt: skip

        self._seal("watch", seal, dict)

    def _seal(self, kind: str, seal: Seal, described: Callable[[], dict[str, Any] | None]) -> bool | None:
        """Seal one more of a kind. None: what `described` looked at was not to be taken; False: there is none
        for another reason, which was said.
        """
        heed = kind == "checkpoint" and not self._heard
        until = self._until if kind == "checkpoint" else math.inf
        number, pipe = self._numbers[kind], _Pipe(self._ends, heed=heed, until=until)
        self._channel.send("sealing", {"kind": kind, "number": number})
        try:
            sealed = seal(pipe, {**self._duties.context, kind: str(number)})
            more = described()
        except _StoppedError:
            self._channel.send("given-up", {"bytes": pipe.bytes})
            raise
        except (SealError, OSError, MemoryError, TooManyError):
            self._channel.send("given-up", {"bytes": pipe.bytes})
            self._channel.send("missed", {"kind": kind})
            return False
        if more is None:
            self._channel.send("given-up", {"bytes": pipe.bytes})
            return None
        self._channel.send(
            "sealed",
            {
                "kind": kind,
                "number": number,
                "bytes": sealed.bytes,
                "ciphertextSha256": sealed.ciphertext_sha256,
                "plaintextSha256": sealed.plaintext_sha256,
                **more,
            },
        )
        answer = self._channel.receive(ANSWER_SEC)
        if answer.kind == "stop":
            self._hear(answer)
            if kind == "watch" or self._one_more:  # it is kept all the same
                self._numbers[kind] += self._channel.receive(ANSWER_SEC).kind == "kept"
            raise _StoppedError
        if answer.kind != "kept":
            return False
        self._numbers[kind] += 1
        return True
