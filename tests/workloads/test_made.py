"""Weights that are made once: the same bytes each time, none held, no file left with a name."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from glasshouse.sealing.layout import TensorSpec
from glasshouse.workloads.made import MadeWeights


def counted(made: list[str]) -> Iterator[tuple[TensorSpec, memoryview]]:
    for name, size in (("a", 3), ("empty", 0), ("b", 5000)):
        made.append(name)
        yield TensorSpec(name, "uint8", (size,)), memoryview(os.urandom(size))


def test_they_are_made_once_and_read_alike_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    made: list[str] = []
    weights = MadeWeights(lambda: counted(made))
    assert made == []
    first = [(spec.name, bytes(view)) for spec, view in weights]
    assert [(spec.name, bytes(view)) for spec, view in weights] == first
    assert made == ["a", "empty", "b"]
    assert [len(data) for _, data in first] == [3, 0, 5000]
    assert all(view.readonly for _, view in weights)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shapes", [(), (0,)])
def test_no_weights_are_no_file(shapes: tuple[int, ...]) -> None:
    found = [(TensorSpec(f"t{size}", "uint8", (size,)), memoryview(b"")) for size in shapes]
    assert [spec for spec, _ in MadeWeights(lambda: iter(found))] == [spec for spec, _ in found]
