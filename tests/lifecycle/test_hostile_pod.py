"""What a pod answers is held against its form before it reaches the operator's terminal or the bundle."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from glasshouse.errors import LegError
from glasshouse.lifecycle.collect import readable
from glasshouse.lifecycle.follow import Finished, Pace, follow
from glasshouse.lifecycle.leg_display import Progress, read_progress, result_line
from glasshouse.remote.pod import Pod
from glasshouse.schema import Ended, Slot
from tests.records.legs import leg_result

SLOT = Slot(0, None, 0, "raw", False, 0.0, 30.0, None, False, 0.0)
ESCAPE = "\x1b]0;owned\x07"


def _followed(pod: Pod, folder: Path, result: object, process: int | None = None) -> Finished:
    if result is not ...:
        (folder / "result.json").write_text(json.dumps(result))
    return follow(
        pod,
        str(folder),
        process=process or os.getpid(),
        followed="events.jsonl",
        pace=Pace(0.1, None),
        deadline=time.monotonic() + 20,
        on_data=lambda _: None,
        warn=lambda _: None,
    )


def test_a_result_is_believed_by_its_form_only(pod: Pod, tmp_path: Path) -> None:
    good = {
        "arm": "protected",
        "status": "failed",
        "code": "leg-deadline",
        "reasonCodes": ["boot-id-mismatch"],
        "timings": {"attestSec": 0.5},
    }
    found = _followed(pod, tmp_path, good)
    assert found.ended == Ended.model_validate_json(json.dumps(good))
    assert found.ended.model_dump(by_alias=True, exclude_unset=True, mode="json") == {
        name: value for name, value in good.items() if name != "arm"
    }
    assert found.raw_result is None
    # What a raw leg gives as its result is handed on as it was written, to be read where it is used.
    odd = {"flops": 120000000000000000000, "more": [ESCAPE, 1.5, None]}
    assert _followed(pod, tmp_path, {**good, "result": odd}).raw_result == odd
    changes: list[dict[str, Any]] = [
        {"status": "perfect"},
        {"code": ESCAPE},
        {"code": ["leg-deadline"]},
        {"reasonCodes": [ESCAPE]},
        {"reasonCodes": 5},
        {"reasonCodes": ["x"] * 65},
        {"timings": {"attestSec": "1"}},
        {"timings": {"attestSec": -1.0}},
        {"timings": {ESCAPE: 1.0}},
        {"timings": [1]},
        {"eventsHead": ESCAPE},
        {"eventCount": -1},
        {"eventCount": "3"},
    ]
    for change in changes:
        with pytest.raises(LegError) as error:
            _followed(pod, tmp_path, {**good, **change})
        assert error.value.code == "result-malformed"
        assert ESCAPE not in error.value.line()
    for other in ([], "complete", None):
        with pytest.raises(LegError, match="not one"):
            _followed(pod, tmp_path, other)


@pytest.mark.parametrize("reaped", [True, False])
def test_a_leg_whose_process_is_gone_is_not_waited_for(pod: Pod, tmp_path: Path, reaped: bool) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        threading.Timer(1.0, process.kill).start()
        if reaped:  # or it stays, as in a container whose first process asks about nobody
            threading.Thread(target=process.wait).start()
        began = time.monotonic()
        with pytest.raises(LegError) as error:
            _followed(pod, tmp_path, ..., process.pid)
    assert error.value.code == "lost-leg"
    assert 1.0 <= time.monotonic() - began < 15


def test_what_a_leg_left_as_it_ended_is_taken(pod: Pod, tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert _followed(pod, tmp_path, {"status": "failed", "code": "process-died"}, process.pid).ended.code


@pytest.mark.parametrize(
    "body",
    [
        [],
        "measure",
        None,
        {},
        {"phase": "measure", "elapsedSec": 0, "units": ESCAPE},
        {"phase": "measure", "elapsedSec": "1", "units": 1},
        {"phase": "measure", "elapsedSec": True, "units": 1},
        {"phase": "measure", "elapsedSec": 1.0, "units": [1]},
    ],
)
def test_a_progress_report_of_another_form_is_none(body: object) -> None:
    assert read_progress(body) is None
    whole = {"phase": "measure", "elapsedSec": 1.0, "units": 3}
    assert read_progress({**whole, "more": ESCAPE}) == Progress("measure", 1.0, 3)


@pytest.mark.parametrize(
    "change",
    [{"units": ESCAPE}, {"unit": ESCAPE}, {"elapsedSec": None}, {"finalLoss": "0"}, {"machineStart": 1}],
)
def test_a_leg_result_of_another_form_is_refused_and_none_ends_the_program(change: dict[str, Any]) -> None:
    good = leg_result(SLOT)
    assert "epochs" in result_line(readable(good))
    assert "loss" not in result_line(readable({**good, "finalLoss": None}))
    for result in ({**good, **change}, None, [good], {}):
        with pytest.raises(LegError) as error:
            readable(result)
        assert error.value.code == "result-malformed"
