from __future__ import annotations

import re
from pathlib import Path

from glasshouse.publishing.csp import inline_hashes

from .links import broken_links

ROOT = Path(__file__).parents[2]


def test_every_link_leads_somewhere_on_the_site(built: Path) -> None:
    assert broken_links(built) == []


def test_the_link_check_finds_what_is_broken(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(
        '<p id="here"><a href="#here">x</a><a href="#gone">x</a><a href="gone/">x</a>'
        '<a href="https://example.org/">x</a><script src="/abs.js"></script><a href="../../up.html">x</a>'
    )
    reasons = [line.rpartition(": ")[2] for line in broken_links(tmp_path)]
    assert reasons == ["no such anchor", "no such file", "leaves the site", "absolute", "outside the site"]


def test_there_is_a_page_for_every_committed_artifact_and_no_other(built: Path) -> None:
    artifacts = {path.stem for path in (ROOT / "site/research/artifacts").glob("*.json")}
    assert {path.name for path in (built / "rows").iterdir() if path.is_dir()} == artifacts
    served = {path.stem for path in (built / "research/artifacts").glob("*.json")}
    assert served == artifacts


def test_artifacts_are_served_byte_for_byte(built: Path) -> None:
    for path in (ROOT / "site/research/artifacts").glob("*.json"):
        assert (built / "research/artifacts" / path.name).read_bytes() == path.read_bytes()
    assert (built / "schema/row-artifact-v1.schema.json").exists()


def test_every_page_has_a_policy_that_covers_its_inline_scripts(built: Path) -> None:
    pages = list(built.rglob("*.html"))
    assert len(pages) > 40
    for path in pages:
        html = path.read_text("utf-8")
        found = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
        assert found is not None, path
        assert "unsafe" not in found[1]
        assert all(source in found[1] for source in inline_hashes(html)), path
        assert html.index("Content-Security-Policy") < html.index("<script")


def test_row_pages_stay_out_of_the_navigation(built: Path) -> None:
    # It is rendered into every page: with rows in it, a thousand rows take half a minute.
    html = (built / "index.html").read_text("utf-8")
    navigation = re.search(r'<nav class="md-nav md-nav--primary.*?</nav>\s*</div>', html, re.DOTALL)
    assert navigation is not None
    assert "rows/" not in navigation[0]


def test_pages_from_source_hold_no_address_of_another_site(built: Path) -> None:
    for path in built.rglob("*.html"):
        text = path.read_text("utf-8")
        addresses = set(re.findall(r"https?://[^\s\"'<>)]+", text)) - {"http://www.w3.org/2000/svg"}
        assert not addresses, (path, addresses)
