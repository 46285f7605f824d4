"""What a person sees while a run goes on: one line a phase, a live line a leg, a table at the end.

Where two things go on at once, the one in another thread is told apart by a word: each line of it begins
with `meanwhile: `, and the live line names both.

Everything goes to stderr; stdout belongs to --json. Without a terminal, plain lines at a slow rate. The same
lines go to the run's controller.log, also where nobody sees them: a terminal can be closed.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from rich import box
from rich.console import Console
from rich.markup import escape as escape_markup
from rich.status import Status
from rich.table import Table

from glasshouse.errors import harmless
from glasshouse.lifecycle.meter import seconds

PLAIN_EVERY_SEC = 10.0
MAX_LOG_BYTES = 2 << 20
MEANWHILE = "meanwhile: "


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


class ControllerLog:
    """controller.log of one run: each line that is shown, behind its time in UTC, for its owner only.

    What cannot be written is lost: a full disk must not stop a run. Of MAX_LOG_BYTES, progress fills half at
    most, so that what follows a long run still finds room.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def line(self, text: str, *, routine: bool = False) -> None:
        """Append one line; `routine` ones, of which there is no end, stop when the file is half full."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        data = f"{stamp} {harmless(text)}\n".encode("utf-8", "replace")
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        with contextlib.suppress(OSError):
            descriptor = os.open(self._path, flags, 0o600)
            try:
                limit = MAX_LOG_BYTES // 2 if routine else MAX_LOG_BYTES
                if os.fstat(descriptor).st_size + len(data) <= limit:
                    os.write(descriptor, data)
            finally:
                os.close(descriptor)


@dataclass(frozen=True)
class JobRow:
    """What the table says of a private job: None and "" for what is not known, or never came to be."""

    steps: int | None
    elapsed_sec: float | None
    ended: str


@dataclass(frozen=True)
class SummaryRow:
    """What the table at the end says of one run: rates in units a second, None where there is none."""

    run: str
    order: str
    status: str
    raw_per_sec: float | None
    protected_per_sec: float | None
    overhead_pct: float | None
    fixed_sec: float | None
    control: str = ""
    no_figure: str = ""
    excluded: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()
    job: JobRow | None = None


@dataclass
class _Step:
    """Where a step is, in words; when a plain stream and the log were last told so (monotonic seconds)."""

    text: str
    shown: float
    logged: float


class Screen:
    """Progress output of one run. `quiet` shows nothing at all. One thread has the phases; beside it another
    may show what goes on meanwhile. `asks`: a person at a terminal may be asked something.
    """

    def __init__(self, *, quiet: bool = False, asks: bool = False) -> None:
        self.asks = asks and not quiet
        # Off a terminal rich would fold at 80 columns; a log has no edge.
        width = None if sys.stderr.isatty() else 160
        self._console = Console(file=cast(IO[str], _Stderr()), quiet=quiet, highlight=False, width=width)
        self._status: Status | None = None
        self._phase = _Step("", 0.0, 0.0)
        self._beside: _Step | None = None
        self._drawing = threading.RLock()  # of the live line; a signal's handler may show something inside
        self._log: ControllerLog | None = None
        self._name = ""  # begins each line of a screen beside another
        self._plain = False

    def aside(self, name: str) -> Screen:
        """The same terminal for another thread: plain lines, each after `name`, and a log of its own."""
        other = Screen()
        other._console, other._name, other._plain = self._console, f"{name}: ", True
        return other

    @property
    def live(self) -> bool:
        """Whether a line can be redrawn."""
        return self._console.is_terminal and not self._plain

    @contextmanager
    def logged(self, path: Path) -> Iterator[None]:
        """Write all that is shown meanwhile to this file as well."""
        before, self._log = self._log, ControllerLog(path)
        try:
            yield
        finally:
            self._log = before

    def headline(self, text: str) -> None:
        """Announce a run."""
        self._show(text, f"[bold]{_shown(text)}[/bold]")

    def say(self, text: str) -> None:
        """Say one thing."""
        self._show(text, f"  {_shown(self._name + text)}")

    def warn(self, text: str) -> None:
        """Say one thing that needs attention."""
        self._show(text, f"  [yellow]{_shown(self._name + text)}[/yellow]")

    def alarm(self, text: str) -> None:
        """Say something loudly."""
        self._show(text, f"[bold red]{_shown(text)}[/bold red]")

    @contextmanager
    def phase(self, text: str) -> Iterator[None]:
        """Show a phase while it goes on, and how long it took."""
        began = time.monotonic()
        self._phase = _Step(f"{text} …", began, began)
        self.record(f"… {text}")
        if self.live:
            with self._console.status(_shown(self._line())) as status:
                self._status = status
                try:
                    yield
                finally:
                    with self._drawing:
                        self._status = None
        else:
            self._console.print(f"  … {_shown(self._name + text)}", soft_wrap=True)
            yield
        took = f"{time.monotonic() - began:.1f} s"
        shown = _shown(self._name + text)
        self._show(f"✓ {text} {took}", f"  [green]✓[/green] {shown} [dim]{took}[/dim]")

    @contextmanager
    def meanwhile(self, text: str) -> Iterator[None]:
        """Show a step that another thread takes beside the phase that goes on, and how long it took."""
        began = time.monotonic()
        named = f"{MEANWHILE}{text}"
        self.record(f"… {named}")
        if not self.live:
            self._console.print(f"  … {_shown(named)}", soft_wrap=True)
        self._beside = _Step(f"{text} …", began, began)
        self._redraw()
        try:
            yield
        finally:
            self._beside = None
            self._redraw()
        took = f"{time.monotonic() - began:.1f} s"
        self._show(f"✓ {named} {took}", f"  [green]✓[/green] {_shown(named)} [dim]{took}[/dim]")

    def progress(self, text: str, *, plain: bool = True) -> None:
        """Redraw the live line; on a plain stream, a line every few seconds, or none with plain=False."""
        self._progress(self._phase, text, text, plain)

    def progress_meanwhile(self, text: str) -> None:
        """The same for the step that goes on meanwhile."""
        if self._beside is not None:
            self._progress(self._beside, text, f"{MEANWHILE}{text}", plain=True)

    def _progress(self, step: _Step, text: str, named: str, plain: bool) -> None:
        now = time.monotonic()
        step.text = text
        if now - step.logged >= PLAIN_EVERY_SEC:
            step.logged = now
            self.record(named, routine=True)
        if not self._redraw() and plain and now - step.shown >= PLAIN_EVERY_SEC:
            step.shown = now
            self._console.print(f"    {_shown(self._name + named)}", soft_wrap=True)

    def _line(self) -> str:
        beside = self._beside
        return self._phase.text if beside is None else f"{self._phase.text}; {MEANWHILE}{beside.text}"

    def _redraw(self) -> bool:
        """Bring the live line up to date; whether there is one."""
        with self._drawing:
            if self._status is not None:
                self._status.update(_shown(self._line()))
            return self._status is not None

    def record(self, text: str, *, routine: bool = False) -> None:
        """Write a line to the log alone; a `routine` one is one of many (ControllerLog)."""
        if self._log is not None:
            self._log.line(text, routine=routine)

    def _show(self, text: str, markup: str) -> None:
        self.record(text)
        self._console.print(markup, soft_wrap=True)

    def summary(self, rows: Sequence[SummaryRow]) -> None:
        """Print the table at the end, one line a run, and beneath it what each run is worth."""
        if jobs := [(row, row.job) for row in rows if row.job is not None]:
            self._console.print(_jobs(jobs))
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in ("run", "order", "status"):
            table.add_column(column, no_wrap=True)
        for column in ("raw /s", "protected /s", "overhead", "fixed cost"):
            table.add_column(column, no_wrap=True, justify="right")
        measured = [row for row in rows if row.job is None]
        for row in measured:
            table.add_row(
                _shown(row.run),
                _shown(row.order),
                _status(row),
                _number(row.raw_per_sec, "{:.2f}"),
                _number(row.protected_per_sec, "{:.2f}"),
                _number(row.overhead_pct, "{:+.2f}%"),
                _number(row.fixed_sec, "{:.1f} s"),
            )
        if measured:
            self._console.print(table)
        for row in rows:
            if row.excluded:
                self.warn(f"{row.run} is excluded: {', '.join(row.excluded)}")
            if row.control:
                self.warn(f"{row.run} is a {row.control}")
            if row.no_figure:
                self.warn(f"{row.run} states no overhead: {row.no_figure}")
            if row.caveats:
                self.say(f"{row.run} caveats: {', '.join(row.caveats)}")


def _jobs(jobs: Sequence[tuple[SummaryRow, JobRow]]) -> Table:
    """The table of private jobs, where nothing is measured: 80 columns, and never a run's id cut."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("run", "status"):
        table.add_column(column, no_wrap=True)
    for column in ("steps", "time"):
        table.add_column(column, no_wrap=True, justify="right")
    table.add_column("how it ended", overflow="fold")
    for row, job in jobs:
        table.add_row(
            _shown(row.run),
            _status(row),
            str(job.steps) if job.steps else "-",
            "-" if job.elapsed_sec is None else seconds(job.elapsed_sec),
            _shown(job.ended) or "-",
        )
    return table


def _status(row: SummaryRow) -> str:
    colour = "red" if row.status == "excluded" else "yellow" if row.control else "green"
    status = f"{row.status}{' control' if row.control else ''}"
    return f"[{colour}]{_shown(status)}[/{colour}]"


def _shown(text: str) -> str:
    """What a person sees of a text that may hold something of a pod's: no markup, no control sequence."""
    return escape_markup(harmless(text))


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
