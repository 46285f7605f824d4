"""What the pod wrote may be anything; reading it never raises, and never lets nonsense into a record."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glasshouse.canonical import canonical_json, parse_json
from glasshouse.judgement.judge import judge
from glasshouse.measurement.schedule import build_schedule
from glasshouse.measurement.telemetry import disturbed
from glasshouse.records.bundle_facts import collect_facts
from glasshouse.schema import Result
from tests.specs import make_spec

from .conftest import Made
from .legs import leg_result

GOOD = leg_result(build_schedule(make_spec())[0]) | {
    "telemetry": [{"t": 1.0, "othersPct": 2.0, "gpu": [{"smMhz": "1980", "throttle": "0x0000000000000000"}]}]
}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(-1e15, 1e15)
    | st.text("abc/[]{}\n\u00e9", max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc"), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def paths(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [prefix] if prefix else []
    if isinstance(value, dict):
        for key in value:
            found += paths(value[key], (*prefix, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            found += paths(item, (*prefix, index))
    return found


def put(value: Any, path: tuple[Any, ...], item: Any) -> Any:
    copy = parse_json(canonical_json(value))
    at = copy
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = item
    return copy


def test_a_good_result_reads() -> None:
    found = Result.read(canonical_json(GOOD))
    assert found is not None
    assert (found.units, found.elapsed_sec, found.per_sec) == (600, 60, 10.0)
    assert found.machine_start.uptime_sec == 1000


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(paths(GOOD)), json_values)
def test_any_value_anywhere_reads_or_is_refused(path: tuple[Any, ...], item: Any) -> None:
    found = Result.read(canonical_json(put(GOOD, path, item)))
    if found is not None:
        assert 0 < found.elapsed_sec <= 1e7
        assert canonical_json(dict(found.unit_info))
        assert isinstance(disturbed(found.telemetry, (found.machine_start, found.machine_end)), list)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("elapsedSec", 0), ("elapsedSec", 1e-300), ("units", -1), ("units", 1e300), ("finalLoss", 1e16),
        ("unitInfo", {"path": "/home/alice"}), ("unitInfo", {"a": {"b": 1}}), ("machineStart", {}),
        ("telemetry", [{"gpu": 5}]), ("steps", 1.5), ("outputDiffers", "yes"), ("workloadDigest", "x"),
        ("device", "a\nb"), ("lossCurve", [[1]]),
    ],
)  # fmt: skip
def test_nonsense_is_no_result(name: str, value: Any) -> None:
    assert Result.read(canonical_json(GOOD | {name: value})) is None


def test_no_result_is_made_of_other_documents() -> None:
    for data in (b"", b"null", b"[]", b"{}", b"\xff"):
        assert Result.read(data) is None


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_record_can_always_be_written(made: Made, data: st.DataObject) -> None:
    """Whatever figures the pod reports, the record stays one canonical document."""
    factory = made.factory
    operator = factory.keyring.entries[0]
    facts = collect_facts(made.files, factory.keyring, operator).facts
    assert facts is not None
    changed = GOOD | {
        "units": data.draw(st.integers(0, 10**15)),
        "elapsedSec": data.draw(st.floats(2e-6, 1e7)),
        "finalLoss": data.draw(st.none() | st.floats(-1e15, 1e15)),
    }
    result = Result.read(canonical_json(changed))
    assert result is not None
    slot = facts.slots[0]
    launch = replace(slot.launches[0], result=result)
    spoilt = replace(facts, slots=(replace(slot, launches=(launch,)), *facts.slots[1:]))
    assert parse_json(judge(spoilt).record())["run"] == facts.run
