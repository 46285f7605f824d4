"""What is said to come back of a project's outputs is what its sealer carries; what is lost is named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from glasshouse.runtime.project import _brief, found_in
from tests.runtime.test_sealer import opened, sealed_in_child


def test_what_is_too_large_is_not_said_to_come_back(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "metrics.json").write_text("{}")
    with (out / "big.ckpt").open("wb") as large:
        large.truncate(1 << 20)  # of holes, as a checkpoint may be
    os.mkfifo(out / "fifo")  # has no contents that could be lost
    found, lost = found_in(out, max_bytes=1000)
    assert [entry.path for entry in found.found.entries] == [b"metrics.json"]
    assert [(one.path, one.reason) for one in lost] == [
        ("big.ckpt", "all files together would be more than 1000 bytes")
    ]
    data, _report = sealed_in_child(out, max_bytes=1000)
    _package, carried = opened(data, tmp_path)
    assert carried.entries == found.found.entries
    assert {one.path for one in carried.skipped} == {"big.ckpt", "fifo"}
    assert found_in(out)[1] == []  # there is room for it, and the limit is the sealer's own


def test_where_there_is_no_folder_nothing_is_lost(tmp_path: Path) -> None:
    found, lost = found_in(tmp_path / "gone")
    assert (found.found.entries, lost) == ((), [])


def test_a_sealer_says_that_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glasshouse.runtime.sealer.BEAT_SEC", 0.0)
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.bin").write_bytes(os.urandom(1000))
    beats: list[None] = []
    data, _report = sealed_in_child(out, goes_on=lambda: beats.append(None))
    assert beats
    assert [entry.nbytes for entry in opened(data, tmp_path)[1].entries] == [1000]


def test_of_a_long_path_a_line_has_beginning_and_end() -> None:
    path = f"cache/{'d/' * 500}leaf.bin"
    said = _brief(path)
    assert said.startswith("cache/d/d/")
    assert said.endswith("d/d/leaf.bin")
    assert len(said) < 200
    assert _brief("out/model.bin") == "out/model.bin"
