"""A Content-Security-Policy that allows this site's own files and exactly the inline scripts on the page."""

from __future__ import annotations

import base64
import hashlib
import re

_INLINE = re.compile(r"<script(?P<attrs>[^>]*)>(?P<code>.*?)</script>", re.DOTALL | re.IGNORECASE)
_CHARSET = re.compile(r"<meta charset=[^>]*>", re.IGNORECASE)


def inline_hashes(html: str) -> tuple[str, ...]:
    """CSP source expressions for the inline scripts that a browser would run, in order, each once."""
    found: dict[str, None] = {}
    for match in _INLINE.finditer(html):
        attributes = match["attrs"].lower()
        if "src=" in attributes or "application/json" in attributes or "application/ld+json" in attributes:
            continue
        digest = base64.b64encode(hashlib.sha256(match["code"].encode("utf-8")).digest()).decode("ascii")
        found[f"'sha256-{digest}'"] = None
    return tuple(found)


def policy(html: str) -> str:
    """The policy for one page: nothing from elsewhere, no inline style, inline scripts by hash."""
    scripts = " ".join(("'self'", *inline_hashes(html)))
    return (
        f"default-src 'none'; script-src {scripts}; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'"
    )


def with_policy(html: str) -> str:
    """Insert the policy right after the charset, before anything that loads."""
    match = _CHARSET.search(html)
    if match is None:
        return html
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy(html)}">'
    return html[: match.end()] + meta + html[match.end() :]
