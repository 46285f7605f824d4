"""Reading run folders for the eye. Nothing here verifies anything: that is `glasshouse verify`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glasshouse.canonical import CanonicalError, parse_json
from glasshouse.errors import UsageError
from glasshouse.judgement.stated import control_line, overhead_stated

RECORD = Path("bundle") / "record.json"
RUNS = Path("runs")


@dataclass(frozen=True)
class Found:
    """A run folder. status: verified, excluded, unfinished (no record yet) or unreadable."""

    path: Path
    run: str
    status: str
    record: dict[str, Any]

    @property
    def row(self) -> str | None:
        """The row's id."""
        value = self.record.get("id")
        return value if isinstance(value, str) else None

    @property
    def overhead_pct(self) -> float | None:
        """Overhead in percent, where the record states one as a result."""
        return overhead_stated(self.record)

    @property
    def control(self) -> str:
        """That the run is a control, and how it came out; "" for one that is none."""
        return control_line(self.record)

    @property
    def exclusion(self) -> tuple[str, ...]:
        """Reason codes of an excluded run."""
        return tuple((self.record.get("exclusion") or {}).get("codes") or ())

    @property
    def caveats(self) -> tuple[str, ...]:
        """Caveat codes."""
        return tuple(self.record.get("caveats") or ())


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
        return Found(folder, folder.name, "unfinished", {})
    try:
        record = parse_json(path.read_bytes())
    except (OSError, CanonicalError):
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("figures", {}), dict):
        return Found(folder, folder.name, "unreadable", {})
    return Found(folder, str(record.get("run", folder.name)), str(record.get("status")), record)


def pick_run(name: str, out: Path) -> Found:
    """Find a run by its folder, its id, or an unambiguous beginning of its id. Raises UsageError."""
    if (Path(name) / RECORD).is_file():
        return read_run(Path(name))
    close = [item for item in find_runs(out) if item.run.startswith(name) or item.row == name]
    exact = [item for item in close if name in (item.run, item.row)]
    if len(exact) == 1 or len(close) == 1:
        return (exact or close)[0]
    what = "several runs begin so" if close else "no such run"
    raise UsageError(what, field="run", value=name, remedy="`glasshouse runs` lists them")
