"""Every case of the corpus, by every judge: they say what the case expects, and the same as each other."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from glasshouse.canonical import canonical_json, parse_json
from tests.site.conftest import Browse, browse, modules
from tests.site.rows import PRESS, WIDE
from tests.site.test_browser import serve

from .corpus import ROOT, Case, _with, by_lines, by_recompute, by_verify, cases, lay

__all__ = ["browse", "modules"]  # fixtures
pytestmark = [pytest.mark.chromium, pytest.mark.timeout(900)]
CASES = cases()
Sites = dict[Case, Path]


@pytest.fixture(scope="module", params=["quick", pytest.param("every", marks=pytest.mark.soak)])
def sites(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sites:
    """Each case's site, by the case: those of small bundles, or all."""
    folder = tmp_path_factory.mktemp("corpus")
    chosen = [case for case in CASES if request.param == "every" or case.quick]
    return {case: lay(case, folder / case.name) for case in chosen}


def of_page(case: Case) -> bool:
    """Whether the case alters nothing but its page, which only a browser looks at."""
    kinds = [kind for change in case.change for kind in change]
    return bool(kinds) and kinds[-1] == "page"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_expected_of_the_judges_agrees(case: Case) -> None:
    said = case.expected
    if case.name.startswith("true-"):
        assert said["verify"] == said["node"] == said["chromium"] == "holds"
        assert said["recompute"] in ("agrees", "excluded")
    elif of_page(case):
        assert (said["verify"], said["node"], said["chromium"]) == ("holds", "holds", "fails")
    elif said["notCompared"]:  # a page cannot look there, and says so by this name
        assert (said["verify"], said["node"], said["chromium"]) == ("fails", "holds", "holds")
    else:
        assert said["verify"] == said["node"] == said["chromium"] == "fails"
    if said["recompute"] == "differs":
        assert said["verify"] == "fails"


def test_verify_says_what_is_expected(sites: Sites) -> None:
    wrong = {}
    for case, site in sites.items():
        if of_page(case):  # what it reads of these is a true case's
            continue
        found = by_verify(site, case.row)
        if found != (case.expected["verify"], case.expected["codes"]["verify"]):
            wrong[case.name] = found
    assert wrong == {}


def test_the_script_for_readers_says_what_is_expected(sites: Sites) -> None:
    found = {case.name: by_recompute(site, case.row) for case, site in sites.items()}
    assert found == {case.name: case.expected["recompute"] for case in sites}


def judged(modules: Path, asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the browser's code says of each site, under Node."""
    assert modules.is_dir()
    command = ["node", str(ROOT / "tests/site/judge.mjs"), str(ROOT / "site/assets")]
    given = "".join(json.dumps(one) + "\n" for one in asked)
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_browsers_code_says_under_node_what_is_expected(sites: Sites, modules: Path) -> None:
    asked = [
        {"root": str(site), "row": case.row, "inclusion": f"research/inclusion/{case.row}.json"}
        for case, site in sites.items()
    ]
    wrong = {}
    for case, said in zip(sites, judged(modules, asked), strict=True):
        outcome, failed, skipped = by_lines(**said)
        codes = [] if of_page(case) else case.expected["codes"]["browser"]
        if (outcome, failed) != (case.expected["node"], codes) or not set(
            case.expected["notCompared"]
        ) <= skipped:
            wrong[case.name] = outcome, failed
    assert wrong == {}


def leaves(document: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    inner: Iterable[tuple[Any, Any]] = document.items() if isinstance(document, dict) else ()
    inner = enumerate(document) if isinstance(document, list) else inner
    empty = True
    for name, value in inner:
        empty = False
        yield from leaves(value, (*way, name))
    if empty:
        yield way, document


OTHERWISE: dict[type, Callable[[Any], Any]] = {
    bool: lambda v: not v,
    int: lambda v: v + 1,
    float: lambda v: v * 1.01 + 1e-4,
    str: lambda v: v + "x",
}


def _five(_: object) -> int:
    return 5


def test_no_field_of_a_row_can_be_altered_unseen(sites: Sites, modules: Path) -> None:
    """Each, one after the other; but for what the page says that it does not compare."""
    (case,) = (case for case in sites if case.name == "true-lab")
    path = f"research/artifacts/{case.row}.json"
    row = parse_json((sites[case] / path).read_bytes())
    told = parse_json((sites[case] / f"research/bundles/{case.row}/record.json").read_bytes())["checks"]
    asked, named = [], []
    for way, value in leaves(row):
        change: Callable[[Any], Any] = OTHERWISE.get(type(value), _five)
        other = change(value)
        if way[0] == "checks" and way[2] == "detail" and not told[way[1]]["detail"]:
            continue  # the sentence of a check that held
        text = canonical_json(_with(json.loads(json.dumps(row)), list(way), other)).decode()
        asked.append({"root": str(sites[case]), "row": case.row, "instead": {path: text}})
        named.append(way)
    said = judged(modules, asked)
    assert [way for way, one in zip(named, said, strict=True) if one["outcome"] != "failed"] == []
    assert len(named) > 100


# Of the quick cases, what a browser looks at every time besides true ones and pages: its code is Node's.
LOOKED_AT = {
    *("interval-altered", "fixed-cost-altered", "gpu-altered", "retraction-taken-out", "events-altered"),
    *("log-removed", "publisher-alters-the-record", "publisher-drops-a-caveat"),
}


def test_a_browser_says_what_is_expected(sites: Sites, browse: Browse) -> None:
    every = len(sites) == len(CASES)
    looked = [
        case
        for case in sites
        if every or of_page(case) or case.name in LOOKED_AT or case.name.startswith("true-")
    ]
    with serve(sites[looked[0]].parent) as base:
        pages = [f"{case.name}/rows/{case.row}/" for case in looked]
        found = browse(base=base, pages=pages, axe=False, probe=PRESS, variants=WIDE)["pages"]
    wrong = {}
    for case, page in zip(looked, found, strict=True):
        assert page["outside"] == []
        outcome, failed, skipped = by_lines(page["probe"]["outcome"], page["probe"]["lines"])
        wanted = case.expected["chromium"], case.expected["codes"]["browser"]
        if (outcome, failed) != wanted or not set(case.expected["notCompared"]) <= skipped:
            wrong[case.name] = outcome, failed, page["probe"]["lines"][:40]
    assert wrong == {}
