"""A watchdog starts whatever lies around it, says when it is ready, and is replaced when it dies."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from glasshouse.errors import ProviderError
from glasshouse.lifecycle.live_run import LiveRun
from glasshouse.lifecycle.screen import Screen
from glasshouse.lifecycle.watchdog import Watchdog
from glasshouse.run import run_sweep
from tests.e2e.conftest import processes_of, wait_until
from tests.lifecycle.test_reap import QUIET, planned
from tests.providers.cloud_kit import VARIABLE, rented
from tests.specs import make_spec


def ancestors(pid: int) -> list[int]:
    found = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.append(pid)
    return found


def log_of(live: LiveRun) -> str:
    return live.folder.log.read_text() if live.folder.log.exists() else ""


def watchdog_of(folder: Path) -> int:
    (pid,) = processes_of(str(folder))
    return pid


def test_nothing_that_lies_around_ends_a_watchdog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live = planned(make_spec(), tmp_path / "runs")
    around = tmp_path / "around"
    (around / "glasshouse").mkdir(parents=True)  # as in the folder that holds a clone
    for name in ("random.py", "sitecustomize.py", "glasshouse/__init__.py", "sqlalchemy.py"):
        (around / name).write_text("raise SystemExit('not the module that was meant')\n")
    monkeypatch.chdir(around)
    monkeypatch.setenv("PYTHONPATH", f"{around}:")
    with Watchdog(live.folder.path, QUIET) as watchdog:
        watchdog.start()
        assert os.getpid() not in ancestors(watchdog_of(live.folder.path))
    assert (live.folder.path / "watchdog.log").read_bytes() == b""
    assert processes_of(str(live.folder.path)) == []


def test_a_watchdog_that_could_not_finish_the_run_is_none(tmp_path: Path) -> None:
    live = planned(make_spec(), tmp_path)
    (live.folder.path / "run.json").write_text("{}")
    with Watchdog(live.folder.path, QUIET) as watchdog, pytest.raises(ProviderError) as raised:
        watchdog.start()
    assert raised.value.code == "watchdog-not-started"
    assert "not a run folder" in (live.folder.path / "watchdog.log").read_text()


def test_without_a_watchdog_nothing_is_rented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with rented("runpod", timing=None) as it:
        monkeypatch.setenv(VARIABLE["runpod"], it.server.key)
        monkeypatch.setattr(sys, "executable", str(tmp_path / "gone"))
        assert run_sweep([([], it.spec)], out=tmp_path / "runs", quiet=True, as_json=True) == 3
        assert '"watchdog-not-started"' in capsys.readouterr().out
        assert it.state()["created"] == 0


def test_a_watchdog_that_dies_is_replaced(tmp_path: Path) -> None:
    live, screen = planned(make_spec(), tmp_path), Screen(quiet=True)
    folder = live.folder.path
    with screen.logged(live.folder.log), Watchdog(folder, screen) as watchdog:
        watchdog.start()
        first = watchdog_of(folder)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: "another watchdog is ready" in log_of(live), 60, "another one")
        assert watchdog_of(folder) != first
    assert processes_of(str(folder)) == []
    assert "NO WATCHDOG" not in log_of(live)


def test_a_watchdog_that_is_to_stay_goes_on_with_the_run(tmp_path: Path) -> None:
    live = planned(make_spec(), tmp_path)
    with Watchdog(live.folder.path, QUIET) as watchdog:
        watchdog.start()
        watchdog.stay()
    wait_until((live.folder.bundle / "record.json").exists, 60, "the record")
    wait_until(lambda: not processes_of(str(live.folder.path)), 60, "its end")


def test_where_none_can_take_its_place_that_is_said_loudly(tmp_path: Path) -> None:
    live, screen = planned(make_spec(), tmp_path), Screen(quiet=True)
    with screen.logged(live.folder.log), Watchdog(live.folder.path, screen) as watchdog:
        watchdog.start()
        (live.folder.path / "run.json").write_text("{}")
        os.kill(watchdog_of(live.folder.path), signal.SIGKILL)
        wait_until(lambda: "THIS RUN HAS NO WATCHDOG" in log_of(live), 60, "the alarm")
