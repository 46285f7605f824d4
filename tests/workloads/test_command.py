"""What the words behind `--` are: a file, a module or an installed command, and how many ranks run it."""

from __future__ import annotations

import dataclasses
import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glasshouse.errors import UsageError
from glasshouse.runtime.command import Command
from glasshouse.workloads.command import Decision, decide
from glasshouse.workloads.folder import Selection, select

FILES = (
    "train.py",
    "configs/a.yaml",
    "pkg/__init__.py",
    "pkg/__main__.py",
    "pkg/sub/run.py",
    "run.sh",
    "n.ipynb",
)


# As accelerate 1.15 gives its processes, when it is told nothing (seen).
ACCELERATED = {
    "ACCELERATE_MIXED_PRECISION": "no",
    "ACCELERATE_DYNAMO_BACKEND": "NO",
    "ACCELERATE_DYNAMO_MODE": "default",
    "ACCELERATE_DYNAMO_USE_FULLGRAPH": "False",
    "ACCELERATE_DYNAMO_USE_DYNAMIC": "False",
    "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "False",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Selection:
    folder = tmp_path_factory.mktemp("project")
    for name in (*FILES, "left/behind.py", "a b.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("", encoding="utf-8")
    (folder / ".glasshouseignore").write_text("left\n", encoding="utf-8")
    return select(folder)


def decided(line: str, selection: Selection, gpus: int = 1, **more: Any) -> Decision:
    return decide(shlex.split(line), selection, gpus, **more)


@pytest.mark.parametrize(
    ("line", "kind", "target", "arguments"),
    [
        (
            "python train.py --config configs/a.yaml --lr=3e-4",
            "file",
            "train.py",
            "--config configs/a.yaml --lr=3e-4",
        ),
        ("python3 ./pkg/../train.py", "file", "train.py", ""),
        ("python 'a b.py' ''", "file", "a b.py", "''"),
        ("python -u -B -uB train.py -u", "file", "train.py", "-u"),
        ("python -- train.py --", "file", "train.py", "--"),
        ("python pkg/sub/run.py -m x", "file", "pkg/sub/run.py", "-m x"),
        ("python -m pkg --x", "module", "pkg", "--x"),
        ("python -mpkg.sub.run", "module", "pkg.sub.run", ""),
        ("python -u -m pkg.sub.run -h", "module", "pkg.sub.run", "-h"),
        ("python -c 'import a; a.b()' -c", "code", "import a; a.b()", "-c"),
        ("python -u -cpass x", "code", "pass", "x"),
        ("axolotl train config.yaml", "entry", "axolotl", "train config.yaml"),
        ("llamafactory-cli train x", "entry", "llamafactory-cli", "train x"),
        ("torchrun train.py -a", "file", "train.py", "-a"),
        ("torchrun --nproc_per_node=1 --nnodes 1 train.py", "file", "train.py", ""),
        ("torchrun --standalone --nproc-per-node gpu -m pkg x", "module", "pkg", "x"),
        ("torchrun --rdzv_backend=c10d --rdzv-endpoint localhost:0 train.py", "file", "train.py", ""),
        (
            "torchrun --nnodes 1:1 --node_rank 0 --master_port=1 --max-restarts 0 train.py",
            "file",
            "train.py",
            "",
        ),
        ("python -m torch.distributed.run --nproc_per_node=1 train.py --x", "file", "train.py", "--x"),
        ("accelerate launch train.py --x", "file", "train.py", "--x"),
        ("accelerate launch --num_processes 1 --num_machines=1 -m pkg.sub.run", "module", "pkg.sub.run", ""),
        ("accelerate-launch --main_process_port 29501 train.py", "file", "train.py", ""),
        ("python -m accelerate.commands.launch train.py", "file", "train.py", ""),
    ],
)
def test_what_is_run(project: Selection, line: str, kind: str, target: str, arguments: str) -> None:
    found = decided(line, project)
    assert found.warnings == ()
    # A launcher's only process gets what it would be told if it were one of several.
    alone = dict(found.command.environment)
    if launched := "torch" in line:
        assert (alone["RANK"], alone["WORLD_SIZE"], alone["MASTER_ADDR"]) == ("0", "1", "127.0.0.1")
        assert "TORCHELASTIC_RUN_ID" in alone  # by which torch.distributed knows a launcher
    assert launched or alone == (ACCELERATED if "accelerate" in line else {})
    expected = Command(kind, target, tuple(shlex.split(arguments)))  # type: ignore[arg-type]
    assert replace(found.command, environment=()) == expected


def test_a_path_of_this_machine_is_the_projects(project: Selection) -> None:
    assert decide(["python", str(project.folder / "train.py")], project).command.target == "train.py"


@pytest.mark.parametrize(
    ("line", "ranks"),
    [
        ("python train.py", 1),
        ("torchrun --nproc_per_node=4 train.py", 4),
        ("torchrun --nproc_per_node auto train.py", 4),
        ("accelerate launch train.py", 4),
        ("accelerate launch --multi_gpu --num_processes=4 train.py", 4),
    ],
)
def test_the_ranks_are_the_gpus(project: Selection, line: str, ranks: int) -> None:
    assert decided(line, project, 4).command.ranks == ranks


@pytest.mark.parametrize(
    ("line", "gpus", "remedy"),
    [
        ("torchrun train.py", 2, "give --nproc_per_node=2"),
        ("torchrun --nproc_per_node=8 train.py", 1, "give --nproc_per_node=1"),
        ("accelerate launch --num_processes 2 train.py", 1, "give --num_processes=1"),
        ("python -m torch.distributed.run --nproc_per_node=2 train.py", 4, "give --nproc_per_node=4"),
    ],
)
def test_a_launcher_agrees_with_the_gpus(project: Selection, line: str, gpus: int, remedy: str) -> None:
    with pytest.raises(UsageError) as caught:
        decided(line, project, gpus)
    assert (caught.value.field, caught.value.value) == ("gpu.count", gpus)
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("line", "ranks"),
    [
        ("torchrun train.py", 1),
        ("torchrun --nproc_per_node=2 train.py", 2),
        ("python -m torch.distributed.run --nproc-per-node 3 train.py", 3),
        ("accelerate launch train.py", 1),
        ("accelerate launch --num_processes 16 train.py", 16),
    ],
)
def test_where_no_type_of_gpu_is_asked_for_a_launchers_number_is_taken(
    project: Selection, line: str, ranks: int
) -> None:
    found = decided(line, project, named=False)
    assert (found.command.ranks, found.warnings) == (ranks, ())


@pytest.mark.parametrize("word", ["gpu", "auto", "cpu"])
def test_what_counts_the_machine_is_gpu_count(project: Selection, word: str) -> None:
    found = decided(f"torchrun --nproc_per_node={word} train.py", project, 2, named=False)
    assert found.command.ranks == 2
    assert found.warnings == (f"as many processes as {word} says: that is gpu.count here, 2",)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("torchrun --nproc_per_node=17 train.py", "--nproc_per_node=17"),
        ("torchrun --nproc-per-node=0 train.py", "--nproc_per_node=0"),
        ("torchrun --nproc_per_node=02 train.py", "--nproc_per_node=02"),
        ("torchrun --nproc_per_node= train.py", "--nproc_per_node="),
        ("torchrun --nproc_per_node ² train.py", "--nproc_per_node=²"),
        ("accelerate launch --num_processes gpu train.py", "--num_processes=gpu"),
    ],
)
def test_what_is_no_number_of_processes(project: Selection, line: str, value: str) -> None:
    with pytest.raises(UsageError) as caught:
        decided(line, project, named=False)
    assert (caught.value.field, caught.value.value) == ("command", value)
    assert caught.value.remedy == "give one from 1 to 16"


def test_a_count_that_was_given_is_kept_to_on_any_machine(project: Selection) -> None:
    with pytest.raises(UsageError) as caught:
        decided("torchrun --nproc_per_node=3 train.py", project, 2, named=False)
    assert (caught.value.field, caught.value.value) == ("gpu.count", 2)
    assert caught.value.remedy == "give --nproc_per_node=2, or gpu.count=3"


def test_torchrun_hands_the_runs_name_on(project: Selection) -> None:
    found = decided("torchrun --rdzv-id mine train.py", project).command
    assert dict(found.environment)["TORCHELASTIC_RUN_ID"] == "mine"


def test_what_accelerate_hands_on_to_the_script(project: Selection) -> None:
    line = "accelerate launch --mixed_precision=bf16 --num_cpu_threads_per_process 4 train.py"
    assert dict(decided(line, project).command.environment) == {
        **ACCELERATED,
        "ACCELERATE_MIXED_PRECISION": "bf16",
        "OMP_NUM_THREADS": "4",
    }
    two = dict(decided("accelerate launch --num_processes=2 train.py", project, 2).command.environment)
    assert ACCELERATED.items() < two.items()
    assert (two["WORLD_SIZE"], two["TORCHELASTIC_USE_AGENT_STORE"]) == ("2", "False")
    assert "RANK" not in two  # each has its own, which the pod knows


@pytest.mark.parametrize(
    ("line", "value", "remedy"),
    [
        ("", '""', "python train.py"),
        ("bash run.sh", "bash", "give python FILE"),
        ("bash run.sh", "bash", "python -m MODULE, python -c CODE, torchrun"),
        ("sh -c 'python train.py'", "sh", "give python FILE"),
        ("make train", "make", "give python FILE"),
        ("./run.sh", "./run.sh", "give python FILE"),
        ("run.sh", "run.sh", "give python FILE"),
        ("./train.py", "./train.py", "did you mean python ./train.py?"),
        ("train.py --x", "train.py", "did you mean python train.py?"),
        ("uv run python train.py", "uv", "give the words from python on"),
        ("env A=1 python train.py", "env", "give the words from python on"),
        ("deepspeed train.py", "deepspeed", "torchrun"),
        ("A=1 python train.py", "A=1", "set variables in the script"),
        (".venv/bin/python train.py", ".venv/bin/python", "say python"),
        ("python3.12 train.py", "python3.12", "say python"),
        ("python", "python", "python train.py"),
        ("python -m", "-m", "package.train"),
        ("python -m train.py", "train.py", "give -m train, or python train.py"),
        ("python -c", "-c", "give the code behind it"),
        ("python -O train.py", "-O", "leave it out"),
        ("python -X faulthandler train.py", "-X", "leave it out"),
        ("python -W error train.py", "-W", "warnings.filterwarnings"),
        ("python trian.py", "trian.py", "did you mean train.py?"),
        ("python run.py", "run.py", "did you mean"),
        ("python left/behind.py", "left/behind.py", "model.include"),
        ("python n.ipynb", "n.ipynb", "export it"),
        ("python pkg", "pkg", "python -m pkg"),
        ("python ../train.py", "../train.py", "did you mean train.py?"),
        ("python /etc/zzz", "/etc/zzz", "files are named from"),
        ("python ''", "", "files are named from"),
        ("python -m pkg.sub.rnu", "-m pkg.sub.rnu", "did you mean pkg.sub.run?"),
        ("python -m pkg.sub", "-m pkg.sub", "did you mean pkg.sub"),
        ("python -m torch.distributed.launch train.py", "-m torch.distributed.launch", "torchrun"),
        ("torchrun", "torchrun", "give a Python file"),
        ("torchrun -m", "torchrun", "give a Python file"),
        ("torchrun --no_python run.sh", "--no_python", "give a Python file"),
        ("torchrun --nproc_per_nod=1 train.py", "--nproc_per_nod=1", "did you mean --nproc-per-node?"),
        ("torchrun --standalone=1 train.py", "--standalone=1", "leave it out"),
        ("torchrun --nnodes=2 train.py", "--nnodes=2", "one machine"),
        ("torchrun --node-rank=1 train.py", "--node-rank=1", "one machine"),
        ("torchrun --log-dir", "--log-dir", "give one: --log-dir=..."),
        ("accelerate config", "accelerate config", "accelerate launch FILE"),
        ("accelerate launch --config_file c.yaml train.py", "--config_file", "as options"),
        ("accelerate launch --use_deepspeed train.py", "--use_deepspeed", "Accelerator"),
        (
            "accelerate launch --mixed_precision fp8 train.py",
            "--mixed_precision=fp8",
            "choose no, fp16, bf16",
        ),
    ],
)
def test_what_is_not_possible_is_said_in_a_line(
    project: Selection, line: str, value: str, remedy: str
) -> None:
    with pytest.raises(UsageError) as caught:
        decided(line, project)
    assert (caught.value.field, str(caught.value.value)) == ("command", value)
    assert remedy in caught.value.remedy
    assert "\n" not in caught.value.line()


def test_options_without_effect_are_named(project: Selection) -> None:
    found = decided("torchrun --max_restarts=3 --log-dir=x -t 3 -r3 train.py", project)
    assert found.warnings == ("without effect here: --max_restarts, --log-dir, -t, -r of torchrun",)


def test_a_module_that_nobody_has_is_a_warning(project: Selection) -> None:
    asked = list[str]()

    def installed(module: str) -> bool:
        asked.append(module)
        return module == "trl"

    assert decided("python -m trl.scripts.sft --x", project, installed=installed).warnings == ()
    (warning,) = decided("python -m nobody.has.it", project, installed=installed).warnings
    assert "nobody is neither in the project nor installed here" in warning
    assert asked == ["trl", "nobody"]
    assert decided("python -m hypothesis", project).warnings == ()  # asks this Python


def test_paths_of_this_machine_in_the_arguments_are_named(project: Selection, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    inside = project.folder / "configs/a.yaml"
    words = ["python", "train.py", f"--data={tmp_path}/set", str(inside), "/dev/null", "/no/such/path"]
    first, second = decide(words, project).warnings
    assert (
        first
        == f"{tmp_path}/set is a path of this machine: name it in model.data, and as data/NAME in the command"
    )
    assert second == f"{inside} is a path of this machine: in the command say configs/a.yaml"


@pytest.mark.parametrize("word", ["a\0b", "a\udcff"])
def test_words_are_text(project: Selection, word: str) -> None:
    with pytest.raises(UsageError, match="not UTF-8"):
        decide(["python", "train.py", word], project)


def test_a_command_may_be_too_long(project: Selection) -> None:
    with pytest.raises(UsageError, match="too long"):
        decide(["python", "train.py", *["x" * 1000] * 200], project)


def test_code_may_be_too_long_and_is_not_said(project: Selection) -> None:
    with pytest.raises(UsageError, match="too long") as caught:
        decide(["python", "-c", "secret = 1\n" * 20_000], project)
    assert "secret" not in caught.value.line()


COMMANDS = st.builds(
    Command,
    st.just("file"),
    st.just("a/train.py"),
    st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), max_size=4).map(
        tuple
    ),
    st.integers(1, 16),
    st.sampled_from([(), (("OMP_NUM_THREADS", "1"), ("A", ""))]),
)


@given(COMMANDS, st.sampled_from([None, "", "import a\nprint('ü')\n"]))
def test_json_and_back(command: Command, code: str | None) -> None:
    if code is not None:
        command = replace(command, kind="code", target=code)
    assert Command.from_json(json.loads(json.dumps(command.to_json()))) == command


GOOD = Command("module", "pkg.train", ("--x",), 2, (("OMP_NUM_THREADS", "1"),)).to_json()


@pytest.mark.parametrize(
    "change",
    [
        *(
            {"kind": "shell"},
            {"kind": 1},
            {"target": ""},
            {"target": "a b"},
            {"target": 3},
            {"arguments": "--x"},
        ),
        *(
            {"arguments": [1]},
            {"arguments": ["\0"]},
            {"ranks": 0},
            {"ranks": 17},
            {"ranks": True},
            {"ranks": "2"},
        ),
        *({"environment": []}, {"environment": {"a b": "1"}}, {"environment": {"A": 1}}, {"more": 1}),
        *(
            {"kind": "file", "target": "../x"},
            {"kind": "file", "target": "/x"},
            {"kind": "file", "target": "a//b"},
        ),
        *({"kind": "entry", "target": "a/b"}, {"kind": "entry", "target": "-x"}, {"arguments": ["x"] * 5000}),
    ],
)
def test_other_json_is_refused(change: dict[str, object]) -> None:
    assert Command.from_json(GOOD).ranks == 2
    with pytest.raises((TypeError, ValueError)):
        Command.from_json(GOOD | change)


def test_a_command_with_a_field_less_or_none_at_all_is_refused() -> None:
    for value in (None, [], "x", {key: GOOD[key] for key in list(GOOD)[:-1]}):
        with pytest.raises((TypeError, ValueError)):
            Command.from_json(value)


def test_a_command_stays_as_it_is() -> None:
    command = Command("file", "a.py", environment=(("A", "1"),))
    assert {command: 1}[dataclasses.replace(command)] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        command.ranks = 2  # type: ignore[misc]
