"""One run, top to bottom, and a sweep of them.

    plan -> allocate -> connect -> seal -> legs, slot by slot -> release -> judge -> record

What this side can know is refused before the plan is registered: settings, key files, known_hosts, budget.
A host that does not answer, or a GPU that is not the one asked for, is found after it and ends as a row.

A registered plan always ends as a row. Whatever fails after the plan is registered, release,
judgement and record still happen, also after Ctrl-C; a controller that is killed outright leaves
them to its watchdog, or to `glasshouse reap`.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from glasshouse.canonical import parse_json
from glasshouse.errors import CleanupNotProven, GlasshouseError, LegError, ProviderError, UsageError
from glasshouse.judgement.record import Record
from glasshouse.judgement.stated import blocks_lost, control_line, overhead_stated
from glasshouse.lifecycle import finish, reap
from glasshouse.lifecycle.context import RunContext, RunLock, create
from glasshouse.lifecycle.resume import Skipped
from glasshouse.lifecycle.setup import describe, named_broker, prepared
from glasshouse.lifecycle.slots import run_slot
from glasshouse.lifecycle.ui import Screen
from glasshouse.lifecycle.view import LegView
from glasshouse.lifecycle.watchdog import Watchdog
from glasshouse.providers.base import Allocation, Provider
from glasshouse.providers.journal import Journal
from glasshouse.providers.money import cost_ceiling, rental_deadline_sec
from glasshouse.providers.registry import open_provider
from glasshouse.records import keys
from glasshouse.records.ledger import Ledger
from glasshouse.records.plan import register_plan
from glasshouse.remote.pod import Pod
from glasshouse.spec import RunSpec
from glasshouse.workloads.package import prepare


def run_one(
    spec: RunSpec, *, overrides: Sequence[str], out: Path, screen: Screen, reservation: str | None = None
) -> finish.Outcome:
    """Execute one run; return its outcome. Raises UsageError for what can be known beforehand, and
    CleanupNotProven where it broke off. `reservation`: the money set aside for it (providers.budget).
    """
    # What can be refused is refused before anything exists: no folder, no plan, no allocation.
    named_broker()
    prepare(spec)
    with Journal() as journal, open_provider(spec.provider) as provider:
        provider.check(spec)
        context = create(spec, out, screen, list(overrides))
        lock = RunLock(context.folder)
        lock.take(wait=True)
        screen.headline(f"run {context.run}  {_describe(spec)}")

        # 1. Plan: signed and in the ledger before anything is rented.
        registered = register_plan(Ledger(), keys.operator_key(), context.run, spec)
        (context.parts / "plan.dsse.json").write_bytes(registered.envelope)
        try:
            with Watchdog(context.folder):
                try:
                    with _interruptible():
                        _attempt(context, provider, journal, reservation)
                finally:
                    # 7. Release: destroy and prove it, whatever happened: also a full disk, a fault of ours.
                    with _uninterrupted(screen):
                        finish.release(context, provider, journal)
            # 8. and 9. Judge, record.
            with _uninterrupted(screen), screen.phase("judging and signing the record"):
                outcome = finish.record(context)
        except BaseException as error:
            if (alarm := finish.broken_off(context, provider, journal, error)) is not None:
                raise alarm from error
            raise
        finally:
            lock.close()
    for message in context.messages:
        screen.warn(message)
    return outcome


def _attempt(context: RunContext, provider: Provider, journal: Journal, reservation: str | None) -> None:
    """Steps 2 to 6; every way they can end is noted in the context."""
    try:
        # 2. Allocate: the intent is on disk before the create call, the id right after it.
        detail = {
            "folder": str(context.folder.resolve()),
            "maxUsd": cost_ceiling(context.spec),
            "reservation": reservation,
            "provider": context.spec.provider.model_dump(mode="json"),
        }
        journal.intend(context.run, context.name, provider.kind, detail)
        context.phase = "boot-failed"
        with context.screen.phase(f"allocating on {provider.kind}"):
            allocation = _allocate(context, provider, journal)
        # 3. Connect.
        context.phase = "connect-failed"
        with context.screen.phase("connecting"):
            pod = Pod(allocation.endpoint, deadline=context.deadline).__enter__()
        try:
            # 4. Make the pod ready, seal, upload: each notes its own phase.
            with prepared(context, pod, allocation) as ready:
                # 5. and 6. The legs, in the order of the plan.
                context.phase = "leg-failed"
                view = LegView(context.screen, context.schedule)
                with view.legs():
                    for slot in context.schedule:
                        with view.slot(slot) as label:
                            result = run_slot(context, ready, slot, label)
                        view.done(slot, result)
        finally:
            pod.close()
    except KeyboardInterrupt:
        context.screen.warn("interrupted: the run is excluded; releasing what it holds")
        context.fail("interrupted")
    except LegError as error:
        if error.code == "gpu-not-as-asked" or context.phase != "leg-failed":
            context.fail(error.code, f"error: {error.line()}")
        else:
            context.messages.append(f"error: {error.line()}")
            context.exit_code = max(context.exit_code, 1)
    except ProviderError as error:
        code = str(error.value) if error.field == "code" else context.phase
        context.fail(code, f"error: {error.line()}", 3)
    except GlasshouseError as error:
        context.fail(context.phase, f"error: {error.line()}", error.exit_code)


def _allocate(context: RunContext, provider: Provider, journal: Journal) -> Allocation:
    """Rent, and keep every id that the provider gives out as soon as it is known."""
    began = time.monotonic()
    if context.spec.paid:
        context.rented_at = round(time.time(), 3)
        context.deadline = began + rental_deadline_sec(context.spec)
    context.save()

    def keep() -> None:
        ids = ",".join(provider.known_ids(context.name))
        if (ids, provider.simulated) != (context.allocation_id or "", context.simulated):
            if ids:
                journal.created(context.name, ids)
            context.allocation_id, context.simulated = ids or None, provider.simulated
            context.save()

    def progress(text: str) -> None:
        keep()
        context.screen.progress(text)

    try:
        allocation = provider.allocate(context.name, context.spec, progress)
    finally:
        keep()
    if context.allocation_id is None:
        journal.created(context.name, allocation.id)
        context.allocation_id = allocation.id
        context.save()
    source = allocation.endpoint.host_key_source
    described = describe(context, allocation, gpu_model=allocation.gpu_model, source=source)
    context.write("allocation.json", described)
    return allocation


def run_sweep(
    cells: Sequence[tuple[list[str], RunSpec]],
    *,
    out: Path,
    as_json: bool = False,
    quiet: bool = False,
    skipped: Sequence[Skipped] = (),
    reservation: str | None = None,
) -> int:
    """Run every cell, one after the other; return the highest exit code.

    All cells are validated before the first starts; a sweep goes on past an excluded cell. `skipped`
    are cells that a finished run covers: they are only named. `reservation` is what the cells' money was set
    aside under.
    """
    screen = Screen(quiet=quiet)
    for cell in skipped:
        screen.note(cell.line())
    for _, spec in cells:
        prepare(spec)
        with open_provider(spec.provider) as provider:
            provider.check(spec)
    outcomes: list[finish.Outcome] = []
    alarms: list[str] = []
    code = 0
    for number, (overrides, spec) in enumerate(cells, start=1):
        if len(cells) > 1:
            screen.headline(f"cell {number} of {len(cells)}: {' '.join(overrides) or 'defaults'}")
        try:
            outcome = run_one(spec, overrides=overrides, out=out, screen=screen, reservation=reservation)
        except KeyboardInterrupt:
            code = max(code, 1)
            break
        except CleanupNotProven as error:
            alarms.append(error.line())
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
        if outcome.alarm and spec.paid and number < len(cells) and reap.gone(outcome.run, screen):
            code = max(code, 1)  # late, but proven: the row stays excluded, and nothing bills
            continue
        alarms += [outcome.alarm] if outcome.alarm else []
        code = max(code, outcome.exit_code)
        if outcome.alarm and spec.paid and number < len(cells):
            # What is left bills beyond its own budget: another machine beside it is not what was planned.
            screen.warn(f"stopped before cell {number + 1} of {len(cells)}: a machine may be left")
            break
        if "interrupted" in outcome.record.reasons:
            break
    screen.summary([summary_row(outcome.record) for outcome in outcomes])
    for outcome in outcomes:
        if cost := _cost_line(outcome.record):
            screen.note(cost)
        screen.note(f"evidence: {outcome.folder}/bundle   check it: glasshouse verify {outcome.folder}")
    if as_json:
        runs = [
            {"folder": item.folder, "exitCode": item.exit_code, **parse_json(item.record.to_bytes())}
            for item in outcomes
        ]
        done = [asdict(cell) for cell in skipped]
        print(json.dumps({"exitCode": code, "runs": runs, "skipped": done}))  # noqa: T201 -- the one document
    for alarm in alarms:
        screen.alarm(alarm)
    return code


def summary_row(record: Record) -> dict[str, Any]:
    """Pick what the table at the end shows from a record."""
    figures = record.figures
    return {
        "run": record.run,
        "order": figures.order,
        "status": record.status,
        "rawPerSec": figures.raw_per_sec,
        "protectedPerSec": figures.protected_per_sec,
        "overheadPct": overhead_stated(figures),
        "control": control_line(figures),
        "noFigure": blocks_lost(figures),
        "fixedSec": (figures.fixed_cost_sec or {}).get("totalSec"),
        "excluded": list(record.reasons),
        "caveats": list(record.caveats),
    }


def _cost_line(record: Record) -> str:
    """Return what a rented run cost, "" where nothing was rented or the price is not known."""
    held, usd = record.figures.held_sec, record.figures.cost_usd
    if held is None or usd is None:
        return ""
    whose = " at a fake provider's price: nothing was paid" if "simulated" in record.caveats else ""
    paid = f"{usd:.2f}" if usd >= 0.01 else "less than 0.01"
    return f"{record.run} cost {paid} USD for {held / 60:.1f} min{whose}"


def _describe(spec: RunSpec) -> str:
    amount = f"{spec.steps} steps" if spec.steps is not None else f"{spec.duration:g} s per arm"
    what = {
        "provider": spec.provider.kind,
        "gpu": spec.gpu.name,
        "model": spec.model.name,
        "order": spec.order,
    }
    if spec.control != "none":
        what["control"] = spec.control
    return " ".join([*(f"{key}={value}" for key, value in what.items()), amount])


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM mean what Ctrl-C means."""

    def terminate(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # not the main thread: a launcher's worker, which has its own ways
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _uninterrupted(screen: Screen) -> Iterator[None]:
    """Finish what must be finished: Ctrl-C is answered with a word, not obeyed."""
    said = [0.0]

    def hold(_signal: int, _frame: object) -> None:
        if time.monotonic() - said[0] > 1:
            said[0] = time.monotonic()
            screen.warn("finishing: releasing and recording; one moment")

    try:
        before = [(number, signal.signal(number, hold)) for number in (signal.SIGINT, signal.SIGTERM)]
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)
        sys.stderr.flush()
