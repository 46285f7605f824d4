"""The store and the tamper suite's central rules on PostgreSQL, where several brokers share one database."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy.exc import SQLAlchemyError

from glasshouse.attestation.broker import Broker
from glasshouse.attestation.server import serve
from glasshouse.attestation.stage import STRICT, StagedLaunch, synthetic_reference
from glasshouse.attestation.store import Store, read_audit
from glasshouse.errors import AttestationError
from tests.postgres import postgres

pytestmark = pytest.mark.postgres
KEK = b"\x11" * 32


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with postgres() as made:
        yield made


def test_two_brokers_share_a_database_and_release_once(url: str) -> None:
    """The same evidence at both brokers at once, fifty times: one grant, one unwrap."""
    key = Ed25519PrivateKey.generate()
    with Store(url, KEK) as store, Store(url, KEK) as other:
        # One opening, two processes' worth of engines: the id is what makes them one store.
        other.id = store.id
        brokers = (Broker(store, key), Broker(other, key))
        reference = synthetic_reference("pg-once")
        payload = b"\x07" * 32
        brokers[0].register_payload("pg-once", reference.manifest_hash, payload, max_grants=3)
        ticket = brokers[0].issue_ticket(reference, STRICT)
        with serve(brokers[0]) as server:
            launch = StagedLaunch(server.port, brokers[0].public_bytes, reference, STRICT, ticket, payload)
            challenge = launch.fetch()
            evidence = launch.sign(launch.claims())

            def attest(index: int) -> tuple[str, ...]:
                try:
                    brokers[index % 2].attest(evidence, challenge.launch_token)
                except AttestationError as error:
                    return error.codes
                return ()

            with ThreadPoolExecutor(12) as pool:
                outcomes = list(pool.map(attest, range(50)))
        assert outcomes.count(()) == 1
        assert outcomes.count(("nonce-replay",)) == 49
        assert store.unwrap_calls + other.unwrap_calls == 1
        assert store.grant_count("pg-once") == 1


def test_a_ticket_is_spent_once_at_two_brokers(url: str) -> None:
    where = ("pg-ticket", "s000", 1)
    with Store(url, KEK) as store, Store(url, KEK) as other:
        other.id = store.id
        store.put_ticket("p" * 64, *where, reference="{}", policy="{}", expires=1000)

        def spend(index: int) -> tuple[str, ...]:
            try:
                (store, other)[index % 2].spend_ticket("p" * 64, where, 1)
            except AttestationError as error:
                return error.codes
            return ()

        with ThreadPoolExecutor(12) as pool:
            outcomes = list(pool.map(spend, range(50)))
    assert outcomes.count(()) == 1
    assert outcomes.count(("ticket-used",)) == 49


def test_grants_stop_at_the_limit_across_connections(url: str) -> None:
    with Store(url, KEK) as store:
        store.put_payload("pg-limit", "m" * 64, bytes(31) + b"\x01", 5)

        def reserve(index: int) -> tuple[str, ...]:
            try:
                store.reserve_grant(f"pg{index}", "pg-limit", f"s{index}", 1, manifest_hash="m" * 64, now=1)
            except AttestationError as error:
                return error.codes
            return ()

        with ThreadPoolExecutor(12) as pool:
            outcomes = list(pool.map(reserve, range(30)))
    assert outcomes.count(()) == 5
    assert outcomes.count(("grant-limit-reached",)) == 25


def test_a_new_opening_accepts_nothing_of_the_last(url: str) -> None:
    key = Ed25519PrivateKey.generate()
    reference = synthetic_reference("pg-reopen")
    with Store(url, KEK) as store:
        broker = Broker(store, key)
        broker.register_payload("pg-reopen", reference.manifest_hash, b"\x07" * 32, max_grants=3)
        ticket = broker.issue_ticket(reference, STRICT)
    with Store(url, KEK) as store, serve(broker := Broker(store, key)) as server:
        launch = StagedLaunch(server.port, broker.public_bytes, reference, STRICT, ticket, b"\x07" * 32)
        with pytest.raises(AttestationError) as caught:
            launch.fetch()
    assert caught.value.codes == ("ticket-store-mismatch",)
    with Store(url, KEK) as store, serve(Broker(store, key)) as server:
        reference = synthetic_reference("pg-reopen", launch=2)
        ticket = Broker(store, key).issue_ticket(reference, STRICT)
        StagedLaunch(
            server.port, Broker(store, key).public_bytes, reference, STRICT, ticket, b"\x07" * 32
        ).honest()
        assert store.unwrap_calls == 1


@pytest.mark.parametrize(
    "statement", ["UPDATE audit SET codes = '[]'", "DELETE FROM audit", "TRUNCATE audit"]
)
def test_the_audit_log_only_grows(url: str, statement: str) -> None:
    with Store(url, KEK) as store:
        store.log("evidence-refused", 1, ("pg-audit", "s000", 1), ["nonce-replay"])
        with pytest.raises(SQLAlchemyError, match="only grows"), store._transaction() as tx:
            tx.exec_driver_sql(statement)
        assert {line.codes for line in store.audit_log("pg-audit")} == {("nonce-replay",)}


def test_the_last_audit_lines_are_read_without_the_kek(url: str) -> None:
    with Store(url, KEK) as store:
        for number in range(5):
            store.log("evidence-refused", number, ("pg-last", "s000", number), ["nonce-replay"])
    lines = read_audit(url, last=3, run="pg-last")
    assert [(line.at, line.launch, line.codes) for line in lines] == [
        (number, number, ("nonce-replay",)) for number in (2, 3, 4)
    ]
