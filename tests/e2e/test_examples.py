"""The example projects, each run by Python and by one command of ours: what they leave must be the same."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import ROOT, Program

EXAMPLES = ROOT / "examples/projects"
TIMES = ("_runtime", "_per_second")
LOOP = ["python", "train.py", "--config", "configs/small.yaml"]
TRAINER = ["python", "finetune.py", "--config", "config.json", "--epochs", "4"]
TRL = ["python", "sft.py", "--config", "sft.yaml"]

pytestmark = pytest.mark.train


def plainly(name: str, command: list[str], tmp_path: Path, python: str = sys.executable) -> Path:
    """Run a copy of an example as its owner would, without us; its outputs."""
    folder = tmp_path / "plain" / name
    shutil.copytree(EXAMPLES / name, folder)
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "plain")}
    done = subprocess.run(
        [python, *command[1:]], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / "outputs"


def sealed(name: str, command: list[str], program: Program, tmp_path: Path, *settings: str) -> Path:
    """Run a copy of an example as a private job, and open it; its outputs."""
    folder = tmp_path / "mine" / name
    shutil.copytree(EXAMPLES / name, folder)
    done = program(
        "run", "--json", "--out", str(program.runs), "provider=local", *settings,
        "model=project", f"model.folder={folder}", "--", *command,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)["runs"][0]
    assert (record["status"], record["figures"]["overheadPct"]) == ("verified", None)
    assert not {"payload-disclosed", "network-open"} & set(record["caveats"])
    assert "self-counted" in record["caveats"]
    assert not (folder / "outputs").exists()
    opened = program("open", record["folder"], "--to", str(tmp_path / "opened"))
    assert opened.returncode == 0, opened.stderr
    return tmp_path / "opened/s000-1"


def counted(tmp_path: Path) -> set[int]:
    """How many optimizer steps were counted of what `sealed` ran."""
    return {json.loads((tmp_path / "opened/s000-1-exit.json").read_text())["steps"]}


def contents(outputs: Path) -> dict[str, object]:
    """Every file's bytes and every link's target by name; of what Trainer times, all but the times."""
    found: dict[str, object] = {}
    for path in sorted(outputs.rglob("*")):
        name = path.relative_to(outputs).as_posix()
        if path.is_symlink():
            found[name] = path.readlink()
        elif path.name == "trainer_state.json":
            found[name] = untimed(json.loads(path.read_text()))
        elif path.name == "adapter_config.json":  # a set there, in an order that no two processes share
            adapter = json.loads(path.read_text())
            found[name] = adapter | {"target_modules": sorted(adapter["target_modules"])}
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


def untimed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: untimed(item) for key, item in value.items() if not key.endswith(TIMES)}
    return [untimed(item) for item in value] if isinstance(value, list) else value


def workers() -> list[str]:
    """As many as the example has; none where this machine allows no namespaces, as site/project.md says."""
    done = subprocess.run(["unshare", "--map-root-user", "--net", "--mount", "true"], check=False)
    return [] if done.returncode == 0 else ["--workers", "0"]


def test_a_loop_with_workers_leaves_the_same_with_us_and_without(program: Program, tmp_path: Path) -> None:
    import torch

    command = [*LOOP, *workers()]
    plain = contents(plainly("loop", command, tmp_path))
    assert contents(sealed("loop", command, program, tmp_path)) == plain
    assert plain["checkpoints/latest"] == Path("epoch-3.pt")
    assert {"model.safetensors", "sample.txt", "checkpoints/epoch-1.pt"} <= set(plain)
    state = torch.load(io.BytesIO(bytes(plain["checkpoints/epoch-3.pt"])))["optimizer"]["state"]
    assert counted(tmp_path) == {int(one["step"]) for one in state.values()} != {0}
    losses = [json.loads(line)["eval_loss"] for line in bytes(plain["metrics.jsonl"]).splitlines()]
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == 3


def test_a_trainer_leaves_the_same_with_us_and_without(program: Program, tmp_path: Path) -> None:
    plain = contents(plainly("trainer", TRAINER, tmp_path))
    assert contents(sealed("trainer", TRAINER, program, tmp_path)) == plain
    assert {"checkpoint-56/optimizer.pt", "model/tokenizer.json", "history.jsonl"} <= set(plain)
    assert "checkpoint-14/optimizer.pt" not in plain  # three are kept
    state = plain["checkpoint-56/trainer_state.json"]
    assert isinstance(state, Mapping)
    assert counted(tmp_path) == {state["global_step"]} == {56}
    assert json.loads(bytes(plain["eval.json"]))["eval_accuracy"] > 0.5


FINETUNE = """
import argparse, pathlib
parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
out = pathlib.Path("out")
out.mkdir()
(out / "lr.txt").write_text(str(parser.parse_args().lr))
"""


def test_the_command_that_is_shown_first_is_what_one_types(program: Program, tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text().splitlines()
    shown = next(line.strip() for line in readme if "glasshouse train" in line)
    assert shown in (ROOT / "templates/pages/index.html.j2").read_text()
    name, command, *words = shlex.split(shown)
    assert (name, command) == ("glasshouse", "train")
    folder = tmp_path / "work/finetune"
    folder.mkdir(parents=True)
    (folder / "train.py").write_text(FINETUNE)
    done = subprocess.run(
        [sys.executable, "-m", "glasshouse", command, "--out", str(program.runs), *words],
        cwd=ROOT, env={**program.environment, "HOME": str(tmp_path)},
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (run,) = program.runs.glob("2*")
    assert program("open", str(run)).returncode == 0
    assert (run / "opened/s000-1/out/lr.txt").read_text() == "0.0003"
    # What the pages say lies beside it.
    names = {path.name for path in (run / "opened").iterdir()}
    assert names == {"s000-1", "s000-1-trainer.log", "s000-1-exit.json", "s000-1-events.json", "salt.json"}


@pytest.fixture(scope="session")
def python_with_trl(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter with the packages of ours and what the example asks for, by the package index."""
    folder = tmp_path_factory.mktemp("trl") / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "ours.pth").write_text("".join(f"{path}\n" for path in sys.path if "site-packages" in path))
    python = str(folder / "bin/python")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    asked = ["install", "--quiet", "--retries=0", "--timeout=20", "-r", EXAMPLES / "trl/requirements.txt"]
    done = subprocess.run([*pip, *asked], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = next((line for line in done.stderr.splitlines() if line.startswith("ERROR")), done.stderr)
        pytest.skip(f"trl cannot be installed here: {reason}")
    return python


@pytest.mark.index
@pytest.mark.timeout(900)
@pytest.mark.soak  # installs trl and what it needs, 270 MB; the other examples stay
def test_trl_with_an_adapter_leaves_the_same_with_us_and_without(
    program: Program, tmp_path: Path, python_with_trl: str
) -> None:
    plain = contents(plainly("trl", TRL, tmp_path, python_with_trl))
    setting = f"provider.python={python_with_trl}"
    assert contents(sealed("trl", TRL, program, tmp_path, setting)) == plain
    assert {"adapter/adapter_model.safetensors", "checkpoint-84/optimizer.pt"} <= set(plain)
    assert json.loads(bytes(plain["metrics.json"]))["eval_mean_token_accuracy"] > 0.8


@pytest.mark.parametrize("name", ["loop", "trainer", "trl"])
def test_an_example_knows_nothing_of_us(name: str) -> None:
    kinds = (".py", ".json", ".yaml", ".txt", ".jsonl")
    files = [path for path in (EXAMPLES / name).rglob("*") if path.suffix in kinds]
    assert len(files) >= 5
    assert [path for path in files if "glasshouse" in path.read_text().lower()] == []
    readme = (EXAMPLES / name / "README.md").read_text()
    assert f"glasshouse train examples/projects/{name} -- python" in readme
