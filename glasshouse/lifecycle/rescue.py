"""What a leg sealed for its owner on a machine whose controller died, brought home before that is destroyed.

The one exception to "known ids are destroyed first". A machine gets it only where this side knows of a launch
to which the key was released and whose outputs are not at home; it answers within a minute, with the host
key that the dead controller recorded; and its events, signed by the leg's own key, say that outputs were
sealed. What comes has the SHA-256 that stands there, or is not kept. All of it takes RESCUE_SEC at most and
ends with the rental's budgeted time; then the machine is destroyed, whatever came.

Nothing here raises, and nothing waits for the thread that does it once its time is over: whoever calls goes
on to the destruction.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from glasshouse.attestation.evidence import parse_evidence
from glasshouse.errors import (
    AttestationError,
    GlasshouseError,
    HostKeyMismatch,
    LegError,
    RemoteError,
    RentalOver,
    unexpected,
)
from glasshouse.lifecycle import checkpoints, collect, disk
from glasshouse.lifecycle.arms import event_log
from glasshouse.lifecycle.follow import MAX_POLL_BYTES, EventReader, on_live_connection
from glasshouse.lifecycle.leg import Leg
from glasshouse.lifecycle.live_run import LiveRun
from glasshouse.providers.base import Provider
from glasshouse.providers.money import rental_deadline_sec
from glasshouse.remote.endpoint import Endpoint
from glasshouse.remote.pod import Pod
from glasshouse.runtime.events import FINAL_TYPES
from glasshouse.schema import Exchange, JobExit

RESCUE_SEC: Final = 300.0
ANSWER_SEC: Final = 60.0  # within which a machine has to answer, and to say that it has sealed outputs
END_SEC: Final = 20.0  # for a leg that has sealed its outputs to wipe, search, and seal its log
_CLOSE_SEC = 5.0  # of the time, for a connection that was cut to be gone
_DELAYS = (0.0, 1.0, 2.0, 4.0, 8.0)  # seconds before each try to connect


@dataclass
class Left:
    """A launch to which the key was released, and whose outputs are not at home; and what is learnt of it.

    fresh: bytes of its events beyond those at home, checked. signed: SHA-256 and size of its outputs, once
    its events say that they are sealed. points: whether they say so of a checkpoint. ended: no more events
    follow.
    """

    leg: Leg
    event_key: bytes
    grant: str
    reader: EventReader = field(default_factory=EventReader)
    fresh: bytes = b""
    signed: tuple[str | None, int] | None = None
    exit: JobExit | None = None
    points: bool = False
    ended: bool = False

    def take(self, data: bytes) -> None:
        """Check what comes next of its events. Raises LegError."""
        for event in self.reader.feed(data):
            if event.type == "sealed-outputs":
                self.signed = collect.signed_outputs(event.body)
            elif event.type == "checkpoint-sealed":
                self.points = True
            elif event.type == "trained":
                with contextlib.suppress(LegError):  # it is for a line on the screen
                    self.exit = collect.readable(event.body.get("result")).exit
            self.ended = event.type in FINAL_TYPES


def left_behind(live: LiveRun) -> list[Left]:
    """The launches of a run of which sealed outputs may lie on its machine, as far as is known here."""
    endpoint, folder = live.rental.endpoint, live.folder
    files = folder.parts if folder.parts.exists() else folder.bundle
    if endpoint is None:
        return []
    found = []
    for slot in live.run.schedule:
        for launch in itertools.count(1):
            leg = Leg(slot, launch, f"{endpoint.workdir}/{live.run.allocation}", "protected leg")
            place = files / leg.folder
            if not slot.lifecycle or not place.is_dir():
                break
            with contextlib.suppress(OSError, ValidationError, AttestationError):
                exchange = Exchange.model_validate_json((place / "exchange.json").read_bytes())
                if exchange.grant and not folder.sealed(leg.id, launch, "outputs.sealed").exists():
                    found.append(Left(leg, parse_evidence(exchange.evidence).event_key, exchange.grant))
    return found


def seconds_left(live: LiveRun) -> float:
    """How long a run's machine may still be asked: never past what was budgeted for its rental."""
    rented = live.rental.rented_at
    if rented is None:
        return RESCUE_SEC
    return min(RESCUE_SEC, rented + rental_deadline_sec(live.run.spec) - time.time())


def bring_home(live: LiveRun, provider: Provider) -> bool:
    """Fetch what a dead controller's legs had sealed, if that can be; whether any outputs came home.

    For whoever holds the run's lock and destroys its machine next. Takes no longer than `seconds_left`.
    """
    try:
        return _bring_home(live, provider)
    except Exception as error:  # noqa: BLE001  a fault of ours in it must not keep the machine
        why = error.line() if isinstance(error, GlasshouseError) else unexpected(error)
        live.screen.warn(f"sealed outputs were not looked for: {why}")
        return False


def _bring_home(live: LiveRun, provider: Provider) -> bool:
    left, endpoint, limit = left_behind(live), live.rental.endpoint, seconds_left(live)
    if not left or endpoint is None:
        return False
    if limit < 2 * _CLOSE_SEC:
        live.screen.warn("what it sealed is not fetched: the time that was budgeted for its rental is over")
        return False
    fetch = _Fetch(live, provider, endpoint, left, time.monotonic() + limit)
    fetch.start()
    fetch.join(limit)
    if fetch.is_alive():
        live.screen.warn(f"what it sealed is given up after {_in_words(limit)}")
    with contextlib.suppress(OSError):  # a full disk: the outputs are home all the same
        _keep_events(live, left)
    return fetch.home > 0


def _keep_events(live: LiveRun, left: list[Left]) -> None:
    """Join what was read of a launch's events to what its controller kept, unless the run is recorded."""
    for each in left if live.folder.parts.exists() else ():
        if each.fresh:
            log = event_log(live, each.leg)
            log.begin(each.event_key, each.grant)
            log.resume()
            log.feed(each.fresh)


class _Fetch(threading.Thread):
    """Does it; `until`: monotonic seconds, when the caller no longer waits. `home`: outputs that came."""

    def __init__(
        self, live: LiveRun, provider: Provider, endpoint: Endpoint, left: list[Left], until: float
    ) -> None:
        super().__init__(name=f"rescue-{live.run.id}", daemon=True)
        self._live, self._screen, self._provider = live, live.screen, provider
        self._endpoint, self._left = endpoint, left
        self._began, self._deadline = time.monotonic(), until - _CLOSE_SEC
        self.home = 0

    def run(self) -> None:
        """Look, fetch; say what became of it."""
        try:
            self._fetch()
        except HostKeyMismatch as error:
            self._screen.warn(f"a stranger answers in its machine's place, nothing is fetched: {error.what}")
        except RentalOver:
            self._screen.warn("its machine did not give what it sealed in time; given up")
        except GlasshouseError as error:
            self._screen.warn(f"what it sealed could not be fetched: {error.line()}")
        except Exception as error:  # noqa: BLE001  nothing in it may keep the machine
            self._screen.warn(f"what it sealed could not be fetched: {unexpected(error)}")
        finally:
            # Nobody will go on with a part: the machine is destroyed next.
            with contextlib.suppress(OSError):
                for part in self._live.folder.outputs.glob("*.part"):
                    part.unlink()

    def _fetch(self) -> None:
        live = self._live
        files = live.folder.parts if live.folder.parts.exists() else live.folder.bundle
        for each in self._left:
            events = files / each.leg.file("events.jsonl")
            each.reader.begin(each.event_key, each.grant)
            data = events.read_bytes() if events.exists() else b""
            each.take(data[: data.rfind(b"\n") + 1])
        known = any(each.signed for each in self._left)
        self._endpoint = self._provider.reopen(live.run.allocation, self._endpoint)
        look = self._deadline if known else min(self._deadline, self._began + ANSWER_SEC)
        if not known:
            self._screen.say(f"asking its machine for sealed outputs, {_in_words(ANSWER_SEC)} at most")
        with _reached(self._endpoint, look) as pod:
            for each in self._left:
                self._read(pod, each)
        sealed = [each for each in self._left if each.signed]
        points = [each for each in self._left if each.points and not each.signed]
        if not sealed:
            self._screen.say("no outputs were sealed on its machine yet")
            if not points:
                return
        limit = _in_words(max(self._deadline + _CLOSE_SEC - time.monotonic(), 0.0))
        what = "outputs" if sealed else "checkpoints"
        self._screen.say(f"its sealed {what} are fetched first, {limit} at most")
        with _reached(self._endpoint, self._deadline) as pod:
            for each in sealed:
                self._take(pod, each)
            for each in points:
                self._take_points(pod, each)

    def _read(self, pod: Pod, each: Left) -> None:
        """Read the rest of a launch's events, as far as it is written."""

        def more() -> bytes:
            return pod.fetch(path, offset=each.reader.size, max_bytes=MAX_POLL_BYTES)

        path = f"{each.leg.pod_folder}/events.jsonl"
        while True:
            data = on_live_connection(pod, more, self._lost)
            each.take(data)
            each.fresh += data
            if len(data) < MAX_POLL_BYTES:
                return

    def _take(self, pod: Pod, each: Left) -> None:
        """Fetch a launch's outputs, and its log if it has one by then."""
        live, leg = self._live, each.leg
        assert each.signed is not None
        digest, size = each.signed
        if digest is None:
            self._screen.warn("its leg signed no digest of its outputs: they are not fetched")
            return
        collect.make_room(live, pod, leg, size)
        most = min(size, disk.room(live.folder.path, last=True))
        place = collect.fetch_sealed(live, pod, leg, "outputs.sealed", max_bytes=most, sha256=digest)
        if place is None:
            self._screen.warn("its machine has no outputs where its leg said that it left them")
            return
        self.home += 1
        how = "" if each.exit is None else f"the command {each.exit.words}; "
        self._screen.say(f"{how}{_size(place)} MB of sealed outputs are home: {_open(live)}")
        try:
            self._see_end(pod, each)
            collect.fetch_sealed(live, pod, leg, "log.sealed")
        except (RemoteError, LegError) as error:
            self._screen.warn(f"its sealed log could not be fetched: {error.line()}")
        if each.points and live.run.spec.workload != "project":  # a project goes on from its outputs
            self._take_points(pod, each, most=1)

    def _take_points(self, pod: Pod, each: Left, *, most: int = 2) -> None:
        """Fetch the newest checkpoints of a launch, with the chain up to each."""
        _keep_events(self._live, [each])
        each.fresh = b""  # they stand where they belong by now
        for signed in checkpoints.fetch(self._live.folder, self._screen, pod, each.leg, most=most):
            if signed.kind == "checkpoint":
                self._screen.say(checkpoints.checkpoint_line(signed))

    def _see_end(self, pod: Pod, each: Left) -> None:
        """Wait until the leg has ended: its log is sealed last."""
        until = min(self._deadline - _CLOSE_SEC, time.monotonic() + END_SEC)
        while not each.ended and time.monotonic() < until:
            time.sleep(0.2)
            self._read(pod, each)
        while not pod.exists(f"{each.leg.pod_folder}/result.json") and time.monotonic() < until:
            time.sleep(0.2)

    def _lost(self) -> None:
        self._screen.warn("the connection to its machine was lost; reconnecting")


@contextmanager
def _reached(endpoint: Endpoint, deadline: float) -> Iterator[Pod]:
    """A pod that answers; nothing is done there past `deadline` (monotonic seconds)."""
    pod = Pod(endpoint, deadline=deadline)
    try:
        pod.reconnect(_DELAYS)
        yield pod
    finally:
        pod.close()


def _in_words(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 60 else f"{math.ceil(seconds / 60)} min"


def _size(place: Path) -> str:
    return f"{place.stat().st_size / 1e6:.1f}"


def _open(live: LiveRun) -> str:
    return f"glasshouse open {live.folder.path}"
