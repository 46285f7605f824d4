"""One slot of the schedule: as many launches as it takes, each with its launch.json.

Every launch, also a refused or failed one, leaves a folder in the bundle.
"""

from __future__ import annotations

import contextlib
import time

from glasshouse.codes import Code
from glasshouse.errors import GlasshouseError, LegError, OutcomeUnknown, RemoteError, RentalOver
from glasshouse.lifecycle import arms
from glasshouse.lifecycle.leg import Leg, Notes
from glasshouse.lifecycle.live_run import LeftWaiting, LiveRun
from glasshouse.lifecycle.setup import Ready
from glasshouse.retry import RetryPolicy, retry
from glasshouse.schema import Launch, Result, Slot

TRANSPORT_CODES = frozenset({Code.BROKER_UNREACHABLE, Code.MALFORMED_ANSWER, Code.START_UNKNOWN})


class TransportFailed(LegError):
    """A launch of which only the transport failed: a new one, with a new ticket, may go well."""


def run_slot(live: LiveRun, ready: Ready, slot: Slot, label: str) -> Result:
    """Run one slot, with new launches where only the transport failed; return its leg's result.

    Raises LegError with the last launch's reason code, and RentalOver.
    """

    def launch(number: int) -> Result:
        if time.monotonic() >= live.rental.deadline:
            raise RentalOver
        return launched(live, ready, Leg(slot, number, ready.root, label))

    def reconnect(error: TransportFailed) -> None:
        live.screen.warn(f"{label}: {error.code}; launching once more with a new ticket")
        with contextlib.suppress(RemoteError):
            ready.pod.reconnect()

    retries = live.run.spec.policy.launch_retries if slot.lifecycle else 0
    return retry(launch, RetryPolicy(tries=1 + retries), on=TransportFailed, between=reconnect)


def launched(live: LiveRun, ready: Ready, leg: Leg) -> Result:
    """Launch, follow and collect once; launch.json is written whatever happens.

    Raises LegError, of which TransportFailed is one, and RentalOver; LeftWaiting, and then without it, since
    whoever takes the launch up writes it.
    """
    notes, began, started = Notes(), time.monotonic(), time.time()
    (live.folder.parts / leg.folder).mkdir(parents=True)
    arm = arms.protected if leg.slot.lifecycle else arms.raw
    code: Code | None = Code.INTERRUPTED
    waits = False
    try:
        result = arm(live, ready, leg, notes)
        code = None
        return result
    except RentalOver as error:
        code = error.code
        raise
    except (LegError, RemoteError) as error:
        failure = _failure(error, notes)
        code = failure.code
        raise failure from error
    except LeftWaiting:
        waits = True
        raise
    except GlasshouseError:
        code = Code.RUNTIME_ERROR
        raise
    finally:
        notes.timings["totalSec"] = time.monotonic() - began
        if not waits:
            live.folder.write(leg.file("launch.json"), launch_file(leg, code, notes, started, time.time()))


def launch_file(leg: Leg, code: Code | None, notes: Notes, started: float, ended: float) -> Launch:
    """Return launch.json; `started` and `ended` in Unix seconds, `code` None where the launch is complete."""
    return Launch(
        slot=leg.slot.index,
        arm=leg.slot.arm,
        launch=leg.launch,
        status="complete" if code is None else "failed",
        code=code,
        timings={key: round(value, 6) for key, value in notes.timings.items()},
        raw_files_removed=notes.raw_files_removed,
        started_at=round(started, 3),
        ended_at=round(ended, 3),
    )


def _failure(error: LegError | RemoteError, notes: Notes) -> LegError:
    """The launch's error; by its type, whether another launch is worth it."""
    code = error.code or (Code.CONNECTION_LOST if isinstance(error, OutcomeUnknown) else Code.POD_REFUSED)
    kind = TransportFailed if TRANSPORT_CODES & {code, *notes.reason_codes} else LegError
    return kind(error.what, code=code, remedy=error.remedy)
