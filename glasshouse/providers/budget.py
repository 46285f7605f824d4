"""Money set aside for a whole sweep before its first create, seen by all who share the journal.

A sweep's ceiling counts one machine at a time. While a create is in doubt (providers/creates.py) the next one
could make a second machine. It goes out at once where the cap also holds for that one, which is then set
aside (`beside`); else it waits for the end of the doubt.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from glasshouse.errors import UsageError
from glasshouse.providers.base import Afford
from glasshouse.providers.journal import Journal
from glasshouse.providers.money import (
    CAP_VARIABLE,
    beside_usd,
    cap_usd,
    check_budget,
    machines,
    parse_usd,
    rental_deadline_sec,
)
from glasshouse.spec import RunSpec


@contextmanager
def reserved(specs: Sequence[RunSpec]) -> Iterator[str | None]:
    """Hold the cost ceiling of all cells while they run; yield the reservation's id, None where all is free.

    Raises UsageError when it does not fit.

    `spend.max_usd` caps this sweep alone; GLASSHOUSE_MAX_USD caps it together with all that other
    processes have set aside and with what a dead one may have left renting.
    """
    total = check_budget(specs, cap_usd(specs))
    if total == 0:
        yield None
        return
    text = os.environ.get(CAP_VARIABLE)
    until = time.time() + sum(rental_deadline_sec(spec) * machines(spec) for spec in specs if spec.paid)
    with Journal() as journal:
        key = journal.reserve(total, until=until, cap=parse_usd(text) if text else None)
        try:
            yield key
        finally:
            # A reservation that stays behind ends with this process.
            with contextlib.suppress(UsageError):
                journal.unreserve(key)


@contextmanager
def beside(journal: Journal, spec: RunSpec, reservation: str | None) -> Iterator[Afford]:
    """Yield what sets money aside for machines beside the budgeted one, and says whether the caps allow it.

    What was set aside is given back at the end. Without a reservation to add to, nothing is beside.
    """
    text = os.environ.get(CAP_VARIABLE)
    cap = parse_usd(text) if text else None
    one, held = beside_usd(spec), 0

    def afford(machines: int) -> bool:
        nonlocal held
        if reservation is None:
            return False
        if machines > held:
            try:
                journal.enlarge(reservation, (machines - held) * one, cap=cap, own_cap=spec.spend.max_usd)
            except UsageError:
                return False
            held = machines
        return True

    try:
        yield afford
    finally:
        if held and reservation is not None:
            # A sweep whose reservation is gone holds nothing any more.
            with contextlib.suppress(UsageError):
                journal.enlarge(reservation, -held * one, cap=None, own_cap=None)
