"""What is expected lies on the lines between what was measured; anything but what was written is nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glasshouse.measurement.expected_cost import FORMAT, Figures, expected, parse

MB = 1_000_000


def figures(*sizes: tuple[int, float, float]) -> dict[str, Any]:
    """A document: payload bytes, seconds of sealing, seconds of wiping, of each size."""
    return {
        "format": FORMAT,
        "measuredAt": 1.5e9,
        "sizes": [
            {
                "payloadBytes": size,
                "launches": 3,
                "steps": {"sealSec": seal, "zeroizeSec": wipe, "uploadSec": 0.5},
            }
            for size, seal, wipe in sizes
        ],
    }


def read(document: Any) -> Figures | None:
    return parse(json.dumps(document).encode())


def known(*sizes: tuple[int, float, float]) -> Figures:
    found = read(figures(*sizes))
    assert found is not None
    return found


THREE = ((1 * MB, 0.1, 1.0), (101 * MB, 1.1, 3.0), (301 * MB, 2.1, 3.0))


@pytest.mark.parametrize(
    ("size", "once", "launch", "extrapolated"),
    [
        (1 * MB, 0.6, 1.0, False),
        (51 * MB, 1.1, 2.0, False),
        (101 * MB, 1.6, 3.0, False),
        (201 * MB, 2.1, 3.0, False),
        (301 * MB, 2.6, 3.0, False),
        (501 * MB, 3.6, 3.0, True),  # on as between the last two
        (1, 0.6 - 0.01 + 1e-8, 1.0 - 0.02 + 2e-8, True),  # back as between the first two
    ],
)
def test_each_step_is_interpolated_linearly(
    size: int, once: float, launch: float, extrapolated: bool
) -> None:
    found = expected(known(*THREE), size)
    assert (found.once, found.launch) == (pytest.approx(once), pytest.approx(launch))
    assert (found.least, found.most, found.extrapolated) == (1 * MB, 301 * MB, extrapolated)
    assert found.run(3) == pytest.approx(once + 3 * launch)
    assert found.run(0) == 0.0


def test_of_one_size_alone_every_other_is_extrapolated() -> None:
    one = known((5 * MB, 0.25, 1.5))
    for size in (1, 5 * MB, 9 * MB):
        found = expected(one, size)
        assert (found.once, found.launch, found.extrapolated) == (0.75, 1.5, size != 5 * MB)


def test_nothing_is_expected_to_take_less_than_no_time() -> None:
    found = expected(known((10 * MB, 1.0, 4.0), (20 * MB, 9.0, 1.0)), 1 * MB)
    assert (found.once, found.launch) == (0.5, pytest.approx(6.7))
    assert expected(known((10 * MB, 1.0, 4.0), (20 * MB, 9.0, 1.0)), 90 * MB).launch == 0.0


@given(st.integers(1, 400 * MB))
def test_between_two_sizes_it_lies_between_them(size: int) -> None:
    found = expected(known(*THREE), size)
    if not found.extrapolated:
        assert 0.6 - 1e-9 <= found.once <= 2.6 + 1e-9
        assert 1.0 - 1e-9 <= found.launch <= 3.0 + 1e-9


def test_what_is_written_is_read() -> None:
    found = known(*THREE)
    assert parse(found.model_dump_json().encode()) == found


def _broken() -> dict[str, Any]:
    good = figures(*THREE)

    def size(**changes: Any) -> dict[str, Any]:
        return {**good, "sizes": [{**good["sizes"][0], **changes}]}

    return {
        "another version": {**good, "format": "glasshouse/bench-fixed-cost/v2"},
        "no version": {key: value for key, value in good.items() if key != "format"},
        "an unknown field": {**good, "more": 1},
        "no size": {**good, "sizes": []},
        "too many sizes": figures(*((number, 0.1, 0.1) for number in range(1, 18))),
        "sizes that shrink": figures(*reversed(THREE)),
        "a size twice": figures(THREE[0], THREE[0]),
        "no bytes": size(payloadBytes=0),
        "bytes as text": size(payloadBytes="5"),
        "no launch": size(launches=0),
        "no step": size(steps={}),
        "a foreign step": size(steps={"sealSec": 1.0, "danceSec": 1.0}),
        "less than no time": size(steps={"sealSec": -0.1}),
        "a day and more": size(steps={"sealSec": 1e9}),
        "different steps": {
            **good,
            "sizes": [*good["sizes"][:2], {**good["sizes"][2], "steps": {"sealSec": 1.0}}],
        },
        "a list": [good],
        "null": None,
    }


@pytest.mark.parametrize("what", sorted(_broken()))
def test_what_is_not_as_it_was_written_is_none(what: str) -> None:
    assert read(_broken()[what]) is None


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\xfe", b"{", b"[" * 100_000, json.dumps(figures(*THREE)).replace("0.1", "NaN").encode()],
)
def test_garbage_is_none(data: bytes) -> None:
    assert parse(data) is None
