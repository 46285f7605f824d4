"""`glasshouse reap` with nothing left, and machines that no journal knows: listed, and ended by name."""

from __future__ import annotations

import json
import os

import pytest

from glasshouse.providers.journal import Journal
from tests.commands.kit import Call
from tests.providers.cloud_kit import KINDS, NAME, VARIABLE, Rented, rented


def known_here(it: Rented, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this shell has: the provider's key and address."""
    monkeypatch.setenv(VARIABLE[it.kind], it.server.key)
    monkeypatch.setenv(f"GLASSHOUSE_{it.kind.upper()}_URL", it.server.base_url)


@pytest.mark.parametrize("kind", KINDS)
def test_a_machine_whose_journal_is_lost_is_listed_and_ended_by_name(
    kind: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rented(kind) as it:
        known_here(it, monkeypatch)
        stranger = it.server.cloud.add_foreign("somebody else's")
        allocation = it.allocate()  # the journal of this home never heard of it
        code, out, err = call("reap")
        assert code == 0, err
        assert NAME in out
        assert "glasshouse reap --stray NAME" in out
        assert it.state()["active"] == 1
        (listed,) = json.loads(call("reap", "--dry-run", "--json")[1])["strays"]
        assert (listed["provider"], listed["name"], listed["id"]) == (kind, NAME, allocation.id)

        code, out, err = call("reap", "--stray", NAME, "--json")
        assert code == 0, err
        (ended,) = json.loads(out)["strays"]
        assert ended["proof"] == "zero"
        assert it.state()["active"] == 0
        assert it.server.cloud.get(stranger.id) is not None
        assert json.loads(call("reap", "--json")[1])["strays"] == []


def test_what_the_journal_holds_is_no_stray_and_what_is_not_ours_cannot_be_ended(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rented("runpod") as it:
        known_here(it, monkeypatch)
        stranger = it.server.cloud.add_foreign("somebody else's")
        with Journal() as journal:  # written by this process, which lives
            journal.intend("run", NAME, "runpod", {})
        it.allocate()
        document = json.loads(call("reap", "--json")[1])
        assert [item["state"] for item in document["allocations"]] == ["live"]
        assert document["strays"] == []
        for name in (NAME, stranger.name):
            code, _, err = call("reap", "--stray", name)
            assert (code, err.count("\n")) == (2, 1)
            assert f"(--stray={name})" in err
        assert it.state()["active"] == 1
        assert it.server.cloud.get(stranger.id) is not None


def test_a_provider_that_cannot_be_asked_is_exit_3(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    with rented("runpod") as it:
        known_here(it, monkeypatch)
        monkeypatch.setenv(VARIABLE["runpod"], "not-the-key")
        code, out, _ = call("reap", "--json")
        document = json.loads(out)
        assert (code, document["ok"]) == (3, False)
        assert document["strays"][0]["id"] is None
        assert "not-the-key" not in out


def test_with_nothing_left_it_says_so_and_without_a_key_nobody_is_asked(call: Call) -> None:
    assert not any(os.environ.get(variable) for variable in VARIABLE.values())
    assert call("reap") == (0, "nothing to reap: every allocation in the journal is proven gone\n", "")
    assert json.loads(call("reap", "--dry-run", "--json")[1]) == {"ok": True, "allocations": [], "strays": []}
