"""The journal knows which key rented: another account's is told nothing, and that is no proof."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from glasshouse import paths
from glasshouse.providers import accounts
from glasshouse.providers.journal import Entry, Journal
from tests.commands.kit import Call
from tests.providers.cloud_kit import KINDS, NAME, VARIABLE, Rented, rented

ANOTHER = "a-key-of-another-account"
# A controller that rented with the key in its environment and is dead by the time anybody looks.
DEAD = """
import json, sys
from glasshouse.providers import accounts
from glasshouse.providers.journal import Journal
name, kind, provider = sys.argv[1:4]
with Journal() as journal:
    journal.intend("run", name, kind, {"provider": json.loads(provider)}, accounts.mark(kind))
    journal.doubtful(name, 0.0)
    journal.created(name, sys.argv[4])
"""


@pytest.fixture(autouse=True)
def nobodys_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLE.values():
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture(params=KINDS)
def left(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rented]:
    """A machine whose controller died, at a fake that shows each account only its own."""
    kind = request.param
    with rented(kind, timing=None) as it:
        monkeypatch.setenv(VARIABLE[kind], it.server.key)
        monkeypatch.setenv(f"GLASSHOUSE_{kind.upper()}_URL", it.server.base_url)
        provider = json.dumps(it.spec.provider.model_dump(mode="json"))
        machine = it.allocate().id
        subprocess.run([sys.executable, "-c", DEAD, NAME, kind, provider, machine], check=True)
        yield it


@pytest.fixture
def elsewhere_rented(left: Rented, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rented]:
    """The same, and the key in the environment is another account's, which has no machines."""
    with rented(left.kind, timing=None) as other:
        other.server.service.key = ANOTHER
        monkeypatch.setenv(VARIABLE[left.kind], ANOTHER)
        provider = other.spec.provider.model_dump(mode="json")
        with Journal() as journal, journal._transaction() as connection:
            # One address with two accounts behind it: what this key is shown is the other's.
            connection.exec_driver_sql(
                "UPDATE allocations SET detail = ?", (json.dumps({"provider": provider}),)
            )
        monkeypatch.setenv(f"GLASSHOUSE_{left.kind.upper()}_URL", other.server.base_url)
        yield other


def entry() -> Entry:
    with Journal() as journal:
        found = journal.find(NAME)
    assert found is not None
    return found


def test_another_accounts_key_proves_nothing(
    left: Rented, elsewhere_rented: Rented, call: Call, tmp_path: Path
) -> None:
    for words in ((), ("--dry-run",)):
        code, out, _ = call("reap", "--json", *words)
        (item,) = json.loads(out)["allocations"]
        assert (code, item["state"], item["proof"]) == (4, "other-key", "unknown")
        assert f"set {VARIABLE[left.kind]} to that account's key" in item["detail"]
        assert NAME in item["detail"]
        assert "--other-key" in item["detail"]
        assert ANOTHER not in out
    assert left.state()["active"] == 1
    assert entry().closed_at is None


def test_the_key_that_rented_proves_it(left: Rented, call: Call) -> None:
    code, out, _ = call("reap", "--json")
    (item,) = json.loads(out)["allocations"]
    assert (code, item["state"], item["proof"]) == (0, "reaped", "zero")
    assert left.state()["active"] == 0


def test_a_new_key_of_the_account_is_known_by_what_it_is_shown(
    left: Rented, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    left.server.service.key = "the-new-key-of-this-account"
    monkeypatch.setenv(VARIABLE[left.kind], left.server.key)
    before = entry()
    assert not accounts.same_key(before)
    left.faults("delete-noop", times=10_000)
    code, out, _ = call("reap", "--json")
    assert (code, json.loads(out)["allocations"][0]["proof"]) == (4, "nonzero")
    assert accounts.same_key(entry())  # from here on also when it is shown nothing any more
    for pod in left.server.cloud.living():
        left.server.cloud.destroy(pod.id)
    left.server.cloud.faults.clear()
    code, out, _ = call("reap", "--json")
    assert (code, json.loads(out)["allocations"][0]["proof"]) == (0, "zero")


def test_a_new_key_that_is_shown_nothing_is_vouched_for_by_a_person(
    elsewhere_rented: Rented, call: Call
) -> None:
    assert elsewhere_rented.state()["active"] == 0
    code, out, _ = call("reap", "--json", "--other-key")
    (item,) = json.loads(out)["allocations"]
    assert (code, item["state"], item["proof"]) == (0, "reaped", "zero")


def test_a_refused_key_is_told_from_an_empty_account(
    left: Rented, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE[left.kind], ANOTHER)
    code, out, _ = call("reap", "--json")
    (item,) = json.loads(out)["allocations"]
    assert (code, item["state"], item["proof"]) == (4, "other-key", "unknown")
    assert "asking with it failed (401" in item["detail"]


def test_the_journal_tells_neither_the_key_nor_whose_allocations_are_of_one_account(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RUNPOD_API_KEY", "a-key-to-be-seen-nowhere")
    with Journal() as journal:
        for name in ("gh-a", "gh-b"):
            journal.intend("run", name, "runpod", {}, accounts.mark("runpod"))
        journal.intend("run", "gh-c", "local", {}, accounts.mark("local"))
        one, two, three = journal.open_entries()
    assert one.key is not None
    assert two.key is not None
    assert three.key is None
    assert one.key.salt != two.key.salt
    assert one.key.digest != two.key.digest
    assert all(map(accounts.same_key, (one, two, three)))
    monkeypatch.setenv("RUNPOD_API_KEY", "a-key-to-be-seen-nowhere-")
    assert [accounts.same_key(each) for each in (one, two, three)] == [False, False, True]
    for path in paths.state_dir().glob("state.db*"):
        assert b"to-be-seen-nowhere" not in path.read_bytes()


def test_the_journal_of_an_older_version_is_read_as_it_was(left: Rented, call: Call) -> None:
    with Journal() as journal, journal._transaction() as connection:
        connection.exec_driver_sql("DROP TABLE key_digests")
    assert entry().key is None
    assert accounts.same_key(entry())
    assert call("reap")[0] == 0
    assert left.state()["active"] == 0
