"""A machine that its provider took away while nobody followed, and a controller that does not answer."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from glasshouse import host
from glasshouse.commands.reap import _code
from glasshouse.lifecycle import reap, rescue, unattended
from glasshouse.lifecycle.live_run import LiveRun
from glasshouse.lifecycle.reap import Wishes, reap_all
from glasshouse.providers import journal as journals
from glasshouse.providers.journal import Journal
from tests.lifecycle.test_reap import QUIET, intended
from tests.lifecycle.test_unattended import PRIVATE, job
from tests.providers.cloud_kit import VARIABLE, rented
from tests.remote.conftest import embedded_endpoint, serving


def test_a_machine_that_its_provider_took_away_is_taken_up_as_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unattended, "ANSWER_SEC", 2.0)
    monkeypatch.setattr(unattended, "ABSENT_SEC", 0.3)
    monkeypatch.setattr(unattended, "_DELAYS", (0.0,))
    monkeypatch.setattr(rescue, "ANSWER_SEC", 2.0)
    monkeypatch.setattr(rescue, "_DELAYS", (0.0,))
    with serving(tmp_path) as server, rented("runpod", timing=None) as cloud:
        it = job(embedded_endpoint(server), tmp_path)
        monkeypatch.setenv(VARIABLE["runpod"], cloud.server.key)
        run = it.live.run
        spec = cloud.spec.model_copy(update=PRIVATE)
        it.live = LiveRun(
            type(run)(**{**vars(run), "spec": spec}), it.live.folder, it.live.screen, it.live.rental
        )
        it.recorded(port=1)
        intended(it.live)
        with Journal() as journal:
            journal.unattended(run.allocation, it.live.rental.unattended_until)
        cloud.allocate(run.allocation)
        (found,) = reap_all(QUIET)
        assert found.state == "unattended"  # its provider has it: it may go on
        for pod in cloud.server.cloud.living():
            cloud.provider.api.destroy(pod.id)
        (found,) = reap_all(QUIET)
        assert (found.state, found.proof, found.status) == ("reaped", "zero", "excluded")
        assert "its machine was gone, and its row is excluded" in found.detail
        assert _code(found) == 1
        with Journal() as journal:
            assert journal.open_entries() == ()


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The process of which the journal says that it runs `RUN`."""
    process = subprocess.Popen(["sleep", "60"])
    with Journal() as journal:
        journal.intend(
            RUN, f"gh-{RUN}-00000000", "local", {"folder": str(tmp_path), "provider": {"kind": "local"}}
        )
        name = f"{socket.gethostname()}:{host.identity(process.pid)}"
        with journal._engine.begin() as connection:
            connection.execute(sa.update(journals._allocations).values(controller=name))
    threading.Thread(target=process.wait, daemon=True).start()  # as its shell does
    yield process
    process.kill()


RUN = "20260101-000000-aaaaaa"


def test_a_stopped_controller_is_no_success_and_is_killed_where_all_is_to_end_now(
    controller: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reap, "SIGN_SEC", 1.0)
    os.kill(controller.pid, signal.SIGSTOP)
    while not host.stopped(controller.pid):
        time.sleep(0.01)
    (found,) = reap_all(QUIET, Wishes(stop=RUN))
    assert (found.state, _code(found)) == ("silent", 3)
    assert f"process {controller.pid}, is stopped and does not answer" in found.detail
    assert host.stopped(controller.pid)
    (found,) = reap_all(QUIET, Wishes(stop=RUN, now=True))
    assert (found.state, found.proof) == ("reaped", "zero")
    assert not host.lives(host.identity(controller.pid))


def test_one_that_hears_and_shows_it_is_ending_its_run(
    controller: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter(range(9))
    monkeypatch.setattr(reap, "_traces", lambda _: [(next(looks), 0)])
    os.kill(controller.pid, signal.SIGSTOP)  # so that it does not end by the word
    (found,) = reap_all(QUIET, Wishes(stop=RUN))
    assert (found.state, _code(found)) == ("stopping", 0)
    assert (tmp_path / "stop").read_bytes() == b"end"
