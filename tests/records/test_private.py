"""A private bundle: nothing that names or sizes the model, no digest without a salt, and it verifies."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import pytest

from glasshouse.errors import UsageError
from glasshouse.publishing.from_bundle import artifact_from_verified
from glasshouse.records.plan import public_spec, register_plan
from glasshouse.records.verify import verify
from glasshouse.runtime.disclosure import shown
from glasshouse.spec import LoraModel, RunSpec
from glasshouse.workloads.package import prepare
from tests.specs import make_spec

from .factory import Factory, Leg

MLP = {
    "kind": "mlp", "name": "mlp-of-mine", "inputs": 12007, "hidden": 1013, "layers": 13, "classes": 10009,
    "batch": 1511, "batches_per_epoch": 1709, "learning_rate": 0.001237, "data_seed": 987654321,
}  # fmt: skip
LORA = {
    "kind": "lora", "name": "lora-of-mine", "model_id": "someone/model-7b", "learning_rate": 0.001237,
    "architecture": {"hidden_size": 12007, "model_type": "qwen2"}, "rank": 1013, "data_seed": 987654321,
    "weights": "sealed", "weights_path": "/home/alice/weights",
}  # fmt: skip
CUSTOM = {
    "kind": "custom", "name": "job-of-mine", "entry": "/home/alice/mine.py:Mine",
    "data": ["/home/alice/mine.csv"], "params": {"width": 12007, "rate": 0.001237},
}  # fmt: skip
PROJECT = {
    "kind": "project", "name": "job-of-mine", "folder": "/home/alice/mine", "outputs": "out/mine",
    "command": ["python", "mine.py", "--rate=0.001237", "12007"], "include": ["mine/**"],
    "data": ["/home/alice/mine.csv"], "env": ["OF_MINE"], "max_hours": 101.3,
}  # fmt: skip
# As a whole number or between such signs as names have: digests hold every short run of letters and digits.
SECRETS = re.compile(
    r"(?<![\w.-])(12007|1013|10009|1511|1709|0\.001237|987654321)(?![\w.-])"
    r"|of-mine|OF_MINE|/mine|mine/|mine\.py|mine\.csv|:Mine|/alice|/model-7b|\"qwen2\""
)


def private(model: dict[str, Any]) -> RunSpec:
    return make_spec(model=model, order="protected-only", payload="private")


def cut(items: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """The events as a private leg signs them."""
    return [(kind, shown(kind, body)) for kind, body in items]


@pytest.mark.parametrize("model", [MLP, LORA, CUSTOM], ids=lambda model: model["kind"])
def test_the_plan_names_the_kind_of_workload_and_nothing_else_of_it(model: dict[str, Any]) -> None:
    spec = private(model)
    public = public_spec(spec)
    assert public.model.model_dump(exclude_none=True).keys() <= {"kind", "workload", "weights"}
    assert (public.workload, public.model.name) == (model["kind"], f"private-{model['kind']}")
    text = public.model_dump_json()
    assert SECRETS.findall(text) == []
    assert public_spec(public) == public
    assert RunSpec.model_validate_json(text) == public
    # Of a public job everything stays as it was.
    open_job = public_spec(make_spec(model=model))
    assert open_job.model.kind == model["kind"]
    assert SECRETS.search(open_job.model_dump_json())


def test_the_plan_of_a_project_names_none_of_its_own(factory: Factory) -> None:
    """Folder, command, arguments, environment: of the spec as a whole, and of the plan as it is signed."""
    spec = make_spec(model=PROJECT, order="protected-only", payload="private", duration=None)
    assert SECRETS.search(spec.model_dump_json())
    public = public_spec(spec)
    assert public.model.model_dump(exclude_none=True) == {"kind": "withheld", "workload": "project"}
    plan = register_plan(factory.ledger, factory.operator, "20260101-120000-abcdef", spec).envelope
    text = base64.b64decode(json.loads(plan)["payload"]).decode()
    assert '"workload":"project"' in text
    assert SECRETS.findall(text) == []
    assert "101.3" not in text
    for order in ("raw-first", "abba"):  # in no order is it laid open: it is not run in another
        with pytest.raises(ValueError, match="order has a raw arm"):
            make_spec(model=PROJECT, order=order, payload="public", duration=None)


@pytest.mark.parametrize("model", [MLP, LORA, CUSTOM], ids=lambda model: model["kind"])
def test_a_private_bundle_verifies_and_confirms_no_guess(factory: Factory, model: dict[str, Any]) -> None:
    run, files = factory.parts(private(model), {0: Leg(events=cut)})
    folder = factory.folder / run
    judgement = factory.write(folder, run, files)
    found = verify(folder, factory.keyring)
    assert found.ok, [check for check in found.checks if not check.ok]
    assert judgement.status == "verified", judgement.exclusion
    figures = judgement.figures
    assert figures.protected.output_sha256 is None
    assert figures.protected.final_loss is None
    (said,) = [line for line in judgement.as_record().checks if line.code == "final-loss-missing"]
    assert (said.ok, said.vacuous) == (True, False)
    assert said.detail.endswith("of a private job the loss itself is withheld")
    assert b'"lossFinite":true' in (folder / "legs/s000-protected/events.jsonl").read_bytes()
    assert figures.unit_info == {}
    assert figures.roofline is None
    assert f"-private-{model['kind']}-" in judgement.row
    assert ("synthetic-workload" in judgement.caveats) == (model["kind"] != "custom")
    artifact = artifact_from_verified(found.require())
    assert "model=MODEL" in artifact.command
    text = artifact.model_dump_json() + "".join(path.read_text() for path in folder.rglob("*.json*"))
    assert SECRETS.findall(text) == []


def test_random_weights_are_said_of_a_withheld_model_too(factory: Factory) -> None:
    model = {name: value for name, value in LORA.items() if name not in ("weights", "weights_path")}
    assert isinstance(private(model).model, LoraModel)
    run, files = factory.parts(private(model), {0: Leg(events=cut)})
    assert "random-weights" in factory.write(factory.folder / run, run, files).caveats


def test_only_a_private_leg_may_leave_out_the_digest_of_its_outputs(factory: Factory) -> None:
    run, files = factory.parts(make_spec(order="protected-only"), {0: Leg(events=cut)})
    judgement = factory.write(factory.folder / run, run, files)
    assert "result-malformed" in {check.code for check in judgement.exclusion}
    assert verify(factory.folder / run, factory.keyring).ok


@pytest.mark.parametrize(
    ("told", "codes"),
    [
        ({"finalLoss": 0.25, "lossFinite": None}, set()),  # as private jobs were recorded before
        ({"finalLoss": None, "lossFinite": True}, set()),
        ({"finalLoss": None, "lossFinite": False}, {"non-finite-loss"}),
        ({"finalLoss": None, "lossFinite": None}, {"final-loss-missing"}),
        ({"finalLoss": None, "lossFinite": True, "lossCurve": [[1, None]]}, {"non-finite-loss"}),
    ],
)
def test_of_a_private_job_it_is_enough_that_its_loss_was_finite(
    factory: Factory, told: dict[str, Any], codes: set[str]
) -> None:
    run, files = factory.parts(private(MLP), {0: Leg(result=told)})
    judgement = factory.write(factory.folder / run, run, files)
    assert judgement.method == 3
    assert {check.code for check in judgement.exclusion} == codes
    assert verify(factory.folder / run, factory.keyring).ok


def test_a_public_leg_cannot_keep_its_loss_to_itself(factory: Factory) -> None:
    told = {"finalLoss": None, "lossFinite": True}
    run, files = factory.parts(make_spec(order="protected-only"), {0: Leg(result=told)})
    judgement = factory.write(factory.folder / run, run, files)
    assert "result-malformed" in {check.code for check in judgement.exclusion}


def test_a_withheld_model_cannot_be_run_or_be_public() -> None:
    public = public_spec(private(MLP))
    with pytest.raises(UsageError, match="does not hold its model"):
        prepare(public)
    with pytest.raises(ValueError, match="withheld of a private job only"):
        RunSpec.model_validate_json(
            public.model_copy(update={"payload": "public", "order": "raw-first"}).model_dump_json()
        )


def test_what_is_left_of_each_event() -> None:
    result = {
        "units": 5,
        "outputSha256": "a" * 64,
        "outputBytes": 9,
        "unitInfo": {"totalParams": 7},
        "new": 1,
    }
    result |= {"finalLoss": 0.123456, "lossCurve": [[1, 0.5]], "unit": "patients of ward 7"}
    kept = {"units": 5, "unit": "units", "unitInfo": {}, "finalLoss": None, "lossCurve": []}
    assert shown("trained", {"result": result, "more": 1}) == {"result": {**kept, "lossFinite": True}}
    assert shown("trained", {"result": "nothing to read"}) == {}
    for loss, said in ((0, True), (float("nan"), False), (float("-inf"), False)):
        assert shown("trained", {"result": {**result, "finalLoss": loss}})["result"]["lossFinite"] is said
    for loss in (None, True, "0.5"):  # none was reported: of that it says nothing
        assert shown("trained", {"result": {**result, "finalLoss": loss}}) == {"result": kept}
    assert shown("trained", {"result": {**result, "unit": "epochs"}})["result"]["unit"] == "epochs"
    sizes = {"tensors": 3, "files": 4, "bytes": 5, "heldKib": 6, "peakRssKib": 7}
    assert shown("unsealed", {"unsealSec": 0.5, **sizes}) == {"unsealSec": 0.5}
    assert shown("sealed-outputs", {"plaintextSha256": "a", "bytes": 9}) == {"plaintextSha256": "a"}
    host = {"count": 2, "bytes": 8, "readBackZero": True, "cache": "none"}
    needle = {"class": "trained-parameter", "where": "trainer/cpu", "needles": 3}
    ended = {
        "buffers": {"host": host},
        "outputs": {"ciphertextSha256": "c", "bytes": 9},
        "trainerExit": 0,
        "needles": [
            {**needle, "positiveControl": 9, "after": 0},
            {**needle, "positiveControl": 0, "after": 2},
        ],
        "straysKilled": 4,
    }
    assert shown("zeroized", ended) == {
        "buffers": {"host": {"readBackZero": True, "cache": "none"}},
        "outputs": {"ciphertextSha256": "c"},
        "trainerExit": 0,
        "needles": [
            {"class": "trained-parameter", "where": "trainer/cpu", "positiveControl": 1, "after": 0},
            {"class": "trained-parameter", "where": "trainer/cpu", "positiveControl": 0, "after": 1},
        ],
        "straysKilled": 1,
    }
    assert shown("progress", {"units": 3}) == {"units": 3}
