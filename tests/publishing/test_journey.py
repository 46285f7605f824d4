"""A journey: announced, packed at any moment, read as hostile input, published beside other logs."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glasshouse.canonical import canonical_json, parse_json
from glasshouse.commands.download import fetch_row
from glasshouse.errors import UsageError, VerificationError
from glasshouse.judgement.headline import headlines
from glasshouse.paths import Workspace
from glasshouse.publishing import archive
from glasshouse.publishing.artifact import artifact_bytes, artifact_sha256, parse_artifact
from glasshouse.publishing.from_bundle import candidates
from glasshouse.publishing.journey import MAX_LEAVES, budget_seconds, open_journey, read_journey
from glasshouse.publishing.logs import PublishedLogs
from glasshouse.publishing.pages import render
from glasshouse.publishing.publication_files import ARTIFACTS, read_publication
from glasshouse.publishing.publish import Published, publish_journey
from glasshouse.publishing.published_log import CHECKPOINT, LEAVES, JourneyLeaf, PublishedLog
from glasshouse.publishing.verify_artifact import check_artifact
from glasshouse.records import keys
from glasshouse.records.keys import Keyring, committed_keyring, listed_as, public_bytes
from glasshouse.records.leaf_bodies import (
    AboutRow,
    JourneyBody,
    KeyBody,
    ReportedBody,
    RetractBody,
    SupersedeBody,
)
from glasshouse.records.ledger import Ledger, log_key, open_journeys, sign_checkpoint
from tests.commands.kit import served
from tests.publishing.conftest import Log
from tests.publishing.journeys import Away, leave
from tests.records.factory import Factory

Leave = Callable[..., Away]
Bring = Callable[..., Published]


@pytest.fixture
def operator_log(factory: Factory) -> str:
    return log_key(public_bytes(factory.publisher))


@pytest.fixture
def go(
    tmp_path_factory: pytest.TempPathFactory, log: Log, operator_log: str, monkeypatch: pytest.MonkeyPatch
) -> Leave:
    """A journey announced in this test's ledger, unless another is given."""

    def call(ledger: Ledger | None = None, **changes: Any) -> Away:
        folder = tmp_path_factory.mktemp("away")
        return leave(folder, ledger or log(), operator_log, monkeypatch, **changes)

    return call


@pytest.fixture
def bring(root: Path, factory: Factory, log: Log) -> Bring:
    """Publish an archive into the test's publication, trusting its keys."""

    def call(path: Path, **changes: Any) -> Published:
        returned = read_journey(path)
        ring = listed_as(
            committed_keyring(Workspace.of_source(root).keyring),
            returned.keyring.entries,
            "borrowed",
            until=returned.log.checkpoint.size - 1,
        )
        values = {
            "workspace": Workspace.of_source(root),
            "keyring": ring,
            "ledger": log(),
            "key": factory.publisher,
        }
        return publish_journey(returned, **{**values, "known_secrets": (), **changes})

    return call


def codes_of(path: Path) -> tuple[str, ...]:
    with pytest.raises(VerificationError) as caught:
        read_journey(path)
    return caught.value.codes


def test_what_comes_back_is_published_and_ends_the_journey(
    root: Path, log: Log, go: Leave, bring: Bring, operator_log: str
) -> None:
    away = go()
    assert [leaf.serial for leaf in open_journeys(log().leaves())] == [away.journey.open_serial]
    row, open_run = away.run(), away.begin()
    path, packed = away.pack()
    assert (len(packed.runs), packed.extra, packed.left_out) == (1, (), ())
    done = bring(path)
    assert done.rows == (row,)
    assert open_run in done.withheld
    assert done.opening is not None
    assert done.ending is not None
    assert done.ending.body["journey"] == away.journey.id
    assert open_journeys(log().leaves()) == ()
    publication = read_publication(Workspace.of_source(root))
    (artifact,) = [item for item in publication.artifacts if item.id == row]
    assert "registered-late" not in artifact.caveats
    theirs = publication.logs.of(away.journey.commitment[:16])
    assert theirs is not None
    assert [leaf.kind for leaf in theirs.leaves] == ["journey-log", "key", "key", "plan", "row", "plan"]
    assert publication.logs.opening(theirs) is not None
    ours = publication.logs.of(operator_log)
    assert ours is not None
    assert ours.leaves[-1].body["root"] == theirs.checkpoint.root.hex()
    entry = check_artifact(
        root / ARTIFACTS / f"{row}.json", committed_keyring(Workspace.of_source(root).keyring)
    )
    assert entry.ok, entry
    page = render(publication)["ledger.md"].decode()
    assert away.journey.id in page
    assert "announced beforehand in log" in page
    assert "came back, 540 s, seed 7" in page


def test_the_same_archive_again_writes_nothing(root: Path, log: Log, go: Leave, bring: Bring) -> None:
    away = go()
    away.run()
    path, _ = away.pack()
    first = bring(path)
    assert "conf/trust/keyring.json" in first.written
    before, entries = _files(root), len(log().leaves())
    assert bring(path).written == ()
    assert (_files(root), len(log().leaves())) == (before, entries)


def test_later_archives_go_on_where_the_first_ended(root: Path, log: Log, go: Leave, bring: Bring) -> None:
    away = go()
    one = away.run()
    early, _ = away.pack(name="early.tar.gz")
    bring(early)
    two = away.run()
    late, _ = away.pack(name="late.tar.gz")
    assert set(bring(late).rows) == {one, two}
    assert [leaf.body["size"] for leaf in log().leaves() if leaf.kind == "journey-end"] == [5, 7]
    # The journey ended with the first: whoever kept its keys went on after that.
    assert "registered-late" not in _late_row(root, one).caveats
    assert "registered-late" in _late_row(root, two).caveats
    before = _files(root)
    assert bring(early).written == ()
    assert _files(root) == before
    read_publication(Workspace.of_source(root))


def test_another_past_of_the_same_journey_is_refused(root: Path, go: Leave, bring: Bring) -> None:
    away = go()
    away.run()
    bring(away.pack()[0])
    place = away.home / "state" / "ledger" / LEAVES
    place.write_bytes(b"".join(line for line in place.read_bytes().splitlines(True)[:3]))
    away.run()
    away.run()
    with pytest.raises(VerificationError) as caught:
        bring(away.pack()[0])
    assert caught.value.codes == ("ledger-rewritten",)


def test_a_run_cut_at_any_moment_leaves_an_archive_that_verifies(root: Path, go: Leave, bring: Bring) -> None:
    away = go()
    assert read_journey(away.pack()[0]).bundles == {}
    run = away.begin()
    # Killed between the bundle and its row: the plan is open, and the bundle is left where it is.
    (away.runs / run / "bundle").mkdir(parents=True)
    (away.runs / run / "parts").mkdir()
    path, packed = away.pack()
    assert (packed.runs, packed.left_out) == ((), ())
    done = bring(path)
    assert done.rows == ()
    assert run in done.withheld
    assert [plan.run for plan in _log_of(root, away).open_plans] == [run]


def test_a_row_without_its_bundle_is_listed_as_left_out(root: Path, go: Leave, bring: Bring) -> None:
    away = go()
    row = away.run()
    (folder,) = away.runs.iterdir()
    (folder / "bundle" / "record.json").unlink()
    path, packed = away.pack()
    assert packed.left_out == ((f"bundles/{folder.name}", "its bundle is not among the runs given"),)
    assert read_journey(path).left_out == packed.left_out
    bring(path)
    assert [entry.row for entry in _log_of(root, away).withheld([])] == [row]


# --- registered late ---------------------------------------------------------------------------------


def _late_row(root: Path, row: str) -> Any:
    return next(item for item in read_publication(Workspace.of_source(root)).artifacts if item.id == row)


def test_without_a_leaf_in_the_operators_ledger_rows_are_registered_late(
    root: Path, tmp_path_factory: pytest.TempPathFactory, go: Leave, bring: Bring, log: Log
) -> None:
    away = go(Ledger(tmp_path_factory.mktemp("elsewhere") / "ledger"))
    row, aside = away.run(order="abba", duration=40.0), away.run(control="aa", order="abba", duration=40.0)
    done = bring(away.pack()[0])
    assert (done.opening, done.ending) == (None, None)
    assert not [leaf for leaf in log().leaves() if leaf.kind.startswith("journey")]
    artifact = _late_row(root, row)
    assert "registered-late" in artifact.caveats
    assert "registered-late" in _late_row(root, aside).caveats
    path = root / ARTIFACTS / f"{row}.json"
    assert check_artifact(path, committed_keyring(Workspace.of_source(root).keyring)).ok
    on_gpu = artifact.model_copy(update={"gpu_model": "H100", "provider": "ssh"})
    (headline,) = headlines(candidates([on_gpu]))
    assert headline.rows == ()
    assert "registered-late" in dict(headline.barred)[row]
    assert (
        "announced in no log here"
        in render(read_publication(Workspace.of_source(root)))["ledger.md"].decode()
    )
    # Nobody can take the caveat off, or find a bundle's record changed by it.
    kept = tuple(code for code in artifact.caveats if code != "registered-late")
    path.write_bytes(artifact_bytes(artifact.model_copy(update={"caveats": kept})))
    with pytest.raises(VerificationError) as caught:
        read_publication(Workspace.of_source(root))
    assert caught.value.codes == (f"signed-row-edited:{row}",)
    entry = check_artifact(path, committed_keyring(Workspace.of_source(root).keyring))
    assert [item.code for item in entry.checks if not item.ok] == ["artifact-recomputed"]


def test_a_leaf_younger_than_the_first_plan_announces_nothing(root: Path, go: Leave, bring: Bring) -> None:
    away = go(seconds_later=-120)
    row = away.run()
    assert bring(away.pack()[0]).opening is None
    assert "registered-late" in _late_row(root, row).caveats


@pytest.mark.parametrize("name", ["seed", "budgetSec", "commitment", "journey"])
def test_a_leaf_that_announces_another_journey_does_not_count(
    name: str, root: Path, go: Leave, bring: Bring, log: Log
) -> None:
    away = go()
    place = log()._path
    other = {"seed": 8, "budgetSec": 541, "commitment": "ab" * 32, "journey": "20261127-aaaaaa"}[name]
    lines = place.read_bytes().splitlines()
    lines[-1] = canonical_json(parse_json(lines[-1]) | {name: other})
    place.write_bytes(b"\n".join(lines) + b"\n")
    row = away.run()
    bring(away.pack()[0])
    assert "registered-late" in _late_row(root, row).caveats


def test_a_log_cannot_announce_itself(go: Leave) -> None:
    away = go()
    own = Ledger(away.home / "state" / "ledger")
    said = dict(own.leaves()[0].body)
    place = away.home / "state" / "ledger" / LEAVES
    first = {**said, "openedIn": away.journey.commitment[:16], "openSerial": 3}
    place.write_bytes(b"\n".join([canonical_json(first), *place.read_bytes().splitlines()[1:]]) + b"\n")
    body = JourneyBody(said["journey"], said["seed"], said["budgetSec"], away.journey.commitment)
    assert own.append(body) == 3
    away.run()
    assert codes_of(away.pack()[0]) == ("ledger-journey:3",)


@pytest.mark.parametrize(("seconds", "late"), [(540 + 590, False), (540 + 605, True)])
def test_what_is_planned_after_the_budget_is_late(
    seconds: int, late: bool, root: Path, go: Leave, bring: Bring
) -> None:
    away = go(seconds_later=60)
    first = away.run()
    away.factory.now = float(int(away.journey.opened_at) + seconds)
    row = away.run()
    assert bring(away.pack()[0]).opening is not None
    assert "registered-late" not in _late_row(root, first).caveats
    assert ("registered-late" in _late_row(root, row).caveats) == late
    path = root / ARTIFACTS / f"{row}.json"
    assert check_artifact(path, committed_keyring(Workspace.of_source(root).keyring)).ok


def test_a_journeys_log_announces_no_other(go: Leave) -> None:
    home, away = (read_journey(go().pack()[0]).log for _ in range(2))
    said = dataclasses.replace(away.entries[0], opened_in=home.key, open_serial=1)
    away = dataclasses.replace(away, entries=(said, *away.entries[1:]))
    opening = JourneyLeaf(
        serial=1, time=said.time, kind="journey", journey=said.journey, seed=said.seed,
        budget_sec=said.budget_sec, commitment=away.signer.keyid,
    )  # fmt: skip
    for first, opens in ((home.entries[1], True), (home.entries[0], False)):
        entries = (first, opening, *home.entries[2:])
        logs = PublishedLogs((dataclasses.replace(home, entries=entries), away))
        assert (logs.opening(away) is not None) == opens


def test_the_caveat_cannot_be_cut_out_of_what_is_fetched(
    root: Path, tmp_path: Path, go: Leave, bring: Bring
) -> None:
    away = go(seconds_later=-3600)
    row = away.run()
    bring(away.pack()[0])
    ring = committed_keyring(Workspace.of_source(root).keyring)
    path = root / ARTIFACTS / f"{row}.json"

    def failed() -> dict[str, str]:
        folder = tmp_path / "fetched"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        with served(root / "site") as address:
            got = fetch_row(f"{address}/research/artifacts/{row}.json", folder, ring)
        checks = check_artifact(got, ring).checks
        return {item.code: item.detail for item in checks if not item.ok}

    publication = read_publication(Workspace.of_source(root))
    inclusion = publication.logs.inclusion(row, artifact_sha256(_late_row(root, row)))
    assert inclusion is not None
    (root / "site/research/inclusion").mkdir()
    (root / "site/research/inclusion" / path.name).write_bytes(inclusion)
    assert failed() == {}
    kept = tuple(code for code in _late_row(root, row).caveats if code != "registered-late")
    artifact = parse_artifact(path.read_bytes(), name=path.name)
    path.write_bytes(artifact_bytes(artifact.model_copy(update={"caveats": kept})))
    assert set(failed()) == {"artifact-recomputed"}
    ledger = root / "site" / "research" / "ledger"
    shutil.move(ledger / away.journey.opened_in, tmp_path / "kept")
    assert set(failed()) == {"registration-not-checked"}
    assert f"log {away.journey.opened_in} must have announced" in failed()["registration-not-checked"]
    assert "is not beside the row" in failed()["registration-not-checked"]
    shutil.rmtree(ledger)
    assert set(failed()) == {"registration-not-checked", "retraction-not-checked"}


def test_a_keyring_without_the_announcing_key_is_told_which_is_missing(
    root: Path, go: Leave, bring: Bring
) -> None:
    away = go()
    row = away.run()
    bring(away.pack()[0])
    every = committed_keyring(Workspace.of_source(root).keyring).entries
    ring = Keyring(tuple(entry for entry in every if entry.label.startswith("borrowed")))
    entry = check_artifact(root / ARTIFACTS / f"{row}.json", ring)
    (failed,) = [item for item in entry.checks if not item.ok]
    assert failed.code == "registration-not-checked"
    assert f"log {away.journey.opened_in} must have announced the row's journey" in failed.detail
    assert "a key that the keyring does not list" in failed.detail


STATEMENTS: list[AboutRow] = [
    RetractBody("row", "2026-01-01", "all of it was invented"),
    SupersedeBody("row", "2026-01-01-other", "2026-01-01", "it was repeated"),
    ReportedBody("row", "ab" * 32),
]


@pytest.mark.parametrize("body", STATEMENTS, ids=[body.kind for body in STATEMENTS])
def test_a_journey_states_nothing_of_rows(body: AboutRow, go: Leave, pair: Any) -> None:
    away = go()
    away.run()
    away.factory.ledger.append(dataclasses.replace(body, row=pair[1].id))
    assert codes_of(away.pack()[0]) == ("ledger-journey:5",)


def test_a_journey_retires_no_key(go: Leave) -> None:
    away = go()
    away.factory.ledger.append(KeyBody("ab" * 32, "witness", "retired"))
    assert codes_of(away.pack()[0]) == ("ledger-journey:3",)


def test_a_log_that_no_journey_is_long_enough_for_is_refused_before_it_is_read(sent: Away) -> None:
    def change(files: dict[str, bytes]) -> None:
        files[LOG] += b"{}\n" * MAX_LEAVES

    assert codes_of(sent.altered(change)) == ("journey-too-long",)


def test_a_late_control_lifts_nothing(
    root: Path, tmp_path_factory: pytest.TempPathFactory, go: Leave, bring: Bring
) -> None:
    away = go(Ledger(tmp_path_factory.mktemp("elsewhere") / "ledger"))
    row = away.run(order="abba", duration=40.0)
    for control in ("aa", "delay"):
        away.run(control=control, order="abba", duration=40.0)
    bring(away.pack()[0])
    artifact = _late_row(root, row)
    assert len(artifact.controls) == 2
    assert "no-control" in artifact.caveats


# --- hostile archives --------------------------------------------------------------------------------

LOG = f"log/{LEAVES}"
NOTE = f"log/{CHECKPOINT}"


def _dropped(name: str) -> Callable[[dict[str, bytes]], None]:
    return lambda files: files.__delitem__(name)


def _without(part: str) -> Callable[[dict[str, bytes]], Mapping[str, bytes]]:
    return lambda files: {name: data for name, data in files.items() if part not in name}


def _leaf(number: int, **changes: Any) -> Callable[[dict[str, bytes]], None]:
    def change(files: dict[str, bytes]) -> None:
        lines = files[LOG].splitlines()
        lines[number] = canonical_json(parse_json(lines[number]) | changes)
        files[LOG] = b"\n".join(lines) + b"\n"

    return change


def _key(number: int, **changes: Any) -> Callable[[dict[str, bytes]], None]:
    def change(files: dict[str, bytes]) -> None:
        found = parse_json(files["keyring.json"])
        found["keys"][number] |= changes
        files["keyring.json"] = canonical_json(found)

    return change


def _moved(files: dict[str, bytes]) -> Mapping[str, bytes]:
    run = next(name.split("/")[1] for name in files if name.startswith("bundles/"))
    return {name.replace(run, "20260101-000000-aaaaaa"): data for name, data in files.items()}


def _record(files: dict[str, bytes]) -> None:
    name = next(name for name in files if name.endswith("record.json"))
    files[name] = files[name].replace(b'"verified"', b'"excluded"')


def _added(name: str, data: bytes = b"{}") -> Callable[[dict[str, bytes]], Mapping[str, bytes]]:
    return lambda files: files | {name: data}


def _second_key(files: dict[str, bytes]) -> None:
    found = parse_json(files["keyring.json"])
    found["keys"].append(found["keys"][0])
    files["keyring.json"] = canonical_json(found)


HOSTILE: list[tuple[str, Callable[[dict[str, bytes]], Mapping[str, bytes] | None], str]] = [
    ("no checkpoint", _dropped(NOTE), "archive-missing"),
    ("no leaves", _dropped(LOG), "archive-missing"),
    ("no keys", _dropped("keyring.json"), "archive-missing"),
    ("a file of no place", _added("journey.json"), "archive-unlisted"),
    ("a run of no name", _added("bundles/latest/record.json"), "archive-unlisted"),
    ("a changed plan", _leaf(3, planSha256="00" * 32), "ledger-rewritten"),
    ("a changed time", _leaf(0, time=1.0), "ledger-rewritten"),
    ("a field of its own", _leaf(0, host="10.0.0.1"), "ledger-field:0:host"),
    ("a serial that is a list", _leaf(4, planSerial=[]), "ledger-field:4:planSerial"),
    ("an unknown kind", _leaf(1, kind="gift"), "ledger-malformed"),
    ("leaves cut off", lambda files: files | {LOG: files[LOG][:-200]}, "ledger-malformed"),
    ("a leaf removed", lambda files: files | {LOG: files[LOG].rsplit(b"\n", 2)[0] + b"\n"}, "ledger-shrunk"),
    (
        "no signature",
        lambda files: files | {NOTE: files[NOTE].split(b"\n\n")[0] + b"\n"},
        "note-malformed",
    ),
    ("not text", lambda files: files | {NOTE: b"\xff\xfe"}, "note-malformed"),
    ("a retired key", _key(0, validUntil=3), "journey-keys"),
    ("a local key", _key(0, local=True), "journey-keys"),
    ("two operators", _key(0, role="operator"), "journey-keys"),
    ("four keys", _second_key, "journey-keys"),
    ("a witness", _key(0, role="witness"), "journey-keys"),
    ("keys that are none", lambda files: files | {"keyring.json": b"[]"}, "keyring-malformed"),
    ("another record", _record, "digest-mismatch"),
    ("half a bundle", _without("legs/s001"), "file-missing"),
    ("a file that no bundle has", _added("bundles/20260101-000000-aaaaaa/x.sh"), "file-unlisted"),
    ("a run under another's name", _moved, "journey-bundle"),
    ("what was left out, unreadable", lambda files: files | {"left-out.json": b"[1]"}, "archive-malformed"),
]


@pytest.fixture
def sent(go: Leave) -> Away:
    away = go()
    away.run()
    return away


@pytest.mark.parametrize(
    ("change", "code"), [item[1:] for item in HOSTILE], ids=[item[0] for item in HOSTILE]
)
def test_an_altered_archive_is_refused(
    sent: Away, change: Callable[[dict[str, bytes]], Mapping[str, bytes] | None], code: str
) -> None:
    assert codes_of(sent.altered(change))[0] == code


def test_a_key_that_the_log_does_not_name_is_not_offered_by_anyone(sent: Away, factory: Factory) -> None:
    """Whoever holds the archive on its way could else have a key of his own trusted."""
    for entry, own in ((0, factory.broker_key), (1, factory.operator)):
        public = public_bytes(own)
        ring = [item.as_json() for item in factory.keyring.entries if item.public == public]
        changed = {name: ring[0][name] for name in ("keyid", "publicKey")}
        path = sent.altered(lambda files, at=entry, to=changed: _key(at, **to)(_bare(files)))
        assert codes_of(path) == ("journey-keys",)


def _bare(files: dict[str, bytes]) -> dict[str, bytes]:
    """The same without bundles, which would not verify."""
    for name in [name for name in files if name.startswith("bundles/")]:
        del files[name]
    return files


def test_a_machines_own_log_is_no_journeys(sent: Away, tmp_path: Path) -> None:
    lines = [parse_json(line) for line in (sent.home / "state" / "ledger" / LEAVES).read_bytes().splitlines()]
    ledger = Ledger(tmp_path / "other")
    for body in lines[1:3]:
        ledger.append(KeyBody(body["keyid"], body["role"], body["state"]))
    leaves = ledger.leaves()
    files = {LOG: b"".join(leaf.data + b"\n" for leaf in leaves)}
    files[NOTE] = sign_checkpoint(leaves, sent.factory.publisher).encode()
    assert codes_of(sent.altered(lambda found: _bare(found) | files)) == ("journey-none",)


def test_a_bundle_that_the_log_does_not_name_is_refused(sent: Away) -> None:
    leaves = sent.factory.ledger.leaves()[:4]
    files = {LOG: b"".join(leaf.data + b"\n" for leaf in leaves)}
    files[NOTE] = sign_checkpoint(leaves, sent.factory.publisher).encode()
    assert codes_of(sent.altered(lambda found: found | files)) == ("journey-bundle",)


def test_an_archive_of_this_machines_own_log_is_refused(sent: Away, bring: Bring, tmp_path: Path) -> None:
    with pytest.raises(VerificationError) as caught:
        bring(sent.pack()[0], key=sent.factory.publisher, ledger=Ledger(tmp_path / "own"))
    assert caught.value.codes == ("journey-keys",)


def test_what_must_not_be_published_stops_it_before_anything_is_written(
    root: Path, log: Log, sent: Away, bring: Bring
) -> None:
    path, _ = sent.pack()
    before, entries = _files(root), len(log().leaves())
    with pytest.raises(VerificationError, match="secret scan"):
        bring(path, known_secrets=[sent.journey.id])
    assert (_files(root), len(log().leaves())) == (before, entries)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_of_what_is_signed_is_refused(sent: Away, data: st.DataObject) -> None:
    files = archive.read_archive(sent.pack()[0].read_bytes())
    name = data.draw(st.sampled_from(sorted(item for item in files if item != "left-out.json")))
    content = bytearray(files[name])
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    out = sent.folder / "fuzzed.tar.gz"
    out.write_bytes(archive.write_archive(files | {name: bytes(content)}))
    try:
        returned = read_journey(out)
    except VerificationError:
        return
    # A label names nothing that is signed, and is replaced where the keys are trusted.
    assert name == "keyring.json"
    assert {entry.keyid for entry in returned.keyring.entries} == {
        entry["keyid"] for entry in parse_json(files[name])["keys"]
    }


# --- packing -----------------------------------------------------------------------------------------


def test_further_files_go_along_and_private_ones_stay(sent: Away, tmp_path: Path) -> None:
    look = tmp_path / "look"
    (look / "raw").mkdir(parents=True)
    (look / "report.json").write_text("{}")
    (look / "raw" / "nvml.jsonl").write_text("{}\n")
    (look / "raw" / "with space").write_text("x")
    (look / "link").symlink_to("/etc/passwd")
    (look / "kept").symlink_to(look / "raw")
    os.mkfifo(look / "pipe")
    (look / "key.txt").write_bytes((sent.home / "keys" / "operator.ed25519.pem").read_bytes())
    alone = tmp_path / "driver.log"
    alone.write_text("said\n")
    path, packed = sent.pack(look, alone, tmp_path / "absent")
    assert packed.extra == ("extra/driver.log", "extra/raw/nvml.jsonl", "extra/report.json")
    assert dict(packed.left_out) == {
        "extra/raw/with space": "its name cannot be packed, or is taken",
        "extra/link": "not a plain file",
        "extra/kept": "not a plain file",
        "extra/pipe": "not a plain file",
        "extra/absent": "not a plain file",
        "extra/key.txt": "it holds a private key",
    }
    returned = read_journey(path)
    assert (returned.extra, returned.left_out) == (packed.extra, packed.left_out)
    packed_bytes = b"".join(archive.read_archive(path.read_bytes()).values())
    assert b"PRIVATE KEY" not in packed_bytes


def test_no_key_of_the_home_is_packed_and_none_that_was_copied_from_it(
    sent: Away, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("GLASSHOUSE_HOME", str(sent.home))
        keys.owner_key()
    copied = tmp_path / "copied"
    copied.mkdir()
    private = [path for path in (sent.home / "keys").iterdir() if path.suffix in (".pem", ".xwing")]
    assert {path.name for path in private} >= {"owner.xwing", "publisher.ed25519.pem"}
    for path in private:
        (copied / f"{path.name}.txt").write_bytes(b"\xff before\n" + path.read_bytes())
    (tmp_path / "linked").symlink_to(sent.home)
    found = archive.read_archive(sent.pack(sent.home, copied, tmp_path / "linked" / "keys")[0].read_bytes())
    extra = sorted(name for name in found if name.startswith("extra/"))
    assert extra
    assert not [name for name in extra if "keys/" in name or "pem" in name or "xwing" in name]
    packed = b"".join(found.values())
    for path in private:
        assert path.read_bytes().split()[-1] not in packed
        assert path.read_bytes().splitlines()[min(1, len(path.read_bytes().splitlines()) - 1)] not in packed
    left = dict(sent.pack(sent.home, copied)[1].left_out)
    assert left["extra/keys/owner.xwing"] == "it lies among the journey's keys"
    assert left["extra/owner.xwing.txt"] == "it holds a private key"


def test_what_does_not_fit_is_left_out_and_the_log_always_fits(
    sent: Away, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MAX_ARCHIVE_BYTES", 60_000)
    look = tmp_path / "look"
    look.mkdir()
    (look / "large").write_bytes(os.urandom(90_000))
    (look / "small").write_bytes(os.urandom(9_000))
    path, packed = sent.pack(look)
    assert (len(packed.runs), packed.extra) == (1, ("extra/small",))
    assert dict(packed.left_out) == {"extra/large": "90000 bytes: the archive was full"}
    assert path.stat().st_size <= 60_000
    monkeypatch.setattr(archive, "MAX_ARCHIVE_BYTES", 4_000)
    path, packed = sent.pack(look)
    assert (packed.runs, packed.extra) == ((), ())
    assert len(read_journey(path).log.rows) == 1


def test_packing_twice_gives_the_same_bytes(sent: Away) -> None:
    one, two = sent.pack(name="one")[0], sent.pack(name="two")[0]
    assert one.read_bytes() == two.read_bytes()


def test_only_a_fresh_home_begins_a_journey_and_only_such_a_home_is_packed(
    sent: Away, log: Log, operator_log: str, tmp_path: Path
) -> None:
    before = len(log().leaves())
    with pytest.raises(UsageError, match="fresh keys"):
        open_journey(sent.home, seed=1, budget_sec=60, ledger=log(), operator_log=operator_log)
    assert len(log().leaves()) == before
    (sent.home / "state" / "ledger" / LEAVES).unlink()
    with pytest.raises(UsageError, match="no journey began there"):
        sent.pack()
    (sent.home / "keys" / "publisher.ed25519.pem").unlink()
    with pytest.raises(UsageError, match="cannot be read"):
        sent.pack()


@pytest.mark.parametrize(("text", "seconds"), [("9m", 540), ("540s", 540), ("1h", 3600), ("24h", 86_400)])
def test_a_budget_is_a_time(text: str, seconds: int) -> None:
    assert budget_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "9", "9 m", "0m", "-9m", "1.5h", "25h", "99999h", "9M"])
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a budget"):
        budget_seconds(text)


def test_an_open_journey_is_shown(
    root: Path, log: Log, go: Leave, put: Callable[..., Published], pair: Any
) -> None:
    log()
    away = go()
    put(pair[0])
    page = render(read_publication(Workspace.of_source(root)))["ledger.md"].decode()
    assert "open: a kit left, nothing came back" in page
    assert away.journey.id in page
    assert "<dt>Journeys away</dt><dd>1</dd>" in page


def _log_of(root: Path, away: Away) -> PublishedLog:
    log = read_publication(Workspace.of_source(root)).logs.of(away.journey.commitment[:16])
    assert log is not None
    return log


def _files(root: Path) -> dict[str, bytes]:
    places = [root / "site", root / "conf"]
    return {str(path): path.read_bytes() for place in places for path in place.rglob("*") if path.is_file()}
