"""The barrier against values in the documented forms of two hundred kinds of secrets, and nothing real."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from glasshouse.canonical import canonical_json
from glasshouse.commands.confirm import confirmed
from glasshouse.errors import UsageError, VerificationError
from glasshouse.paths import Workspace
from glasshouse.publishing.artifact import Artifact, artifact_bytes
from glasshouse.publishing.from_bundle import artifact_from_verified
from glasshouse.publishing.pages import render
from glasshouse.records.leaf_bodies import RetractBody
from glasshouse.records.ledger import Ledger
from glasshouse.records.pod_strings import strangers
from glasshouse.records.secrets import require_clean, scan_file, scan_words
from tests.publishing.canaries import canaries
from tests.publishing.conftest import Run
from tests.publishing.test_pages import publication_of

PLANTED = canaries()
RESEARCH = Workspace.find().root / "site/research"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("the scan opened a socket")

    for name in ("socket", "create_connection", "getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, refused)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("seed", range(4))
def test_no_canary_passes_in_words_of_a_person_or_in_an_artifacts_text(seed: int) -> None:
    planted = canaries(seed)
    assert len(planted) >= 200
    passed = [name for name, _, value in planted if not scan_words(f"the pod wrote {value} there")]
    assert passed == []
    for name, _, value in planted:
        data = canonical_json({"retracted": {"reason": f"it said {value}"}})
        assert scan_file("artifacts/x.json", data, known=()), name


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, _, value in PLANTED[::9]])
def test_nothing_of_the_kind_is_entered_in_a_ledger(name: str, value: str, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    with pytest.raises(VerificationError, match="nothing was entered in the ledger") as caught:
        ledger.append(
            RetractBody("2026-11-21-local-auto-mlp", date="2026-11-22", reason=f"said {value} here")
        )
    assert value not in str(caught.value), name
    assert ledger.leaves() == ()


def test_the_real_publication_is_clean_and_each_string_of_its_pods_has_its_form() -> None:
    files = [path for path in sorted(RESEARCH.rglob("*")) if path.suffix in (".json", ".jsonl")]
    assert len(files) > 1300
    found = [
        item
        for path in files
        for item in scan_file(str(path.relative_to(RESEARCH)), path.read_bytes(), known=())
    ]
    assert found == []


def _events() -> tuple[str, list[dict[str, Any]]]:
    path = next(iter(sorted(RESEARCH.glob("bundles/2026-11-27*/legs/*-protected/events.jsonl"))))
    return "legs/s000-protected/events.jsonl", [json.loads(line) for line in path.read_bytes().splitlines()]


def _strings(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        return [found for key, item in value.items() for found in _strings(item, (*way, key))]
    if isinstance(value, list):
        return [found for index, item in enumerate(value) for found in _strings(item, (*way, index))]
    return [way] if isinstance(value, str) else []


def test_no_string_of_a_pod_can_carry_a_canary() -> None:
    """Each string of each event is replaced by canaries in turn; new fields and new names are tried, too."""
    name, events = _events()
    tried = turn = 0
    passed = []
    for event in events:
        for way in _strings(event):
            place = event
            for part in way[:-1]:
                place = place[part]
            kept = place[way[-1]]
            for _ in range(9):
                turn += 1
                what, _, value = PLANTED[turn % len(PLANTED)]
                place[way[-1]] = value
                tried += 1
                if not scan_file(name, canonical_json(event), known=()):
                    passed.append((what, way))
            place[way[-1]] = kept
        for what, _, value in PLANTED:
            for body in ({**event["body"], "said": value}, {**event["body"], value: 1}):
                tried += 1
                if not scan_file(name, canonical_json({**event, "body": body}), known=()):
                    passed.append((what, ("said",)))
    assert tried > 2000
    # What cannot be told apart: 64 digits of hex in a field that holds a digest.
    assert {what for what, _ in passed} <= {"Vast.ai API key"}


def test_what_a_pod_adds_in_depth_or_of_another_kind_is_found() -> None:
    name, events = _events()
    deep: Any = "x"
    for _ in range(40):
        deep = {"a": deep}
    for body in ({"note": "hello"}, {"a b": 1}, {"x": [["words"]]}, deep):
        found = list(strangers(name, {**events[0], "body": body}))
        assert found, body
    assert list(strangers(name, {"type": "unheard-of"})) == [("not-of-its-form", ".type")]
    assert list(strangers("plan.dsse.json", {"note": "hello"})) == []


def test_words_for_the_public_are_shown_as_they_will_stand_and_confirmed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def no(_: str) -> str:
        return "n"

    assert confirmed("the  pod's\nclock", "reason", yes=True) == "the pod's clock"
    assert "published, for ever, as: the pod's clock\n" in capsys.readouterr().err
    with pytest.raises(UsageError, match="nobody is there to confirm it"):
        confirmed("x", "reason", yes=False, interactive=False)
    with pytest.raises(UsageError, match="not confirmed"):
        confirmed("x", "reason", yes=False, interactive=True, ask=no)
    assert confirmed("x", "reason", yes=False, interactive=True, ask=lambda _: "Y ") == "x"
    for what, _, value in PLANTED[::11]:
        with pytest.raises(UsageError) as caught:
            confirmed(f"it said {value}", "reason", yes=True)
        assert value not in str(caught.value), what
        assert value not in capsys.readouterr().err, what


@pytest.mark.parametrize(
    "words",
    [
        "the pod's clock was wrong, by 12:30:45 in all",
        "superseded by 2026-11-27-local-h100-mlp-large-29.6s-abba-5v2ple, of run 20261127-135005-5v2ple",
        "torch 2.13.0 on driver 580.159.04, kernel 6.18.44-fc-v657-gpu, Qwen/Qwen2.5-0.5B-Instruct",
        "see site/method.md and events.jsonl; measure.margin_pct=2 was too wide, std::vector aside",
        "GPU 00000000:00:06.0 was shared; /proc/self/mem and /dev/shm were not",
        "an RTX 4090 at 1980 MHz, 450 W, 24 GB: thermal throttling from minute 3 on (0x0000000000000004)",
    ],
)
def test_what_people_really_write_passes(words: str) -> None:
    assert scan_words(words) == ()
    require_clean({"x.json": canonical_json({"reason": words})}, known=())


def test_a_row_with_withheld_values_says_so_in_place_of_a_command(
    make_run: Run, reported: tuple[Artifact, ...]
) -> None:
    model = {
        "kind": "custom", "name": "mine", "entry": "secret/train.py:Diffusion", "data": ("patients.csv",),
        "params": {"lr": 3e-4},
    }  # fmt: skip
    _, row = make_run(model=model, payload="public")
    artifact = artifact_from_verified(row)
    assert artifact.command is None
    assert artifact.withheld == ("model.entry", "model.data", "model.params")
    require_clean({"artifacts/x.json": artifact_bytes(artifact), **row.files}, known=())
    page = render(publication_of((*reported, artifact)))[f"rows/{artifact.id}.md"].decode()
    assert "No command repeats it: model.entry, model.data, model.params are withheld." in page
    assert "Repeat the run" not in page
    assert "patients" not in page
