"""What a job writes to harm whoever watches it: numbers that are none, work without end, escapes in names."""

from __future__ import annotations

import json
import struct
import time
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glasshouse.commands.watch import curve_lines
from glasshouse.runtime.watched import MAGIC
from glasshouse.watching import record
from glasshouse.watching.curves import MAX_CURVES, MAX_POINTS, Watched
from glasshouse.watching.page import run_page
from glasshouse.watching.points import WORK, Work, moment, number_of, total_of
from glasshouse.watching.record import Part
from glasshouse.watching.tensorboard import EventFile, masked_crc
from glasshouse.watching.wandb import RunFile
from glasshouse.watching.words import as_json, now_lines

NUMBERS = (
    "0", "-0.0", "1", "-1", "0.5", "40", "1e17", "1e99", "-1e99", "1e100", "1e-100", "5e-324", "1e308",
    "1e999", "-1e999", "NaN", "Infinity", "-Infinity", "nan", "9007199254740993", "9" * 400, "-" + "9" * 30,
)  # fmt: skip
hostile = st.sampled_from(NUMBERS)


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def double(number: int, value: str) -> bytes:
    try:
        packed = struct.pack("<d", float(value))
    except OverflowError:
        packed = b"\xff" * 8
    return varint(number << 3 | 1) + packed


def wandb(items: list[tuple[str, str]], *, as_text: bool) -> bytes:
    """A file of one history record."""
    made = b"".join(
        field(1, field(1, key.encode()) + (field(16, value.encode()) if as_text else double(6, value)))
        for key, value in items
    )
    body = field(2, made)
    return b":W&B\xe1\xbe\0" + struct.pack("<IHB", zlib.crc32(body, zlib.crc32(b"\x01")), len(body), 1) + body


def framed(body: bytes) -> bytes:
    head = struct.pack("<Q", len(body))
    return head + struct.pack("<I", masked_crc(head)) + body + b"\0\0\0\0"


def event(seconds: str, step: int, value: str) -> bytes:
    """A record of tensorboard with one scalar, a tensor of a double."""
    tensor = varint(1 << 3) + b"\x02" + field(6, double(1, value)[1:])
    scalar = field(1, field(1, b"loss") + field(8, tensor))
    return framed(double(1, seconds) + varint(2 << 3) + varint(step) + field(5, scalar))


def packed(number: int, parts: list[Part], head: str = "") -> bytes:
    """A record; head: further fields of it, as text, so that any number can stand there."""
    listed = json.dumps(
        [
            {
                "name": part.name, "kind": part.kind, "from": part.begin, "to": part.end,
                "size": part.size, "bytes": len(part.data),
            }
            for part in parts
        ]
    )  # fmt: skip
    first = f'{{"number": {number}, "at": 1.8e9, "elapsedSec": {number * 30}, {head} "parts": {listed}}}\n'
    return MAGIC + zlib.compress(first.encode() + b"".join(part.data for part in parts))


def part(name: str, kind: str, data: bytes, begin: int = 0) -> Part:
    return Part(name, kind, begin, begin + len(data), begin + len(data), data)


def shown(watched: Watched, points: list[tuple[str, Any]]) -> list[str]:
    """All that is shown of it, in every way; JSON has to be JSON."""
    now = watched.now
    assert now is not None
    said = now_lines(now, 3600.0)
    stated = [{"time": one.time, "step": one.step, "values": dict(one.values)} for _, one in points]
    json.dumps({**as_json(now), "points": stated}, allow_nan=False)
    run_page("run", [("s000-1", watched.shown, said)])
    return [*said, *curve_lines(watched)]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_number_of_any_source_ends_the_watching(data: st.DataObject) -> None:
    def some() -> str:
        return data.draw(hostile)

    watched, points = Watched(data.draw(st.sampled_from([None, 40]))), list[tuple[str, Any]]()
    for number in (1, 2):
        step = data.draw(st.sampled_from(["1", "2", *NUMBERS]))
        logged = f'{{"loss": {some()}, "step": {step}}}'
        state = f'{{"epoch": {some()}, "max_steps": {some()}, "log_history": [{logged}]}}'
        more = f'"num_tokens": {some()}, "max_steps": {some()}, "time": {some()}'
        lines = f'{{"loss": {some()}, "step": {step}, {more}}}\n'
        printed = f"loss {some()} step {step}/{some()}\n{{'loss': '{some()}', 'lr': {some()}}}\n"
        items = [
            ("_timestamp", some()),
            ("loss", some()),
            ("tokens_per_sec", some()),
            ("total_steps", some()),
        ]
        steps = data.draw(st.sampled_from([0, 1, 2**53 + 1, 2**63 - 1]))
        parts = [
            part("out/trainer_state.json", "tail", state.encode()),
            part("m.jsonl", "append", lines.encode()),
            part("", "log", printed.encode()),
            part("", "bar", f"{some()}/{some()} [00:01<{some()}, {some()}it/s]".encode()),
            part("", "notes", lines.encode()),
            part(f"run-{number}.wandb", "append", wandb(items, as_text=data.draw(st.booleans()))),
            part(f"events.out.tfevents.{number}", "append", event(some(), steps, some())),
        ]
        gpu = ", ".join(
            f'"{name}": "{some()}"' for name in ("utilPct", "memMib", "memTotalMib", "powerW", "tempC")
        )
        head = f'"steps": [{steps}], "nextCheckpointSec": {json.dumps(some())}, "gpus": [{{{gpu}}}],'
        points += watched.take(record.read(packed(number, parts, head))).points
    for line in shown(watched, points):
        assert len(line) < 400, line
        assert "(-" not in line, line  # no less than nothing was done


@pytest.mark.parametrize("most", ["1e999", "-1", "0", "NaN", "1e300"])
def test_a_total_that_is_none_is_not_known(most: str) -> None:
    watched = Watched()
    state = (
        f'{{"max_steps": {most}, "log_history": [{{"loss": 1.0, "step": 5}}, {{"loss": 2.0, "step": 6}}]}}'
    )
    came = watched.take(record.read(packed(1, [part("trainer_state.json", "tail", state.encode())])))
    assert (
        shown(watched, list(came.points))[0]
        == "step 6, asked to end in 60 min at the latest (model.max_hours)"
    )


@pytest.mark.parametrize("seconds", ["nan", "inf", "1e999", "-5"])
@pytest.mark.parametrize("as_text", [True, False])
def test_a_time_that_is_none_is_not_known(seconds: str, as_text: bool) -> None:
    (one,) = RunFile().feed(0, wandb([("_timestamp", seconds), ("loss", "1.0")], as_text=as_text))
    assert (one.time, one.values) == (None, {"loss": 1.0})


def test_one_function_bounds_whatever_comes() -> None:
    none: list[Any] = ["1e999", "nan", 10**400, True, None, [], "1e101"]
    assert [number_of(value) for value in none] == [None] * 7
    assert [number_of(value, 0, 10) for value in (-1, 11, "3", 10)] == [None, None, 3.0, 10.0]
    assert (moment(5), moment(1.8e9), total_of(0), total_of("40"), total_of(2**54)) == (
        None,
        1.8e9,
        None,
        40,
        None,
    )


EMPTY = framed(b"")
TINY = b"".join(struct.pack("<IHB", zlib.crc32(b"", zlib.crc32(b"\x01")), 0, 1) for _ in range(4000))


@pytest.mark.parametrize(
    ("reader", "data"),
    [
        (EventFile, bytes(500 << 10)),
        (EventFile, b"\x01\0\0\0\0\0\0\0" * (64 << 10)),
        (EventFile, EMPTY * 30_000),
        (EventFile, framed(b"\x2a\x00") * 20_000),
        (EventFile, framed(field(5, b"\x0a\x00" * 100_000))),
        (RunFile, bytes(500 << 10)),
        (RunFile, (b":W&B\xe1\xbe\0" + TINY) * 16),
    ],
    ids=["zeros", "lengths", "empty", "nothing", "fields", "zeros for wandb", "tiny"],
)
def test_no_bytes_cost_more_than_one_records_work(reader: Callable[[], Any], data: bytes) -> None:
    work, one = Work(), reader()
    began = time.process_time()
    assert one.feed(0, data, work) == []
    assert time.process_time() - began < 0.2  # some hundredths; zeros were a third of a second and more
    assert 0 <= work.left < WORK
    assert len(one._pending) <= 256 << 10
    good = event("1.8e9", 1, "2.0") * 3  # and what comes later is read
    if reader is EventFile:
        assert one.feed(len(data), bytes(64) + good)[-1].values == {"loss": 2.0}


def test_curves_are_bounded_in_all_and_the_loss_among_them() -> None:
    watched = Watched()
    for number in range(1, 4):
        parts = []
        for place in range(60):
            values = ", ".join(f'"k{place}_{each}": {each}' for each in range(50))
            parts.append(part(f"f{place}.jsonl", "append", f'{{"step": {number}, {values}}}\n'.encode()))
        watched.take(record.read(packed(number, parts)))
    last = "".join(f'{{"step": {step}, "loss": {step}}}\n' for step in range(1, 5000)).encode()
    watched.take(record.read(packed(9, [part("metrics.jsonl", "append", last)])))
    made = [curve for own in watched._curves.values() for curve in own.values()]
    assert len(made) <= MAX_CURVES
    assert max(len(curve.xs) for curve in made) <= MAX_POINTS
    loss = watched.curve("loss")
    assert loss is not None
    assert loss.xs[-1] > 4900


def test_a_record_that_holds_more_than_is_taken_costs_no_more() -> None:
    parts = [
        part(f"f{place}.jsonl", "append", b"".join(
            b'{"step":%d,%s}\n' % (step, b",".join(b'"k%d":%d' % (each, step) for each in range(60)))
            for step in range(8)
        ))
        for place in range(64)
    ]  # fmt: skip
    taken = Watched().take(record.read(packed(1, parts)))
    assert 0 < 3 * sum(len(one.values) for _, one in taken.points) <= WORK
