"""What a bundle's verification must catch from someone who holds the signing key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from glasshouse.attestation.claims import Reference
from glasshouse.attestation.tokens import EAR_TYP, read_jws, sign_jws, thumbprint
from glasshouse.canonical import canonical_json, parse_json
from glasshouse.judgement.rules import METHOD
from glasshouse.records.bundle import ENVELOPE, PLAN, RECORD
from glasshouse.records.exchange import verify_exchange
from glasshouse.records.signing import PLAN_TYPE, open_statement, sign_statement
from glasshouse.records.verify import Verification, verify
from glasshouse.schema import Exchange
from tests.specs import make_spec

from .conftest import Made
from .factory import Factory, edited
from .ruin import asked_by, failed, read, resign

RAW, PROTECTED = "legs/s000-raw/", "legs/s001-protected/"


Change = Callable[[dict[str, bytes]], Any]


def forged(made: Made, folder: Path, change: Change, **predicate: Any) -> dict[str, str]:
    files = read(made.folder)
    change(files)
    resign(made.factory, folder, files, **predicate)
    return failed(made, folder)


def set_figure(files: dict[str, bytes]) -> None:
    record = parse_json(files[RECORD])
    record["figures"]["overheadPct"] = 0.1
    files[RECORD] = canonical_json(record)


def drop_caveats(files: dict[str, bytes]) -> None:
    files[RECORD] = edited(files[RECORD], caveats=[])


def faster(files: dict[str, bytes]) -> None:
    result = parse_json(files[RAW + "result.json"])
    files[RAW + "result.json"] = canonical_json(result | {"units": result["units"] + 10})


def faster_protected(files: dict[str, bytes]) -> None:
    name = PROTECTED + "events.jsonl"
    files[name] = files[name].replace(b'"units":600', b'"units":660')


def drop_event(files: dict[str, bytes]) -> None:
    lines = files[PROTECTED + "events.jsonl"].splitlines(keepends=True)
    files[PROTECTED + "events.jsonl"] = b"".join(lines[:3] + lines[4:])


def reorder_events(files: dict[str, bytes]) -> None:
    lines = files[PROTECTED + "events.jsonl"].splitlines(keepends=True)
    files[PROTECTED + "events.jsonl"] = b"".join([*lines[:2], lines[3], lines[2], *lines[4:]])


def drop_heads(files: dict[str, bytes]) -> None:
    files[PROTECTED + "heads.jsonl"] = files[PROTECTED + "heads.jsonl"].splitlines(keepends=True)[-1]


def other_reference(files: dict[str, bytes]) -> None:
    name = PROTECTED + "reference.json"
    files[name] = edited(files[name], runtime_sha256="0" * 64)


def other_evidence(files: dict[str, bytes]) -> None:
    name = PROTECTED + "exchange.json"
    evidence = parse_json(files[name])["evidence"]
    files[name] = edited(files[name], evidence=evidence[:-8] + "AAAAAAAA")


def other_asker(files: dict[str, bytes], broker: Ed25519PrivateKey) -> None:
    name = PROTECTED + "exchange.json"
    files[name] = asked_by(files[name], broker, cnf={"jkt": thumbprint(bytes(32))})


def not_released(files: dict[str, bytes]) -> None:
    files["release.json"] = edited(files["release.json"], proof="unknown")


def slept(files: dict[str, bytes]) -> None:
    files[PROTECTED + "launch.json"] = edited(files[PROTECTED + "launch.json"], endedAt=9e9)


def another_machine(files: dict[str, bytes]) -> None:
    machine = parse_json(files["allocation.json"])["machine"]
    files["allocation.json"] = edited(files["allocation.json"], machine=machine | {"bootId": "other"})


def no_evidence(files: dict[str, bytes]) -> None:
    for name in ("exchange.json", "reference.json", "events.jsonl", "heads.jsonl"):
        del files[PROTECTED + name]


@pytest.mark.parametrize(
    "change",
    [set_figure, drop_caveats, faster, faster_protected, drop_event, reorder_events, drop_heads,
     other_reference, other_evidence, not_released, another_machine, no_evidence],
)  # fmt: skip
def test_a_signed_record_that_does_not_follow_from_its_evidence_fails(
    made: Made, tmp_path: Path, change: Change
) -> None:
    assert RECORD in forged(made, tmp_path / "forged", change)["record-recomputed"]


def test_evidence_by_another_key_than_the_one_that_asked_fails(made: Made, tmp_path: Path) -> None:
    """Forged by who holds the broker's key and the operator's."""
    found = forged(made, tmp_path / "forged", lambda files: other_asker(files, made.factory.broker_key))
    assert RECORD in found["record-recomputed"]
    assert "event-key-mismatch" in found["leg-evidence"]


@pytest.mark.parametrize(
    ("cnf", "codes"),
    [
        (
            {"cnf": {"jkt": thumbprint(bytes(32))}},
            ("ear-differs", "event-key-mismatch", "released-on-refusal"),
        ),
        ({"cnf": {}}, ("ear-differs", "event-key-mismatch", "released-on-refusal")),
        ({"cnf": None}, ("malformed-challenge",)),
        ({}, ()),  # as brokers signed before they named the key
    ],
)
def test_an_exchange_is_held_to_the_key_that_its_challenge_names(
    made: Made, cnf: dict[str, Any], codes: tuple[str, ...]
) -> None:
    files = read(made.folder)
    reference = Reference.from_dict(parse_json(files[PROTECTED + "reference.json"]))
    policy, keyring = make_spec().policy, made.factory.keyring
    honest = files[PROTECTED + "exchange.json"]
    for data, expected in ((honest, ()), (asked_by(honest, made.factory.broker_key, **cnf), codes)):
        exchange = Exchange.model_validate_json(data)
        assert verify_exchange(exchange, reference, policy, keyring).codes == expected


@pytest.mark.parametrize(
    ("verifier", "codes"),
    [
        ({"developer": "glasshouse", "build": "glasshouse 0.0.1"}, ()),
        ({"developer": "glasshouse", "build": "glasshouse 12.3.0rc1+local"}, ()),
        ({"developer": "glasshouse", "build": "glasshouse"}, ("ear-differs",)),
        ({"developer": "glasshouse", "build": "glasshouse 1\n"}, ("ear-differs",)),
        ({"developer": "glasshouse", "build": 1}, ("ear-differs",)),
        ({"developer": "another", "build": "glasshouse 0.1.0"}, ("ear-differs",)),
        ({"developer": "glasshouse", "build": "glasshouse 0.1.0", "more": 1}, ("ear-differs",)),
        ("glasshouse 0.1.0", ("ear-differs",)),
    ],
)
def test_a_result_verifies_under_any_release_of_ours_and_under_no_other_verifier(
    made: Made, verifier: object, codes: tuple[str, ...]
) -> None:
    files = read(made.folder)
    reference = Reference.from_dict(parse_json(files[PROTECTED + "reference.json"]))
    exchange = Exchange.model_validate_json(files[PROTECTED + "exchange.json"])
    claims = read_jws(exchange.ear, EAR_TYP, what="ear").claims
    signed = sign_jws(claims | {"ear.verifier-id": verifier}, made.factory.broker_key, EAR_TYP)
    again = exchange.model_copy(update={"ear": signed, "grant": None})  # it binds the result's bytes
    found = verify_exchange(again, reference, make_spec().policy, made.factory.keyring)
    assert found.codes == (codes or ("exchange-refused",))  # it is sound, and released nothing


def test_a_record_of_an_unknown_method_fails(made: Made, tmp_path: Path) -> None:
    for method in (0, METHOD + 1, None, True, "1"):

        def change(files: dict[str, bytes], method: Any = method) -> None:
            files[RECORD] = edited(files[RECORD], method=method)

        assert "record-method" in forged(made, tmp_path / "forged", change)


def another_run(files: dict[str, bytes]) -> None:
    files[RECORD] = edited(files[RECORD], run="20260101-000000-aaaaaa")


def test_the_statement_names_run_plan_and_record(made: Made, tmp_path: Path) -> None:
    assert "statement" in forged(made, tmp_path / "a", another_run)
    for changes in ({"recordSha256": "0" * 64}, {"planSha256": "0" * 64}, {"createdAt": "now"}, {"more": 1}):
        assert "statement" in forged(made, tmp_path / "b", lambda files: None, **changes)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("allocation.json", {"host": "10.0.0.1"}),
        ("allocation.json", {"gpuModel": "x\ny"}),
        ("allocation.json", {"provider": "other"}),
        ("release.json", {"detail": "x" * 400}),
        ("release.json", {"active": -1}),
        ("outcome.json", {"codes": ["Not A Code"]}),
        ("outcome.json", {"startedAt": None}),
        (RAW + "launch.json", {"launch": 0}),
        (RAW + "launch.json", {"timings": {"path/to": 1}}),
        (PROTECTED + "exchange.json", {"ticketSha256": "x"}),
        (PROTECTED + "reference.json", {"leg": None, "extra": 1}),
        ("inclusion.json", {"proof": ["zz"]}),
    ],
)
def test_files_of_another_shape_fail(made: Made, tmp_path: Path, name: str, changes: dict[str, Any]) -> None:
    def change(files: dict[str, bytes]) -> None:
        files[name] = edited(files[name], **changes)

    assert name in forged(made, tmp_path / "forged", change)["file-malformed"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda f: f.update({RAW + "launch.json": edited(f[RAW + "launch.json"], slot=1)}), "leg-misplaced"),
        (
            lambda f: f.update({RAW + "launch.json": edited(f[RAW + "launch.json"], arm="protected")}),
            "leg-misplaced",
        ),
        (
            lambda f: f.update({RAW + "launch.json": edited(f[RAW + "launch.json"], launch=2)}),
            "launches-incomplete",
        ),
        (
            lambda f: f.update({RAW + "launch.json": edited(f[RAW + "launch.json"], startedAt=5)}),
            "leg-before-plan",
        ),
        (lambda f: f.update({"legs/s005-raw/launch.json": f[RAW + "launch.json"]}), "leg-not-planned"),
        (lambda f: f.update({"legs/s000-protected/launch.json": f[RAW + "launch.json"]}), "leg-not-planned"),
        (lambda f: f.update({RAW[:-1] + "-l1/launch.json": f[RAW + "launch.json"]}), "launches-incomplete"),
        (lambda f: f.update({RAW[:-1] + "-l2/launch.json": f[RAW + "launch.json"]}), "leg-misplaced"),
        (lambda f: f.pop(RAW + "launch.json"), "file-missing"),
        (lambda f: f.pop(PROTECTED + "reference.json"), "file-missing"),
        (lambda f: f.update({RAW + "exchange.json": f[PROTECTED + "exchange.json"]}), "file-unlisted"),
        (lambda f: f.update({PROTECTED + "result.json": f[RAW + "result.json"]}), "file-unlisted"),
        (
            lambda f: f.update({"inclusion.json": edited(f["inclusion.json"], proof=["0" * 64])}),
            "plan-in-ledger",
        ),
    ],
)
def test_legs_that_are_not_where_the_plan_puts_them_fail(
    made: Made, tmp_path: Path, change: Change, code: str
) -> None:
    assert code in forged(made, tmp_path / "forged", change)


def plan_again(made: Made, **changes: Any) -> Change:
    def change(files: dict[str, bytes]) -> None:
        opened = open_statement(files[PLAN], made.factory.keyring, role="operator", predicate_type=PLAN_TYPE)
        key = changes.pop("key", made.factory.operator)
        subjects = changes.pop("subjects", opened.subjects)
        files[PLAN] = sign_statement(key, PLAN_TYPE, {**opened.predicate, **changes}, subjects)
        files.pop("inclusion.json")

    return change


def test_a_plan_written_afterwards(made: Made, tmp_path: Path) -> None:
    stranger = Ed25519PrivateKey.generate()
    assert "plan-signature" in forged(made, tmp_path / "a", plan_again(made, key=stranger))
    assert "plan-form" in forged(made, tmp_path / "b", plan_again(made, more=1))
    assert "plan-form" in forged(made, tmp_path / "c", plan_again(made, subjects={"spec": "0" * 64}))
    assert "schedule-from-seed" in forged(made, tmp_path / "d", plan_again(made, schedule=[]))
    assert "leg-before-plan" in forged(made, tmp_path / "e", plan_again(made, registeredAt=9e9))
    found = forged(made, tmp_path / "f", plan_again(made, run="20260101-000000-aaaaaa"))
    assert "statement" in found

    # A plan re-signed after the fact does not stand in the ledger that was signed.
    def keep_inclusion(files: dict[str, bytes]) -> None:
        inclusion = files["inclusion.json"]
        plan_again(made, registeredAt=1.0)(files)
        files["inclusion.json"] = inclusion

    assert "plan-in-ledger" in forged(made, tmp_path / "g", keep_inclusion)


def test_two_operators_in_one_bundle_fail(made: Made, tmp_path: Path) -> None:
    second = Factory(tmp_path)
    ring = made.factory.keyring + second.keyring
    files = read(made.folder)
    resign(second, tmp_path / "forged", files)
    assert "plan-signer" in failed(made, tmp_path / "forged", ring)


def test_legs_swapped_between_slots_are_seen(tmp_path: Path) -> None:
    """Exchange, events and result of one protected slot under another slot's name."""
    factory = Factory(tmp_path)
    run, files = factory.parts(make_spec(order="abba", duration=32.0))
    factory.write(tmp_path / "good", run, files)
    content = read(tmp_path / "good")
    protected = sorted({name.split("/")[1] for name in files if "-protected/" in name})
    one, other = (f"legs/{name}/" for name in protected[:2])
    for name in ("exchange.json", "reference.json", "events.jsonl", "heads.jsonl"):
        content[one + name], content[other + name] = content[other + name], content[one + name]
    resign(factory, tmp_path / "forged", content)
    found = verify(tmp_path / "forged", factory.keyring)
    details = " ".join(check.detail for check in found.checks if not check.ok)
    assert not found.ok
    assert "reference-of-another-launch" in details
    assert "exchange-outside-launch" in details
    assert "head-other-leg" in details


def test_an_exchange_of_another_run_is_seen(tmp_path: Path) -> None:
    factory = Factory(tmp_path)
    spec = make_spec(order="protected-only")
    (first, one), (second, other) = factory.parts(spec), factory.parts(spec)
    assert first != second
    factory.write(tmp_path / "good", first, one)
    content = read(tmp_path / "good")
    for name in ("exchange.json", "reference.json", "events.jsonl", "heads.jsonl"):
        content[f"legs/s000-protected/{name}"] = other[f"legs/s000-protected/{name}"]
    resign(factory, tmp_path / "forged", content)
    found = verify(tmp_path / "forged", factory.keyring)
    assert "reference-of-another-launch" in " ".join(check.detail for check in found.checks if not check.ok)


def test_verification_never_raises_for_what_a_bundle_holds(made: Made, tmp_path: Path) -> None:
    """Signed nonsense in any file is a failed check, not a crash."""
    for name in read(made.folder):
        if name == ENVELOPE:
            continue
        values: tuple[Any, ...] = (None, [], {}, "x")
        for value in values:
            files = read(made.folder)
            files[name] = canonical_json(value) + (b"\n" if name.endswith("jsonl") else b"")
            predicate = {"run": made.run}
            try:
                resign(made.factory, tmp_path / "forged", files, **predicate)
            except (TypeError, KeyError):
                continue  # the record itself names no run any more
            found = verify(tmp_path / "forged", made.factory.keyring)
            assert isinstance(found, Verification)
            assert not found.ok, (name, value)
