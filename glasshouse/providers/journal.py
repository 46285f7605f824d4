"""The write-ahead journal of allocations: what may exist at a provider, known even after a killed controller.

The intent is on disk before the create call leaves; the entry stays open until a release proved zero.
SQLite by default (state_dir()/state.db, WAL, synchronous=FULL: a commit that returned survives a power
cut), PostgreSQL by its SQLAlchemy URL in GLASSHOUSE_STATE, so that sweeps on several hosts share one journal
and one cap. Of a process on another host nobody here can see whether it lives: its reservation counts until
its time is up, then what it has rented and not given back, and `reap` leaves its entries alone unless told.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.schema import CreateTable

from glasshouse import host, paths
from glasshouse.canonical import CanonicalError, canonical_json, parse_json
from glasshouse.errors import UsageError
from glasshouse.providers.base import Proof

_metadata = sa.MetaData()
_allocations = sa.Table(
    "allocations",
    _metadata,
    sa.Column("name", sa.String(100), primary_key=True),
    sa.Column("run", sa.String(80), nullable=False),
    sa.Column("provider", sa.String(40), nullable=False),
    sa.Column("detail", sa.Text, nullable=False),  # canonical JSON, never a secret
    sa.Column("controller", sa.String(200), nullable=False),
    sa.Column("intended_at", sa.Float, nullable=False),  # Unix seconds, as all times here
    sa.Column("allocation_id", sa.String(200)),
    sa.Column("created_at", sa.Float),
    sa.Column("proof", sa.String(20)),
    sa.Column("closed_at", sa.Float),
)
_reservations = sa.Table(
    "reservations",
    _metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("controller", sa.String(200), nullable=False),
    sa.Column("usd", sa.Float, nullable=False),
    sa.Column("until", sa.Float, nullable=False),
)
# Beside the allocations, not columns of theirs: a journal of an older version gains them by being opened.
_doubts = sa.Table(
    "doubts",
    _metadata,
    sa.Column("name", sa.String(100), primary_key=True),
    sa.Column("until", sa.Float, nullable=False),
)
_unattended = sa.Table(
    "unattended",
    _metadata,
    sa.Column("name", sa.String(100), primary_key=True),
    sa.Column("until", sa.Float, nullable=False),
)
_keys = sa.Table(
    "key_digests",
    _metadata,
    sa.Column("name", sa.String(100), primary_key=True),
    sa.Column("salt", sa.String(32), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
)
_notes = sa.Table(
    "notes",
    _metadata,
    sa.Column("name", sa.String(100), primary_key=True),
    sa.Column("note", sa.Text, nullable=False),
)


@dataclass(frozen=True)
class KeyMark:
    """Tells a provider's key from others, and nothing else about it (providers/accounts.py). Hex digits."""

    salt: str
    digest: str


@dataclass(frozen=True)
class Entry:
    """One allocation that was intended. `allocation_id` None: the create call's outcome is not known.

    `doubt_until`: when its creates can make no machine any more, in Unix seconds, 0.0 while none was sent;
    None where its controller never said. `note`: what the provider wants a release by another process to be
    told beside that, None where it said nothing. `closed_at`: when it was proven gone, None while it is not.
    `unattended_until`: until when its machine may run without a controller, in Unix seconds; 0.0: not at all.
    `key`: the mark of the key that rented; None where none is needed, and in older journals.
    `detail` is what `intend` was given: what another process needs to open the same provider again.
    `controller` names the process that wrote it: host, boot, pid and start time (glasshouse.host).
    """

    name: str
    run: str
    provider: str
    detail: Mapping[str, Any]
    controller: str
    intended_at: float
    allocation_id: str | None
    proof: Proof | None
    doubt_until: float | None = None
    closed_at: float | None = None
    note: str | None = None
    key: KeyMark | None = None
    unattended_until: float = 0.0

    @property
    def may_go_on(self) -> bool:
        """Whether its machine may run without a controller, now."""
        return self.closed_at is None and time.time() < self.unattended_until

    @property
    def controller_alive(self) -> bool:
        """Whether the process that wrote the entry runs on this machine; False for one on another host."""
        return _alive(self.controller)

    @property
    def controller_host(self) -> str:
        """The name of the machine whose controller wrote the entry."""
        return self.controller.split(":", 1)[0]

    @property
    def controller_here(self) -> bool:
        """Whether that machine is this one, so that its processes can be seen."""
        return _here(self.controller)


class Journal:
    """Open with `Journal()`; safe to use from several processes, and from threads of one."""

    def __init__(self, url: str | None = None) -> None:
        self._url = url or os.environ.get("GLASSHOUSE_STATE") or f"sqlite:///{paths.state_dir() / 'state.db'}"
        self._engine = _engine(self._url)
        if self._engine.dialect.name == "sqlite":
            sa.event.listen(self._engine, "connect", _durable)
            if self._engine.url.database:
                with contextlib.suppress(OSError):  # the first statement says it better
                    Path(self._engine.url.database).touch(mode=0o600)
        with self._transaction() as connection:
            if self.shared:
                # Two controllers that start at once on a new database would both create the tables.
                connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7160412)")
            for table in (_allocations, _reservations, _doubts, _keys, _notes, _unattended):
                connection.execute(CreateTable(table, if_not_exists=True))

    @property
    def shared(self) -> bool:
        """Whether controllers on other hosts may write to it."""
        return self._engine.dialect.name == "postgresql"

    @property
    def where(self) -> str:
        """Where it lies, for a person: a file, or a database, whose address can hold a password."""
        return f"a {_scheme(self._url)} database" if self.shared else str(self._engine.url.database)

    def extent(self) -> tuple[int, float | None]:
        """How many allocations were ever noted in it, and when the first was (Unix seconds)."""
        query = sa.select(sa.func.count(), sa.func.min(_allocations.c.intended_at)).select_from(_allocations)
        with self._transaction() as connection:
            count, first = connection.execute(query).one()
        return int(count), first

    def intend(
        self, run: str, name: str, provider: str, detail: Mapping[str, Any], key: KeyMark | None = None
    ) -> None:
        """Record that `name` is about to be created, with this key; returns once that is durable.

        Raises UsageError when it cannot be written: then nothing may be created.
        """
        row = {
            "name": name,
            "run": run,
            "provider": provider,
            "detail": canonical_json(dict(detail)).decode("utf-8"),
            "controller": _controller(),
            "intended_at": time.time(),
        }
        with self._transaction() as connection:
            connection.execute(_allocations.insert().values(row))
            if key is not None:
                connection.execute(_keys.insert().values(name=name, salt=key.salt, digest=key.digest))

    def created(self, name: str, allocation_id: str) -> None:
        """Record the provider's id for `name`."""
        self._update(name, allocation_id=allocation_id, created_at=time.time())

    def doubtful(self, name: str, until: float) -> None:
        """Record that a create for `name` may make a machine until then (Unix seconds), before it is sent."""
        self._put(_doubts, name, until=until)

    def rented_with(self, name: str, key: KeyMark) -> None:
        """Record that `name` belongs to the account of this key."""
        self._put(_keys, name, salt=key.salt, digest=key.digest)

    def noted(self, name: str, note: str) -> None:
        """Record what a release of `name` by another process has to be told (Provider.note)."""
        self._put(_notes, name, note=note)

    def unattended(self, name: str, until: float) -> None:
        """Record until when the machine of `name` may run without a controller, in Unix seconds; 0.0: not any
        more. Written before the create is sent, and taken back before a release.
        """
        self._put(_unattended, name, until=until)

    def closed(self, name: str, proof: Proof) -> None:
        """Record how a release ended. Only `zero` closes the entry; otherwise it stays open for `reap`."""
        self._update(name, proof=proof, closed_at=time.time() if proof == "zero" else None)

    def open_entries(self) -> tuple[Entry, ...]:
        """Return every allocation not proven gone, oldest first."""
        with self._transaction() as connection:
            return _open(connection)

    def find(self, name: str) -> Entry | None:
        """The allocation of this name, proven gone or not; None where this journal never intended it."""
        with self._transaction() as connection:
            row = connection.execute(_entries().where(_allocations.c.name == name)).mappings().first()
        return None if row is None else _entry(row)

    def closed_since(self, moment: float) -> tuple[Entry, ...]:
        """Every allocation that was proven gone after `moment` (Unix seconds), oldest first."""
        query = _entries().where(_allocations.c.closed_at > moment).order_by(_allocations.c.closed_at)
        with self._transaction() as connection:
            return tuple(_entry(row) for row in connection.execute(query).mappings())

    def reserve(self, usd: float, *, until: float, cap: float | None) -> str:
        """Set `usd` aside for this process; return the reservation's id, for `unreserve`.

        Raises UsageError, and sets nothing aside, when that and all else that may still be spent is more
        than `cap`: what other living processes have reserved, and the ceilings (`maxUsd`) of allocations that
        are not proven gone and whose own `reservation` holds no more: its process died, and may have left
        workers that go on. `until`: Unix seconds, when a reservation on another host, whose process cannot be
        seen from here, counts no more.
        """
        key = secrets.token_hex(16)
        row = {"id": key, "controller": _controller(), "usd": usd, "until": until}
        with self._transaction() as connection:
            self._lock(connection)
            # Written before the others are read: under SQLite that takes the lock, so two processes queue.
            connection.execute(_reservations.insert().values(row))
            _check_cap(connection, key, usd, cap)
        return key

    def enlarge(self, key: str, usd: float, *, cap: float | None, own_cap: float | None) -> None:
        """Set `usd` more aside under reservation `key`, or less (below 0).

        Raises UsageError, and changes nothing, when what is reserved under it would then be more than
        `own_cap`, or with all else that may still be spent more than `cap`; also when there is no such
        reservation.
        """
        with self._transaction() as connection:
            self._lock(connection)
            change = _reservations.update().where(_reservations.c.id == key)
            if connection.execute(change.values(usd=_reservations.c.usd + usd)).rowcount != 1:
                raise UsageError("not reserved in the journal", field="reservation", value=key)
            held = connection.execute(
                sa.select(_reservations.c.usd).where(_reservations.c.id == key)
            ).scalar_one()
            if usd > 0 and own_cap is not None and held > own_cap:
                raise UsageError("more than the cap", field="cap", value=f"{own_cap:.2f}")
            if usd > 0:
                _check_cap(connection, key, held, cap)

    def unreserve(self, key: str) -> None:
        """Give a reservation back."""
        with self._transaction() as connection:
            connection.execute(_reservations.delete().where(_reservations.c.id == key))

    def _lock(self, connection: sa.Connection) -> None:
        if self.shared:
            connection.execute(sa.text("LOCK TABLE reservations IN EXCLUSIVE MODE"))

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _put(self, table: sa.Table, name: str, **values: object) -> None:
        """Write the row of `name` in a table that has at most one of it."""
        with self._transaction() as connection:
            change = table.update().where(table.c.name == name).values(**values)
            if connection.execute(change).rowcount == 0:
                connection.execute(table.insert().values(name=name, **values))

    def _update(self, name: str, **values: object) -> None:
        with self._transaction() as connection:
            changed = connection.execute(
                _allocations.update().where(_allocations.c.name == name).values(**values)
            ).rowcount
        if changed != 1:
            raise UsageError("not in the journal", field="allocation", value=name)

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except sa.exc.IntegrityError as error:
            raise UsageError("this allocation name is already in the journal") from error
        except sa.exc.SQLAlchemyError as error:
            raise UsageError(
                f"the journal cannot be used ({type(error).__name__})",
                field="GLASSHOUSE_STATE",
                value=_scheme(self._url),
                remedy="check that the state folder, or the database, is there and writable",
            ) from error


def _engine(url: str) -> sa.Engine:
    cause = None
    try:
        # No pool: a connection is open only while a statement runs, so forks and threads share nothing.
        engine = sa.create_engine(url, poolclass=sa.NullPool)
        if engine.dialect.name in ("sqlite", "postgresql"):
            return engine
    except (sa.exc.ArgumentError, ModuleNotFoundError) as error:
        cause = error
    raise UsageError(
        "not a usable database address",
        field="GLASSHOUSE_STATE",
        value=_scheme(url),
        remedy="give sqlite:////path/state.db, or with the extra postgres postgresql+psycopg://user@host/name",
    ) from cause


def _check_cap(connection: sa.Connection, key: str, usd: float, cap: float | None) -> None:
    """Raise UsageError when `usd`, held under `key`, and all else that may still be spent exceed `cap`."""
    left, living = 0.0, set()
    for other in connection.execute(sa.select(_reservations)).mappings().all():
        if other["id"] == key:
            living.add(key)
        elif _counts(other["controller"], other["until"]):
            left += other["usd"]
            living.add(other["id"])
        else:
            connection.execute(_reservations.delete().where(_reservations.c.id == other["id"]))
    # After the reservations: a process that dies in between counts twice, never not at all.
    for entry in _open(connection):
        if entry.detail.get("reservation") not in living:
            left += _ceiling(entry)
    if cap is not None and usd + left > cap:
        raise UsageError(
            f"this could cost up to {usd:.2f} USD, and {left:.2f} are reserved already, "
            "by other runs or for machines not proven gone",
            field="cap",
            value=f"{cap:.2f}",
            remedy="wait for them, run `glasshouse reap`, or raise the cap",
        )


def _entries() -> sa.Select[Any]:
    """Allocations, each with the end of its doubt, its note and the mark of its key."""
    joined: sa.FromClause = _allocations
    for table in (_doubts, _notes, _keys, _unattended):
        joined = joined.outerjoin(table, _allocations.c.name == table.c.name)
    columns = (
        _doubts.c.until.label("doubt_until"),
        _notes.c.note,
        _keys.c.salt,
        _keys.c.digest,
        _unattended.c.until.label("unattended_until"),
    )
    return sa.select(_allocations, *columns).select_from(joined)


def _open(connection: sa.Connection) -> tuple[Entry, ...]:
    query = (
        _entries()
        .where(_allocations.c.closed_at.is_(None))
        .order_by(_allocations.c.intended_at, _allocations.c.name)
    )
    return tuple(_entry(row) for row in connection.execute(query).mappings())


def _entry(row: sa.RowMapping) -> Entry:
    return Entry(
        name=row["name"],
        run=row["run"],
        provider=row["provider"],
        detail=_detail(row["detail"]),
        controller=row["controller"],
        intended_at=row["intended_at"],
        allocation_id=row["allocation_id"],
        proof=row["proof"],
        doubt_until=row["doubt_until"],
        closed_at=row["closed_at"],
        note=row["note"],
        key=None if row["digest"] is None else KeyMark(row["salt"], row["digest"]),
        unattended_until=row["unattended_until"] or 0.0,
    )


def _detail(text: str) -> Mapping[str, Any]:
    """What `intend` was given; nothing where it cannot be read, so that one bad row hides no other."""
    try:
        found = parse_json(text)
    except CanonicalError:
        return {}
    return found if isinstance(found, dict) else {}


def _ceiling(entry: Entry) -> float:
    value = entry.detail.get("maxUsd")
    return float(value) if isinstance(value, int | float) else 0.0


def _controller() -> str:
    """Name this process: host:boot:pid:start time."""
    return f"{socket.gethostname()}:{host.identity(os.getpid())}"


def _here(controller: str) -> bool:
    name, _, process = controller.partition(":")
    return name == socket.gethostname() or host.of_this_boot(process)


def _alive(controller: str) -> bool:
    return _here(controller) and host.lives(controller.partition(":")[2])


def _counts(controller: str, until: float) -> bool:
    """Whether a reservation still holds: its process lives, or is on another host and in its time."""
    return _alive(controller) if _here(controller) else until > time.time()


def _scheme(url: str) -> str:
    """What may be shown of a database URL: it can hold a password."""
    return url.split(":", 1)[0]


def _durable(connection: Any, _record: object) -> None:
    # synchronous=FULL: in WAL mode the default of some builds (NORMAL) may lose the last commits at a power
    # cut. fullfsync: what FULL means on macOS, whose fsync ends in the drive's cache; nothing elsewhere.
    for pragma in ("busy_timeout=30000", "synchronous=FULL", "fullfsync=ON"):
        connection.execute(f"PRAGMA {pragma}").close()
    # Entering WAL mode ignores the busy time-out, so processes that open a fresh file together try again.
    deadline = time.monotonic() + 30.0
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL").close()
            return
        except sqlite3.OperationalError as error:
            # The low byte is the primary code; what is above it says how it came to be busy.
            held = error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
            if not held or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
