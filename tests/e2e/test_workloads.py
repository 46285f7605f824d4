"""Workloads that are not ours: the example as a job and as a pair, sealed base weights, and bad behaviour."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, Program

pytestmark = [pytest.mark.train, pytest.mark.slow]

QUICK = [
    "provider.threads=1",
    "order=raw-first",
    "payload=public",
    "measure=quick",
    "measure.warmup_sec=0.2",
    "measure.head_interval_sec=0.3",
    "measure.duration_tolerance_pct=50",
]
EXAMPLE = [
    "model=custom",
    f"model.entry={ROOT}/examples/finetune_jsonl.py:Finetune",
    f"model.data=[{ROOT}/examples/notes.jsonl]",
]
JOB = ["order=protected-only", "payload=private"]

# Behaves, until one line of it is changed.
WORKLOAD = """
import torch

class Workload:
    unit = "steps"
    steps_per_unit = 1

    def __init__(self, params, files, device):
        torch.manual_seed(3)
        self.weight = torch.randn(64, 64)
        self.tokens = torch.arange(512)
        self.info = {"trainableParams": 4096}
        self.taken = 0

    def run_unit(self):
        self.taken += 1
        for _ in range(20):
            self.weight += 1e-6 * self.weight @ self.weight.T / 64

    def synchronize(self):
        pass

    def loss(self):
        return 1.0 / (1 + self.taken)

    def trainable(self):
        return {"weight": self.weight}

    def buffers(self):
        return [self.weight, self.tokens]

    def given(self):
        return {"tokens": self.tokens}
"""


def run(program: Program, *overrides: str) -> tuple[int, dict, Path, str]:
    done = program("run", "--json", "--out", str(program.runs), *QUICK, *overrides)
    assert done.stdout, done.stderr
    record = json.loads(done.stdout)["runs"][0]
    return done.returncode, record, Path(record["folder"]), done.stderr


def custom(program: Program, tmp_path: Path, source: str, *overrides: str) -> tuple[int, dict, Path, str]:
    path = tmp_path / "mine.py"
    path.write_text(source)
    return run(program, "model=custom", f"model.entry={path}:Workload", *overrides)


def replaced(old: str, new: str) -> str:
    assert old in WORKLOAD
    return WORKLOAD.replace(old, new)


# --- the example ------------------------------------------------------------------------------


def test_the_example_is_a_private_job_whose_model_comes_back(program: Program, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    code, record, folder, err = run(program, *EXAMPLE, *JOB, "duration=1.5")
    assert code == 0, err
    assert record["status"] == "verified"
    assert record["figures"]["overheadPct"] is None
    assert not list((folder / "bundle/legs").glob("*-raw"))
    opened = program("open", str(folder), "--to", str(tmp_path / "opened"), "--json")
    assert opened.returncode == 0, opened.stderr
    (path,) = (tmp_path / "opened").glob("*.safetensors")
    weights = load_file(path)
    assert weights["model.embed_tokens.weight"].shape == (258, 64)
    assert all(bool(value.isfinite().all()) for value in weights.values())


@pytest.mark.soak  # half a minute; the example as a private job stays
def test_the_example_as_a_pair_shows_both_arms_curves(program: Program) -> None:
    code, record, folder, err = run(program, *EXAMPLE, "duration=3")
    assert code == 0, err
    assert record["status"] == "verified"
    assert record["figures"]["overheadPct"] is not None
    assert "payload-disclosed" in record["caveats"]
    shown = program("show", str(folder))
    for leg in ("s000-raw", "s001-protected"):
        for curve in ("loss ", "throughput "):
            (line,) = [line for line in shown.stdout.splitlines() if line.startswith(f"{leg} {curve}")]
            assert any(char in line for char in "▁▂▃▄▅▆▇█"), line


def test_base_weights_travel_in_the_package_and_no_one_reads_their_folder(
    program: Program, tmp_path: Path
) -> None:
    import transformers

    from glasshouse import config

    architecture = dict(config.resolved(["model=qwen2-tiny"])["model"]["architecture"])
    shape = transformers.AutoConfig.for_model(architecture.pop("model_type"), **architecture)
    folder = tmp_path / "private-weights"
    transformers.AutoModelForCausalLM.from_config(shape).save_pretrained(folder)
    sealed = ["model=qwen2-tiny", "model.weights=sealed", f"model.weights_path={folder}"]
    code, record, run_folder, err = run(program, *sealed, "order=protected-first", "duration=0.5")
    assert code == 0, err
    assert record["status"] == "verified"
    assert record["figures"]["unit"] == "steps"
    assert "random-weights" not in record["caveats"]
    lines = (run_folder / "bundle/legs/s000-protected/events.jsonl").read_bytes().splitlines()
    events = {event["type"]: event["body"] for event in map(json.loads, lines)}
    (file,) = folder.glob("*.safetensors")
    assert events["unsealed"]["bytes"] > file.stat().st_size
    assert events["zeroized"]["buffers"]["package"]["readBackZero"]
    for path in (run_folder / "bundle").rglob("*"):
        assert path.is_dir() or b"private-weights" not in path.read_bytes(), path


COUNTING = """
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

class Workload:
    unit, steps_per_unit, info = "rounds", 4, {}

    def __init__(self, params, files, device):
        self.weight = torch.nn.Parameter(torch.ones(64))
        self.counted = torch.zeros(1, dtype=torch.int64)
        self.optimizer = torch.optim.SGD([self.weight], lr=0.01)
        register_optimizer_step_post_hook(lambda *_: self.counted.add_(1))

    def run_steps(self, count):
        for _ in range(count):
            self.optimizer.zero_grad()
            self.weight.square().sum().backward()
            self.optimizer.step()

    def run_unit(self): self.run_steps(4)
    def synchronize(self): pass
    def loss(self): return float(self.weight.detach().square().sum())
    def trainable(self): return {"weight": self.weight.detach(), "counted": self.counted}
    def buffers(self): return [self.weight, self.counted]
"""


def test_a_job_s_weights_made_the_steps_asked_for_and_show_says_so(program: Program, tmp_path: Path) -> None:
    """Two units of four and a half; counted by torch's hook, which the weights bring home."""
    from safetensors.torch import load_file

    code, record, folder, err = custom(program, tmp_path, COUNTING, *JOB, "steps=10")
    assert code == 0, err
    assert "short-warmup" not in record["caveats"]
    assert record["figures"]["protected"]["steps"] == 10
    opened = program("open", str(folder), "--to", str(tmp_path / "opened"))
    assert opened.returncode == 0, opened.stderr
    (path,) = (tmp_path / "opened").glob("*.safetensors")
    weights = load_file(path)
    assert int(weights["counted"]) == 10
    assert float(weights["weight"][0]) == pytest.approx(0.98**10, rel=1e-5)
    shown = program("show", str(folder)).stdout
    assert "returned: weights of s000-protected, 10 optimizer steps from the initial ones\n" in shown


# --- bad behaviour ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "codes"),
    [
        (replaced("return 1.0 / (1 + self.taken)", "return float('nan')"), {"non-finite-loss"}),
        (
            replaced("self.weight += 1e-6 * self.weight @ self.weight.T / 64", "self.weight @ self.weight.T")
            .replace("torch.arange(512)", "torch.arange(512) + int.from_bytes(__import__('os').urandom(4))"),
            {"adapter-unchanged", "initial-weights-mismatch"},
        ),
    ],
    ids=["not-a-number", "untrained-with-other-tokens"],
)  # fmt: skip
def test_what_misbehaves_is_excluded_by_name(
    program: Program, tmp_path: Path, source: str, codes: set[str]
) -> None:
    # Without a warm-up, after which a workload that begins differently each time is found out sooner.
    code, record, _, err = custom(program, tmp_path, source, "duration=0.3", "measure.warmup_sec=0")
    assert code == 1, err
    assert record["status"] == "excluded"
    assert codes <= set(record["exclusion"]["codes"])
    for word in codes:
        assert word in err


def test_the_owner_reads_why_a_sealed_workload_failed(program: Program, tmp_path: Path) -> None:
    source = replaced("self.taken += 1\n", "raise KeyError('marmalade in my data')\n")
    code, record, folder, err = custom(program, tmp_path, source, *JOB, "duration=0.3")
    assert code == 1
    assert "workload-error" in record["exclusion"]["codes"]
    assert f"glasshouse open {folder}" in err
    assert "marmalade" not in err
    assert not any(b"marmalade" in path.read_bytes() for path in folder.rglob("*") if path.is_file())
    opened = program("open", str(folder), "--to", str(tmp_path / "opened"))
    assert opened.returncode == 0, opened.stderr
    (log,) = (tmp_path / "opened").glob("*trainer.log")
    assert "KeyError: 'marmalade in my data'" in log.read_text()


def test_a_raw_legs_log_comes_home_beside_the_bundle(program: Program, tmp_path: Path) -> None:
    # Behind a base class, where it is not seen before the pod.
    source = replaced("def synchronize", "def synchronise").replace("class Workload", "class Base")
    source += "\nclass Workload(Base):\n    pass\n"
    code, record, folder, err = custom(program, tmp_path, source, "duration=0.3")
    assert code == 1
    assert "workload-lacks-synchronize" in record["exclusion"]["codes"]
    assert "its log is" in err
    (log,) = (folder / "outputs").glob("*raw.log")
    assert "LegError: the session has no synchronize" in log.read_text()
    assert not list((folder / "bundle").rglob("*.log"))


def test_a_missing_method_costs_nothing(program: Program, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(replaced("def loss", "def losses"))
    done = program("model=custom", f"model.entry={path}:Workload", "duration=1", "--out", str(program.runs))
    assert done.returncode == 2
    assert done.stderr.startswith("error: the workload lacks loss() (model.entry=")
    assert done.stderr.count("\n") == 1
    assert not program.runs.exists()
