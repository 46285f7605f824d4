"""What the watchdog and reap make of a run folder, whatever its controller had done when it died."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from glasshouse.errors import ProviderError
from glasshouse.lifecycle.live_run import LiveRun, create
from glasshouse.lifecycle.reap import gone, reap_all, watch
from glasshouse.lifecycle.screen import Screen
from glasshouse.providers.cloud_api import CloudApi
from glasshouse.providers.journal import Journal, KeyMark
from glasshouse.records import keys
from glasshouse.records.ledger import Ledger
from glasshouse.records.plan import register_plan
from glasshouse.spec import RunSpec
from tests.providers.cloud_kit import KINDS, VARIABLE, rented, rented_spec
from tests.specs import make_spec

QUIET = Screen(quiet=True)
# The intent of a controller that is dead by the time anybody looks.
INTEND = """
import json, sys
from glasshouse.providers.journal import Journal
with Journal() as journal:
    journal.intend(*sys.argv[1:4], json.loads(sys.argv[4]))
"""


def planned(spec: RunSpec, out: Path) -> LiveRun:
    live = create(spec, out, QUIET, [])
    registered = register_plan(Ledger(), keys.operator_key(), live.run.id, spec)
    live.folder.write_bytes("plan.dsse.json", registered.envelope)
    return live


def intended(live: LiveRun) -> None:
    detail = {
        "folder": str(live.folder.path),
        "provider": live.run.spec.provider.model_dump(mode="json"),
    }
    words = [live.run.id, live.run.allocation, live.run.spec.provider.kind, json.dumps(detail)]
    subprocess.run([sys.executable, "-c", INTEND, *words], check=True)


def released(live: LiveRun) -> dict:
    return json.loads((live.folder.bundle / "release.json").read_bytes())


def test_the_watchdog_keeps_what_its_controller_found_at_the_release(tmp_path: Path) -> None:
    live = planned(make_spec(), tmp_path)
    intended(live)
    found = {
        "proof": "zero", "active": 0, "detail": "seen by the controller", "accountTotal": None,
        "podFolderRemoved": True, "processesLeft": 0, "checkedAt": [1.0, 2.0],
    }  # fmt: skip
    live.folder.write_json("release.json", found)
    with Journal() as journal:
        journal.closed(live.run.allocation, "zero")
    watch(live.folder.path, QUIET)  # the controller was killed between here and its record
    assert released(live) == found
    assert (
        "controller-killed"
        in json.loads((live.folder.bundle / "record.json").read_bytes())["exclusion"]["codes"]
    )


def test_the_watchdog_of_a_run_that_asked_for_nothing_says_so(tmp_path: Path) -> None:
    live = planned(make_spec(), tmp_path)
    watch(live.folder.path, QUIET)
    assert released(live)["detail"] == "nothing was asked of the provider"


@pytest.mark.parametrize("kind", KINDS)
def test_a_machine_is_given_back_though_its_run_folder_says_nothing_of_use(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rented(kind, timing=None) as it:
        monkeypatch.setenv(VARIABLE[kind], it.server.key)
        live = planned(it.spec, tmp_path)
        intended(live)
        it.allocate(live.run.allocation)
        state = json.loads((live.folder.path / "run.json").read_bytes())
        del state["spec"]["model"]["layers"]  # as another version of this program may have left it
        (live.folder.path / "run.json").write_text(json.dumps(state))
        (reaped,) = reap_all(QUIET)
        assert (reaped.state, reaped.proof) == ("reaped", "zero")
        assert it.state()["active"] == 0
        with Journal() as journal:
            assert journal.open_entries() == ()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("folder", ["whole", "lost"])
def test_an_id_that_a_list_shows_stands_in_the_journal_before_its_delete(
    kind: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rented(kind, timing=None) as it:
        monkeypatch.setenv(VARIABLE[kind], it.server.key)
        live = planned(it.spec, tmp_path)
        intended(live)  # and killed before it wrote down an id
        machine = it.allocate(live.run.allocation).id
        if folder == "lost":
            shutil.rmtree(live.folder.path)
        api, asked = type(it.provider.api), []
        destroy = api.destroy

        def watched(self: CloudApi, machine_id: str) -> bool:
            with Journal() as journal:
                entry = journal.find(live.run.allocation)
            asked.append((machine_id, entry and entry.allocation_id))
            return destroy(self, machine_id)

        monkeypatch.setattr(api, "destroy", watched)
        (reaped,) = reap_all(QUIET)
        assert reaped.proof == "zero"
        assert asked[0] == (machine, machine)


def test_what_a_sweep_left_is_asked_for_again_before_its_next_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rented("runpod", timing=None) as it:
        monkeypatch.setenv(VARIABLE["runpod"], it.server.key)
        live = planned(it.spec, tmp_path)
        provider = it.spec.provider.model_dump(mode="json")
        with Journal() as journal:
            journal.intend(live.run.id, live.run.allocation, "runpod", {"provider": provider})
        it.allocate(live.run.allocation)
        it.faults("list-410", times=10_000)
        assert not gone(live.run.id, QUIET)
        it.server.cloud.faults.clear()
        assert gone(live.run.id, QUIET)
        assert it.state()["active"] == 0


def test_a_screen_that_cannot_be_written_to_stops_nothing() -> None:
    script = """
from glasshouse.lifecycle.screen import Screen
screen = Screen()
with screen.phase("releasing the allocation"):
    print("released", flush=True)
screen.alarm("CLEAN-UP NOT PROVEN")
print("said", flush=True)
"""
    with Path("/dev/full").open(
        "w"
    ) as full:  # as a watchdog's log on a full disk, or a terminal that is gone
        done = subprocess.run(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=full, check=False, text=True
        )
    assert done.stdout == "released\nsaid\n"


def test_no_entry_ends_a_reap_half_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    far = rented_spec("runpod", "https://rest.runpod.invalid/v2")
    specs = {
        "torn": make_spec(),
        "proxy": far,
        "other": make_spec(),
        "blocked": make_spec(),
        "good": make_spec(),
    }
    lives = {name: planned(spec, tmp_path / name) for name, spec in specs.items()}
    for live in lives.values():
        intended(live)
    monkeypatch.setenv(VARIABLE["runpod"], "a-key-of-no-use")
    monkeypatch.setenv("HTTPS_PROXY", "nonsense://somewhere")  # a client for rented machines cannot be made
    with Journal() as journal:
        place = Path(str(journal._engine.url.database))
    told = json.dumps({"folder": str(lives["good"].folder.path)})  # another one's run
    with contextlib.closing(sqlite3.connect(place)) as database, database:
        statement = "UPDATE allocations SET detail = ? WHERE name = ?"
        database.execute(statement, ("{torn", lives["torn"].run.allocation))
        database.execute(statement, (told, lives["other"].run.allocation))
    shutil.rmtree(lives["blocked"].folder.parts)
    lives["blocked"].folder.parts.write_text("a file where a folder should be")  # nobody foresaw that
    found = {reaped.name: reaped for reaped in reap_all(QUIET)}
    said = {name: found[live.run.allocation] for name, live in lives.items()}
    assert {name: reaped.state for name, reaped in said.items()} == {
        "torn": "failed", "proxy": "failed", "other": "failed", "blocked": "failed", "good": "reaped",
    }  # fmt: skip
    assert "proxy in the environment" in said["proxy"].detail
    assert "unexpected FileExistsError" in said["blocked"].detail
    with Journal() as journal:
        assert len(journal.open_entries()) == 4


DOUBTFUL = """
import json, sys, time
from glasshouse.providers.journal import Journal
with Journal() as journal:
    journal.intend(*sys.argv[1:4], json.loads(sys.argv[4]))
    journal.doubtful(sys.argv[2], time.time() + float(sys.argv[5]))
"""


def doubtful(live: LiveRun, seconds: float) -> float:
    """A controller died while a create was under way; when its doubt is over, at the earliest."""
    provider = live.run.spec.provider.model_dump(mode="json")
    detail = {"folder": str(live.folder.path), "provider": provider}
    words = [live.run.id, live.run.allocation, live.run.spec.provider.kind, json.dumps(detail)]
    until = time.time() + seconds
    subprocess.run([sys.executable, "-c", DOUBTFUL, *words, str(seconds)], check=True)
    return until


@pytest.mark.parametrize("kind", KINDS)
def test_the_watchdog_looks_until_the_doubt_of_its_dead_controller_is_over(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rented(kind, timing=None) as it:
        monkeypatch.setenv(VARIABLE[kind], it.server.key)
        live = planned(it.spec, tmp_path)
        until = doubtful(live, 3.0)

        def appear() -> None:
            with contextlib.suppress(ProviderError):  # the watchdog ends it while it boots
                it.allocate(live.run.allocation)

        appears = threading.Timer(1.0, appear)
        appears.start()
        watch(live.folder.path, QUIET)
        appears.join()
        assert time.time() >= until
        assert released(live)["proof"] == "zero"
        state = it.state()
        assert (state["created"], state["active"]) == (1, 0)


def test_a_watchdog_with_another_key_leaves_the_run_to_the_one_that_rented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rented("runpod", timing=None) as it:
        monkeypatch.setenv(VARIABLE["runpod"], it.server.key)
        live = planned(it.spec, tmp_path)
        intended(live)
        with Journal() as journal:
            journal.rented_with(live.run.allocation, KeyMark("00", "11"))
        watch(live.folder.path, QUIET)
        assert not live.folder.bundle.exists()  # the row can still say what the right key finds
        with Journal() as journal:
            (entry,) = journal.open_entries()
        assert (entry.proof, entry.key) == (None, KeyMark("00", "11"))


def test_a_word_ends_the_wait_for_a_doubt_and_nothing_is_called_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rented("runpod", timing=None) as it:
        monkeypatch.setenv(VARIABLE["runpod"], it.server.key)
        live = planned(it.spec, tmp_path)
        doubtful(live, 595.0)

        def interrupt() -> None:
            while not any(each.path == "/pods" for each in it.server.cloud.exchanges):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

        sender = threading.Thread(target=interrupt)
        sender.start()
        (reaped,) = reap_all(QUIET)
        sender.join()
        assert (reaped.state, reaped.proof) == ("reaped", "unknown")
        assert "may yet appear, for another 9 min" in reaped.detail
        with Journal() as journal:
            (entry,) = journal.open_entries()  # whoever looks again knows for how long
        assert entry.doubt_until is not None
        assert entry.doubt_until > time.time()


def test_a_good_end_says_in_one_line_what_was_proven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with rented("runpod", timing=None) as it:
        monkeypatch.setenv(VARIABLE["runpod"], it.server.key)
        for spec in (it.spec, make_spec()):
            live = planned(spec, tmp_path)
            intended(live)
            (reaped,) = reap_all(Screen())
            assert reaped.proof == "zero"
            said = [line.strip() for line in capsys.readouterr().err.splitlines()]
            assert f"nothing is left, and that is proven: {released(live)['detail']}" in said
