"""The broker's durable memory: tickets, challenges, payload keys under a KEK, exchanges, audit log.

SQLAlchemy Core over the tables of database.py.

A store has a random id, made anew each time it is opened. Tickets and challenges are valid only in the
opening that issued them: so a restored backup, in which spent ones look unspent, accepts none of them.

Secrets: of a ticket rests a hash of its public key only, payload keys rest AES-256-GCM-wrapped under the KEK
with the run and manifest hash as AAD. `Store.unwrap` is the one function that opens them; it is counted.
"""

from __future__ import annotations

import errno
import hmac
import json
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import Connection, func, insert, make_url, select, update
from sqlalchemy.exc import ArgumentError, IntegrityError, NoSuchModuleError, SQLAlchemyError

from glasshouse.attestation.database import (
    LAUNCH,
    audit,
    challenges,
    exchanges,
    grants,
    open_engine,
    payloads,
    schema,
    tickets,
)
from glasshouse.attestation.exchange import Exchange
from glasshouse.canonical import length_prefixed
from glasshouse.codes import Code
from glasshouse.errors import AttestationError, UsageError
from glasshouse.extras import install_line


@dataclass(frozen=True)
class SpentTicket:
    """A ticket that was just used: its hash, and what was said when it was issued (JSON texts)."""

    sha256: str
    reference: str
    policy: str


@dataclass(frozen=True)
class AskedChallenge:
    """A challenge that was just consumed: its token, its ticket's hash, what was said at that one's issue."""

    token: str
    ticket: str
    reference: str
    policy: str


@dataclass(frozen=True)
class AuditLine:
    """A line of the audit log: nothing secret, and nothing that a caller sent.

    seq: its number. at: Unix time, s. store: id of the opening that wrote it. run, leg, launch: None where
    the event is of no launch. codes: reason codes.
    """

    seq: int
    at: int
    store: str
    event: str
    run: str | None
    leg: str | None
    launch: int | None
    codes: tuple[str, ...]


class Store:
    """One opening of the broker's database. Thread-safe; a context manager that closes the connections.

    url: SQLAlchemy URL, `sqlite:///PATH` or `postgresql+psycopg://...`. kek: 32 bytes, kept in memory only.
    """

    def __init__(self, url: str, kek: bytes) -> None:
        if len(kek) != 32:
            raise ValueError("the KEK has 32 bytes")
        self.id = secrets.token_hex(16)
        self._kek = AESGCM(kek)
        self._unwraps = 0
        self._lock = threading.Lock()
        self._engine = open_engine(url)
        # SQLite takes one writer at a time and polls for the lock; a queue of our own is fair and faster.
        self._writer = threading.Lock() if self._engine.dialect.name == "sqlite" else None
        with self._transaction() as tx:
            if self._writer is None:
                # Two brokers that start at once on a new database would both create the tables.
                tx.exec_driver_sql("SELECT pg_advisory_xact_lock(7160411)")
            schema.create_all(tx)

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        if self._writer is None:
            with self._engine.begin() as tx:
                yield tx
        else:
            with self._writer, self._engine.begin() as tx:
                yield tx

    # Payload keys

    def put_payload(self, run: str, manifest_hash: str, payload_key: bytes, max_grants: int) -> None:
        """Wrap a payload key (32 bytes) under the KEK and keep it; a package has one.

        max_grants bounds the grants of the whole run: planned launches + retries.
        """
        nonce = secrets.token_bytes(12)
        wrapped = self._kek.encrypt(nonce, bytes(payload_key), _aad(run, manifest_hash))
        row = {"run": run, "manifest_hash": manifest_hash, "wrap_nonce": nonce, "wrapped": wrapped}
        try:
            with self._transaction() as tx:
                tx.execute(insert(payloads).values(**row, max_grants=max_grants))
        except IntegrityError as error:
            raise AttestationError(
                "this package is registered already", codes=[Code.PAYLOAD_REGISTERED]
            ) from error

    def has_payload(self, run: str, manifest_hash: str) -> bool:
        """Whether a payload key is registered for this package."""
        with self._transaction() as tx:
            return tx.execute(_payload(run, manifest_hash)).first() is not None

    def unwrap(self, run: str, manifest_hash: str) -> bytearray:
        """Open a payload key (32 bytes; the caller wipes it). The only function that does; every call counts.

        Raises AttestationError `payload-unknown`, or `payload-unreadable` for another KEK or a moved row.
        """
        with self._lock:
            self._unwraps += 1
        with self._transaction() as tx:
            row = tx.execute(_payload(run, manifest_hash)).mappings().first()
        if row is None:
            raise AttestationError("no such package is registered", codes=[Code.PAYLOAD_UNKNOWN])
        try:
            return bytearray(self._kek.decrypt(row["wrap_nonce"], row["wrapped"], _aad(run, manifest_hash)))
        except InvalidTag as error:
            raise AttestationError("a payload key does not open", codes=[Code.PAYLOAD_UNREADABLE]) from error

    @property
    def unwrap_calls(self) -> int:
        """How often `unwrap` was called in this opening."""
        with self._lock:
            return self._unwraps

    # Tickets and challenges

    def put_ticket(
        self, sha256: str, run: str, leg: str, launch: int, *, reference: str, policy: str, expires: int
    ) -> None:
        """Keep the hash of a ticket's public key and what the ticket is for.

        Raises AttestationError `ticket-issued` for a launch's second.
        """
        row = {"sha256": sha256, "store": self.id, "run": run, "leg": leg, "launch": launch}
        try:
            with self._transaction() as tx:
                tx.execute(insert(tickets).values(**row, reference=reference, policy=policy, expires=expires))
        except IntegrityError as error:
            raise AttestationError("this launch has a ticket already", codes=[Code.TICKET_ISSUED]) from error

    def spend_ticket(self, sha256: str, launch: tuple[str, str, int], now: int) -> SpentTicket:
        """Mark the ticket of a launch used, durably, and return it; one that is refused is not spent.

        Raises AttestationError `ticket-unknown`, `ticket-used`, `ticket-store-mismatch`, `ticket-expired`,
        `ticket-mismatch` (for another launch) or `launch-superseded`.
        """
        with self._transaction() as tx:
            row = tx.execute(select(tickets).where(tickets.c.sha256 == sha256)).mappings().first()
            if row is None or not hmac.compare_digest(row["sha256"], sha256):
                raise AttestationError("unknown ticket", codes=[Code.TICKET_UNKNOWN])
            if row["used"] is not None:
                raise AttestationError("this ticket was used", codes=[Code.TICKET_USED])
            if row["store"] != self.id:
                raise AttestationError(
                    "this ticket is from another store", codes=[Code.TICKET_STORE_MISMATCH]
                )
            if row["expires"] <= now:
                raise AttestationError("this ticket has expired", codes=[Code.TICKET_EXPIRED])
            if (row["run"], row["leg"], row["launch"]) != launch:
                raise AttestationError("this ticket is for another launch", codes=[Code.TICKET_MISMATCH])
            if _superseded(tx, row):
                raise AttestationError("the leg was launched again since", codes=[Code.LAUNCH_SUPERSEDED])
            # What was read may be old: of several that came this far, the database lets one through.
            spent = update(tickets).where(tickets.c.sha256 == sha256, tickets.c.used.is_(None))
            if tx.execute(spent.values(used=now)).rowcount != 1:
                raise AttestationError("this ticket was used", codes=[Code.TICKET_USED])
        return SpentTicket(row["sha256"], row["reference"], row["policy"])

    def put_challenge(
        self, nonce: str, ticket: str, token: str, launch: tuple[str, str, int], *, at: int
    ) -> None:
        """Keep an issued challenge, with its audit line in the same write."""
        with self._transaction() as tx:
            tx.execute(insert(challenges).values(nonce=nonce, ticket=ticket, store=self.id, token=token))
            tx.execute(self._audit_line("challenge-issued", at, launch, ()))

    def consume_challenge(self, nonce: str, now: int) -> AskedChallenge:
        """Consume a challenge, durably, and return it with what its ticket was issued for.

        Raises AttestationError `nonce-unknown`, `nonce-replay`, `challenge-store-mismatch` or
        `launch-superseded`.
        """
        with self._transaction() as tx:
            consume = update(challenges).where(challenges.c.nonce == nonce, challenges.c.consumed.is_(None))
            first = tx.execute(consume.values(consumed=now)).rowcount == 1
            joined = challenges.join(tickets, challenges.c.ticket == tickets.c.sha256)
            columns = [challenges.c.store, challenges.c.token, challenges.c.ticket]
            columns += [tickets.c.run, tickets.c.leg, tickets.c.launch, tickets.c.reference, tickets.c.policy]
            query = select(*columns).select_from(joined).where(challenges.c.nonce == nonce)
            row = tx.execute(query).mappings().first()
            superseded = row is not None and _superseded(tx, row)
        if row is None:
            raise AttestationError("no such challenge was issued", codes=[Code.NONCE_UNKNOWN])
        if not first:
            raise AttestationError("this challenge was answered before", codes=[Code.NONCE_REPLAY])
        if row["store"] != self.id:
            raise AttestationError(
                "the challenge is from another store", codes=[Code.CHALLENGE_STORE_MISMATCH]
            )
        if superseded:
            raise AttestationError("the leg was launched again since", codes=[Code.LAUNCH_SUPERSEDED])
        return AskedChallenge(row["token"], row["ticket"], row["reference"], row["policy"])

    # Grants and records

    def reserve_grant(
        self, nonce: str, run: str, leg: str, launch: int, *, manifest_hash: str, now: int
    ) -> None:
        """Book a grant before its key is opened: a crash can lose a grant and never yield a second.

        Raises AttestationError `payload-unknown`, `grant-limit-reached` or `grant-issued`.
        """
        try:
            with self._transaction() as tx:
                # Lock the run's rows (SQLite's writers queue anyway), or two would count alike.
                limits = select(payloads.c.manifest_hash, payloads.c.max_grants).where(payloads.c.run == run)
                rows = tx.execute(limits.order_by(payloads.c.manifest_hash).with_for_update()).all()
                if manifest_hash not in [row.manifest_hash for row in rows]:
                    raise AttestationError("no such package is registered", codes=[Code.PAYLOAD_UNKNOWN])
                issued = tx.execute(
                    select(func.count()).select_from(grants).where(grants.c.run == run)
                ).scalar_one()
                if issued >= min(row.max_grants for row in rows):
                    raise AttestationError("the run has had its grants", codes=[Code.GRANT_LIMIT_REACHED])
                row = {"nonce": nonce, "run": run, "leg": leg, "launch": launch, "issued": now}
                tx.execute(insert(grants).values(**row))
        except IntegrityError as error:
            raise AttestationError("this launch had its grant", codes=[Code.GRANT_ISSUED]) from error

    def grant_count(self, run: str) -> int:
        """How many grants a run has had."""
        with self._transaction() as tx:
            return tx.execute(
                select(func.count()).select_from(grants).where(grants.c.run == run)
            ).scalar_one()

    def put_exchange(self, run: str, leg: str, launch: int, exchange: Exchange, *, at: int) -> None:
        """Record a finished exchange and its audit line in one write."""
        with self._transaction() as tx:
            text = json.dumps(exchange.to_json(), sort_keys=True)
            tx.execute(insert(exchanges).values(run=run, leg=leg, launch=launch, document=text))
            line = self._audit_line(exchange.event_name, at, (run, leg, launch), exchange.reason_codes)
            tx.execute(line)

    def exchange(self, run: str, leg: str, launch: int) -> Exchange | None:
        """The recorded exchange of a launch, or None."""
        where = (exchanges.c.run == run, exchanges.c.leg == leg, exchanges.c.launch == launch)
        with self._transaction() as tx:
            text = tx.execute(select(exchanges.c.document).where(*where)).scalar()
        return None if text is None else Exchange.from_json(json.loads(text))

    def log(
        self, event_name: str, at: int, launch: tuple[str, str, int] | None = None, codes: Sequence[str] = ()
    ) -> None:
        """Append an audit line. `codes` are reason codes; nothing that a caller sent is written."""
        with self._transaction() as tx:
            tx.execute(self._audit_line(event_name, at, launch, codes))

    def _audit_line(
        self, event_name: str, at: int, launch: tuple[str, str, int] | None, codes: Sequence[str]
    ) -> Any:
        named = dict(zip(LAUNCH, launch, strict=True)) if launch else {}
        row = {"at": at, "store": self.id, "event": event_name, "codes": json.dumps(list(codes))}
        return insert(audit).values(**row, **named)

    def audit_log(self, run: str | None = None) -> list[AuditLine]:
        """The audit lines in order, of one run or of all."""
        with self._transaction() as tx:
            return _audit_lines(tx, run, None)


def _audit_lines(tx: Connection, run: str | None, last: int | None) -> list[AuditLine]:
    query = select(audit).order_by(audit.c.seq.desc()).limit(last)
    if run is not None:
        query = query.where(audit.c.run == run)
    rows = tx.execute(query).all()
    return [
        AuditLine(
            seq=row.seq,
            at=row.at,
            store=row.store,
            event=row.event,
            run=row.run,
            leg=row.leg,
            launch=row.launch,
            codes=tuple(json.loads(row.codes)),
        )
        for row in reversed(rows)
    ]


def _superseded(tx: Connection, row: Any) -> bool:
    """Whether a later launch of the same leg has a ticket: what is left of this one is worth nothing.

    A launch is repeated where its connection broke, and that is when its port, and with it its request, may
    have come into other hands.
    """
    later = (tickets.c.run == row["run"], tickets.c.leg == row["leg"], tickets.c.launch > row["launch"])
    return tx.execute(select(tickets.c.launch).where(*later).limit(1)).first() is not None


def _payload(run: str, manifest_hash: str) -> Any:
    return select(payloads).where(payloads.c.run == run, payloads.c.manifest_hash == manifest_hash)


def _aad(run: str, manifest_hash: str) -> bytes:
    parts = ["glasshouse/payload-wrap/v1", run, manifest_hash]
    return length_prefixed([part.encode("utf-8") for part in parts])


def open_store(url: str, kek: bytes) -> Store:
    """Open the store at an SQLAlchemy URL that a person gave. Raises UsageError, never showing a password."""
    with _named(url):
        return Store(url, kek)


def read_audit(url: str, *, last: int, run: str | None = None) -> list[AuditLine]:
    """The last audit lines of a store, newest last, of one run or of all; makes nothing, and needs no KEK.

    Raises UsageError, never showing a password.
    """
    with _named(url):
        if make_url(url).get_backend_name() == "sqlite" and not Path(make_url(url).database or "").is_file():
            raise FileNotFoundError(errno.ENOENT, "there is none")
        engine = open_engine(url)
        try:
            with engine.begin() as tx:
                return _audit_lines(tx, run, last)
        finally:
            engine.dispose()


@contextmanager
def _named(url: str) -> Iterator[None]:
    """Turn what goes wrong at a database into a UsageError that names it without its password."""
    try:
        shown = make_url(url).render_as_string(hide_password=True)
    except ArgumentError as error:
        raise _no_store("not a database URL", "withheld") from error
    try:
        yield
    except NoSuchModuleError as error:
        raise _no_store("no such kind of database", shown) from error
    except ImportError as error:
        remedy = (
            f"install it with {install_line('postgres')}"
            if error.name == "psycopg"
            else f"install {error.name}"
        )
        raise _no_store("the database driver is not installed", shown, remedy) from error
    except OSError as error:
        raise _no_store(f"cannot open the database file: {error.strerror}", shown) from error
    except SQLAlchemyError as error:
        raise _no_store("the database cannot be opened", shown) from error


def _no_store(what: str, shown: str, remedy: str = "") -> UsageError:
    usual = "give sqlite:////path/to/file, or postgresql+psycopg://user@host/database of a live server"
    return UsageError(what, field="store", value=shown, remedy=remedy or usual)
