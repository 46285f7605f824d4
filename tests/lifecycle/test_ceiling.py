"""What is said of a ceiling that will not do, and who is asked: a person at a terminal, and nobody else."""

from __future__ import annotations

import os
import pty
import select
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glasshouse.lifecycle.ceiling import Ceiling, Late
from glasshouse.lifecycle.screen import Screen
from glasshouse.spec import RunSpec
from tests.specs import make_spec

ROOT = Path(__file__).parents[2]
PROJECT = {
    "kind": "project", "name": "project", "folder": "x", "command": ["python", "a.py"], "max_hours": 10.0
}  # fmt: skip
TOLD = {
    "phase": "job", "elapsedSec": 230.0, "units": 0,
    "forecast": {"total": 20_000, "stepSec": 2.3, "needsSec": 46_000.0},
}  # fmt: skip
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3),
)


def job(**model: Any) -> RunSpec:
    return make_spec(model=PROJECT | model, order="protected-only", payload="private", duration=None)


def test_it_says_what_is_needed_where_it_ends_and_what_would_do() -> None:
    late = Late.read(TOLD)
    assert late is not None
    first, second = late.lines(job(), 36_000.0)
    assert first == (
        "at 2.3 s a step 20000 optimizer steps need about 12.8 h; "
        "model.max_hours=10 ends it at about step 15652"
    )
    assert second.startswith(
        "model.max_hours=15 would do, which takes another run: nothing raises what was planned. "
    )
    assert second.endswith("and continue with from=RUN")
    assert "its ceiling of 9.5 h ends it at about step 14869" in late.lines(job(), 34_200.0)[0]  # of a rental
    longer = Late.read({**TOLD, "forecast": {"total": 20_000, "stepSec": 230.0, "needsSec": 4.6e6}})
    assert longer is not None
    assert longer.lines(job(), 36_000.0)[1].startswith("no ceiling that there is would do")


NUMBERS = {"total": st.integers(0, 2**60), "stepSec": st.floats(0, 1e300), "needsSec": st.floats(0, 1e300)}


@given(
    st.fixed_dictionaries({"forecast": ANY})
    | st.fixed_dictionaries({"forecast": st.fixed_dictionaries(dict.fromkeys(NUMBERS, ANY))})
    | st.fixed_dictionaries({"forecast": st.fixed_dictionaries(NUMBERS)}),
    st.floats(1.0, 1e7),
)
def test_whatever_a_machine_says_there_are_two_lines_or_none(report: Any, ceiling: float) -> None:
    late = Late.read(report)
    if late is not None:
        assert all("\n" not in line and len(line) < 400 for line in late.lines(job(), ceiling))


def test_without_a_terminal_it_says_so_once_and_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    ceiling = Ceiling(Screen(asks=True), job(), 36_000.0)
    ceiling.heard({"phase": "job", "elapsedSec": 3.0, "units": 0})
    assert capsys.readouterr().err == ""
    for _ in range(2):
        ceiling.heard(TOLD)
        ceiling.answered()
    err = capsys.readouterr().err
    assert err.count("ends it at about step") == 1
    assert "  it goes on\n" in err
    assert "type stop" not in err


ASKED = """
import sys, time
from glasshouse.lifecycle.ceiling import Ceiling
from glasshouse.lifecycle.screen import Screen
from tests.lifecycle.test_ceiling import TOLD, job
ceiling = Ceiling(Screen(asks={asks}), job(), 36_000.0)
ceiling.heard(TOLD)
{then}
try:
    until = time.monotonic() + {patience}
    while time.monotonic() < until:
        ceiling.answered()
        time.sleep(0.02)
    print("NOBODY STOPPED IT")
except KeyboardInterrupt:
    print("STOPPED")
"""


def at_a_terminal(typed: bytes, then: str = "", *, asks: bool = True, patience: float = 2.0) -> str:
    """What is shown by a process at a terminal of its own, where somebody types once that is told."""
    code = ASKED.format(asks=asks, then=then, patience=patience)
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-c", code])
    shown, until = b"", time.monotonic() + 60
    while time.monotonic() < until:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                shown += os.read(terminal, 4096)
            except OSError:  # it ended
                break
        if typed and b"goes on" in shown:
            os.write(terminal, typed)
            typed = b""
    os.close(terminal)
    os.waitpid(pid, 0)
    return " ".join(shown.decode().split())


@pytest.mark.parametrize(
    ("typed", "ends"), [(b"stop\n", "STOPPED"), (b"no\n", "NOBODY STOPPED IT"), (b"", "NOBODY STOPPED IT")]
)
def test_who_sits_at_a_terminal_is_asked_and_need_not_answer(typed: bytes, ends: str) -> None:
    shown = at_a_terminal(typed, patience=30.0 if ends == "STOPPED" else 2.0)
    assert "type stop and Enter to end it now; without an answer it goes on" in shown
    assert shown.endswith(ends)


def test_no_answer_counts_where_it_ends_already_or_nobody_asked() -> None:
    assert at_a_terminal(b"stop\n", "ceiling.settled()").endswith("NOBODY STOPPED IT")
    shown = at_a_terminal(b"stop\n", asks=False)  # --yes
    assert "type stop" not in shown
    assert shown.endswith("NOBODY STOPPED IT")
