"""Steps 7 to 9 of a run: release, judge, record. They happen whatever came before.

Also done by `glasshouse reap` and by the watchdog, from the run folder alone.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from dataclasses import dataclass

from glasshouse.canonical import sha256_hex
from glasshouse.errors import CleanupNotProven, GlasshouseError, UsageError
from glasshouse.judgement.judge import Judgement
from glasshouse.judgement.record import Record
from glasshouse.lifecycle.context import RunContext
from glasshouse.lifecycle.mend import mend, strip
from glasshouse.providers.base import Provider, ReleaseProof
from glasshouse.providers.journal import Journal
from glasshouse.records import keys
from glasshouse.records.bundle import write_bundle
from glasshouse.records.ledger import Ledger


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its record, and the exit code that says it."""

    run: str
    folder: str
    record: Record
    exit_code: int
    alarm: str = ""


def release(context: RunContext, provider: Provider, journal: Journal) -> ReleaseProof:
    """Destroy the allocation, prove it, write release.json, close the journal entry."""
    screen = context.screen
    with screen.phase("releasing the allocation"):
        proof = provider.release(context.name, context.allocation_id)
    context.write(
        "release.json",
        {
            "proof": proof.proof,
            "active": proof.active,
            # Why a host could not be asked may name it: the terminal is told, the bundle is not.
            "detail": proof.detail if proof.proof == "zero" else f"clean-up is {proof.proof}",
            "accountTotal": proof.account_total,
            "podFolderRemoved": proof.folder_removed,
            "processesLeft": proof.processes_left,
            "checkedAt": [round(moment, 3) for moment in proof.checked_at],
        },
    )
    context.simulated = context.simulated or provider.simulated
    try:
        journal.closed(context.name, proof.proof)
    except UsageError as error:
        # A registered plan ends as a row, also where the journal has failed.
        context.messages.append(f"error: {error.line()}")
    if proof.proof != "zero":
        context.exit_code = 4
        ids = context.allocation_id or ",".join(provider.known_ids(context.name)) or "not known"
        context.alarm = (
            f"CLEAN-UP NOT PROVEN ({proof.proof}): {context.name} at {provider.kind}, id {ids}: "
            f"{proof.detail}. It may still cost money: run `glasshouse reap`."
        )
        screen.alarm(context.alarm)
    return proof


def broken_off(
    context: RunContext, provider: Provider, journal: Journal, error: BaseException
) -> CleanupNotProven | None:
    """What to say of a run that broke off, which its watchdog now finishes; None: nothing of it is left."""
    try:
        left = any(entry.name == context.name for entry in journal.open_entries())
    except UsageError:
        left = True
    if not left:
        return None
    why = str(error) or type(error).__name__
    ids = ",".join(provider.known_ids(context.name)) or context.allocation_id or "not known"
    return CleanupNotProven(
        f"CLEAN-UP NOT PROVEN: {context.name} at {provider.kind}, id {ids}: the run broke off ({why}), "
        "and its watchdog goes on with the release",
        remedy="it may still cost money until `glasshouse reap` says that nothing is left",
    )


def record(context: RunContext) -> Outcome:
    """Judge what was gathered, write and sign the bundle, resolve the plan in the ledger."""
    with contextlib.suppress(FileNotFoundError):
        (context.folder / "package.sealed").unlink()
    for leftover in context.folder.glob("broker.db*"):
        leftover.unlink()
    ended = time.time()
    _write_outcome(context, context.failures, ended)
    mend(context.parts, context.failures[0] if context.failures else "interrupted")
    try:
        judgement = _write(context, ended)
    except GlasshouseError as error:
        context.screen.warn(f"the legs' files do not make evidence: {error.what}")
        strip(context.parts)
        _write_outcome(context, ["evidence-unusable", *context.failures], ended)
        judgement = _write(context, ended)
    record_bytes = (context.bundle / "record.json").read_bytes()
    Ledger().append_row(
        run=context.run,
        row=judgement.row,
        status=judgement.status,
        record_sha256=sha256_hex(record_bytes),
        bundle_sha256=sha256_hex((context.bundle / "bundle.dsse.json").read_bytes()),
    )
    shutil.rmtree(context.parts)
    code = context.exit_code
    if judgement.status == "excluded":
        code = max(code, 1)
    return Outcome(context.run, str(context.folder), judgement.as_record(), code, context.alarm)


def _write_outcome(context: RunContext, codes: list[str], ended: float) -> None:
    times = {"startedAt": round(context.started, 3), "endedAt": round(ended, 3)}
    simulated = {"simulated": True} if context.simulated else {}
    unused = context.allocation_id is not None and not (context.parts / "allocation.json").exists()
    rented = {"rentedAt": context.rented_at} if unused and context.rented_at is not None else {}
    context.write("outcome.json", {"codes": codes, **times, **simulated, **rented})


def _write(context: RunContext, now: float) -> Judgement:
    files = {
        str(path.relative_to(context.parts)): path.read_bytes()
        for path in sorted(context.parts.rglob("*"))
        if path.is_file()
    }
    operator = keys.operator_key()
    keys.broker_key()  # made on first use; its public half must be in the keyring that judges exchanges
    keyring = keys.load_keyring()
    return write_bundle(context.bundle, files, run=context.run, key=operator, keyring=keyring, now=now)
