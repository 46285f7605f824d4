"""The broker's tables, and the engine that opens them: SQLite (default) or PostgreSQL, by URL.

What may happen once is a key or a unique constraint here, and is decided by the database in one committed
write: a consumed challenge stays consumed after a power cut (SQLite runs WAL with synchronous=FULL).
"""

from __future__ import annotations

import os
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    event,
    make_url,
)

BUSY_TIMEOUT_MS = 30_000

schema = MetaData()
LAUNCH = ("run", "leg", "launch")

tickets = Table(
    "tickets",
    schema,
    Column("sha256", String(64), primary_key=True),  # of the ticket's public key: ticket.py
    Column("store", String(64), nullable=False),
    Column("run", String(64), nullable=False),
    Column("leg", String(64), nullable=False),
    Column("launch", Integer, nullable=False),
    Column("reference", Text, nullable=False),
    Column("policy", Text, nullable=False),
    Column("expires", Integer, nullable=False),
    Column("used", Integer),
    UniqueConstraint(*LAUNCH),  # a launch has one ticket; a retry is another launch
)
challenges = Table(
    "challenges",
    schema,
    Column("nonce", String(64), primary_key=True),
    Column("ticket", String(64), nullable=False, unique=True),  # a ticket yields one challenge
    Column("store", String(64), nullable=False),
    Column("token", Text, nullable=False),
    Column("consumed", Integer),
)
payloads = Table(
    "payloads",
    schema,
    Column("run", String(64), primary_key=True),
    Column("manifest_hash", String(64), primary_key=True),
    Column("wrap_nonce", LargeBinary(12), nullable=False),
    Column("wrapped", LargeBinary(64), nullable=False),
    Column("max_grants", Integer, nullable=False),
)
grants = Table(
    "grants",
    schema,
    Column("nonce", String(64), primary_key=True),  # one grant per challenge
    Column("run", String(64), nullable=False),
    Column("leg", String(64), nullable=False),
    Column("launch", Integer, nullable=False),
    Column("issued", Integer, nullable=False),
    UniqueConstraint(*LAUNCH),
)
exchanges = Table(
    "exchanges",
    schema,
    Column("run", String(64), primary_key=True),
    Column("leg", String(64), primary_key=True),
    Column("launch", Integer, primary_key=True),
    Column("document", Text, nullable=False),
)
audit = Table(
    "audit",
    schema,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("at", Integer, nullable=False),
    Column("store", String(64), nullable=False),
    Column("event", String(32), nullable=False),
    Column("run", String(64)),
    Column("leg", String(64)),
    Column("launch", Integer),
    Column("codes", Text, nullable=False),
)
_SQLITE_GROWS = tuple(
    f"CREATE TRIGGER audit_keeps_{verb} BEFORE {verb} ON audit "
    "BEGIN SELECT RAISE(ABORT, 'the audit log only grows'); END"
    for verb in ("UPDATE", "DELETE")
)
_POSTGRES_GROWS = (
    (
        "CREATE OR REPLACE FUNCTION audit_only_grows() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'the audit log only grows'; END $$"
    ),
    (
        "CREATE TRIGGER audit_keeps BEFORE UPDATE OR DELETE OR TRUNCATE ON audit "
        "FOR EACH STATEMENT EXECUTE FUNCTION audit_only_grows()"
    ),
)


@event.listens_for(audit, "after_create")
def _keep(_table: Table, connection: Connection, **_named: Any) -> None:
    """Let the database itself refuse to change or remove an audit line, whoever asks through this account."""
    for statement in _SQLITE_GROWS if connection.dialect.name == "sqlite" else _POSTGRES_GROWS:
        connection.exec_driver_sql(statement)


def open_engine(url: str) -> Engine:
    """Open a database by its SQLAlchemy URL; an SQLite file is made readable by its user only."""
    if make_url(url).get_backend_name() != "sqlite":
        return create_engine(url, pool_pre_ping=True)
    path = make_url(url).database
    if path and path != ":memory:":
        # SQLite gives its -wal and -shm files the mode of the database; without this, the umask's.
        os.close(os.open(path, os.O_CREAT | os.O_CLOEXEC, 0o600))
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000})

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        # The driver's own BEGIN is deferred: two readers that both turn writer then fail with SQLITE_BUSY.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "fullfsync=ON", "secure_delete=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine
