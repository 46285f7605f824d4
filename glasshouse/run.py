"""One run, top to bottom, and a sweep of them.

    plan -> allocate -> connect -> seal -> legs, slot by slot -> release -> judge -> record

While a rented machine boots, its package is sealed in a thread beside.

What this side can know is refused before the plan is registered: settings, key files, known_hosts, budget.
A host that does not answer, or a GPU that is not the one asked for, is found after it and ends as a row.

A registered plan always ends as a row. Whatever fails after the plan is registered, release,
judgement and record still happen, also after Ctrl-C; a controller that is killed outright leaves
them to its watchdog, or to `glasshouse reap`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from glasshouse.canonical import parse_json
from glasshouse.codes import Code
from glasshouse.errors import CleanupNotProven, GlasshouseError, LegError, ProviderError, UsageError
from glasshouse.judgement.conclusions import blocks_lost, control_line, overhead_stated
from glasshouse.judgement.record import Record
from glasshouse.lifecycle import collect, finish, goes_on, reap, unattended
from glasshouse.lifecycle.interrupts import Interrupts
from glasshouse.lifecycle.leg_display import LegView
from glasshouse.lifecycle.live_run import LeftWaiting, LiveRun, StepFailed, create
from glasshouse.lifecycle.packer import Packer
from glasshouse.lifecycle.replacing import Replacing, note_taken_away
from glasshouse.lifecycle.resume import Skipped
from glasshouse.lifecycle.resumed import check_beforehand, going_on, going_on_line, line
from glasshouse.lifecycle.run_folder import RunFolder, RunLock
from glasshouse.lifecycle.screen import JobRow, Screen, SummaryRow
from glasshouse.lifecycle.setup import Ready, describe, named_broker, prepared
from glasshouse.lifecycle.slots import run_slot
from glasshouse.lifecycle.supply import Supply, fetched_ahead
from glasshouse.lifecycle.sweep import Sweep
from glasshouse.lifecycle.watchdog import Watchdog
from glasshouse.providers.accounts import mark
from glasshouse.providers.base import Allocation, Provider
from glasshouse.providers.budget import beside
from glasshouse.providers.journal import Journal
from glasshouse.providers.money import cost_ceiling, rental_deadline_sec
from glasshouse.providers.registry import open_provider
from glasshouse.records import keys
from glasshouse.records.ledger import Ledger
from glasshouse.records.plan import register_plan
from glasshouse.remote.pod import Pod
from glasshouse.spec import Job, RunSpec
from glasshouse.workloads.dependencies import Dependencies
from glasshouse.workloads.package import prepare


def run_one(
    spec: RunSpec,
    *,
    overrides: Sequence[str],
    out: Path,
    screen: Screen,
    reservation: str | None = None,
    sweep: Sweep | None = None,
) -> finish.Recorded:
    """Execute one run; return how it ended. Raises UsageError for what can be known beforehand,
    CleanupNotProven or ProviderError where it broke off, LeftWaiting where its outputs wait for room here.
    `reservation`: the money set aside for it (providers.budget).
    `sweep`: the one that a launcher runs this as a cell of.
    """
    # What can be refused is refused before anything exists: no folder, no plan, no allocation.
    named_broker()
    payload = prepare(spec)
    check_beforehand(spec)
    needs = Dependencies() if payload.project is None else payload.project.needs
    with Journal() as journal, open_provider(spec.provider) as provider, Supply(needs) as supply:
        provider.check(spec)
        if payload.needs:
            fetched_ahead(supply, spec, screen)
        live = create(spec, out, screen, overrides, sweep)
        stopped = sweep.stopped if sweep is not None else lambda: ""
        stays = goes_on.allowed(spec) and sweep is None
        with screen.logged(live.folder.log), Interrupts(screen, stopped, stays=stays) as interrupts:
            return _run(
                live,
                provider,
                journal,
                interrupts,
                supply,
                reservation=reservation,
                notes=[*line(spec), *payload.notes],
            )


def _run(
    live: LiveRun,
    provider: Provider,
    journal: Journal,
    interrupts: Interrupts,
    supply: Supply,
    *,
    reservation: str | None,
    notes: Sequence[str],
) -> finish.Recorded:
    screen, run = live.screen, live.run
    lock = RunLock(live.folder.path)
    lock.take(wait=True)
    screen.headline(f"run {run.id}  {_describe(run.spec)}")
    for note in notes:
        screen.say(note)
    if goes_on.allowed(run.spec) and live.sweep is None:
        live.rental.unattended_until = goes_on.until_from(run.spec, time.time())
        for line in goes_on.first_lines(run.spec, live.rental.unattended_until):
            screen.say(line)
    if run.spec.job and isinstance(run.spec.model, Job) and run.spec.model.watch_sec:
        screen.say(f"look: glasshouse watch {live.folder.path}")

    # 1. Plan: signed and in the ledger before anything is rented.
    registered = register_plan(
        Ledger(),
        keys.operator_key(),
        run.id,
        run.spec,
        salt=run.salt,
        owners=keys.owner_publics(),
    )
    live.folder.write_bytes("plan.dsse.json", registered.envelope)
    try:
        packing = Packer(live, going_on(run.spec, screen.warn))
        with Watchdog(live.folder.path, screen) as watchdog, packing as packer:
            waits = False
            try:
                with interrupts.allowed():
                    _attempt(
                        live, provider, journal, watchdog,
                        packer=packer, supply=supply, reservation=reservation,
                    )  # fmt: skip
                    note_taken_away(live, provider)
            except LeftWaiting:
                waits = True
                raise
            except KeyboardInterrupt:
                screen.warn("interrupted: the run is excluded; releasing what it holds")
                live.fail(Code.INTERRUPTED)
                if live.sweep is not None:
                    live.sweep.stop("interrupted")
            finally:
                # 7. Release: destroy and prove it, whatever happened: also a full disk, a fault of ours.
                # Sealing that still goes on is waited for when that is done.
                packer.stop()
                if waits:
                    pass  # the watchdog, or reap, goes on with it
                elif live.rental.intended:
                    _release(live, provider, journal, interrupts)
                else:
                    live.folder.write("release.json", reap.NOTHING_CREATED)
                if live.ending.in_doubt:
                    screen.warn("its watchdog stays, and goes on looking for it")
                    watchdog.stay()
        # 8. and 9. Judge, record.
        with screen.phase("judging and signing the record"):
            recorded = finish.record(live)
    except LeftWaiting as error:
        screen.record(error.line())
        raise
    except BaseException as error:
        why = error.line() if isinstance(error, GlasshouseError) else type(error).__name__
        screen.record(f"the run broke off: {why}")
        if (alarm := finish.broken_off(live, provider, journal, error)) is not None:
            screen.record(alarm.line())
            if isinstance(alarm, CleanupNotProven):
                _hold(live)
            raise alarm from error
        raise
    finally:
        lock.close()
    for message in live.ending.messages:
        screen.warn(message)
    screen.record(f"recorded as {recorded.record.status}; exit code {recorded.exit_code}")
    return recorded


def _attempt(
    live: LiveRun,
    provider: Provider,
    journal: Journal,
    watchdog: Watchdog,
    *,
    packer: Packer,
    supply: Supply,
    reservation: str | None,
) -> None:
    """Steps 2 to 6; every way they can end is noted in the run's ending."""
    try:
        # 2. Allocate, beside a watchdog: the intent is on disk before the create call, the id right after.
        with live.step(Code.WATCHDOG_NOT_STARTED):
            watchdog.start()
        with live.step(Code.SWEEP_STOPPED):
            _check_sweep(live, journal)
        live.rental.intended = True
        with live.step(Code.JOURNAL_FAILED):
            intent = _intent(live, reservation)
            journal.intend(live.run.id, live.run.allocation, provider.kind, intent, mark(provider.kind))
            if live.rental.unattended_until:
                journal.unattended(live.run.allocation, live.rental.unattended_until)
        with live.step(Code.BOOT_FAILED, f"allocating on {provider.kind}"):
            if live.run.spec.paid:
                packer.begin()  # minutes pass before there is a machine; nothing is sent to it unseen
            allocation = _allocate(live, provider, journal, packer, reservation)
        # What fails in none of the steps inside, in the legs or in letting go, is the legs' failure.
        with live.step(Code.LEG_FAILED), ExitStack() as until:
            # 3. Connect.
            with live.step(Code.CONNECT_FAILED, "connecting"):
                insist = unattended.patience(live, provider)
                reached = Pod(allocation.endpoint, deadline=live.rental.deadline, insist=insist)
                pod = until.enter_context(reached)
            # 4. Make the pod ready, seal if that is not done, upload.
            ready = until.enter_context(prepared(live, pod, allocation, packer, supply))
            # 5. and 6. The legs, in the order of the plan.
            _legs(live, ready)
    except StepFailed as error:
        live.fail(error.reason, f"error: {error.line()}", error.exit_code)


def _release(live: LiveRun, provider: Provider, journal: Journal, interrupts: Interrupts) -> None:
    if finish.release(live, provider, journal, interrupts.waits()).proof != "zero":
        _hold(live)


def _hold(live: LiveRun) -> None:
    """What is left bills beyond its own budget: no cell of the sweep rents another machine beside it."""
    if live.sweep is not None and live.run.spec.paid:
        live.sweep.hold(f"{live.run.allocation} may be left")


def _check_sweep(live: LiveRun, journal: Journal) -> None:
    """Rent nothing for a sweep that is to end, or that may have left a machine."""
    live.check_stopped()
    if live.sweep is not None and live.run.spec.paid and (why := live.sweep.held(journal)):
        raise ProviderError(f"no machine is rented beside another: {why}", code=Code.SWEEP_STOPPED)


def _intent(live: LiveRun, reservation: str | None) -> dict[str, Any]:
    """What another process needs, to give back what this one rents."""
    return {
        "sweep": None if live.sweep is None else str(live.sweep.folder),
        "folder": str(live.folder.path.resolve()),
        "maxUsd": cost_ceiling(live.run.spec),
        "reservation": reservation,
        "provider": live.run.spec.provider.model_dump(mode="json"),
    }


def _allocate(
    live: LiveRun, provider: Provider, journal: Journal, packer: Packer, reservation: str | None
) -> Allocation:
    """Rent, and keep every id that the provider gives out as soon as it is known, and what is in doubt before
    it is asked for.
    """
    run, rental = live.run, live.rental
    began = time.monotonic()
    if run.spec.paid:
        rental.rented_at = round(time.time(), 3)
        rental.deadline = began + rental_deadline_sec(run.spec)
    live.save()

    doubtful, noted = 0.0, ""
    if run.spec.paid:
        journal.doubtful(
            run.allocation, doubtful
        )  # nothing was asked for yet: whoever comes after need not fear

    def keep() -> None:
        nonlocal doubtful, noted
        if noted != (note := provider.note(run.allocation)):
            journal.noted(run.allocation, note)
            noted = note
        if doubtful != (until := provider.doubtful_until(run.allocation)):
            journal.doubtful(run.allocation, until)
            doubtful = until
        ids = ",".join(provider.known_ids(run.allocation))
        if (ids, provider.simulated) != (rental.allocation_id or "", rental.simulated):
            if ids:
                journal.created(run.allocation, ids)
            rental.allocation_id, rental.simulated = ids or None, provider.simulated
            live.save()

    def progress(text: str) -> None:
        keep()
        live.check_stopped()  # said before each create, too
        packer.check()
        live.screen.progress(text)

    with beside(journal, run.spec, reservation) as afford:
        try:
            allocation = provider.allocate(run.allocation, run.spec, progress, afford)
        finally:
            keep()
    if rental.allocation_id is None:
        journal.created(run.allocation, allocation.id)
        rental.allocation_id = allocation.id
    rental.endpoint = allocation.endpoint
    live.save()
    source = allocation.endpoint.host_key.source
    described = describe(live, allocation, gpu_model=allocation.gpu_model, source=source)
    live.folder.write("allocation.json", described)
    return allocation


def _legs(live: LiveRun, ready: Ready) -> None:
    """Run every slot. A leg that fails ends them; its own files say why, so it is no failure of the run's."""
    view = LegView(live.screen, live.run.schedule)
    try:
        with view.legs():
            for slot in live.run.schedule:
                live.check_stopped()
                with view.slot(slot) as label:
                    result = run_slot(live, ready, slot, label)
                view.done(slot, result)
    except LegError as error:
        live.ending.tell(f"error: {error.line()}", error.exit_code)


def run_sweep(
    cells: Sequence[tuple[list[str], RunSpec]],
    *,
    out: Path,
    as_json: bool = False,
    quiet: bool = False,
    asks: bool = False,
    skipped: Sequence[Skipped] = (),
    reservation: str | None = None,
    sweep: Sweep | None = None,
) -> int:
    """Run every cell, one after the other; return the highest exit code.

    All cells are validated before the first starts; a sweep goes on past an excluded cell. `skipped`
    are cells that a finished run covers: they are only named. `reservation` is what the cells' money was set
    aside under. `sweep`: of which a launcher runs these cells in this process, others elsewhere. `asks`: a
    person may be asked whether a job that its ceiling will not do for is to go on.
    """
    screen = Screen(quiet=quiet, asks=asks)
    for cell in skipped:
        screen.say(cell.line())
    for _, spec in cells:
        prepare(spec)
        with open_provider(spec.provider) as provider:
            provider.check(spec)
    outcomes: list[finish.Recorded] = []
    alarms: list[str] = []
    code = 0
    for number, (overrides, spec) in enumerate(cells, start=1):
        if len(cells) > 1:
            screen.headline(f"cell {number} of {len(cells)}: {' '.join(overrides) or 'defaults'}")
        try:
            outcome = run_one(
                spec, overrides=overrides, out=out, screen=screen, reservation=reservation, sweep=sweep
            )
            replacing = Replacing(spec, overrides, screen)
            while replacing.after(outcome):
                outcomes.append(outcome)  # its exit code is not the sweep's: the job goes on
                outcome = run_one(
                    replacing.spec,
                    overrides=replacing.overrides,
                    out=out,
                    screen=screen,
                    reservation=reservation,
                    sweep=sweep,
                )
        except KeyboardInterrupt:
            if not outcomes:
                raise  # before there is a run, or after its record: nothing is summed up
            screen.warn(f"interrupted: cell {number} of {len(cells)} has no record")
            code = max(code, 1)
            break
        except (CleanupNotProven, LeftWaiting) as error:
            alarms.append(error.line())
            if isinstance(error, CleanupNotProven):
                screen.alarm(alarms[-1])
            code = error.exit_code
            break
        except UsageError as error:
            if len(cells) == 1:
                raise
            screen.alarm(f"error: {error.line()}")
            code = max(code, error.exit_code)
            continue
        outcomes.append(outcome)
        more = outcome.alarm and spec.paid and number < len(cells)
        if more and not outcome.in_doubt and reap.gone(outcome.run, screen):
            code = max(code, 1)  # late, but proven: the row stays excluded, and nothing bills
            continue
        alarms += [outcome.alarm] if outcome.alarm else []
        code = max(code, outcome.exit_code)
        if more:
            # What is left bills beyond its own budget: another machine beside it is not what was planned.
            screen.warn(f"stopped before cell {number + 1} of {len(cells)}: a machine may be left")
            break
        if Code.INTERRUPTED in outcome.record.reasons:
            break
    screen.summary([_summary_row(outcome) for outcome in outcomes])
    for outcome in outcomes:
        if cost := _cost_line(outcome.record):
            screen.say(cost)
        screen.say(f"evidence: {outcome.folder}/bundle   check it: glasshouse verify {outcome.folder}")
        if text := going_on_line(Path(outcome.folder), outcome.record):
            screen.say(text)
        if line := _files_line(outcome):
            screen.say(line)
    if as_json:
        runs = [
            {
                "folder": item.folder,
                "exitCode": item.exit_code,
                "exit": collect.project_exit(Path(item.folder) / "bundle"),
                **parse_json(item.record.to_bytes()),
            }
            for item in outcomes
        ]
        done = [asdict(cell) for cell in skipped]
        print(json.dumps({"exitCode": code, "runs": runs, "skipped": done}))  # noqa: T201 -- the one document
    for alarm in alarms:
        screen.alarm(alarm)
    return code


def summary_row(record: Record) -> SummaryRow:
    """Pick what the table at the end shows from a record."""
    figures = record.figures
    return SummaryRow(
        run=record.run,
        order=figures.order,
        status=record.status,
        raw_per_sec=figures.raw_per_sec,
        protected_per_sec=figures.protected_per_sec,
        overhead_pct=overhead_stated(figures),
        control=control_line(figures),
        no_figure=blocks_lost(figures),
        fixed_sec=(figures.fixed_cost_sec or {}).get("totalSec"),
        excluded=record.reasons,
        caveats=record.caveats,
    )


def _summary_row(outcome: finish.Recorded) -> SummaryRow:
    """The same of a run's outcome; of a private job what it did, and how it ended."""
    row = summary_row(outcome.record)
    folder = RunFolder(Path(outcome.folder))
    if not folder.saved().spec.job:
        return row
    arm, how = outcome.record.figures.protected, collect.job_exit(folder.bundle)
    done = arm is not None and arm.elapsed_sec is not None
    return replace(
        row,
        job=JobRow(
            steps=arm.steps if arm is not None else None,
            elapsed_sec=arm.elapsed_sec if arm is not None else None,
            ended=how.short if how is not None else "by itself" if done else "",
        ),
    )


def _files_line(outcome: finish.Recorded) -> str:
    """What to do with what came home of a job, "" where nothing did."""
    folder = Path(outcome.folder)
    job = outcome.record.figures.order == "protected-only"
    if not job or outcome.nothing_back or not any((folder / "outputs").glob("*-outputs.sealed")):
        return ""
    return f"open it: glasshouse open {folder}   what came back is put into {folder / 'opened'}"


def _cost_line(record: Record) -> str:
    """Return what a rented run cost, "" where nothing was rented or the price is not known."""
    held, usd = record.figures.held_sec, record.figures.cost_usd
    if held is None or usd is None:
        return ""
    whose = " at a fake provider's price: nothing was paid" if "simulated" in record.caveats else ""
    paid = f"{usd:.2f}" if usd >= 0.01 else "less than 0.01"
    return f"{record.run} cost {paid} USD for {held / 60:.1f} min{whose}"


def _describe(spec: RunSpec) -> str:
    amount = spec.amount if spec.duration is None else f"{spec.amount} per arm"
    if spec.workload == "project":
        amount = "until its command ends"
    what = {
        "provider": spec.provider.kind,
        "gpu": spec.gpu.name,
        "model": spec.model.name,
        "order": spec.order,
    }
    if spec.control != "none":
        what["control"] = spec.control
    return " ".join([*(f"{key}={value}" for key, value in what.items()), amount])
