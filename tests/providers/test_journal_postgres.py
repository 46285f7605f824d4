"""The journal on PostgreSQL, which controllers on several hosts share: the same promises."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import sqlalchemy as sa

from glasshouse.errors import UsageError
from glasshouse.lifecycle.reap import Wishes, reap_all
from glasshouse.lifecycle.screen import Screen
from glasshouse.providers.journal import Journal, KeyMark
from tests.e2e.conftest import TINY, Program, kill_with_watchdog, wait_until
from tests.postgres import postgres

from .test_budget import INTEND, LATER, _end, _hold, _said
from .test_journal import _intend

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    with postgres() as url:
        yield url


@pytest.fixture
def url(cluster: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty database, in which this test's journal is kept."""
    name = f"t{abs(hash(request.node.name))}"
    engine = sa.create_engine(cluster, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    made = cluster.removesuffix("postgres") + name
    monkeypatch.setenv("GLASSHOUSE_STATE", made)
    return made


def _move(journal: Journal, table: str, host: str) -> None:
    """Let a row have been written by a controller on another host."""
    with journal._transaction() as connection:
        connection.exec_driver_sql(f"UPDATE {table} SET controller = '{host}:boot:1:1'")


def test_an_entry_is_there_for_another_opening_until_zero_is_proven(url: str) -> None:
    with Journal() as journal, Journal(url) as other:
        assert journal.shared
        journal.intend("run", "gh-run-a", "runpod", {"maxUsd": 1.5, "provider": {"kind": "runpod"}})
        with pytest.raises(UsageError, match="already"):
            other.intend("run", "gh-run-a", "runpod", {})
        (entry,) = other.open_entries()
        assert (entry.allocation_id, entry.detail["maxUsd"], entry.controller_alive) == (None, 1.5, True)
        other.created("gh-run-a", "pod-1")  # adopted: the id is learnt by whoever looks
        assert journal.open_entries()[0].allocation_id == "pod-1"
        assert journal.open_entries()[0].intended_at == entry.intended_at  # not cut to 32 bits
        assert entry.key is None
        for mark in (KeyMark("00", "11"), KeyMark("22", "33")):
            other.rented_with("gh-run-a", mark)
            assert journal.open_entries()[0].key == mark
        journal.closed("gh-run-a", "nonzero")
        assert [item.proof for item in other.open_entries()] == ["nonzero"]
        other.closed("gh-run-a", "zero")
        assert journal.open_entries() == ()


def test_controllers_that_start_at_once_on_a_new_database(url: str) -> None:
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as pool:
        assert sorted(pool.map(_intend, range(4))) == [0, 1, 2, 3]
    with Journal() as journal:
        assert len(journal.open_entries()) == 20


def test_a_cap_is_shared_however_close_together_they_come(url: str) -> None:
    held = [_hold(4.0, 10.0) for _ in range(4)]
    try:
        assert sorted(map(_said, held)) == ["held", "held", "refused", "refused"]
        with Journal() as journal, pytest.raises(UsageError, match=r"8\.00 are reserved already"):
            journal.reserve(2.01, until=LATER, cap=10.0)
    finally:
        for process in held:
            _end(process)
    subprocess.run([sys.executable, "-c", INTEND, '{"maxUsd": 7.5}'], check=True)
    with Journal() as journal:
        with pytest.raises(UsageError, match=r"7\.50 are reserved already"):
            journal.reserve(2.6, until=LATER, cap=10.0)
        journal.reserve(2.5, until=LATER, cap=10.0)
        _move(journal, "reservations", "elsewhere")
        with pytest.raises(UsageError, match=r"10\.00 are reserved already"):
            journal.reserve(0.01, until=LATER, cap=10.0)


def test_what_another_host_rents_is_left_alone_unless_it_is_known_to_be_gone(url: str) -> None:
    local = {"provider": {"kind": "local"}}
    with Journal() as journal:
        journal.intend("20260101-120000-abcdef", "gh-20260101-120000-abcdef-00000000", "local", local)
        _move(journal, "allocations", "elsewhere")
        (left,) = reap_all(Screen(quiet=True))
        assert (left.state, left.proof) == ("elsewhere", None)
        assert "reap on elsewhere" in left.detail
        assert len(journal.open_entries()) == 1
        (reaped,) = reap_all(Screen(quiet=True), Wishes(elsewhere=True))
        assert (reaped.state, reaped.proof) == ("reaped", "zero")
        assert journal.open_entries() == ()


def test_a_database_that_is_not_there_stops_before_anything_is_created(url: str) -> None:
    with pytest.raises(UsageError, match=r"cannot be used .*GLASSHOUSE_STATE=postgresql") as caught:
        Journal(url.replace("tester@127.0.0.1", "tester:hunter2@127.0.0.1").rsplit("/", 1)[0] + "/none")
    assert "hunter2" not in caught.value.line()


class _Shared(Program):
    @property
    def environment(self) -> dict[str, str]:
        return super().environment | {"GLASSHOUSE_STATE": os.environ["GLASSHOUSE_STATE"]}


@pytest.mark.train
def test_a_killed_controllers_run_is_reaped_from_the_shared_journal(url: str, tmp_path: Path) -> None:
    program = _Shared(tmp_path / "home", tmp_path / "runs")
    process = program.start("run", "--out", str(program.runs), *TINY, "duration=60")
    wait_until(lambda: bool(list(program.runs.glob("*/parts/allocation.json"))), 60, "an allocation")
    (folder,) = program.runs.glob("2*")
    kill_with_watchdog(process, folder)
    done = program("reap", "--json")
    assert done.returncode == 0, done.stderr
    (item,) = json.loads(done.stdout)["allocations"]
    assert (item["state"], item["proof"]) == ("reaped", "zero")
    assert (folder / "bundle/record.json").exists()
    with Journal() as journal:
        assert journal.open_entries() == ()
