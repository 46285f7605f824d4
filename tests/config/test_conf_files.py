"""conf/ as people review it: every file composes, says what it is, and means what it says."""

from __future__ import annotations

import itertools
import math
import re
import shlex
from pathlib import Path

import pytest

from glasshouse import config
from glasshouse.conf_files import GROUPS, options
from glasshouse.config import command_words
from glasshouse.errors import UsageError
from glasshouse.measurement.schedule import build_schedule
from glasshouse.providers.money import cost_ceiling, price
from glasshouse.spec import CloudProvider, LoraModel, MlpModel, RunSpec
from tests.config.kit import CONF, compose, expand, resolved

NEEDS = {  # settings that have no default
    "provider=ssh": ["provider.host=box.example", "provider.user=me", "provider.key=key"],
    "model=custom": ["model.entry=train.py:Workload", "duration=60"],
    "model=project": ["model.folder=.", "model.command=[python, train.py]"],
}
RENTABLE = ("h100", "h200", "pro6000", "a4000", "rtx4090", "rtx3090")
EVERY = [f"{group}={name}" for group in GROUPS for name in options(group, CONF)]


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
    assert set(values) == set(RunSpec.model_fields) - {"continues"}  # which is what `from=` comes to
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
        if "--" in words:
            words[words.index("--") :] = command_words(words[words.index("--") + 1 :])
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
