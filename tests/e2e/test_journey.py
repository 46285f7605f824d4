"""A whole journey: a kit is made, runs are measured away, one is cut, all is packed, published, looked at."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import PACED, ROOT, Program, wait_until
from tests.e2e.phases import start

pytestmark = [pytest.mark.train, pytest.mark.slow]

PUBLICATION = ("glasshouse", "conf", "templates", "site", "tools", "mkdocs.yml", "pyproject.toml", "LICENSE")


def tool(program: Program, *words: str) -> str:
    command = [sys.executable, "-m", "tools.journey", *words]
    done = subprocess.run(
        command, cwd=program.root, env=program.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def operator(tmp_path: Path) -> Program:
    """A machine that publishes into a checkout of its own."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name in PUBLICATION:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, checkout / name)
    program = Program(tmp_path / "operator", tmp_path / "runs", checkout)
    assert program("keys", "--trust", "the operator", "--yes").returncode == 0
    return program


def publish(operator: Program, archive: Path, *words: str) -> dict:
    done = operator("publish", "--from", str(archive), "--json", *words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_from_the_kit_to_the_page(operator: Program, tmp_path: Path) -> None:
    # `git archive` is of the commit that is tested; the code away is that of the working tree.
    kit = tmp_path / "kit"
    words = ["--python", "3.12", "--budget", "3m", "--no-wheels", "--out", str(kit)]
    said = tool(Program(operator.home, operator.runs), "carry", *words)
    journey = json.loads((kit / "journey.json").read_text())
    assert journey["commitment"] in said
    assert journey["journey"] in operator("ledger").stdout

    away = Program(kit / "home", tmp_path / "away" / "runs")
    archive = tmp_path / "gpu.tar.gz"
    packing = ["pack", "--home", str(away.home), "--runs", str(away.runs), "--out", str(archive)]
    code, first, _, err = away.run("duration=1.5")
    assert code == 0, err

    # A run is cut in its protected leg, and what is there at that moment is brought back.
    process = start(away, [*PACED, "duration=20", "order=protected-first"])
    wait_until(lambda: _measuring(away, first["run"]), 60, "the second run's protected leg")
    tool(away, *packing)
    process.kill()
    process.communicate()
    refused = operator("publish", "--from", str(archive))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert journey["commitment"] in refused.stderr
    document = publish(operator, archive, "--trust", "a borrowed machine", "--yes")
    assert document["rows"] == [first["id"]]
    assert (document["opening"], document["ending"]) == (0, 1)
    assert len(document["withheld"]) == 1
    assert publish(operator, archive)["written"] == []

    # The watchdog ends the cut run as an excluded row, which a later archive brings.
    (cut,) = document["withheld"]
    wait_until((away.runs / cut / "bundle/record.json").exists, 60, "the watchdog's record")
    wait_until(lambda: not (away.runs / cut / "parts").exists(), 10, "the watchdog's end")
    wait_until(lambda: cut in _ended(away), 10, "its row in the ledger")
    tool(away, *packing)
    refused = operator("publish", "--from", str(archive))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "does not list for so many entries the keys" in refused.stderr
    document = publish(operator, archive, "--trust", "a borrowed machine", "--yes")
    assert len(document["rows"]) == 2
    assert document["withheld"] == []

    artifacts = operator.root / "site/research/artifacts"
    ring = str(operator.root / "conf/trust/keyring.json")
    for row in document["rows"]:
        done = operator("verify", str(artifacts / f"{row}.json"), "--keys", ring)
        assert done.returncode == 0, done.stdout
        assert "registered-late" not in (artifacts / f"{row}.json").read_text()
    environment = operator.environment | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(operator.root)}
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    built = subprocess.run(
        build, cwd=operator.root, env=environment, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stdout + built.stderr
    page = (operator.root / "build/site/ledger/index.html").read_text()
    assert journey["journey"] in page
    assert f"announced beforehand in log {journey['openedIn']}" in page
    assert (operator.root / "build/site/rows" / first["id"] / "index.html").is_file()


def _measuring(away: Program, first: str) -> bool:
    """Whether a second run has released its key."""
    names = {path.name for path in away.runs.glob("2*")} - {first}
    return any(list((away.runs / name).glob("parts/legs/*/events.jsonl")) for name in names)


def _ended(away: Program) -> set[str]:
    lines = (away.home / "state/ledger/leaves.jsonl").read_text().splitlines()
    return {leaf["run"] for leaf in map(json.loads, lines) if leaf["kind"] == "row"}
