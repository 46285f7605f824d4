"""Checkpoints, and records for whoever watches, that a leg sealed while it went on: brought home and kept.

    RUN/checkpoints/s000-1/000003.sealed           as the leg sealed it for its owner
    RUN/checkpoints/s000-1/000003.events.jsonl     its chain, from the grant up to and with this one's event
    RUN/checkpoints/s000-1/000003.heads.jsonl      what of that was countersigned by then
    RUN/watch/s000-1/000017.sealed                 a record, of which all are kept

While a leg is followed they come a chunk at a time, between two polls (`Inflow`), so that no head is delayed
by more than one. Who comes later fetches what is not at home (`fetch`). Two checkpoints of a launch are kept
(`looking.kept`). Nothing has its name before it has the digest that the leg signed.

A machine may say that it sealed anything: numbers go up by one, records have a most size, each and all
together, and a part of the disk stays free (disk.py). Where outputs need room, checkpoints go (`give_room`).
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import re
import shutil
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from glasshouse.canonical import MAX_SAFE_INTEGER, parse_json
from glasshouse.errors import NoRoom, OutcomeUnknown, RemoteError, RentalOver
from glasshouse.lifecycle import disk
from glasshouse.lifecycle.follow import Event, carry
from glasshouse.lifecycle.leg import Leg
from glasshouse.lifecycle.meter import Meter
from glasshouse.lifecycle.run_folder import RunFolder
from glasshouse.lifecycle.screen import Screen
from glasshouse.records.keys import atomic_write
from glasshouse.remote.pod import Pod
from glasshouse.runtime import kept, looking

FOLDERS = kept.FOLDERS
KINDS = {event: kind for kind, event in kept.EVENTS.items()}
FIRST_CHUNK, MOST_CHUNK, LEAST_CHUNK = 1 << 20, 32 << 20, 1 << 16
MARKING = (  # behind the first line on one that nothing marks as whole
    " (a folder that is renamed into place when it is full marks one, or the file that "
    "model.checkpoint_ready names)"
)
CHUNK_SEC: Final = 1.0  # what a chunk is to take
MAX_STEPS: Final = MAX_SAFE_INTEGER
MAX_RECORDS_BYTES = 1 << 30  # of a run's, at home: of one owner's key, 16,000
_DIGEST = re.compile("[0-9a-f]{64}")
_SEALED = re.compile(r"([0-9]{6,})\.sealed\Z")
_PLACE = re.compile(r"(s[0-9]{3})-([1-9][0-9]*)\Z")


@dataclass(frozen=True)
class Stored:
    """A checkpoint at home. `events` and `heads` lie beside it; leg as `s000`, and its launch, from 1."""

    number: int
    path: Path
    events: Path
    heads: Path
    leg: str
    launch: int


@dataclass(frozen=True)
class Signed:
    """What a leg's checked event says of one file that it sealed. state: of a checkpoint, else empty."""

    kind: str
    number: int
    bytes: int
    sha256: str
    state: str

    @classmethod
    def of(cls, event_type: str, body: Mapping[str, Any]) -> Signed | None:
        """Read an event; None for one of another type, and for a body that is none of ours."""
        kind = KINDS.get(event_type)
        number, size, digest = body.get("number"), body.get("bytes"), body.get("ciphertextSha256")
        if (
            kind is None
            or type(number) is not int
            or not 1 <= number <= kept.MAX_NUMBER[kind]
            or type(size) is not int
            or not 0 < size <= kept.MAX_BYTES[kind]
            or not isinstance(digest, str)
            or not _DIGEST.fullmatch(digest)
        ):
            return None
        if kind == "checkpoint" and not _is_points(body):
            return None
        return cls(kind, number, size, digest, str(body.get("state", "")))


def _is_points(body: Mapping[str, Any]) -> bool:
    """Whether what a checkpoint's event has beside a record's has its form."""
    plaintext, steps = body.get("plaintextSha256"), body.get("steps")
    counted = steps is None or (type(steps) is int and 0 <= steps <= MAX_STEPS)
    return isinstance(plaintext, str) and _DIGEST.fullmatch(plaintext) is not None and counted


def stored(run_folder: Path) -> list[Stored]:
    """The checkpoints of a run that are at home, newest first: by launch, and by number within one."""
    found = []
    for place, leg, launch in _launches(run_folder / FOLDERS["checkpoint"]):
        for path in place.iterdir():
            if (match := _SEALED.match(path.name)) is not None:
                events, heads = (place / f"{match[1]}.{what}.jsonl" for what in ("events", "heads"))
                found.append(Stored(int(match[1]), path, events, heads, leg, launch))
    return sorted(found, key=lambda each: (each.leg, each.launch, each.number), reverse=True)


def records(run_folder: Path) -> list[tuple[str, int, int, Path]]:
    """The records of a run that are at home, oldest first: leg, launch, number, and where it lies."""
    return sorted(
        (leg, launch, int(match[1]), path)
        for place, leg, launch in _launches(run_folder / FOLDERS["watch"])
        for path in place.iterdir()
        if (match := _SEALED.match(path.name)) is not None
    )


def _launches(folder: Path) -> Iterator[tuple[Path, str, int]]:
    for place in sorted(folder.iterdir()) if folder.is_dir() else ():
        if (match := _PLACE.match(place.name)) is not None and place.is_dir():
            yield place, match[1], int(match[2])


def signed_in(events: bytes) -> list[Signed]:
    """What the events of a leg, which are checked, say that it sealed while it went on."""
    found = []
    for line in events.splitlines():
        if any(f'"{name}"'.encode() in line for name in KINDS):
            event = parse_json(line)
            if (signed := Signed.of(event["type"], event["body"])) is not None:
                found.append(signed)
    return found


def in_order(signed: Iterable[Signed]) -> list[Signed]:
    """Those whose numbers go up by one from 1, of each kind, as a leg's do; no others."""
    following, found = dict.fromkeys(FOLDERS, 1), []
    for each in signed:
        if each.number == following[each.kind]:
            following[each.kind] += 1
            found.append(each)
    return found


def give_room(folder: RunFolder, need: int) -> list[Stored]:
    """Make room in a run's folder for outputs of `need` bytes: the package, which is on the machine by then,
    what came of files that are on their way, and stored checkpoints go, the oldest first, as far as it takes.

    Returns the checkpoints that went. Raises NoRoom, and drops nothing, where all that would not do; OSError.
    """
    places = [place for place, _, _ in _launches(folder.path / FOLDERS["checkpoint"])]
    spare: list[tuple[list[Path], Stored | None]] = [
        ([folder.package, *(path for place in places for path in place.glob("*.part"))], None)
    ]
    spare += [([each.path, each.events, each.heads], each) for each in reversed(stored(folder.path))]
    gone: list[Stored] = []
    free = shutil.disk_usage(folder.path).free
    in_all = sum(path.stat().st_size for paths, _ in spare for path in paths if path.exists())
    while (have := disk.room(folder.path, last=True)) < need:
        if not spare or disk.usable(free + in_all) < need:
            raise NoRoom(
                f"its outputs need {need / 1e6:.1f} MB of this computer's disk, which has "
                f"{max(have, 0) / 1e6:.1f} MB for them",
                field="folder", value=folder.path, remedy="make room there",
            )  # fmt: skip
        paths, point = spare.pop(0)
        for path in paths:
            path.unlink(missing_ok=True)
        gone += [] if point is None else [point]
    return gone


def event_of(events: bytes) -> dict[str, Any]:
    """The checkpoint's event in the chain that is stored beside it: the last one."""
    lines = events.splitlines()
    event = parse_json(lines[-1]) if lines else {}
    return dict(event) if isinstance(event, dict) else {}


class Store:
    """Where the files of one launch lie at home."""

    def __init__(self, folder: RunFolder, leg: Leg) -> None:
        self._folder, self._leg = folder, leg
        self._records = sum(path.stat().st_size for _, _, _, path in records(folder.path))

    def events(self) -> bytes:
        """The launch's events that are at home, all of them checked."""
        files = self._folder.parts if self._folder.parts.exists() else self._folder.bundle
        path = files / self._leg.file("events.jsonl")
        return path.read_bytes() if path.exists() else b""

    def refused(self, signed: Signed) -> str:
        """Why there is no place for this one, "" where there is. Raises OSError."""
        if signed.kind == "watch" and self._records + signed.bytes > MAX_RECORDS_BYTES:
            return f"is not fetched: a run's records take {MAX_RECORDS_BYTES >> 20} MiB here at most"
        part = _part(self.path(signed))
        have = part.stat().st_size if part.exists() else 0
        if signed.bytes - have > (free := disk.room(self._folder.path)):
            return (
                f"is not fetched: it needs {signed.bytes / 1e6:.1f} MB of this computer's disk, "
                f"which has {free / 1e6:.1f} MB beside what is kept free"
            )
        return ""

    def path(self, signed: Signed) -> Path:
        """Where this one lies, or will."""
        place = self._folder.path / FOLDERS[signed.kind] / f"{self._leg.id}-{self._leg.launch}"
        return place / kept.sealed_name(signed.number)

    def on_pod(self, signed: Signed) -> str:
        """Where it lies on the pod."""
        return f"{self._leg.pod_folder}/{FOLDERS[signed.kind]}/{kept.sealed_name(signed.number)}"

    def held_on_pod(self, signed: Signed) -> str:
        """A second name there, which it has while it is fetched: the first goes with its second successor."""
        return f"{self._leg.pod_folder}/{FOLDERS[signed.kind]}/fetching-{signed.number}"

    def has(self, signed: Signed) -> bool:
        """Whether it is at home."""
        return self.path(signed).exists()

    def wanted(self, signed: Iterable[Signed]) -> list[Signed]:
        """What of it is to be fetched: checkpoints that are kept, the newest first, then records in order."""
        every = list(signed)
        points = {each.number: each for each in every if each.kind == "checkpoint"}
        stay = looking.kept({number: each.state for number, each in points.items()})
        first = [points[number] for number in sorted(stay, reverse=True)]
        return [each for each in [*first, *(x for x in every if x.kind == "watch")] if not self.has(each)]

    def take(self, signed: Signed, part: Path) -> None:
        """Give what came, and is right, its name; beside a checkpoint its events and heads. OSError."""
        path = self.path(signed)
        if signed.kind == "checkpoint":
            files = self._folder.parts if self._folder.parts.exists() else self._folder.bundle
            chain, seq = _up_to((files / self._leg.file("events.jsonl")).read_bytes(), signed)
            heads = files / self._leg.file("heads.jsonl")
            signed_heads = _heads_to(heads.read_bytes() if heads.exists() else b"", seq)
            stem = path.name.partition(".")[0]
            atomic_write(path.with_name(f"{stem}.events.jsonl"), chain, mode=0o600)
            atomic_write(path.with_name(f"{stem}.heads.jsonl"), signed_heads, mode=0o600)
        part.replace(path)
        if signed.kind == "checkpoint":
            self._prune(path.parent)
        else:
            self._records += signed.bytes

    def _prune(self, place: Path) -> None:
        states = {}
        for each in stored(self._folder.path):
            if each.path.parent == place:
                body = event_of(each.events.read_bytes() if each.events.exists() else b"").get("body", {})
                states[each.number] = str(body.get("state", ""))
        stay = looking.kept(states)
        for path in place.iterdir():
            number = path.name.partition(".")[0]
            if number.isdecimal() and int(number) in states and int(number) not in stay:
                path.unlink(missing_ok=True)


def _up_to(events: bytes, signed: Signed) -> tuple[bytes, int]:
    """The chain up to and with a checkpoint's event, and that one's place in it."""
    lines = events.splitlines(keepends=True)
    for seq, line in enumerate(lines):
        if signed.sha256.encode() in line and signed_in(line) == [signed]:
            return b"".join(lines[: seq + 1]), seq
    raise FileNotFoundError(f"no event of checkpoint {signed.number}")


def _heads_to(heads: bytes, seq: int) -> bytes:
    """The countersigned heads that lie in the first `seq` + 1 events."""
    lines = heads.splitlines(keepends=True)
    return b"".join(itertools.takewhile(lambda line: int(parse_json(bytes(line))["seq"]) <= seq, lines))


class Inflow:
    """Fetches what a leg seals, while it is followed: a chunk at a time, whenever `step` is called.

    Of checkpoints that come faster than the line takes them, it takes the newest when it is done with one.
    """

    def __init__(self, folder: RunFolder, screen: Screen, pod: Pod, leg: Leg) -> None:
        self._store, self._screen, self._pod = Store(folder, leg), screen, pod
        self._records: deque[Signed] = deque()
        self._points: dict[int, Signed] = {}
        self._next = dict.fromkeys(FOLDERS, 1)
        for signed in in_order(signed_in(self._store.events())):  # what whoever followed it before has heard
            self._next[signed.kind] += 1
        self._said: set[str] = set()
        self._now: Signed | None = None
        self._digest = hashlib.sha256()
        self._have = 0
        self._chunk = FIRST_CHUNK
        self._newest_said = 0  # number of the newest checkpoint that was said to be at home
        self._hinted = False

    def heard(self, event: Event) -> None:
        """Take note of an event of the leg, which is checked."""
        signed = Signed.of(event.type, event.body)
        if signed is None:
            return
        if signed.number != self._next[signed.kind]:
            self._say(signed, f"is not fetched: {self._next[signed.kind]} is the one that follows")
            return
        self._next[signed.kind] += 1
        if not self._store.has(signed):
            self._wait(signed)

    def _wait(self, signed: Signed) -> None:
        if signed.kind == "watch":
            self._records.append(signed)
            return
        self._points[signed.number] = signed
        stay = looking.kept({number: each.state for number, each in self._points.items()})
        self._points = {number: self._points[number] for number in stay}

    def _following(self) -> Signed | None:
        """What comes next. A record is small, and somebody may be looking; of checkpoints, the newest."""
        if self._records:
            return self._records.popleft()
        return self._points.pop(max(self._points)) if self._points else None

    def step(self) -> bool:
        """Fetch a chunk, if anything is to be fetched; whether anything was. Raises as `Pod.fetch` does, but
        for a file that is there no longer, or cannot be written here.
        """
        if self._now is None:
            self._now = self._following()
            if self._now is None:
                return False
            self._have = 0
        signed = self._now
        try:
            if why := self._store.refused(signed):
                self._give_up(why)
                return True
            part = _part(self._store.path(signed))
            if not (part.exists() and 0 < self._have == part.stat().st_size) and not self._begin(signed):
                self._now = None
                return True
            self._fetch(signed)
        except OSError as error:
            self._give_up(f"cannot be written: {error.strerror or type(error).__name__}")
        except (OutcomeUnknown, RentalOver):
            self._now = None  # begun anew on the next connection, from what is here
            self._wait(signed)
            raise
        except RemoteError as error:
            self._give_up(f"cannot be fetched: {error.line()}")
        return True

    def _begin(self, signed: Signed) -> bool:
        """Take up a part that is here, and hold the file on the pod; False where it is gone there."""
        part = _part(self._store.path(signed))
        part.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._digest, self._have = hashlib.sha256(), 0
        if part.exists():
            with part.open("rb") as file:
                while data := file.read(1 << 20):
                    self._digest.update(data)
                    self._have += len(data)
        held = self._store.held_on_pod(signed)
        script = 'ln -f -- "$1" "$2" 2>/dev/null || test -e "$2"'
        there = self._pod.run(["sh", "-c", script, "sh", self._store.on_pod(signed), held]).exit == 0
        if not there:
            part.unlink(missing_ok=True)
        return there

    def _fetch(self, signed: Signed) -> None:
        held, path = self._store.held_on_pod(signed), self._store.path(signed)
        part = _part(path)
        began = time.monotonic()
        if left := signed.bytes - self._have:
            data = self._pod.fetch(held, offset=self._have, max_bytes=min(self._chunk, left))
            if not data:
                self._give_up("is shorter on the machine than it was signed")
                return
            with part.open("ab") as file:
                part.chmod(0o600)
                file.write(data)
            self._digest.update(data)
            self._have += len(data)
            took = time.monotonic() - began
            factor = 2.0 if took < CHUNK_SEC / 2 else 0.5 if took > 2 * CHUNK_SEC else 1.0
            self._chunk = int(min(MOST_CHUNK, max(LEAST_CHUNK, self._chunk * factor)))
        if self._have < signed.bytes:
            return
        if self._have > signed.bytes or self._digest.hexdigest() != signed.sha256:
            self._give_up("is not on the machine what the leg signed")
            return
        self._store.take(signed, part)
        self._now = None
        self._said.discard(signed.kind)
        self._pod.run(["rm", "-f", "--", held])
        if signed.kind == "checkpoint":
            self._at_home(signed)

    def _at_home(self, signed: Signed) -> None:
        """Say it; of one that comes after a newer one, only the log is told: it is kept beside that one."""
        if signed.number < self._newest_said:
            self._screen.record(checkpoint_line(signed))
            return
        self._newest_said = signed.number
        hint = "" if signed.state == "whole" or self._hinted else MARKING
        self._hinted |= signed.state != "whole"
        self._screen.say(f"{checkpoint_line(signed)}{hint}")

    def _give_up(self, why: str) -> None:
        signed, self._now = self._now, None
        assert signed is not None
        part, begun = _part(self._store.path(signed)), self._have > 0
        with contextlib.suppress(OSError):
            begun = begun or part.exists()
            part.unlink(missing_ok=True)
        if begun:
            with contextlib.suppress(RemoteError):
                self._pod.run(["rm", "-f", "--", self._store.held_on_pod(signed)])
        self._say(signed, why)

    def _say(self, signed: Signed, why: str) -> None:
        """Say why one does not come, once until one of its kind does: others follow it for days."""
        if signed.kind not in self._said:
            self._screen.warn(f"{signed.kind} {signed.number} {why}")
        self._said.add(signed.kind)


def checkpoint_line(signed: Signed) -> str:
    """A line on a checkpoint that is at home."""
    how = "" if signed.state == "whole" else ", which nothing marks as whole"
    return f"checkpoint {signed.number} is home, {signed.bytes / 1e6:.1f} MB sealed{how}"


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def fetch(folder: RunFolder, screen: Screen, pod: Pod, leg: Leg, *, most: int = 2) -> list[Signed]:
    """Bring home what a launch sealed while it went on, as its checked events here say, and is not here yet:
    so many of the checkpoints that are kept, the newest first, and its records. Returns what came, newest
    checkpoint first.

    What is there no longer, or is not what was signed, is passed over. Raises as `Pod.fetch_file` does where
    the connection cannot be kept up, and OSError.
    """
    store = Store(folder, leg)
    home, refused = [], set()
    every = list(in_order(signed_in(store.events())))
    newest = sorted((each.number for each in every if each.kind == "checkpoint"), reverse=True)[:most]
    for signed in store.wanted(every):
        if signed.kind == "checkpoint" and most < 2 and signed.number not in newest:
            continue
        if why := store.refused(signed):
            if signed.kind not in refused:
                screen.warn(f"{signed.kind} {signed.number} {why}")
            refused.add(signed.kind)
            continue
        path = store.path(signed)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            if _fetched(screen, pod, store, signed, path):
                store.take(signed, _part(path))
                home.append(signed)
        except (OutcomeUnknown, RentalOver):
            raise
        except RemoteError as error:
            screen.warn(f"{signed.kind} {signed.number} cannot be fetched: {error.line()}")
    return home


def _fetched(screen: Screen, pod: Pod, store: Store, signed: Signed, path: Path) -> bool:
    """Fetch one file to where `take` takes it from; False where the pod has it no longer."""
    meter = Meter(f"fetching {signed.kind} {signed.number}", screen.progress)
    whole = path.with_name(f".{path.name}")  # not under its name yet: its events are to be beside it
    there = False

    def move() -> None:
        nonlocal there
        for source in (store.on_pod(signed), store.held_on_pod(signed)):
            if there := pod.exists(source):
                pod.fetch_file(source, whole, max_bytes=signed.bytes, sha256=signed.sha256, progress=meter)
                return

    part = _part(path)
    if part.exists():  # what an `Inflow` had of it
        part.replace(_part(whole))
    lost = "connection lost while fetching; reconnecting, and going on from what arrived"
    carry(
        pod,
        move,
        arrived=lambda: _part(whole).stat().st_size if _part(whole).exists() else 0,
        lost=lambda: screen.warn(lost),
    )
    if there:
        whole.replace(part)
    return there
