"""What a bundle's verification must catch from someone who holds no key of its signers."""

from __future__ import annotations

import copy
import dataclasses
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from glasshouse.canonical import canonical_json, sha256_hex
from glasshouse.errors import UsageError
from glasshouse.records.bundle import ENVELOPE, MAX_FILE_BYTES, RECORD
from glasshouse.records.keys import Keyring
from glasshouse.records.verify import VerifiedRow, bundle_folder, verify
from tests.specs import make_spec

from .conftest import Made
from .factory import Factory
from .ruin import failed, read


@pytest.fixture
def bundle(made: Made, tmp_path: Path) -> Path:
    """A copy of the good bundle that a test may ruin."""
    return Path(shutil.copytree(made.folder, tmp_path / "bundle"))


def test_a_good_bundle(made: Made) -> None:
    found = verify(made.folder, made.factory.keyring)
    assert [check for check in found.checks if not check.ok] == []
    assert (found.ok, found.status, found.overhead_pct) == (True, "verified", 0.0)
    row = found.require()
    assert (row.run, row.id) == (made.run, made.judgement.row)
    assert row.bundle_sha256 == sha256_hex((made.folder / ENVELOPE).read_bytes())
    assert row.judgement.record() == (made.folder / RECORD).read_bytes()
    assert {check.code for check in found.checks} >= {
        "files-listed", "bundle-signature", "file-digests", "plan-signature", "plan-in-ledger",
        "schedule-from-seed", "legs-as-planned", "leg-evidence", "record-recomputed", "statement",
    }  # fmt: skip


def test_the_form_of_verify_json(made: Made) -> None:
    document = verify(made.folder, made.factory.keyring).verdict("somewhere").as_json()
    assert set(document) == {"path", "ok", "status", "overheadPct", "signer", "checks"}
    assert all(set(check) == {"code", "ok", "detail"} for check in document["checks"])
    assert document["signer"].startswith("test operator")
    canonical_json(document)


def test_a_run_folder_will_do_and_nothing_else(made: Made, tmp_path: Path) -> None:
    assert bundle_folder(made.folder.parent) == bundle_folder(made.folder) == made.folder
    assert verify(made.folder.parent, made.factory.keyring).ok
    for path in (tmp_path, tmp_path / "absent", made.folder / RECORD):
        with pytest.raises(UsageError):
            verify(path, made.factory.keyring)


def positions(size: int) -> list[int]:
    some = random.Random(size)  # the same places every time
    return sorted({0, size // 2, size - 1, *(some.randrange(size) for _ in range(3))})


def test_any_changed_byte_of_any_file_fails_and_names_the_file(made: Made, bundle: Path) -> None:
    for name, data in read(bundle).items():
        for position in positions(len(data)):
            flipped = data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
            (bundle / name).write_bytes(flipped)
            assert any(name in detail for detail in failed(made, bundle).values()), (name, position)
        (bundle / name).write_bytes(data)
    assert verify(bundle, made.factory.keyring).ok


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"\n", lambda data: b""])
def test_cut_padded_or_emptied_files(made: Made, bundle: Path, change: Callable[[bytes], bytes]) -> None:
    for name, data in read(bundle).items():
        (bundle / name).write_bytes(change(data))
        assert any(name in detail for detail in failed(made, bundle).values()), name
        (bundle / name).write_bytes(data)


def test_every_file_is_needed(made: Made, bundle: Path) -> None:
    for name, data in read(bundle).items():
        (bundle / name).unlink()
        found = failed(made, bundle)
        assert name in found["file-missing"], name
        (bundle / name).write_bytes(data)


@pytest.mark.parametrize(
    "name",
    ["notes.txt", "legs/s000-raw/secret.pem", "legs/s000-raw/deeper/x.json", "legs/x.json", ".hidden",
     "more/plan.json", "legs/s001-protected/result.json", "legs/s000-raw/events.jsonl",
     "legs/s007-raw/launch.json"],
)  # fmt: skip
def test_an_added_file_fails(made: Made, bundle: Path, name: str) -> None:
    (bundle / name).parent.mkdir(parents=True, exist_ok=True)
    (bundle / name).write_bytes(b"{}" if name.endswith("json") else b"{}\n")
    assert "file-unlisted" in failed(made, bundle)


def test_empty_folders_links_pipes_and_oversize_files_fail(made: Made, bundle: Path) -> None:
    (bundle / "legs/s003-raw").mkdir()
    assert "folder-empty" in failed(made, bundle)
    (bundle / "legs/s003-raw").rmdir()

    data = (bundle / "release.json").read_bytes()
    (bundle / "release.json").unlink()
    (bundle / "release.json").symlink_to(made.folder / "release.json")
    assert "release.json" in failed(made, bundle)["file-unreadable"]
    (bundle / "release.json").unlink()
    os.mkfifo(bundle / "release.json")
    assert "release.json" in failed(made, bundle)["file-unreadable"]
    (bundle / "release.json").unlink()
    with (bundle / "release.json").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    assert "release.json" in failed(made, bundle)["file-unreadable"]
    (bundle / "release.json").write_bytes(data)

    moved = bundle / "legs" / "s000-raw"
    moved.rename(bundle.parent / "elsewhere")
    moved.symlink_to(bundle.parent / "elsewhere")
    assert failed(made, bundle)


def test_renamed_and_swapped_legs_fail(made: Made, bundle: Path) -> None:
    (bundle / "legs/s000-raw").rename(bundle / "legs/s002-raw")
    assert {"file-missing", "file-unlisted"} <= set(failed(made, bundle))


def test_unknown_retired_or_misplaced_signers_fail(made: Made) -> None:
    ring = made.factory.keyring
    assert "signer-unknown" in failed(made, made.folder, Keyring())
    operator = next(entry for entry in ring.entries if entry.role == "operator")
    others = tuple(entry for entry in ring.entries if entry.role != "operator")
    as_publisher = dataclasses.replace(operator, role="publisher")
    assert "signer-role" in failed(made, made.folder, Keyring((*others, as_publisher)))
    retired = dataclasses.replace(operator, valid_until=0, valid_from=0)
    assert verify(made.folder, Keyring((*others, retired))).ok  # plan 0 is of its time
    later = dataclasses.replace(operator, valid_from=1)
    assert "plan-signature" in failed(made, made.folder, Keyring((*others, later)))


def test_a_retired_signer_without_a_place_in_the_ledger_is_said(factory: Factory, tmp_path: Path) -> None:
    """Whoever stole the key can name an entry of its time: the bundle alone cannot show that it is not so."""
    run, files = factory.parts(make_spec())
    factory.write(tmp_path / "bundle", run, files)
    for until, said in ((None, False), (0, True)):
        entries = [
            dataclasses.replace(entry, valid_until=until) if entry.role == "operator" else entry
            for entry in factory.keyring.entries
        ]
        found = verify(tmp_path / "bundle", Keyring(tuple(entries)))
        assert found.ok
        assert ("signer-retired-since" in {check.code for check in found.checks}) == said


def test_without_the_brokers_key_the_record_does_not_follow(made: Made) -> None:
    ring = Keyring(tuple(entry for entry in made.factory.keyring.entries if entry.role != "broker"))
    found = failed(made, made.folder, ring)
    assert "signer-unknown" in found["leg-evidence"]
    assert "record-recomputed" in found


def test_a_row_is_made_by_verification_only(made: Made) -> None:
    row = verify(made.folder, made.factory.keyring).require()
    fields = {item.name: getattr(row, item.name) for item in dataclasses.fields(row)}
    with pytest.raises(TypeError, match="verification only"):
        VerifiedRow(**fields)
    with pytest.raises((TypeError, ValueError)):
        dataclasses.replace(row, bundle_sha256="0" * 64)
    assert copy.copy(row).id == row.id
