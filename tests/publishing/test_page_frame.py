"""Row pages share one rendering of the theme: each must come out as if it had its own."""

from __future__ import annotations

import json
from pathlib import Path

import jinja2
import pytest
from mkdocs.commands.build import get_context
from mkdocs.config import load_config
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation, get_navigation
from mkdocs.structure.pages import Page

from glasshouse.publishing.hook import RowPage, on_env
from glasshouse.publishing.page_frame import TEMPLATE

ROOT = Path(__file__).parents[2]
# Title, description, content, what is hidden: odd characters, no heading, no description, a deeper page.
PAGES = {
    "rows/one.md": ("One", "What it is.", "<h1>One</h1>\n<p>Text.</p>", ["navigation", "toc"]),
    "rows/two.md": ("Two & <b>", '"Two".', "<h1 id='x'>Two</h1> \\1 {{ x }} %s", ["navigation", "toc"]),
    "rows/three.md": ("Three", "No heading.", "<p>Text alone, \u2264 3 %.</p>", ["navigation", "toc"]),
    "rows/four.md": ("Four", "", "<h1>Four</h1>", ["navigation", "toc"]),
    "rows/five.md": ("Five", "All of it shown.", "<h1>Five</h1>", ["toc"]),
    "rows/deep/six.md": ("Six", "Elsewhere.", "<h1>Six</h1>", ["navigation", "toc"]),
    "rows/seven.md": ("Seven", "Like the first.", "<h1>Seven</h1>", ["navigation", "toc"]),
}  # fmt: skip


@pytest.fixture(params=["", "https://example.org/site/"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[MkDocsConfig, Files, Navigation]:
    """The site's own theme and settings around these pages and a start page."""
    nav = [{"Start": "index.md"}]
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), site_url=request.param, nav=nav)

    def put(path: str, text: str) -> File:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
        return File(path, str(tmp_path), str(tmp_path / "out"), use_directory_urls=True)

    files = Files([put("index.md", "# Start")])
    for path, (title, description, content, hidden) in PAGES.items():
        head = {"title": title, "description": description, "hide": hidden}
        front = "".join(f"{key}: {json.dumps(value)}\n" for key, value in head.items())
        file = put(path, f"---\n{front}---\n{content}")
        RowPage(None, file, config)
        files.append(file)
    return config, files, get_navigation(files, config)


def test_a_framed_page_is_the_page_that_the_theme_renders(
    site: tuple[MkDocsConfig, Files, Navigation],
) -> None:
    config, files, nav = site
    environment = on_env(config.theme.get_env(), config=config, files=files)
    for path, (_, _, content, _) in PAGES.items():
        page = files.src_uris[path].page
        assert isinstance(page, Page)
        page.read_source(config)
        page.render(config, files)
        context = get_context(nav, files, config, page)
        framed, whole = (
            environment.get_template(name).render(context) for name in (page.meta["template"], "main.html")
        )
        assert content in framed
        assert framed == whole, path
    # The same frame served more than one page: this is what saves the time.
    assert isinstance(environment, jinja2.Environment)
    frames = environment.globals["framed"].__self__._frames
    assert 1 < len(frames) < len(PAGES)


def test_the_template_holds_nothing_but_the_frame() -> None:
    text = (ROOT / "templates" / "theme" / TEMPLATE).read_text(encoding="utf-8")
    assert text.rpartition("-#}")[2].strip() == "{{ framed() }}"
