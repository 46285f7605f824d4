"""What a long step shows: bytes, the rate of late, time left."""

from __future__ import annotations

import pytest

from glasshouse.lifecycle.meter import Meter, seconds


def shown(*calls: tuple[float, int], total: int = 1_000_000_000) -> list[str]:
    lines: list[str] = []
    now = [0.0]
    meter = Meter("uploading", lines.append, lambda: now[0])
    for when, done in calls:
        now[0] = when
        meter(done, total)
    return lines


def test_rate_and_time_left_come_with_time() -> None:
    first, second, last = shown((0, 10_000_000), (0.1, 20_000_000), (10, 110_000_000))
    assert first == "uploading 0.01 of 1.00 GB"
    assert second == "uploading 0.02 of 1.00 GB"  # a tenth of a second says nothing of a rate
    assert last == "uploading 0.11 of 1.00 GB, 10 MB/s, 1 min 29 s left"


def test_small_files_are_in_megabytes() -> None:
    assert (
        shown((0, 1_000_000), (1, 3_000_000), total=5_000_000)[-1] == "uploading 3 of 5 MB, 2 MB/s, 1 s left"
    )


def test_less_than_a_megabyte_is_not_worth_a_line() -> None:
    assert shown((0, 0), (1, 999_999), total=999_999) == []


def test_the_rate_is_that_of_late() -> None:
    fast, slow = (float(at) for at in range(11)), (10 + float(at) for at in range(1, 31))
    calls = [(at, int(at * 20e6)) for at in fast]
    calls += [(at, int(200e6 + (at - 10) * 1e6)) for at in slow]
    assert ", 1 MB/s, " in shown(*calls)[-1]


def test_what_begins_anew_has_no_rate_yet() -> None:
    assert shown((0, 0), (5, 500_000_000), (6, 1_000_000))[-1] == "uploading 0.00 of 1.00 GB"


@pytest.mark.parametrize(
    ("left", "words"), [(0.2, "0 s"), (59.4, "59 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_time_left_in_words(left: float, words: str) -> None:
    assert seconds(left) == words
