"""`from=RUN` of a project: what its last leg left is newer than any checkpoint, and held against the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from glasshouse import config
from glasshouse.codes import Code
from glasshouse.commands.show import _chain
from glasshouse.errors import UsageError
from glasshouse.judgement.record import ChainFigures
from glasshouse.lifecycle.restore import RefusedError
from glasshouse.lifecycle.resumed import line, opened
from glasshouse.lifecycle.run_folder import RunFolder
from glasshouse.publishing.from_bundle import command
from glasshouse.sealing.tree_index import parse_index
from tests.lifecycle.checkpoint_kit import Died, died

TWO = [{"a.txt": b"one"}, {"a.txt": b"two"}]
LAST = {"a.txt": b"two", "checkpoint-197/state.pt": b"197"}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GLASSHOUSE_HOME", str(tmp_path / "home"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train.py").write_text("print()")
    return tmp_path


def words(home: Path, *more: str) -> list[str]:
    return [
        "model=project",
        f"model.folder={home / 'mine'}",
        "model.outputs=out",
        "model.command=[python,train.py]",
        *more,
    ]


def project(home: Path, *, checkpoints: Sequence[dict[str, bytes]] = TWO, **changes: Any) -> Died:
    given = words(home)
    changes = {"outputs": LAST, "steps": [20, 40][: len(checkpoints)], **changes}
    return died(home, config.load(given), checkpoints, overrides=given, **changes)


def load(run: Died, *typed: str, number: str = "") -> Any:
    return config.load([f"from={run.run}{number}", *typed], runs=run.folder.parent)


def outputs(run: Died) -> Path:
    return RunFolder(run.folder).sealed("s000", 1, "outputs.sealed")


def test_what_it_saved_at_its_end_goes_along(home: Path) -> None:
    run = project(home)
    spec = load(run)
    assert (spec.continues.number, spec.continues.steps, spec.continues.witnessed) == (None, 50, True)
    heads = run.leg("heads.jsonl").read_bytes()
    said: list[str] = []
    with opened(spec, said.append) as resumed:
        paths = {entry.path for entry in parse_index(bytes(resumed.files["resume/tree.json"])).files}
    assert paths == {b"a.txt", b"checkpoint-197/state.pt"}
    assert said == []
    assert run.leg("heads.jsonl").read_bytes() == heads  # the bundle stays as it is
    assert line(spec) == [f"going on from the outputs of {run.run}, sealed when 50 optimizer steps were made"]
    assert f"from={run.run} " in command(spec)


def test_before_any_checkpoint_it_is_all_there_is(home: Path) -> None:
    assert load(project(home, checkpoints=())).continues.number is None


def test_a_later_checkpoint_that_never_came_does_not_matter(home: Path) -> None:
    run = project(home)
    run.drop(2)
    assert load(run).continues.number is None


def test_a_number_still_names_a_checkpoint(home: Path) -> None:
    assert load(project(home), number="@1").continues.number == 1


@pytest.mark.parametrize("how", ["gone", "empty"])
def test_where_nothing_is_left_the_newest_checkpoint_is_taken(home: Path, how: str) -> None:
    run = project(home, result={"outputDiffers": how != "empty"})
    if how == "gone":
        outputs(run).unlink()
    assert load(run).continues.number == 2


def test_a_command_that_was_killed_may_have_torn_it(home: Path) -> None:
    run, said = project(home, result={"exit": {"code": None, "signal": "SIGKILL"}}), list[str]()
    with opened(load(run), said.append):
        pass
    assert said == [
        "its command did not end well by itself: what it was writing then may be torn",
        f"one that was marked as whole is here, too: from={run.run}@2",
    ]


def test_other_bytes_are_refused_and_a_checkpoint_is_offered(home: Path) -> None:
    run = project(home)
    outputs(run).write_bytes(outputs(run).read_bytes()[:-1])
    with pytest.raises(RefusedError, match="are not here as its leg sealed them") as caught:
        load(run)
    assert caught.value.code is Code.CHECKPOINT_TORN
    assert f"from={run.run}@2" in caught.value.line()


def test_other_events_are_refused(home: Path) -> None:
    run = project(home)
    lines = run.leg("events.jsonl").read_bytes().splitlines(keepends=True)
    run.leg("events.jsonl").write_bytes(b"".join(lines[:5] + lines[6:]))
    with pytest.raises(RefusedError) as caught:
        load(run)
    assert caught.value.code is Code.DIGEST_MISMATCH  # it has its bundle, whose list of files is signed
    run.sign()
    with pytest.raises(RefusedError) as caught:
        load(run)
    assert caught.value.code is Code.CHECKPOINT_CHAIN_BROKEN


def test_exchanged_since_the_plan_it_is_refused(home: Path) -> None:
    run = project(home)
    spec = load(run)
    outputs(run).unlink()
    with pytest.raises(UsageError, match="not here any more"), opened(spec):
        pass


def test_of_a_session_it_is_a_checkpoint(home: Path) -> None:
    given = ["order=protected-only", "payload=private", "duration=null", "steps=100"]
    run = died(home, config.load(given), TWO, overrides=given, steps=[20, 40], outputs=LAST)
    assert load(run).continues.number == 2


def test_steps_that_may_count_twice_are_said_to_be_at_most(home: Path) -> None:
    run = project(home)
    chain = ChainFigures(
        runs=(run.run,), leg="s000", launch=1, number=None, sha256="a" * 64, steps=603, witnessed=True
    )
    assert "from the outputs of" in _chain(chain, project=True)
    assert "at most 603 optimizer steps in all" in _chain(chain, project=True)
    assert "at most" not in _chain(chain, project=False)


@pytest.mark.parametrize(
    ("typed", "kind"),
    [
        (["gpu=a4000", "model.max_hours=1", "spend.max_usd=5"], "runpod"),
        (["gpu=a4000", "provider=vastai", "model.max_hours=1", "spend.max_usd=5"], "vastai"),
        (["gpu=cpu"], "local"),
        ([], "local"),
    ],
)
def test_another_gpu_is_where_a_fresh_command_line_has_it(home: Path, typed: list[str], kind: str) -> None:
    assert load(project(home), *typed).provider.kind == kind


@pytest.mark.parametrize(
    ("given", "words_of_it"),
    [
        ("{run}@0", "a checkpoint's number is 1 or more, and this is 0"),
        ("{run}@x", "a checkpoint's number is 1 or more, and this is x"),
        ("{home}/mine", "this folder is no run's: it has no run.json"),
    ],
)
def test_what_is_wrong_with_it_is_named(home: Path, given: str, words_of_it: str) -> None:
    run = project(home)
    with pytest.raises(UsageError, match=words_of_it):
        config.load([f"from={given.format(run=run.run, home=home)}"], runs=run.folder.parent)


def test_an_experiment_beside_it_is_one_line(home: Path) -> None:
    with pytest.raises(UsageError, match=r"an experiment has settings of its own \(experiment=") as caught:
        load(project(home), "experiment=none")
    assert "\n" not in caught.value.line()


def test_one_that_still_trains_is_told_how_to_end_it(home: Path) -> None:
    run = project(home)
    (run.folder / "bundle").rename(run.folder / "parts")
    with pytest.raises(UsageError, match=f"glasshouse reap --stop {run.run}"):
        load(run)
