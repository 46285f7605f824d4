"""The MkDocs hook: hand the rendered pages to MkDocs, and close every page with a hashed CSP.

There may be thousands of row pages, and the theme's part of each is the same but for a few places. So their
HTML passes no Markdown parser, and the theme is rendered around the first of them only (page_frame.py).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from glasshouse.errors import GlasshouseError
from glasshouse.paths import Workspace
from glasshouse.publishing.csp import with_policy
from glasshouse.publishing.page_frame import TEMPLATE, Frames
from glasshouse.publishing.pages import framed_tables, render
from glasshouse.publishing.publication_files import OVERLAY, OVERLAY_BUNDLES, read_publication

_ANCHOR = re.compile(r' id="([^"]+)"')
ROWS = "rows/"
OVERLAY_CHOICE = "overlay"  # in `extra`: what `glasshouse pages --site` asks for


class RowPage(Page):
    """A page outside the navigation whose source is finished HTML behind front matter."""

    def render(self, config: MkDocsConfig, files: Files) -> None:  # noqa: ARG002 -- MkDocs' signature
        """Take the source as the content; anchors are listed, so that links to them are validated."""
        self.content = self.markdown or ""
        self.present_anchor_ids = set(_ANCHOR.findall(self.content))
        self.meta["template"] = TEMPLATE


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Check the publication and add its pages; a failed check stops the build."""
    root = Path(config.config_file_path).parent
    own = Workspace.find()
    workspace = own if root == own.root else Workspace.of_source(root)
    try:
        publication = read_publication(workspace, overlay=config.extra.get(OVERLAY_CHOICE))
    except GlasshouseError as error:
        raise PluginError(f"error: {error}") from error
    for path, content in render(publication).items():
        file = File.generated(config, path, content=content)
        if path.startswith(ROWS):
            RowPage(None, file, config)  # it becomes the file's page
        files.append(file)
    for item in sorted(publication.local):
        source = workspace.work / OVERLAY / f"{item}.json"
        files.append(File.generated(config, f"research/artifacts/{item}.json", abs_src_path=str(source)))
        for name in publication.bundles.get(item, ()):
            source = workspace.work / OVERLAY_BUNDLES / item / name
            path = f"research/bundles/{item}/{name}"
            files.append(File.generated(config, path, abs_src_path=str(source)))
    return files


def on_env(env: Environment, config: MkDocsConfig, files: Files) -> Environment:  # noqa: ARG001 -- as above
    """Let row pages share one rendering of the theme."""
    env.globals["framed"] = Frames(env).framed
    return env


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Keep finished HTML away from the Markdown parser."""
    if page.meta.get("finished") and not isinstance(page, RowPage):
        page.meta["finished"] = markdown
        return ""
    return markdown


def on_page_content(html: str, page: Page, **_: Any) -> str:
    """Put the finished HTML back, and tell MkDocs its anchors, so that links to them are validated."""
    if isinstance(page, RowPage):
        return html
    if not page.meta.get("finished"):
        return framed_tables(html)
    finished = str(page.meta["finished"])
    page.present_anchor_ids = set(_ANCHOR.findall(finished))
    return finished


def on_post_page(output: str, **_: Any) -> str:
    """Add the Content-Security-Policy."""
    return with_policy(output)


def on_post_template(output_content: str, template_name: str, **_: Any) -> str:
    """The same for pages that come from a template alone, such as 404.html."""
    return with_policy(output_content) if template_name.endswith(".html") else output_content
