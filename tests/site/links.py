"""Every link of a built site leads somewhere: files exist, anchors exist, nothing leaves the site."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if found.get("id"):
            self.ids.add(str(found["id"]))
        for name in ("href", "src"):
            if found.get(name) is not None and tag in ("a", "link", "script", "img"):
                self.links.append(str(found[name]))


def broken_links(site: Path) -> list[str]:
    """`page -> link: reason` for every link that leads nowhere or elsewhere."""
    pages = {path: _parsed(path) for path in sorted(site.rglob("*.html"))}
    return [
        f"{path.relative_to(site)} -> {link}: {reason}"
        for path, page in pages.items()
        if path.name != "404.html"  # its links are absolute: it is served from any depth
        for link in page.links
        if (reason := _fault(site, path, link, pages)) is not None
    ]


def _parsed(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text("utf-8"))
    return page


def _fault(site: Path, path: Path, link: str, pages: dict[Path, _Page]) -> str | None:
    parts = urlsplit(link)
    if parts.scheme in ("mailto", "data"):
        return None
    if parts.scheme or parts.netloc:
        return "leaves the site"
    if parts.path.startswith("/"):
        return "absolute"
    target = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
    if target.is_dir():
        target /= "index.html"
    if not target.is_relative_to(site.resolve()):
        return "outside the site"
    if not target.exists():
        return "no such file"
    if parts.fragment and target.suffix == ".html":
        ids = pages[target].ids | {"__skip", "__top"}
        if unquote(parts.fragment) not in ids:
            return "no such anchor"
    return None
