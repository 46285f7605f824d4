"""The journal: what was intended is known to whoever comes after."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from glasshouse import paths
from glasshouse.errors import UsageError
from glasshouse.providers.journal import Journal


def test_an_entry_survives_reopening_and_closes_only_by_proof() -> None:
    with Journal() as journal:
        journal.intend("run-1", "gh-run-1-a", "local", {"host": None, "n": 1})
        journal.intend("run-2", "gh-run-2-b", "ssh", {})
        journal.created("gh-run-1-a", "pod-77")
    with Journal() as journal:
        first, second = journal.open_entries()
        assert (first.name, first.run, first.provider, first.allocation_id, first.proof) == (
            "gh-run-1-a",
            "run-1",
            "local",
            "pod-77",
            None,
        )
        assert first.detail == {"host": None, "n": 1}
        assert second.allocation_id is None
        journal.closed("gh-run-1-a", "zero")
        journal.closed("gh-run-2-b", "unknown")
    with Journal() as journal:
        (left,) = journal.open_entries()
        assert (left.name, left.proof) == ("gh-run-2-b", "unknown")
        journal.closed("gh-run-2-b", "nonzero")
        assert journal.open_entries()[0].proof == "nonzero"
        journal.closed("gh-run-2-b", "zero")
        assert journal.open_entries() == ()


def test_it_says_until_when_a_machine_may_run_alone_while_it_is_not_proven_gone() -> None:
    now = time.time()
    with Journal() as journal:
        for name in ("gh-run-a", "gh-run-b"):
            journal.intend("run", name, "local", {})
        journal.unattended("gh-run-a", now + 60)
    with Journal() as journal:
        first, second = journal.open_entries()
        assert (first.unattended_until, first.may_go_on) == (now + 60, True)
        assert (second.unattended_until, second.may_go_on) == (0.0, False)
        journal.unattended("gh-run-b", now - 1)
        assert not journal.open_entries()[1].may_go_on
        journal.unattended("gh-run-a", 0.0)
        assert not journal.open_entries()[0].may_go_on
        journal.unattended("gh-run-a", now + 60)
        journal.closed("gh-run-a", "zero")
        gone = journal.find("gh-run-a")
        assert gone is not None
        assert not gone.may_go_on


def test_the_file_is_private_and_each_commit_is_synced() -> None:
    with Journal() as journal:
        journal.intend("run", "gh-run-a", "local", {})
        path = paths.state_dir() / "state.db"
        assert path.stat().st_mode & 0o077 == 0
        with journal._engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"


INTEND_AND_DIE = """
import os
from glasshouse.providers.journal import Journal
Journal().intend("run", "gh-run-dead", "local", {})
os.kill(os.getpid(), 9)
"""


def test_an_intent_outlives_a_controller_killed_right_after() -> None:
    assert subprocess.run([sys.executable, "-c", INTEND_AND_DIE], check=False).returncode == -9
    with Journal() as journal:
        journal.intend("run", "gh-run-living", "local", {})
        dead, living = journal.open_entries()
    assert (dead.name, dead.controller_alive) == ("gh-run-dead", False)
    assert (living.name, living.controller_alive) == ("gh-run-living", True)
    assert dead.controller_host == living.controller_host == os.uname().nodename


def _intend(number: int) -> int:
    with Journal() as journal:
        for item in range(5):
            journal.intend(f"run-{number}", f"gh-run-{number}-{item}", "local", {})
            journal.created(f"gh-run-{number}-{item}", "id")
    return number


def test_many_processes_share_it() -> None:
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
        assert sorted(pool.map(_intend, range(3))) == [0, 1, 2]
    with Journal() as journal:
        assert len(journal.open_entries()) == 15


def test_a_name_is_used_once_and_must_be_known() -> None:
    with Journal() as journal:
        journal.intend("run", "gh-run-a", "local", {})
        with pytest.raises(UsageError, match="already"):
            journal.intend("run", "gh-run-a", "local", {})
        with pytest.raises(UsageError, match="not in the journal"):
            journal.created("gh-run-b", "id")
        with pytest.raises(UsageError, match="not in the journal"):
            journal.closed("gh-run-b", "zero")


def test_the_state_variable_moves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLASSHOUSE_STATE", f"sqlite:///{tmp_path}/shared.db")
    with Journal() as journal:
        journal.intend("run", "gh-run-a", "local", {})
    with sqlite3.connect(tmp_path / "shared.db") as connection:
        assert connection.execute("select count(*) from allocations").fetchone() == (1,)
    connection.close()


@pytest.mark.parametrize(
    "url", ["nonsense", "mysterydb://user:hunter2@host/db", "sqlite:////proc/nowhere/state.db"]
)
def test_a_journal_that_cannot_be_kept_stops_before_anything_is_created(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLASSHOUSE_STATE", url)
    with pytest.raises(UsageError, match="GLASSHOUSE_STATE") as caught:
        Journal()
    assert caught.value.exit_code == 2
    assert "hunter2" not in caught.value.line()


def test_what_is_in_doubt_is_known_to_whoever_comes_after() -> None:
    with Journal() as journal:
        journal.intend("run", "gh-run-a", "runpod", {})
        (entry,) = journal.open_entries()
        assert entry.doubt_until is None  # its controller said nothing of its creates
        journal.doubtful("gh-run-a", 0.0)
        journal.doubtful("gh-run-a", 1234.5)
    with Journal() as journal:
        (entry,) = journal.open_entries()
        assert (entry.doubt_until, entry.closed_at) == (1234.5, None)
        assert journal.find("gh-run-a") == entry
        assert journal.find("gh-run") is None
        journal.closed("gh-run-a", "zero")
        (closed,) = journal.closed_since(0.0)
        assert closed.closed_at is not None
        assert journal.closed_since(closed.closed_at) == ()


def test_what_a_provider_notes_is_told_to_whoever_comes_after() -> None:
    with Journal() as journal:
        journal.intend("run-a", "gh-run-a", "vastai", {})
        journal.intend("run-b", "gh-run-b", "vastai", {})
        journal.noted("gh-run-a", "first")
        journal.noted("gh-run-a", "second")
    with Journal() as journal:
        assert [entry.note for entry in journal.open_entries()] == ["second", None]


def test_the_journal_of_an_older_version_gains_the_doubts(glasshouse_home: Path) -> None:
    with Journal() as journal:
        journal.intend("run", "gh-run-a", "runpod", {})
        with journal._transaction() as connection:
            connection.exec_driver_sql("DROP TABLE doubts")
            connection.exec_driver_sql("DROP TABLE notes")
    with Journal() as journal:
        assert journal.open_entries()[0].doubt_until is None
        journal.doubtful("gh-run-a", 5.0)
        assert journal.open_entries()[0].doubt_until == 5.0
