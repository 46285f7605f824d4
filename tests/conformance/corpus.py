"""The corpus of true and ruined rows: what a case is, how its site is laid out, who judges it (README.md)."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import math
import runpy
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glasshouse.canonical import canonical_json, parse_json
from glasshouse.paths import Workspace
from glasshouse.publishing import pages
from glasshouse.publishing.artifact import parse_artifact
from glasshouse.publishing.claim_sources import read_claim_sources
from glasshouse.publishing.csp import with_policy
from glasshouse.publishing.history import read_remarks
from glasshouse.publishing.logs import PublishedLogs, read_logs
from glasshouse.publishing.publication_files import HISTORY, Publication, read_templates
from glasshouse.publishing.verify_artifact import check_artifact
from glasshouse.records.keys import Keyring, committed_keyring, parse_keyring
from tests.conformance.lab import LAB, enter, publish_again

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RECOMPUTE = ROOT / "site/research/recompute.py"
PAGE = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>a row</title></head>'
    "<body>{}</body></html>"
)


@dataclass(frozen=True, eq=False)
class Case:
    """A row of a base, what is done to it, and what each judge must say."""

    name: str
    base: str
    row: str
    change: tuple[dict[str, Any], ...]
    expected: dict[str, Any]

    @property
    def quick(self) -> bool:
        """Whether its bundle is small, or it is the one of its kind that is looked at every time."""
        folder = _source(self.base) / "bundles" / self.row
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        return size < 100_000 or self.name in ("true-blocks-with-controls", "interval-altered")


def _source(base: str) -> Path:
    """`lab`, `published`, or a folder that lab.make wrote."""
    return {"lab": LAB, "published": ROOT / "site/research"}.get(base, Path(base))


def cases() -> list[Case]:
    found = []
    for path in sorted(HERE.glob("*/case.json")):
        case, expected = (
            json.loads(path.read_bytes()),
            json.loads((path.parent / "expected.json").read_bytes()),
        )
        found.append(Case(path.parent.name, case["base"], case["row"], tuple(case["change"]), expected))
    return found


# --- laying out a site ---------------------------------------------------------------------------


def lay(case: Case, out: Path) -> Path:
    """The case's site: the true base, the change, and the row's page built from what came out."""
    research = out / "research"
    source = _source(case.base)
    for folder in ("artifacts", "ledger"):
        shutil.copytree(source / folder, research / folder)
    controls = parse_artifact((source / f"artifacts/{case.row}.json").read_bytes()).controls
    for row in (case.row, *controls):
        shutil.copytree(source / "bundles" / row, research / "bundles" / row)
    publication = _publication(source, case.row, controls)
    (research / "keyring.json").write_bytes(pages._ring(publication.keyring))
    for name, data in _true_files(source, case.row, controls).items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(data)
    ruin(out, case)
    html = _page(publication, research, case.row)
    for change in case.change:
        if "page" in change:
            old, new = change["page"]
            assert old in html, f"{case.name}: the page does not show {old}"
            html = html.replace(old, new)
    page = out / "rows" / case.row / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text(with_policy(PAGE.format(html)), encoding="utf-8")
    (out / "assets").symlink_to(ROOT / "site/assets")
    return out


def ruin(out: Path, case: Case) -> None:
    """Apply the changes of a case to its files, in order. What each key means, README.md says."""
    research = out / "research"
    for change in case.change:
        ((kind, told),) = change.items()
        told = json.loads(json.dumps(told).replace("ROW", case.row))
        if kind == "set":
            path, name, value = told
            _write(out / path, _with(parse_json((out / path).read_bytes()), name.split("."), value))
        elif kind == "remove":
            path = out / told
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        elif kind == "flip":
            _flip(out / told)
        elif kind == "copy":
            shutil.copy(out / told[0], out / told[1])
        elif kind == "enter":
            enter(research, told)
        elif kind == "sign":
            publish_again(research, case.row)
        else:
            assert kind == "page", f"{case.name}: no such change: {kind}"


def _with(document: Any, names: list[str], value: Any) -> Any:
    head, *rest = names
    at: Any = int(head) if isinstance(document, list) else head
    if not rest:
        document[at] = value
    else:
        _with(document[at], rest, value)
    return document


def _write(path: Path, document: Any) -> None:
    path.write_bytes(canonical_json(document))


def _flip(path: Path) -> None:
    """One digit or letter in the middle becomes its neighbour: it stays JSON, and canonical."""
    data = path.read_bytes()
    at = next(i for i in range(len(data) // 2, len(data)) if chr(data[i]) in "bcdefg12345678")
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


@functools.cache
def _true_files(source: Path, row: str, controls: tuple[str, ...]) -> dict[str, bytes]:
    rendered = _rendered(_publication(source, row, controls))
    return {name: data for name, data in rendered.items() if not name.endswith(".md")}


@functools.cache
def _publication(source: Path, row: str, controls: tuple[str, ...]) -> Publication:
    keyring = (
        parse_keyring((source / "keyring.json").read_bytes())
        if (source / "keyring.json").exists()
        else committed_keyring(Workspace.of_source(ROOT).keyring)
    )
    rows = [parse_artifact((source / f"artifacts/{name}.json").read_bytes()) for name in (row, *controls)]
    bundle = source / "bundles" / row
    return Publication(
        artifacts=tuple(sorted(rows, key=lambda item: item.id)),
        local=frozenset(),
        bundles={row: tuple(sorted(str(p.relative_to(bundle)) for p in bundle.rglob("*") if p.is_file()))},
        remarks=read_remarks(ROOT / HISTORY),
        templates=read_templates(ROOT),
        tamper=None,
        keyring=keyring,
        logs=_logs(source / "ledger", keyring),
        claims={row: read_claim_sources(bundle)},
    )


def _logs(folder: Path, keyring: Keyring) -> PublishedLogs:
    return read_logs(folder, keyring, [])


def _rendered(publication: Publication) -> dict[str, bytes]:
    """The rows' pages and files alone, none of the articles about others."""
    every = pages._PAGES
    pages._PAGES = ()  # type: ignore[assignment]
    try:
        return pages.render(publication)
    finally:
        pages._PAGES = every


def _page(publication: Publication, research: Path, row: str) -> str:
    """The row's page, made of the row's file and the logs as they are now."""
    artifacts = tuple(
        parse_artifact(path.read_bytes())
        for item in publication.artifacts
        if (path := research / f"artifacts/{item.id}.json").exists()
    )
    logs = publication.logs
    with contextlib.suppress(OSError):
        now = _logs(research / "ledger", publication.keyring)
        if place := now.place(row):  # whoever can sign a log builds the site again
            logs = now
            shown = place.log.inclusion(plan=place.plan, row=place.row)
            (research / f"inclusion/{row}.json").write_bytes(shown)
    changed = {"artifacts": artifacts, "logs": logs}
    found = _rendered(Publication(**{**publication.__dict__, **changed}))
    return found[f"rows/{row}.md"].decode().split("---\n", 2)[2]


# --- judges --------------------------------------------------------------------------------------


def by_verify(site: Path, row: str) -> tuple[str, list[str]]:
    """What `glasshouse verify` says: holds or fails, and the codes of what failed."""
    ring = parse_keyring((site / "research/keyring.json").read_bytes())
    found = check_artifact(site / f"research/artifacts/{row}.json", ring)
    return _said(found.ok), sorted({str(check.code) for check in found.checks if not check.ok})


def by_lines(outcome: str, lines: list[list[str]]) -> tuple[str, list[str], set[str]]:
    """What the browser's code says: holds or fails, what failed, and what it did not compare."""
    failed = sorted({line[1] for line in lines if line[0] == "failed"})
    assert (outcome == "ok") == (not failed)
    return _said(outcome == "ok"), failed, {line[1] for line in lines if line[0] == "skipped"}


def by_recompute(site: Path, row: str) -> str:
    """Whether the figures of the script that readers run are those of the row; an excluded one shows none."""
    artifact = parse_json((site / f"research/artifacts/{row}.json").read_bytes())
    if artifact["status"] == "excluded":
        return "excluded"
    bundle = site / "research/bundles" / row
    files = sorted(path for path in bundle.rglob("*") if path.is_file())
    same = tuple((str(path.relative_to(bundle)), path.read_bytes()) for path in files)
    found = _recomputed(same, bundle)
    if found is None:
        return "cannot"
    overhead = artifact["overhead"] or {}
    told = [artifact["overheadPct"], overhead.get("ciLowPct"), overhead.get("ciHighPct")]
    wanted = [found["overheadPct"], found["ciLowPct"], found["ciHighPct"]]
    if overhead.get("verdict") is not None and overhead["verdict"] != found["verdict"]:
        return "differs"
    fixed = {f"{name}Sec": value for name, value in (artifact["fixedCostSec"] or {}).items()}
    names = {*fixed, *found["fixedCostSec"]}
    told += [fixed.get(name) for name in sorted(names)]
    wanted += [found["fixedCostSec"].get(name) for name in sorted(names)]
    return "agrees" if all(map(_near, told, wanted)) else "differs"


_KNOWN: dict[Any, dict[str, Any] | None] = {}


def _recomputed(files: tuple[tuple[str, bytes], ...], bundle: Path) -> dict[str, Any] | None:
    """What the script prints of these files, None where it cannot read them; most cases share a bundle."""
    if files not in _KNOWN:
        out = io.StringIO()
        try:
            with contextlib.redirect_stdout(out):
                _script()(str(bundle))
            _KNOWN[files] = json.loads(out.getvalue())
        except (OSError, KeyError, TypeError, ValueError):
            _KNOWN[files] = None
    return _KNOWN[files]


@functools.cache
def _script() -> Callable[[str], None]:
    found: Callable[[str], None] = runpy.run_path(str(RECOMPUTE))["main"]
    return found


def _near(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=2e-6, abs_tol=2e-6)


def _said(ok: bool) -> str:
    return "holds" if ok else "fails"
