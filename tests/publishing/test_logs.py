"""Several machines publish into one repository, each into the log of its own publisher key."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from glasshouse.canonical import parse_json
from glasshouse.errors import VerificationError
from glasshouse.paths import Workspace
from glasshouse.publishing.artifact import Artifact, artifact_sha256, parse_artifact
from glasshouse.publishing.logs import PublishedLogs, unentered
from glasshouse.publishing.pages import render
from glasshouse.publishing.publication_files import LEDGER, read_publication
from glasshouse.publishing.published_log import check_inclusion, check_log
from glasshouse.publishing.verify_artifact import check_artifact
from glasshouse.records.keys import Keyring
from glasshouse.records.leaf_bodies import ReportedBody
from glasshouse.records.ledger import Ledger, log_key, parse_leaves, sign_checkpoint
from tests.specs import make_spec

from .conftest import Machine, Machines, list_keys

REPORTED = "2026-05-16-runpod-h100-mlp-30m-protected-first"


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def codes_of(call: Callable[[], object]) -> tuple[str, ...]:
    with pytest.raises(VerificationError) as caught:
        call()
    return caught.value.codes


def artifact_of(root: Path, row: str) -> Artifact:
    return parse_artifact((root / "site/research/artifacts" / f"{row}.json").read_bytes())


def test_two_machines_publish_one_after_the_other_and_leave_each_others_log_alone(
    root: Path, machines: Machines
) -> None:
    one, two = machines
    one.publish()
    first = tree(one.log)
    waiting, _ = two.factory.parts(make_spec())
    done = two.publish()
    assert waiting in done.withheld
    assert tree(one.log) == first
    assert {path.name for path in (root / LEDGER).iterdir()} == {one.key, two.key}
    # The history was entered by the first one, so the second one has nothing to enter of it.
    assert {leaf.kind for leaf in two.ledger.leaves()} == {"plan", "row"}
    # Each goes on by itself, and the same call again writes nothing.
    second = tree(two.log)
    one.publish(one.folder, one.run())
    assert tree(two.log) == second
    before = tree(root)
    assert one.publish().written == two.publish().written == ()
    assert tree(root) == before

    publication = read_publication(Workspace.of_source(root))
    pages = render(publication)
    ledger = pages["ledger.md"].decode()
    sums = re.findall(r"<b>(\d+)</b> planned.*?<b>(\d+)</b> ended.*?<b>(\d+)</b> open", ledger)
    by_key = {one.key: ("2", "2", "0"), two.key: ("2", "1", "1")}
    assert sums == [("4", "3", "1"), *(by_key[key] for key in sorted(by_key))]
    for machine in machines:
        assert f'<h3 id="log-{machine.key}">' in ledger
        assert f"research/ledger/{machine.key}/leaves.jsonl" in ledger
        page = pages[f"rows/{machine.row}.md"].decode()
        assert f"glasshouse/ledger/{machine.key}</code>" in page
        assert f'href="../../ledger/#log-{machine.key}"' in page
        inclusion = pages[f"research/inclusion/{machine.row}.json"]
        assert "unwitnessed" in check_inclusion(inclusion, artifact_of(root, machine.row), one.keyring)
        path = root / "site/research/artifacts" / f"{machine.row}.json"
        assert check_artifact(path, one.keyring).ok
    assert "1 plan is open and 0 rows are withheld" in pages["exclusions.md"].decode()
    assert "without a published log" not in ledger


def test_a_lost_machines_log_stays_and_another_machine_retracts_its_row(
    root: Path, machines: Machines
) -> None:
    lost, other = machines
    waiting, _ = lost.factory.parts(make_spec())
    lost.publish()
    kept = tree(lost.log)
    shutil.rmtree(lost.factory.folder)  # its state folder and, with it, everything unpublished
    other.publish()
    done = other.retract(lost.row, "the  machine was shared")
    assert set(done.written) == {
        f"site/research/artifacts/{lost.row}.json",
        f"site/research/ledger/{other.key}/leaves.jsonl",
        f"site/research/ledger/{other.key}/checkpoint.txt",
    }
    assert tree(lost.log) == kept
    pages = render(read_publication(Workspace.of_source(root)))
    line = next(text for text in pages["ledger.md"].decode().splitlines() if waiting in text)
    assert "open: no row yet" in line
    page = pages[f"rows/{lost.row}.md"].decode()
    assert "Retracted on 2026-11-21.</strong> the machine was shared" in page
    assert f'#log-{other.key}">the log of test publisher 2' in page
    path = root / "site/research/artifacts" / f"{lost.row}.json"
    checks = {check.code: check for check in check_artifact(path, other.keyring).checks}
    assert checks["ledger-inclusion"].ok
    assert "counts for nothing" in checks["retracted"].detail
    before = tree(root)
    assert other.retract(lost.row, "again").written == other.publish().written == ()
    assert tree(root) == before
    # Without the entry in the other log, the artifact claims a retraction that nobody entered.
    shutil.rmtree(other.log)
    codes = codes_of(lambda: read_publication(Workspace.of_source(root)))
    assert f"ledger-retraction-differs:{lost.row}" in codes


def test_of_two_retractions_on_two_branches_the_newest_counts(
    root: Path, machines: Machines, tmp_path: Path
) -> None:
    one, two = machines
    one.publish()
    two.publish()
    branch = tmp_path / "branch"
    shutil.copytree(root / "site", branch / "site")
    shutil.copytree(root / "conf", branch / "conf")
    two.retract(one.row, "the later reason", workspace=Workspace.of_source(branch))
    one.retract(one.row, "the earlier reason")
    shutil.copytree(branch / LEDGER / two.key, two.log, dirs_exist_ok=True)  # merged: no file in conflict
    codes = codes_of(lambda: read_publication(Workspace.of_source(root)))
    assert codes == (f"ledger-retraction-differs:{one.row}",)
    assert one.publish().written == (f"site/research/artifacts/{one.row}.json",)
    retracted = artifact_of(root, one.row).retracted
    assert retracted is not None
    assert retracted.reason == "the later reason"
    read_publication(Workspace.of_source(root))


def test_one_ledger_is_not_published_under_two_keys(root: Path, machines: Machines) -> None:
    one, two = machines
    one.publish()
    before = tree(root)
    run = artifact_of(root, one.row).run
    codes = codes_of(lambda: two.publish(one.folder, ledger=one.ledger))
    assert codes == (f"ledger-run-twice:{run}", f"ledger-row-twice:{one.row}")
    assert tree(root) == before
    # Signed and put there by hand, it stops the build.
    two.log.mkdir()
    (two.log / "leaves.jsonl").write_bytes((one.log / "leaves.jsonl").read_bytes())
    leaves = parse_leaves((one.log / "leaves.jsonl").read_bytes())
    (two.log / "checkpoint.txt").write_text(sign_checkpoint(leaves, two.factory.publisher))
    assert codes_of(lambda: read_publication(Workspace.of_source(root))) == codes
    path = root / "site/research/artifacts" / f"{one.row}.json"
    checks = {check.code: check for check in check_artifact(path, one.keyring).checks}
    assert not checks["ledger-inclusion"].ok
    assert "ledger-row-twice" in checks["ledger-inclusion"].detail


def test_a_rows_id_stands_in_one_log_only(root: Path, machines: Machines) -> None:
    one, two = machines
    one.publish()
    run = "20270101-000000-aaaaaa"
    two.ledger.register_plan(run, lambda serial, now: b"envelope")
    digest = "0" * 64
    two.ledger.append_row(run=run, row=one.row, status="verified", record_sha256=digest, bundle_sha256=digest)
    before = tree(root)
    assert codes_of(two.publish) == (f"ledger-row-twice:{one.row}",)
    assert tree(root) == before


def test_a_log_whose_signer_is_not_listed_stops_build_and_publication(root: Path, machines: Machines) -> None:
    one, two = machines
    one.publish()
    two.publish()
    entries = one.keyring.entries
    listed = Keyring(tuple(entry for entry in entries if log_key(entry.public) != two.key))
    list_keys(root, listed)
    codes = codes_of(lambda: read_publication(Workspace.of_source(root)))
    assert codes == (f"ledger-signer-unknown:{two.key}",)
    before, count = tree(root), len(one.ledger.leaves())
    again = one.run()
    assert codes_of(lambda: one.publish(again, keyring=listed)) == (f"ledger-signer-unknown:{two.key}",)
    assert codes_of(lambda: one.retract(one.row, "x", keyring=listed)) == (
        f"ledger-signer-unknown:{two.key}",
    )
    assert tree(root) == before
    assert len(one.ledger.leaves()) == count + 2  # the new run's own plan and row
    # Verifying one row needs the signer of its own log alone.
    results = {
        machine.row: check_artifact(root / "site/research/artifacts" / f"{machine.row}.json", listed)
        for machine in machines
    }
    assert results[one.row].ok
    detail = results[two.row].checks[-1].detail
    assert f"ledger-signer-unknown:{two.key}" in detail


def test_a_retired_key_extends_its_log_no_further(root: Path, machines: Machines) -> None:
    one, two = machines
    one.publish()
    last = len(one.ledger.leaves()) - 1
    retired = Keyring(
        tuple(
            dataclasses.replace(entry, valid_until=last) if log_key(entry.public) == one.key else entry
            for entry in one.keyring.entries
        )
    )
    list_keys(root, retired)
    read_publication(Workspace.of_source(root))
    before = tree(root)
    assert codes_of(lambda: one.retract(one.row, "x", keyring=retired)) == ("ledger-signer-retired",)
    assert len(one.ledger.leaves()) == last + 1
    assert tree(root) == before
    two.publish(keyring=retired)
    two.retract(one.row, "the key was stolen", keyring=retired)
    read_publication(Workspace.of_source(root))


def _stray_file(one: Machine, two: Machine) -> str:
    (one.root / LEDGER / "leaves.jsonl").write_bytes(b"")
    return "ledger-stray:leaves.jsonl"


def _stray_folder(one: Machine, two: Machine) -> str:
    (one.root / LEDGER / "old").mkdir()
    return "ledger-stray:old"


def _stray_in_log(one: Machine, two: Machine) -> str:
    (one.log / "notes.txt").write_text("x")
    return f"ledger-stray:{one.key}/notes.txt"


def _linked(one: Machine, two: Machine) -> str:
    (one.root / LEDGER / ("0" * 16)).symlink_to(one.log)
    return f"ledger-stray:{'0' * 16}"


def _under_another_name(one: Machine, two: Machine) -> str:
    shutil.copytree(one.log, two.log)
    return f"ledger-folder-name:{two.key}"


def _without_checkpoint(one: Machine, two: Machine) -> str:
    two.log.mkdir()
    (two.log / "leaves.jsonl").write_bytes(b"")
    return f"ledger-incomplete:{two.key}"


@pytest.mark.parametrize(
    "put_there",
    [_stray_file, _stray_folder, _stray_in_log, _linked, _under_another_name, _without_checkpoint],
)
def test_nothing_but_whole_logs_may_lie_in_the_ledgers_folder(
    root: Path, machines: Machines, put_there: Callable[[Machine, Machine], str]
) -> None:
    one, two = machines
    one.publish()
    code = put_there(one, two)
    assert codes_of(lambda: read_publication(Workspace.of_source(root))) == (code,)
    before = tree(root)
    with pytest.raises(VerificationError, match="restore site/research/ledger") as caught:
        two.publish()
    assert caught.value.codes == (code,)
    assert tree(root) == before


def test_a_lost_state_folder_is_refused_and_a_new_key_begins_a_new_log(
    root: Path, machines: Machines, tmp_path: Path
) -> None:
    one, two = machines
    one.publish()
    with pytest.raises(VerificationError, match="a new key begins a log of its own") as caught:
        one.publish(ledger=Ledger(tmp_path / "empty"))
    assert caught.value.codes == ("ledger-shrunk",)
    assert "\n" not in str(caught.value)
    two.publish()  # its key is the new one, its ledger has another past
    read_publication(Workspace.of_source(root))


def test_a_listed_publisher_without_a_log_is_named(root: Path, machines: Machines) -> None:
    one, two = machines
    one.publish()
    page = render(read_publication(Workspace.of_source(root)))["ledger.md"].decode()
    assert f"without a published log: test publisher 2 ({two.key})." in page
    assert "logs together" not in page


def test_two_homes_share_the_local_overlay(root: Path, machines: Machines) -> None:
    one, two = machines
    own = [
        Keyring(tuple(dataclasses.replace(entry, local=True) for entry in machine.factory.keyring.entries))
        for machine in machines
    ]
    one.publish(keyring=own[0], local=True)
    first = tree(root / "build/artifacts/ledger" / one.key)
    two.publish(keyring=own[1], local=True)
    assert tree(root / "build/artifacts/ledger" / one.key) == first
    before = tree(root)
    assert one.publish(keyring=own[0], local=True).written == ()
    assert two.publish(keyring=own[1], local=True).written == ()
    assert tree(root) == before
    publication = read_publication(Workspace.of_source(root))
    assert [log.key for log in publication.local_logs.logs] == sorted([one.key, two.key])
    pages = render(publication)
    assert len(json.loads(pages["research/local-ledger/keyring.json"])["keys"]) == 8
    for machine in machines:
        assert f"research/inclusion/{machine.row}.json" in pages
        assert f"research/local-ledger/{machine.key}/leaves.jsonl" in pages
        assert f"#local-log-{machine.key}" in pages[f"rows/{machine.row}.md"].decode()
    # What does not check out there is named with a remedy, too.
    (root / "build/artifacts/ledger/leaves.jsonl").write_bytes(b"")
    with pytest.raises(VerificationError, match="or remove it") as caught:
        one.publish(keyring=own[0], local=True)
    assert caught.value.codes == ("ledger-stray:leaves.jsonl",)


def test_a_reported_row_is_entered_when_no_log_holds_its_present_bytes(
    root: Path, machines: Machines
) -> None:
    one, two = machines
    one.publish()
    artifact = artifact_of(root, REPORTED)
    two.ledger.append(ReportedBody(REPORTED, "0" * 64))  # later, of other bytes
    logs = PublishedLogs()
    for machine in machines:
        leaves = machine.ledger.leaves()
        data = b"".join(leaf.data + b"\n" for leaf in leaves)
        note = sign_checkpoint(leaves, machine.factory.publisher)
        logs = logs.replaced(check_log(data, note, machine.keyring))
    assert unentered(logs, {REPORTED: artifact}) == []
    inclusion = logs.inclusion(artifact.id, artifact_sha256(artifact))
    assert inclusion is not None
    assert "test publisher 1" in check_inclusion(inclusion, artifact, one.keyring)
    changed = artifact.model_copy(update={"overhead_pct": 1.0})
    assert unentered(logs, {REPORTED: changed}) == [ReportedBody(REPORTED, artifact_sha256(changed))]
    newest = logs.inclusion(changed.id, artifact_sha256(changed))
    assert newest is not None
    assert parse_json(newest)["row"]["leaf"]["artifactSha256"] == "0" * 64
