"""`glasshouse run`: which cells reach the story, and through which launcher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from glasshouse import run as story
from glasshouse.commands import run
from tests.commands.kit import ROOT, Call


@pytest.mark.train
def test_sweeps_reach_the_story_whole_and_budgeted(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    asked: list[bool] = []

    def record(
        cells: Any, *, out: Path, as_json: bool, asks: bool, skipped: Any = (), reservation: str | None
    ) -> int:
        assert not skipped
        asked.append(asks)
        assert reservation is None  # nothing is paid for
        seen.append((cells, out, as_json))
        return 1

    monkeypatch.setattr(story, "run_sweep", record)
    assert call("-m", "order=raw-first,protected-first", "repeat=0,1")[0] == 1
    ((cells, out, as_json),) = seen
    assert cells[0][0] == ["order=raw-first", "repeat=0"]
    assert [(spec.order, spec.repeat) for _, spec in cells] == [
        ("raw-first", 0), ("raw-first", 1), ("protected-first", 0), ("protected-first", 1),
    ]  # fmt: skip
    assert (out, as_json) == (Path("runs"), False)
    assert call("run", "--json", "duration=3")[0] == 1
    assert [(overrides, spec.duration) for overrides, spec in seen[1][0]] == [(["duration=3"], 3)]
    assert seen[1][2] is True
    assert call("run", "--yes", "duration=3")[0] == 1
    assert asked == [True, True, False]


@pytest.mark.train
def test_other_launchers_run_each_cell(call: Call, monkeypatch: pytest.MonkeyPatch, elsewhere: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    launched: list[Any] = []

    def launch(overrides: list[str], job: Any, *, conf: Path) -> list[int]:
        launched.append((overrides, job.out, conf))
        return [0, 4, 1]

    monkeypatch.setattr(run.config, "launch", launch)
    words = ["repeat=0,1", "hydra/launcher=joblib"]
    assert call("-m", *words)[0] == 4
    assert launched == [(words, elsewhere / "runs", ROOT / "conf")]
    code, _, err = call("-m", "--json", *words)
    assert code == 2
    assert "hydra/launcher=joblib" in err


@pytest.mark.train
def test_a_sweep_over_nothing_says_so(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(story, "run_sweep", lambda *_, **__: 0)
    assert "a sweep of one cell" in call("-m", "repeat=1")[2]
    assert "one cell" not in call("-m", "repeat=1,2")[2]
