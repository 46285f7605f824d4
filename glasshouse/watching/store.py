"""The sealed records of a run at home: found, held against signed events, opened with a key of the owner's.

    runs/<run>/watch/<leg>-<launch>/000001.sealed

Anyone can seal to a public key: that a leg made a record is what its events say, which name each one's
digest.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from glasshouse.canonical import CanonicalError, parse_json, sha256_hex
from glasshouse.errors import SealError
from glasshouse.host import read_regular
from glasshouse.runtime.params import sealed_under
from glasshouse.sealing.grant import KemKey
from glasshouse.sealing.outputs import open_outputs
from glasshouse.watching.record import RecordError, WatchRecord, read

MAX_SEALED = 1 << 20
MAX_EVENTS = 64 << 20
MAX_RECORDS = 100_000
_PLACE = re.compile(r"(s[0-9]{3})-([1-9][0-9]{0,2})\Z")
_RECORD = re.compile(r"([0-9]{6,9})\.sealed\Z")


@dataclass(frozen=True)
class LaunchRecords:
    """Where the records of one launch lie, and what they are sealed under, without their number."""

    run: str
    leg: str
    launch: int
    folder: Path
    files: Path  # of the bundle, or of what becomes one: the launch's

    @property
    def numbers(self) -> list[int]:
        """The records that are there, by number."""
        found = (_RECORD.match(path.name) for path in self.folder.iterdir()) if self.folder.is_dir() else ()
        return sorted(int(match[1]) for match in found if match is not None)[:MAX_RECORDS]

    def path(self, number: int) -> Path:
        """Where record `number` lies."""
        return self.folder / f"{number:06d}.sealed"


class WatchReader:
    """Opens a launch's records one after the other. Not for two threads."""

    def __init__(self, launch: LaunchRecords, keys: Sequence[KemKey]) -> None:
        self.launch = launch
        self._keys = keys  # of the owner, any of which may open a record
        self._read = 0  # bytes of the events that were looked at
        self._named: dict[int, str] = {}
        self._manifest: str | None = None
        self._next = 1
        self._any = False  # whether one opened
        self.refused: dict[int, str] = {}  # by number, why

    def new(self) -> Iterator[WatchRecord]:
        """Yield the records that came since the last call; one that is none is in `refused`.

        Where one is missing, later ones are taken: it was never fetched. SealError: none opens, as
        for another owner's key.
        """
        numbers = [number for number in self.launch.numbers if number >= self._next]
        if not numbers:
            return
        self._look()
        for number in numbers:
            if number not in self._named:
                return  # its event comes with the next look
            self._next = number + 1
            with contextlib.suppress(OSError):
                data = read_regular(self.launch.path(number), MAX_SEALED)
                if sha256_hex(data) != self._named[number]:
                    self.refused[number] = "it is not the one that the events name"
                    continue
                try:
                    record = self._opened(number)
                except RecordError as error:
                    self.refused[number] = str(error)
                except SealError as error:
                    if not self._any:
                        raise
                    self.refused[number] = error.line()
                else:
                    self._any = True
                    yield record

    def _opened(self, number: int) -> WatchRecord:
        one = self.launch
        context = {**sealed_under(one.run, one.leg, one.launch, self._manifest or ""), "watch": str(number)}
        with open_outputs(self.launch.path(number), self._keys, context=context, threads=1) as opened:
            if len(opened.files) != 1:
                raise RecordError("it holds something else")
            record = read(bytes(*opened.files.values()))
        if record.number != number:
            raise RecordError("it has another number")
        return record

    def _look(self) -> None:
        """Learn what the events name; they are checked when they come, and by `verify`."""
        if self._manifest is None:
            self._manifest = _manifest(self.launch.files / "reference.json")
        with contextlib.suppress(OSError), (self.launch.files / "events.jsonl").open("rb") as stream:
            stream.seek(self._read)
            data = stream.read(MAX_EVENTS)
            whole = data[: data.rfind(b"\n") + 1]
            self._read += len(whole)
            for line in whole.splitlines():
                if b'"watched"' in line and (named := _watched(line)) is not None:
                    self._named[named[0]] = named[1]


def _watched(line: bytes) -> tuple[int, str] | None:
    try:
        event = parse_json(line)
        number, digest = event["body"]["number"], event["body"]["ciphertextSha256"]
    except (CanonicalError, KeyError, TypeError):
        return None
    good = event.get("type") == "watched" and type(number) is int and isinstance(digest, str)
    return (number, digest) if good else None


def _manifest(path: Path) -> str | None:
    try:
        return str(parse_json(read_regular(path, 1 << 20))["manifest_hash"])
    except (OSError, CanonicalError, KeyError, TypeError):
        return None


def launches(folder: Path, run: str) -> list[LaunchRecords]:
    """The launches of a run that have records at home, in their order. `folder`: the run's."""
    found = []
    for place in sorted((folder / "watch").iterdir()) if (folder / "watch").is_dir() else ():
        match = _PLACE.match(place.name)
        if match is None or not place.is_dir():
            continue
        leg, launch = match[1], int(match[2])
        name = f"legs/{leg}-protected{'' if launch == 1 else f'-l{launch}'}"
        files = next((top for top in ("parts", "bundle") if (folder / top / name).is_dir()), "bundle")
        found.append(LaunchRecords(run, leg, launch, place, folder / files / name))
    return sorted(found, key=lambda one: (one.leg, one.launch))
