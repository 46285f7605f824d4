"""Money set aside by one process is not there for another; what a dead one left renting is not either."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import sqlalchemy as sa

from glasshouse.errors import UsageError
from glasshouse.lifecycle import leg
from glasshouse.measurement.schedule import build_schedule
from glasshouse.providers import money
from glasshouse.providers.budget import beside, reserved
from glasshouse.providers.journal import Journal
from glasshouse.spec import LocalProvider

from .cloud_kit import rented_spec

LATER = 4e9
HOLD = """
import sys
from glasshouse.providers.journal import Journal
with Journal() as journal:
    try:
        key = journal.reserve(float(sys.argv[1]), until=4e9, cap=float(sys.argv[2]))
        if sys.argv[3] == "rents":
            journal.intend("r", "gh-r-a", "runpod", {"maxUsd": float(sys.argv[1]), "reservation": key})
    except Exception as error:
        print("refused", flush=True)
    else:
        print("held", flush=True)
    sys.stdin.read()
"""
INTEND = """
import json, sys
from glasshouse.providers.journal import Journal
with Journal() as journal:
    journal.intend("r", "gh-r-a", "runpod", json.loads(sys.argv[1]))
"""


def _hold(usd: float, cap: float, then: str = "waits") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(usd), str(cap), then],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def _end(process: subprocess.Popen[str]) -> None:
    process.communicate()


def _said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_two_processes_share_one_cap() -> None:
    first, second = _hold(6.0, 10.0), _hold(6.0, 10.0)
    try:
        # Whoever comes second is refused, however close together they come.
        assert sorted([_said(first), _said(second)]) == ["held", "refused"]
        with Journal() as journal:
            with pytest.raises(UsageError, match=r"6\.00 are reserved already") as caught:
                journal.reserve(4.01, until=LATER, cap=10.0)
            assert caught.value.exit_code == 2
            journal.unreserve(journal.reserve(4.0, until=LATER, cap=10.0))
            # Without a shared cap nothing is refused, and others see it all the same.
            journal.unreserve(journal.reserve(40.0, until=LATER, cap=None))
    finally:
        _end(first)
        _end(second)
    with Journal() as journal:  # both have ended: what they held is free
        journal.reserve(10.0, until=LATER, cap=10.0)


def test_a_killed_process_holds_nothing_but_what_it_may_have_left_renting() -> None:
    process = _hold(9.0, 10.0)
    assert _said(process) == "held"
    process.kill()
    _end(process)
    subprocess.run([sys.executable, "-c", INTEND, '{"maxUsd": 7.5}'], check=True)
    with Journal() as journal:
        with pytest.raises(UsageError, match=r"7\.50 are reserved already"):
            journal.reserve(2.6, until=LATER, cap=10.0)
        journal.unreserve(journal.reserve(2.5, until=LATER, cap=10.0))
        journal.closed("gh-r-a", "zero")
        journal.reserve(10.0, until=LATER, cap=10.0)


def test_workers_that_outlive_their_sweep_still_count() -> None:
    sweep = _hold(9.0, 10.0)
    assert _said(sweep) == "held"
    with Journal() as journal:
        (key,) = [row["id"] for row in _reservations(journal)]
        # A worker, here this process, rents one of its cells; then the sweep's own process is killed.
        journal.intend("r", "gh-r-a", "runpod", {"maxUsd": 4.0, "reservation": key})
        journal.unreserve(journal.reserve(1.0, until=LATER, cap=10.0))  # counted once: 9 of 10
        sweep.kill()
        _end(sweep)
        with pytest.raises(UsageError, match=r"4\.00 are reserved already"):
            journal.reserve(6.01, until=LATER, cap=10.0)
        journal.reserve(6.0, until=LATER, cap=10.0)


def test_a_process_that_dies_while_another_reserves_is_counted() -> None:
    process = _hold(6.0, 10.0, "rents")
    assert _said(process) == "held"
    with Journal() as journal:

        def kill(_: object, __: object, statement: str, *___: object) -> None:
            if statement.startswith("INSERT INTO reservations") and process.poll() is None:
                process.kill()
                _end(process)

        sa.event.listen(journal._engine, "before_cursor_execute", kill)
        with pytest.raises(UsageError, match=r"6\.00 are reserved already"):
            journal.reserve(5.0, until=LATER, cap=10.0)


def _reservations(journal: Journal) -> list[dict]:
    with journal._transaction() as connection:
        rows = connection.exec_driver_sql("SELECT * FROM reservations").mappings()
        return [dict(row) for row in rows]


def test_a_reservation_on_another_host_counts_until_its_time() -> None:
    with Journal() as journal:
        key = journal.reserve(8.0, until=LATER, cap=None)
        with journal._transaction() as connection:
            connection.exec_driver_sql("UPDATE reservations SET controller = 'elsewhere:boot:1:1'")
        with pytest.raises(UsageError):
            journal.reserve(3.0, until=LATER, cap=10.0)
        with journal._transaction() as connection:
            connection.exec_driver_sql("UPDATE reservations SET until = ?", (time.time() - 1,))
        journal.reserve(3.0, until=LATER, cap=10.0)
        journal.unreserve(key)


def test_a_sweep_holds_all_its_cells_and_gives_them_back(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = rented_spec("runpod")
    one = money.cost_ceiling(cell)
    monkeypatch.setenv("GLASSHOUSE_MAX_USD", f"{3 * one + 0.02:.2f}")
    with reserved([cell, cell]):
        with reserved([cell]):
            pass
        with pytest.raises(UsageError, match="reserved already"), reserved([cell, cell]):
            pytest.fail("twice the money")
    with reserved([cell, cell, cell]):
        pass
    with pytest.raises(UsageError, match="more than the cap"), reserved([cell] * 4):
        pytest.fail("more than the cap")


@pytest.mark.parametrize("order", ["raw-first", "protected-only", "abba"])
@pytest.mark.parametrize(
    "work",
    [
        {"duration": 60.0},
        {"duration": 8.0},
        {"duration": None, "steps": 1600},
        {"duration": None, "steps": 1607},
    ],
)
def test_what_is_budgeted_for_legs_is_what_they_are_given(order: str, work: dict) -> None:
    spec = rented_spec("runpod").model_copy(update={"order": order, **work})
    live = SimpleNamespace(run=SimpleNamespace(spec=spec), rental=SimpleNamespace(deadline=math.inf))
    given = [leg.leg_deadline_sec(live, slot) for slot in build_schedule(spec)]
    assert money.leg_deadlines_sec(spec) == pytest.approx(sum(given))
    assert money.rental_deadline_sec(spec) == pytest.approx(2 * 3.0 + sum(given))


def test_the_journal_of_an_older_version_gains_the_table(glasshouse_home: Path) -> None:
    with Journal() as journal, journal._transaction() as connection:
        connection.exec_driver_sql("DROP TABLE reservations")
    with Journal() as journal:
        journal.unreserve(journal.reserve(1.0, until=LATER, cap=1.0))


def test_a_machine_beside_the_budgeted_one_is_set_aside_or_not_rented(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cell = rented_spec("runpod")
    one, more = money.cost_ceiling(cell), money.beside_usd(cell)
    # A boot of 3 s, a doubt of 300 s, and 300 s for its end, at 0.30 USD an hour.
    assert more == pytest.approx(0.3 * 603 / 3600)
    monkeypatch.setenv("GLASSHOUSE_MAX_USD", f"{one + 2.5 * more:.2f}")
    with reserved([cell]) as key, Journal() as journal:
        with beside(journal, cell, key) as afford:
            assert afford(1)
            assert afford(2)
            assert afford(2)  # the same two
            assert not afford(3)
            with pytest.raises(UsageError):
                journal.reserve(more, until=LATER, cap=one + 2.5 * more)  # they count for others too
        journal.unreserve(journal.reserve(more, until=LATER, cap=one + 2.5 * more))
        with beside(journal, cell, None) as afford:
            assert not afford(1)


def test_the_sweeps_own_cap_holds_for_machines_beside_too() -> None:
    cell = rented_spec("runpod")
    one, more = money.cost_ceiling(cell), money.beside_usd(cell)
    spend = cell.spend.model_copy(update={"max_usd": one + 1.5 * more})
    cell = cell.model_copy(update={"spend": spend})
    with reserved([cell]) as key, Journal() as journal, beside(journal, cell, key) as afford:
        assert afford(1)
        assert not afford(2)


def test_a_machine_beside_costs_nothing_where_nothing_is_rented() -> None:
    cell = rented_spec("runpod")
    free = cell.model_copy(update={"provider": LocalProvider(kind="local")})
    assert money.beside_usd(free) == 0.0
