"""Reading run folders for the eye. Nothing here verifies anything: that is `glasshouse verify`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from glasshouse import host
from glasshouse.canonical import CanonicalError, parse_json
from glasshouse.errors import UsageError
from glasshouse.judgement.conclusions import control_line, overhead_stated
from glasshouse.judgement.record import Record
from glasshouse.lifecycle.goes_on import clock

RECORD = Path("bundle") / "record.json"
RUNS = Path("runs")


@dataclass(frozen=True)
class Found:
    """A run folder. status: verified, excluded, or where there is no record yet running (its controller is at
    work), unattended (its machine may go on without one) or unfinished; else unreadable.

    record: None where there is none that can be read. unattended_until: Unix seconds, 0.0: not at all.
    """

    path: Path
    run: str
    status: str
    record: Record | None = None
    unattended_until: float = 0.0

    @property
    def state(self) -> str:
        """The status as a person reads it."""
        if self.status != "unattended":
            return self.status
        return f"running unattended until {clock(self.unattended_until)}"

    @property
    def is_job(self) -> bool:
        """Whether it is a private job, by the run's own file; False where that cannot be read."""
        try:
            spec = parse_json((self.path / "run.json").read_bytes()).get("spec")
        except (OSError, CanonicalError, AttributeError):
            return False
        job = ("private", "protected-only")
        return isinstance(spec, dict) and (spec.get("payload"), spec.get("order")) == job

    @property
    def row(self) -> str | None:
        """The row's id."""
        return None if self.record is None else self.record.id

    @property
    def overhead_pct(self) -> float | None:
        """Overhead in percent, where the record states one as a result."""
        return None if self.record is None else overhead_stated(self.record.figures)

    @property
    def control(self) -> str:
        """That the run is a control, and how it came out; "" for one that is none."""
        return "" if self.record is None else control_line(self.record.figures)

    @property
    def exclusion(self) -> tuple[str, ...]:
        """Reason codes of an excluded run."""
        return () if self.record is None else self.record.reasons

    @property
    def caveats(self) -> tuple[str, ...]:
        """Caveat codes."""
        return () if self.record is None else self.record.caveats

    def as_json(self) -> dict[str, object]:
        """Return the record as it stands in its file, {} where there is none."""
        if self.record is None:
            return {}
        found: dict[str, object] = parse_json((self.path / RECORD).read_bytes())
        return found


def find_runs(out: Path) -> list[Found]:
    """Return the runs under `out`, oldest first (their ids begin with the time).

    Raises UsageError where there is no such folder, but for the default one, which a first run makes.
    """
    if not out.is_dir():
        if out == RUNS:
            return []
        raise UsageError("no such folder", field="out", value=out, remedy="give a folder of run folders")
    folders = sorted(path for path in out.iterdir() if path.is_dir() and not path.name.startswith("."))
    return [read_run(path) for path in folders]


def read_run(folder: Path) -> Found:
    """Read one run folder's record."""
    path = folder / RECORD
    if not path.is_file():
        return _unfinished(folder)
    try:
        record = Record.read(path.read_bytes())
    except OSError:
        record = None
    if record is None:
        return Found(folder, folder.name, "unreadable")
    return Found(folder, record.run, record.status, record)


def _unfinished(folder: Path) -> Found:
    """A run without a record, by what its own file says; whether its machine is there, nobody is asked."""
    try:
        saved = parse_json((folder / "run.json").read_bytes())
        controller, until = saved.get("controller"), saved.get("unattendedUntil")
    except (OSError, CanonicalError, AttributeError):
        return Found(folder, folder.name, "unfinished")
    if isinstance(controller, str) and controller and host.lives(controller):
        return Found(folder, folder.name, "running")
    if isinstance(until, int | float) and until > time.time():
        return Found(folder, folder.name, "unattended", unattended_until=float(until))
    return Found(folder, folder.name, "unfinished")


def pick_run(name: str, out: Path) -> Found:
    """Find a run by its folder, its id, or an unambiguous beginning of its id. Raises UsageError."""
    if any((Path(name) / file).is_file() for file in (RECORD, "run.json")):
        return read_run(Path(name))
    close = [item for item in find_runs(out) if item.run.startswith(name) or item.row == name]
    exact = [item for item in close if name in (item.run, item.row)]
    if len(exact) == 1 or len(close) == 1:
        return (exact or close)[0]
    what = "several runs begin so" if close else "no such run"
    raise UsageError(what, field="run", value=name, remedy="`glasshouse runs` lists them")
