"""One run on the controller: what is fixed of it, what it rents, how it ends, where it lies, who is told.

Every fact goes to a file of the run folder when it is learnt, not at the end: a controller that is killed
leaves a folder from which `glasshouse reap` writes the excluded row.
"""

from __future__ import annotations

import base64
import contextlib
import math
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from glasshouse import host
from glasshouse.canonical import b64u, b64u_decode, sha256_hex
from glasshouse.codes import Code
from glasshouse.errors import GlasshouseError, LegError, NoRoom, ProviderError, UsageError
from glasshouse.lifecycle.goes_on import clock
from glasshouse.lifecycle.run_folder import RunFolder, SavedEndpoint, SavedLaunch, SavedRun
from glasshouse.lifecycle.screen import Screen
from glasshouse.lifecycle.sweep import Sweep
from glasshouse.measurement.schedule import build_schedule
from glasshouse.remote.endpoint import Endpoint
from glasshouse.runtime.blinding import SALT_BYTES
from glasshouse.schema import Slot
from glasshouse.spec import RunSpec


def new_run_id(now: float | None = None) -> str:
    """Return `yyyymmdd-hhmmss-xxxxxx` in UTC; the end is random, so two sweeps never collide."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now if now is not None else time.time()))
    return f"{stamp}-{base64.b32encode(secrets.token_bytes(5)).decode().lower()[:6]}"


@dataclass(frozen=True)
class Run:
    """What is fixed of a run before anything happens. `started` is in Unix seconds.

    `allocation` is the name under which it rents: gh-<run>-<nonce>. `controller`: the process that began it,
    as glasshouse.host names it.
    """

    id: str
    allocation: str
    spec: RunSpec
    schedule: tuple[Slot, ...]
    overrides: tuple[str, ...]
    started: float
    controller: str = ""
    # In which names and values are hidden that are published as digests (runtime/blinding.py).
    salt: bytes = field(default_factory=lambda: secrets.token_bytes(SALT_BYTES), repr=False)


@dataclass
class Rental:
    """What a run rents, as far as it is known.

    `intended`: something may exist by now. `rented_at`: Unix seconds, before the create call of a paid
    provider. `deadline`: monotonic seconds, by when all that was budgeted has been used up. `simulated`: a
    fake provider answered. `endpoint`: where the machine answers, once it does. `unattended_until`: Unix
    seconds, as the journal has it. `launched`: the newest protected launch on it.
    """

    allocation_id: str | None = None
    intended: bool = False
    rented_at: float | None = None
    deadline: float = math.inf
    simulated: bool = False
    endpoint: Endpoint | None = None
    unattended_until: float = 0.0
    launched: SavedLaunch | None = None


@dataclass
class Ending:
    """How a run will end: reason codes of failures outside any leg, in order, and what a person is told last.

    `messages` are for the terminal and the log, never for the bundle. `alarm` is the loud last line when
    clean-up is not proven. `in_doubt`: a create of it may yet make a machine, for which the watchdog stays.
    `taken_up_at`: Unix seconds, when another process took it up after its controller had ended. `proven`:
    this process has seen that nothing of it is left.
    `nothing_back`: of a job, that there is no file in what came back of it.
    """

    failures: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    exit_code: int = 0
    alarm: str = ""
    in_doubt: bool = False
    taken_up_at: float | None = None
    proven: bool = False
    nothing_back: bool = False

    def tell(self, message: str, exit_code: int) -> None:
        """Keep what is shown at the end; the highest exit code stands."""
        if message:
            self.messages.append(message)
        self.exit_code = max(self.exit_code, exit_code)


class StepFailed(GlasshouseError):
    """A step of a run failed, so the run is excluded; `reason` is the code for its record.

    It speaks for its cause, in the same words. It never leaves the run.
    """

    def __init__(self, cause: GlasshouseError, reason: Code) -> None:
        super().__init__(
            cause.what, field=cause.field, value=cause.value, remedy=cause.remedy, code=cause.code
        )
        self.reason = reason
        self.exit_code = cause.exit_code


class LeftWaiting(GlasshouseError):
    """A job has ended, and there is no room here for its outputs, which may wait where they are.

    Nothing is released or recorded now; it leaves the run.
    """

    exit_code = NoRoom.exit_code

    def __init__(self, cause: NoRoom, live: LiveRun) -> None:
        until = clock(live.rental.unattended_until)
        super().__init__(
            f"{cause.what}: they wait on its machine until {until}",
            field=cause.field,
            value=cause.value,
            remedy="make room there, and `glasshouse reap` fetches them, or its watchdog does; "
            f"glasshouse reap --stop {live.run.id} gives them up",
        )


@dataclass(frozen=True)
class LiveRun:
    """A run that goes on, or that a process finishes for another."""

    run: Run
    folder: RunFolder
    screen: Screen
    rental: Rental = field(default_factory=Rental)
    ending: Ending = field(default_factory=Ending)
    sweep: Sweep | None = None

    def check_stopped(self) -> None:
        """Raise KeyboardInterrupt where the sweep that this run is a cell of is to end."""
        if self.sweep is not None and self.sweep.stopped():
            raise KeyboardInterrupt

    @contextmanager
    def step(self, code: Code, words: str = "", *, meanwhile: bool = False) -> Iterator[None]:
        """Show `words` while this step goes on; `meanwhile` another thread's step does. An error inside
        becomes StepFailed, with the reason code that it brings, or else with `code`.
        """
        show = self.screen.meanwhile if meanwhile else self.screen.phase
        shown = show(words) if words else contextlib.nullcontext()
        try:
            with shown:
                yield
        except (StepFailed, LeftWaiting):
            raise
        except GlasshouseError as error:
            raise StepFailed(error, _reason(error) or code) from error

    def fail(self, code: Code, message: str = "", exit_code: int = 1) -> None:
        """Note why this run cannot be verified; it goes on to release and record. `message` is shown last."""
        if code not in self.ending.failures:
            self.ending.failures.append(code)
        self.ending.tell(message, exit_code)
        self.save()

    def save(self) -> None:
        """Write run.json: what another process needs to finish this run."""
        self.folder.save(
            SavedRun(
                run=self.run.id,
                name=self.run.allocation,
                allocation_id=self.rental.allocation_id,
                failures=tuple(self.ending.failures),
                started_at=self.run.started,
                overrides=self.run.overrides,
                simulated=self.rental.simulated,
                rented_at=self.rental.rented_at,
                spec=self.run.spec,
                endpoint=SavedEndpoint.of(self.rental.endpoint),
                controller=self.run.controller,
                unattended_until=self.rental.unattended_until,
                launched=self.rental.launched,
                salt=b64u(self.run.salt),
            )
        )


def _reason(error: GlasshouseError) -> Code | None:
    """The reason code that an error brings for the record. What a container or a token was refused for says
    less of a run than the step in which it was.
    """
    return error.code if isinstance(error, LegError | ProviderError) else None


def create(
    spec: RunSpec, out: Path, screen: Screen, overrides: Sequence[str], sweep: Sweep | None = None
) -> LiveRun:
    """Make the run folder `out/<run>/`. Raises UsageError where that cannot be done."""
    run = new_run_id()
    folder = RunFolder(out / run)
    try:
        out.mkdir(parents=True, exist_ok=True)
        folder.path.mkdir(mode=0o700)  # under any umask: its log and its parts are its owner's
        folder.parts.mkdir()
    except OSError as error:
        raise UsageError(
            f"cannot make the run folder: {error.strerror}",
            field="folder",
            value=folder.path,
            remedy="choose another with --out",
        ) from error
    name = f"gh-{run}-{secrets.token_hex(4)}"
    fixed = Run(
        run, name, spec, build_schedule(spec), tuple(overrides), time.time(), host.identity(os.getpid())
    )
    live = LiveRun(fixed, folder, screen, sweep=sweep)
    live.save()
    return live


def reopen(folder: Path, screen: Screen) -> LiveRun:
    """Read a run folder that another process left unfinished. Raises UsageError."""
    files = RunFolder(folder)
    saved = files.saved()
    schedule = build_schedule(saved.spec)
    run = Run(
        saved.run, saved.name, saved.spec, schedule, saved.overrides, saved.started_at, saved.controller,
        **({} if saved.salt is None else {"salt": b64u_decode(saved.salt, size=SALT_BYTES)}),
    )  # fmt: skip
    rental = Rental(
        saved.allocation_id,
        rented_at=saved.rented_at,
        simulated=saved.simulated,
        endpoint=None if saved.endpoint is None else saved.endpoint.endpoint(),
        unattended_until=saved.unattended_until,
        launched=saved.launched,
    )
    return LiveRun(run, files, screen, rental, Ending(list(saved.failures)))


def public_allocation(name: str) -> str:
    """Return the digest under which an allocation is named in results: same machine, no id."""
    return sha256_hex(b"glasshouse/allocation/v1" + name.encode())
