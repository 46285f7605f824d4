"""The row page's button in real Chromium, over published rows: all holds, or the file is named."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from glasshouse.attestation.tokens import thumbprint
from glasshouse.canonical import canonical_json, parse_json
from glasshouse.publishing.publish import publish
from glasshouse.records.keys import public_bytes
from glasshouse.records.ledger import log_key, sign_checkpoint
from tests.e2e.conftest import Program
from tests.publishing.conftest import enter
from tests.records.factory import Factory, Leg, make_spec
from tests.records.ruin import asked_by

from .conftest import Browse
from .test_browser import serve

ROOT = Path(__file__).parents[2]
COPIED = ("glasshouse", "conf", "site", "templates", "mkdocs.yml")

pytestmark = [pytest.mark.chromium, pytest.mark.timeout(900)]

# Presses the button and returns every line it wrote.
PRESS = """
(async () => {
  const box = document.getElementById("gh-verify");
  const button = box.querySelector("button");
  button.click();
  for (let i = 0; i < 600 && ["running", undefined].includes(box.dataset.outcome); i++) {
    await new Promise((done) => setTimeout(done, 50));
  }
  return {
    outcome: box.dataset.outcome,
    verdict: box.querySelector("[role=status]").textContent,
    command: box.querySelector("[data-command]").textContent,
    lines: [...box.querySelectorAll("ol li")].map((line) => [
      line.dataset.state, line.children[1].textContent, line.children[2].textContent]),
  };
})()"""
WIDE = [{"name": "wide", "colorScheme": "light", "width": 1280, "height": 900}]
NARROW = [{"name": "narrow", "colorScheme": "dark", "width": 320, "height": 720}]
Made = tuple[Path, dict[str, str], tuple[Factory, Factory]]


def checkout(folder: Path) -> Path:
    """A copy of what the site is built from, without rows of ours."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    return folder


def build(root: Path) -> Path:
    environment = os.environ | {"GLASSHOUSE_SITE_LOCAL": "1", "NO_MKDOCS_2_WARNING": "1"}
    environment["PYTHONPATH"] = str(root)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return root / "build/site"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """(built site, ids by kind, machines): one machine's runs, and one of another in its own log; local."""
    base = tmp_path_factory.mktemp("made")
    root, factory, other = checkout(base / "root"), Factory(base / "factory"), Factory(base / "other")
    kinds: dict[str, tuple[dict[str, Any], dict[int, Any]]] = {
        "pair": ({}, {1: Leg(rate=9.8)}),
        "abba": ({"order": "abba", "duration": 40.0}, {n: Leg(rate=10 + n % 5 / 7) for n in range(32)}),
        "failed": ({}, {0: Leg(status="failed", code="leg-crashed")}),
        "retried": ({}, {0: [Leg(status="failed", code="transport-lost"), Leg()], 1: Leg(rate=9.5)}),
        "alone": ({"order": "protected-only"}, {}),
        "elsewhere": ({}, {1: Leg(rate=9.9)}),
    }
    ids, folders = {}, dict[Factory, list[Path]]()
    for kind, (changes, legs) in kinds.items():
        home = other if kind == "elsewhere" else factory
        run, files = home.parts(make_spec(**changes), legs)
        folder = base / "runs" / run / "bundle"
        folder.parent.mkdir(parents=True)
        enter(home, folder, run, files)
        ids[kind] = parse_json((folder / "record.json").read_bytes())["id"]
        folders.setdefault(home, []).append(folder)
    for home, made_there in folders.items():
        publish(
            made_there, root=root, keyring=home.keyring, ledger=home.ledger, key=home.publisher,
            local=True, known_secrets=(),
        )  # fmt: skip
    return build(root), ids, (factory, other)


@pytest.fixture(scope="module")
def base(made: Made) -> Iterator[str]:
    with serve(made[0]) as address:
        yield address


def press(browse: Browse, base: str, *rows: str) -> list[dict[str, Any]]:
    pages = [f"rows/{row}/" for row in rows]
    found = browse(base=base, pages=pages, axe=False, probe=PRESS, variants=WIDE)
    return [page["probe"] for page in found["pages"]]


def test_every_kind_of_row_holds(base: str, made: Made, browse: Browse) -> None:
    _, ids, machines = made
    for kind, found in zip(ids, press(browse, base, *ids.values()), strict=True):
        failed = [line for line in found["lines"] if line[0] == "failed"]
        assert failed == [], kind
        assert found["outcome"] == "ok", (kind, found)
        codes = [line[1] for line in found["lines"]]
        assert {"bundle-signature", "file-digests", "plan-signature", "figures", "ledger-inclusion"} <= set(
            codes
        )
        assert codes.count("event-chain") >= 1
        assert codes.count("event-chain") == codes.count("heads") == codes.count("exchange")
        assert [line[1] for line in found["lines"] if line[0] == "skipped"] == [
            "appraisal",
            "judgement",
            "publisher",
        ]
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
