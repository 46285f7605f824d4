"""A withdrawal stands in the logs; no edit of a published file hides it from `verify`, here or by URL."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glasshouse import cli, paths
from glasshouse.canonical import canonical_json, parse_json
from glasshouse.paths import Workspace
from glasshouse.publishing.artifact import artifact_bytes, parse_artifact
from glasshouse.publishing.from_bundle import with_control_caveats
from glasshouse.publishing.pages import render
from glasshouse.publishing.publication_files import read_publication
from glasshouse.publishing.publish import Published
from glasshouse.records.leaf_bodies import RetractBody
from glasshouse.records.ledger import Ledger, sign_checkpoint
from glasshouse.records.verify import VerifiedRow
from tests.commands.kit import served
from tests.records.factory import Factory

Bundle = tuple[Path, VerifiedRow]
Put = Callable[..., Published]
Call = Callable[..., tuple[int, dict[str, Any], str]]
GONE = {"reason": "the machine was shared", "day": "2026-11-21"}


@pytest.fixture
def call(
    root: Path, factory: Factory, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Call:
    """`glasshouse verify --json` of the program that lies in `root`: exit code, checks, verdict line."""
    monkeypatch.setattr(Workspace, "find", lambda _conf=None: Workspace.of_source(root))
    ring = root / "conf/trust/keyring.json"

    def run(path: Path | str, *words: str) -> tuple[int, dict[str, Any], str]:
        code = cli.main(["verify", str(path), "--keys", str(ring), "--json", *words])
        out, err = capfd.readouterr()
        assert err == ""
        (found,) = json.loads(out)["runs"]
        assert found["ok"] == (code == 0)
        cli.main(["verify", str(path), "--keys", str(ring), *words])
        said = capfd.readouterr()[0].strip().splitlines()[-1]
        checks = sorted(
            found["checks"], key=lambda item: not item["ok"]
        )  # of two of one code, the failed one
        return code, {item["code"]: item for item in checks}, said

    return run


def build(root: Path, out: Path) -> Path:
    """What a build makes of the publication, but for the theme around its pages: its research folder."""
    shutil.copytree(root / "site", out)
    for name, data in render(read_publication(Workspace.of_source(root))).items():
        if not name.endswith(".md"):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_bytes(data)
    for path in (root / "build/artifacts").glob("*.json"):
        shutil.copy(path, out / "research/artifacts")
        target = out / "research/bundles" / path.stem
        shutil.copytree(root / "build/artifacts/bundles" / path.stem, target)
    return out / "research"


def put_back(path: Path) -> None:
    """Take the withdrawal out of a row's file."""
    path.write_bytes(canonical_json(parse_json(path.read_bytes()) | {"retracted": None}))


@pytest.mark.parametrize("local", [False, True], ids=["committed", "local"])
def test_a_withdrawal_taken_out_of_a_built_row_is_found_here_and_by_its_address(
    *, root: Path, pair: Bundle, put: Put, withdraw: Put, call: Call, tmp_path: Path, local: bool
) -> None:
    put(pair[0], local=local)
    withdraw(pair[1].id, local=local, **GONE)
    research = build(root, tmp_path / "built")
    path = research / "artifacts" / f"{pair[1].id}.json"
    assert (research / "inclusion" / path.name).exists()
    code, checks, said = call(path)
    assert (code, checks["retracted"]["ok"]) == (0, True)
    assert said.startswith("RETRACTED: its evidence verifies, and the row was retracted on 2026-11-21")
    put_back(path)
    with served(research.parent) as address:
        for place in (path, f"{address}/research/artifacts/{path.name}"):
            code, checks, said = call(place)
            assert (code, said) == (1, "NOT VERIFIED")
            assert "ledger-retraction-differs" in checks["ledger-inclusion"]["detail"]


def test_an_inclusion_file_beside_a_committed_row_turns_nothing_off(
    root: Path, pair: Bundle, put: Put, withdraw: Put, call: Call
) -> None:
    put(pair[0])
    inclusion = read_publication(Workspace.of_source(root)).logs.place(pair[1].id)
    assert inclusion is not None
    (root / "site/research/inclusion").mkdir()
    beside = root / "site/research/inclusion" / f"{pair[1].id}.json"
    beside.write_bytes(inclusion.log.inclusion(plan=inclusion.plan, row=inclusion.row))
    withdraw(pair[1].id, **GONE)
    path = root / "site/research/artifacts" / f"{pair[1].id}.json"
    put_back(path)
    code, checks, _ = call(path)
    assert (code, checks["ledger-inclusion"]["ok"]) == (1, False)
    beside.write_bytes(b"{}")
    assert "ledger" in call(path)[1]["ledger-inclusion"]["detail"]


@pytest.fixture
def controlled(root: Path, make_run: Callable[..., Bundle], put: Put) -> dict[str, Path]:
    """A published row and its controls, one of which failed: the artifact of each by its control."""
    runs = [make_run(order="abba", duration=40.0, control=kind) for kind in ("none", "aa", "delay")]
    put(*(bundle for bundle, _ in runs))
    artifacts = root / "site/research/artifacts"
    places: dict[str, Path] = {row.facts.spec.control: artifacts / f"{row.id}.json" for _, row in runs}
    assert "control-failed" in parse_json(places["none"].read_bytes())["caveats"]
    return places


def test_a_control_that_calls_itself_withdrawn_stays_one(controlled: dict[str, Path], call: Call) -> None:
    """The file of a failed control says that it was retracted, and its row that it has none."""
    assert call(controlled["none"])[0] == 0
    row, *others = (parse_artifact(controlled[kind].read_bytes()) for kind in ("none", "aa", "delay"))
    for other, path in zip(others, (controlled["aa"], controlled["delay"]), strict=True):
        gone = {"retracted": {"date": "2026-11-21", "reason": "mistaken"}}
        path.write_bytes(canonical_json(parse_json(artifact_bytes(other)) | gone))
    controlled["none"].write_bytes(artifact_bytes(with_control_caveats(row, [])))
    code, checks, _ = call(controlled["none"])
    assert code == 1
    assert "ledger-retraction-differs" in checks["control-verified"]["detail"]
    assert not checks["artifact-recomputed"]["ok"]


def test_a_withdrawn_control_that_is_put_back_is_found_out(
    controlled: dict[str, Path], withdraw: Put, call: Call
) -> None:
    before = controlled["none"].read_bytes()
    withdraw(controlled["aa"].stem, **GONE)
    assert call(controlled["none"])[0] == 0
    put_back(controlled["aa"])
    assert call(controlled["aa"])[0] == 1
    assert call(controlled["none"])[0] == 0  # it names it no more
    controlled["none"].write_bytes(before)
    code, checks, _ = call(controlled["none"])
    assert code == 1
    assert "ledger-retraction-differs" in checks["control-verified"]["detail"]


@pytest.mark.parametrize("place", ["row", "bundle", "address"])
def test_without_a_log_nothing_published_is_verified_unless_that_is_accepted(
    *, root: Path, pair: Bundle, put: Put, call: Call, tmp_path: Path, place: str
) -> None:
    put(pair[0])
    research = build(root, tmp_path / "built")
    shutil.rmtree(research / "ledger")
    row, bundle = research / "artifacts" / f"{pair[1].id}.json", research / "bundles" / pair[1].id
    with served(research.parent) as address:
        path = {"row": row, "bundle": bundle, "address": f"{address}/research/artifacts/{row.name}"}[place]
        code, checks, said = call(path)
        assert (code, said) == (1, "NOT VERIFIED")
        assert not checks["retraction-not-checked"]["ok"]
        assert "--without-log accepts that" in checks["retraction-not-checked"]["detail"]
        code, checks, said = call(path, "--without-log")
    assert (code, checks["retraction-not-checked"]["ok"]) == (0, True)
    assert said.endswith("; whether it was withdrawn was not checked")


def test_a_log_of_a_listed_publisher_that_cannot_be_read_may_hold_a_withdrawal(
    root: Path, pair: Bundle, factory: Factory, put: Put, call: Call
) -> None:
    put(pair[0])
    path = root / "site/research/artifacts" / f"{pair[1].id}.json"
    (log,) = (root / "site/research/ledger").iterdir()
    stray = log.with_name("0" * 16)
    shutil.copytree(log, stray)
    code, _, _ = call(path)  # nobody listed keeps a log of that name
    assert code == 0
    shutil.rmtree(stray)
    leaves = (log / "leaves.jsonl").read_bytes()
    (log / "leaves.jsonl").write_bytes(leaves[:-1])
    code, checks, _ = call(path)
    assert code == 1
    assert f"ledger-malformed:{log.name}" in checks["retraction-not-checked"]["detail"]


def test_the_bundle_of_a_withdrawn_row_says_so_while_its_row_or_a_log_that_holds_it_is_beside_it(
    root: Path, pair: Bundle, put: Put, withdraw: Put, call: Call
) -> None:
    put(pair[0])
    bundle = root / "site/research/bundles" / pair[1].id
    code, checks, said = call(bundle)
    assert (code, "1 log asked, up to 20" in checks["ledger-inclusion"]["detail"]) == (0, True)
    assert said.startswith("verified as what it says")
    withdraw(pair[1].id, **GONE)
    artifact = root / "site/research/artifacts" / f"{pair[1].id}.json"
    put_back(artifact)
    for _ in range(2):
        code, checks, said = call(bundle)
        assert (code, checks["retracted"]["ok"]) == (0, True)
        assert said.startswith("RETRACTED")
        artifact.unlink(missing_ok=True)
    # The run folder from which it was published is asked about where it is published.
    put_back_again = root / "site/research/artifacts"
    (put_back_again / artifact.name).write_bytes(b"{}")
    assert "retracted" in call(pair[0])[1]


def test_a_run_that_was_never_published_is_asked_about_in_this_machines_ledger(
    pair: Bundle, factory: Factory, call: Call
) -> None:
    code, checks, said = call(pair[0])
    assert (code, checks["not-published"]["ok"]) == (0, True)
    assert "this machine's ledger does not hold it" in checks["not-published"]["detail"]
    assert said.endswith("; not published")
    shutil.copytree(factory.folder / "ledger", paths.state_dir() / "ledger")
    code, checks, said = call(pair[0])
    assert (code, "holds it as entry" in checks["not-published"]["detail"]) == (0, True)
    Ledger().append(RetractBody(pair[1].id, date="2026-11-21", reason="the machine was shared"))
    code, checks, said = call(pair[0].parent)
    assert (code, checks["retracted"]["ok"]) == (0, True)
    assert said.startswith("RETRACTED")
    leaves = paths.state_path() / "ledger" / "leaves.jsonl"
    leaves.write_bytes(b"{}\n" + leaves.read_bytes())
    code, checks, said = call(pair[0])
    assert (code, checks["retraction-not-checked"]["ok"]) == (1, False)
    assert "this machine's ledger cannot be read" in checks["retraction-not-checked"]["detail"]
    assert call(pair[0], "--without-log")[0] == 0


def test_a_longer_copy_of_a_log_beside_the_committed_one_is_asked_too(
    *, root: Path, pair: Bundle, factory: Factory, put: Put, withdraw: Put, call: Call, tmp_path: Path
) -> None:
    """A machine's own pages say more than its last publication."""
    put(pair[0])
    research = build(root, tmp_path / "built")
    withdraw(pair[1].id, **GONE)
    shutil.copytree(root / "site/research/ledger", research / "local-ledger")
    path = research / "artifacts" / f"{pair[1].id}.json"
    with served(research.parent) as address:
        for place in (path, f"{address}/research/artifacts/{path.name}"):
            code, checks, _ = call(place)
            assert (code, checks["ledger-inclusion"]["ok"]) == (1, False)
    # Another past under the same key is no copy of it.
    (log,) = (research / "local-ledger").iterdir()
    other = Ledger(tmp_path / "fork")
    other.register_plan("20260101-000000-aaaaaa", lambda *_: b"{}")
    (log / "leaves.jsonl").write_bytes(b"".join(leaf.data + b"\n" for leaf in other.leaves()))
    (log / "checkpoint.txt").write_text(sign_checkpoint(other.leaves(), factory.publisher))
    code, checks, _ = call(path)
    assert code == 1
    assert f"ledger-rewritten:{log.name}" in checks["retraction-not-checked"]["detail"]
