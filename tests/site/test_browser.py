"""The built site in real Chromium: axe, requests, width, script off. `make test-all` runs it."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import Browse

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.chromium, pytest.mark.timeout(900)]

# One page of each kind; every row page comes from one template.
PAGES = [
    "", "results/", "exclusions/", "ledger/", "reasons/", "caveats/", "downloads/",
    "research/history-reanalysis/", "research/model-workload/", "research/tamper-report/",
    "method/", "prior-claims/",
    "rows/2026-05-16-runpod-h100-mlp-30m-protected-first/",
    "rows/2026-05-17-runpod-rtx3090-qwen2.5-0.5b-60m-raw-first-excluded/",
]  # fmt: skip
# Every page in both colour schemes and at both widths; the other two combinations where layouts differ most.
SOME = ["results/", "rows/2026-05-16-runpod-h100-mlp-30m-protected-first/"]
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 320, "height": 720}
VARIANTS: list[dict[str, Any]] = [
    {"name": "light-wide", "colorScheme": "light", "pages": PAGES, **WIDE},
    {"name": "dark-narrow", "colorScheme": "dark", "pages": PAGES, **NARROW},
    {"name": "dark-wide", "colorScheme": "dark", "pages": SOME, **WIDE},
    {"name": "light-narrow", "colorScheme": "light", "pages": SOME, **NARROW},
    {"name": "no-script", "colorScheme": "light", "pages": SOME, "javaScriptEnabled": False, **WIDE},
]
ARTIFACTS = "site/research/artifacts"
LOOKS = 2 * len(PAGES) + 2 * len(SOME)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is http.server's
        pass


@contextlib.contextmanager
def serve(folder: Path, host: str = "127.0.0.1") -> Iterator[str]:
    """Serve a folder on loopback; yields the address that ends in a slash, under the name `host`."""
    handler = functools.partial(_Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def base(built: Path) -> Iterator[str]:
    with serve(built) as address:
        yield address


@pytest.fixture(scope="module")
def report(base: str, browse: Browse) -> dict[str, Any]:
    found = browse(base=base, pages=PAGES, variants=VARIANTS)
    assert len(found["pages"]) == LOOKS + len(SOME)
    return found


def test_axe_finds_nothing_in_light_and_dark_wide_and_narrow(report: dict[str, Any]) -> None:
    checked = [page for page in report["pages"] if "violations" in page]
    assert len(checked) == LOOKS
    faults = [(page["path"], page["variant"], page["violations"]) for page in checked if page["violations"]]
    assert faults == []


def test_nothing_is_requested_from_elsewhere_and_nothing_fails(report: dict[str, Any]) -> None:
    for page in report["pages"]:
        assert page["outside"] == [], page["path"]
        assert page["failed"] == [], page["path"]


def test_the_policy_blocks_nothing_that_the_page_needs(report: dict[str, Any]) -> None:
    assert [(page["path"], page["console"]) for page in report["pages"] if page["console"]] == []


def test_no_page_scrolls_sideways_at_320_pixels(report: dict[str, Any]) -> None:
    narrow = [page for page in report["pages"] if page["variant"].endswith("narrow")]
    assert [(page["path"], page["overflow"]) for page in narrow if page["overflow"] > 0] == []


def test_the_table_sorts_and_filters_with_script_and_is_whole_without(base: str, browse: Browse) -> None:
    probe = """
    (() => {
      const rows = () => [...document.querySelectorAll('#gh-results tbody tr')].filter((row) => !row.hidden);
      const all = rows().length;
      const form = document.getElementById('gh-filter');
      const head = [...document.querySelectorAll('#gh-results thead th')].find((cell) =>
        cell.textContent.includes('Overhead'));
      const button = head.querySelector('button');
      if (!button) return { all, script: false, formHidden: form.hidden };
      button.click();
      const cells = () => rows().map((row) => row.cells[6].dataset.v);
      const values = () => cells().filter((value) => value !== '').map(Number);
      const up = values();
      const upSort = head.getAttribute('aria-sort');
      const last = rows().at(-1).cells[6].dataset.v;
      button.click();
      const down = values();
      form.elements.text.value = 'h100 7b';
      form.dispatchEvent(new Event('input', { bubbles: true }));
      const filtered = rows().length, count = form.querySelector('output').textContent;
      const typed = (text) => {
        form.elements.text.value = text;
        form.dispatchEvent(new Event('input', { bubbles: true }));
        return [rows().length, form.querySelector('output').textContent];
      };
      const [verified] = typed('verified');
      const none = typed('nothing has this name');
      return { all, verified, none, filtered, count, script: true, up, down, upSort, last,
               downSort: head.getAttribute('aria-sort') };
    })()"""
    variants = [
        {"name": "script", "colorScheme": "light", "width": 1280, "height": 900},
        {"name": "none", "colorScheme": "light", "width": 1280, "height": 900, "javaScriptEnabled": False},
    ]
    report = browse(base=base, pages=["results/"], axe=False, probe=probe, variants=variants)
    scripted, plain = (page["probe"] for page in report["pages"])
    assert plain == {"all": scripted["all"], "script": False, "formHidden": True}
    assert scripted["up"] == sorted(scripted["up"])
    assert scripted["down"] == scripted["up"][::-1]
    assert (scripted["upSort"], scripted["downSort"]) == ("ascending", "descending")
    assert scripted["last"] == ""  # rows without an overhead stay at the end
    published = (ROOT / ARTIFACTS).glob("*.json")
    both = sum("h100" in path.stem and "7b" in path.stem for path in published)
    assert scripted["filtered"] == both
    statuses = [json.loads(path.read_bytes())["status"] for path in (ROOT / ARTIFACTS).glob("*.json")]
    assert scripted["verified"] == statuses.count("verified")  # not the unverified
    assert scripted["none"] == [0, f"no row of {scripted['all']} matches"]
    assert scripted["count"] == f"{both} of {scripted['all']} rows"
