"""Mistakes in settings: one line that names field, value and remedy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from glasshouse import config, spec
from glasshouse.errors import UsageError
from tests.config.kit import CONF, SSH

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
    (["duration=nan"], "duration=nan", "must be a finite number"),
    (["duration=1e9"], "duration=1e9", "86400"),
    (["duration=-inf"], "duration=-inf", "must be a finite number"),
    (["seed=1.5"], "seed=1.5", "integer"),
    (["repeat=true"], "repeat=true", "integer"),
    (["order=abbba"], "order=abbba", "raw-first, protected-first, abba or protected-only"),
    (["model.kind=cnn"], "model.kind=cnn", "mlp, lora, custom"),
    (["provider.boot_deadline_sec=0"], "provider.boot_deadline_sec=0", "greater than 0"),
    (["gpu.name=A B"], "gpu.name=A B", "lower-case letters"),
    (["~duration"], "duration=deleted", "duration=VALUE"),
    (["~gpu"], "gpu=deleted", "gpu=VALUE"),
    (["steps=5", "epochs=2"], "steps=5", "contradicts epochs=2 "),
    (["steps=10", "duration=5"], "duration=5", "contradicts steps=10 "),
    (["epochs=2", "duration=5"], "duration=5", "exactly one of duration and epochs"),
    (["epochs=0"], "epochs=0", "greater than or equal to 1"),
    (
        ["model=qwen2-tiny", "model.batch=24", "epochs=2"],
        "epochs=2",
        "give a multiple of 3, or another model.batch",
    ),
    (["epochs=10000000"], "epochs=10000000", "more than 10000000 steps"),
    (["model=custom", f"model.entry={__file__}:W", "epochs=2"], "epochs=2", "not known of model=custom"),
    (["duration=null"], "duration=null", "how long it is to train"),
    (["payload=private"], "payload=private", "contradicts order=abba "),
    (["order=protected-only", "control=aa"], "control=aa", "two arms"),
    (["measure.blocks=0"], "measure.blocks=0", "greater than or equal to 8"),
    (["measure.blocks=7"], "measure.blocks=7", "greater than or equal to 8"),
    (["order=raw-first", "measure.blocks=7"], "measure.blocks=7", "greater than or equal to 8"),
    (["gpu=h100,h200"], "gpu=h100,h200", "-m"),
    (["repeat=range(0,2)"], "repeat=range(0,2)", "-m"),
    (["duration"], "argument=duration", "NAME=VALUE"),
    (["=5"], "argument==5", "NAME=VALUE"),
    (["duration='"], "duration='", "quote"),
    (["model.entry={"], "model.entry={", "quote"),
    (["duration=${oc.env:GLASSHOUSE_NO_SUCH}"], "duration=", "of the environment only GLASSHOUSE_RUNPOD_URL"),
    (["model.name=${oc.env:HOME}"], "model.name=", "of the environment only GLASSHOUSE_RUNPOD_URL"),
    (["gpu.name=${oc.env:HOME,x}"], "gpu.name=", "of the environment only GLASSHOUSE_RUNPOD_URL"),
    (["duration=${nope}"], "duration=${nope}", "nope"),
    (["+gpu=h100"], "gpu=h100", "without +"),
    (["hydra/launcher=nope"], "hydra/launcher=nope", "basic"),
    (["hydra.run.dir=x"], "hydra.run.dir=x", "--out DIR"),
    (["hydra/job_logging=stdout"], "hydra/job_logging=stdout", "logs nothing"),
    (["hydra.mode=SOMETIMES"], "hydra.mode=SOMETIMES", "MULTIRUN"),
    (["hydra.searchpath=[file:///nonexistent]"], "hydra.searchpath=", "not available"),
    (["provider=ssh"], "provider.host=nothing", "provider.host=VALUE"),
    ([*SSH, "provider.key=missing"], "provider.key=missing", "exists"),
    ([*SSH, "provider.key=here", "provider.known_hosts=missing"], "provider.known_hosts=missing", "exists"),
    ([*SSH, "provider.key=here", "provider.port=70000"], "provider.port=70000", "65535"),
    ([*SSH, "provider.key=here", "provider.host=a b"], "provider.host=a b", "a host name or address"),
    (["model=custom", "model.entry=missing.py:Workload", "duration=5"], "model.entry=missing.py", "exists"),
    (["model=custom", "model.entry=/no/x.py"], "model.entry=/no/x.py", "as in path/to/file.py:Workload"),
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


def test_broken_yaml_in_conf_is_one_line_too(elsewhere: Path) -> None:
    shutil.copytree(CONF, elsewhere / "conf")
    (elsewhere / "conf" / "gpu" / "auto.yaml").write_text("name: [auto\n")
    with pytest.raises(UsageError) as caught:
        config.load([], conf=elsewhere / "conf")
    assert "does not compose" in caught.value.line()
    assert "\n" not in caught.value.line()


def test_every_pattern_says_in_words_what_it_wants() -> None:
    models = [getattr(spec, name) for name in dir(spec)]
    fields = [
        field
        for model in models
        if isinstance(model, type) and issubclass(model, spec.Strict)
        for field in model.model_fields.values()
        if any(getattr(rule, "pattern", None) for rule in field.metadata)
    ]
    assert len(fields) >= 9
    assert all(field.description for field in fields)
