"""The parsers, against files that the real libraries wrote, and against anything at all.

samples/: written by tensorboardX 2.6.5, by tensorboard 2.21.0 (a scalar as tf.summary writes it), by wandb
0.31.0 (offline), and by transformers 5.23.0 (a Trainer of 40 steps).
"""

from __future__ import annotations

import contextlib
import json
import struct
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glasshouse.watching import lines, trainer_state, wire
from glasshouse.watching.points import Point, named, number_of, point
from glasshouse.watching.tensorboard import MAX_RECORD, EventFile, masked_crc
from glasshouse.watching.wandb import BLOCK, RunFile
from tests.watching.kit import SAMPLES

Reader = Callable[[], EventFile | RunFile]
TENSORBOARD = (SAMPLES / "events.out.tfevents.tensorboardx").read_bytes()
TENSORS = (SAMPLES / "events.out.tfevents.tensors").read_bytes()
WANDB = (SAMPLES / "run.wandb").read_bytes()
FILES = [(EventFile, TENSORBOARD), (EventFile, TENSORS), (RunFile, WANDB)]


def in_parts(reader: EventFile | RunFile, data: bytes, size: int, begin: int = 0) -> list[Point]:
    found = []
    for at in range(begin, len(data), size):
        found += reader.feed(at, data[at : at + size])
    return found


def test_scalars_come_out_of_tensorboards_file() -> None:
    found = EventFile().feed(0, TENSORBOARD)
    losses = {one.step: one.values["loss"] for one in found if "loss" in one.values}
    assert losses == {i: pytest.approx(2 / i) for i in range(1, 21)}
    assert sum("learning_rate" in one.values for one in found) == 20
    assert all(one.time is not None and 1.7e9 < one.time < 1.9e9 for one in found)
    assert {name for one in found for name in one.values} == {"loss", "learning_rate"}  # and no histogram


def test_a_scalar_that_is_written_as_a_tensor_is_one() -> None:
    found = EventFile().feed(0, TENSORS)
    assert [one.step for one in found] == [1, 2, 3, 4, 5]
    assert [one.values["loss"] for one in found] == [pytest.approx(3 / i) for i in range(1, 6)]


def test_the_history_comes_out_of_wandbs_file_across_its_blocks() -> None:
    assert len(WANDB) > BLOCK
    found = RunFile().feed(0, WANDB)
    assert [one.step for one in found] == list(range(100))
    assert [one.values["loss"] for one in found] == [pytest.approx(2 / i) for i in range(1, 101)]
    assert [one.values["nested_x"] for one in found] == list(range(1, 101))
    assert found[0].time == pytest.approx(1.7958e9, rel=1e-3)


@pytest.mark.parametrize(("reader", "data"), FILES)
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_file_that_comes_in_parts_gives_the_same(reader: Reader, data: bytes, size: int) -> None:
    assert in_parts(reader(), data, size) == reader().feed(0, data)


@pytest.mark.parametrize(("reader", "data", "gap"), [(*FILES[0], (7000, 7300)), (*FILES[2], (9000, 20_000))])
def test_where_bytes_are_missing_the_next_record_is_found(
    reader: Reader, data: bytes, gap: tuple[int, int]
) -> None:
    whole = reader().feed(0, data)
    one = reader()
    found = one.feed(0, data[: gap[0]]) + in_parts(one, data, 500, gap[1])
    assert 0 < len(found) < len(whole)
    assert all(each in whole for each in found)
    assert found[-1] == whole[-1]


@given(st.sampled_from(FILES), st.data())
def test_a_damaged_file_raises_nothing(chosen: tuple[Reader, bytes], data: st.DataObject) -> None:
    reader, whole = chosen
    begin = data.draw(st.integers(0, len(whole) - 1))
    damaged = bytearray(whole[begin : begin + 4000])
    for at, byte in data.draw(st.lists(st.tuples(st.integers(0, 3999), st.integers(0, 255)), max_size=8)):
        if at < len(damaged):
            damaged[at] = byte
    for one in reader().feed(data.draw(st.sampled_from([0, begin])), bytes(damaged)):
        assert one.values


@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.binary(max_size=200))))
def test_whatever_comes_is_read_within_bounds(parts: list[tuple[int, bytes]]) -> None:
    for reader in (EventFile(), RunFile()):
        for at, data in parts:
            reader.feed(at, data)
        assert len(reader._pending) <= MAX_RECORD + 200


def test_a_block_that_is_damaged_at_its_beginning_is_left() -> None:
    damaged = bytearray(WANDB)
    damaged[BLOCK : BLOCK + 7] = b"\xff" * 7
    assert 0 < len(RunFile().feed(0, bytes(damaged))) < 100
    assert RunFile().feed(BLOCK, bytes(damaged[BLOCK:])) == []


@given(st.binary(max_size=300))
def test_a_record_of_anything_raises_nothing(body: bytes) -> None:
    head = struct.pack("<Q", len(body))
    framed = head + struct.pack("<I", masked_crc(head)) + body + bytes(4)
    EventFile().feed(0, framed)
    crc = zlib.crc32(body, zlib.crc32(b"\x01"))
    RunFile().feed(0, b":W&B\xe1\xbe\0" + struct.pack("<IHB", crc, len(body), 1) + body)


def test_a_record_that_is_too_large_is_passed_over_and_not_held() -> None:
    head = struct.pack("<Q", 50 << 20)
    reader, at = EventFile(), 0
    parts = [head + struct.pack("<I", masked_crc(head)), *[bytes(1 << 20)] * 50, bytes(4), TENSORBOARD]
    found = []
    for part in parts:
        found += reader.feed(at, part)
        at += len(part)
        assert len(reader._pending) < 1 << 20
    assert len(found) == 40


@given(st.binary(max_size=200))
def test_the_wire_format_ends_or_refuses(data: bytes) -> None:
    with contextlib.suppress(wire.WireError):
        assert sum(1 for _ in wire.fields(data)) <= len(data)


def test_the_trainers_history_comes_out_of_the_end_of_its_state() -> None:
    whole = (SAMPLES / "trainer_state.json").read_bytes()
    written = json.loads(whole)["log_history"]
    found, total = trainer_state.read(whole)
    assert total == 40
    losses = [(one.step, one.values["loss"]) for one in found if "loss" in one.values]
    assert losses == [(each["step"], each["loss"]) for each in written if "loss" in each]
    assert sum("eval_loss" in one.values for one in found) == 4
    cut, total = trainer_state.read(whole[-2000:])
    assert 0 < len(cut) < len(found)
    assert cut == found[-len(cut) :]
    assert total == 40


@pytest.mark.parametrize(
    ("line", "step", "values"),
    [
        ("{'loss': '2.3', 'grad_norm': '1.2', 'learning_rate': '5e-05', 'epoch': '0.1'}", None,
         {"loss": 2.3, "grad_norm": 1.2, "learning_rate": 5e-5, "epoch": 0.1}),
        ("{'eval_loss': 1.5, 'eval_runtime': 0.2, 'epoch': 1}", None,
         {"eval_loss": 1.5, "eval_runtime": 0.2, "epoch": 1}),
        ('{"step": 3, "loss": 1.5, "lr": 0.1, "note": "x"}', 3, {"loss": 1.5, "learning_rate": 0.1}),
        ("iter 0: loss 10.9874, time 34565.41ms, mfu -100.00%", 0, {"loss": 10.9874}),
        ("step 10: train loss 1.23, val loss 2.30", 10, {"loss": 1.23, "eval_loss": 2.3}),
        ("Epoch [1/10], Step [100/600], Loss: 0.2314", 100,
         {"epoch": 1, "loss": 0.2314, "total_steps": 600}),
        ("epoch 3 loss=0.25 lr=1e-3 tok/s=1234.5", None,
         {"epoch": 3, "loss": 0.25, "learning_rate": 1e-3, "tokens_per_sec": 1234.5}),
    ],
)  # fmt: skip
def test_what_trainings_print_is_read(line: str, step: int | None, values: dict[str, float]) -> None:
    found = lines.from_printed(line)
    assert found is not None
    assert (found.step, dict(found.values)) == (step, values)


@pytest.mark.parametrize(
    "line",
    [
        "Loss function: cross entropy", "no number of a loss", '{"label": 3, "text": "loss"}', "", "glossy 3",
        "{'train_runtime': '0.2', 'train_loss': '2.852', 'epoch': '2.5'}",
        '{"train_loss": 1, "total_flos": 2}',
        '{"loss": NaN}', "loss nan",
    ],
)  # fmt: skip
def test_a_line_without_a_loss_is_no_point(line: str) -> None:
    assert lines.from_printed(line) is None


def test_a_line_of_json_may_hold_objects_and_a_time() -> None:
    found = lines.from_json(
        '{"train": {"loss": 1, "step": 7}, "time": 1795863414.3, "big": 1e999, "ok": true}'
    )
    assert found == Point({"loss": 1.0}, 7, 1795863414.3)
    assert lines.from_json("[1]") is None
    assert lines.from_json("{" * 5000) is None
    assert lines.from_json('{"a":' * 2000 + "1" + "}" * 2000) is None


@pytest.mark.parametrize(
    ("line", "done", "total", "left"),
    [
        (" 12%|█▏        | 123/1000 [00:10<01:12, 12.1it/s, loss=1.2]", 123, 1000, 72),
        ("100%|##| 3/3 [1:00:01<00:00,  2.31s/it]", 3, 3, 0),
        ("Epoch 1:   0%|          | 0/40 [00:00<?, ?it/s]", 0, 40, None),
        ("  5%|5         | 1.20k/24.0k [00:10<03:10, 120B/s]", 1200, 24000, 190),
    ],
)
def test_a_progress_bar_is_read(line: str, done: float, total: float, left: float | None) -> None:
    found = lines.bar(line)
    assert found is not None
    assert (found.done, found.total, found.left_sec) == (done, total, left)


@given(st.text(max_size=300))
def test_any_line_is_read_or_is_none(line: str) -> None:
    for one in (lines.from_printed(line), lines.from_printed(f"loss {line}"), lines.from_json("{" + line)):
        assert one is None or one.values
    lines.bar(line)
    trainer_state.read(line.encode("utf-8", "replace"))


ANY_JSON: st.SearchStrategy[object] = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=9),
    lambda inner: st.dictionaries(st.text(max_size=9), inner, max_size=5),
)


@given(ANY_JSON)
def test_any_object_of_json_is_read(value: object) -> None:
    lines.from_json(json.dumps({"loss": value}))


@pytest.mark.parametrize("line", ["loss " + "1" * 2000 + "x", "{'a': " * 300, "1/" * 1000 + " [", "l" * 5000])
def test_no_line_takes_long(line: str) -> None:
    for _ in range(50):
        lines.from_printed(line)
        lines.bar(line)


def test_names_of_one_quantity_are_one() -> None:
    for tag in ("loss", "train/loss", "Loss/train", "train_loss", "training.loss"):
        assert named(tag) == "loss"
    for tag in ("eval_loss", "val/loss", "Loss/val", "validation-loss", "test_loss"):
        assert named(tag) == "eval_loss"
    assert {named(tag) for tag in ("lr", "train/lr", "learning_rate", "Learning Rate")} == {"learning_rate"}
    assert named("train/global_step") == "step"


def test_numbers_that_nobody_draws_are_none() -> None:
    assert number_of("1e5") == 1e5
    for value in (True, "nan", float("inf"), 1e300, 10**400, "9" * 41, None, [], "x"):
        assert number_of(value) is None
    assert number_of(1e-300) == 0.0
    assert point([("step", -1), ("loss", 1)]) == Point({"loss": 1.0})
    assert point([(f"name{i}", i) for i in range(500)]) is not None
