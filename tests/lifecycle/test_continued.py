"""`from=RUN` on the command line: the run's own settings, what is typed over them, another job refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from glasshouse import config
from glasshouse.canonical import canonical_json
from glasshouse.errors import UsageError
from glasshouse.lifecycle.run_folder import RunFolder
from glasshouse.measurement.schedule import build_schedule
from glasshouse.records.plan import public_spec
from tests.lifecycle.checkpoint_kit import Died, died
from tests.specs import make_spec

TWO = [{"a.txt": b"one"}, {"a.txt": b"two"}]
WORDS = ["order=protected-only", "payload=private", "duration=null", "steps=100", "model.max_hours=2"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GLASSHOUSE_HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.fixture
def run(home: Path) -> Died:
    return died(home, config.load(WORDS), TWO, overrides=WORDS, steps=[20, 40])


def load(run: Died, *words: str, number: str = "") -> Any:
    return config.load([f"from={run.run}{number}", *words], runs=run.folder.parent)


def test_the_settings_are_those_of_the_run(run: Died) -> None:
    before, spec = RunFolder(run.folder).saved().spec, load(run)
    assert spec.model_copy(update={"continues": None}) == before
    assert spec.continues.runs == (run.run,)
    assert (spec.continues.number, spec.continues.steps, spec.continues.seconds) == (2, 40, 20.0)
    assert Path(spec.continues.folder) == run.folder.resolve()


def test_what_is_left_is_what_is_planned(run: Died) -> None:
    assert [slot.steps for slot in build_schedule(load(run))] == [60]
    assert [slot.steps for slot in build_schedule(load(run, number="@1"))] == [80]
    assert [slot.steps for slot in build_schedule(load(run, "steps=250"))] == [210]


def test_seconds_in_place_of_steps_count_what_the_events_measured(run: Died) -> None:
    spec = load(run, "duration=50")
    assert (spec.steps, spec.duration) == (None, 50.0)
    assert [slot.measured_sec for slot in build_schedule(spec)] == [30.0]


def test_a_folder_is_as_good_as_an_id_and_its_beginning(run: Died) -> None:
    for given in (str(run.folder), run.run[:17], f"'{run.run}'", f"{run.folder}@1"):
        spec = config.load([f"from={given}"], runs=run.folder.parent)
        assert spec.continues is not None
        assert spec.continues.runs == (run.run,)


def test_what_is_typed_is_laid_over(run: Died) -> None:
    spec = load(run, "model.max_hours=5", "model.checkpoint_min=1", "provider.threads=2", "repeat=3")
    assert (spec.model.max_hours, spec.model.checkpoint_min, spec.repeat) == (5.0, 1.0, 3)
    assert spec.provider.threads == 2
    before = RunFolder(run.folder).saved().spec.model
    given = {"max_hours": 5.0, "checkpoint_min": 1.0}
    assert spec.model.model_dump() == before.model_dump() | given
    assert load(run, "policy=strict").policy.name == "strict"
    assert load(run, "gpu=cpu").gpu.name == "cpu"


def test_settings_that_conf_has_by_now_are_not_taken(run: Died) -> None:
    """conf/ may have changed since: what was not typed is what it was then."""
    folder = RunFolder(run.folder)
    saved = folder.saved()
    measure = saved.spec.measure.model_copy(update={"margin_pct": 7.5})
    folder.save(saved.model_copy(update={"spec": saved.spec.model_copy(update={"measure": measure})}))
    assert load(run, "repeat=1").measure.margin_pct == 7.5
    assert load(run, "measure=quick").measure.margin_pct != 7.5


@pytest.mark.parametrize(
    ("word", "field"),
    [
        ("model=qwen2-tiny", "model"),
        ("model.hidden=64", "model.hidden"),
        ("model.learning_rate=0.5", "model.learning_rate"),
        ("seed=1", "seed"),
        ("payload=public", "payload"),
        ("experiment=none", "experiment"),
        ("nosuch=1", "nosuch"),
        ("steps=40", "steps"),
        ("duration=20", "duration"),
        ("steps=0", "steps"),
    ],
)
def test_what_would_be_another_job_is_refused_in_one_line(run: Died, word: str, field: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(run, word)
    assert f"({field}=" in caught.value.line()
    assert caught.value.exit_code == 2


def test_steps_and_seconds_together_are_refused(run: Died) -> None:
    with pytest.raises(UsageError, match="duration"):
        load(run, "steps=200", "duration=50")


def test_a_run_that_measured_has_nothing_to_go_on_from(home: Path) -> None:
    run = died(home, make_spec(order="protected-only", payload="public"), TWO)
    with pytest.raises(UsageError, match="only a private job goes on"):
        load(run)


def test_a_run_that_is_not_there_is_said(home: Path) -> None:
    with pytest.raises(UsageError, match=r"no such run \(from=20200101"):
        config.load(["from=20200101"], runs=home)


def test_how_much_is_made_has_to_be_known(home: Path) -> None:
    run = died(home, config.load(WORDS), TWO, overrides=WORDS)
    with pytest.raises(UsageError, match="is not known"):
        load(run)


def test_a_chain_of_runs_is_named_and_its_steps_summed(run: Died, home: Path) -> None:
    second = died(home, load(run), TWO, overrides=["steps=100"], steps=[65, 90])  # a session counts on
    spec = load(second)
    assert spec.continues.runs == (run.run, second.run)
    assert spec.continues.steps == 90
    assert [slot.steps for slot in build_schedule(spec)] == [10]


def test_one_that_made_none_itself_names_what_it_went_on_from(run: Died, home: Path) -> None:
    second = died(home, load(run), TWO, overrides=["steps=100"], steps=[65, 90])
    for number in (1, 2):
        second.drop(number)
    with pytest.raises(UsageError, match=f"from={run.run}@2"):
        load(second)


def test_a_project_counts_its_own_steps_anew(home: Path) -> None:
    (home / "mine").mkdir()
    (home / "mine" / "train.py").write_text("print()")
    words = [
        "model=project",
        f"model.folder={home / 'mine'}",
        "model.outputs=out",
        "model.command=[python,train.py]",
    ]
    first = died(home, config.load(words), TWO, overrides=words, steps=[20, 40])
    second = died(home, load(first), TWO, overrides=words, steps=[5, 10])
    spec = load(second)
    assert (spec.continues.steps, spec.model.command) == (50, ("python", "train.py"))
    again = load(second, "model.command=[python,train.py,--more]")
    assert again.model.command == ("python", "train.py", "--more")


@pytest.mark.parametrize(
    ("values", "steps"),
    [
        ({"steps": 45}, 45),
        ({"epoch": 2}, 65),
        ({"steps": "ours stands beside it", "glasshouse": {"steps": 45}}, 45),
    ],
)
def test_a_class_of_ones_own_counts_on_or_anew_as_its_state_says(
    home: Path, values: dict[str, Any], steps: int
) -> None:
    source = home / "mine.py"
    source.write_text(
        "class Mine:\n    unit, steps_per_unit, info = 'steps', 1, {}\n"
        "    def __init__(self, params, files, device): ...\n    def run_unit(self): ...\n"
        "    def synchronize(self): ...\n    def loss(self): ...\n"
        "    def trainable(self): ...\n    def buffers(self): ...\n"
    )
    words = ["model=custom", f"model.entry={source}:Mine", "steps=100"]
    state = {"checkpoint-1/state.safetensors": b"x", "checkpoint-1/state.json": canonical_json(values)}
    first = died(home, config.load(words), [state], overrides=words, steps=[20])
    second = died(home, load(first), [state], overrides=words, steps=[45])
    assert load(second).continues.steps == steps


def test_a_run_that_is_not_finished_may_still_train(run: Died) -> None:
    (run.folder / "bundle").rename(run.folder / "parts")
    with pytest.raises(UsageError, match=r"is not finished.*reap"):
        load(run)


def test_its_own_words_are_kept_with_those_of_the_run(run: Died) -> None:
    words = config.spelled_out([f"from={run.run}", "duration=60", "repeat=1"], runs=run.folder.parent)
    kept = [word for word in WORDS if not word.startswith(("steps=", "duration="))]
    assert words == [*kept, f"from={run.run}", "duration=60", "repeat=1"]


def test_where_it_lies_is_in_no_plan(run: Died) -> None:
    shown = public_spec(load(run))
    assert shown.continues is not None
    assert shown.continues.folder == "withheld"
    assert str(run.folder) not in shown.model_dump_json()


@pytest.mark.parametrize(
    ("made", "seconds"),
    [
        ({"made.json": canonical_json({"elapsedSec": 7.5, "units": 20})}, 7.5),
        ({}, 0.0),
        ({"made.json": b"[]"}, 0.0),
        ({"made.json": canonical_json({"elapsedSec": "7", "units": 20})}, 0.0),
        ({"made.json": b"{" * 100}, 0.0),
    ],
)
def test_a_class_of_ones_own_is_given_the_seconds_that_its_state_was_trained(
    home: Path, made: dict[str, bytes], seconds: float
) -> None:
    """Not those of reports that came while it was sealed: never fewer are trained than were asked for."""
    source = home / "mine.py"
    source.write_text(
        "class Mine:\n    unit, steps_per_unit, info = 'steps', 1, {}\n"
        "    def __init__(self, params, files, device): ...\n    def run_unit(self): ...\n"
        "    def synchronize(self): ...\n    def loss(self): ...\n"
        "    def trainable(self): ...\n    def buffers(self): ...\n"
    )
    words = ["model=custom", f"model.entry={source}:Mine", "duration=1000", "order=protected-only"]
    words.append("payload=private")
    state = {"state.safetensors": b"x", "state.json": canonical_json({"steps": 20}), **made}
    files = {f"checkpoint-20/{name}": data for name, data in state.items()}
    run = died(home, config.load(words), [files] * 4, overrides=words, steps=[20] * 4)
    spec = load(run)
    assert spec.continues.seconds == seconds
    assert [slot.measured_sec for slot in build_schedule(spec)] == [1000 - seconds]
