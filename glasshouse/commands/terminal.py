"""What commands print: lines, JSON documents, and tables that also read well in a pipe."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from glasshouse.errors import UsageError, harmless

SPARKS = "▁▂▃▄▅▆▇█"


def say(text: str = "") -> None:
    """Print text; control characters, which a record from elsewhere may hold, cannot reach the terminal."""
    sys.stdout.write(harmless(text, keep="\n") + "\n")


def emit(document: Any) -> None:
    """Print one JSON document. What no terminal prints is escaped: outside of strings there is none of it."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    shown = "".join(char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in text)
    sys.stdout.write(shown + "\n")


@contextmanager
def writing(field: str, path: Path) -> Iterator[None]:
    """Turn a failure to write below `path`, which the option `field` gave, into a UsageError."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"cannot write there: {error.strerror or type(error).__name__}",
            field=field,
            value=path,
            remedy="give a place that can be written",
        ) from error


def require_writable(field: str, path: Path) -> None:
    """Raise UsageError where the file `path` could not be written, before the work that it is to hold."""
    with writing(field, path):
        if path.is_dir():
            raise IsADirectoryError(21, "it is a folder")
        with tempfile.TemporaryFile(dir=path.parent):
            pass


def columns() -> int | None:
    """How wide the terminal is that stdout goes to; None where it goes to none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def folded(text: str, width: int | None) -> str:
    """`text` in lines of `width` characters at most, broken at spaces; as it is without a width."""
    if width is None:
        return text
    return "\n".join(
        textwrap.fill(line, max(20, width), break_long_words=False, break_on_hyphens=False)
        for line in text.split("\n")
    )


def table(header: Sequence[str], rows: Sequence[Sequence[object]], width: int | None = None) -> str:
    """Align columns with spaces; numbers to the right. Nothing is cut: a terminal can scroll, a log cannot.

    width: of a terminal; the last column goes on in further lines where it does not fit in that.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    right = [all(isinstance(row[index], int | float | None) for row in rows) for index in range(len(header))]
    beside = sum(widths[:-1]) + 2 * (len(widths) - 1)
    if width is not None and beside + widths[-1] > width:
        cells, last = [], max(20, width - beside)
        for row in rows:
            *first, end = [_cell(value) for value in row]
            parts = textwrap.wrap(end, last, break_long_words=False, break_on_hyphens=False) or [""]
            cells += [[*(first if not at else [""] * len(first)), part] for at, part in enumerate(parts)]
        widths[-1] = max(map(len, (header[-1], *(line[-1] for line in cells))))
    lines = []
    for line in (list(header), ["-" * width for width in widths], *cells):
        padded = [
            text.rjust(width) if numeric else text.ljust(width)
            for text, width, numeric in zip(line, widths, right, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def spark(values: Sequence[float], width: int = 60, *, scale: Sequence[float] = ()) -> str:
    """Draw a curve in one line of `width` characters at most, from its least value to its greatest.

    scale: values to take the least and the greatest from instead, so that several curves compare.
    """
    if not values:
        return ""
    step = max(1, -(-len(values) // width))
    means = [sum(part) / len(part) for part in (values[i : i + step] for i in range(0, len(values), step))]
    low, high = min(scale or means), max(scale or means)
    steps = (len(SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(SPARKS[round((value - low) * steps)] for value in means)
