"""Commands: quoting, input, bounded output, signals, deadlines."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from glasshouse.errors import OutcomeUnknown, RemoteError
from glasshouse.remote.pod import Pod

NASTY = [
    "",
    " ",
    "-n",
    "--",
    "*",
    "~",
    "$HOME",
    "$(touch pwned)",
    "`touch pwned`",
    "a;touch pwned",
    "a&&b|c>d<e",
    "it's",
    'say "hi"',
    "back\\slash\\",
    "new\nline",
    "tab\there",
    "!history",
    "#comment",
    "{a,b}",
    "%s%n",
    "Zürich ≠ 東京 🪟",
    "\x01\x7f",
]


def test_run_gives_exit_status_and_both_streams(pod: Pod) -> None:
    result = pod.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (result.exit, result.stdout, result.stderr) == (3, b"out\n", b"err\n")
    assert not result.truncated


def test_every_word_arrives_as_it_was_given(pod: Pod, tmp_path: object) -> None:
    result = pod.run(["printf", "%s\\0", *NASTY])
    assert result.exit == 0, result.stderr
    assert result.stdout.decode("utf-8").split("\0")[:-1] == NASTY
    assert not pod.exists("pwned")


@pytest.mark.parametrize("argv", [[], ["echo", "a\0b"]])
def test_words_no_command_line_can_carry_are_refused(pod: Pod, argv: list[str]) -> None:
    with pytest.raises(RemoteError, match="NUL"):
        pod.run(argv)


def test_death_by_signal_is_an_exit_status_not_a_lost_connection(pod: Pod) -> None:
    assert pod.run(["sh", "-c", "kill -KILL $$"]).exit == 137
    assert pod.connected


def test_a_missing_program_is_an_exit_status(pod: Pod) -> None:
    assert pod.run(["no-such-program-here"]).exit == 127


def test_input_larger_than_any_window_goes_through_while_output_comes_back(pod: Pod) -> None:
    data = bytes(range(256)) * (12 << 12)  # 12 MiB both ways: deadlocks unless both sides are served at once
    result = pod.run(["cat"], input=data, max_output=len(data))
    assert result.stdout == data
    assert not result.truncated


def test_a_command_that_does_not_read_its_input_still_ends(pod: Pod) -> None:
    assert pod.run(["true"], input=bytes(6 << 20), timeout=20).exit == 0


def test_output_is_cut_at_the_bound_and_says_so_and_stays_fast(pod: Pod) -> None:
    began = time.monotonic()
    result = pod.run(["sh", "-c", "head -c 30000000 /dev/zero; echo end >&2"], max_output=1 << 20)
    assert (result.exit, len(result.stdout), result.stderr, result.truncated) == (0, 1 << 20, b"end\n", True)
    assert time.monotonic() - began < 10  # fabric's own capture takes over half a minute for this much


def test_a_passed_deadline_is_an_unknown_outcome_and_leaves_the_connection(pod: Pod) -> None:
    began = time.monotonic()
    with pytest.raises(OutcomeUnknown, match="no end of the command"):
        pod.run(["sleep", "5"], timeout=0.5)
    assert time.monotonic() - began < 3
    assert pod.run(["echo", "still here"]).stdout == b"still here\n"


def test_check_names_what_failed_and_why(pod: Pod) -> None:
    assert pod.check(["echo", "fine"], "echoing") == b"fine\n"
    with pytest.raises(RemoteError, match=r"listing failed on the pod \(exit=2\): .*nowhere") as caught:
        pod.check(["ls", "/nowhere"], "listing")
    assert caught.value.exit_code == 3
    with pytest.raises(RemoteError, match="too long"):
        pod.check(["head", "-c", "2000", "/dev/zero"], "reading", max_output=1000)


def test_many_commands_leave_no_descriptor_and_no_thread(pod: Pod) -> None:
    for _ in range(3):
        pod.run(["true"])
    before = len(list(Path("/proc/self/fd").iterdir())), threading.active_count()
    for _ in range(40):
        pod.run(["echo", "x"])
    deadline = time.monotonic() + 5
    while True:
        after = len(list(Path("/proc/self/fd").iterdir())), threading.active_count()
        if after[0] <= before[0] + 2 and after[1] <= before[1] + 1:
            break
        assert time.monotonic() < deadline, (before, after)
        time.sleep(0.05)


def test_commands_on_one_connection_run_side_by_side(pod: Pod) -> None:
    began = time.monotonic()
    with ThreadPoolExecutor(5) as pool:
        results = list(pool.map(lambda number: pod.run(["sh", "-c", f"sleep 0.5; echo {number}"]), range(5)))
    assert [result.stdout for result in results] == [b"%d\n" % number for number in range(5)]
    assert time.monotonic() - began < 2.4  # one after the other takes 2.5 s
