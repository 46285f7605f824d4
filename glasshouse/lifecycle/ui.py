"""What a person sees while a run goes on: one line a phase, a live line a leg, a table at the end.

Everything goes to stderr; stdout belongs to --json. Without a terminal, plain lines at a slow rate.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, cast

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

PLAIN_EVERY_SEC = 10.0


class _Stderr:
    """stderr that may fail: a closed terminal or a full disk must not stop a run, least of all a release."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)

    def write(self, text: str) -> int:
        """Write what can be written."""
        with contextlib.suppress(OSError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        """Send on what can be sent on."""
        with contextlib.suppress(OSError):
            sys.stderr.flush()


class Screen:
    """Progress output of one run. `quiet` says nothing at all."""

    def __init__(self, *, quiet: bool = False) -> None:
        # Off a terminal rich would fold at 80 columns; a log has no edge.
        width = None if sys.stderr.isatty() else 160
        self._console = Console(file=cast(IO[str], _Stderr()), quiet=quiet, highlight=False, width=width)
        self._status: Status | None = None
        self._last_plain = 0.0

    @property
    def live(self) -> bool:
        """Whether a line can be redrawn."""
        return self._console.is_terminal

    def headline(self, text: str) -> None:
        """Announce a run."""
        self._console.print(f"[bold]{escape(text)}[/bold]", soft_wrap=True)

    def note(self, text: str) -> None:
        """Say one thing."""
        self._console.print(f"  {escape(text)}", soft_wrap=True)

    def warn(self, text: str) -> None:
        """Say one thing that needs attention."""
        self._console.print(f"  [yellow]{escape(text)}[/yellow]", soft_wrap=True)

    def alarm(self, text: str) -> None:
        """Say something loudly."""
        self._console.print(f"[bold red]{escape(text)}[/bold red]", soft_wrap=True)

    @contextmanager
    def phase(self, text: str) -> Iterator[None]:
        """Show a phase while it goes on, and how long it took."""
        began = time.monotonic()
        self._last_plain = began
        if self.live:
            with self._console.status(f"{escape(text)} …") as status:
                self._status = status
                try:
                    yield
                finally:
                    self._status = None
        else:
            self._console.print(f"  … {escape(text)}", soft_wrap=True)
            yield
        took = time.monotonic() - began
        self._console.print(f"  [green]✓[/green] {escape(text)} [dim]{took:.1f} s[/dim]", soft_wrap=True)

    def progress(self, text: str, *, plain: bool = True) -> None:
        """Redraw the live line; on a plain stream, a line every few seconds, or none with plain=False."""
        if self._status is not None:
            self._status.update(escape(text))
            return
        if not plain:
            return
        now = time.monotonic()
        if now - self._last_plain >= PLAIN_EVERY_SEC:
            self._last_plain = now
            self._console.print(f"    {escape(text)}", soft_wrap=True)

    def summary(self, rows: list[Mapping[str, Any]]) -> None:
        """Print the table at the end, one line a run, and beneath it what each run is worth."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in ("run", "order", "status"):
            table.add_column(column, no_wrap=True)
        for column in ("raw /s", "protected /s", "overhead", "fixed cost"):
            table.add_column(column, no_wrap=True, justify="right")
        for row in rows:
            control = bool(row.get("control"))
            colour = "red" if row["status"] == "excluded" else "yellow" if control else "green"
            status = f"{row['status']}{' control' if control else ''}"
            table.add_row(
                escape(str(row["run"])),
                escape(str(row["order"])),
                f"[{colour}]{escape(status)}[/{colour}]",
                _number(row.get("rawPerSec"), "{:.2f}"),
                _number(row.get("protectedPerSec"), "{:.2f}"),
                _number(row.get("overheadPct"), "{:+.2f}%"),
                _number(row.get("fixedSec"), "{:.1f} s"),
            )
        if rows:
            self._console.print(table)
        for row in rows:
            if row.get("excluded"):
                self.warn(f"{row['run']} is excluded: {', '.join(row['excluded'])}")
            if row.get("control"):
                self.warn(f"{row['run']} is a {row['control']}")
            if row.get("noFigure"):
                self.warn(f"{row['run']} states no overhead: {row['noFigure']}")
            if row.get("caveats"):
                self.note(f"{row['run']} caveats: {', '.join(row['caveats'])}")


def _number(value: Any, form: str) -> str:
    return "-" if value is None else form.format(value)
