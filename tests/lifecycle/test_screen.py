"""What was shown is kept in the run folder, also where nobody saw it."""

from __future__ import annotations

import re
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


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for path in (tmp_path / "none" / "controller.log", tmp_path / "link", Path("/dev/full")):
        ControllerLog(path).line("x")
    assert not (tmp_path / "elsewhere").exists()
