"""Finish what a killed controller left: release its allocation, prove it, write its row.

A job that may run without its controller is asked first, and left alone while it goes on (unattended.py).

Where sealed outputs may lie on its machine, they are looked for first (rescue.py): each such machine has a
thread of its own, which also destroys it, so that none waits for another's outputs, or for another's end.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from glasshouse import host
from glasshouse.codes import Code
from glasshouse.errors import GlasshouseError, UsageError, unexpected
from glasshouse.judgement.record import Record
from glasshouse.lifecycle import finish, rescue, unattended
from glasshouse.lifecycle.goes_on import allowed, clock
from glasshouse.lifecycle.live_run import LiveRun, reopen
from glasshouse.lifecycle.run_folder import RunLock
from glasshouse.lifecycle.screen import Screen
from glasshouse.lifecycle.waiting import journaling, uninterrupted
from glasshouse.lifecycle.watchdog import tell_ready, wait_for_end
from glasshouse.providers.accounts import other_account
from glasshouse.providers.journal import Entry, Journal
from glasshouse.providers.money import rental_deadline_sec
from glasshouse.providers.registry import open_provider
from glasshouse.schema import Release
from glasshouse.spec import PAID_PROVIDERS
from glasshouse.spec import Provider as ProviderConfig

OVERDUE_SHARE = 0.25  # of a boot deadline, after the rental's: by then the controller's own release has ended
_TAKE_BACK_EVERY_SEC = 60.0
_LOOK_SEC = 0.2
_SAY_SEC = 30.0
SIGN_SEC = 10.0  # for a controller that was asked to end its run to show that it heard
_ROOM_SEC = (30.0, 60.0, 120.0, 300.0)  # between a watchdog's looks for room for outputs that wait
NOTHING_CREATED = Release(
    proof="zero",
    active=0,
    detail="nothing was asked of the provider",
    account_total=None,
    pod_folder_removed=None,
    processes_left=None,
    checked_at=(),
)


@dataclass(frozen=True)
class Reaped:
    """One allocation looked at. `state`: reaped, live (its controller runs), elsewhere (it may run on another
    host), other-key (the key in the environment is not the one that rented it), would-reap, failed;
    unattended: it runs without a controller, and is left alone until `until` (Unix seconds); stopping: its
    controller was asked to end it; silent: it was asked, and does not answer. `status`: of the row that was
    written now, verified or excluded; None where none was. `by_itself`: of a job that had come to its end
    without its controller.
    """

    run: str
    name: str
    provider: str
    state: str
    proof: str | None
    detail: str
    until: float | None = None
    status: str | None = None
    by_itself: bool = False


@dataclass(frozen=True)
class Wishes:
    """What a person asked of `reap`.

    dry_run: say what would be done. elsewhere: in a shared journal a controller on another host counts as
    dead, too. other_key: the key in the environment, although not the one that rented, is of the same
    account. now: destroy at once, without a look for sealed outputs; not what runs unattended. stop: the run
    that is to end although it may go on: its id, or the beginning of it.
    """

    dry_run: bool = False
    elsewhere: bool = False
    other_key: bool = False
    now: bool = False
    stop: str | None = None

    def wants_end(self, entry: Entry) -> bool:
        """Whether this one is to end although it may go on."""
        return self.stop is not None and entry.run.startswith(self.stop)


def reap_all(screen: Screen, wishes: Wishes = Wishes()) -> list[Reaped]:
    """Reap every allocation in the journal that is not proven gone and whose controller is dead."""
    with Journal() as journal:
        found: dict[str, Reaped] = {}
        entries = journal.open_entries()
        if wishes.stop is not None:
            entries = _one(entries, wishes.stop)
        for entry in entries:
            if wishes.wants_end(entry) and not wishes.dry_run:
                _ask_end(entry, wishes)
            if entry.controller_alive and wishes.wants_end(entry) and not wishes.dry_run:
                if (said := _end_live(entry, now=wishes.now)) is not None:
                    found[entry.name] = said
            elif entry.controller_alive:
                found[entry.name] = _said(entry, "live", "its controller is running")
            elif journal.shared and not entry.controller_here and not wishes.elsewhere:
                host = entry.controller_host
                words = f"reap on {host}, or here with --elsewhere if {host} is gone"
                found[entry.name] = _said(entry, "elsewhere", words)
        dead = [entry for entry in entries if entry.name not in found]
        if wishes.dry_run or wishes.now:
            looks = []
        else:
            looks = [entry for entry in dead if entry.may_go_on or _may_have_sealed(entry)]
        stop = threading.Event()
        with ThreadPoolExecutor(max(len(looks), 1), "reap") as pool:
            beside = {
                entry.name: pool.submit(
                    _contained, entry, journal, screen.aside(f"run {entry.run}"), wishes, stop.is_set
                )
                for entry in looks
            }
            try:
                for entry in dead:
                    if entry.name not in beside:
                        found[entry.name] = _contained(entry, journal, screen, wishes)
            finally:
                _wait(list(beside.values()), screen, stop)
        found |= {name: future.result() for name, future in beside.items()}
        return [found[entry.name] for entry in entries]


def _folder(entry: Entry) -> Path:
    return Path(str(entry.detail.get("folder", "")))


def _may_have_sealed(entry: Entry) -> bool:
    """Whether sealed outputs may lie on its machine, by what its run folder says."""
    try:
        live = reopen(_folder(entry), Screen(quiet=True))
        return live.run.allocation == entry.name and bool(rescue.left_behind(live))
    except Exception:  # noqa: BLE001  then it is reaped as any other, which says what is wrong with it
        return False


def _wait(beside: list[Future[Reaped]], screen: Screen, stop: threading.Event) -> None:
    """Wait for what other threads reap; Ctrl-C ends only their waits for the end of a doubt."""
    with uninterrupted(screen) as waits:
        said = time.monotonic()
        while any(not future.done() for future in beside):
            wait(beside, timeout=_LOOK_SEC)
            if time.monotonic() - said > _SAY_SEC:
                said = time.monotonic()
                count = sum(not future.done() for future in beside)
                waits.progress(f"waiting for {count} of {len(beside)} whose sealed outputs are fetched first")
            if waits.stopped():
                stop.set()


def _contained(
    entry: Entry,
    journal: Journal,
    screen: Screen,
    wishes: Wishes,
    stopped: Callable[[], bool] | None = None,
) -> Reaped:
    """Reap one; whatever goes wrong with it stays with it, since the others may bill as well.

    `stopped`: of another thread than the main one, whether a person has had enough.
    """
    try:
        if not wishes.other_key and (why := other_account(entry, journal)):
            # Nothing is recorded: with the right key the row can still say what was found.
            return _said(entry, "other-key", why, "unknown")
        if entry.may_go_on and not wishes.wants_end(entry):
            if wishes.dry_run:
                return _left_alone(entry, "its machine would be asked whether its job has ended")
            if wishes.now:
                return _left_alone(entry, "--now alone ends none that may go on")
        if wishes.dry_run:
            first = "; sealed outputs would be looked for first" if _may_have_sealed(entry) else ""
            return _said(entry, "would-reap", f"its controller is gone{first}")
        return _reap(entry, journal, screen, wishes, stopped=stopped)
    except GlasshouseError as error:
        return _said(entry, "failed", error.line())
    except Exception as error:  # noqa: BLE001  a fault of ours in one must not keep the machines of others
        return _said(entry, "failed", unexpected(error))


def _said(entry: Entry, state: str, detail: str, proof: str | None = None) -> Reaped:
    return Reaped(entry.run, entry.name, entry.provider, state, proof, detail)


def _left_alone(entry: Entry, why: str) -> Reaped:
    left = f"left alone until {clock(entry.unattended_until)} ({why})"
    words = f"{left}: glasshouse reap --stop {entry.run} ends it"
    return replace(_said(entry, "unattended", words), until=entry.unattended_until)


def _one(entries: Sequence[Entry], run: str) -> tuple[Entry, ...]:
    """The allocation of the run that was named. Raises UsageError."""
    found = tuple(entry for entry in entries if entry.run == run) or tuple(
        entry for entry in entries if run and entry.run.startswith(run)
    )
    if len({entry.run for entry in found}) == 1:
        return found
    raise UsageError(
        "several runs begin so" if found else "no such run holds a machine",
        field="--stop", value=run, remedy="`glasshouse reap --dry-run` lists those that do",
    )  # fmt: skip


def _ask_end(entry: Entry, wishes: Wishes) -> None:
    """Leave word in the run's folder, for whoever follows it; one that is gone has nobody in it."""
    with contextlib.suppress(OSError):
        unattended.ask_stop(_folder(entry), "now" if wishes.now else "end")


def _end_live(entry: Entry, *, now: bool) -> Reaped | None:
    """Ask a controller of this machine to end its run, as Ctrl-C does; None where it has ended by that.

    One that stands still is killed where all is to end `now`: it can do nothing, and must not go on later
    beside whoever finishes its run.
    """
    try:
        pid = int(entry.controller.split(":")[2])
        before = _traces(entry)
        os.kill(pid, signal.SIGTERM)
        until = time.monotonic() + SIGN_SEC
        while entry.controller_alive and time.monotonic() < until:
            if _traces(entry) != before:
                return _said(
                    entry, "stopping", "its controller was asked to end it, as by Ctrl-C, and says what comes"
                )
            time.sleep(_LOOK_SEC)
        if not entry.controller_alive:
            return None
        if not (still := host.stopped(pid)):
            words = f"its controller, process {pid}, was asked to end it and gave no sign in {SIGN_SEC:.0f} s"
            return _said(entry, "silent", f"{words}: kill -KILL {pid}, then glasshouse reap")
        if still and not now:
            words = f"its controller, process {pid}, is stopped and does not answer: kill -CONT {pid}"
            return _said(entry, "silent", f"{words}, or glasshouse reap --stop {entry.run} --now")
        os.kill(pid, signal.SIGKILL)
        until = time.monotonic() + SIGN_SEC
        while entry.controller_alive and time.monotonic() < until:
            time.sleep(_LOOK_SEC)
    except (OSError, ValueError, IndexError) as error:
        return _said(entry, "silent", f"its controller cannot be asked to end it: {type(error).__name__}")
    return None if not entry.controller_alive else _said(entry, "silent", "its controller cannot be ended")


def _traces(entry: Entry) -> list[tuple[int, int]]:
    """What a controller that heard a word leaves in its run's folder: how its log and its file stand."""
    found = []
    for name in ("controller.log", "run.json"):
        with contextlib.suppress(OSError):
            status = (_folder(entry) / name).stat()
            found.append((status.st_mtime_ns, status.st_size))
    return found


def _reap(
    entry: Entry,
    journal: Journal,
    screen: Screen,
    wishes: Wishes,
    *,
    stopped: Callable[[], bool] | None = None,
) -> Reaped:
    folder, left = _folder(entry), entry.may_go_on and not wishes.wants_end(entry)
    try:
        here = reopen(folder, screen).run.allocation == entry.name
    except UsageError:  # gone, or of another version of this program: the machine goes back all the same
        here = False
    if not here:
        if left:
            return _left_alone(entry, "its run folder cannot be read here")
        return _release_only(entry, journal, screen)
    lock = RunLock(folder)
    try:
        if not lock.take():
            if left:
                return _left_alone(entry, "another process follows it")
            if not wishes.wants_end(entry):
                return _said(entry, "live", "another process is finishing it")
            screen.say("whoever follows it was asked to end it")
            while not lock.take():
                if stopped is not None and stopped():
                    return _said(entry, "stopping", "whoever follows it was asked to end it, and has not yet")
                time.sleep(_LOOK_SEC)
            now = journal.find(entry.name)
            if now is None or now.proof == "zero":
                ended = _said(entry, "reaped", "zero: it was ended by whoever followed it", "zero")
                return replace(ended, status=_status(folder))
            entry = now
        live = reopen(folder, screen)  # as whoever held it until now left it
        live.rental.allocation_id = entry.allocation_id or live.rental.allocation_id
        return finish_dead(live, journal, entry, look=not wishes.now, stopped=stopped)
    finally:
        lock.close()


def _status(folder: Path) -> str | None:
    """What a run's record says of it; None where it has none that can be read."""
    try:
        record = Record.read((folder / "bundle" / "record.json").read_bytes())
    except OSError:
        return None
    return None if record is None else record.status


def _release_only(entry: Entry, journal: Journal, screen: Screen) -> Reaped:
    """Give a machine back whose run folder cannot be read: no row can be written, but it may still bill."""
    try:
        config = TypeAdapter[ProviderConfig](ProviderConfig).validate_python(entry.detail.get("provider"))
    except ValidationError:
        return _said(entry, "failed", "neither its run folder nor its provider's settings are left")
    with open_provider(config, rented=True) as provider, uninterrupted(screen) as waits:
        kept = journaling(waits, journal, entry.name, entry.allocation_id)
        proof = provider.release(entry.name, entry.allocation_id, entry.doubt_until, kept, entry.note)
    journal.closed(entry.name, proof.proof)
    if proof.proof != "zero":
        journal.unattended(entry.name, 0.0)
        screen.alarm(f"CLEAN-UP NOT PROVEN ({proof.proof}): {entry.name}: {proof.detail}")
    return _said(
        entry, "reaped", f"{proof.proof}: {proof.detail}; its run folder cannot be read", proof.proof
    )


def gone(run: str, screen: Screen) -> bool:
    """Ask once more for the end of what run `run` of this process left; whether that is proven now."""
    with Journal() as journal:
        mine = [entry for entry in journal.open_entries() if entry.run == run]
        return all(_release_only(entry, journal, screen).proof == "zero" for entry in mine)


def finish_dead(
    live: LiveRun,
    journal: Journal,
    entry: Entry,
    *,
    look: bool = True,
    stopped: Callable[[], bool] | None = None,
    stay: bool = False,
) -> Reaped:
    """Release and, if that was not done yet, record; a job that may go on, and does, is left alone.

    `entry`: what the journal says of the dead controller's creates. look: for sealed outputs, before.
    stopped: as `_contained`. stay: follow a job that goes on to its end.
    """
    taken, status = unattended.NOTHING, None
    with live.screen.logged(live.folder.log):
        with (
            open_provider(live.run.spec.provider, rented=True) as provider,
            uninterrupted(live.screen) as own,
        ):
            if allowed(live.run.spec) and not live.folder.bundle.exists():
                taken = unattended.take_up(live, provider, entry.unattended_until, stay=stay)
            if taken.goes_on:
                return _left_alone(entry, taken.why)
            look = look and unattended.asked(live.folder.path) != "now"
            home = look and rescue.bring_home(live, provider)
            waits = own if stopped is None else replace(own, stopped=stopped)
            proof = finish.release(live, provider, journal, waits, entry)
        if not live.folder.bundle.exists():
            if not taken.over:
                live.fail(Code.CONTROLLER_KILLED, "the controller died; this run was finished by reap")
            if home:
                live.fail(Code.OUTPUTS_FETCHED_LATE)
            status = finish.record(live).record.status
        elif live.folder.parts.exists():
            # The row is signed: what this release found has no place in it any more.
            shutil.rmtree(live.folder.parts)
    words = [f"{proof.proof}: {proof.detail}"]
    if taken.over:
        how = "its machine was gone" if taken.gone else "its job had ended"
        words.append(f"{how}, and its row is {status}")
        words += [taken.why] if taken.why else []
    if home:
        words.append(f"its sealed outputs were fetched first: glasshouse open {live.run.id}")
    done = _said(entry, "reaped", "; ".join(words), proof.proof)
    return replace(done, status=status, by_itself=taken.over)


def guard(folder: Path, screen: Screen) -> None:
    """Body of the watchdog: wait for its controller; finish what it left, or give back what it overstays."""
    wait = _overdue_sec(folder, screen)
    tell_ready()
    while (how := wait_for_end(wait)) == "overdue":
        proof = _take_back(folder, screen)
        screen.warn(f"the controller has outstayed its rental; what was left: {proof}")
        wait = math.inf if proof == "zero" else _TAKE_BACK_EVERY_SEC
    if how == "died":
        watch(folder, screen)


def _overdue_sec(folder: Path, screen: Screen) -> float:
    """Seconds after which a controller that still rents can only be stopped, or hang.

    What giving back takes is tried, before anything is rented: the run's file, the provider's client, the
    journal.
    """
    spec = reopen(folder, screen).run.spec
    with open_provider(spec.provider, rented=True), Journal():
        pass
    if spec.provider.kind not in PAID_PROVIDERS:
        return math.inf
    return rental_deadline_sec(spec) + OVERDUE_SHARE * spec.provider.boot_deadline_sec


def _take_back(folder: Path, screen: Screen) -> str:
    """Release the machine of a run that another process holds: the row and the journal stay that one's.

    Nor is the journal read: whoever was stopped while it closed it keeps it locked. What is called by
    this run's name is found without it; where all was given back before, that is what is found.
    """
    try:
        live = reopen(folder, screen)
        with open_provider(live.run.spec.provider, rented=True) as provider:
            # So late that whatever was asked for has come: no create is sent after the last boot could begin.
            return provider.release(live.run.allocation, live.rental.allocation_id, 0.0).proof
    except GlasshouseError as error:
        return error.line()
    except Exception as error:  # noqa: BLE001  it is tried again in a minute
        return unexpected(error)


def _rents(live: LiveRun) -> bool:
    """Whether the journal has the machine of a run, and says that it may go on."""
    with Journal() as journal:
        entries = journal.open_entries()
    return any(entry.name == live.run.allocation and entry.unattended_until for entry in entries)


def watch(folder: Path, screen: Screen) -> None:
    """What the watchdog does after its controller died: wait for the lock, then finish the run."""
    waits = iter(_ROOM_SEC)
    pause = 0.0
    while (until := _finish(folder, screen)) is not None:
        pause = next(waits, pause)
        # Without the lock: whoever has made room need not wait for us.
        time.sleep(max(min(pause, until - time.time()), _LOOK_SEC))


def _finish(folder: Path, screen: Screen) -> float | None:
    """Finish a run whose controller died; until when its outputs wait, in Unix seconds, if they have to."""
    lock = RunLock(folder)
    lock.take(wait=True)
    with contextlib.closing(lock):
        dead = reopen(folder, screen)
    if allowed(dead.run.spec):
        with screen.logged(dead.folder.log):
            unattended.wait_without_keys(dead, lambda: not _rents(dead))
    lock = RunLock(folder)
    lock.take(wait=True)
    try:
        live = reopen(folder, screen)
        with Journal() as journal:
            mine = [entry for entry in journal.open_entries() if entry.name == live.run.allocation]
            if mine and (why := other_account(mine[0], journal)):
                screen.alarm(f"CLEAN-UP NOT PROVEN (unknown): {why}")
            elif mine:
                live.rental.allocation_id = mine[0].allocation_id or live.rental.allocation_id
                # One that has recorded the run has fetched what it could: what stays is a machine in doubt.
                done = finish_dead(live, journal, mine[0], look=not live.folder.bundle.exists(), stay=True)
                screen.say(f"{done.state}: {done.detail}")
                return done.until if done.state == "unattended" else None
            elif not live.folder.bundle.exists():
                live.fail(Code.CONTROLLER_KILLED, "the controller died; its watchdog finished this run")
                if not live.folder.has("release.json"):  # else it died after its release
                    live.folder.write("release.json", NOTHING_CREATED)
                with screen.logged(live.folder.log):
                    finish.record(live)
        return None
    finally:
        lock.close()
