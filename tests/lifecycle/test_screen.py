"""What was shown is kept in the run folder, also where nobody saw it."""

from __future__ import annotations

import io
import re
import threading
from pathlib import Path

import pytest

from glasshouse.lifecycle import screen as module
from glasshouse.lifecycle.screen import ControllerLog, Screen

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (.*)")


def lines(path: Path) -> list[str]:
    found = [LINE.fullmatch(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert all(found)
    return [match[1] for match in found if match]


@pytest.mark.parametrize("quiet", [False, True])
def test_every_line_is_kept_with_its_time_for_the_owner_only(
    quiet: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "PLAIN_EVERY_SEC", 0.0)
    path, screen = tmp_path / "controller.log", Screen(quiet=quiet)
    with screen.logged(path):
        screen.headline("run 1  gpu=[cpu]")
        with screen.phase("connecting"):
            screen.progress("at [10.0.0.7]")
            screen.progress("slot 1", plain=False)
        with pytest.raises(ValueError, match="x"), screen.phase("sealing"):
            raise ValueError("x")
        screen.say("one")
        screen.warn("two")
        screen.record("for the log alone")
        screen.alarm("three")
    screen.say("after")
    *kept, last = lines(path)
    assert [re.sub(r"[\d.]+ s$", "N s", line) for line in kept] == [
        "run 1  gpu=[cpu]", "… connecting", "at [10.0.0.7]", "slot 1", "✓ connecting N s", "… sealing",
        "one", "two", "for the log alone",
    ]  # fmt: skip
    assert last == "three"
    assert path.stat().st_mode & 0o777 == 0o600
    shown = capsys.readouterr().err
    assert ("three" in shown) is not quiet
    assert "alone" not in shown


def test_what_another_thread_does_meanwhile_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "PLAIN_EVERY_SEC", 0.0)
    path, screen = tmp_path / "controller.log", Screen()
    begun, over = threading.Event(), threading.Event()

    def beside() -> None:
        with screen.meanwhile("sealing the package"):
            screen.progress_meanwhile("sealing 1 of 2 MB")
            begun.set()
            over.wait(60)

    thread = threading.Thread(target=beside)
    with screen.logged(path):
        with screen.phase("allocating"):
            thread.start()
            assert begun.wait(60)
            screen.progress("it boots")
            over.set()
            thread.join()
        screen.progress_meanwhile("nothing goes on any more")
    said = [re.sub(r"[\d.]+ s$", "N s", line) for line in lines(path)]
    assert said == [
        "… allocating", "… meanwhile: sealing the package", "meanwhile: sealing 1 of 2 MB", "it boots",
        "✓ meanwhile: sealing the package N s", "✓ allocating N s",
    ]  # fmt: skip
    shown = [re.sub(r"[\d.]+ s$", "N s", line.strip()) for line in capsys.readouterr().err.splitlines()]
    assert shown == said


def test_the_live_line_says_both(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    screen = Screen()
    assert screen.live
    with screen.phase("allocating"):
        with screen.meanwhile("sealing"):
            screen.progress("pod x boots")
            screen.say("so the line is drawn")
            screen.progress_meanwhile("sealing 1 of [2] MB")
            screen.say("and again")
        screen.progress("pod x runs")
    shown = terminal.getvalue()
    assert "pod x boots; meanwhile: sealing …" in shown
    assert "pod x boots; meanwhile: sealing 1 of [2] MB" in shown
    assert "pod x runs; meanwhile" not in shown
    assert shown.index("meanwhile: sealing") < shown.index("pod x runs")


def test_progress_is_kept_at_the_slow_rate_of_a_plain_stream(tmp_path: Path) -> None:
    path, screen = tmp_path / "controller.log", Screen(quiet=True)
    with screen.logged(path), screen.phase("leg"):
        for number in range(1000):
            screen.progress(f"{number}")
    assert len(lines(path)) == 2


def test_it_has_a_bound_and_progress_leaves_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LOG_BYTES", 1000)
    log = ControllerLog(tmp_path / "controller.log")
    for _ in range(100):
        log.line("x" * 50, routine=True)
    assert (tmp_path / "controller.log").stat().st_size <= 500
    log.line("CLEAN-UP NOT PROVEN")
    assert lines(tmp_path / "controller.log")[-1] == "CLEAN-UP NOT PROVEN"
    for _ in range(100):
        log.line("x" * 50)
    assert (tmp_path / "controller.log").stat().st_size <= 1000


def test_what_a_pod_says_is_one_harmless_line(tmp_path: Path) -> None:
    ControllerLog(tmp_path / "controller.log").line("a\nb\x1b]0;owned\x07 \ud800")
    assert lines(tmp_path / "controller.log") == ["a\ufffdb\ufffd]0;owned\ufffd \ufffd"]


def test_what_a_pod_says_is_shown_and_not_obeyed(capfd: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b]52;c;ZXZpbA==\x07\x1b[2J\x9b31m\u202e[bold]verified"
    screen = Screen()
    for show in (screen.headline, screen.say, screen.warn, screen.alarm):
        show(evil)
    with screen.phase(evil):
        pass
    out, err = capfd.readouterr()
    assert err.count("[bold]verified") >= 5  # markup of theirs is text of ours
    assert not [char for char in out + err if not char.isprintable() and char != "\n"]


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for path in (tmp_path / "none" / "controller.log", tmp_path / "link", Path("/dev/full")):
        ControllerLog(path).line("x")
    assert not (tmp_path / "elsewhere").exists()
