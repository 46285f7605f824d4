from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from glasshouse.canonical import canonical_json, parse_json, sha256_hex
from glasshouse.errors import UsageError, VerificationError
from glasshouse.records import keys
from glasshouse.records import ledger as ledger_module
from glasshouse.records.keys import KeyEntry, Keyring, keyid, public_bytes
from glasshouse.records.leaf_bodies import (
    KINDS,
    JourneyBody,
    JourneyEndBody,
    JourneyLogBody,
    KeyBody,
    LeafBody,
    PlanBody,
    ReportedBody,
    RetractBody,
    RowBody,
    SupersedeBody,
)
from glasshouse.records.ledger import Ledger, check, check_leaves, parse_leaves, plan_leaf, prove_consistency
from glasshouse.records.signed_note import Checkpoint, open_note, parse_checkpoint
from tests.specs import make_spec

from .factory import Factory

KEY = Ed25519PrivateKey.generate()
ENTRY = KeyEntry(keyid(public_bytes(KEY)), "publisher", public_bytes(KEY), "publisher")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger", clock=lambda: 1000.25)


def register(ledger: Ledger, run: str) -> int:
    return ledger.register_plan(run, lambda serial, now: f"{run} {serial} {now}".encode()).serial


def row(ledger: Ledger, run: str, **changes: Any) -> int:
    values: dict[str, Any] = {"row": f"row-{run}", "status": "verified", "record_sha256": "0" * 64}
    return ledger.append_row(run=run, **(values | {"bundle_sha256": None} | changes))


def head(ledger: Ledger) -> Checkpoint:
    note = ledger.checkpoint(KEY)
    return parse_checkpoint(open_note(note, note.partition("\n")[0], [ENTRY]).text)


def codes(*arguments: Any) -> tuple[str, ...]:
    with pytest.raises(VerificationError) as caught:
        check(*arguments)
    return caught.value.codes


def test_plans_get_gapless_serials_and_name_them(ledger: Ledger) -> None:
    found = [ledger.register_plan(run, lambda serial, now: b"%d" % serial) for run in ("a", "b")]
    assert [(item.serial, item.envelope) for item in found] == [(0, b"0"), (1, b"1")]
    leaf = ledger.leaves()[1]
    assert leaf.data == plan_leaf("b", sha256_hex(b"1"), 1, 1000.25)
    assert parse_json(leaf.data) == leaf.body


def test_every_plan_is_open_until_its_row(ledger: Ledger) -> None:
    register(ledger, "a")
    register(ledger, "b")
    assert row(ledger, "a", status="excluded") == 2
    assert [leaf.body["run"] for leaf in ledger.open_plans()] == ["b"]
    assert ledger.leaves()[2].body["planSerial"] == 0


def test_a_run_has_one_plan_and_one_row(ledger: Ledger) -> None:
    register(ledger, "a")
    with pytest.raises(UsageError, match="already has a plan"):
        register(ledger, "a")
    row(ledger, "a")
    with pytest.raises(UsageError, match="no open plan"):
        row(ledger, "a")
    with pytest.raises(UsageError, match="no open plan"):
        row(ledger, "never-planned")


def test_a_plan_that_fails_to_sign_leaves_nothing(ledger: Ledger) -> None:
    def broken(serial: int, now: float) -> bytes:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        ledger.register_plan("a", broken)
    assert ledger.leaves() == ()
    assert register(ledger, "a") == 0


def test_statements_about_rows(ledger: Ledger) -> None:
    assert ledger.append(RetractBody("x", "2026-01-01", "why")) == 0
    for body in (PlanBody("a", "0" * 64), RowBody("a", "x", "verified", 0, "0" * 64, None)):
        with pytest.raises(UsageError, match=body.kind):
            ledger.append(body)
    with pytest.raises(UsageError, match="too large"):
        ledger.append(RetractBody("x", "2026-01-01", "x" * 20_000))


def said_of_keys(ledger: Ledger) -> list[tuple[int, object, object, object]]:
    keys = [leaf for leaf in ledger.leaves() if leaf.kind == "key"]
    return [(leaf.serial, leaf.body["keyid"], leaf.body["role"], leaf.body["state"]) for leaf in keys]


def test_a_rotation_is_entered_at_the_entry_from_which_it_counts(ledger: Ledger) -> None:
    register(ledger, "a")
    retired, added = ledger.rotate("operator")
    assert (retired.valid_until, added.valid_from) == (0, 1)
    assert said_of_keys(ledger) == [
        (1, retired.keyid, "operator", "retired"),
        (2, added.keyid, "operator", "added"),
    ]
    again, newest = ledger.rotate("operator")
    assert again.keyid == added.keyid
    assert said_of_keys(ledger)[2:] == [
        (3, added.keyid, "operator", "retired"),
        (4, newest.keyid, "operator", "added"),
    ]


def test_before_anything_was_entered_a_rotation_enters_nothing(ledger: Ledger) -> None:
    ledger.rotate("broker")
    assert ledger.leaves() == ()


def test_what_a_rotation_that_was_cut_off_left_out_is_entered_by_the_next(ledger: Ledger) -> None:
    register(ledger, "a")
    first, second = keys.rotate("broker", 1)  # and then the power went
    register(ledger, "b")
    _, third = ledger.rotate("broker")
    assert [item[1:] for item in said_of_keys(ledger)] == [
        (first.keyid, "broker", "retired"),
        (second.keyid, "broker", "retired"),
        (second.keyid, "broker", "added"),
        (third.keyid, "broker", "added"),
    ]


def test_a_journeys_keys_are_not_rotated(ledger: Ledger) -> None:
    ledger.append(JourneyLogBody("j", 7, 540, "ab", 3))
    before = keys.public_bytes(keys.operator_key())
    with pytest.raises(UsageError, match="not rotated"):
        ledger.rotate("operator")
    assert keys.public_bytes(keys.operator_key()) == before


WRITTEN: dict[bytes, LeafBody] = {
    b'{"artifactSha256":"ab","kind":"reported","row":"x","serial":0,"time":1000.25}': ReportedBody("x", "ab"),
    b'{"date":"2026-01-01","kind":"retract","reason":"why","row":"x","serial":0,"time":1000.25}': RetractBody(
        "x", "2026-01-01", "why"
    ),
    b'{"by":"y","date":"2026-01-01","kind":"supersede","reason":"why","row":"x","serial":0,'
    b'"time":1000.25}': SupersedeBody("x", "y", "2026-01-01", "why"),
    b'{"keyid":"ab","kind":"key","role":"witness","serial":0,"state":"retired","time":1000.25}': KeyBody(
        "ab", "witness", "retired"
    ),
    b'{"budgetSec":540,"commitment":"ab","journey":"j","kind":"journey","seed":7,"serial":0,'
    b'"time":1000.25}': JourneyBody("j", 7, 540, "ab"),
    b'{"budgetSec":540,"journey":"j","kind":"journey-log","openSerial":3,"openedIn":"ab","seed":7,'
    b'"serial":0,"time":1000.25}': JourneyLogBody("j", 7, 540, "ab", 3),
    b'{"checkpointSha256":"ef","journey":"j","kind":"journey-end","openSerial":3,"root":"cd","serial":0,'
    b'"size":5,"time":1000.25}': JourneyEndBody("j", 3, 5, "cd", "ef"),
}


@pytest.mark.parametrize(("line", "body"), WRITTEN.items(), ids=[body.kind for body in WRITTEN.values()])
def test_statements_are_written_in_these_bytes(line: bytes, body: LeafBody, ledger: Ledger) -> None:
    ledger.append(body)
    (leaf,) = ledger.leaves()
    assert (leaf.kind, leaf.data) == (body.kind, line)


def test_plans_and_rows_are_written_in_these_bytes(ledger: Ledger) -> None:
    register(ledger, "a")
    row(ledger, "a", bundle_sha256="ab")
    register(ledger, "b")
    row(ledger, "b")
    plan, ended, _, excluded = (leaf.data.decode() for leaf in ledger.leaves())
    digest, zeros = sha256_hex(b"a 0 1000.25"), "0" * 64
    assert plan == f'{{"kind":"plan","planSha256":"{digest}","run":"a","serial":0,"time":1000.25}}'
    assert ended == (
        f'{{"bundleSha256":"ab","kind":"row","planSerial":0,"recordSha256":"{zeros}","row":"row-a","run":"a",'
        '"serial":1,"status":"verified","time":1000.25}'
    )
    assert excluded.startswith('{"bundleSha256":null,"kind":"row",')
    assert {"plan", "row", *(body.kind for body in WRITTEN.values())} == set(KINDS)


def test_a_line_that_was_cut_off_is_dropped(tmp_path: Path, ledger: Ledger) -> None:
    register(ledger, "a")
    path = tmp_path / "ledger" / "leaves.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"kind":"plan"' + b"x" * 5000)
    assert len(ledger.leaves()) == 1
    assert register(ledger, "b") == 1
    assert path.read_bytes().startswith(whole)
    assert path.read_bytes().count(b"\n") == 2


def test_processes_share_the_serials(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from glasshouse.records.ledger import Ledger\n"
        "for i in range(8):\n"
        "    Ledger(Path(sys.argv[1])).register_plan(f'{sys.argv[2]}{i}', lambda serial, now: b'x')"
    )
    jobs = [subprocess.Popen([sys.executable, "-c", code, tmp_path / "l", name]) for name in "abc"]
    assert [job.wait(60) for job in jobs] == [0, 0, 0]
    leaves = Ledger(tmp_path / "l").leaves()
    assert [leaf.serial for leaf in leaves] == list(range(24))
    assert len({leaf.body["run"] for leaf in leaves}) == 24


def test_two_checkpoints_show_that_nothing_changed(ledger: Ledger) -> None:
    heads = [head(ledger)]
    for run in "abcdefg":
        register(ledger, run)
        heads.append(head(ledger))
    leaves = ledger.leaves()
    for old in heads:
        for new in heads[old.size :]:
            check(old, new, prove_consistency(leaves[: new.size], old.size))
        check_leaves(leaves, old)


def test_a_removed_or_altered_row_is_seen(tmp_path: Path, ledger: Ledger) -> None:
    for run in "abcd":
        register(ledger, run)
    row(ledger, "b")
    old, path = head(ledger), tmp_path / "ledger" / "leaves.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)

    path.write_bytes(b"".join(lines[:4]))  # the row silently removed, others added since
    register(ledger, "e")
    register(ledger, "f")
    new = head(ledger)
    assert codes(old, new, prove_consistency(ledger.leaves(), old.size)) == ("ledger-rewritten",)
    with pytest.raises(VerificationError):
        check_leaves(ledger.leaves(), old)

    path.write_bytes(b"".join(lines[:4]) + lines[4].replace(b"verified", b"excluded"))  # or altered
    assert codes(old, head(ledger), []) == ("ledger-rewritten",)

    path.write_bytes(b"".join(lines[:3]))  # or cut
    assert codes(old, head(ledger), []) == ("ledger-shrunk",)
    with pytest.raises(VerificationError, match="fewer leaves"):
        check_leaves(ledger.leaves(), old)


def test_checkpoints_of_two_logs_do_not_compare(ledger: Ledger) -> None:
    register(ledger, "a")
    other = Checkpoint("glasshouse/ledger/other", 1, head(ledger).root)
    assert codes(other, head(ledger), []) == ("ledger-other-log",)


def line(**changes: Any) -> bytes:
    return canonical_json({"kind": "plan", "run": "a", "serial": 0, "time": 1} | changes) + b"\n"


@pytest.mark.parametrize(
    "data",
    [
        line(serial=1),
        line() + line(),
        line()[:-1],
        line(kind="other"),
        line(run=5),
        b"[]\n",
        b"\n",
        line().replace(b":", b": "),
    ],
)
def test_malformed_ledgers(data: bytes) -> None:
    with pytest.raises(VerificationError) as caught:
        parse_leaves(data)
    assert caught.value.codes == ("ledger-malformed",)
    assert len(parse_leaves(line() + line(serial=1, run="b"))) == 2


def test_a_plans_place_can_be_shown_with_its_witnesses(factory: Factory) -> None:
    run, files = factory.parts(make_spec(order="protected-only"))
    digest = sha256_hex(files["plan.dsse.json"])
    found = parse_json(factory.inclusion(files, witnessed=True))
    arguments: dict[str, Any] = {
        "run": run,
        "plan_sha256": digest,
        "serial": 0,
        "time": factory.ledger.leaves()[0].body["time"],
        "keyring": factory.keyring,
    }

    def witnesses(**changes: Any) -> tuple[str, ...]:
        note = changes.pop("note", found["checkpoint"])
        return ledger_module.plan_witnesses(note, found["proof"], **(arguments | changes))

    assert witnesses() == ("witness.example/w1",)
    assert witnesses(note=parse_json(factory.inclusion(files))["checkpoint"]) == ()
    for changes in ({"run": "other"}, {"plan_sha256": "0" * 64}, {"time": 5.0}, {"serial": 1}):
        with pytest.raises(VerificationError) as caught:
            witnesses(**changes)
        assert caught.value.codes == ("ledger-not-included",)
    with pytest.raises(VerificationError) as caught:
        witnesses(keyring=Keyring())
    assert caught.value.codes == ("note-unsigned",)


def test_a_checkpoint_of_a_log_that_went_on_past_its_keys_retirement_shows_nothing(factory: Factory) -> None:
    run, files = factory.parts(make_spec(order="protected-only"))
    factory.parts(make_spec(order="protected-only"))
    found = parse_json(factory.inclusion(files))
    time = factory.ledger.leaves()[0].body["time"]
    publisher = factory.keyring.with_role("publisher")[0]
    others = tuple(entry for entry in factory.keyring.entries if entry != publisher)

    def shown(last: int) -> tuple[str, ...]:
        ring = Keyring((*others, replace(publisher, valid_until=last)))
        digest = sha256_hex(files["plan.dsse.json"])
        arguments: dict[str, Any] = {"run": run, "plan_sha256": digest, "serial": 0, "time": time}
        return ledger_module.plan_witnesses(found["checkpoint"], found["proof"], **arguments, keyring=ring)

    assert shown(1) == ()
    with pytest.raises(VerificationError) as caught:
        shown(0)
    assert caught.value.codes == ("ledger-signer-retired",)
