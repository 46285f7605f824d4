"""A site with rows of every kind, made and published here, and the button on a row's page pressed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from glasshouse.canonical import parse_json
from glasshouse.paths import Workspace
from glasshouse.publishing.publish import publish
from tests.publishing.conftest import enter
from tests.records.factory import Factory, Leg
from tests.specs import make_spec

from .conftest import Browse

ROOT = Path(__file__).parents[2]
COPIED = ("glasshouse", "conf", "site", "templates", "mkdocs.yml", "pyproject.toml")

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


PROTECTED = "legs/s001-protected/"
HEADS = PROTECTED + "heads.jsonl"


def at_the_port(evidence: str) -> str:
    """Whoever holds the forwarded port answers in the runtime's place: nobody signed that."""
    return evidence.rpartition(".")[0] + "." + "A" * 86


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


def publish_rows(base: Path) -> Made:
    """(built site, ids by kind, machines): one machine's runs, and one of another in its own log; local."""
    root, factory, other = checkout(base / "root"), Factory(base / "factory"), Factory(base / "other")
    kinds: dict[str, tuple[dict[str, Any], dict[int, Any]]] = {
        "pair": ({}, {1: Leg(rate=9.8)}),
        "abba": ({"order": "abba", "duration": 40.0}, {n: Leg(rate=10 + n % 5 / 7) for n in range(32)}),
        "failed": ({}, {0: Leg(status="failed", code="leg-crashed")}),
        "retried": ({}, {0: [Leg(status="failed", code="transport-lost"), Leg()], 1: Leg(rate=9.5)}),
        "alone": ({"order": "protected-only"}, {}),
        "refused": ({}, {1: Leg(status="failed", code="attestation-refused", evidence=at_the_port)}),
        "unended": ({}, {1: Leg(events=lambda items: items[:-1])}),
        "unheaded": ({}, {1: Leg()}),
        "halves": (
            {"order": "abba", "duration": 40.0},
            {
                5: Leg(status="failed", code="interrupted", events=lambda items: items[:-1]),
                11: Leg(status="failed", code="leg-crashed"),
            },
        ),
        "elsewhere": ({}, {1: Leg(rate=9.9)}),
    }
    ids, folders = {}, dict[Factory, list[Path]]()
    for kind, (changes, legs) in kinds.items():
        home = other if kind == "elsewhere" else factory
        run, files = home.parts(make_spec(**changes), legs)
        if kind == "unheaded":
            files[HEADS] = files[HEADS][: files[HEADS][:-1].rindex(b"\n") + 1]
        folder = base / "runs" / run / "bundle"
        folder.parent.mkdir(parents=True)
        enter(home, folder, run, files)
        ids[kind] = parse_json((folder / "record.json").read_bytes())["id"]
        folders.setdefault(home, []).append(folder)
    for home, made_there in folders.items():
        publish(
            made_there, workspace=Workspace.of_source(root), keyring=home.keyring, ledger=home.ledger,
            key=home.publisher, local=True, known_secrets=(),
        )  # fmt: skip
    return build(root), ids, (factory, other)


def press(browse: Browse, base: str, *rows: str) -> list[dict[str, Any]]:
    pages = [f"rows/{row}/" for row in rows]
    found = browse(base=base, pages=pages, axe=False, probe=PRESS, variants=WIDE)
    return [page["probe"] for page in found["pages"]]
