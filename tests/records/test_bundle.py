from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from glasshouse.canonical import canonical_json, parse_json
from glasshouse.errors import GlasshouseError, VerificationError
from glasshouse.judgement.judge import Judgement
from glasshouse.records.keys import Keyring
from glasshouse.records.plan import public_spec
from glasshouse.records.signing import PLAN_TYPE, open_statement
from glasshouse.records.verify import Verification, verify
from tests.specs import make_spec

from .conftest import Made
from .factory import Factory, Leg, edited

WIPED = {name: {"readBackZero": True} for name in ("host", "device", "package")}


def bundled(factory: Factory, spec: Any, legs: Any = None, **changes: Any) -> tuple[Judgement, Verification]:
    """Write a run's bundle and verify it: what was written must always verify as what it is."""
    run, files = factory.parts(spec, legs, **changes)
    folder = factory.folder / run
    judgement = factory.write(folder, run, files)
    found = verify(folder, factory.keyring)
    assert found.ok, [check for check in found.checks if not check.ok]
    assert found.require().judgement == judgement
    return judgement, found


def codes(judgement: Judgement) -> set[str]:
    return {check.code for check in judgement.exclusion}


def test_orders_that_go_well_are_verified(factory: Factory) -> None:
    for changes in (
        {},
        {"order": "protected-first"},
        {"duration": None, "steps": 2000},
        {"order": "protected-only"},
    ):
        judgement, found = bundled(factory, make_spec(**changes))
        assert (judgement.status, judgement.exclusion, found.status) == ("verified", (), "verified")
        assert (found.overhead_pct is None) == (changes.get("order") == "protected-only")


def test_blocks_give_an_interval(factory: Factory) -> None:
    spec = make_spec(order="abba", duration=32.0, measure={"burn_in_slots": 1})
    legs = {}
    for index in range(1 + 4 * 8):
        legs[index] = Leg(rate=100.0 + index % 3)
    judgement, _ = bundled(factory, spec, legs)
    assert judgement.status == "verified", judgement.exclusion
    overhead = judgement.figures.overhead
    assert overhead is not None
    assert (overhead.n, overhead.method, overhead.blocks) == (8, "t-blocks", 8)
    assert overhead.ci_low_pct < judgement.figures.overhead_pct < overhead.ci_high_pct
    assert not {"single-sample", "order-confounded"} & set(judgement.caveats)


def test_controls_run_without_lifecycle(factory: Factory) -> None:
    judgement, _ = bundled(factory, make_spec(control="aa"))
    assert judgement.status == "verified"
    assert judgement.figures.control.kind == "aa"
    assert judgement.row.split("-raw-first-")[1].startswith("aa-")
    assert "no-control" not in judgement.caveats


@pytest.mark.parametrize(
    ("leg", "expected"),
    [
        (Leg(claims={"runtime_state": "trusted"}, status="failed", code="attestation-refused"),
         {"protected-incomplete", "attestation-not-verified", "attestation-refused"}),
        (Leg(status="failed", code="workload-error"),
         {"protected-incomplete", "workload-error", "runtime-not-zeroized"}),
        (Leg(zeroized={"tmpfsRemoved": False}), {"runtime-not-zeroized"}),
        (Leg(zeroized={"trainerExit": -9}), {"runtime-not-zeroized"}),
        (Leg(zeroized={"custodianExit": None}), {"runtime-not-zeroized"}),
        (Leg(zeroized={"buffers": WIPED | {"host": {"readBackZero": False}}}), {"runtime-not-zeroized"}),
        (Leg(zeroized={"buffers": {}}), {"event-chain-broken", "runtime-not-zeroized"}),
        (
            Leg(zeroized={"buffers": {"host": WIPED["host"], "device": WIPED["device"]}}),
            {"event-chain-broken", "runtime-not-zeroized"},
        ),
        (Leg(zeroized={"needles": "none"}), {"runtime-not-zeroized", "event-chain-broken"}),
        (Leg(events=lambda items: [*items[:5], *items[6:]]), {"event-chain-broken"}),
        (Leg(events=lambda items: items[:-1]), {"event-chain-broken", "runtime-not-zeroized"}),
        (Leg(events=lambda items: [*items[:4], items[-1]]),
         {"event-chain-broken", "protected-incomplete"}),
        (Leg(result={"finalLoss": None}), {"final-loss-missing"}),
        (Leg(result={"lossCurve": [[1, None]]}), {"non-finite-loss"}),
        (Leg(result={"outputDiffers": False}), {"adapter-unchanged"}),
        (Leg(result={"workloadDigest": "0" * 64}), {"workload-digest-mismatch"}),
        (Leg(result={"initialDigest": "0" * 64}), {"initial-weights-mismatch"}),
        (Leg(result={"units": "many"}), {"protected-incomplete", "result-malformed"}),
        (Leg(reference={"boot_id": "other"}), {"attestation-not-verified", "same-machine-not-proven"}),
        (Leg(reference={"image_digest": "sha256:" + "0" * 64}), {"attestation-not-verified"}),
        (Leg(reference={"host_key": "first-use"}), {"attestation-not-verified"}),
    ],
)  # fmt: skip
def test_a_protected_leg_that_goes_wrong_is_an_excluded_row(
    factory: Factory, leg: Leg, expected: set[str]
) -> None:
    judgement, found = bundled(factory, make_spec(), {1: leg})
    assert codes(judgement) == expected
    assert (found.status, found.overhead_pct) == ("excluded", None)


@pytest.mark.parametrize(
    ("leg", "expected"),
    [
        ([], {"raw-incomplete"}),
        (Leg(status="failed", code="leg-deadline"), {"raw-incomplete", "leg-deadline"}),
        (Leg(raw_removed=False), {"raw-files-not-removed"}),
        (Leg(result={"device": "cuda"}), {"gpu-not-as-asked"}),
        (Leg(result={"elapsedSec": 90}), {"duration-out-of-tolerance"}),
        (Leg(result={"steps": "x"}), {"raw-incomplete", "result-malformed"}),
    ],
)
def test_a_raw_leg_that_goes_wrong_is_an_excluded_row(factory: Factory, leg: Any, expected: set[str]) -> None:
    judgement, _ = bundled(factory, make_spec(), {0: leg})
    assert codes(judgement) == expected


def test_a_launch_that_is_repeated_counts_once(factory: Factory) -> None:
    refused = Leg(claims={"hardening": {}}, status="failed", code="attestation-refused")
    judgement, found = bundled(factory, make_spec(), {1: [refused, Leg()]})
    assert judgement.status == "verified"
    assert "relaunched" in judgement.caveats
    assert judgement.figures.relaunched == 1
    details = [check.detail for check in found.checks if check.code == "leg-evidence"]
    assert any("launch 1: found" in item and "as the record says" in item for item in details)


def test_a_launch_that_failed_after_release_excludes_even_when_repeated(factory: Factory) -> None:
    judgement, _ = bundled(factory, make_spec(), {1: [Leg(status="failed", code="workload-error"), Leg()]})
    assert codes(judgement) == {"runtime-not-zeroized"}


def test_runs_that_end_early_are_recorded(factory: Factory) -> None:
    judgement, _ = bundled(factory, make_spec(), {0: [], 1: []}, codes=["boot-failed"])
    incomplete = {"raw-incomplete", "protected-incomplete", "attestation-not-verified"}
    assert codes(judgement) == {*incomplete, "boot-failed"}
    run, files = factory.parts(make_spec(), {0: [], 1: []}, codes=["interrupted"])
    del files["allocation.json"], files["release.json"]
    judgement = factory.write(factory.folder / run, run, files)
    assert {"interrupted", "cleanup-not-proven"} <= codes(judgement)
    assert verify(factory.folder / run, factory.keyring).status == "excluded"


def test_release_and_allocation_enter_the_judgement(factory: Factory) -> None:
    judgement, _ = bundled(factory, make_spec(), release={"proof": "nonzero", "active": 1})
    assert codes(judgement) == {"cleanup-not-proven"}
    judgement, _ = bundled(factory, make_spec(), allocation={"hostKeySource": "first-use"})
    assert judgement.status == "verified"
    assert "host-key-tofu" in judgement.caveats


def test_long_gaps_and_witnesses_enter_the_caveats(factory: Factory) -> None:
    judgement, _ = bundled(factory, make_spec(), {1: Leg(head_every_sec=4.0)})
    assert "event-gap" in judgement.caveats
    assert judgement.figures.max_event_gap_sec == 4.0
    run, files = factory.parts(make_spec())
    files["inclusion.json"] = factory.inclusion(files, witnessed=True)
    judgement = factory.write(factory.folder / run, run, files)
    assert not {"unwitnessed", "event-gap"} & set(judgement.caveats)
    assert verify(factory.folder / run, factory.keyring).ok


def test_a_witness_that_the_verifier_does_not_know_does_not_count(factory: Factory) -> None:
    run, files = factory.parts(make_spec(order="protected-only"))
    files["inclusion.json"] = factory.inclusion(files, witnessed=True)
    factory.write(factory.folder / run, run, files)
    ring = Keyring(tuple(entry for entry in factory.keyring.entries if entry.role != "witness"))
    assert not verify(factory.folder / run, ring).ok


# --- writing --------------------------------------------------------------------------------


def test_a_bundle_is_never_overwritten_and_leaves_nothing_half_done(made: Made, tmp_path: Path) -> None:
    with pytest.raises(GlasshouseError, match="never overwritten"):
        made.factory.write(made.folder, made.run, made.files)
    with pytest.raises(GlasshouseError, match="would not verify"):
        made.factory.write(tmp_path / "x", made.run, {**made.files, "outcome.json": b"{}"})
    assert list(tmp_path.iterdir()) == []
    assert [path.name for path in made.folder.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    ("name", "data"),
    [("notes.txt", b"{}"), ("record.json", b"{}"), ("bundle.dsse.json", b"{}"), ("../x.json", b"{}"),
     ("release.json", b'{"a": 1}'), ("legs/s000-raw/events.jsonl", b"{}")],
)  # fmt: skip
def test_what_does_not_belong_is_refused(made: Made, tmp_path: Path, name: str, data: bytes) -> None:
    with pytest.raises(GlasshouseError):
        made.factory.write(tmp_path / "x", made.run, {**made.files, name: data})
    assert list(tmp_path.iterdir()) == []


def test_another_runs_files_or_an_unknown_key_are_refused(made: Made, tmp_path: Path) -> None:
    with pytest.raises(GlasshouseError, match="another run"):
        made.factory.write(tmp_path / "x", "20260101-000000-aaaaaa", made.files)
    with pytest.raises(VerificationError):
        made.factory.write(tmp_path / "x", made.run, made.files, keyring=Keyring())


def test_private_fields_have_no_place(made: Made, tmp_path: Path) -> None:
    """The allow-list: a host, a port, an account or a path in a controller's file is refused."""
    for name in ("allocation.json", "release.json", "outcome.json", "legs/s000-raw/launch.json"):
        for field in ("host", "port", "user", "path"):
            files = {**made.files, name: edited(made.files[name], **{field: "x"})}
            with pytest.raises(GlasshouseError, match="would not verify"):
                made.factory.write(tmp_path / "x", made.run, files)


# --- plan -----------------------------------------------------------------------------------


def test_the_plan_withholds_where_things_are(factory: Factory) -> None:
    secret = "build-7.internal.example"
    spec = make_spec(
        provider={"kind": "ssh", "host": secret, "port": 2222, "user": "alice", "key": "/home/alice/.ssh/id",
                  "known_hosts": "/home/alice/known", "python": "/opt/py", "workdir": "/data/alice"},
        model={"kind": "custom", "name": "mine", "entry": "/home/alice/job.py:Work", "data": ["/home/a"]},
    )  # fmt: skip
    run, files = factory.parts(spec)
    opened = open_statement(
        files["plan.dsse.json"], factory.keyring, role="operator", predicate_type=PLAN_TYPE
    )
    text = canonical_json(opened.predicate)
    for word in (secret, "alice", "2222", "/opt", "/data", "/home"):
        assert word.encode() not in text
    assert re.fullmatch(r"withheld-[0-9a-f]{64}\.py:Withheld", opened.predicate["spec"]["model"]["entry"])
    assert b"job.py" not in text
    shown = public_spec(spec)
    assert public_spec(shown) == shown
    factory.write(factory.folder / run, run, files)
    assert verify(factory.folder / run, factory.keyring).ok
    cloud = make_spec(
        provider={"kind": "runpod", "base_url": "http://127.0.0.1:9000", "image": "x@sha256:" + "0" * 64},
        gpu={"name": "h100", "provider_names": {"runpod": "NVIDIA H100 80GB HBM3"}},
    )
    assert "127.0.0.1" not in public_spec(cloud).model_dump_json()
    assert public_spec(make_spec(provider={"kind": "local", "python": "/usr/bin/python3"})) == make_spec()


def test_the_plan_holds_everything_that_was_fixed(factory: Factory) -> None:
    spec = make_spec(order="abba", duration=32.0)
    run, files = factory.parts(spec)
    opened = open_statement(
        files["plan.dsse.json"], factory.keyring, role="operator", predicate_type=PLAN_TYPE
    )
    plan = opened.predicate
    assert set(plan) == {"run", "spec", "schedule", "serial", "registeredAt", "version"}
    assert (plan["run"], plan["serial"], len(plan["schedule"])) == (run, 0, 32)
    assert parse_json(spec.model_dump_json()) == plan["spec"]
