"""What is made of a dead controller's job: left alone, brought to its end, or given back as before."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from glasshouse.canonical import canonical_json, parse_json
from glasshouse.codes import Code
from glasshouse.errors import RemoteError
from glasshouse.lifecycle import finish, goes_on, unattended
from glasshouse.lifecycle.interrupts import Interrupts
from glasshouse.lifecycle.live_run import LiveRun, create, reopen
from glasshouse.lifecycle.reap import Wishes, reap_all, watch
from glasshouse.lifecycle.run_folder import RunLock, SavedLaunch
from glasshouse.lifecycle.screen import Screen
from glasshouse.providers.journal import Journal
from glasshouse.providers.local import LocalProvider
from glasshouse.providers.money import DEAD_MAN_MARGIN_SEC, cost_ceiling, rental_deadline_sec
from glasshouse.records import keys, locked
from glasshouse.remote.endpoint import Endpoint
from glasshouse.spec import LocalProvider as LocalSpec
from tests.lifecycle.test_reap import QUIET, intended
from tests.lifecycle.test_rescue import Orphan, orphan
from tests.providers.cloud_kit import FAST, VARIABLE, rented
from tests.remote.conftest import embedded_endpoint, serving
from tests.runtime.rig import wait_until
from tests.specs import make_spec

PRIVATE = {"order": "protected-only", "payload": "private"}
FAILED = {
    "status": "failed", "code": "process-died", "reasonCodes": [], "timings": {}, "eventsHead": None,
    "eventCount": None,
}  # fmt: skip


# --- what may go on, and what is said ----------------------------------------------------------


def test_only_a_private_job_that_is_not_told_to_stop_may_go_on() -> None:
    assert goes_on.allowed(make_spec(**PRIVATE))
    assert not goes_on.allowed(make_spec())
    assert not goes_on.allowed(make_spec(order="protected-only"))
    job = make_spec(**PRIVATE)
    stops = job.model_copy(update={"model": job.model.model_copy(update={"unattended": "stop"})})
    assert not goes_on.allowed(stops)
    assert goes_on.planned_lines(stops) == []


def test_what_waiting_costs_is_said_where_it_costs_anything() -> None:
    free = make_spec(**PRIVATE)
    (line,) = goes_on.first_lines(free, 86400.0 * 365 * 60)
    assert "its outputs can be fetched until 2029-12-17 00:00 UTC" in line
    with rented("runpod") as it:
        paid = it.spec.model_copy(update=PRIVATE)
    assert goes_on.until_from(paid, 1000.0) == pytest.approx(1000.0 + rental_deadline_sec(paid))
    waits, dead = goes_on.first_lines(paid, time.time() + 60)[1], goes_on.planned_lines(paid)[1]
    assert f"up to 0.30 USD an hour and {cost_ceiling(paid):.2f} USD in all" in waits
    assert f"its own timer is all that ends it, {DEAD_MAN_MARGIN_SEC / 60:.0f} min after" in dead


def test_the_hour_is_enough_today() -> None:
    now = time.time()
    assert goes_on.clock(now) == time.strftime("%H:%M UTC", time.gmtime(now))
    assert goes_on.clock(now + 3 * 86400).startswith(time.strftime("%Y-", time.gmtime(now + 3 * 86400)))


# --- whoever comes back ------------------------------------------------------------------------


@pytest.fixture
def left(endpoint: Endpoint, tmp_path: Path) -> Orphan:
    return job(endpoint, tmp_path)


def job(endpoint: Endpoint, tmp_path: Path) -> Orphan:
    """As `orphan`, of a private job whose leg goes on: its process is this one."""
    it = orphan(endpoint, tmp_path / "runs")
    live = it.live
    it.live = LiveRun(
        type(live.run)(**{**vars(live.run), "spec": live.run.spec.model_copy(update=PRIVATE)}),
        live.folder, live.screen, live.rental,
    )  # fmt: skip
    reference = parse_json((live.folder.parts / it.leg.file("reference.json")).read_bytes())
    assert "manifest_hash" in reference
    events = (it.pod / "events.jsonl").read_bytes().splitlines(keepends=True)
    (it.pod / "ended.jsonl").write_bytes(b"".join(events))
    (it.pod / "events.jsonl").write_bytes(b"".join(events[:4]))
    (it.pod / "result.json").unlink()
    live.rental.unattended_until = time.time() + 600
    runs(it, os.getpid())
    return it


def runs(it: Orphan, process: int) -> None:
    it.live.rental.launched = SavedLaunch(
        slot=0, launch=1, process=process, started_at=time.time() - 5, timings={"sealSec": 1.0}
    )
    it.live.save()


def ends(it: Orphan, result: dict) -> None:
    (it.pod / "ended.jsonl").rename(it.pod / "events.jsonl")
    (it.pod / "result.json").write_bytes(canonical_json(result))


def taken(it: Orphan, *, stay: bool = False) -> unattended.Taken:
    """As another process does it."""
    live = reopen(it.live.folder.path, QUIET)
    return unattended.take_up(live, it.provider, live.rental.unattended_until, stay=stay)


def launch(it: Orphan) -> dict:
    return parse_json((it.live.folder.parts / it.leg.file("launch.json")).read_bytes())


def test_one_that_goes_on_is_left_alone_and_its_head_countersigned(left: Orphan) -> None:
    found = taken(left)
    assert (found.goes_on, found.why) == (True, "its job goes on")
    assert len(left.home("events.jsonl")) == 4
    (head,) = map(parse_json, left.home("heads.jsonl"))
    assert head["seq"] == 3
    assert not (left.live.folder.parts / left.leg.file("launch.json")).exists()
    assert left.pod.exists()
    assert taken(left).goes_on  # and again
    assert len(left.home("events.jsonl")) == 4


def test_one_that_has_failed_is_written_down_as_its_controller_would_have(left: Orphan) -> None:
    ends(left, FAILED)
    found = taken(left)
    assert (found.goes_on, found.over) == (False, True)
    written = launch(left)
    assert (written["status"], written["code"]) == ("failed", "process-died")
    assert written["timings"]["sealSec"] == 1.0
    assert written["timings"]["totalSec"] >= 5
    assert len(left.home("events.jsonl")) == 7
    assert left.live.folder.sealed("s000", 1, "log.sealed").exists()


def test_one_whose_processes_are_gone_is_lost(left: Orphan) -> None:
    runs(left, 2**22 + 1)  # no such process
    assert taken(left).over
    assert launch(left)["code"] == "lost-leg"


def test_a_chain_that_somebody_else_wrote_is_its_end(left: Orphan) -> None:
    events = (left.pod / "events.jsonl").read_bytes().splitlines(keepends=True)
    (left.pod / "events.jsonl").write_bytes(b"".join([*events[:3], events[3].replace(b"job", b"jab")]))
    assert taken(left).over
    assert launch(left)["code"] == "event-chain-broken"


def test_one_that_stays_ends_it_when_its_machine_does(left: Orphan) -> None:
    ends(left, FAILED)
    assert taken(left, stay=True).over
    assert launch(left)["code"] == "process-died"


def test_a_machine_that_does_not_answer_is_left_alone_unless_somebody_wants_its_end(
    left: Orphan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unattended, "ANSWER_SEC", 3.0)
    monkeypatch.setattr(unattended, "_DELAYS", (0.0,))
    endpoint = left.live.rental.endpoint
    assert endpoint is not None
    here = endpoint.port
    left.recorded(port=1)
    found = taken(left)
    assert found.goes_on
    assert found.why.startswith("its machine does not answer: ")
    unattended.ask_stop(left.live.folder.path, "end")
    assert taken(left) == unattended.NOTHING
    assert here != 1


@pytest.mark.parametrize("how", ["too late", "without the key", "never launched", "to end at once", "ended"])
def test_what_nobody_can_wait_for_is_given_back_as_before(left: Orphan, how: str) -> None:
    live = left.live
    if how == "too late":
        live.rental.unattended_until = time.time() - 1
    elif how == "without the key":
        path = live.folder.parts / left.leg.file("exchange.json")
        exchange = parse_json(path.read_bytes())
        path.write_bytes(canonical_json({**exchange, "grant": None}))
    elif how == "never launched":
        live.rental.launched = None
    elif how == "to end at once":
        unattended.ask_stop(live.folder.path, "now")
    else:
        live.ending.failures.append(Code.INTERRUPTED)
    live.save()
    assert taken(left) == unattended.NOTHING


def test_where_all_is_at_home_only_the_release_was_missing(left: Orphan) -> None:
    complete = {
        "slot": 0, "arm": "protected", "launch": 1, "status": "complete", "code": None, "timings": {},
        "rawFilesRemoved": None, "startedAt": 1.0, "endedAt": 2.0,
    }  # fmt: skip
    left.live.folder.write_json(left.leg.file("launch.json"), complete)
    left.live.rental.unattended_until = 0.0  # also where the release had begun
    left.live.save()
    assert taken(left) == unattended.Taken(over=True)


# --- reap ---------------------------------------------------------------------------------------


def journaled(it: Orphan) -> None:
    intended(it.live)
    with Journal() as journal:
        journal.unattended(it.live.run.allocation, it.live.rental.unattended_until)


def test_reap_leaves_it_alone_says_until_when_and_stops_it_when_told(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        it = job(embedded_endpoint(server), tmp_path)
        journaled(it)
        run, until = it.live.run.id, it.live.rental.unattended_until
        for wishes in (Wishes(), Wishes(now=True), Wishes(dry_run=True)):
            (found,) = reap_all(QUIET, wishes)
            assert (found.state, found.proof) == ("unattended", None)
            assert found.until == pytest.approx(until)
            assert found.detail.startswith(f"left alone until {goes_on.clock(until)} (")
            assert found.detail.endswith(f": glasshouse reap --stop {run} ends it")
        lock = RunLock(it.live.folder.path)
        assert lock.take()
        (found,) = reap_all(QUIET)
        lock.close()
        assert (found.state, "another process follows it" in found.detail) == ("unattended", True)
        assert it.pod.exists()
        (found,) = reap_all(QUIET, Wishes(stop=run, now=True))
        assert (found.state, found.proof, found.status) == ("reaped", "zero", "excluded")
        assert not it.pod.exists()
        with Journal() as journal:
            assert journal.open_entries() == ()
        record = parse_json((it.live.folder.bundle / "record.json").read_bytes())
        assert "controller-killed" in record["exclusion"]["codes"]


def test_reap_records_the_end_that_it_had_by_itself(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        it = job(embedded_endpoint(server), tmp_path)
        journaled(it)
        ends(it, FAILED)
        (found,) = reap_all(QUIET)
        assert (found.state, found.proof, found.status, found.by_itself) == (
            "reaped", "zero", "excluded", True,
        )  # fmt: skip
        codes = parse_json((it.live.folder.bundle / "record.json").read_bytes())["exclusion"]["codes"]
        # Its attestation is none (a fixture's): what counts is that nobody blames the controller's end.
        assert not {"controller-killed", "outputs-fetched-late"} & set(codes)
        assert it.outputs.exists()
        outcome = parse_json((it.live.folder.bundle / "outcome.json").read_bytes())
        assert outcome["takenUpAt"] == pytest.approx(time.time(), abs=60)


def test_one_whose_folder_is_not_here_is_left_alone_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rented("runpod", timing=None) as it:
        monkeypatch.setenv(VARIABLE["runpod"], it.server.key)
        live = create(it.spec.model_copy(update=PRIVATE), tmp_path, QUIET, [])
        intended(live)
        it.allocate(live.run.allocation)
        with Journal() as journal:
            journal.unattended(live.run.allocation, time.time() + 600)
        (live.folder.path / "run.json").unlink()
        (found,) = reap_all(QUIET)
        assert (found.state, it.state()["active"]) == ("unattended", 1)
        assert "its run folder cannot be read here" in found.detail
        (found,) = reap_all(QUIET, Wishes(stop=live.run.id[:8]))
        assert (found.state, found.proof, it.state()["active"]) == ("reaped", "zero", 0)


def test_from_its_release_on_nothing_is_left_alone(tmp_path: Path) -> None:
    live = create(make_spec(**PRIVATE), tmp_path, QUIET, [])
    live.rental.unattended_until = time.time() + 600
    seen = []
    with Journal() as journal, LocalProvider(LocalSpec(kind="local")) as provider:
        journal.intend(live.run.id, live.run.allocation, "local", {})
        journal.unattended(live.run.allocation, live.rental.unattended_until)
        release = provider.release

        def watched(*words: object) -> object:
            entry = journal.find(live.run.allocation)
            seen.append(entry is not None and entry.may_go_on)
            return release(*words)  # type: ignore[arg-type]

        provider.release = watched  # type: ignore[assignment, method-assign]
        assert finish.release(live, provider, journal).proof == "zero"
    assert seen == [False]
    assert live.folder.saved().unattended_until == 0.0


def test_a_watchdog_that_cannot_open_the_keys_leaves_it_to_whoever_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unattended, "KEYLESS_SEC", 0.05)
    words = tmp_path / "words"
    words.write_text("correct horse battery staple\n")
    words.chmod(0o600)
    with serving(tmp_path) as server:
        it = job(embedded_endpoint(server), tmp_path)
        journaled(it)
        keys.make_all()
        keys.relock(b"correct horse battery staple")
        locked.forget()
        folder = it.live.folder.path
        watchdog = threading.Thread(target=watch, args=(folder, QUIET))
        watchdog.start()
        log = it.live.folder.log
        wait_until(lambda: log.exists() and "under a passphrase" in log.read_text(), 10, "its word")
        time.sleep(0.3)
        assert watchdog.is_alive()
        assert it.pod.exists()
        lock = RunLock(folder)
        assert lock.take()  # whoever can open them may take it up
        lock.close()
        monkeypatch.setenv(locked.VARIABLE, str(words))
        (found,) = reap_all(QUIET, Wishes(stop=it.live.run.id, now=True))
        assert (found.state, found.proof, found.status) == ("reaped", "zero", "excluded")
        watchdog.join(20)
        assert not watchdog.is_alive()


@pytest.mark.parametrize("why", ["its time is over", "nothing of it goes on"])
def test_without_keys_nothing_is_waited_for_in_vain(
    why: str, left: Orphan, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys.make_all()
    keys.relock(b"correct horse battery staple")
    locked.forget()
    if why == "its time is over":
        left.live.rental.unattended_until = time.time() - 1
    else:
        left.live.ending.failures.append(Code.INTERRUPTED)
    began = time.monotonic()
    unattended.wait_without_keys(left.live, lambda: pytest.fail("it waits"))
    assert time.monotonic() - began < 5


def test_the_salt_is_that_of_the_plan_for_whoever_finishes_the_run(left: Orphan) -> None:
    left.live.save()
    assert reopen(left.live.folder.path, QUIET).run.salt == left.live.run.salt
    saved = left.live.folder.path / "run.json"
    assert saved.stat().st_mode & 0o777 == 0o600
    assert repr(left.live.run).find(saved_salt := parse_json(saved.read_bytes())["salt"]) == -1
    assert len(saved_salt) == 43


# --- the controller itself ----------------------------------------------------------------------


def test_a_machine_out_of_reach_is_tried_again_until_its_time_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unattended, "WAITS", (0.0,))
    live = create(make_spec(**PRIVATE, provider={"kind": "ssh", "host": "h", "user": "u", "key": "/k"}),
                  tmp_path, QUIET, [])  # fmt: skip
    with LocalProvider(LocalSpec(kind="local")) as local:
        assert unattended.patience(live, local) is None  # it may not go on
        live.rental.unattended_until = time.time() + 600
        assert unattended.patience(live, local) is None  # its server is this process
        insists = unattended.Patience(live, local)
    error = RemoteError("the pod cannot be reached")
    assert [insists(error) for _ in range(10)] == [True] * 10
    live.rental.unattended_until = time.time() - 1
    assert not insists(error)
    live.rental.unattended_until = time.time() + 600
    live.ending.failures.append(Code.INTERRUPTED)
    assert not insists(error)


def test_a_machine_that_its_provider_lists_no_more_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unattended, "WAITS", (0.0,))
    error = RemoteError("the pod cannot be reached")
    with rented("runpod", timing=None) as it:
        live = create(it.spec.model_copy(update=PRIVATE), tmp_path, QUIET, [])
        live.rental.unattended_until = time.time() + 600
        it.allocate(live.run.allocation)
        insists = unattended.patience(live, it.provider)
        assert insists is not None
        assert all(insists(error) for _ in range(5))
        for pod in it.server.cloud.living():
            it.provider.api.destroy(pod.id)
        assert all(insists(error) for _ in range(5))  # a list can have a gap for a while
        monkeypatch.setattr(unattended, "ABSENT_SEC", 0.0)
        assert not insists(error)


@pytest.mark.parametrize("interruptible", [True, False])
def test_an_interruptible_machine_that_its_provider_took_away_is_given_up_at_once(
    interruptible: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unattended, "WAITS", (0.0,))
    error = RemoteError("the pod cannot be reached")
    with rented("vastai", interruptible=interruptible) as it:
        live = create(it.spec.model_copy(update=PRIVATE), tmp_path, QUIET, [])
        live.rental.unattended_until = time.time() + 600
        machine = it.allocate(live.run.allocation)
        insists = unattended.patience(live, it.provider)
        assert insists is not None
        assert all(insists(error) for _ in range(3))
        it.server.cloud.take_away(machine.id)
        it.faults("read-5xx", times=2 * FAST.reads)
        assert all(insists(error) for _ in range(2))  # nobody says that it is there
        it.server.cloud.faults.clear()
        assert insists(error) is not interruptible
        it.provider.api.destroy(machine.id)
        assert insists(error)  # what is there no more is not stopped: it has to be absent for a while


def test_a_terminal_that_closes_ends_only_what_may_not_go_on(tmp_path: Path) -> None:
    log = tmp_path / "log"
    screen = Screen(quiet=True)
    before = signal.getsignal(signal.SIGHUP)
    with screen.logged(log), Interrupts(screen, lambda: "", stays=True) as interrupts:
        with interrupts.allowed():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.05)
        assert "the terminal was closed; the run goes on" in log.read_text()
    assert signal.getsignal(signal.SIGHUP) is before
    with Interrupts(screen, lambda: ""):
        assert signal.getsignal(signal.SIGHUP) is before
