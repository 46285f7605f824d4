"""What `logs`, `watch` and `show` share: which run, its records, and whether somebody follows it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from glasshouse.codes import Code
from glasshouse.commands.records import Found, pick_run
from glasshouse.errors import SealError, UsageError
from glasshouse.lifecycle.run_folder import RunFolder, RunLock
from glasshouse.records.keys import owner_keys
from glasshouse.spec import RunSpec
from glasshouse.watching.curves import Brought, Watched
from glasshouse.watching.record import WatchRecord
from glasshouse.watching.store import LaunchRecords, WatchReader, launches

OTHERS_KEY = "its records were sealed for another owner's key than this machine's, or altered since"


@dataclass(frozen=True)
class Taken:
    """One record, as it was taken."""

    launch: LaunchRecords
    watched: Watched
    record: WatchRecord
    brought: Brought


class Job:
    """A private job's run folder, and what its records tell. Raises UsageError for a run that is none."""

    def __init__(self, found: Found) -> None:
        self.found = found
        self.path = found.path
        self.spec: RunSpec = RunFolder(found.path).saved().spec
        if self.spec.order != "protected-only" or self.spec.payload != "private":
            raise UsageError(
                "only a private job is watched, and this run is none",
                field="run", value=found.run,
                remedy="`glasshouse show` has its curves once it is over",
            )  # fmt: skip
        self._keys = owner_keys()
        self._readers: dict[tuple[str, int], WatchReader] = {}
        self.watched: dict[tuple[str, int], Watched] = {}

    @property
    def ceiling_sec(self) -> float | None:
        """When the job is asked to end, in seconds from its begin; None where that was not said."""
        hours = getattr(self.spec.model, "max_hours", None)
        return None if hours is None else float(hours) * 3600.0

    @property
    def over(self) -> bool:
        """Whether the run has its record."""
        return (self.path / "bundle").is_dir()

    @property
    def followed(self) -> bool:
        """Whether some process works on the run."""
        if self.over:
            return False
        lock = RunLock(self.path)
        try:
            return not lock.take()
        finally:
            lock.close()

    def new(self) -> Iterator[Taken]:
        """Yield the records that came since the last call, launch by launch. Raises SealError."""
        for launch in launches(self.path, self.found.run):
            name = launch.leg, launch.launch
            if name not in self._readers:
                self._readers[name] = WatchReader(launch, self._keys)
                self.watched[name] = Watched(self.spec.steps)
            # Its files move from parts/ to bundle/ when the run is recorded.
            self._readers[name].launch = launch
            for record in self._readers[name].new():
                try:
                    brought = self.watched[name].take(record)
                except Exception as error:  # noqa: BLE001  a job wrote it: the other records are taken
                    self._readers[name].refused[record.number] = f"it cannot be read: {type(error).__name__}"
                    continue
                yield Taken(launch, self.watched[name], record, brought)

    @property
    def refused(self) -> list[str]:
        """Records that were not taken, each with its reason."""
        return [
            f"{leg}-{launch} record {number}: {why}"
            for (leg, launch), reader in self._readers.items()
            for number, why in reader.refused.items()
        ]


def pick_job(name: str, out: Path) -> Job:
    """Find a private job's run. Raises UsageError."""
    return Job(pick_run(name, out))


def explained(error: SealError) -> SealError:
    """The error in words, for records that this machine cannot open."""
    if Code.GRANT_UNWRAP_FAILED not in error.codes:
        return error
    return SealError(
        OTHERS_KEY,
        codes=error.codes,
        remedy="watch it where it was started, with the GLASSHOUSE_HOME of then",
    )
