"""The store: what may happen once happens once, also after a restart, a crash, a restore, and under load."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy.exc import SQLAlchemyError

from glasshouse.attestation.store import Store
from glasshouse.errors import AttestationError

KEK = b"\x11" * 32
KEY = b"payload-key-of-thirty-two-bytes!"
WHERE = ("run", "s000", 1)


def _url(folder: Path) -> str:
    return f"sqlite:///{folder / 'broker.db'}"


def _ticket(
    store: Store, sha256: str = "t" * 64, *, leg: str = "s000", launch: int = 1, expires: int = 1000
) -> str:
    store.put_ticket(sha256, "run", leg, launch, reference="{}", policy="{}", expires=expires)
    return sha256


def _challenge(store: Store, nonce: str = "nonce") -> None:
    ticket = _ticket(store)
    store.spend_ticket(ticket, WHERE, 1)
    store.put_challenge(nonce, ticket, "token", WHERE, at=1)


def _codes(call: Callable[[], object]) -> tuple[str, ...]:
    try:
        call()
    except AttestationError as error:
        return error.codes
    return ()


def _race(count: int, call: Callable[[], object]) -> list[tuple[str, ...]]:
    with ThreadPoolExecutor(count) as pool:
        return [future.result() for future in [pool.submit(_codes, call) for _ in range(count)]]


def test_sqlite_is_durable(tmp_path: Path) -> None:
    with Store(_url(tmp_path), KEK) as store, store._transaction() as tx:
        assert tx.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert tx.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL


def test_payload_keys_rest_wrapped(tmp_path: Path) -> None:
    with Store(_url(tmp_path), KEK) as store:
        store.put_payload("run", "m" * 64, KEY, 1)
        assert bytes(store.unwrap("run", "m" * 64)) == KEY
        assert store.unwrap_calls == 1
    for path in tmp_path.iterdir():
        assert KEY not in path.read_bytes()
        assert KEK not in path.read_bytes()


def test_every_unwrap_is_counted_also_a_failed_one(tmp_path: Path) -> None:
    with Store(_url(tmp_path), KEK) as store:
        assert _codes(lambda: store.unwrap("run", "m" * 64)) == ("payload-unknown",)
        assert store.unwrap_calls == 1


@pytest.mark.parametrize("column", ["run", "manifest_hash", "wrapped", "wrap_nonce"])
def test_a_wrapped_key_is_bound_to_its_row(tmp_path: Path, column: str) -> None:
    with Store(_url(tmp_path), KEK) as store:
        store.put_payload("run", "m" * 64, KEY, 1)
    value: object = (
        "other" if column in ("run", "manifest_hash") else bytes(48 if column == "wrapped" else 12)
    )
    with sqlite3.connect(tmp_path / "broker.db") as database:
        database.execute(f"UPDATE payloads SET {column} = ?", (value,))
    database.close()
    where = {"run": "run", "manifest_hash": "m" * 64}
    if isinstance(value, str):
        where[column] = value
    with Store(_url(tmp_path), KEK) as store:
        assert _codes(lambda: store.unwrap(**where)) == ("payload-unreadable",)


def test_another_kek_opens_nothing(tmp_path: Path) -> None:
    with Store(_url(tmp_path), KEK) as store:
        store.put_payload("run", "m" * 64, KEY, 1)
    with Store(_url(tmp_path), b"\x12" * 32) as store:
        assert _codes(lambda: store.unwrap("run", "m" * 64)) == ("payload-unreadable",)


def test_a_package_is_registered_once(tmp_path: Path) -> None:
    with Store(_url(tmp_path), KEK) as store:
        store.put_payload("run", "m" * 64, KEY, 1)
        assert _codes(lambda: store.put_payload("run", "m" * 64, KEY, 9)) == ("payload-registered",)


def test_a_kek_has_32_bytes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Store(_url(tmp_path), b"short")


def test_a_ticket_is_spent_once_by_a_hundred(tmp_path: Path) -> None:
    with Store(_url(tmp_path), KEK) as store:
        ticket = _ticket(store)
        outcomes = _race(100, lambda: store.spend_ticket(ticket, WHERE, 1))
    assert outcomes.count(()) == 1
    assert outcomes.count(("ticket-used",)) == 99


def test_a_challenge_is_consumed_once_by_a_hundred(tmp_path: Path) -> None:
    with Store(_url(tmp_path), KEK) as store:
        _challenge(store)
        outcomes = _race(100, lambda: store.consume_challenge("nonce", 1))
    assert outcomes.count(()) == 1
    assert outcomes.count(("nonce-replay",)) == 99


def test_two_openings_share_one_file_under_load(tmp_path: Path) -> None:
    """As two controllers of a sweep do: SQLite's own lock, without our queue in between."""
    with Store(_url(tmp_path), KEK) as one, Store(_url(tmp_path), KEK) as two:

        def write(index: int) -> None:
            (one, two)[index % 2].log("test", index)

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(write, range(120)))
        assert sorted(line.at for line in one.audit_log()) == list(range(120))


def test_openings_at_once_on_a_new_file_all_succeed(tmp_path: Path) -> None:
    """The cells of a parallel sweep start together; WAL mode itself needs the write lock once."""

    def open_and_write(index: int) -> None:
        with Store(_url(tmp_path), KEK) as store:
            store.log("test", index)

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(open_and_write, range(24)))
    with Store(_url(tmp_path), KEK) as store:
        assert len(store.audit_log()) == 24


@pytest.mark.parametrize(
    ("asked", "now", "code"),
    [
        (WHERE, 10, "ticket-expired"),
        (("other", "s000", 1), 9, "ticket-mismatch"),
        (("run", "s001", 1), 9, "ticket-mismatch"),
        (("run", "s000", 2), 9, "ticket-mismatch"),
    ],
)
def test_a_ticket_that_is_refused_is_not_spent(
    tmp_path: Path, asked: tuple[str, str, int], now: int, code: str
) -> None:
    with Store(_url(tmp_path), KEK) as store:
        ticket = _ticket(store, expires=10)
        assert _codes(lambda: store.spend_ticket(ticket, asked, now)) == (code,)
        assert store.spend_ticket(ticket, WHERE, 9).sha256 == ticket
        assert _codes(lambda: store.spend_ticket(ticket, asked, now)) == ("ticket-used",)


def test_a_launch_has_one_ticket(tmp_path: Path) -> None:
    with Store(_url(tmp_path), KEK) as store:
        _ticket(store)
        assert _codes(lambda: _ticket(store, "u" * 64)) == ("ticket-issued",)
        _ticket(store, "u" * 64, launch=2)


def test_consumption_survives_a_restart(tmp_path: Path) -> None:
    with Store(_url(tmp_path), KEK) as store:
        _challenge(store)
        store.consume_challenge("nonce", 1)
    with Store(_url(tmp_path), KEK) as store:
        assert _codes(lambda: store.consume_challenge("nonce", 2)) == ("nonce-replay",)
        assert _codes(lambda: store.spend_ticket("t" * 64, WHERE, 2)) == ("ticket-used",)


def test_consumption_survives_a_killed_process(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from glasshouse.attestation.store import Store\n"
        "store = Store(sys.argv[1], bytes([17]) * 32)\n"
        "store.put_ticket('t' * 64, 'run', 's000', 1, reference='{}', policy='{}', expires=1000)\n"
        "store.spend_ticket('t' * 64, ('run', 's000', 1), 1)\n"
        "store.put_challenge('nonce', 't' * 64, 'token', ('run', 's000', 1), at=1)\n"
        "store.consume_challenge('nonce', 1)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, _url(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    with Store(_url(tmp_path), KEK) as store:
        assert _codes(lambda: store.consume_challenge("nonce", 2)) == ("nonce-replay",)
        assert _codes(lambda: store.spend_ticket("t" * 64, WHERE, 2)) == ("ticket-used",)


def test_a_restored_backup_accepts_nothing_of_before(tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    backup.mkdir()
    with Store(_url(tmp_path), KEK) as store:
        _challenge(store)
        _ticket(store, "u" * 64, leg="s001")
        with store._transaction() as tx:
            tx.exec_driver_sql("COMMIT")
            tx.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
            tx.exec_driver_sql("BEGIN")
        shutil.copy(tmp_path / "broker.db", backup)
        store.consume_challenge("nonce", 1)
        before = store.id
    with Store(_url(backup), KEK) as store:
        assert store.id != before
        assert _codes(lambda: store.consume_challenge("nonce", 2)) == ("challenge-store-mismatch",)
        asked = ("run", "s001", 1)
        assert _codes(lambda: store.spend_ticket("u" * 64, asked, 2)) == ("ticket-store-mismatch",)


def test_grants_stop_at_the_runs_limit_under_load(tmp_path: Path) -> None:
    with Store(_url(tmp_path), KEK) as store:
        store.put_payload("run", "m" * 64, KEY, 7)

        def reserve(index: int) -> tuple[str, ...]:
            return _codes(
                lambda: store.reserve_grant(f"n{index}", "run", f"s{index}", 1, manifest_hash="m" * 64, now=1)
            )

        with ThreadPoolExecutor(32) as pool:
            outcomes = list(pool.map(reserve, range(40)))
        assert outcomes.count(()) == 7
        assert outcomes.count(("grant-limit-reached",)) == 33
        assert store.grant_count("run") == 7


def test_a_launch_has_one_grant(tmp_path: Path) -> None:
    with Store(_url(tmp_path), KEK) as store:
        store.put_payload("run", "m" * 64, KEY, 7)
        store.reserve_grant("n1", *WHERE, manifest_hash="m" * 64, now=1)
        again = _codes(lambda: store.reserve_grant("n2", *WHERE, manifest_hash="m" * 64, now=1))
        assert again == ("grant-issued",)
        assert store.grant_count("run") == 1


def test_a_second_package_of_a_run_does_not_raise_its_limit(tmp_path: Path) -> None:
    with Store(_url(tmp_path), KEK) as store:
        store.put_payload("run", "m" * 64, KEY, 1)
        store.put_payload("run", "n" * 64, KEY, 50)
        store.reserve_grant("n1", *WHERE, manifest_hash="n" * 64, now=1)
        refused = _codes(lambda: store.reserve_grant("n2", "run", "s001", 1, manifest_hash="n" * 64, now=1))
        assert refused == ("grant-limit-reached",)


def test_the_database_file_is_private(tmp_path: Path) -> None:
    previous = os.umask(0o022)
    try:
        with Store(_url(tmp_path), KEK) as store:
            store.log("test", 1)
            modes = {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    finally:
        os.umask(previous)
    assert modes == {0o600}


@pytest.mark.parametrize("statement", ["UPDATE audit SET codes = '[]'", "DELETE FROM audit WHERE seq = 1"])
def test_the_audit_log_only_grows(tmp_path: Path, statement: str) -> None:
    with Store(_url(tmp_path), KEK) as store:
        store.log("evidence-refused", 1, None, ["nonce-replay"])
        with pytest.raises(SQLAlchemyError, match="only grows"), store._transaction() as tx:
            tx.exec_driver_sql(statement)
    with Store(_url(tmp_path), KEK) as store:  # and the file opens again, with its triggers there already
        store.log("evidence-refused", 2)
        assert [line.codes for line in store.audit_log()] == [("nonce-replay",), ()]
