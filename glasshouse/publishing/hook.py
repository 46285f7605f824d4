"""The MkDocs hook: hand the rendered pages to MkDocs, and close every page with a hashed CSP."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from glasshouse.errors import GlasshouseError
from glasshouse.publishing.csp import with_policy
from glasshouse.publishing.pages import framed_tables, render
from glasshouse.publishing.store import OVERLAY, read_publication

_ANCHOR = re.compile(r' id="([^"]+)"')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Check the publication and add its pages; a failed check stops the build."""
    root = Path(config.config_file_path).parent
    try:
        publication = read_publication(root)
    except GlasshouseError as error:
        raise PluginError(f"error: {error}") from error
    for path, content in render(publication).items():
        files.append(File.generated(config, path, content=content))
    for item in sorted(publication.local):
        source = root / OVERLAY / f"{item}.json"
        files.append(File.generated(config, f"research/artifacts/{item}.json", abs_src_path=str(source)))
        for name in publication.bundles.get(item, ()):
            source = root / OVERLAY / "bundles" / item / name
            path = f"research/bundles/{item}/{name}"
            files.append(File.generated(config, path, abs_src_path=str(source)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Keep finished HTML away from the Markdown parser, which is most of a large build's time."""
    if page.meta.get("finished"):
        page.meta["finished"] = markdown
        return ""
    return markdown


def on_page_content(html: str, page: Page, **_: Any) -> str:
    """Put the finished HTML back, and tell MkDocs its anchors, so that links to them are validated."""
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
