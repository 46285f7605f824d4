"""Which cells of a sweep are done: a verified run of exactly the same settings lies in the runs folder.

Excluded runs do not count: a sweep that is started again repeats them. `--again` repeats everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from glasshouse.canonical import CanonicalError, canonical_json, parse_json
from glasshouse.spec import RunSpec

Cells = list[tuple[list[str], RunSpec]]


@dataclass(frozen=True)
class Skipped:
    """A cell that is not run again, and the run that covers it."""

    overrides: list[str]
    run: str

    def line(self) -> str:
        """Return what a person is told."""
        return f"skipped: {' '.join(self.overrides) or 'defaults'} is done in {self.run} (--again repeats it)"


def unfinished(cells: Sequence[tuple[list[str], RunSpec]], out: Path) -> tuple[Cells, list[Skipped]]:
    """Split cells into those still to be run and those that a run under `out` covers."""
    done = _finished(out)
    left: Cells = []
    skipped: list[Skipped] = []
    for overrides, spec in cells:
        run = done.get(canonical_json(spec.model_dump(mode="json")))
        if run is None:
            left.append((overrides, spec))
        else:
            skipped.append(Skipped(list(overrides), run))
    return left, skipped


def _finished(out: Path) -> dict[bytes, str]:
    """Runs by their resolved settings. Read for convenience: what counts is what `verify` says of a run."""
    found: dict[bytes, str] = {}
    for record in sorted(out.glob("2*/bundle/record.json")):
        folder = record.parents[1]
        try:
            state, judged = parse_json((folder / "run.json").read_bytes()), parse_json(record.read_bytes())
            if judged["status"] == "verified":
                # Read anew: settings that an earlier version did not have had what are their defaults now.
                spec = RunSpec.model_validate_json(canonical_json(state["spec"]))
                found[canonical_json(spec.model_dump(mode="json"))] = str(judged["run"])
        except (OSError, CanonicalError, KeyError, TypeError, ValueError):
            continue  # not a run folder that we can read: the cell is run
    return found
