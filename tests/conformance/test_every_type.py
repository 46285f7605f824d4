"""Every field of every file of a published row as every other JSON type: `verify` and a build end cleanly.

The lab's publisher signs what was altered, so that what lies behind a signature is reached, too. Most of it
must fail; some of it is another good row. Nothing of it may be a fault of ours.
"""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glasshouse import cli
from glasshouse.canonical import canonical_json, parse_json, sha256_hex
from glasshouse.errors import GlasshouseError, VerificationError
from glasshouse.publishing.claim_sources import read_claim_sources
from glasshouse.publishing.publication_files import read_artifact
from glasshouse.publishing.verify_artifact import check_artifact
from glasshouse.records.bundle import ENVELOPE, PLAN, RECORD, bundle_of, read_bundle
from glasshouse.records.keys import parse_keyring
from glasshouse.records.signing import BUNDLE_TYPE, PLAN_TYPE, sign_statement
from glasshouse.records.verify import verify_files
from tests.conformance.corpus import Case, _publication, _rendered, lay
from tests.conformance.lab import LAB, key

ROOT = Path(__file__).parents[2]
(ROW,) = (path.stem for path in (LAB / "artifacts").iterdir())
RING = parse_keyring((LAB / "keyring.json").read_bytes())
FILES = dict(read_bundle(LAB / "bundles" / ROW).files)
VALUES: tuple[Any, ...] = (None, True, 5, "x", [], {}, -1.5, [5], {"a": 5}, "é\u202e\x1b", 1e300)
SIGNED = "statement"  # of the envelope: who the files are, by their digests

Put = Callable[[Any], bytes]
pytestmark = pytest.mark.timeout(3600)  # the soak ones, on a machine that does other things besides


def places(document: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every place of a document with what stands there; of a list the first two."""
    yield way, document
    inner: Iterable[tuple[Any, Any]] = document.items() if isinstance(document, dict) else ()
    inner = list(enumerate(document[:2])) if isinstance(document, list) else inner
    for name, value in inner:
        yield from places(value, (*way, name))


def put(document: Any, way: tuple[Any, ...], value: Any) -> Any:
    if not way:
        return value
    pairs = document.items() if isinstance(document, dict) else enumerate(document)
    changed = {name: put(item, way[1:], value) if name == way[0] else item for name, item in pairs}
    return changed if isinstance(document, dict) else list(changed.values())


def kind(value: Any) -> str:
    return "number" if type(value) in (int, float) else type(value).__name__


def documents(name: str) -> list[tuple[Any, Put]]:
    """The JSON documents in a file, each with how the file is written with another in its place."""
    data = FILES[name]
    if name == PLAN:
        predicate = parse_json(base64.b64decode(parse_json(data)["payload"]))["predicate"]
        return [(predicate, lambda other: sign_statement(key("operator"), PLAN_TYPE, other, {}))]
    if not name.endswith(".jsonl"):
        return [(parse_json(data), canonical_json)]
    lines = data.splitlines()

    def written(number: int) -> Put:
        return lambda other: b"".join(
            (canonical_json(other) if at == number else line) + b"\n" for at, line in enumerate(lines)
        )

    return [(parse_json(line), written(number)) for number, line in enumerate(lines)]


def signed(files: dict[str, bytes]) -> dict[str, bytes]:
    digests = {name: sha256_hex(data) for name, data in files.items() if name != ENVELOPE}
    statement = {"run": parse_json(FILES[RECORD])["run"], "createdAt": 1.0}
    statement |= {"recordSha256": digests[RECORD], "planSha256": digests[PLAN]}
    return files | {ENVELOPE: sign_statement(key("operator"), BUNDLE_TYPE, statement, digests)}


ALTERED = sorted(set(FILES) - {ENVELOPE})


def altered(thorough: bool) -> Iterator[tuple[str, tuple[Any, ...], Any, dict[str, bytes]]]:
    """(file, place, value, files): each field once, or as every other type; what it becomes goes round."""
    count = 0
    for name in ALTERED:
        for document, write in documents(name):
            for way, before in places(document):
                others = [value for value in VALUES if kind(value) != kind(before)]
                count += 1
                for value in others if thorough else [others[count % len(others)]]:
                    try:
                        data = write(put(document, way, value))
                    except (TypeError, AttributeError, GlasshouseError):
                        continue  # no statement can be signed over it
                    yield name, way, value, {**FILES, name: data}


@pytest.mark.parametrize("thorough", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_each_field_of_each_file_as_another_type(thorough: bool) -> None:
    good = verify_files(bundle_of(FILES), RING)
    assert good.ok
    total = 0
    for name, way, value, files in altered(thorough):
        total += 1
        found = verify_files(bundle_of(signed(files)), RING)
        assert found.ok == (found.row is not None), (name, way, value)
        if name in (PLAN, RECORD):
            assert not found.ok, (name, way, value)
    assert total > (3000 if thorough else 400)


def _unsigned(site: Path, log: Path) -> tuple[Path, ...]:
    row = site / f"artifacts/{ROW}.json"
    reference = site / f"bundles/{ROW}/legs/s001-protected/reference.json"
    return (row, log / "leaves.jsonl", site / f"inclusion/{ROW}.json", reference, site / "keyring.json")


@pytest.mark.parametrize("thorough", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_what_nobody_signed_is_read_like_a_strangers(thorough: bool, tmp_path: Path) -> None:
    """The row's file, log and inclusion file, the claims that a build reads for its page; and the page."""
    case = Case("any", "lab", ROW, (), {})
    site = lay(case, tmp_path / "site") / "research"
    (log,) = (site / "ledger").iterdir()
    publication = _publication(LAB, ROW, ())
    drawn = 0
    for path in _unsigned(site, log):
        before = path.read_bytes()
        lines = before.splitlines()
        for number, line in enumerate(lines):
            for at, (way, value) in enumerate(places(json.loads(line))):
                others = [other for other in VALUES if kind(other) != kind(value)]
                chosen = others if thorough else [others[(at + step) % len(others)] for step in (0, 3)]
                for other in chosen:
                    changed = canonical_json(put(json.loads(line), way, other))
                    end = b"\n" if path.suffix == ".jsonl" else b""
                    path.write_bytes(end.join([*lines[:number], changed, *lines[number + 1 :]]) + end)
                    if path.name == "keyring.json":
                        with contextlib.suppress(GlasshouseError):
                            parse_keyring(path.read_bytes())
                        continue
                    if path.name == "reference.json":
                        read_claim_sources(site / f"bundles/{ROW}")
                    found = check_artifact(site / f"artifacts/{ROW}.json", RING)
                    assert not found.ok, (path.name, way, other)
                    if path.parent.name == "artifacts":
                        drawn += draws(path, publication)
        path.write_bytes(before)
    assert check_artifact(site / f"artifacts/{ROW}.json", RING).ok
    assert drawn > 10


def draws(path: Path, publication: Any) -> bool:
    """Whether a row's file is read at all; then its page can be made, as a build of local rows makes it."""
    try:
        row = read_artifact(path)
    except VerificationError:
        return False
    _rendered(
        type(publication)(**{**publication.__dict__, "artifacts": (row,), "local": frozenset({row.id})})
    )
    return True


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=12)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
PLACES = [
    (name, write, document, way)
    for name in ALTERED
    for document, write in documents(name)
    for way, _ in places(document)
]


def one(where: tuple[str, Put, Any, tuple[Any, ...]], value: Any) -> None:
    name, write, document, way = where
    try:
        files = {**FILES, name: write(put(document, way, value))}
    except (TypeError, AttributeError, ValueError, GlasshouseError):
        return
    found = verify_files(bundle_of(signed(files)), RING)
    assert found.ok == (found.row is not None)


@given(where=st.sampled_from(PLACES), value=JSON)
@settings(max_examples=60)
def test_random_structure_in_any_place(where: tuple[str, Put, Any, tuple[Any, ...]], value: Any) -> None:
    one(where, value)


@pytest.mark.soak
@given(where=st.sampled_from(PLACES), value=JSON)
@settings(max_examples=20_000)
def test_much_random_structure(where: tuple[str, Put, Any, tuple[Any, ...]], value: Any) -> None:
    one(where, value)


def _odd_names(bundle: Path) -> None:
    (bundle / "é.json").write_bytes(b"{}")
    (bundle / "a\n\x1b[2J.json").write_bytes(b"{}")


def _file_beside_its_folder(bundle: Path) -> None:
    shutil.rmtree(bundle / "legs")
    (bundle / "legs").write_bytes(b"{}")


def _folder_in_place_of_a_file(bundle: Path) -> None:
    (bundle / PLAN).unlink()
    (bundle / PLAN).mkdir()
    (bundle / PLAN / "x").write_bytes(b"{}")


def _run_is_a_number(bundle: Path) -> None:
    path = bundle / "legs/s001-protected/reference.json"
    path.write_bytes(canonical_json(parse_json(path.read_bytes()) | {"run": 5}))


def test_one_bad_path_does_not_stop_the_others(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    paths = []
    for ruin in (_odd_names, _file_beside_its_folder, _folder_in_place_of_a_file, _run_is_a_number):
        shutil.copytree(LAB, tmp_path / ruin.__name__)
        bundle = tmp_path / ruin.__name__ / "bundles" / ROW
        ruin(bundle)
        read_claim_sources(bundle)
        paths += [str(bundle), str(tmp_path / ruin.__name__ / f"artifacts/{ROW}.json")]
    paths += ["http://[::1/", "nothing\x1b[2J", str(tmp_path), str(LAB / f"artifacts/{ROW}.json")]
    code = cli.main(["verify", *paths, "--keys", str(LAB / "keyring.json"), "--json"])
    out, err = capfd.readouterr()
    runs = json.loads(out)["runs"]
    assert (code, [run["ok"] for run in runs]) == (2, [False] * (len(paths) - 1) + [True])
    assert err.count("\n") == 3  # the three that are nothing at all; the others have failed checks
    assert not [char for char in out + err if not char.isprintable() and char != "\n"]


def test_ledger_check_over_files_that_were_swapped(capfd: pytest.CaptureFixture[str]) -> None:
    (log,) = (LAB / "ledger").iterdir()
    note, leaves, ring = log / "checkpoint.txt", log / "leaves.jsonl", LAB / "keyring.json"
    good = [note, note, leaves]
    others = [ring, LAB, Path("/dev/zero"), Path("/dev/null"), LAB / "none", note, leaves]
    for place in range(3):
        for other in others:
            given_ = [other if at == place else path for at, path in enumerate(good)]
            old, new, third = map(str, given_)
            code = cli.main(["ledger", "check", old, new, "--leaves", third, "--keys", str(ring)])
            out, err = capfd.readouterr()
            if given_ == good:
                assert (code, err) == (0, "")
            else:
                assert code in (1, 2), (given_, out)
                assert err.startswith("error: ")
                assert err.count("\n") == 1
