"""Follow a detached leg: poll its result file, countersign event heads, survive dropped connections.

The steps on a connection that may have died (`on_live_connection`, `reconnect`) are here too.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import ValidationError

from glasshouse.canonical import CanonicalError, canonical_json, parse_json
from glasshouse.codes import Code
from glasshouse.errors import HostKeyMismatch, LegError, OutcomeUnknown, RemoteError, RentalOver
from glasshouse.lifecycle.poll_script import POLL_SCRIPT
from glasshouse.records.chain import sign_head
from glasshouse.remote.pod import Pod
from glasshouse.retry import RetryPolicy, retry
from glasshouse.runtime.cadence import heads_every
from glasshouse.runtime.events import check_line, event_hash, first_link
from glasshouse.schema import Ended

_T = TypeVar("_T")
# Each try of these is a round of several (remote/pod.py: RECONNECT_DELAYS), or follows one.
RECONNECT = RetryPolicy(tries=3)
FETCH = RetryPolicy(tries=3)
STEP = RetryPolicy(tries=2)
CARRY = RetryPolicy(tries=4)
CARRY_GAIN = 1 << 20  # bytes that a try must bring, or it counts as one that brought nothing
QUICK_SEC = 0.1
WAIT_SHARE = 0.05
MAX_POLL_BYTES = 4 << 20
MAX_RESULT_BYTES = 4 << 20
MAX_EVENTS_BYTES = 64 << 20
LATE_POLLS = 1 + MAX_EVENTS_BYTES // MAX_POLL_BYTES  # past a leg's deadline, to read what one that ended left


@dataclass(frozen=True)
class Event:
    """One event of a leg, whose signature and place in the chain are checked; what is in it is the pod's."""

    type: str
    body: Mapping[str, Any]


@dataclass(frozen=True)
class Finished:
    """A leg's result.json: how it ended, by its form, and the raw leg's result just as the pod wrote it."""

    ended: Ended
    raw_result: object


class _Names(TypedDict):
    run: str
    leg: str
    launch: int


class EventReader:
    """Checks a leg's events as they come: each is signed by the leg's key and extends the one before."""

    def __init__(self) -> None:
        self._event_key: Ed25519PublicKey | None = None
        self._prev: str | None = None
        self._pending = b""
        self.count = 0
        self.size = 0

    @property
    def open(self) -> bool:
        """Whether the event key is known, so that lines can be checked."""
        return self._event_key is not None

    @property
    def head(self) -> str | None:
        """Hash of the newest checked event."""
        return self._prev if self.count else None

    def begin(self, event_key: bytes, grant: str) -> None:
        """Learn the key (from the appraised evidence) and the first link (from the grant)."""
        self._event_key = Ed25519PublicKey.from_public_bytes(event_key)
        self._prev = first_link(grant)

    def feed(self, data: bytes) -> list[Event]:
        """Check new bytes; return the new events. Raises LegError (event-chain-broken)."""
        return self._checked(data)[1]

    def _checked(self, data: bytes) -> tuple[list[bytes], list[Event]]:
        """The whole lines among what came, and what they say."""
        if self._event_key is None:
            return [], []
        self.size += len(data)
        if self.size > MAX_EVENTS_BYTES:
            raise LegError("the event log is too large", code=Code.EVENT_CHAIN_BROKEN)
        *lines, self._pending = (self._pending + data).split(b"\n")
        events = []
        try:
            for line in lines:
                event = check_line(line, self._event_key)
                if event["seq"] != self.count or event["prev"] != self._prev:
                    raise CanonicalError("event does not extend the last head")
                self._prev = event_hash(line)
                self.count += 1
                events.append(Event(event["type"], event["body"]))
        except CanonicalError as error:
            raise LegError(str(error), code=Code.EVENT_CHAIN_BROKEN) from error
        return lines, events


class EventLog(EventReader):
    """The controller's copy of a leg's events, and its signed log of heads.

    A head is signed only when the events since the last one verify and extend it; so whoever
    rewrites the chain later must have done it within one gap. `thinned`: the longer it takes, the wider.
    """

    def __init__(
        self,
        folder: Path,
        operator: Ed25519PrivateKey,
        *,
        run: str,
        leg: str,
        launch: int,
        interval: float,
        thinned: bool = False,
    ) -> None:
        super().__init__()
        self._folder = folder
        self._operator = operator
        self._names: _Names = {"run": run, "leg": leg, "launch": launch}
        self._interval, self._thinned = interval, thinned
        self._signed = 0.0
        self._made = time.monotonic()

    def resume(self) -> list[Event]:
        """Take up what a dead process left: check it, and cut off lines that it tore."""
        for name in ("heads.jsonl", "events.jsonl"):
            path = self._folder / name
            data = path.read_bytes() if path.exists() else b""
            whole = data[: data.rfind(b"\n") + 1]
            if whole != data:
                os.truncate(path, len(whole))  # in place: the folder's time says when the launch began
        return super().feed(whole)

    def feed(self, data: bytes) -> list[Event]:
        """Check new bytes, append whole lines to events.jsonl, countersign the head; return the new events.

        Called at every poll: a head that stands is countersigned again now and then, so that a
        quiet stretch of training is not a stretch in which events could be rewritten. All heads of one poll
        bear one time: what came together was seen together (restore.py: who watched).
        """
        before, at = self.count, time.time()
        lines, events = self._checked(data)
        if lines:
            with (self._folder / "events.jsonl").open("ab") as stream:
                stream.write(b"".join(line + b"\n" for line in lines))
        for seq, (line, event) in enumerate(zip(lines, events, strict=True), start=before):
            if event.type == "checkpoint-sealed" and seq < self.count - 1:
                self._sign_head(seq, event_hash(line), at)  # it is stored with the chain up to here
        now = time.monotonic()
        every = heads_every(now - self._made, self._interval) if self._thinned else self._interval
        if lines or (self.count and now - self._signed >= every):
            assert self._prev is not None
            self._sign_head(self.count - 1, self._prev, at)
        return events

    def _sign_head(self, seq: int, head: str, at: float) -> None:
        self._signed = time.monotonic()
        line = sign_head(self._operator, **self._names, seq=seq, head=head, time=at)
        with (self._folder / "heads.jsonl").open("ab") as stream:
            stream.write(line + b"\n")


class Pace:
    """How long to wait between polls: rarely while something is measured, quickly before and after.

    `interval` seconds is the longest wait. quiet_sec: the warm-up and the measured stretch together,
    None where the work is fixed instead; the wait then ends with the stretch, not an interval later.
    Elsewhere waiting takes up to WAIT_SHARE of what the phase took so far.
    """

    def __init__(self, interval: float, quiet_sec: float | None) -> None:
        self._interval = interval
        self._quiet = quiet_sec
        self._phase_began = time.monotonic()
        self._quiet_until: float | None = None

    def ready(self) -> None:
        """The leg is set up: its warm-up and measured stretch begin about now."""
        if self._quiet_until is None:
            length = math.inf if self._quiet is None else self._quiet
            self._quiet_until = time.monotonic() + length
            self._phase_began = self._quiet_until

    def measured(self) -> None:
        """The measured stretch is over, though nobody knew when it would be."""
        self._quiet_until = self._phase_began = time.monotonic()

    def heard(self, kind: str) -> None:
        """A leg's event of this type came in."""
        if kind == "progress":
            self.ready()
        elif kind == "trained":
            self.measured()

    def pause(self) -> float:
        """Seconds to wait now."""
        now = time.monotonic()
        if self._quiet_until is not None and now < self._quiet_until:
            return min(self._interval, self._quiet_until - now + QUICK_SEC)
        return min(self._interval, max(QUICK_SEC, WAIT_SHARE * (now - self._phase_began)))


def follow(
    pod: Pod,
    leg_dir: str,
    *,
    process: int,
    followed: str,
    pace: Pace,
    deadline: float,
    on_data: Callable[[bytes], None],
    warn: Callable[[str], None],
    begun: int = 0,
    beside: Callable[[], bool] | None = None,
) -> Finished:
    """Poll until result.json is there; return it. `process` is the leg's pid, `deadline` monotonic seconds.
    `begun`: bytes of `followed` that are known already. `beside`: called between polls while there is time;
    does a piece of something else, and says whether there was any. A lost connection is mended for it, too.

    A lost connection is mended and polling goes on: the leg is detached and does not notice. Where this
    machine slept past the deadline, what is there by then is taken all the same.
    Raises LegError (lost-leg, leg-deadline, connection-lost; as `reconnect` does), RentalOver,
    and whatever `on_data` raises.
    """
    offset, gone, late = begun, False, 0
    while True:
        late += time.monotonic() > deadline
        if late > LATE_POLLS:
            raise LegError("the leg did not end in time", code=Code.LEG_DEADLINE)
        try:
            said, data = poll(pod, leg_dir, offset, followed, process)
        except OutcomeUnknown:
            reconnect(pod, warn)
            continue
        offset += len(data)
        on_data(data)
        if said == b"done":
            if not data:
                return _fetch_result(pod, leg_dir, warn)
            continue
        if late:
            raise LegError("the leg did not end in time", code=Code.LEG_DEADLINE)
        if gone and said == b"gone":  # twice: it may have left its result just after that was looked for
            raise LegError("the leg's process is gone and left no result", code=Code.LOST_LEG)
        gone = said == b"gone"
        try:
            _pass(QUICK_SEC if gone else pace.pause(), beside)
        except OutcomeUnknown:
            reconnect(pod, warn)


def _pass(seconds: float, beside: Callable[[], bool] | None) -> None:
    """Let so many seconds pass, with something to do as long as there is any."""
    until = time.monotonic() + seconds
    while beside is not None and time.monotonic() < until and beside():
        pass
    time.sleep(max(0.0, until - time.monotonic()))


def poll(pod: Pod, leg_dir: str, offset: int, followed: str, process: int) -> tuple[bytes, bytes]:
    """How a leg is (done, gone or wait), and what is new in its file `followed` beyond `offset` bytes."""
    # The order matters: "done" is decided before the tail is read, so nothing written before the
    # result file can be missed by the read that follows.
    said = pod.run(
        [
            "sh",
            "-c",
            POLL_SCRIPT,
            "sh",
            leg_dir,
            str(offset + 1),
            followed,
            str(MAX_POLL_BYTES),
            str(process),
        ],
        timeout=60,
        max_output=MAX_POLL_BYTES + 16,
    )
    word, _, data = said.stdout.partition(b"\n")
    if word not in (b"done", b"wait", b"gone"):
        raise RemoteError("the pod answered a poll with something else", field="exit", value=said.exit)
    return word, data


def _fetch_result(pod: Pod, leg_dir: str, warn: Callable[[str], None]) -> Finished:
    path = f"{leg_dir}/result.json"
    try:
        data = retry(
            lambda _: pod.fetch(path, max_bytes=MAX_RESULT_BYTES),
            FETCH,
            on=OutcomeUnknown,
            between=lambda _: reconnect(pod, warn),
        )
    except OutcomeUnknown as error:
        reconnect(pod, warn)
        raise LegError("the result could not be fetched", code=Code.CONNECTION_LOST) from error
    try:
        written = parse_json(data, max_bytes=MAX_RESULT_BYTES)
        # Its codes go to a terminal and, with its timings, into the bundle; the pod may write anything.
        ended = Ended.model_validate_json(canonical_json(written))
    except (CanonicalError, ValidationError) as error:
        raise LegError("the result file is not one", code=Code.RESULT_MALFORMED) from error
    return Finished(ended, written.get("result"))


def on_live_connection(pod: Pod, step: Callable[[], _T], lost: Callable[[], None]) -> _T:
    """Do what is harmless to repeat: on a new connection, where the old one has died since the last leg."""

    def mend(_: OutcomeUnknown) -> None:
        lost()
        pod.reconnect()

    return retry(lambda _: step(), STEP, on=OutcomeUnknown, between=mend)


def carry(
    pod: Pod, move: Callable[[], None], *, arrived: Callable[[], int], lost: Callable[[], None]
) -> None:
    """Move a file of any size; where the connection dies on the way, go on from what arrived.

    `move` is a transfer that takes up an earlier one, `arrived` says after a try how many bytes are known to
    be there. It gives up only after tries that brought next to nothing: a pod that takes or gives one byte a
    try is not served for ever. Raises OutcomeUnknown then, and what `move` and Pod.reconnect raise.
    """
    had, fruitful = 0, 0

    def mend(_: OutcomeUnknown) -> None:
        lost()
        pod.reconnect()

    def policy() -> RetryPolicy:
        nonlocal had, fruitful
        if (now := arrived()) >= had + CARRY_GAIN:
            had, fruitful = now, fruitful + 1
        return replace(CARRY, tries=CARRY.tries + fruitful)

    retry(lambda _: move(), policy, on=OutcomeUnknown, between=mend)


def reconnect(pod: Pod, warn: Callable[[str], None]) -> None:
    """Reach the pod of a leg that goes on. Raises LegError: it cannot be reached (pod-unreachable), a
    stranger answers in its place (host-key-mismatch), it lets nobody in (login-refused); and RentalOver.
    """
    warn("connection lost; the leg goes on, reconnecting")
    try:
        retry(lambda _: pod.reconnect(), RECONNECT, on=RemoteError, unless=(RentalOver, HostKeyMismatch))
    except RentalOver:
        raise
    except RemoteError as error:
        raise LegError(
            f"the pod cannot be reached any more: {error.what}",
            code=error.code or Code.POD_UNREACHABLE,
            remedy=error.remedy,
        ) from error
