"""`glasshouse watch`, `logs`, `show` and `pages --private`: what sealed records tell their owner."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from glasshouse import host
from glasshouse.canonical import sha256_hex
from glasshouse.commands import private_pages
from glasshouse.commands.watch import lines_of
from glasshouse.commands.watched_runs import pick_job
from glasshouse.lifecycle.run_folder import RunLock
from glasshouse.runtime.watched import MAGIC
from glasshouse.watching.curves import Watched
from glasshouse.watching.page import run_page
from glasshouse.watching.record import WatchRecord
from tests.commands.kit import ROOT, Call
from tests.watching.kit import RUN, SAMPLES, JobAtHome, seal

HOSTILE, OTHERS = "20260103-030405-bbbbbb", "20260103-030405-cccccc"


@pytest.fixture
def job(elsewhere: Path) -> JobAtHome:
    """A job that nobody follows."""
    return JobAtHome(elsewhere / "runs", steps=400, duration=None)


def train(job: JobAtHome, first: int = 1, last: int = 20) -> None:
    """Let the job print, and write lines of JSON."""
    for step in range(first, last + 1):
        job.log.write(f"step {step}: loss {2 / step:.3f}\n".encode())
        with (job.job / "metrics.jsonl").open("a") as stream:
            stream.write(json.dumps({"step": step, "loss": 2 / step, "lr": 1e-3}) + "\n")


def test_watch_draws_what_came_and_says_that_nobody_follows(job: JobAtHome, call: Call) -> None:
    train(job)
    job.record()
    train(job, 21, 30)
    job.record()
    code, out, err = call("watch", RUN)
    assert code == 0
    assert "s000-1: goes on, record 2" in out
    assert "step 30 of 400 (8 %)" in out
    assert "loss 0.06667   learning rate 0.001" in out
    assert "step 30\n" in out  # the axis beneath the curve
    assert "nobody follows this run, so nothing new comes home: `glasshouse reap` sees to it" in err


def test_watch_streams_json_a_line_a_record(job: JobAtHome, call: Call) -> None:
    train(job, 1, 2)
    job.record()
    train(job, 3, 3)
    job.record()
    code, out, _ = call("watch", str(job.path), "--json")
    assert code == 0
    first, second = map(json.loads, out.splitlines())
    assert (first["run"], first["leg"], first["launch"], first["number"]) == (RUN, "s000", 1, 1)
    assert [one["step"] for one in first["points"] if one["source"] == "metrics.jsonl"] == [1, 2]
    assert (second["loss"], second["learningRate"], second["total"]) == (2 / 3, 1e-3, 400)


def test_every_kind_of_file_is_watched(job: JobAtHome, call: Call) -> None:
    for name, sample in (
        ("events.out.tfevents.1.x", "events.out.tfevents.tensorboardx"),
        ("run-a.wandb", "run.wandb"),
        ("trainer_state.json", "trainer_state.json"),
    ):
        (job.job / name).write_bytes((SAMPLES / sample).read_bytes())
    for _ in range(3):  # W&B's file takes more than one record
        job.record()
    said = [json.loads(line) for line in call("watch", RUN, "--json")[1].splitlines()]
    points = [one for each in said for one in each["points"]]
    count = {
        source: sum(one["source"] == source for one in points) for source in {p["source"] for p in points}
    }
    assert count == {"events.out.tfevents.1.x": 40, "run-a.wandb": 100, "trainer_state.json": 24}


def test_logs_prints_what_the_terminal_can_bear(job: JobAtHome, call: Call) -> None:
    job.log.write("a\tb\n\x1b]52;c;aGk=\x07\x1b[31mred\x1b[0m \x9b1m\u202e end\nhalf".encode())
    job.record()
    code, out, err = call("logs", RUN)
    assert code == 0
    assert out == "a    b\nred \ufffd1m\ufffd end\n"
    assert "nobody follows this run" in err
    (said,) = [json.loads(line) for line in call("logs", "--json", RUN)[1].splitlines()][1:]
    assert (said["leg"], said["launch"], said["line"]) == ("s000", 1, "red \x9b1m\u202e end")


def test_logs_follows_a_run_that_another_process_works_on(job: JobAtHome, glasshouse_home: Path) -> None:
    lock = RunLock(job.path)
    assert lock.take()
    job.log.write(b"one\n")
    job.record()
    command = [sys.executable, "-m", "glasshouse", "logs", "-f", RUN]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as following:
        assert following.stdout is not None
        watchdog = threading.Timer(60, following.kill)
        watchdog.start()
        try:
            assert following.stdout.readline() == "one\n"
            job.log.write(b"two\n")
            job.record()
            assert following.stdout.readline() == "two\n"
            job.log.write(b"three\n")
            job.record()
            job.end()
            assert following.stdout.readline() == "three\n"
            assert following.wait(30) == 0
        finally:
            watchdog.cancel()
            lock.close()


def test_a_run_that_is_no_job_is_refused_in_a_line(elsewhere: Path, call: Call) -> None:
    JobAtHome(elsewhere / "runs", order="raw-first", payload="public")
    for command in ("watch", "logs"):
        code, _, err = call(command, RUN)
        assert code == 2
        assert err == (
            f"error: only a private job is watched, and this run is none (run={RUN}): "
            "`glasshouse show` has its curves once it is over\n"
        )
    assert call("watch", "2031")[0] == 2


def test_before_the_first_record_that_is_said(job: JobAtHome, call: Call) -> None:
    assert "no record has come home yet" in call("watch", RUN)[1]
    job.end()
    code, out, err = call("watch", RUN)
    assert (code, err) == (0, "")
    assert "it was over before the first" in out


def test_only_what_the_events_name_is_taken(job: JobAtHome, call: Call) -> None:
    train(job, 1, 1)
    job.record()
    job.watch.number = 9  # nobody signed it
    (job.place / "000002.sealed").write_bytes(seal(2, MAGIC)[0])
    assert '"number": 1' in call("watch", RUN, "--json")[1]
    job.event(2, "00" * 32)
    err = call("watch", RUN)[2]
    assert "s000-1 record 2: it is not the one that the events name" in err
    for number, (data, digest) in {3: seal(3, b"no record"), 4: seal(4, b"", files=("a", "b"))}.items():
        (job.place / f"{number:06d}.sealed").write_bytes(data)
        job.event(number, digest)
    err = call("watch", RUN)[2]
    assert "s000-1 record 3: not of this form" in err
    assert "s000-1 record 4: it holds something else" in err


def test_a_record_in_anothers_place_is_not_opened(job: JobAtHome, call: Call) -> None:
    path = job.record()
    job.event(2, sha256_hex(path.read_bytes()))
    (job.place / "000002.sealed").write_bytes(path.read_bytes())
    code, out, err = call("watch", RUN)
    assert code == 0
    assert "record 1," in out
    assert "s000-1 record 2: " in err
    assert "grant-unwrap-failed" in err
    path.unlink()
    code, _, err = call("watch", RUN)
    assert code == 1
    assert "sealed for another owner's key than this machine's, or altered since" in err


def test_anothers_key_opens_nothing(
    job: JobAtHome, call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    job.record()
    monkeypatch.setenv("GLASSHOUSE_HOME", str(tmp_path_factory.mktemp("another")))
    for command in ("watch", "logs"):
        code, _, err = call(command, RUN)
        assert code == 1
        assert "another owner's key" in err
        assert "GLASSHOUSE_HOME of then" in err


def test_show_draws_the_curves_of_a_run_without_a_record(job: JobAtHome, call: Call) -> None:
    train(job)
    job.record()
    code, out, _ = call("show", RUN)
    assert code == 0
    assert "s000-1, 1 sealed records: step 20 of 400 (5 %)" in out
    assert "⠑" in out


def test_private_pages_are_for_nobody_else(job: JobAtHome, elsewhere: Path, call: Call) -> None:
    train(job)
    job.record()
    JobAtHome(elsewhere / "runs", "20260103-030405-ffffff", order="raw-first", payload="public")
    code, out, _ = call("pages", "--private", "--out", "mine")
    assert code == 0
    assert "1 private jobs with curves" in out
    pages = {path.name: path for path in Path("mine").iterdir()}
    assert set(pages) == {"index.html", f"{RUN}.html"}
    assert Path("mine").stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in pages.values())
    assert "<path d=" in pages[f"{RUN}.html"].read_text()
    assert call("pages", "--private", "--out", "mine", "--json")[0] == 0  # they are replaced


def test_what_one_run_holds_costs_its_own_page_alone(
    job: JobAtHome, elsewhere: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(job)
    job.record()
    hostile = JobAtHome(elsewhere / "runs", HOSTILE)
    (hostile.job / "trainer_state.json").write_text(
        '{"max_steps": 1e999, "log_history": [{"loss": 1.0, "step": 5},{"loss": 2.0, "step": 6}]}'
    )
    hostile.record()
    assert call("pages", "--private", "--out", "mine")[0] == 0  # a number that is none costs nothing
    assert "step 6, no loss" not in call("watch", HOSTILE)[1]
    other = JobAtHome(elsewhere / "runs", OTHERS)
    (other.place / "000001.sealed").write_bytes(b"no container")
    other.event(1, sha256_hex(b"no container"))

    def drawn(run: str, launches: Any) -> str:
        if run == HOSTILE:
            raise OverflowError("whatever nobody thought of")
        return run_page(run, launches)

    monkeypatch.setattr(private_pages, "run_page", drawn)
    code, out, err = call("pages", "--private", "--out", "others")
    assert code == 1
    assert "1 private jobs with curves" in out
    assert f"no page for run {HOSTILE}: its records cannot be drawn: OverflowError" in err
    assert f"no page for run {OTHERS}: " in err
    assert "Traceback" not in err
    assert {path.name for path in Path("others").iterdir()} == {"index.html", f"{RUN}.html"}
    code, out, _ = call("pages", "--private", "--out", "others", "--json")
    assert (code, json.loads(out)["ok"], set(json.loads(out)["failed"])) == (1, False, {HOSTILE, OTHERS})


def test_a_record_that_cannot_be_taken_is_named_and_the_rest_are(
    job: JobAtHome, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = Watched.take

    def taken(self: Watched, record: WatchRecord) -> Any:
        if record.number == 1:
            raise OverflowError("whatever nobody thought of")
        return take(self, record)

    monkeypatch.setattr(Watched, "take", taken)
    for first in (1, 21):
        train(job, first, first + 19)
        job.record()
    for command in ("watch", "logs"):
        code, out, err = call(command, RUN)
        assert code == 0
        assert "s000-1 record 1: it cannot be read: OverflowError" in err
        assert "40" in out
    assert "s000-1, 2 sealed records: step 40" in call("show", RUN)[1]


def test_no_name_reaches_the_terminal(job: JobAtHome, call: Call) -> None:
    """Names of followed files and of quantities, what it printed, and words of the run's own settings."""
    escape = "\x1b]0;owned\x07\x9b31m\u202e"
    (job.job / f"{escape}.jsonl").write_text(json.dumps({f"{escape}loss": 1.5, "step": 3}) + "\n")
    (job.job / f"{escape}.tfevents.1").write_bytes(b"none")
    job.log.write(f"{escape} loss 3\n{escape} 1/2 [00:01<00:01, 1it/s]".encode())
    job.record()
    shown = (["watch", RUN], ["watch", RUN, "--json"], ["logs", RUN], ["logs", RUN, "--json"], ["show", RUN])
    for line in (*shown, ["pages", "--private", "--out", "mine"]):
        code, out, err = call(*line)
        assert code == 0, err
        assert all(char.isprintable() or char == "\n" for char in out + err), line
    page = (Path("mine") / f"{RUN}.html").read_text()
    assert all(char.isprintable() or char == "\n" for char in page)
    saved = job.path / "run.json"  # where only such a name can come from: the settings have none
    text = saved.read_text()
    saved.write_text(text.replace("mlp", json.dumps(escape)[1:-1]))
    assert saved.read_text() != text
    for line in shown:
        _, out, err = call(*line)
        assert all(char.isprintable() or char == "\n" for char in out + err), line
        assert "Traceback" not in err


@pytest.mark.parametrize("place", ["build/mine", "site/mine"])
def test_private_pages_do_not_lie_where_the_site_is_made(place: str, call: Call) -> None:
    code, _, err = call("pages", "--private", "--out", str(ROOT / place))
    assert code == 2
    assert "what lies there becomes public" in err
    assert not (ROOT / place).exists()


def test_private_pages_do_not_lie_where_others_look(call: Call) -> None:
    Path("open").mkdir(mode=0o755)
    assert "chmod 700" in call("pages", "--private", "--out", "open")[2]
    assert "give --out DIR" in call("pages", "--private", "--site", "open")[2]
    assert list(Path("open").iterdir()) == []


def test_nothing_of_a_jobs_curves_lies_in_its_bundle(job: JobAtHome, call: Call) -> None:
    train(job)
    job.record()
    before = listing(job.path)
    for words in (["watch", RUN], ["logs", RUN], ["show", RUN]):
        assert call(*words)[0] == 0
    assert listing(job.path) == {**before, "lock": b""}


def listing(folder: Path) -> dict[str, Any]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("rows", "across"), [(24, 80), (14, 60), (50, 200), (6, 30), (2, 20)])
def test_a_screen_fits_the_terminal_and_its_first_line_stays(job: JobAtHome, rows: int, across: int) -> None:
    train(job, 1, 30)
    job.log.write(b"  5%|" + b"#" * 300)
    job.record()
    looked = pick_job(RUN, job.path.parent)
    *_, newest = looked.new()
    lines = lines_of(looked, newest, os.terminal_size((across, rows)))
    assert len(lines) <= max(1, rows - 1)
    assert lines[0].startswith(f"run {RUN} s000-1: goes on, record 1")
    assert max(map(len, lines[1:]), default=0) <= across
    curves = [line for line in lines if "step 30" in line and line.startswith(" ")]
    assert len(curves) == {24: 1, 14: 1, 50: 1, 6: 0, 2: 0}[rows]


def test_show_of_a_run_that_goes_on_names_its_controller_and_watch(job: JobAtHome, call: Call) -> None:
    saved = json.loads((job.path / "run.json").read_bytes())
    (job.path / "run.json").write_text(json.dumps(saved | {"controller": host.identity(os.getpid())}))
    out = call("show", RUN)[1]
    assert f"its controller is running: `glasshouse watch {RUN}` shows how it stands" in out
    assert "reap" not in out
