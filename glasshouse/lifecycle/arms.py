"""The two arms of a slot: launch a leg on the pod, follow it to its end, collect what it leaves."""

from __future__ import annotations

import contextlib
import re
import signal
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from glasshouse.attestation.evidence import parse_evidence
from glasshouse.attestation.forwards import opening_line
from glasshouse.canonical import parse_json
from glasshouse.codes import Code
from glasshouse.errors import LegError, NoRoom, OutcomeUnknown, RemoteError
from glasshouse.lifecycle import checkpoints, collect
from glasshouse.lifecycle.ceiling import Ceiling
from glasshouse.lifecycle.end_wait import EndWait
from glasshouse.lifecycle.follow import EventLog, Finished, Pace, follow, on_live_connection
from glasshouse.lifecycle.interrupts import once_more
from glasshouse.lifecycle.leg import (
    Leg,
    Notes,
    leg_deadline_sec,
    protected_params,
    raw_params,
    reference,
    returns_outputs,
)
from glasshouse.lifecycle.leg_display import LegProgress, result_line
from glasshouse.lifecycle.live_run import LeftWaiting, LiveRun
from glasshouse.lifecycle.run_folder import SavedLaunch
from glasshouse.lifecycle.setup import Ready
from glasshouse.records import keys
from glasshouse.remote.channel import disk_full
from glasshouse.remote.pod import Pod
from glasshouse.runtime import params
from glasshouse.schema import Ended, Result
from glasshouse.sealing.memory import overwrite

_T = TypeVar("_T")
POD_TIMINGS = ("attestSec", "unsealSec", "sealOutputsSec", "zeroizeSec")  # what only the pod can time
RAW_TIMINGS = ("unsealSec",)
LEFT_SEC = 30.0  # beyond the pod's own deadline, so that its reason wins over ours
_PID = re.compile(rb'\{"pid": ([1-9][0-9]{0,9})\}\n')  # what runtime/entry.py answers
_REMOVE = 'rm -rf -- "$1"; test ! -e "$1"'


def protected(live: LiveRun, ready: Ready, leg: Leg, notes: Notes) -> Result:
    """A leg with the lifecycle: ticket, launch, events and heads as they come, sealed outputs, result."""
    job = live.run.spec.job
    pace, shown = _pace(live, leg), LegProgress(live.screen, leg.slot, leg.label, job=job)
    if leg.launch == 1 and ready.timings:
        # Sealing and uploading happen once a run; they are booked on its first protected launch.
        notes.timings.update(ready.timings)
        ready.timings.clear()
    expected = reference(live, ready, leg)
    live.folder.write_json(leg.file("reference.json"), expected.to_dict())
    ticket = ready.broker.issue_ticket(expected, live.run.spec.policy)
    log = event_log(live, leg)
    with outputs_kept(live, ready.pod, leg):
        ended, interrupted = _launched(
            live, ready, leg, notes, ticket=ticket, log=log, pace=pace, shown=shown
        )
        take_home(live, ready.pod, leg, notes, log=log, ended=ended)
    result = collect.trained(live.folder.parts / leg.file("events.jsonl"))
    if result.exit is not None:
        collect.tell_end(live, ready, leg, result.exit)
    if interrupted:
        live.screen.say(result_line(result))
        raise KeyboardInterrupt  # what it had is home; the run is excluded all the same
    return result


def take_home(live: LiveRun, pod: Pod, leg: Leg, notes: Notes, *, log: EventLog, ended: Ended) -> None:
    """Bring home what a protected leg that has ended left. Raises LegError where it failed."""
    notes.reason_codes |= set(ended.reason_codes)
    notes.timings.update({name: ended.timings[name] for name in POD_TIMINGS if name in ended.timings})
    if ended.status != "complete":
        raise collect.failed(live, pod, leg, ended)
    if (ended.events_head, ended.event_count) != (log.head, log.count):
        raise LegError("the events fetched are not all there were", code=Code.EVENT_CHAIN_BROKEN)
    if returns_outputs(live, leg.slot):
        began = time.monotonic()
        collect.fetch_outputs(live, pod, leg)
        notes.timings["fetchSec"] = time.monotonic() - began
        bring_last(live, pod, leg)
    else:
        collect.leave_outputs(live, pod, leg)


def _launched(
    live: LiveRun,
    ready: Ready,
    leg: Leg,
    notes: Notes,
    *,
    ticket: bytes,
    log: EventLog,
    pace: Pace,
    shown: LegProgress,
) -> tuple[Ended, bool]:
    """Launch a protected leg and follow it to its end; whether a job was asked for that end."""
    try:
        with contextlib.ExitStack() as until:
            forward, opening = ready.pod.forward_remote, opening_line(ticket)
            port = _on_live(
                live, ready, leg, lambda: until.enter_context(forward(ready.broker_port, opening))
            )
            given = protected_params(live, ready, leg, ticket=ticket, broker_port=port)
            process = _start(ready, leg, given, notes)
            _note(live, leg, process, notes)
            inflow = checkpoints.Inflow(live.folder, live.screen, ready.pod, leg)
            ceiling = Ceiling(live.screen, live.run.spec, given.job_sec)
            take = _events(
                live, ready, leg, notes, log=log, pace=pace, shown=shown, inflow=inflow, ceiling=ceiling
            )
            try:
                finished = _followed(
                    live,
                    ready,
                    leg,
                    "events.jsonl",
                    process=process,
                    pace=pace,
                    take=_while_going_on(live, take),
                    beside=inflow.step,
                )
                return finished.ended, False
            except KeyboardInterrupt:
                ceiling.settled()
                if not ((given.job or given.private) and log.open):
                    raise
                live.fail(Code.INTERRUPTED)  # at once: whoever comes after this process is to know
                return _let_end(live, ready, leg, log, process=process, pace=pace, take=take), True
    finally:
        collect.keep_exchange(live, leg, collect.exchange(live, ready, leg), notes)


@contextlib.contextmanager
def outputs_kept(live: LiveRun, pod: Pod, leg: Leg) -> Iterator[None]:
    """Whatever ends what goes on inside, Ctrl-C too: outputs that the leg had sealed by then come home.

    Raises LeftWaiting where there is no room for them here, and they may wait.
    """
    try:
        yield
    except NoRoom as error:
        if live.rental.unattended_until > time.time() and not live.ending.failures:
            raise LeftWaiting(error, live) from error
        with contextlib.suppress(RemoteError, OSError):
            collect.fetch_sealed(live, pod, leg, "log.sealed")
        raise
    except BaseException:
        if collect.outputs_left(live, leg):
            live.screen.warn(f"{leg.label}: its outputs were sealed before that; fetching them")
            try:
                collect.fetch_outputs(live, pod, leg)
            except (RemoteError, OSError) as error:
                why = error.line() if isinstance(error, RemoteError) else str(error.strerror)
                live.screen.warn(f"{leg.label}: its sealed outputs could not be fetched: {why}")
            else:
                live.screen.say(f"they are sealed for you: glasshouse open {live.folder.path}")
                bring_last(live, pod, leg)
        else:
            bring_checkpoints(live, pod, leg)
        raise


def bring_last(live: LiveRun, pod: Pod, leg: Leg) -> None:
    """Bring home the records of a leg whose outputs are here, and of a session its newest checkpoint: a
    project goes on from its outputs, a session does not.
    """
    bring_checkpoints(live, pod, leg, most=0 if live.run.spec.workload == "project" else 1)


def bring_checkpoints(live: LiveRun, pod: Pod, leg: Leg, *, most: int = 2) -> None:
    """Bring home what a leg sealed while it went on and is not here yet, of checkpoints the `most` newest;
    say so where it cannot be.
    """
    try:
        home = checkpoints.fetch(live.folder, live.screen, pod, leg, most=most)
    except (RemoteError, OSError) as error:
        why = error.line() if isinstance(error, RemoteError) else str(error.strerror)
        live.screen.warn(f"{leg.label}: what it sealed while it went on could not all be fetched: {why}")
    else:
        for signed in home:
            if signed.kind == "checkpoint":
                live.screen.say(checkpoints.checkpoint_line(signed))


def raw(live: LiveRun, ready: Ready, leg: Leg, notes: Notes) -> Result:
    """A leg in the clear: launch, progress as it comes, result; what it wrote is removed in any case."""
    pace, shown = _pace(live, leg), LegProgress(live.screen, leg.slot, leg.label)
    # A launch is not repeated: whether the connection died since the last leg is found out before.
    _on_live(live, ready, leg, lambda: ready.pod.check(["true"], "looking for the pod"))
    process = _start(ready, leg, raw_params(live, ready, leg), notes)
    try:
        take = _reports(pace, shown)
        following = _while_going_on(live, take)
        finished = _followed(live, ready, leg, "progress.jsonl", process=process, pace=pace, take=following)
    finally:
        with contextlib.suppress(RemoteError):
            removed = ready.pod.run(["sh", "-c", _REMOVE, "sh", leg.raw_folder])
            notes.raw_files_removed = removed.exit == 0
    timings = finished.ended.timings
    notes.timings.update({name: timings[name] for name in RAW_TIMINGS if name in timings})
    if finished.ended.status != "complete":
        raise collect.failed(live, ready.pod, leg, finished.ended)
    if not notes.raw_files_removed:
        raise LegError("the raw leg's files could not be removed", code=Code.RAW_FILES_LEFT)
    result = collect.readable(finished.raw_result)
    # As the pod wrote it, also what is in it beyond what is judged.
    live.folder.write_json(leg.file("result.json"), finished.raw_result)
    return result


def _on_live(live: LiveRun, ready: Ready, leg: Leg, step: Callable[[], _T]) -> _T:
    lost = f"{leg.label}: connection lost before its launch; reconnecting"
    return on_live_connection(ready.pod, step, lambda: live.screen.warn(lost))


def _start(ready: Ready, leg: Leg, given: params.LaunchParams, notes: Notes) -> int:
    """Launch the leg; the pid of its process on the pod, which runs on by itself."""
    began = time.monotonic()
    argv = [ready.python, "-I", ready.archive, "launch", leg.pod_folder]
    try:
        # Ticket and key travel on stdin: never argv, never the environment, never a file.
        said = ready.pod.run(argv, input=params.write_launch(given), timeout=60)
    except OutcomeUnknown as error:
        raise LegError("the connection died while launching", code=Code.START_UNKNOWN) from error
    finally:
        overwrite(given.secret)
    told = _PID.fullmatch(said.stdout)
    if said.exit != 0 or told is None:
        why = said.stderr.decode("utf-8", "replace")
        raise LegError(
            "the runtime did not start on the pod", code=disk_full(why) or Code.RUNTIME_NOT_STARTED
        )
    notes.timings["startSec"] = time.monotonic() - began
    return int(told[1])


def _note(live: LiveRun, leg: Leg, process: int, notes: Notes) -> None:
    """Keep what another process needs to follow this launch, should this one die."""
    live.rental.launched = SavedLaunch(
        slot=leg.slot.index,
        launch=leg.launch,
        process=process,
        started_at=round(time.time(), 3),
        timings={name: round(value, 6) for name, value in notes.timings.items()},
    )
    live.save()


def _followed(
    live: LiveRun,
    ready: Ready,
    leg: Leg,
    followed: str,
    *,
    process: int,
    pace: Pace,
    take: Callable[[bytes], None],
    begun: int = 0,
    beside: Callable[[], bool] | None = None,
) -> Finished:
    return follow(
        ready.pod,
        leg.pod_folder,
        process=process,
        followed=followed,
        pace=pace,
        deadline=time.monotonic() + leg_deadline_sec(live, leg.slot) + LEFT_SEC,
        on_data=take,
        begun=begun,
        beside=beside,
        warn=live.screen.warn,
    )


def _let_end(
    live: LiveRun,
    ready: Ready,
    leg: Leg,
    log: EventLog,
    *,
    process: int,
    pace: Pace,
    take: Callable[[bytes], list[str]],
) -> Ended:
    """Ask a job to end, with a moment to save what it has; wait until it did and its outputs are sealed.

    Raises KeyboardInterrupt where nothing comes of that: for a further one, or where the leg does not end.
    """
    moment = f"asking the command to end; it has {params.GRACE_SEC:.0f} s to save what it has, and then"
    if live.run.spec.workload != "project":
        moment = "asking it to end with the unit of work that it is at; then"
    said = (
        f"{leg.label}: {moment} its outputs are fetched. Once more ends that at once, and what it has is lost"
    )
    ask = ["touch", f"{leg.pod_folder}/{params.END_FILE}"]
    ending = EndWait(time.monotonic())

    def asked(data: bytes) -> None:
        ending.heard(take(data), time.monotonic())

    try:
        with once_more():
            live.screen.warn(said)
            _on_live(live, ready, leg, lambda: ready.pod.check(ask, "asking the job to end"))
            return _followed(
                live, ready, leg, "events.jsonl", process=process, pace=pace, take=asked, begun=log.size
            ).ended
    except KeyboardInterrupt:
        live.screen.warn(f"{leg.label}: not waiting for it; what was not sealed by now is lost")
        raise
    except (LegError, RemoteError) as error:
        live.fail(error.code or Code.LEG_FAILED)
        live.screen.warn(f"{leg.label}: {error.line()}; what was not sealed by now is lost")
        raise KeyboardInterrupt from error


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back from this thread for a moment."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _while_going_on(live: LiveRun, take: Callable[[bytes], object]) -> Callable[[bytes], None]:
    """Take what a poll brought, unless the run's sweep is to end."""

    def asked(data: bytes) -> None:
        live.check_stopped()
        take(data)

    return asked


def _pace(live: LiveRun, leg: Leg) -> Pace:
    slot = leg.slot
    quiet = None if slot.measured_sec is None else slot.warmup_sec + slot.measured_sec
    return Pace(live.run.spec.measure.head_interval_sec, quiet)


def event_log(live: LiveRun, leg: Leg) -> EventLog:
    """Where the events of a launch are kept, and their heads signed."""
    return EventLog(
        live.folder.parts / leg.folder,
        keys.operator_key(),
        run=live.run.id,
        leg=leg.id,
        launch=leg.launch,
        interval=live.run.spec.measure.head_interval_sec,
        thinned=live.run.spec.payload == "private",
    )


def _events(
    live: LiveRun,
    ready: Ready,
    leg: Leg,
    notes: Notes,
    *,
    log: EventLog,
    pace: Pace,
    shown: LegProgress,
    inflow: checkpoints.Inflow,
    ceiling: Ceiling,
) -> Callable[[bytes], list[str]]:
    """What takes a protected leg's events: checks and keeps them once the grant is known, and shows them.

    It returns their types.
    """

    def take(data: bytes) -> list[str]:
        if not log.open and data:
            exchange = collect.exchange(live, ready, leg)
            if exchange is not None and exchange.grant:
                log.begin(parse_evidence(exchange.evidence).event_key, exchange.grant)
                # At once: events without their exchange are worth nothing if this process dies now.
                collect.keep_exchange(live, leg, exchange, notes)
        with _uninterrupted():  # half an event taken would look like a broken chain to whoever goes on
            events = log.feed(data)
        for event in events:
            pace.heard(event.type)
            inflow.heard(event)
            shown.show(event.type, event.body)
            if event.type == "progress":
                ceiling.heard(event.body)
        ceiling.answered()
        return [event.type for event in events]

    return take


def _reports(pace: Pace, shown: LegProgress) -> Callable[[bytes], None]:
    """What takes a raw leg's progress reports: shows them."""

    def take(data: bytes) -> None:
        for line in data.splitlines():
            with contextlib.suppress(ValueError):
                report = parse_json(line)
                pace.heard("progress")
                shown.show("progress", report)
        if not data:
            shown.show()

    return take
