from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest

from glasshouse.canonical import canonical_json, parse_json
from glasshouse.errors import VerificationError
from glasshouse.judgement.rules import Check
from glasshouse.paths import Workspace
from glasshouse.publishing.pages import render
from glasshouse.publishing.publication_files import read_publication
from glasshouse.publishing.publish import Published, refresh_history
from glasshouse.publishing.published_log import Entry, check_inclusion, check_log
from glasshouse.publishing.verify_artifact import check_artifact
from glasshouse.records import merkle
from glasshouse.records.keys import keyid, public_bytes
from glasshouse.records.leaf_bodies import LeafBody
from glasshouse.records.ledger import Ledger, log_key, sign_checkpoint
from glasshouse.records.signed_note import cosign
from glasshouse.records.verify import VerifiedRow
from tests.records.factory import Factory
from tests.specs import make_spec

Bundle = tuple[Path, VerifiedRow]
Put = Callable[..., Published]
Log = Callable[[], Ledger]
LEDGER = Path("site/research/ledger")
REPORTED = "2026-05-16-runpod-h100-mlp-30m-protected-first"


def test_every_kind_of_leaf_that_is_written_can_be_published() -> None:
    assert [body.__name__ for body in get_args(LeafBody)] == [
        leaf.__name__.replace("Leaf", "Body") for leaf in get_args(Entry)
    ]
    for body, leaf in zip(get_args(LeafBody), get_args(Entry), strict=True):
        assert issubclass(leaf, body)


def codes_of(root: Path) -> tuple[str, ...]:
    with pytest.raises(VerificationError) as caught:
        read_publication(Workspace.of_source(root))
    return caught.value.codes


def log_folder(root: Path) -> Path:
    """The one log of a publication that one machine made."""
    (folder,) = (root / LEDGER).iterdir()
    return folder


def rewrite(root: Path, factory: Factory, lines: Sequence[bytes]) -> None:
    """A ledger of other lines, with a checkpoint that signs them: what a publisher could do."""
    from glasshouse.records.ledger import Leaf

    leaves = [Leaf(number, "plan", {}, line) for number, line in enumerate(lines)]
    (log_folder(root) / "leaves.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    (log_folder(root) / "checkpoint.txt").write_text(sign_checkpoint(leaves, factory.publisher))


def lines_of(root: Path) -> list[bytes]:
    return (log_folder(root) / "leaves.jsonl").read_bytes().splitlines()


def test_the_ledger_is_published_with_the_row_and_holds_it(
    root: Path, pair: Bundle, factory: Factory, put: Put, log: Log
) -> None:
    folder, row = pair
    put(folder)
    assert (log_folder(root) / "leaves.jsonl").read_bytes() == b"".join(
        leaf.data + b"\n" for leaf in log().leaves()
    )
    publication = read_publication(Workspace.of_source(root))
    pages = render(publication)
    inclusion = pages[f"research/inclusion/{row.id}.json"]
    artifact = next(item for item in publication.artifacts if item.id == row.id)
    assert "unwitnessed" in check_inclusion(inclusion, artifact, factory.keyring)
    page = pages[f"rows/{row.id}.md"].decode()
    place = publication.logs.place(row.id)
    assert place is not None
    assert f"entry {place.row.serial}," in page
    assert all(item in page for item in place.row_proof)
    assert 'id="gh-verify"' in page
    assert 'id="gh-verify"' not in pages[f"rows/{REPORTED}.md"].decode()
    ledger = pages["ledger.md"].decode()
    assert row.id in ledger
    assert "none: unwitnessed" in ledger


def test_reported_rows_are_entered_once_and_again_when_they_change(
    root: Path, pair: Bundle, factory: Factory, put: Put, log: Log
) -> None:
    put(pair[0])
    count = len(log().leaves())
    put(pair[0])
    assert len(log().leaves()) == count
    path = root / "site/research/artifacts" / f"{REPORTED}.json"
    checks = {check.code: check for check in check_artifact(path, factory.keyring).checks}
    assert checks["ledger-inclusion"].ok
    assert "signed by test publisher" in checks["ledger-inclusion"].detail
    changed = parse_json(path.read_bytes()) | {"protectedElapsedSec": 1900.0}
    path.write_bytes(canonical_json(changed))
    checks = {check.code: check for check in check_artifact(path, factory.keyring).checks}
    assert not checks["ledger-inclusion"].ok
    assert "ledger-row-differs" in checks["ledger-inclusion"].detail


def test_open_plans_and_withheld_runs_are_named_on_the_page(
    root: Path, pair: Bundle, make_run: Any, factory: Factory, put: Put
) -> None:
    waiting, _ = factory.parts(make_spec())
    _, withheld = make_run()
    put(pair[0])
    page = render(read_publication(Workspace.of_source(root)))["ledger.md"].decode()
    line = next(text for text in page.splitlines() if waiting in text)
    assert "open: no row yet" in line
    line = next(text for text in page.splitlines() if withheld.id in text)
    assert "withheld" in line
    assert "are withheld" in page or "is withheld" in page


@pytest.mark.parametrize("where", [0, 1, -1])
def test_a_changed_or_removed_leaf_stops_the_build(root: Path, pair: Bundle, put: Put, where: int) -> None:
    put(pair[0])
    whole = lines_of(root)
    changed = json.loads(whole[where]) | {"time": 1.5}
    lines = list(whole)
    lines[where] = canonical_json(changed)
    (log_folder(root) / "leaves.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    assert codes_of(root) == (f"ledger-rewritten:{log_folder(root).name}",)
    del lines[where]
    (log_folder(root) / "leaves.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    code = "ledger-shrunk" if where == -1 else "ledger-malformed"
    assert codes_of(root) == (f"{code}:{log_folder(root).name}",)


def test_an_altered_or_foreign_checkpoint_stops_the_build(
    root: Path, pair: Bundle, put: Put, log: Log, tmp_path: Path
) -> None:
    put(pair[0])
    path = log_folder(root) / "checkpoint.txt"
    note = path.read_text()
    path.write_text(note.replace(f"\n{len(lines_of(root))}\n", f"\n{len(lines_of(root)) - 1}\n"))
    assert codes_of(root) == (f"note-signature:{path.parent.name}",)
    other = Factory(tmp_path / "other")
    path.write_text(sign_checkpoint(log().leaves(), other.publisher))
    assert codes_of(root) == (f"ledger-signer-unknown:{path.parent.name}",)
    path.unlink()
    assert codes_of(root) == (f"ledger-incomplete:{path.parent.name}",)
    shutil.rmtree(root / LEDGER)
    assert codes_of(root) == (f"row-not-in-ledger:{pair[1].id}",)


def test_leaves_beyond_the_checkpoint_stop_the_build(
    root: Path, pair: Bundle, factory: Factory, put: Put
) -> None:
    put(pair[0])
    extra = canonical_json({"kind": "key", "keyid": "0" * 64, "role": "broker", "serial": len(lines_of(root)),
                            "state": "added", "time": 1.0})  # fmt: skip
    with (log_folder(root) / "leaves.jsonl").open("ab") as file:
        file.write(extra + b"\n")
    assert codes_of(root) == (f"ledger-size:{log_folder(root).name}",)


@pytest.mark.parametrize(
    "wrong",
    [
        ({"bundleSha256": "0" * 64}, "ledger-row-differs"),
        ({"status": "excluded"}, "ledger-row-differs"),
        ({"row": "another-row"}, "row-not-in-ledger"),
        ({"planSerial": 10_000}, "ledger-row-without-plan"),
        ({"host": "203.0.113.9"}, "ledger-field"),
        ({"status": "/home/someone"}, "ledger-field"),
    ],
)
def test_a_resigned_ledger_that_does_not_fit_the_rows_stops_the_build(
    root: Path, pair: Bundle, factory: Factory, put: Put, wrong: tuple[dict[str, Any], str]
) -> None:
    edit, code = wrong
    put(pair[0])
    lines = lines_of(root)
    at = next(n for n, line in enumerate(lines) if json.loads(line).get("row") == pair[1].id)
    lines[at] = canonical_json(json.loads(lines[at]) | edit)
    rewrite(root, factory, lines)
    found = codes_of(root)
    assert len(found) == 1
    assert found[0].startswith(code)


def test_a_retraction_that_was_edited_in_or_out_stops_the_build(
    root: Path, pair: Bundle, put: Put, withdraw: Put, factory: Factory
) -> None:
    put(pair[0])

    def verified() -> Check:
        entry = check_artifact(path, factory.keyring)
        return next(check for check in entry.checks if check.code == "ledger-inclusion")

    path = root / "site/research/artifacts" / f"{pair[1].id}.json"
    original = path.read_bytes()
    edited = parse_json(original) | {"retracted": {"date": "2026-11-21", "reason": "no reason"}}
    path.write_bytes(canonical_json(edited))
    assert codes_of(root) == (f"ledger-retraction-differs:{pair[1].id}",)
    assert "ledger-retraction-differs" in verified().detail
    assert not verified().ok
    path.write_bytes(canonical_json(parse_json(original) | {"supersededBy": REPORTED}))
    assert codes_of(root) == (f"ledger-supersession-differs:{pair[1].id}",)
    path.write_bytes(original)
    assert verified().ok
    withdraw(pair[1].id, reason="the machine was shared", day="2026-11-21")
    assert verified().ok
    path.write_bytes(original)
    assert codes_of(root) == (f"ledger-retraction-differs:{pair[1].id}",)
    assert not verified().ok


def test_a_ledger_with_another_past_is_refused_in_one_line(
    root: Path, pair: Bundle, put: Put, tmp_path: Path
) -> None:
    put(pair[0])
    site = root / "site"
    before = {path: path.read_bytes() for path in site.rglob("*") if path.is_file()}
    rewritten = tmp_path / "rewritten"
    rewritten.mkdir()
    lines = lines_of(root)
    lines[0] = canonical_json(json.loads(lines[0]) | {"time": 1.5})
    (rewritten / "leaves.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    with pytest.raises(VerificationError, match="not a continuation") as caught:
        put(pair[0], ledger=Ledger(rewritten))
    assert caught.value.codes == ("ledger-rewritten",)
    assert "\n" not in str(caught.value)
    with pytest.raises(VerificationError) as caught:
        put(pair[0], ledger=Ledger(tmp_path / "empty"))
    assert caught.value.codes == ("ledger-shrunk",)
    assert {path: path.read_bytes() for path in site.rglob("*") if path.is_file()} == before


def test_a_row_of_another_ledger_is_not_published(root: Path, pair: Bundle, put: Put, tmp_path: Path) -> None:
    with pytest.raises(VerificationError) as caught:
        put(pair[0], ledger=Ledger(tmp_path / "empty"))
    assert caught.value.codes == (f"row-not-in-ledger:{pair[1].id}",)
    assert not (root / LEDGER).exists()
    # Locally it is shown, and said to be of another ledger.
    put(pair[0], ledger=Ledger(tmp_path / "empty"), local=True)
    page = render(read_publication(Workspace.of_source(root)))[f"rows/{pair[1].id}.md"].decode()
    assert "it was entered in another one" in page


def test_an_unlisted_publisher_enters_nothing(pair: Bundle, factory: Factory, put: Put, log: Log) -> None:
    count = len(log().leaves())
    with pytest.raises(VerificationError) as caught:
        put(pair[0], key=factory.operator)
    assert caught.value.codes == ("signer-unknown",)
    assert len(log().leaves()) == count


def test_a_co_signature_is_shown_and_kept_while_nothing_is_added(
    root: Path, pair: Bundle, factory: Factory, put: Put
) -> None:
    put(pair[0])
    path = log_folder(root) / "checkpoint.txt"
    path.write_text(cosign(path.read_text(), "witness.example/w1", factory.witness, 1_790_000_000))
    assert put(pair[0]).written == ()
    publication = read_publication(Workspace.of_source(root))
    (shown,) = publication.logs.logs[0].witnesses
    assert shown == f"witness.example/w1 ({keyid(public_bytes(factory.witness))[:16]})"
    assert "witness.example/w1" in render(publication)["ledger.md"].decode()


def test_the_local_ledger_is_shown_apart(root: Path, pair: Bundle, factory: Factory, put: Put) -> None:
    put(pair[0], local=True)
    assert not (root / LEDGER).exists()
    publication = read_publication(Workspace.of_source(root))
    assert publication.logs.logs == ()
    pages = render(publication)
    assert "No log has been published yet" in pages["ledger.md"].decode()
    assert "local rows</h2>" in pages["ledger.md"].decode()
    keys = json.loads(pages["research/local-ledger/keyring.json"])["keys"]
    assert {key["role"] for key in keys} == {"operator", "broker", "publisher", "witness"}
    key = log_key(public_bytes(factory.publisher))
    check_log(
        pages[f"research/local-ledger/{key}/leaves.jsonl"],
        pages[f"research/local-ledger/{key}/checkpoint.txt"].decode(),
        factory.keyring,
    )
    assert f"research/inclusion/{pair[1].id}.json" in pages
    entry = check_artifact(root / "build/artifacts" / f"{pair[1].id}.json", factory.keyring)
    assert entry.ok
    assert [check.ok for check in entry.checks if check.code == "ledger-inclusion"] == [True]


@pytest.mark.parametrize("part", ["plan", "row", "checkpoint", "proof"])
def test_an_inclusion_file_with_one_part_changed_fails(
    root: Path, pair: Bundle, factory: Factory, put: Put, part: str
) -> None:
    put(pair[0])
    publication = read_publication(Workspace.of_source(root))
    artifact = next(item for item in publication.artifacts if item.id == pair[1].id)
    found = json.loads(render(publication)[f"research/inclusion/{pair[1].id}.json"])
    if part == "checkpoint":
        found["checkpoint"] = found["checkpoint"].replace("\n", "x\n", 1)
    elif part == "proof":
        found["row"]["proof"][0] = "00" * 32
    else:
        found[part]["leaf"]["time"] += 1
    with pytest.raises(VerificationError):
        check_inclusion(canonical_json(found), artifact, factory.keyring)
    other = dataclasses.replace(factory.keyring, entries=())
    with pytest.raises(VerificationError, match="no publisher"):
        check_inclusion(render(publication)[f"research/inclusion/{pair[1].id}.json"], artifact, other)


def test_the_tree_gives_the_proofs_of_the_functions() -> None:
    for size in range(1, 40):
        hashes = [merkle.leaf_hash(bytes([n])) for n in range(size)]
        tree = merkle.Tree(hashes)
        assert tree.root() == merkle.root(hashes)
        for index in range(size):
            assert tree.inclusion_proof(index) == merkle.inclusion_proof(hashes, index)
    assert merkle.Tree([]).root() == merkle.root([])


def test_history_is_imported_again_and_the_second_time_writes_nothing(root: Path) -> None:
    folder = root / "site/research/artifacts"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert refresh_history(root).written == ()
    path = folder / f"{REPORTED}.json"
    path.write_bytes(path.read_bytes().replace(b"2.58", b"0.58"))
    (folder / "2026-05-15-runpod-h100-mlp-30m-raw-first.json").unlink()
    stray = parse_json(before[path.name]) | {"id": "no-longer-there"}
    (folder / "no-longer-there.json").write_bytes(canonical_json(stray))
    assert len(refresh_history(root).written) == 3
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    read_publication(Workspace.of_source(root))
