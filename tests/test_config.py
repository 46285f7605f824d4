"""conf/ as people review it: every file composes, says what it is, and means what it says."""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from glasshouse import config
from glasshouse.conf_files import GROUPS, conf_dir, options
from glasshouse.errors import UsageError
from glasshouse.measurement.schedule import build_schedule
from glasshouse.providers.money import cost_ceiling, price, rental_deadline_sec
from glasshouse.spec import CloudProvider, LoraModel, MlpModel, RunSpec

CONF = conf_dir()
NEEDS = {  # settings that have no default
    "provider=ssh": ["provider.host=box.example", "provider.user=me", "provider.key=key"],
    "model=custom": ["model.entry=train.py:Workload"],
}
RENTABLE = ("h100", "h200", "pro6000", "a4000", "rtx4090", "rtx3090")
EVERY = [f"{group}={name}" for group in GROUPS for name in options(group)]
PUBLISHED = json.loads((CONF / "history" / "published-rows.json").read_bytes())
ROWS = [(kind, row) for kind in ("rows", "smoke", "excluded") for row in PUBLISHED[kind]]


@functools.cache
def resolved(*overrides: str) -> dict[str, Any]:
    return config.resolved(overrides)


@functools.cache
def expand(*overrides: str) -> list[list[str]]:
    return config.expand(overrides)


def compose(overrides: Sequence[str]) -> RunSpec:
    """Resolve and validate, without asking that the files a spec names exist."""
    return config.validate(resolved(*overrides))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Compose from a folder that is not the checkout; what Hydra drops would show there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- every file ------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", EVERY)
def test_every_file_composes_to_the_thing_it_is_named_for(choice: str, elsewhere: Path) -> None:
    group, _, name = choice.partition("=")
    spec = compose([choice, *NEEDS.get(choice, [])])
    if group == "provider":
        assert spec.provider.kind == name
    elif group in ("gpu", "model", "policy"):
        assert getattr(spec, group).name == name
    assert build_schedule(spec)
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("choice", [choice for choice in EVERY if not choice.startswith("experiment=")])
def test_every_setting_stands_in_conf_so_that_it_can_be_overridden(choice: str) -> None:
    values = resolved(choice, *NEEDS.get(choice, []))
    spec = config.validate(values)
    assert set(values) == set(RunSpec.model_fields)
    for name in values:
        part = getattr(spec, name)
        if hasattr(type(part), "model_fields"):
            assert set(values[name]) == set(type(part).model_fields), name


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONF)))
def test_every_file_opens_with_what_it_is_and_a_command_that_works(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    if lines[0] == "# @package _global_":
        del lines[0]
    assert re.match(r"# \S", lines[0])
    head = re.sub(r"\s*\\\n#\s*", " ", "\n".join(line for line in lines if line.startswith("#")))
    commands = re.findall(r"^#   (python -m glasshouse.*)$", head, flags=re.MULTILINE)
    assert commands
    assert path.stem in " ".join(commands) or path.name == "config.yaml"
    for command in commands:
        words = [word for word in re.split(r"\s{2,}", command)[0:1] for word in shlex.split(word)][3:]
        words = [word for word in words if word != "plan"]
        cells = expand(*words[1:]) if words[:1] == ["-m"] else [words]
        assert compose(cells[0])


def test_defaults_are_free_small_and_short() -> None:
    spec = compose([])
    assert (spec.provider.kind, spec.gpu.name, spec.model.name, spec.policy.name) == (
        "local",
        "auto",
        "mlp",
        "standard",
    )
    assert spec.order == "abba"
    slots = build_schedule(spec)
    assert sum(slot.warmup_sec + (slot.measured_sec or math.inf) for slot in slots) < 100
    assert cost_ceiling(spec) == 0


# --- GPUs and providers ----------------------------------------------------------------------


@pytest.mark.parametrize("gpu", RENTABLE)
def test_a_gpu_by_name_is_rented_at_runpod_unless_a_provider_is_named(gpu: str) -> None:
    assert compose([f"gpu={gpu}"]).provider.kind == "runpod"
    assert compose([f"gpu={gpu}", "provider=vastai"]).provider.kind == "vastai"


def test_the_order_of_words_does_not_matter_for_that() -> None:
    assert compose(["provider=vastai", "gpu=h100"]).provider.kind == "vastai"
    assert compose(["gpu=h100", "provider=local"]).provider.kind == "local"


@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_no_gpu_by_name_stays_here_and_cannot_be_rented(name: str) -> None:
    assert compose([f"gpu={name}"]).provider.kind == "local"
    with pytest.raises(UsageError, match=r"max_usd_per_hour\.runpod"):
        cost_ceiling(compose([f"gpu={name}", "provider=runpod"]))


def test_gpus_carry_the_providers_exact_names() -> None:
    # RunPod's ids and Vast.ai's names, as their APIs spell them.
    names = {gpu: compose([f"gpu={gpu}"]).gpu.provider_names for gpu in RENTABLE}
    assert {gpu: (found["runpod"], found["vastai"]) for gpu, found in names.items()} == {
        "h100": ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        "h200": ("NVIDIA H200", "H200"),
        "pro6000": ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX PRO 6000 S"),
        "a4000": ("NVIDIA RTX A4000", "RTX A4000"),
        "rtx4090": ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        "rtx3090": ("NVIDIA GeForce RTX 3090", "RTX 3090"),
    }
    assert all(found["driver"] == found["runpod"] for found in names.values())


@pytest.mark.parametrize("gpu", RENTABLE)
def test_a_rented_gpu_has_a_price_everywhere_and_limits_for_the_roofline(gpu: str) -> None:
    for provider in ("runpod", "vastai"):
        spec = compose([f"gpu={gpu}", f"provider={provider}"])
        assert 0 < (price(spec) or 0) < 10
    assert spec.gpu.peak_bf16_tflops
    assert spec.gpu.memory_gbps
    assert re.fullmatch(r"\d+\.\d", spec.gpu.compute_capability or "")


@pytest.mark.parametrize("provider", ["runpod", "vastai"])
def test_images_are_pinned_by_digest(provider: str) -> None:
    found = compose(["gpu=a4000", f"provider={provider}"]).provider
    assert isinstance(found, CloudProvider)
    assert re.fullmatch(r"[a-z0-9/._-]+@sha256:[0-9a-f]{64}", found.image)
    assert found.base_url.startswith("https://")


# --- models ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "seconds"), [("mlp", 0.6118), ("mlp-large", 3504.7)])
def test_the_mlps_comments_state_their_true_size_and_work(name: str, seconds: float) -> None:
    model = compose([f"model={name}"]).model
    assert isinstance(model, MlpModel)
    widths = [model.inputs, *[model.hidden] * model.layers, model.classes]
    weights = sum(before * after for before, after in itertools.pairwise(widths))
    biases = sum(widths[1:])
    text = (CONF / "model" / f"{name}.yaml").read_text(encoding="utf-8")
    assert f"{weights:,} weights and {biases:,} biases" in text.replace("\n# ", " ")
    flops = 6 * weights * model.batch
    assert flops / 1e9 == pytest.approx(seconds, rel=1e-3)
    for amount in (flops, flops * model.batches_per_epoch):
        shown = [f"{amount / 1e9:.2f} GFLOP", f"{amount / 1e12:.2f} TFLOP", f"{amount / 1e12:.1f} TFLOP"]
        assert any(word in text for word in shown)


def trainable(model: LoraModel) -> int:
    """Parameters of rank-r adapters on q_proj and v_proj: r x (inputs + outputs), each layer."""
    shape = model.architecture
    hidden, heads, kv = (
        int(shape[key]) for key in ("hidden_size", "num_attention_heads", "num_key_value_heads")
    )
    outputs = {"q_proj": hidden, "v_proj": hidden // heads * kv}
    layers = int(shape["num_hidden_layers"])
    return layers * sum(model.rank * (hidden + outputs[name]) for name in model.target_modules)


@pytest.mark.parametrize(("name", "published"), [("qwen2.5-0.5b", 270_336), ("qwen2.5-7b", 1_261_568)])
def test_lora_sizes_are_the_published_ones(name: str, published: int) -> None:
    model = compose([f"model={name}"]).model
    assert isinstance(model, LoraModel)
    assert trainable(model) == published
    assert re.fullmatch(r"[0-9a-f]{40}", model.revision or "")


# --- experiments -----------------------------------------------------------------------------


def test_each_published_row_has_an_experiment_and_nothing_poses_as_one() -> None:
    published = {row["id"] for _, row in ROWS}
    dated = {name for name in options("experiment") if re.match(r"\d{4}-", name)}
    assert dated == published


@pytest.mark.parametrize(("kind", "row"), ROWS, ids=[row["id"] for _, row in ROWS])
def test_an_experiment_is_the_row_it_is_named_for(kind: str, row: dict[str, Any]) -> None:
    spec = compose([f"experiment={row['id']}"])
    if row.get("gpu"):
        assert spec.gpu.name == row["gpu"]
    if row.get("provider"):
        assert spec.provider.kind == row["provider"]
    if row.get("order"):
        assert spec.order == row["order"]
    if kind == "smoke":
        assert spec.order == "protected-only"
    assert spec.duration == row.get("durationSec")
    assert spec.steps == (None if row.get("durationSec") else row.get("targetSteps", row.get("steps")))
    if isinstance(spec.model, LoraModel):
        assert spec.model.model_id == row["model"]
        settings = row.get("settings", {})
        assert spec.model.learning_rate == settings.get("learningRate", spec.model.learning_rate)
        assert spec.model.grad_clip == settings.get("gradClip", spec.model.grad_clip)
        assert spec.model.dtype == settings.get("dtype", spec.model.dtype)
    else:
        assert row["model"] == "mlp"


@pytest.mark.parametrize("name", [name for name in options("experiment") if name != "none"])
def test_an_experiment_states_a_cost_that_its_plan_bounds(name: str) -> None:
    text = (CONF / "experiment" / f"{name}.yaml").read_text(encoding="utf-8").replace("\n# ", " ")
    swept = "sweeper:" in text
    cells = [compose(cell) for cell in (expand(f"experiment={name}") if swept else [[f"experiment={name}"]])]
    ceiling = sum(cost_ceiling(spec) for spec in cells)
    if not any(spec.paid for spec in cells):
        assert "nothing is rented" in text
        return
    stated = re.search(r"Expected: about ([\d.]+) h of rental, ([\d.]+) USD", text)
    assert stated
    hours, dollars = float(stated[1]), float(stated[2])
    assert 0 < hours <= sum(rental_deadline_sec(spec) for spec in cells) / 3600
    assert 0 < dollars <= ceiling
    if len({price(spec) for spec in cells}) == 1:
        assert dollars == pytest.approx(hours * (price(cells[0]) or 0), rel=0.3)  # hours are rounded to 0.1


def test_planned_sweeps_stand_in_their_experiment() -> None:
    specs = [compose(cell) for cell in expand("experiment=next-30m-distribution")]
    assert sorted((spec.gpu.name, spec.repeat) for spec in specs) == [
        (gpu, repeat) for gpu in ("h100", "pro6000") for repeat in range(5)
    ]
    assert {spec.order for spec in specs} == {"abba"}


def test_the_command_line_wins_over_an_experiment() -> None:
    name = "2026-05-15-vastai-a4000-mlp-60s-raw-first"
    spec = compose([f"experiment={name}", "provider=runpod", "duration=5", "gpu=h100"])
    assert (spec.provider.kind, spec.duration, spec.gpu.name) == ("runpod", 5, "h100")
    # A GPU's default provider does not undo what the experiment says.
    assert compose([f"experiment={name}", "gpu=h100"]).provider.kind == "vastai"


# --- sweeps ----------------------------------------------------------------------------------


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
        (["policy=glob(*)"], len(options("policy"))),
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


# --- mistakes --------------------------------------------------------------------------------

SSH = ["provider=ssh", "provider.host=box", "provider.user=me"]
MISTAKES = [
    # words, the field that is named, what else the line must hold
    (["gpu=h1000"], "gpu=h1000", "did you mean h100"),
    (["provider=aws"], "provider=aws", "runpod"),
    (["gpu="], "gpu=nothing", "one name"),
    (["gpu=null"], "gpu=null", "one name"),
    (["gpu=[h100,h200]"], "gpu=[h100,h200]", "one name"),
    (["gpu=../config"], "gpu=../config", "unknown gpu"),
    (["gpu=3"], "gpu=3", ""),
    (["experiment=nope"], "experiment=nope", "unknown experiment"),
    (["gpuu=h100"], "gpuu=h100", "did you mean gpu"),
    (["duratoin=5"], "duratoin=5", "did you mean duration"),
    (["model.learing_rate=1"], "model.learing_rate=1", "did you mean model.learning_rate"),
    (["model.duration=5"], "model.duration=5", "did you mean duration"),
    (["+measure.blokcs=9"], "measure.blokcs=9", "did you mean blocks"),
    (["+nonsense=1"], "nonsense=1", "unknown setting"),
    (["duration=-5"], "duration=-5", "greater than 0"),
    (["duration=long"], "duration=long", "number"),
    (["duration=nan"], "duration=NaN", ""),
    (["duration=1e9"], "duration=1000000000.0", "86400"),
    (["seed=1.5"], "seed=1.5", "integer"),
    (["repeat=true"], "repeat=true", "integer"),
    (["order=abbba"], "order=abbba", "raw-first, protected-first, abba or protected-only"),
    (["model.kind=cnn"], "model.kind=cnn", "mlp, lora, custom"),
    (["provider.boot_deadline_sec=0"], "provider.boot_deadline_sec=0", "greater than 0"),
    (["gpu.name=A B"], "gpu.name=A B", "pattern"),
    (["~duration"], "duration=", "duration=VALUE"),
    (["~gpu"], "gpu=", "gpu=VALUE"),
    (["steps=5"], "duration=20.0", "duration=null steps=N"),
    (["duration=null"], "duration=null", "exactly one"),
    (["payload=private"], "payload=private", "order=protected-only"),
    (["order=protected-only", "control=aa"], "control=aa", "two arms"),
    (["order=abba", "measure.blocks=4"], "measure.blocks=4", "at least 8"),
    (["gpu=h100,h200"], "gpu=h100,h200", "-m"),
    (["repeat=range(0,2)"], "repeat=range(0,2)", "-m"),
    (["duration"], "argument=duration", "NAME=VALUE"),
    (["=5"], "argument==5", "NAME=VALUE"),
    (["duration='"], "duration='", "quote"),
    (["model.entry={"], "model.entry={", "quote"),
    (["duration=${oc.env:GLASSHOUSE_NO_SUCH}"], "duration=", "GLASSHOUSE_NO_SUCH"),
    (["duration=${nope}"], "duration=${nope}", "nope"),
    (["+gpu=h100"], "gpu=h100", "without +"),
    (["hydra/launcher=nope"], "hydra/launcher=nope", "basic"),
    (["hydra.mode=SOMETIMES"], "hydra.mode=SOMETIMES", "MULTIRUN"),
    (["hydra.searchpath=[file:///nonexistent]"], "hydra.searchpath=", "not available"),
    (["provider=ssh"], "provider.host=???", "provider.host=VALUE"),
    ([*SSH, "provider.key=missing"], "provider.key=missing", "exists"),
    ([*SSH, "provider.key=here", "provider.known_hosts=missing"], "provider.known_hosts=missing", "exists"),
    ([*SSH, "provider.key=here", "provider.port=70000"], "provider.port=70000", "65535"),
    ([*SSH, "provider.key=here", "provider.host=a b"], "provider.host=a b", "pattern"),
    (["model=custom", "model.entry=missing.py:Workload"], "model.entry=missing.py", "exists"),
    (["model=custom", "model.entry=here"], "model.entry=here", "pattern"),
]


@pytest.mark.parametrize(
    ("words", "named", "said"), MISTAKES, ids=[" ".join(words) for words, _, _ in MISTAKES]
)
def test_a_mistake_is_one_line_with_field_value_and_remedy(
    words: list[str], named: str, said: str, elsewhere: Path
) -> None:
    (elsewhere / "here").touch()
    with pytest.raises(UsageError) as caught:
        config.load(words)
    line = caught.value.line()
    assert "\n" not in line
    assert f"({named}" in line
    assert said in line
    assert caught.value.field
    assert caught.value.remedy
    assert caught.value.exit_code == 2


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
    assert config.load(["model=custom", "model.entry=train.py:Workload"]).model.kind == "custom"


def test_broken_yaml_in_conf_is_one_line_too(elsewhere: Path) -> None:
    shutil.copytree(CONF, elsewhere / "conf")
    (elsewhere / "conf" / "gpu" / "auto.yaml").write_text("name: [auto\n")
    with pytest.raises(UsageError) as caught:
        config.load([], conf=elsewhere / "conf")
    assert "does not compose" in caught.value.line()
    assert "\n" not in caught.value.line()


def test_no_plain_value_is_a_hydra_one() -> None:
    def plain(value: object) -> bool:
        if isinstance(value, dict):
            return type(value) is dict and all(map(plain, value.values()))
        if isinstance(value, list):
            return type(value) is list and all(map(plain, value))
        return type(value) in (str, int, float, bool, type(None))

    assert plain(resolved("model=qwen2-tiny", "gpu=h100"))
