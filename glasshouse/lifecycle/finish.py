"""Steps 7 to 9 of a run: release, judge, record. They happen whatever came before.

Also done by `glasshouse reap` and by the watchdog, from the run folder alone.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from glasshouse.canonical import sha256_hex
from glasshouse.codes import Code
from glasshouse.errors import CleanupNotProven, GlasshouseError, ProviderError, UsageError
from glasshouse.judgement.judge import Judgement
from glasshouse.judgement.record import Record
from glasshouse.lifecycle.live_run import LiveRun
from glasshouse.lifecycle.waiting import journaling
from glasshouse.providers.base import UNWATCHED, Provider, ReleaseProof, Waits
from glasshouse.providers.journal import Entry, Journal
from glasshouse.records import keys
from glasshouse.records.bundle import write_bundle
from glasshouse.records.ledger import Ledger
from glasshouse.schema import Outcome, Release

DETAIL_CHARS = 300  # most of a release's detail in the bundle


@dataclass(frozen=True)
class Recorded:
    """How a run ended: its record, and the exit code that says it."""

    run: str
    folder: str
    record: Record
    exit_code: int
    alarm: str = ""
    in_doubt: bool = False
    nothing_back: bool = False


def release(
    live: LiveRun,
    provider: Provider,
    journal: Journal,
    waits: Waits = UNWATCHED,
    entry: Entry | None = None,
) -> ReleaseProof:
    """Destroy the allocation, prove it, write release.json, close the journal entry.

    `entry`: what the journal says of another process's creates.
    """
    run, rental, ending = live.run, live.rental, live.ending
    if rental.unattended_until:
        # From here on nothing of it is left alone, whatever becomes of this process.
        rental.unattended_until = 0.0
        with contextlib.suppress(UsageError):
            journal.unattended(run.allocation, 0.0)
        with contextlib.suppress(OSError):
            live.save()
    kept = journaling(waits, journal, run.allocation, rental.allocation_id)
    with live.screen.phase("releasing the allocation"):
        until, note = (None, None) if entry is None else (entry.doubt_until, entry.note)
        proof = provider.release(run.allocation, rental.allocation_id, until, kept, note)
    ending.proven = proof.proof == "zero"
    live.folder.write("release.json", release_file(proof))
    rental.simulated = rental.simulated or provider.simulated
    try:
        journal.closed(run.allocation, proof.proof)
    except UsageError as error:
        # A registered plan ends as a row, also where the journal has failed.
        ending.messages.append(f"error: {error.line()}")
    if proof.proof == "zero":
        live.screen.say(f"nothing is left, and that is proven: {proof.detail}")
    else:
        ending.exit_code = CleanupNotProven.exit_code
        ids = ",".join(provider.known_ids(run.allocation)) or rental.allocation_id or "not known"
        ending.in_doubt = proof.doubt_until is not None
        ending.alarm = (
            f"CLEAN-UP NOT PROVEN ({proof.proof}): {run.allocation} at {provider.kind}, id {ids}: "
            f"{proof.detail}.{_in_doubt(proof)} It may still cost money: run `glasshouse reap`."
        )
        live.screen.alarm(ending.alarm)
    return proof


def _in_doubt(proof: ReleaseProof) -> str:
    if proof.doubt_until is None:
        return ""
    until = time.strftime("%H:%M:%S UTC", time.gmtime(proof.doubt_until))
    return f" A machine that was asked for may appear until {until}."


def release_file(proof: ReleaseProof) -> Release:
    """Return release.json."""
    # Why a host could not be asked may name it: the terminal is told, the bundle is not.
    detail = proof.detail if proof.proof == "zero" else f"clean-up is {proof.proof}"
    return Release(
        proof=proof.proof,
        active=proof.active,
        detail=detail[:DETAIL_CHARS],
        account_total=proof.account_total,
        pod_folder_removed=proof.folder_removed,
        processes_left=proof.processes_left,
        checked_at=tuple(round(moment, 3) for moment in proof.checked_at),
    )


def broken_off(
    live: LiveRun, provider: Provider, journal: Journal, error: BaseException
) -> CleanupNotProven | ProviderError | None:
    """What to say of a run that broke off, which its watchdog now finishes; None: nothing of it is left.

    A ProviderError where the release was proven, and could only not be written down.
    """
    name = live.run.allocation
    try:
        left = any(entry.name == name for entry in journal.open_entries())
    except UsageError:
        left = True
    if not left:
        return None
    why = str(error) or type(error).__name__
    if live.ending.proven:
        return ProviderError(
            f"the run broke off ({why}); its machine is given back, and that is proven",
            field="folder", value=live.folder.path,
            remedy="where its disk is full, make room: `glasshouse reap` writes its row",
        )  # fmt: skip
    ids = ",".join(provider.known_ids(name)) or live.rental.allocation_id or "not known"
    return CleanupNotProven(
        f"CLEAN-UP NOT PROVEN: {name} at {provider.kind}, id {ids}: the run broke off ({why}), "
        "and its watchdog goes on with the release",
        remedy="it may still cost money until `glasshouse reap` says that nothing is left",
    )


def record(live: LiveRun) -> Recorded:
    """Judge what was gathered, write and sign the bundle, resolve the plan in the ledger."""
    folder, failures = live.folder, live.ending.failures
    with contextlib.suppress(FileNotFoundError):
        folder.package.unlink()
    for leftover in folder.path.glob("broker.db*"):
        leftover.unlink()
    ended = time.time()
    folder.write("outcome.json", outcome_file(live, failures, ended))
    folder.mend(failures[0] if failures else Code.INTERRUPTED)
    try:
        judgement = _write_bundle(live, ended)
    except GlasshouseError as error:
        live.screen.warn(f"the legs' files do not make evidence: {error.what}")
        folder.strip()
        folder.write("outcome.json", outcome_file(live, [Code.EVIDENCE_UNUSABLE, *failures], ended))
        judgement = _write_bundle(live, ended)
    record_bytes = (folder.bundle / "record.json").read_bytes()
    Ledger().append_row(
        run=live.run.id,
        row=judgement.row,
        status=judgement.status,
        record_sha256=sha256_hex(record_bytes),
        bundle_sha256=sha256_hex((folder.bundle / "bundle.dsse.json").read_bytes()),
    )
    shutil.rmtree(folder.parts)
    code = live.ending.exit_code
    if judgement.status == "excluded":
        code = max(code, 1)
    return Recorded(
        live.run.id, str(folder.path), judgement.as_record(), code, live.ending.alarm, live.ending.in_doubt,
        live.ending.nothing_back,
    )  # fmt: skip


def outcome_file(live: LiveRun, codes: Sequence[str], ended: float) -> Outcome:
    """Return outcome.json; `ended` is in Unix seconds. It says `simulated`, `rentedAt` and `takenUpAt` only
    if so.
    """
    rental = live.rental
    optional: dict[str, Any] = {"simulated": True} if rental.simulated else {}
    unused = rental.allocation_id is not None and not live.folder.has("allocation.json")
    if unused and rental.rented_at is not None:
        optional["rented_at"] = rental.rented_at
    if live.ending.taken_up_at is not None:
        optional["taken_up_at"] = round(live.ending.taken_up_at, 3)
    return Outcome(
        codes=tuple(codes),
        started_at=round(live.run.started, 3),
        ended_at=round(ended, 3),
        **optional,
    )


def _write_bundle(live: LiveRun, now: float) -> Judgement:
    parts = live.folder.parts
    files = {
        str(path.relative_to(parts)): path.read_bytes() for path in sorted(parts.rglob("*")) if path.is_file()
    }
    operator = keys.operator_key()
    keys.broker_key()  # made on first use; its public half must be in the keyring that judges exchanges
    keyring = keys.load_keyring()
    return write_bundle(live.folder.bundle, files, run=live.run.id, key=operator, keyring=keyring, now=now)
