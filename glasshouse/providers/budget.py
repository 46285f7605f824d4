"""Money set aside for a whole sweep before its first create, seen by all who share the journal."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from glasshouse.errors import UsageError
from glasshouse.providers.journal import Journal
from glasshouse.providers.money import CAP_VARIABLE, cap_usd, check_budget, parse_usd, rental_deadline_sec
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
    until = time.time() + sum(rental_deadline_sec(spec) for spec in specs if spec.paid)
    with Journal() as journal:
        key = journal.reserve(total, until=until, cap=parse_usd(text) if text else None)
        try:
            yield key
        finally:
            # A reservation that stays behind ends with this process.
            with contextlib.suppress(UsageError):
                journal.unreserve(key)
