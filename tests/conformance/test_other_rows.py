"""Rows that no base has: a job that went on from a checkpoint, a workload that withholds, steps of epochs.

`verify` and the page's code, under Node, must agree that each holds, with what its page shows, and that
whatever is altered of what is its own does not.
"""

from __future__ import annotations

import json
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from glasshouse.canonical import canonical_json, parse_json
from tests.conformance.corpus import ROOT, Case, by_lines, by_verify, lay
from tests.conformance.lab import make
from tests.site.conftest import modules
from tests.specs import make_spec

__all__ = ["modules"]  # a fixture
pytestmark = [pytest.mark.chromium, pytest.mark.timeout(300)]

RUNS = ("20260101-000000-aaaaaa", "20260102-000000-bbbbbb")
BEFORE = {
    "runs": RUNS, "leg": "s000", "launch": 1, "number": 3, "sha256": "ab" * 32, "steps": 1200, "seconds": 9.0,
    "witnessed": True, "folder": "runs/before",
}  # fmt: skip
JOB = {"order": "protected-only", "payload": "private", "measure": {"warmup_sec": 0.0}}
MINE = {
    "kind": "custom", "name": "mine", "entry": "secret/train.py:Net", "data": ("patients.csv",),
    "params": {"lr": 3e-4},
}  # fmt: skip
SPECS: dict[str, dict[str, Any]] = {
    "went on": {**JOB, "duration": None, "steps": 5000, "continues": BEFORE},
    "went on, steps unknown": {**JOB, "continues": {**BEFORE, "runs": RUNS[:1], "steps": None}},
    "withholds": {"model": MINE},
    "epochs": {"duration": None, "epochs": 3},
}
OWN = {
    "went on": {
        "chain": {**{key: BEFORE[key] for key in ("runs", "leg", "launch", "number", "sha256")},
                  "steps": 1201, "witnessed": True},
        "command": "python -m glasshouse",
    },
    "withholds": {"withheld": ["model.entry"], "command": "python -m glasshouse"},
    "epochs": {"targetSteps": 61, "command": None},
}  # fmt: skip
# Elements in which nothing ends.
VOID = {"br", "hr", "img", "meta", "link", "input", "wbr", "source"}


class Shown(HTMLParser):
    """The texts of the elements with data-shown, as site/assets/verify.js takes them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, list[str]] = {}
        self._open: list[tuple[str, str | None, list[str]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            cell = tag in ("td", "th") and any(each[0] == "tr" and each[1] for each in self._open)
            if cell:
                self.handle_data(" ")
            self._open.append((tag, dict(attrs).get("data-shown"), []))

    def handle_data(self, data: str) -> None:
        for _, name, texts in self._open:
            if name:
                texts.append(data)

    def handle_endtag(self, tag: str) -> None:
        while self._open:
            ended, name, texts = self._open.pop()
            if name:
                self.found.setdefault(name, []).append("".join(texts))
            if ended == tag:
                return


def shown(site: Path, row: str) -> dict[str, list[str]]:
    parser = Shown()
    parser.feed((site / "rows" / row / "index.html").read_text())
    return parser.found


def judged(asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    command = ["node", str(ROOT / "tests/site/judge.mjs"), str(ROOT / "site/assets")]
    given = "".join(json.dumps(one) + "\n" for one in asked)
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("name", SPECS)
def test_it_holds_and_nothing_of_its_own_can_be_altered(name: str, modules: Path, tmp_path: Path) -> None:
    assert modules.is_dir()
    make(tmp_path / "base", make_spec(**SPECS[name]))
    (artifact,) = (tmp_path / "base/artifacts").iterdir()
    row = artifact.stem
    site = lay(Case(name, str(tmp_path / "base"), row, (), {}), tmp_path / "site")
    assert by_verify(site, row) == ("holds", [])
    path = f"research/artifacts/{row}.json"
    true, page = parse_json(artifact.read_bytes()), shown(site, row)
    mine = {"root": str(site), "row": row, "inclusion": f"research/inclusion/{row}.json"}
    asked = [{**mine, "shown": page}]
    for field, value in OWN.get(name, {}).items():
        assert true.get(field) != value
        asked.append({**mine, "instead": {path: canonical_json({**true, field: value}).decode()}})
    asked += [
        {**mine, "shown": {**page, element: [page[element][0] + " more"]}}
        for element in ("chain", "withheld", "command")
        if element in page
    ]
    first, *altered = judged(asked)
    assert by_lines(**first)[:2] == ("holds", []), first
    assert [each["outcome"] for each in altered] == ["failed"] * len(altered)
    assert ("chain" in page, "withheld" in page) == (name.startswith("went on"), name == "withholds")
