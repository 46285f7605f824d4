"""What records tell, taken one after the other: curves, lines, progress; and how it is drawn."""

from __future__ import annotations

import contextlib
import json
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glasshouse.runtime.watched import MAGIC, MAX_BYTES
from glasshouse.watching import curves, record
from glasshouse.watching.curves import MAX_POINTS, Curve, Watched
from glasshouse.watching.draw import plot
from glasshouse.watching.page import run_page
from glasshouse.watching.record import Part, RecordError, WatchRecord
from glasshouse.watching.words import as_json, length, now_lines
from tests.watching.kit import SAMPLES


def at(elapsed: float, *parts: Part, number: int = 1, **more: Any) -> WatchRecord:
    return WatchRecord(
        **{
            "number": number, "at": 1.8e9 + elapsed, "elapsed_sec": elapsed, "next_checkpoint_sec": None,
            "steps": (), "gpus": (), "parts": parts, **more,
        }
    )  # fmt: skip


def log(text: str, begin: int = 0, size: int | None = None) -> Part:
    data = text.encode()
    return Part("", "log", begin, begin + len(data), len(data) if size is None else size, data)


def grown(name: str, data: bytes, begin: int = 0) -> Part:
    return Part(name, "append", begin, begin + len(data), begin + len(data), data)


def packed(head: object, rest: bytes = b"") -> bytes:
    return MAGIC + zlib.compress(json.dumps(head).encode() + b"\n" + rest)


HEAD: dict[str, Any] = {"number": 1, "at": 1.0, "elapsedSec": 2.0, "parts": []}


def test_a_record_is_read_as_it_was_written() -> None:
    part = {"name": "a", "kind": "append", "from": 1, "to": 3, "size": 9, "bytes": 2}
    gpu = {"utilPct": "97", "memMib": "1024", "memTotalMib": "2048", "powerW": "[N/A]", "tempC": "60"}
    head = {**HEAD, "steps": [3], "gpus": [gpu], "nextCheckpointSec": 7, "parts": [part]}
    found = record.read(packed(head, b"xy") + b"  ")
    assert found.parts == (Part("a", "append", 1, 3, 9, b"xy"),)
    assert (found.steps, found.next_checkpoint_sec) == ((3,), 7.0)
    assert found.gpus[0] == record.Gpu(97, 1024, 2048, None, 60)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"x" * 50, MAGIC, MAGIC + b"no zlib", MAGIC + zlib.compress(b"no json\n"), packed([]),
        packed({**HEAD, "number": -1}), packed({**HEAD, "number": True}), packed({**HEAD, "at": "now"}),
        packed({**HEAD, "elapsedSec": None}), packed({**HEAD, "parts": {}}), packed(HEAD, b"more"),
        packed({**HEAD, "parts": [{}] * 65}), packed(HEAD) + b"x", packed(HEAD)[:-3],
        packed({**HEAD, "parts": [{"name": "a", "kind": "log", "from": 0, "to": 1, "size": 1, "bytes": 1}]}),
        packed({**HEAD, "steps": ["a"]}),
        MAGIC + zlib.compress(bytes(10 << 20)), MAGIC + zlib.compress(b"[" * 100_000), bytes(MAX_BYTES + 1),
    ],
)  # fmt: skip
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(RecordError):
        record.read(data)


@given(st.binary(max_size=400), st.booleans())
def test_whatever_a_record_holds_is_read_or_refused(data: bytes, compressed: bool) -> None:
    with contextlib.suppress(RecordError):
        Watched().take(record.read(MAGIC + zlib.compress(data) if compressed else data))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(record.KINDS),
            st.sampled_from(["", "a.jsonl", "x.wandb", "events.out.tfevents.1", "trainer_state.json"]),
            st.integers(0, 500),
            st.binary(max_size=200)
            | st.sampled_from([b'{"loss": 1, "step": 2}\n', b"loss 3\n", b"1/2 [00:01<00:03, 1it/s]"]),
        ),
        max_size=6,
    )
)
def test_no_part_raises_and_the_rest_can_be_drawn(parts: list[tuple[str, str, int, bytes]]) -> None:
    watched = Watched()
    for number in (1, 2):
        made = [Part(name, kind, begin, begin + len(data), 9, data) for kind, name, begin, data in parts]
        watched.take(at(number, *made, number=number))
    assert watched.now is not None
    now_lines(watched.now, 60.0)
    json.dumps(as_json(watched.now), allow_nan=False)
    for curve in watched.shown.values():
        plot(curve)
    run_page("run", [("s000-1", watched.shown, now_lines(watched.now))])


def test_the_source_with_most_points_is_shown() -> None:
    watched = Watched()
    watched.take(
        at(1, log("loss 5\n"), grown("m.jsonl", b'{"loss": 2, "step": 1}\n{"loss": 1, "step": 2}\n'))
    )
    loss = watched.curve("loss")
    assert loss is not None
    assert (loss.xs, loss.values) == ([1, 2], [2, 1])


def test_real_files_make_curves(tmp_path: Path) -> None:
    watched = Watched()
    state = (SAMPLES / "trainer_state.json").read_bytes()
    watched.take(at(1, Part("out/trainer_state.json", "tail", 0, len(state), len(state), state)))
    watched.take(at(2, Part("out/trainer_state.json", "tail", 0, len(state), len(state), state), number=2))
    assert list(watched.shown)[:3] == ["loss", "eval_loss", "learning_rate"]
    assert len(watched.shown["loss"].xs) == 20
    assert watched.now is not None
    assert (watched.now.done, watched.now.total) == (40, 40)


def test_a_trainer_that_prints_and_draws_a_bar() -> None:
    watched = Watched()
    printed = "{'loss': '2.5', 'grad_norm': '1', 'learning_rate': '5e-05', 'epoch': '0.1'}\n"
    bar = b" 25%|##        | 10/40 [00:10<00:30,  1.00it/s]"
    came = watched.take(at(10, log(f"\x1b[31mred\x1b[0m\n{printed}"), Part("", "bar", 0, 0, 0, bar)))
    assert came.lines == ("red", printed.strip())
    now = watched.now
    assert now is not None
    assert (now.done, now.total, now.left_sec, now.by_bar) == (10, 40, 30, True)
    assert now_lines(now)[0] == "its progress bar: 10 of 40 (25 %), about 30 s left"
    watched.take(at(20, Part("", "bar", 0, 0, 0, b"50%|5 | 1/2 [00:01<00:01, 1it/s]"), number=2))
    assert watched.now is not None
    assert watched.now.total == 40  # the shorter one is an evaluation's, inside


def test_time_left_is_by_what_was_asked_for_and_the_speed_of_late() -> None:
    watched = Watched(total_steps=100)
    watched.take(at(10, steps=(10,)))
    watched.take(at(20, steps=(30,), number=2, next_checkpoint_sec=90.0))
    now = watched.now
    assert now is not None
    assert (now.per_sec, now.left_sec) == (2, 35)
    assert now_lines(now, 100.0)[0] == (
        "step 30 of 100 (30 %), 2 a second, about 35 s left, asked to end in 80 s at the latest "
        "(model.max_hours), next checkpoint in 2 min"
    )


def test_tokens_are_counted_where_nobody_says_how_many_a_second() -> None:
    watched = Watched()
    for number, tokens in ((1, 1000), (2, 4000)):
        line = json.dumps({"loss": 1, "step": number, "num_input_tokens_seen": tokens}).encode() + b"\n"
        watched.take(at(10.0 * number, grown("m.jsonl", line, begin=len(line) * (number - 1)), number=number))
    assert watched.now is not None
    assert watched.now.tokens_sec == 300


def test_what_did_not_come_is_said() -> None:
    watched = Watched()
    watched.take(at(1, log("a\n")))
    assert watched.take(at(2, log("b\n", begin=100))).lines[0] == "[98 bytes that it printed did not come]"
    assert watched.take(at(3, log("c\n", begin=102, size=50))).lines[0].startswith("[48 bytes")


def test_a_line_is_not_made_of_two_halves_with_a_gap_between() -> None:
    reader = curves._Lines()
    assert reader.feed(grown("a", b'{"loss": 1}\n{"lo')) == ['{"loss": 1}']
    assert reader.feed(grown("a", b'ss": 2}\n', begin=16)) == ['{"loss": 2}']
    assert reader.feed(grown("a", b'oss": 9}\n{"loss": 3}\n', begin=900)) == ['{"loss": 3}']
    assert reader.feed(grown("a", b"anew\n")) == ["anew"]  # it was begun anew


def test_a_curve_stays_bounded_and_one_that_goes_back_begins_there() -> None:
    curve = Curve()
    for step in range(50_000):
        curve.add(step, 1.0)
    assert MAX_POINTS / 2 <= len(curve.xs) <= MAX_POINTS
    assert curve.xs == sorted(curve.xs)
    again = Curve()
    for step in (1, 2, 3, 2, 3, 4):
        again.add(step, step)
    assert again.xs == [1, 2, 3, 4]


def test_a_curve_is_drawn() -> None:
    curve = Curve()
    for step in range(10):
        curve.add(step, 9.0 - step)
    assert plot(curve, width=20, height=3, label="loss") == [
        "loss",
        "9 ┤⠉⠑⠒⠤⢄",
        "  ┤⠀⠀⠀⠀⠀⠉⠉⠒⠢⠤⢄⣀",
        "0 ┤⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠑⠒⠤⠤⣀",
        "   0          step 9",
    ]


@given(
    st.lists(st.tuples(st.integers(0, 1000) | st.none(), st.floats(-1e100, 1e100)), min_size=1, max_size=30)
)
def test_any_curve_is_drawn_in_its_room(points: list[tuple[int | None, float]]) -> None:
    curve = Curve()
    for step, value in points:
        curve.add(step, value)
    drawn = plot(curve, width=60, height=5)
    assert len(drawn) == 6
    assert all(len(line) <= 80 for line in drawn)
    run_page("r", [("s000-1", {"<b>": curve}, ["</pre>"])])


def test_a_page_shows_names_and_lines_and_does_what_neither_says() -> None:
    curve = Curve()
    curve.add(1, 1.0)
    curve.add(2, 0.5)
    page = run_page("a-run", [("s000-1", {"<script>x</script>": curve}, ["<b>\x1b[31m</pre>"])])
    assert "<script>" not in page
    assert "<b>" not in page
    assert "\x1b" not in page
    assert "default-src 'none'" in page


def test_lengths_of_time_read_well() -> None:
    said = [length(seconds) for seconds in (5, 89, 600, 7000, 86400 * 3)]
    assert said == ["5 s", "89 s", "10 min", "1.9 h", "3.0 days"]
