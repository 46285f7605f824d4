"""From which checkpoint a job goes on, and from which it does not: each fault has its own reason code."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glasshouse import config
from glasshouse.attestation.evidence import parse_evidence
from glasshouse.canonical import canonical_json, parse_json, sha256_hex
from glasshouse.errors import GlasshouseError, UsageError
from glasshouse.lifecycle import restore
from glasshouse.lifecycle.continued import Origin
from glasshouse.lifecycle.follow import EventLog
from glasshouse.lifecycle.resumed import operators
from glasshouse.records import keys
from glasshouse.records.chain import sign_head
from glasshouse.records.signing import BUNDLE_TYPE, sign_statement
from glasshouse.schema import Exchange
from tests.lifecycle import checkpoint_kit
from tests.lifecycle.checkpoint_kit import Died, died
from tests.specs import make_spec

JOB = make_spec(order="protected-only", payload="private", duration=None, steps=100)
THREE = [{"a.txt": b"one"}, {"a.txt": b"two"}, {"a.txt": b"three"}]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Died:
    monkeypatch.setenv("GLASSHOUSE_HOME", str(tmp_path / "home"))
    return died(tmp_path, JOB, THREE, steps=[20, 40, 60])


def pick(run: Died, number: int | None = None, **policy: bool) -> restore.Good:
    return restore.pick(
        run.folder, run.run, JOB, JOB.policy.model_copy(update=policy), number=number, operators=operators()
    )


def refusal(run: Died, number: int | None = None, **policy: bool) -> restore.RefusedError:
    with pytest.raises(restore.RefusedError) as caught:
        pick(run, number, **policy)
    return caught.value


def test_the_newest_is_taken_with_what_its_event_says(run: Died) -> None:
    good = pick(run)
    assert (good.stored.number, good.steps, good.whole, good.witnessed) == (3, 60, True, True)
    assert good.sha256 == sha256_hex(run.place(3).read_bytes())
    assert good.progress[-1] == (30.0, 3)


def test_one_of_a_number_is_taken(run: Died) -> None:
    assert pick(run, 1).steps == 20


def test_a_number_that_is_not_here_is_named_with_those_that_are(run: Died) -> None:
    with pytest.raises(UsageError, match=rf"from=.*@9.*from={run.run}@3, from={run.run}@2"):
        pick(run, 9)


def test_a_run_without_checkpoints_says_who_makes_them(run: Died) -> None:
    shutil.rmtree(run.folder / "checkpoints")
    with pytest.raises(UsageError, match="no checkpoint of this run is here"):
        pick(run)


def test_one_older_than_was_countersigned_is_taken_only_by_its_number(run: Died) -> None:
    run.drop(3)
    error = refusal(run)
    assert error.code == "checkpoint-older"
    assert "number 3, which was countersigned" in error.line()
    assert f"from={run.run}@2 goes on" in error.line()
    assert error.exit_code == 1
    assert pick(run, 2).stored.number == 2


def test_a_later_one_that_nobody_countersigned_does_not_make_it_older(run: Died) -> None:
    run.drop(3)
    heads = run.leg("heads.jsonl").read_bytes().splitlines(keepends=True)
    run.leg("heads.jsonl").write_bytes(b"".join(heads[:9]))
    run.sign()
    assert pick(run).stored.number == 2


def test_a_rolled_back_store_is_older_than_its_countersigned_events(run: Died) -> None:
    """Somebody put the set of number 2 back in the place of all."""
    run.drop(3)
    run.drop(1)
    assert refusal(run).code == "checkpoint-older"


def cut(run: Died) -> None:
    run.place(3).write_bytes(run.place(3).read_bytes()[:-1])


def flipped(run: Died) -> None:
    data = bytearray(run.place(3).read_bytes())
    data[len(data) // 2] ^= 1
    run.place(3).write_bytes(data)


def gone(run: Died) -> None:
    run.place(3).unlink()
    run.place(3).mkdir()


def older_under_its_name(run: Died) -> None:
    run.place(3).write_bytes(run.place(2).read_bytes())


def whole_set_renamed(run: Died) -> None:
    for what in ("sealed", "events.jsonl", "heads.jsonl"):
        run.place(3, what).write_bytes(run.place(2, what).read_bytes())


def of_another_run(run: Died) -> None:
    other = died(run.folder.parent.parent, JOB, THREE)
    for what in ("sealed", "events.jsonl", "heads.jsonl"):
        run.place(3, what).write_bytes(other.place(3, what).read_bytes())


def without_an_exchange(run: Died) -> None:
    for number in (1, 2):
        run.drop(number)
    run.leg("exchange.json").unlink()
    run.sign()


def lines(run: Died, edit: Callable[[list[bytes]], list[bytes]]) -> None:
    place = run.place(3, "events.jsonl")
    place.write_bytes(b"".join(edit(place.read_bytes().splitlines(keepends=True))))


def an_event_missing(run: Died) -> None:
    lines(run, lambda found: [*found[:4], *found[5:]])


def an_event_forged(run: Died) -> None:
    def edit(found: list[bytes]) -> list[bytes]:
        event = parse_json(found[5])
        event["body"]["steps"] = 99
        return [*found[:5], canonical_json(event) + b"\n", *found[6:]]

    lines(run, edit)


def its_own_event_missing(run: Died) -> None:
    lines(run, lambda found: found[:-1])


def no_events(run: Died) -> None:
    run.place(3, "events.jsonl").write_bytes(b"")


def a_head_of_somebody_else(run: Died) -> None:
    place = run.place(3, "heads.jsonl")
    line = sign_head(
        Ed25519PrivateKey.generate(), run=run.run, leg="s000", launch=1, seq=1, head="0" * 64, time=1.0
    )
    place.write_bytes(place.read_bytes() + line + b"\n")


def another_head_was_countersigned(run: Died) -> None:
    """The run's own log of heads says that event 7 was another one."""
    heads = run.leg("heads.jsonl").read_bytes().splitlines(keepends=True)
    line = sign_head(
        keys.operator_key(), run=run.run, leg="s000", launch=1, seq=7, head="0" * 64, time=run.factory.now
    )
    run.leg("heads.jsonl").write_bytes(b"".join(heads[:7]) + line + b"\n")
    run.sign()


@pytest.mark.parametrize(
    ("spoil", "code", "offered"),
    [
        (cut, "checkpoint-torn", True),
        (flipped, "checkpoint-torn", True),
        (gone, "checkpoint-torn", True),
        (older_under_its_name, "checkpoint-renamed", True),
        (whole_set_renamed, "checkpoint-renamed", True),
        (of_another_run, "checkpoint-foreign", True),
        (without_an_exchange, "checkpoint-foreign", False),
        (an_event_missing, "checkpoint-chain-broken", True),
        (an_event_forged, "checkpoint-chain-broken", True),
        (its_own_event_missing, "checkpoint-chain-broken", True),
        (no_events, "checkpoint-chain-broken", True),
        (a_head_of_somebody_else, "checkpoint-head-mismatch", True),
        (another_head_was_countersigned, "checkpoint-head-mismatch", False),
    ],
)
def test_each_fault_is_refused_by_its_code_and_the_newest_good_one_is_offered(
    run: Died, spoil: Callable[[Died], None], code: str, offered: bool
) -> None:
    spoil(run)
    error = refusal(run)
    assert error.code == code
    assert f"(code={code})" in error.line()
    assert (f"the newest good one at home: from={run.run}@2" in error.line()) == offered
    if offered:
        assert pick(run, 2).stored.number == 2


def test_a_chain_that_was_written_anew_is_not_the_countersigned_one(run: Died, tmp_path: Path) -> None:
    """Whoever has the machine, and so the event key, signs another history: the heads at home tell."""
    own = run.leg("events.jsonl").read_bytes()
    run.leg("events.jsonl").write_bytes(own.replace(own.splitlines(keepends=True)[-1], b""))
    other = died(tmp_path, JOB, THREE)  # stands for a chain of other events under a key that is believed
    for what in ("events.jsonl", "exchange.json", "reference.json"):
        run.leg(what).write_bytes(other.leg(what).read_bytes())
    run.sign()
    for number in (1, 2, 3):
        run.place(number, "events.jsonl").write_bytes(other.place(number, "events.jsonl").read_bytes())
    assert refusal(run).code == "checkpoint-head-mismatch"


def unwatched(tmp_path: Path) -> Died:
    """A run whose heads are minutes apart: nobody was there in between."""
    return died(tmp_path, JOB, THREE, steps=[20, 40, 60], every=300.0)


def test_what_was_made_while_nobody_watched_is_taken_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLASSHOUSE_HOME", str(tmp_path / "home"))
    run = unwatched(tmp_path)
    assert not pick(run).witnessed
    error = refusal(run, require_witnessed_checkpoints=True)
    assert error.code == "checkpoint-not-witnessed"
    spec = config.load([f"from={run.run}"], runs=run.folder.parent)
    assert spec.continues is not None
    assert not spec.continues.witnessed
    with pytest.raises(restore.RefusedError, match="checkpoint-not-witnessed"):
        config.load([f"from={run.run}", "policy=strict"], runs=run.folder.parent)


def test_a_policy_that_asks_for_it_takes_what_was_watched(run: Died) -> None:
    assert pick(run, require_witnessed_checkpoints=True).witnessed


def test_whoever_fetches_it_first_countersigns_it(run: Died) -> None:
    heads = run.place(3, "heads.jsonl")
    before = heads.read_bytes().splitlines(keepends=True)[:4]
    heads.write_bytes(b"".join(before))
    own = run.leg("heads.jsonl")
    own.write_bytes(b"".join(before))
    run.sign()
    good = pick(run)
    assert not good.witnessed
    restore.countersign(good, keys.operator_key(), run.factory.now + 5000)
    after = heads.read_bytes().splitlines(keepends=True)
    assert after[:-1] == before
    assert parse_json(after[-1])["seq"] == 9
    assert not pick(run).witnessed  # long after it was made: nobody watched then
    restore.countersign(good, keys.operator_key(), run.factory.now + 6000)
    assert heads.read_bytes().splitlines(keepends=True) == after


def taken_up(run: Died, polls: Sequence[tuple[float, slice]]) -> None:
    """Let a controller sign the heads of what it polls: when, and which events came then."""
    events = run.leg("events.jsonl").read_bytes().splitlines(keepends=True)
    exchange = Exchange.model_validate_json(run.leg("exchange.json").read_bytes())
    assert exchange.grant is not None
    folder = run.folder / "log"
    folder.mkdir()
    log = EventLog(folder, keys.operator_key(), run=run.run, leg="s000", launch=1, interval=5.0, thinned=True)
    log.begin(parse_evidence(exchange.evidence).event_key, exchange.grant)
    clock = iter(at for at, _ in polls)
    with pytest.MonkeyPatch.context() as patch:
        for _, part in polls:
            at = next(clock)
            patch.setattr("glasshouse.lifecycle.follow.time.time", lambda at=at: run.factory.now + at)
            log.feed(b"".join(events[part]))
    heads = (folder / "heads.jsonl").read_bytes()
    run.leg("heads.jsonl").write_bytes(heads)
    run.sign()
    for number in (1, 2, 3):
        mine = [line for line in heads.splitlines(keepends=True) if parse_json(line)["seq"] <= 3 + 2 * number]
        run.place(number, "heads.jsonl").write_bytes(b"".join(mine))


HOURS = 36_000.0
AWAY = {
    "all in one poll": [(0, slice(0, 4)), (HOURS, slice(4, None))],
    "handed out slowly": [
        (0, slice(0, 4)),
        *((HOURS + at, slice(at, at + 1)) for at in range(4, 10)),
    ],
    "from the beginning": [(HOURS + at, slice(at, at + 1)) for at in range(10)],
}


@pytest.mark.parametrize("polls", AWAY.values(), ids=AWAY.keys())
def test_what_came_after_hours_without_a_controller_was_watched_by_nobody(
    run: Died, polls: Sequence[tuple[float, slice]]
) -> None:
    """However it is handed out then: heads of one poll are one, and the leg's clock says when it was made."""
    taken_up(run, polls)
    for number in (1, 2, 3):
        assert not pick(run, number).witnessed
    assert refusal(run, require_witnessed_checkpoints=True).code == "checkpoint-not-witnessed"


def test_what_came_as_it_was_made_was_watched(run: Died) -> None:
    taken_up(run, [(at, slice(at, at + 1)) for at in range(10)])
    assert [pick(run, number).witnessed for number in (1, 2, 3)] == [True] * 3


def of_another_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edit: dict[str, Any]) -> Died:
    """A run whose leg signed an event of another form for its last checkpoint."""
    real, made = checkpoint_kit.sealed, []

    def sealed(folder: Path, *args: Any) -> tuple[bytes, dict[str, Any]]:
        data, report = real(folder, *args)
        made.append(data)
        if len(made) == 3:
            report = {name: value for name, value in (report | edit).items() if value is not ...}
        return data, report

    monkeypatch.setattr(checkpoint_kit, "sealed", sealed)
    return died(tmp_path, JOB, THREE, steps=[20, 40, edit.get("steps", 60)])


@pytest.mark.parametrize(
    "edit",
    [
        {"plaintextSha256": ...},
        {"plaintextSha256": ["x"] * 3},
        {"plaintextSha256": "0" * 63},
        {"ciphertextSha256": None},
        {"bytes": "9"},
        {"steps": 2.5},
        {"steps": [60]},
        {"steps": -1},
    ],
    ids=str,
)
def test_an_event_of_another_form_is_refused_and_the_one_before_is_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edit: dict[str, Any]
) -> None:
    monkeypatch.setenv("GLASSHOUSE_HOME", str(tmp_path / "home"))
    run = of_another_form(tmp_path, monkeypatch, edit)
    error = refusal(run)
    assert error.code == "checkpoint-chain-broken"
    assert f"the newest good one at home: from={run.run}@2" in error.line()
    good = restore.newest_good(run.folder, run.run, JOB, JOB.policy, operators=operators())
    assert good is not None
    assert good.stored.number == 2


def test_the_steps_of_a_chain_stay_countable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLASSHOUSE_HOME", str(tmp_path / "home"))
    first = died(tmp_path, JOB, THREE, steps=[20, 40, 60])
    before = config.load([f"from={first.run}"], runs=first.folder.parent)
    run = died(tmp_path, before, THREE, steps=[20, 40, 2**53 - 30])
    with pytest.raises(restore.RefusedError, match=f"checkpoint-chain-broken.*from={run.run}@2"):
        restore.pick(run.folder, run.run, before, JOB.policy, number=None, operators=operators())


def cut_heads(run: Died) -> None:
    heads = run.leg("heads.jsonl")
    heads.write_bytes(b"".join(heads.read_bytes().splitlines(keepends=True)[:8]))


def no_heads(run: Died) -> None:
    run.leg("heads.jsonl").unlink()


def one_more(run: Died) -> None:
    run.leg("launch.jsonl").write_bytes(b"")


def unsigned(run: Died) -> None:
    (run.folder / "bundle" / "bundle.dsse.json").unlink()


def parts_beside(run: Died) -> None:
    """What a bundle is made of does not stand in for it."""
    shutil.copytree(run.folder / "bundle", run.folder / "parts")
    cut_heads(run)


def of_somebody_else(run: Died) -> None:
    bundle = run.folder / "bundle"
    envelope = sign_statement(Ed25519PrivateKey.generate(), BUNDLE_TYPE, {}, {})
    (bundle / "bundle.dsse.json").write_bytes(envelope)


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (cut_heads, "digest-mismatch"),
        (no_heads, "file-missing"),
        (one_more, "file-unlisted"),
        (unsigned, "file-missing"),
        (parts_beside, "digest-mismatch"),
        (of_somebody_else, "signer-unknown"),
    ],
)
def test_a_bundle_that_its_operator_did_not_sign_so_is_not_believed(
    run: Died, spoil: Callable[[Died], None], code: str
) -> None:
    """Or heads that are cut off would make an older checkpoint the newest."""
    run.drop(3)
    spoil(run)
    error = refusal(run)
    assert error.code == code
    assert f"(code={code})" in error.line()


BESIDE = {
    "checkpoint-torn",
    "checkpoint-foreign",
    "checkpoint-chain-broken",
    "checkpoint-head-mismatch",
    "checkpoint-renamed",
}


def found(run: Died) -> str:
    """The code for which the newest is refused, "" where it is taken."""
    try:
        pick(run)
    except restore.RefusedError as error:
        return str(error.code)
    return ""


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_other_bytes_beside_a_checkpoint_are_believed(run: Died, data: st.DataObject) -> None:
    place = run.place(3, data.draw(st.sampled_from(["events.jsonl", "sealed", "heads.jsonl"])))
    whole = place.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    kind = data.draw(st.sampled_from(["flip", "cut", "drop"]))
    if kind == "flip":
        spoiled = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    elif kind == "cut":
        spoiled = whole[:at]
    else:
        spoiled = whole[:at] + whole[at + 1 :]
    try:
        place.write_bytes(spoiled)
        codes = {found(run)}
        # A head less is a head less; the run's own are there too. One that is wrong is not passed over.
        allowed = {"", "checkpoint-head-mismatch"} if "heads" in place.name else BESIDE
        assert codes <= allowed
    finally:
        place.write_bytes(whole)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(given=st.text(min_size=1, max_size=60))
def test_whatever_from_says_is_a_run_or_one_line(run: Died, given: str) -> None:
    try:
        Origin.of(given, run.folder.parent)
    except GlasshouseError as error:
        said = error.line()
    else:
        said = "it is one"
    assert "\n" not in said
