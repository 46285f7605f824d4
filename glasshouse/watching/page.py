"""A private job's curves as pages of their own, for their owner's eyes: text in, HTML out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from glasshouse.errors import harmless
from glasshouse.publishing.drawing import path, scale, ticks
from glasshouse.watching.curves import Curve
from glasshouse.watching.draw import number

MAX_CURVES = 24  # of one launch's page
_WIDTH, _HEIGHT, _LEFT = 760.0, 240.0, 76.0
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem}"
    "svg{width:100%;height:auto}text{font-size:12px;fill:#555}path{fill:none;stroke:#24508f;stroke-width:2}"
    "line{stroke:#ddd}h2{margin-top:2rem}pre{white-space:pre-wrap}"
)


def run_page(run: str, launches: Sequence[tuple[str, Mapping[str, Curve], Sequence[str]]]) -> str:
    """The page of a run. launches: of each its name, its curves, and lines on how it stood."""
    body = [
        f"<h1>{escape(run)}</h1>",
        "<p>Private: opened here with the owner's key, and published nowhere.</p>",
    ]
    for name, curves, lines in launches:
        body.append(f"<h2>{escape(name)}</h2>")
        body.append(f"<pre>{escape(harmless(chr(10).join(lines), keep=chr(10)))}</pre>")
        for title, curve in list(curves.items())[:MAX_CURVES]:
            if len(curve.xs) > 1:
                body.append(_figure(harmless(title), curve))
    return _framed(run, body)


def index_page(runs: Sequence[str]) -> str:
    """The page that leads to the others."""
    listed = "".join(f'<li><a href="{escape(run)}.html">{escape(run)}</a></li>' for run in runs)
    return _framed("Private runs", ["<h1>Private runs</h1>", f"<ul>{listed}</ul>"])


def _framed(title: str, body: Sequence[str]) -> str:
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """The least and the greatest, apart enough for ticks between them."""
    low, high = min(values), max(values)
    apart = max(abs(low), abs(high), 1e-12) * 1e-6
    return (low, high) if high - low > apart else (low - apart, high + apart)


def _figure(title: str, curve: Curve) -> str:
    x_ticks, y_ticks = ticks(*_ends(curve.xs)), ticks(*_ends(curve.values), 5)
    across = scale(x_ticks[0], x_ticks[-1], _LEFT, _WIDTH - 20)
    up = scale(y_ticks[0], y_ticks[-1], _HEIGHT - 40, 16)
    marks = [
        f'<line x1="{_LEFT}" x2="{_WIDTH - 20}" y1="{up(y):.1f}" y2="{up(y):.1f}"/>'
        f'<text x="{_LEFT - 8}" y="{up(y) + 4:.1f}" text-anchor="end">{escape(number(y))}</text>'
        for y in y_ticks
    ]
    marks += [
        f'<text x="{across(x):.1f}" y="{_HEIGHT - 20}" text-anchor="middle">{escape(number(x))}</text>'
        for x in x_ticks
    ]
    what = "step" if curve.stepped else "reported"
    marks.append(f'<text x="{_WIDTH - 20}" y="{_HEIGHT - 4}" text-anchor="end">{what}</text>')
    line = path((across(x), up(y)) for x, y in zip(curve.xs, curve.values, strict=True))
    said = f"{title}, {len(curve.xs)} points, the last {number(curve.values[-1])}"
    return (
        f"<h3>{escape(title)}</h3>"
        f'<svg viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img" aria-label="{escape(said)}">'
        f'{"".join(marks)}<path d="{escape(line)}"/></svg>'
    )
