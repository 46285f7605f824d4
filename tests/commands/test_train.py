"""`glasshouse train FOLDER -- COMMAND`: what it stands for, and one clear line for what it is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from glasshouse import config
from glasshouse.commands.train import job_words
from glasshouse.errors import UsageError
from glasshouse.spec import ProjectModel
from tests.commands.kit import Call

NAMES = ["plain", "a b,'\"${x}=[] ", "it's $HOME", "~tilde", "with=sign", "ü", "a\nb", "#x", "{a: b}"]


def put(folder: Path) -> Path:
    folder.mkdir()
    (folder / "main.py").touch()
    return folder


def test_its_plan_is_that_of_a_private_job_whose_whole_folder_is_looked_through(
    call: Call, tmp_path: Path
) -> None:
    mine = str(put(tmp_path / "mine"))
    words = ["train", "--plan", mine, "gpu=a4000", "model.max_hours=2"]
    code, out, err = call(*words, "--json", "--", "python", "main.py", "--json")
    assert (code, err) == (0, "")
    (cell,) = json.loads(out)["cells"]
    assert (cell["spec"]["order"], cell["spec"]["payload"]) == ("protected-only", "private")
    model = cell["spec"]["model"]
    assert (model["kind"], model["folder"], model["outputs"]) == ("project", mine, ".")
    assert model["command"] == ["python", "main.py", "--json"]
    assert cell["ceilingSec"] == 7200
    out = call(*words, "--", "python", "main.py")[1]
    assert "comes back: every file that it makes or changes in its folder (" in out
    assert "ceiling: 2 h from its start (model.max_hours); it is asked to end then, has 30 s to save" in out


@pytest.mark.parametrize("name", NAMES)
def test_whatever_the_folder_is_called_it_is_that_folder(tmp_path: Path, name: str) -> None:
    mine = put(tmp_path / name)
    model = config.load([*job_words([str(mine)]), *config.command_words(["python", "main.py"])]).model
    assert isinstance(model, ProjectModel)
    assert model.folder == str(mine)


def test_outputs_that_are_given_are_the_ones() -> None:
    assert job_words(["x", "model.outputs=out"]) == ["model=project", "model.folder='x'", "model.outputs=out"]


@pytest.mark.train  # a run here asks for PyTorch before it looks at a folder
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no folder (folder=nothing)"),
        (["", "--", "python", "main.py"], 'no folder (folder="")'),
        (["gpu=cpu", "--", "python", "main.py"], "no folder (folder=nothing)"),
        (["mine"], "no command to run (command=nothing): give it behind --: glasshouse train mine -- python"),
        (["mine", "--"], "no command to run"),
        (
            ["mine", "python", "main.py"],
            "(command=python): give it behind --: glasshouse train mine -- python main.py",
        ),
        (
            ["mine", "python", "main.py", "--lr=3"],
            "arguments: --lr=3 (command=glasshouse train): what",
        ),
        (["mine", "more", "--", "python", "main.py"], "neither the folder nor a setting (argument=more)"),
        (
            ["mlp", "data=rows.jsonl"],
            "cannot be trained on data of yours yet (train=mlp): bring a",
        ),
        (["qwen2.5-0.5b"], "our models cannot be trained on data of yours yet (train=qwen2.5-0.5b)"),
        (["mlp", "--", "python", "main.py"], "no such folder (model.folder=mlp)"),
        (["nowhere", "--", "python", "main.py"], "no such folder (model.folder=nowhere)"),
        (["mine/main.py", "--", "python", "main.py"], "not a folder (model.folder=mine/main.py)"),
        (["/", "--", "python", "main.py"], "too much would be sealed (model.folder=/)"),
        (["mine", "model=mlp", "--", "python", "main.py"], "not a setting of this command (model=mlp)"),
        (
            ["mine", "model.folder=x", "--", "python", "main.py"],
            "setting of this command (model.folder=x)",
        ),
        (["mine", "order=abba", "--", "python", "main.py"], "(order=abba): order has a raw arm"),
        (["mine", "gpu=h100", "--", "python", "main.py"], "missing setting (model.max_hours=null)"),
        (["mine", "--", "bash", "x.sh"], "such a command is not possible for now (command=bash)"),
        (["\udcff", "--", "python", "main.py"], "not UTF-8 (argument="),
    ],
)
def test_what_it_is_not_is_one_line(call: Call, tmp_path: Path, words: list[str], said: str) -> None:
    put(tmp_path / "mine")
    before = sorted(tmp_path.rglob("*"))
    code, out, err = call("train", *words)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_has_a_models_name_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "mlp")
    assert job_words(["mlp"], models=["mlp"])[1] == "model.folder='mlp'"
    with pytest.raises(UsageError, match="no command to run"):
        job_words(["mlp"], models=["mlp"], command=False)


@pytest.mark.parametrize("ready", ["../x", "/abs/x", "a\\b", "a//b", "x/", "./x", "a\x1bb"])
def test_a_mark_that_can_lie_nowhere_is_refused(tmp_path: Path, call: Call, ready: str) -> None:
    words = [str(put(tmp_path / "p")), f"model.checkpoint_ready='{ready}'", "--", "python", "main.py"]
    code, _, err = call("train", "--plan", *words)
    assert (code, err.count("\n")) == (2, 1)
    assert "is no path in the outputs' folder" in err


@pytest.mark.parametrize("ready", ["done", "step-*/done", "*/trainer_state.json", "..x"])
def test_a_mark_is_a_path_or_a_pattern(tmp_path: Path, call: Call, ready: str) -> None:
    words = [str(put(tmp_path / "p")), f"model.checkpoint_ready='{ready}'", "--", "python", "main.py"]
    code, out, _ = call("train", "--plan", *words)
    assert code == 0
    for of_measuring in ("schedule", "raw", "burn-in", "USD", "each arm"):
        assert of_measuring not in out
    assert "nothing is rented: it costs nothing" in out


def test_a_mark_is_a_setting_of_a_project(call: Call) -> None:
    words = ["order=protected-only", "payload=private", "steps=10", "model.checkpoint_ready=x"]
    code, _, err = call("plan", *words)
    assert (code, err.count("\n")) == (2, 1)
    assert "it is a setting of a project; leave it out" in err
