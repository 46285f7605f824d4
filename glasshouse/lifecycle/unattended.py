"""A job that goes on without its controller: until when, and how whoever comes back takes it up.

A leg is detached, and needs nobody once it has the key. So the machine of a private job may run on where its
controller was killed or its computer is away (`model.unattended=finish`), to the job's end or its ceiling;
the journal says until when, from before the create. Who comes back (`reap`, the watchdog) asks the machine
first: what the leg signed is checked and countersigned then, as it would have been all along; once it has
ended, what it sealed comes home, and the launch is written down as its controller would have done it.

A launch that never got the key waits for its controller in vain: such a run is given back at once, as before.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from pydantic import ValidationError

from glasshouse.attestation.evidence import parse_evidence
from glasshouse.canonical import CanonicalError, parse_json
from glasshouse.codes import Code
from glasshouse.errors import (
    AttestationError,
    GlasshouseError,
    LegError,
    OutcomeUnknown,
    ProviderError,
    RemoteError,
    RentalOver,
    UsageError,
)
from glasshouse.lifecycle import arms, checkpoints, collect
from glasshouse.lifecycle.end_wait import EndWait
from glasshouse.lifecycle.follow import (
    MAX_POLL_BYTES,
    Event,
    EventLog,
    Pace,
    follow,
    on_live_connection,
    poll,
)
from glasshouse.lifecycle.goes_on import clock
from glasshouse.lifecycle.leg import Leg, Notes
from glasshouse.lifecycle.live_run import LeftWaiting, LiveRun
from glasshouse.lifecycle.slots import launch_file
from glasshouse.providers.base import Provider
from glasshouse.providers.cloud import Cloud
from glasshouse.providers.cloud_release import is_ours
from glasshouse.records import keys
from glasshouse.records.keys import atomic_write
from glasshouse.remote.pod import Pod
from glasshouse.runtime import params
from glasshouse.schema import Exchange, Launch
from glasshouse.spec import CloudProvider

STOP_FILE: Final = "stop"  # of a run folder: somebody asked for its end, with the word in it
ANSWER_SEC: Final = 60.0  # within which a machine has to answer whoever only looks
FETCH_SEC: Final = 600.0  # for the checkpoints of one that goes on, for whoever only looks
ABSENT_SEC: Final = 60.0  # so long, and in as many looks, a list has to lack a machine that is gone
ABSENT_LOOKS: Final = 3
KEYLESS_SEC: Final = 2.0  # between two looks of whoever can only wait
WAITS: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0)  # seconds between rounds of tries to reach a machine
_FRESH_SEC = 180.0  # what was found longer ago is no longer "in a row"
_DELAYS = (0.0, 1.0, 2.0, 4.0, 8.0)

Wish = Literal["", "end", "now"]


# --- the controller itself: a computer that slept, a network that is away -----------------------


class Patience:
    """Whether a machine that does not answer is tried again: until the job's time is over, or it is gone, or
    taken away.

    For Pod's `insist`. It waits before it says yes, so its provider is asked no more often than WAITS says.
    """

    def __init__(self, live: LiveRun, provider: Provider) -> None:
        self._live, self._provider = live, provider
        self._absence = Absence(live, provider)
        self._rounds, self._at = 0, 0.0

    def __call__(self, error: RemoteError) -> bool:
        """Wait a while and say yes; no where it is over. Raises KeyboardInterrupt where a sweep is to end."""
        live, until = self._live, self._live.rental.unattended_until
        live.check_stopped()
        if time.monotonic() - self._at > _FRESH_SEC:
            self._rounds = 0
            self._absence.over()
        if live.ending.failures or time.time() >= until:
            return False
        if self._absence.shown():
            live.screen.warn(f"{live.run.spec.provider.kind} lists its machine no more")
            return False
        if self._taken_away():
            live.screen.warn(f"{live.run.spec.provider.kind} says that it took its machine away")
            return False
        said = f"its machine does not answer ({error.what}); trying again until {clock(until)}"
        if self._rounds == 0:
            live.screen.warn(f"{said}. The job goes on there; Ctrl-C ends it")
        live.screen.progress(said)
        time.sleep(WAITS[min(self._rounds, len(WAITS) - 1)])
        self._rounds += 1
        self._at = time.monotonic()
        return True

    def _taken_away(self) -> bool:
        """Whether its provider has an interruptible machine still, and says that it is stopped.

        Only of one that is listed: a look-up that lacks it can have a gap as a list can.
        """
        run, cloud = self._live.run, self._provider
        if not (isinstance(cloud, Cloud) and isinstance(run.spec.provider, CloudProvider)):
            return False
        return run.spec.provider.interruptible and self._absence.listed and cloud.taken_away(run.allocation)


def patience(live: LiveRun, provider: Provider) -> Patience | None:
    """What a controller's connection insists with; None where it gives up after its usual tries.

    The server of provider=local is part of the controller: where that does not answer, waiting helps nobody.
    """
    return Patience(live, provider) if live.rental.unattended_until and provider.kind != "local" else None


class Absence:
    """Whether a machine that does not answer is gone, by the provider's list. One list can have a gap."""

    def __init__(self, live: LiveRun, provider: Provider) -> None:
        self._live, self._provider = live, provider
        self._looks, self._since = 0, 0.0
        self.listed = False  # whether the newest list could be had, and had it

    def over(self) -> None:
        """It answered, or nobody looked for long: what was found before counts no more."""
        self._looks = 0

    @property
    def suspected(self) -> bool:
        """Whether the newest list lacked it."""
        return self._looks > 0

    def shown(self) -> bool:
        """Look once more. False where the provider cannot be asked, or rents nothing."""
        if not self._gone():
            self._looks = 0
            return False
        if self._looks == 0:
            self._since = time.monotonic()
        self._looks += 1
        return self._looks >= ABSENT_LOOKS and time.monotonic() - self._since >= ABSENT_SEC

    def _gone(self) -> bool:
        self.listed = False
        if not isinstance(self._provider, Cloud):
            return False
        try:
            found = self._provider.find_ours()
        except GlasshouseError:
            return False
        self.listed = any(is_ours(machine.name, self._live.run.allocation) for machine in found)
        return not self.listed


# --- whoever comes back -----------------------------------------------------------------------


def wait_without_keys(live: LiveRun, over: Callable[[], bool]) -> None:
    """Where this process cannot open the operator's key, and nobody is there to type its passphrase, heads
    cannot be countersigned: leave a job alone until its time is over, or `over`. Holds no lock meanwhile,
    so that whoever can open it takes the job up.
    """
    until = live.rental.unattended_until
    if live.ending.failures or _job(live) is None:
        return  # as `take_up` does not: it cannot come to an end
    try:
        keys.operator_key()
    except UsageError as error:
        if time.time() < until:
            why = f"{error.line()}. Its job goes on without anybody, until {clock(until)} at most"
            live.screen.warn(f"{why}: `glasshouse reap` at a terminal takes it up")
        while time.time() < until and asked(live.folder.path) != "now" and not over():
            time.sleep(KEYLESS_SEC)


def ask_stop(folder: Path, wish: Wish) -> None:
    """Ask whoever follows the run in `folder`, now or later, for its end. Raises OSError."""
    atomic_write(folder / STOP_FILE, wish.encode())


def asked(folder: Path) -> Wish:
    """What was asked for."""
    try:
        said = (folder / STOP_FILE).read_bytes()
    except OSError:
        return ""
    return "now" if said == b"now" else "end"


@dataclass(frozen=True)
class Taken:
    """What became of a dead controller's job. goes_on: it is left alone; `why` says how it stands. over: its
    launch came to an end, which is written down, with what it left. Neither: nobody can bring it to one.
    gone: it is over since its provider lists its machine no more.
    """

    goes_on: bool = False
    over: bool = False
    why: str = ""
    gone: bool = False


NOTHING = Taken()


@dataclass(frozen=True)
class _Job:
    """The launch to take up: what is known of it here."""

    leg: Leg
    process: int
    notes: Notes
    started_at: float
    exchange: Exchange
    manifest_hash: str


def take_up(live: LiveRun, provider: Provider, until: float, *, stay: bool) -> Taken:
    """Take up the job of a dead controller. `until`: until when it may run, in Unix seconds; 0.0: not at all.

    `stay`: follow it to its end; otherwise look, and come back with what there is. The caller holds the run's
    lock. Nothing is released here.
    """
    wish = asked(live.folder.path)
    if live.ending.failures or wish == "now":
        return NOTHING  # its controller had begun to end it, or somebody does
    if _written(live):
        return Taken(over=True)
    if time.time() >= until:
        return NOTHING
    job = _job(live)
    if job is None:
        return NOTHING
    follower = _Follower(live, provider, job, until)
    return follower.stay() if stay else follower.look()


def _written(live: LiveRun) -> bool:
    """Whether every slot's launch is complete, and what it left is at home: the release alone was missing."""
    for slot in live.run.schedule:
        if not any(each.slot == slot.index and each.status == "complete" for each in _launches(live)):
            return False
    return True


def _launches(live: LiveRun) -> Iterator[Launch]:
    for path in sorted(live.folder.parts.glob("legs/*/launch.json")):
        with contextlib.suppress(OSError, ValidationError):
            yield Launch.model_validate_json(path.read_bytes())


def _job(live: LiveRun) -> _Job | None:
    """The run's newest launch, if the key was released to it and nobody wrote down how it ended."""
    endpoint, saved = live.rental.endpoint, live.rental.launched
    if endpoint is None or saved is None or saved.slot >= len(live.run.schedule):
        return None
    slot = live.run.schedule[saved.slot]
    leg = Leg(slot, saved.launch, f"{endpoint.workdir}/{live.run.allocation}", "protected leg")
    place = live.folder.parts / leg.folder
    if (place / "launch.json").exists():
        return None
    try:
        exchange = Exchange.model_validate_json((place / "exchange.json").read_bytes())
        reference = parse_json((place / "reference.json").read_bytes())
        if not exchange.grant:
            return None
        parse_evidence(exchange.evidence)
        manifest_hash = str(reference["manifest_hash"])
    except (OSError, ValidationError, AttestationError, CanonicalError, KeyError, TypeError):
        return None
    return _Job(leg, saved.process, Notes(dict(saved.timings)), saved.started_at, exchange, manifest_hash)


class _Follower:
    """Follows the leg of a dead controller as that would have."""

    def __init__(self, live: LiveRun, provider: Provider, job: _Job, until: float) -> None:
        self._live, self._provider, self._job, self._until = live, provider, job, until
        self._log: EventLog | None = None
        self._asked = False
        self._since = 0.0

    def look(self) -> Taken:
        """Ask its machine how it stands; finish it where it has ended, or somebody asked for that."""
        try:
            with contextlib.closing(self._reached(ANSWER_SEC)) as pod, _answering(pod):
                goes_on = not self._stop_wish(pod) and self._goes_on(pod)
            if goes_on:
                self._bring_checkpoints()
                return Taken(goes_on=True, why="its job goes on")
            with contextlib.closing(self._reached(self._until - time.time())) as pod:
                return self._to_the_end(pod)
        except RentalOver:
            return self._unreached("it did not answer in time", look=True)
        except LegError as error:
            return self._failed(error)
        except LeftWaiting as error:
            return self._waits(error)
        except ProviderError as error:
            return self._unreached(error.what, look=True)

    def _waits(self, error: LeftWaiting) -> Taken:
        """There is no room here for its outputs: they wait, unless somebody wants the end of it."""
        if asked(self._live.folder.path):
            return self._failed(LegError(error.what.partition(": they")[0], code=Code.NO_ROOM_AT_HOME))
        return Taken(goes_on=True, why=f"{error.what.partition(': they')[0]}; make room and reap again")

    def _absent(self) -> bool:
        """Whether its provider lists its machine no more, looked at for a while."""
        absence = Absence(self._live, self._provider)
        while not absence.shown():
            if not absence.suspected or asked(self._live.folder.path):
                return False
            self._live.screen.progress(f"{self._provider.kind} does not list its machine; looking again")
            time.sleep(ABSENT_SEC / ABSENT_LOOKS)
        return True

    def _bring_checkpoints(self) -> None:
        with contextlib.suppress(ProviderError):  # whoever comes next goes on with it
            limit = min(FETCH_SEC, self._until - time.time())
            with contextlib.closing(self._reached(limit)) as pod:
                arms.bring_checkpoints(self._live, pod, self._job.leg)

    def _goes_on(self, pod: Pod) -> bool:
        """Whether the leg has not ended; what it has said so far is taken."""
        while True:
            at, folder = self._opened().size, self._job.leg.pod_folder
            said, data = poll(pod, folder, at, "events.jsonl", self._job.process)
            self._take(data)
            if len(data) < MAX_POLL_BYTES:
                return said == b"wait"

    def stay(self) -> Taken:
        """Follow it to its end, however long its machine cannot be reached meanwhile."""
        screen, lost, absence = self._live.screen, 0, Absence(self._live, self._provider)
        screen.say(f"the controller is gone; its job is followed, until {clock(self._until)} at most")
        while time.time() < self._until:
            try:
                with contextlib.closing(self._reached(self._until - time.time())) as pod:
                    lost = 0
                    absence.over()
                    return self._to_the_end(pod)
            except RentalOver:
                break
            except LeftWaiting as error:
                return self._waits(error)
            except LegError as error:
                if not _unreachable(error):
                    return self._failed(error)
                why = error.what
            except ProviderError as error:
                why = error.what
            if absence.shown():
                return self._lost()
            if lost == 0:
                screen.warn(f"its machine does not answer ({why}); trying again until {clock(self._until)}")
            pause = time.monotonic() + WAITS[min(lost, len(WAITS) - 1)]
            lost += 1
            while time.monotonic() < pause:
                if asked(self._live.folder.path):
                    return self._unreached(why)
                time.sleep(0.2)
        screen.warn("its time is over")
        return NOTHING

    def _reached(self, seconds: float) -> Pod:
        """A connection to its machine, on which nothing is done after so many seconds. Raises RemoteError."""
        endpoint = self._live.rental.endpoint
        assert endpoint is not None
        if not self._since:
            self._since = time.time()
            endpoint = self._provider.reopen(self._live.run.allocation, endpoint)
            self._live.rental.endpoint = endpoint
        pod = Pod(endpoint, deadline=time.monotonic() + max(seconds, 0.0))
        try:
            pod.reconnect(_DELAYS)
        except BaseException:
            pod.close()
            raise
        return pod

    def _opened(self) -> EventLog:
        if self._log is None:
            exchange = self._job.exchange
            self._log = arms.event_log(self._live, self._job.leg)
            self._log.begin(parse_evidence(exchange.evidence).event_key, exchange.grant or "")
            self._log.resume()
        return self._log

    def _take(self, data: bytes) -> list[Event]:
        return self._opened().feed(data)

    def _to_the_end(self, pod: Pod) -> Taken:
        """Follow it to its end, fetch what it left, write the launch down. Raises LegError, RemoteError."""
        with _answering(pod):
            return self._followed(pod)

    def _followed(self, pod: Pod) -> Taken:
        live, leg, log = self._live, self._job.leg, self._opened()
        # Those of which its controller, or a look, knew already; none in the room that outputs need.
        arms.bring_checkpoints(live, pod, leg, most=0 if collect.outputs_left(live, leg) else 2)
        inflow = checkpoints.Inflow(live.folder, live.screen, pod, leg)
        ending: EndWait | None = None

        def take(data: bytes) -> None:
            nonlocal ending
            events = self._take(data)
            for event in events:
                inflow.heard(event)
            if self._stop_wish(pod) and ending is None:
                ending = EndWait(time.monotonic())
            if ending is not None:
                ending.heard([event.type for event in events], time.monotonic())

        with arms.outputs_kept(live, pod, leg):
            finished = follow(
                pod,
                leg.pod_folder,
                process=self._job.process,
                followed="events.jsonl",
                pace=Pace(live.run.spec.measure.head_interval_sec, None),
                deadline=time.monotonic() + max(self._until - time.time(), 0.0),
                on_data=take,
                begun=log.size,
                beside=inflow.step,
                warn=live.screen.warn,
            )
            live.screen.say("its leg has ended; fetching what it left")
            arms.take_home(live, pod, leg, self._job.notes, log=log, ended=finished.ended)
        result = collect.trained(live.folder.parts / leg.file("events.jsonl"))
        if result.exit is not None:
            collect.tell_end(live, self._job, leg, result.exit)
        self._write(None)
        return Taken(over=True, why=_home(live, leg))

    def _failed(self, error: LegError) -> Taken:
        """It came to an end that is none of a job's: what it had sealed is looked for by whoever called."""
        self._live.screen.warn(f"{self._job.leg.label}: {error.line()}")
        self._write(error.code or Code.LEG_FAILED)
        return Taken(over=True, why=error.what)

    def _write(self, code: Code | None) -> None:
        live, job, now = self._live, self._job, time.time()
        if asked(live.folder.path):
            live.fail(Code.INTERRUPTED)
        live.ending.taken_up_at = self._since
        job.notes.timings["totalSec"] = max(now - job.started_at, 0.0)
        written = launch_file(job.leg, code, job.notes, job.started_at, now)
        live.folder.write(job.leg.file("launch.json"), written)

    def _lost(self) -> Taken:
        gone = "the provider lists its machine no more"
        return replace(self._failed(LegError(gone, code=Code.POD_UNREACHABLE)), gone=True)

    def _unreached(self, why: str, *, look: bool = False) -> Taken:
        """Its machine gave no answer: it may go on there, unless somebody wants its end, or it is gone.

        `look`: ask its provider whether it is.
        """
        if asked(self._live.folder.path):
            return NOTHING
        if look and self._absent():
            return self._lost()
        return Taken(goes_on=True, why=f"its machine does not answer: {why}")

    def _stop_wish(self, pod: Pod) -> bool:
        """Whether somebody asked for its end; the job is told once. Raises LegError for one at once."""
        wish = asked(self._live.folder.path)
        if wish == "now":
            raise LegError("it was to end at once", code=Code.INTERRUPTED)
        if wish and not self._asked:
            self._live.screen.warn(
                f"asking the command to end; it has {params.GRACE_SEC:.0f} s to save what it has"
            )
            ask = ["touch", f"{self._job.leg.pod_folder}/{params.END_FILE}"]
            on_live_connection(pod, lambda: pod.check(ask, "asking the job to end"), lambda: None)
            self._asked = True
        return bool(wish)


@contextmanager
def _answering(pod: Pod) -> Iterator[None]:
    """What a machine that can be reached answers wrongly is its own end of it: LegError (pod-refused)."""
    try:
        yield
    except (OutcomeUnknown, RentalOver):
        raise
    except RemoteError as error:
        if not pod.connected:
            raise
        raise LegError(error.what, code=error.code or Code.POD_REFUSED, remedy=error.remedy) from error


def _unreachable(error: LegError) -> bool:
    """Whether an error says of the machine only that it cannot be reached now."""
    away = (Code.POD_UNREACHABLE, Code.CONNECTION_LOST, Code.HOST_KEY_MISMATCH, Code.LOGIN_REFUSED)
    return error.code in away


def _home(live: LiveRun, leg: Leg) -> str:
    outputs = live.folder.sealed(leg.id, leg.launch, "outputs.sealed")
    return f"its outputs are at home: glasshouse open {live.run.id}" if outputs.exists() else ""
