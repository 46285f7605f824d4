"""The row page's button in real Chromium, over published rows: all holds, or the file is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from glasshouse.attestation.tokens import thumbprint
from glasshouse.canonical import canonical_json, parse_json
from glasshouse.records.keys import public_bytes
from glasshouse.records.ledger import log_key, sign_checkpoint
from glasshouse.records.verify import verify
from tests.e2e.conftest import Program
from tests.records.factory import Factory, edited
from tests.records.ruin import asked_by, read, resign

from .conftest import Browse
from .rows import HEADS, NARROW, PROTECTED, ROOT, WIDE, Made, build, checkout, press, publish_rows
from .test_browser import serve

# What the page says that it did not compare, by name.
NOT_COMPARED = ["appraisal", "judgement", "controls", "sentences", *["page"] * 3, "publisher"]

pytestmark = [pytest.mark.chromium, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return publish_rows(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def base(made: Made) -> Iterator[str]:
    with serve(made[0]) as address:
        yield address


def test_every_kind_of_row_holds(base: str, made: Made, browse: Browse) -> None:
    _, ids, machines = made
    kinds = [kind for kind in ids if kind not in ADMITTED]
    for kind, found in zip(kinds, press(browse, base, *(ids[kind] for kind in kinds)), strict=True):
        failed = [line for line in found["lines"] if line[0] == "failed"]
        assert failed == [], kind
        assert found["outcome"] == "ok", (kind, found)
        codes = [line[1] for line in found["lines"]]
        assert {"bundle-signature", "file-digests", "plan-signature", "figures", "ledger-inclusion"} <= set(
            codes
        )
        assert codes.count("event-chain") >= 1
        assert codes.count("event-chain") == codes.count("heads") == codes.count("exchange")
        assert [line[1] for line in found["lines"] if line[0] == "skipped"] == NOT_COMPARED
        assert {"artifact-fields", "page", "retraction"} <= set(codes)
        assert found["command"] == f"glasshouse verify {base}research/artifacts/{ids[kind]}.json"
        assert ("interval" in codes) == (kind == "abba")
        (told,) = [line[2] for line in found["lines"] if line[1] == "ledger-inclusion"]
        home = machines[kind == "elsewhere"]
        assert f" in glasshouse/ledger/{log_key(public_bytes(home.publisher))}, under a root" in told


def test_what_is_published_holds_also_where_a_leg_was_interrupted(built: Path, browse: Browse) -> None:
    """Committed rows, from before and after the challenge named a key."""
    stopped = []
    for path in sorted((ROOT / "site/research/artifacts").glob("*.json")):
        row = json.loads(path.read_text())
        if row["exclusion"] and "event-chain-broken" in row["exclusion"]["codes"] and row["evidence"]:
            stopped.append(row["id"])
    assert stopped
    with serve(built) as address:
        for found in press(browse, address, *stopped):
            assert [line for line in found["lines"] if line[0] == "failed"] == []
            assert found["outcome"] == "ok"
            assert any("as the record says" in line[2] for line in found["lines"] if line[1] == "event-chain")


# Rows that are excluded for what their evidence shows, and whose record says so.
ADMITTED = {
    "refused": ("exchange", "refused by the broker"),
    "unended": ("event-chain", "the events stop at sealed-outputs, as the record says"),
    "unheaded": ("heads", "the last event is not countersigned, as the record says"),
    "halves": ("event-chain", "the events stop at progress, as the record says"),
}


def test_a_fault_of_a_leg_that_its_record_admits_is_no_fault_of_the_row(
    base: str, made: Made, browse: Browse
) -> None:
    rows = [made[1][kind] for kind in ADMITTED]
    for (code, words), found in zip(ADMITTED.values(), press(browse, base, *rows), strict=True):
        assert [line for line in found["lines"] if line[0] == "failed"] == []
        assert found["outcome"] == "ok"
        assert any(line[1] == code and words in line[2] for line in found["lines"])


def drop(*names: str) -> Callable[[dict[str, bytes]], None]:
    def change(files: dict[str, bytes]) -> None:
        for name in [name for name in files if name.startswith(names)]:
            del files[name]

    return change


def cut_another(files: dict[str, bytes]) -> None:
    """The record names one interrupted leg; the end of another, that failed, is taken away as well."""
    (name,) = (name for name in files if name.startswith("legs/s011-") and name.endswith("/events.jsonl"))
    files[name] = b"".join(files[name].splitlines(keepends=True)[:-1])


def never_granted(files: dict[str, bytes]) -> None:
    files[PROTECTED + "exchange.json"] = edited(
        files[PROTECTED + "exchange.json"], grant=None, reasonCodes=["x"]
    )


def result_of_a_raw_leg(files: dict[str, bytes]) -> None:
    """Nobody signed what it says, in place of events that somebody did."""
    files[PROTECTED + "result.json"] = files["legs/s000-raw/result.json"]


# Signed again by the operator, under the record of before.
FORGED: dict[str, tuple[str, Callable[[dict[str, bytes]], None], set[str]]] = {
    "no-exchange": (
        "pair",
        drop(PROTECTED + "ex", PROTECTED + "ref"),
        {"exchange", "event-chain", "figures"},
    ),
    "no-evidence": (
        "alone",
        drop("legs/s000-protected/e", "legs/s000-protected/ref"),
        {"exchange", "figures"},  # the record has totals of a leg that is not there
    ),
    "no-events": ("pair", drop(PROTECTED + "events", HEADS), {"event-chain", "figures"}),
    "no-reference": ("pair", drop(PROTECTED + "reference"), {"exchange", "figures"}),
    "no-grant": ("pair", never_granted, {"exchange", "event-chain", "figures"}),
    "no-outcome": ("pair", drop("outcome.json"), {"file-digest"}),
    "no-first-launch": ("retried", drop("legs/s000-raw/"), {"launches"}),
    "more-files": ("pair", lambda files: files.update({"Notes": b"{}"}), {"file-digest"}),
    "result-of-a-raw-leg": ("pair", result_of_a_raw_leg, {"launch", "exchange", "figures"}),
    "another-cut": ("halves", cut_another, {"event-chain"}),
}


@pytest.mark.parametrize("what", sorted(FORGED))
def test_what_verify_refuses_of_an_operator_the_page_refuses_too(
    base: str, made: Made, browse: Browse, what: str
) -> None:
    site, ids, machines = made
    kind, change, expected = FORGED[what]
    folder = site / "research/bundles" / ids[kind]
    kept = read(folder)
    files = dict(kept)
    change(files)
    resign(machines[0], folder, files)
    try:
        assert not verify(folder, machines[0].keyring).ok
        (found,) = press(browse, base, ids[kind])
    finally:
        shutil.rmtree(folder)
        for name, data in kept.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
    failed = {line[1] for line in found["lines"] if line[0] == "failed"}
    # It is another bundle than artifact and log name, and a leg without figures has no fixed cost.
    assert failed - {"fixed-cost"} == {"artifact", "artifact-fields", "ledger-inclusion", *expected}


@pytest.mark.parametrize(("role", "code"), [("operator", "plan-signature"), ("broker", "exchange")])
def test_a_key_that_was_retired_before_signs_no_row(
    base: str, made: Made, browse: Browse, role: str, code: str
) -> None:
    site, ids, _ = made
    path = site / "research/local-ledger/keyring.json"
    original = path.read_bytes()
    ring = parse_json(original)
    for entry in ring["keys"]:
        if entry["role"] == role:
            entry["validUntil"] = 0
    path.write_bytes(canonical_json(ring))
    try:
        (found,) = press(browse, base, ids["alone"])
    finally:
        path.write_bytes(original)
    assert {line[1] for line in found["lines"] if line[0] == "failed"} == {code}


ALTERED = {
    "events": ("legs/s001-protected/events.jsonl", "event-chain"),
    "heads": ("legs/s001-protected/heads.jsonl", "heads"),
    "record": ("record.json", "record"),
    "result": ("legs/s000-raw/result.json", None),
    "plan": ("plan.dsse.json", "plan-signature"),
    "exchange": ("legs/s001-protected/exchange.json", "exchange"),
    "envelope": ("bundle.dsse.json", "bundle-signature"),
}


@pytest.mark.parametrize("what", sorted(ALTERED))
def test_one_altered_byte_is_found_and_its_file_named(
    base: str, made: Made, browse: Browse, what: str
) -> None:
    site, ids, _ = made
    name, code = ALTERED[what]
    path = site / "research/bundles" / ids["pair"] / name
    original = path.read_bytes()
    # A digit or letter in the middle, changed to its neighbour: still JSON, still canonical.
    at = next(i for i in range(len(original) // 2, len(original)) if chr(original[i]) in "bcdefg12345678")
    path.write_bytes(original[:at] + bytes([original[at] ^ 1]) + original[at + 1 :])
    try:
        (found,) = press(browse, base, ids["pair"])
    finally:
        path.write_bytes(original)
    assert found["outcome"] == "failed"
    failed = [line for line in found["lines"] if line[0] == "failed"]
    if what == "envelope":
        assert [line[1] for line in failed] == ["bundle-signature"]
    else:
        assert ["failed", "file-digest", f"{name} is not the file that was signed"] in failed
        assert code is None or code in {line[1] for line in failed}


@pytest.mark.parametrize("named", [True, False], ids=["another-key", "no-key"])
def test_evidence_by_another_key_than_the_challenge_names_is_found(
    base: str, made: Made, browse: Browse, named: bool
) -> None:
    """Forged with the broker's key. A challenge that names none is as brokers signed them before."""
    site, ids, machines = made
    path = site / "research/bundles" / ids["pair"] / "legs/s001-protected/exchange.json"
    original = path.read_bytes()
    cnf = {"cnf": {"jkt": thumbprint(bytes(32))}} if named else {}
    path.write_bytes(asked_by(original, machines[0].broker_key, **cnf))
    try:
        (found,) = press(browse, base, ids["pair"])
    finally:
        path.write_bytes(original)
    failed = {line[1]: line[2] for line in found["lines"] if line[0] == "failed"}
    # File and grant are others, too; events that begin at another grant are not read where no key is known.
    assert set(failed) == {"file-digest", "exchange" if named else "event-chain"}
    assert not named or "by another key than the one that asked" in failed["exchange"]


def test_a_missing_file_and_a_changed_artifact_are_found(base: str, made: Made, browse: Browse) -> None:
    site, ids, _ = made
    release = site / "research/bundles" / ids["pair"] / "release.json"
    artifact = site / "research/artifacts" / f"{ids['pair']}.json"
    kept = release.read_bytes(), artifact.read_bytes()
    release.unlink()
    artifact.write_bytes(canonical_json(parse_json(kept[1]) | {"overheadPct": 0.01}))
    try:
        (found,) = press(browse, base, ids["pair"])
    finally:
        release.write_bytes(kept[0])
        artifact.write_bytes(kept[1])
    failed = {line[1]: line[2] for line in found["lines"] if line[0] == "failed"}
    assert failed["file-digest"] == "release.json is missing"
    assert "not the one this page was made from" in failed["artifact"]
    assert "the artifact says 0.01%" in failed["figures"]


@pytest.mark.parametrize("part", ["leaf", "proof", "checkpoint", "log"])
def test_a_ledger_that_does_not_hold_the_row_fails(base: str, made: Made, browse: Browse, part: str) -> None:
    site, ids, machines = made
    path = site / "research/inclusion" / f"{ids['pair']}.json"
    original = path.read_bytes()
    found = json.loads(original)
    if part == "leaf":
        found["row"]["leaf"]["bundleSha256"] = "0" * 64
    elif part == "proof":
        found["plan"]["proof"][0] = "0" * 64
    elif part == "log":  # the same entries, signed as the log of another listed machine
        found["checkpoint"] = sign_checkpoint(machines[0].ledger.leaves(), machines[1].publisher)
    else:
        size = found["checkpoint"].split("\n")[1]
        found["checkpoint"] = found["checkpoint"].replace(f"\n{size}\n", f"\n{int(size) - 1}\n")
    path.write_bytes(canonical_json(found))
    try:
        (seen,) = press(browse, base, ids["pair"])
    finally:
        path.write_bytes(original)
    assert [line[1] for line in seen["lines"] if line[0] == "failed"] == ["ledger-inclusion"]


def test_keys_of_somebody_else_sign_nothing(base: str, made: Made, browse: Browse, tmp_path: Path) -> None:
    site, ids, _ = made
    path = site / "research/local-ledger/keyring.json"
    original = path.read_bytes()
    other = Factory(tmp_path / "other").keyring
    path.write_bytes(canonical_json({"keys": [entry.as_json() for entry in other.entries]}))
    try:
        (found,) = press(browse, base, ids["pair"])
    finally:
        path.write_bytes(original)
    assert [line[:2] for line in found["lines"]] == [
        ["failed", "bundle-signature"],
        ["skipped", "everything else"],
    ]


def test_without_a_secure_context_it_says_unavailable(made: Made, browse: Browse) -> None:
    site, ids, _ = made
    # This machine by a name that browsers do not count as this machine (browse.mjs).
    with serve(site, host="glasshouse.test") as base:
        (found,) = press(browse, base, ids["pair"])
    assert found["outcome"] == "unavailable"
    assert found["verdict"].startswith("Unavailable: this page was not served over https")
    assert found["lines"] == []


def test_page_and_ledger_are_accessible_and_fit(base: str, made: Made, browse: Browse) -> None:
    _, ids, _ = made
    found = browse(base=base, pages=[f"rows/{ids['abba']}/", "ledger/"], variants=[*WIDE, *NARROW])
    assert [
        (page["path"], page["variant"], page.get("violations"))
        for page in found["pages"]
        if page.get("violations")
    ] == []
    assert [(page["path"], page["overflow"]) for page in found["pages"] if page["overflow"] > 0] == []
    assert [page["console"] for page in found["pages"] if page["console"]] == []


@pytest.mark.train
def test_a_real_run_published_here_verifies_and_one_altered_byte_does_not(
    browse: Browse, tmp_path: Path
) -> None:
    root = checkout(tmp_path / "root")
    program = Program(tmp_path / "home", tmp_path / "runs", root)
    code, _, folder, err = program.run("duration=1.5")
    assert code == 0, err
    done = program("publish", "--local", str(folder), "--json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    site = build(root)
    events = next((site / "research/bundles" / row).glob("legs/*-protected/events.jsonl"))
    with serve(site) as base:
        (good,) = press(browse, base, row)
        assert good["outcome"] == "ok", good
        assert [line for line in good["lines"] if line[0] == "failed"] == []
        data = events.read_bytes()
        at = data.index(b'"elapsedSec":') + len(b'"elapsedSec":')
        events.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        (bad,) = press(browse, base, row)
        done = program("verify", f"{base}research/artifacts/{row}.json", "--json")
    assert bad["outcome"] == "failed"
    name = str(events.relative_to(site / "research/bundles" / row))
    assert ["failed", "file-digest", f"{name} is not the file that was signed"] in bad["lines"]
    assert done.returncode == 1
    assert name in done.stdout
