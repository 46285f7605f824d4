"""`glasshouse reap` with nothing left, and machines that no journal knows: listed, and ended by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from glasshouse import paths
from glasshouse.lifecycle import strays
from glasshouse.providers.journal import Journal
from tests.commands.kit import Call, python
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
        # Nobody knows whose it is, and it may be billing: that is no clean-up.
        assert code == 4, err
        assert "proven gone" not in out
        assert f"the journal at {paths.state_dir() / 'state.db'} knows of no allocation" in out
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
        code, out, _ = call("reap")
        assert code == 0
        assert f"no other machine with a name of ours: {kind}" in out


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
        code, out, _ = call("reap")
        assert code == 3
        (line,) = [line for line in out.splitlines() if "runpod" in line]
        assert line.startswith(
            "what runpod has under names of ours is not known: RunPod: listing machines: 401"
        )
        assert line.endswith("check the API key")
        assert "--stray" not in out  # there is none to name


def test_it_says_what_the_journal_knows_and_without_a_key_nobody_is_asked(call: Call) -> None:
    assert not any(os.environ.get(variable) for variable in VARIABLE.values())
    place = paths.state_dir() / "state.db"
    for _ in range(2):  # the first look makes an empty journal
        code, out, err = call("reap")
        assert (code, err) == (0, "")
        assert out.startswith(f"the journal at {place} knows of no allocation")
        assert "no provider was asked (without RUNPOD_API_KEY or VAST_API_KEY)" in out
        assert "proven" not in out
    with Journal() as journal:
        journal.intend("run", NAME, "local", {})
        journal.closed(NAME, "zero")
    code, out, err = call("reap")
    today = time.strftime("%Y-%m-%d", time.gmtime())
    assert (code, err) == (0, "")
    assert out.startswith("nothing to reap: every allocation in the journal is proven gone (1 since ")
    assert str(place) in out
    assert today[:4] in out
    assert json.loads(call("reap", "--dry-run", "--json")[1]) == {"ok": True, "allocations": [], "strays": []}


# An allocation of a controller that is dead by the time anybody looks, and that was proven gone.
CLOSED = """
import json, sys
from glasshouse.lifecycle import strays
from glasshouse.providers.journal import Journal
name, provider = sys.argv[1:3]
with Journal() as journal:
    journal.intend("run", name, provider, {"provider": json.loads(sys.argv[3])})
    journal.closed(name, "zero")
"""


def closed(it: Rented, name: str) -> None:
    provider = json.dumps(it.spec.provider.model_dump(mode="json"))
    subprocess.run([sys.executable, "-c", CLOSED, name, it.kind, provider], check=True)


@pytest.mark.parametrize(("kind", "ending"), [("runpod", "-r2"), ("vastai", "")])
def test_a_machine_that_came_after_it_was_proven_gone_is_reaped(
    kind: str, ending: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rented(kind) as it:
        known_here(it, monkeypatch)
        closed(it, NAME)
        it.allocate()
        (pod,) = it.server.cloud.living()
        pod.name = NAME + ending
        dry = json.loads(call("reap", "--dry-run", "--json")[1])
        assert [(item["state"], item["name"]) for item in dry["allocations"]] == [("would-reap", pod.name)]
        assert it.state()["active"] == 1

        code, out, _ = call("doctor", "--json")
        shown = [
            finding for finding in json.loads(out)["findings"] if finding["what"].startswith("machine at")
        ]
        assert [finding["remedy"] for finding in shown] == ["glasshouse reap"]
        assert pod.name in shown[0]["detail"]
        assert it.state()["active"] == 1  # only shown

        code, out, _ = call("reap", "--json")
        document = json.loads(out)
        assert code == 0
        (reaped,) = document["allocations"]
        assert (reaped["state"], reaped["proof"], reaped["name"]) == ("reaped", "zero", pod.name)
        assert it.state()["active"] == 0


@pytest.mark.parametrize("near", [NAME + "x", NAME[:-1]])  # as somebody renamed it, as a provider cuts it
def test_beside_a_machine_that_is_nearly_called_so_nothing_is_proven(
    near: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rented("runpod") as it:
        known_here(it, monkeypatch)
        closed(it, NAME)
        it.allocate()
        it.server.cloud.add_foreign(near)
        code, out, _ = call("reap", "--json")
        document = json.loads(out)
        assert code == 4
        (reaped,) = document["allocations"]
        assert (reaped["proof"], reaped["name"]) == ("unknown", NAME)
        assert [stray["name"] for stray in document["strays"] if stray["id"]] == [near]
        state = it.state()
        assert (state["active"], state["foreignActive"]) == (0, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_machine_that_will_not_go_is_open_in_the_journal_again(
    kind: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rented(kind) as it:
        known_here(it, monkeypatch)
        closed(it, NAME)
        it.allocate()
        it.faults("delete-noop", times=10_000)
        code, out, _ = call("reap")
        assert code == 4
        assert "nothing to reap" not in out
        with Journal() as journal:
            (entry,) = journal.open_entries()
        assert (entry.name, entry.proof) == (NAME, "nonzero")


def test_a_machine_whose_controller_lives_is_only_listed(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    with rented("runpod") as it:
        known_here(it, monkeypatch)
        with Journal() as journal:  # written by this process, which lives: it may rent this very name anew
            journal.intend("run", NAME, "runpod", {})
            journal.closed(NAME, "zero")
        it.allocate()
        document = json.loads(call("reap", "--json")[1])
        assert document["allocations"] == []
        assert [stray["name"] for stray in document["strays"]] == [NAME]
        assert it.state()["active"] == 1


def test_it_is_looked_for_where_it_was_rented_whatever_this_shell_has(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rented("runpod") as it:
        known_here(it, monkeypatch)
        closed(it, NAME)
        with Journal() as journal:
            (place,) = strays.lately(journal)
            assert place == it.spec.provider
            monkeypatch.delenv(VARIABLE["runpod"])
            assert strays.lately(journal) == []  # nobody can ask


@pytest.mark.parametrize("shown", [f"{NAME}-migration", NAME.upper(), NAME[:9]])
def test_a_name_that_only_begins_like_ours_is_shown_and_no_clean_end(
    shown: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rented("runpod") as it:
        known_here(it, monkeypatch)
        it.server.cloud.add_foreign(shown)
        code, out, _ = call("reap")
        assert code == 4
        assert shown in out
        assert it.state()["foreignActive"] == 1


def test_a_reap_that_is_interrupted_has_proven_nothing(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("glasshouse.commands.reap.reap_all", interrupted)
    code, _, err = call("reap")
    assert (code, "interrupted before anything was proven" in err) == (4, True)


ALONE = """
import sys, time
from glasshouse.providers.journal import Journal
with Journal() as journal:
    journal.intend("20260301-000000-aaaaaa", "gh-20260301-000000-aaaaaa-00000000", "local",
                   {"folder": "/nowhere", "provider": {"kind": "local"}})
    journal.unattended("gh-20260301-000000-aaaaaa-00000000", time.time() + 600)
"""


def test_what_runs_unattended_is_one_line_and_no_fault_until_it_is_named(call: Call) -> None:
    assert python("-c", ALONE).returncode == 0
    code, out, err = call("reap")
    assert code == 0, err
    (line,) = out.splitlines()
    assert line.startswith("run 20260301-000000-aaaaaa at local: left alone until ")
    assert line.endswith(
        "(its run folder cannot be read here): glasshouse reap --stop 20260301-000000-aaaaaa ends it"
    )
    document = json.loads(call("reap", "--json")[1])
    assert (document["ok"], document["allocations"][0]["state"]) == (True, "unattended")
    code, _, err = call("reap", "--stop", "2025")
    assert (code, "no such run holds a machine" in err) == (2, True)
    code, out, err = call("reap", "--stop", "20260301")
    assert code == 0, err
    assert "reaped" in out
    assert "nothing to reap" in call("reap")[1]
