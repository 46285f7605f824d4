"""Composing: sweeps, launchers, and values that are Hydra's no more."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glasshouse import config
from glasshouse.conf_files import options
from glasshouse.errors import UsageError
from glasshouse.measurement.schedule import build_schedule
from glasshouse.paths import Workspace
from glasshouse.records.plan import public_spec
from glasshouse.spec import CloudProvider, ProjectModel, RunSpec
from tests.config.kit import CONF, SSH, compose, resolved


def test_the_readmes_sweep_is_two_cells() -> None:
    assert config.expand(["gpu=h100,pro6000", "duration=1800"]) == [
        ["gpu=h100", "duration=1800"],
        ["gpu=pro6000", "duration=1800"],
    ]


@pytest.mark.parametrize(
    ("words", "cells"),
    [
        (["duration=5"], 1),
        (["order=raw-first,protected-first", "repeat=range(0,3)"], 6),
        (["seed=choice(1,2,3)"], 3),
        (["policy=glob(*)"], len(options("policy", CONF))),
        (["model.learning_rate=0.1,0.2", "hydra/launcher=joblib"], 2),
    ],
)
def test_sweep_syntax_is_hydras(words: list[str], cells: int) -> None:
    if any("joblib" in word for word in words):
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    expanded = config.expand(words)
    assert len(expanded) == cells
    for cell in expanded:
        assert compose(cell)
        assert not any(word.startswith("hydra/") for word in cell)


def test_a_sweep_over_gpus_takes_settings_of_the_provider_they_choose() -> None:
    words = ["gpu=h100,pro6000", "provider.base_url=http://127.0.0.1:1/v2"]
    cells = [config.load(cell) for cell in config.expand(words)]
    assert [(cell.gpu.name, cell.provider.kind) for cell in cells] == [
        ("h100", "runpod"),
        ("pro6000", "runpod"),
    ]
    assert all(
        isinstance(cell.provider, CloudProvider) and cell.provider.base_url == "http://127.0.0.1:1/v2"
        for cell in cells
    )
    with pytest.raises(UsageError, match=r"provider\.base_ur="):
        config.load(config.expand(["gpu=h100,pro6000", "provider.base_ur=x"])[0])


@pytest.mark.parametrize(("group", "variable"), [("runpod", "RUNPOD"), ("vastai", "VASTAI")])
def test_the_environment_can_point_a_provider_elsewhere(
    group: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(f"GLASSHOUSE_{variable}_URL", raising=False)
    usual = config.load([f"provider={group}"]).provider
    assert isinstance(usual, CloudProvider)
    assert usual.base_url.startswith("https://")
    monkeypatch.setenv(f"GLASSHOUSE_{variable}_URL", "http://127.0.0.1:9/x")
    other = config.load([f"provider={group}"]).provider
    assert isinstance(other, CloudProvider)
    assert other.base_url == "http://127.0.0.1:9/x"


def test_a_config_can_ask_for_a_sweep_itself() -> None:
    assert not config.wants_sweep(["repeat=0,1"])
    assert config.wants_sweep(["repeat=0,1", "hydra.mode=MULTIRUN"])


def test_other_sweepers_are_refused() -> None:
    with pytest.raises(UsageError, match="hydra/sweeper"):
        config.expand(["hydra/sweeper=bogus"])


def _exit_code(spec: RunSpec, overrides: list[str]) -> int:
    assert overrides == [f"repeat={spec.repeat}", "duration=5"]
    return spec.repeat


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_launcher_runs_each_cell_with_its_own_spec(launcher: str, elsewhere: Path) -> None:
    if launcher == "joblib":
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = ["repeat=0,3,1", "duration=5", f"hydra/launcher={launcher}"]
    assert config.launcher(words) == launcher
    assert config.launch(words, _exit_code) == [0, 3, 1]
    # One file says what the sweep was; nothing else is left lying about.
    left = [path for path in elsewhere.rglob("*") if path.is_file()]
    assert [path.name for path in left] == ["multirun.yaml"]
    assert left[0].relative_to(elsewhere).parts[:2] == ("runs", ".sweeps")


def test_a_path_in_the_home_folder_needs_no_quotes(monkeypatch: pytest.MonkeyPatch, elsewhere: Path) -> None:
    monkeypatch.setenv("HOME", str(elsewhere))
    (elsewhere / "id").touch()
    for cell in ([*SSH, "provider.key=~/id"], *config.expand([*SSH, "provider.key=~/id", "repeat=0,1"])):
        provider = config.load(cell).provider
        assert provider.kind == "ssh"
        assert provider.key == "~/id"


def test_existing_files_are_accepted(elsewhere: Path) -> None:
    (elsewhere / "here").touch()
    spec = config.load([*SSH, "provider.key=here", "provider.known_hosts=here"])
    assert spec.provider.kind == "ssh"
    (elsewhere / "train.py").touch()
    assert config.load(["model=custom", "model.entry=train.py:Workload", "steps=9"]).model.kind == "custom"


def test_no_plain_value_is_a_hydra_one() -> None:
    def plain(value: object) -> bool:
        if isinstance(value, dict):
            return type(value) is dict and all(map(plain, value.values()))
        if isinstance(value, list):
            return type(value) is list and all(map(plain, value))
        return type(value) in (str, int, float, bool, type(None))

    assert plain(resolved("model=qwen2-tiny", "gpu=h100"))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.text(max_size=12) | st.sampled_from(["${x}", "\\${y}", "--lr=3e-4", "1,2", "it's", "[a]", "\\"])
    )
)
def test_the_words_of_a_command_arrive_as_they_were_typed(words: list[str]) -> None:
    command = ["python", *(word for word in words if "\0" not in word)]
    spec = config.load(["model=project", "model.folder=.", *config.command_words(command)])
    assert isinstance(spec.model, ProjectModel)
    assert list(spec.model.command) == command


@pytest.mark.parametrize("model", ["custom", "project"])
def test_what_is_the_users_own_is_private_by_default(model: str) -> None:
    words = {
        "custom": [f"model.entry={__file__}:Workload", "duration=5"],
        "project": ["model.folder=.", "model.command=[python,a.py]"],
    }[model]
    spec = config.load([f"model={model}", *words])
    assert (spec.order, spec.payload) == ("protected-only", "private")
    assert model == "custom" or (spec.duration, spec.steps) == (None, None)


def test_the_missions_commands_resolve_as_ever() -> None:
    for words in ([], ["gpu=h100", "provider=runpod", "duration=1800"], ["model=qwen2-tiny", "duration=10"]):
        spec = config.load(words)
        assert (spec.order, spec.payload) == ("abba", "public")
    assert config.load([]).duration == 20.0


STEPS = "experiment=2026-05-15-vastai-a4000-qwen2.5-0.5b-16steps-raw-first"


@pytest.mark.parametrize(
    ("words", "length"),
    [
        (["steps=100"], (None, 100, None)),
        (["epochs=3"], (None, None, 3)),
        (["duration=null", "steps=100"], (None, 100, None)),
        (["duration=5", "steps=null"], (5.0, None, None)),
        ([STEPS, "duration=5"], (5.0, None, None)),  # what an experiment says is conf's, too
        ([STEPS, "epochs=2"], (None, None, 2)),
        ([STEPS], (None, 16, None)),
        ([f"model.entry={__file__}:W", "model=custom", "steps=9"], (None, 9, None)),
    ],
)
def test_what_is_typed_takes_the_place_of_what_conf_says(
    words: list[str], length: tuple[float | None, int | None, int | None]
) -> None:
    spec = config.load(words)
    assert (spec.duration, spec.steps, spec.epochs) == length


def test_cells_of_a_sweep_yield_too_also_in_a_launcher_s_process() -> None:
    cells = config.expand(["steps=8,9"])
    assert [config.load(cell).steps for cell in cells] == [8, 9]
    seen: list[tuple[float | None, int | None]] = []

    def job(spec: RunSpec, _overrides: list[str]) -> int:
        seen.append((spec.duration, spec.steps))
        return 0

    assert config.launch(["steps=8,9"], job) == [0, 0]
    assert seen == [(None, 8), (None, 9)]


def test_a_job_has_no_warm_up_and_a_run_that_measures_has() -> None:
    job = config.load(["order=protected-only", "payload=private", "measure.warmup_sec=3"])
    assert [slot.warmup_sec for slot in build_schedule(job)] == [0.0]
    assert [slot.warmup_sec for slot in build_schedule(config.load(["order=protected-only"]))] == [5.0]


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        (["epochs=3"], 12),
        (["epochs=3", "model.batches_per_epoch=7"], 21),
        (["model=qwen2-tiny", "epochs=2"], 128),
        (["model=qwen2-tiny", "model.examples=5", "model.batch=2", "epochs=2"], 5),
    ],
)
def test_epochs_are_steps_and_a_private_plan_says_those(words: list[str], steps: int) -> None:
    spec = config.load([*words, "order=protected-only", "payload=private"])
    assert spec.total_steps == steps
    shown = public_spec(spec)
    assert (shown.steps, shown.epochs) == (steps, None)
    assert RunSpec.model_validate_json(shown.model_dump_json()) == shown
    assert build_schedule(shown) == build_schedule(spec)


def test_an_experiment_file_cannot_lay_a_workload_of_ones_own_open(tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    shutil.copytree(Workspace.find().conf, conf)
    (conf / "experiment/mine.yaml").write_text("# @package _global_\norder: abba\npayload: public\n")
    words = ["model=custom", f"model.entry={__file__}:Workload", "duration=5", "experiment=mine"]
    with pytest.raises(UsageError, match="payload=public yourself"):
        config.load(words, conf=conf)
    assert config.load([*words, "payload=public"], conf=conf).order == "abba"


def test_a_setting_that_is_missing_is_named_once() -> None:
    words = ["model=project", "model.folder=.", "model.command=[python,a.py]", "provider=runpod", "gpu=h100"]
    with pytest.raises(UsageError) as caught:
        config.load(words)
    said = "on a machine that is paid for, say when to stop"
    assert caught.value.line() == f"missing setting (model.max_hours=null): {said}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["order=abba"], "has none yet"),
        (["payload=public", "order=protected-only"], "private job"),
        (["duration=5"], "when its command does"),
        (["provider=runpod", "gpu=h100"], "model.max_hours"),
        (["model.command=[]"], "behind --"),
    ],
)
def test_a_project_is_refused_what_it_cannot_have(words: list[str], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        config.load(["model=project", "model.folder=.", "model.command=[python,a.py]", *words])
    assert said in caught.value.line()
    assert "\n" not in caught.value.line()
