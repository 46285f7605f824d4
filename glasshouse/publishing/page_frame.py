"""The theme around many pages that differ in a few places: rendered once, then filled in.

Material renders navigation, header and footer anew for every page, which is most of a large build. Pages
outside the navigation at one depth get the same ones; what differs is listed in `_fields`. The first page of
each kind is rendered with marks in those places, and every page is that text with its own values.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, pass_context
from jinja2.runtime import Context

TEMPLATE = "framed.html"  # of templates/theme: nothing but {{ framed() }}
_MARK = re.compile("\0([a-z_]+)[^\0]*\0")


class Frames:
    """Frames of one build, by what of a page may alter them besides its fields."""

    def __init__(self, env: Environment) -> None:
        self._env = env
        self._frames: dict[tuple[str, ...], list[str]] = {}

    @pass_context
    def framed(self, context: Context) -> str:
        """Return the current page as the theme's main.html renders it."""
        page = context["page"]
        fields = _fields(page)
        marks = {name: _mark(name, value) for name, value in fields.items()}
        kind = (context["base_url"], str(page.meta["hide"]), *marks.values())
        if kind not in self._frames:
            main = self._env.get_template("main.html")
            self._frames[kind] = _MARK.split(main.render(context.get_all() | {"page": _with(page, marks)}))
        # Text and names of fields alternate.
        parts = list(self._frames[kind])
        parts[1::2] = [fields[name] for name in parts[1::2]]
        return "".join(parts)


def _fields(page: Any) -> dict[str, str]:
    return {
        "title": str(page.meta["title"]),
        "description": str(page.meta["description"]),
        "canonical_url": page.canonical_url or "",
        "content": page.content or "",
    }


def _mark(name: str, value: str) -> str:
    # Material leaves out what is empty, and asks of the content whether it has a heading.
    return f"\0{name}{' <h1' * ('<h1' in value)}\0" if value else ""


def _with(page: Any, fields: Mapping[str, str]) -> Any:
    other = copy.copy(page)
    for name, value in fields.items():
        if name in page.meta:
            other.meta = {**other.meta, name: value}
        else:
            setattr(other, name, value)
    return other
