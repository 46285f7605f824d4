"""What a workload or a machine calls things is published as salted digests, and its owner can show which."""

from __future__ import annotations

import base64
import json
import socket

import pytest

from glasshouse.canonical import b64u_decode, sha256_hex
from glasshouse.errors import UsageError
from glasshouse.records.plan import public_spec, register_plan
from glasshouse.records.withheld import opened_salt, places, sealed_salt
from glasshouse.runtime import machine
from glasshouse.runtime.blinding import LISTED, WITHHELD, blinded, host_digest, withheld
from glasshouse.sealing.grant import generate_kem_key, kem_public_bytes
from glasshouse.spec import CustomModel, Publication, RunSpec
from tests.publishing.canaries import canaries
from tests.records.factory import Factory
from tests.specs import make_spec

SALT = bytes(range(32))
RUN = "20260101-120000-abcdef"


def custom(allow: tuple[str, ...] = (), **params: object) -> RunSpec:
    model = {
        "kind": "custom", "name": "mine", "entry": "/home/ada/secret-project/train.py:Diffusion",
        "data": ("/data/patients.csv",), "params": params,
    }  # fmt: skip
    return make_spec(model=model, payload="public").model_copy(
        update={"publication": Publication(allow=allow)}
    )


def test_no_canary_among_a_workloads_parameters_reaches_the_plan(factory: Factory) -> None:
    planted = canaries()
    for start in range(0, len(planted), 40):
        values = {f"p{number}": value for number, (_, _, value) in enumerate(planted[start : start + 40])}
        owner = generate_kem_key()
        run = f"20260101-12{start // 40:02d}00-abcdef"
        envelope = register_plan(
            factory.ledger,
            factory.operator,
            run,
            custom(**values),
            salt=SALT,
            owners=[kem_public_bytes(owner)],
        ).envelope
        said = base64.b64decode(json.loads(envelope)["payload"]).decode()
        assert not [name for name, value in values.items() if value in said]
        for word in ("patients", "train.py", "Diffusion", "secret-project", '"p1"'):
            assert word not in said
        sealed = json.loads(said)["predicate"]["sealedSalt"]
        assert opened_salt(sealed, run, [generate_kem_key(), owner]) == SALT
        assert opened_salt(sealed, "20260101-120000-zzzzzz", [owner]) is None


def test_of_a_private_job_not_even_the_names_that_it_allowed_are_published() -> None:
    before = {
        "runs": [RUN], "leg": "s000", "launch": 1, "number": 2, "sha256": "ab" * 32, "steps": 5,
        "seconds": None, "witnessed": True, "folder": "/home/ada/runs/hidden-place",
    }  # fmt: skip
    spec = make_spec(
        model=custom().model.model_dump(mode="json"), payload="private", order="protected-only",
        publication={"allow": ["model.params.diffusion_depth"]}, continues=before,
    )  # fmt: skip
    shown = public_spec(spec, SALT)
    said = shown.model_dump_json()
    assert shown.publication == Publication()
    assert shown.continues is not None
    assert shown.continues.runs == (RUN,)
    for word in ("diffusion", "ada", "hidden-place"):
        assert word not in said
    assert public_spec(shown, SALT) == shown
    assert places(shown) == ()


def test_what_is_allowed_by_name_is_published_and_the_rest_can_be_shown_by_the_salt() -> None:
    spec = custom(("model.params.lr", "model.data"), lr=3e-4, note="words")
    shown = public_spec(spec, SALT)
    assert isinstance(shown.model, CustomModel)
    assert shown.model.params == {"lr": 3e-4, "withheld-1": withheld(SALT, "model.params.note", "words")}
    assert shown.model.data == ("patients.csv",)
    digest = withheld(SALT, "model.entry", "train.py:Diffusion").partition(":")[2]
    assert shown.model.entry == f"withheld-{digest}.py:Withheld"
    assert places(shown) == ("model.entry", "model.params")
    assert public_spec(shown, bytes(32)) == shown  # what is withheld stays as it is
    assert public_spec(spec, bytes(32)) != shown
    assert places(public_spec(make_spec(), SALT)) == ()


def test_what_a_workload_says_of_itself_is_withheld_but_for_numbers_that_are_listed() -> None:
    said = {
        "rowsPerUnit": 640,
        "deterministic": True,
        "trainableParams": "hf_x",
        "note": "a",
        "lr": float("nan"),
        "k": 3,
    }
    shown = blinded("unitInfo", said, SALT, ("unitInfo.k", "unitInfo.note"), LISTED)
    assert {name: shown[name] for name in ("rowsPerUnit", "deterministic", "k")} == {
        "rowsPerUnit": 640, "deterministic": True, "k": 3,
    }  # fmt: skip
    hidden = {name: value for name, value in shown.items() if name.startswith("withheld-")}
    assert len(hidden) == 3
    assert all(WITHHELD.match(value) for value in hidden.values())
    assert withheld(SALT, "unitInfo.note", "a") in hidden.values()
    assert len(blinded("unitInfo", {f"n{i}": i for i in range(500)}, SALT, (), LISTED)) <= 60


@pytest.mark.parametrize(
    "name", ["unitInfo", "model.params", "model.entry.x", "unitInfo.a b", "provider.host"]
)
def test_what_can_be_allowed_is_one_of_a_few_places(name: str) -> None:
    with pytest.raises(ValueError, match="allow"):
        Publication(allow=(name,))


def test_a_hosts_name_is_salted_wherever_it_stands() -> None:
    name = socket.gethostname()
    one, two = machine.identity("a" * 64, SALT), machine.identity("a" * 64, bytes(32))
    assert one.hostname_digest == host_digest(name, SALT) != two.hostname_digest
    assert sha256_hex(name.encode()) not in (one.hostname_digest, two.hostname_digest)
    # The boot id and the namespaces are public or few: a container's id must not confirm a name either.
    assert machine.own_container_id(SALT) != machine.own_container_id(bytes(32))


def test_a_salt_is_sealed_to_each_key_of_the_owner() -> None:
    first, second = generate_kem_key(), generate_kem_key()
    sealed = sealed_salt(SALT, RUN, [kem_public_bytes(first), kem_public_bytes(second)])
    assert [len(b64u_decode(text)) for text in sealed] == [1168, 1168]
    for key in (first, second):
        assert opened_salt(sealed, RUN, [key]) == SALT


@pytest.mark.parametrize("name", ["sk-abcdefghijklmnopqrst", "node17.hpc.example.edu", "203.0.113.9"])
def test_a_setting_that_would_name_a_secret_is_refused_before_a_plan_exists(
    factory: Factory, name: str
) -> None:
    model = {"kind": "custom", "name": name, "entry": "a.py:A", "params": {}}
    spec = make_spec(model=model, payload="public")
    with pytest.raises(UsageError, match="must not become public") as caught:
        register_plan(factory.ledger, factory.operator, RUN, spec)
    assert caught.value.field == "model.name"
    assert name not in str(caught.value)
    assert factory.ledger.leaves() == ()


def test_a_short_secret_of_the_environment_keeps_no_run_from_its_row(
    factory: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_TOKEN", "verified")
    register_plan(factory.ledger, factory.operator, RUN, make_spec())
    digest = "a" * 64
    row = {"run": RUN, "row": "2026-01-01-a-row", "record_sha256": digest, "bundle_sha256": digest}
    assert factory.ledger.append_row(status="verified", **row) == 1
