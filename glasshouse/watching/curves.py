"""What a job's records tell, taken one after the other: curves, lines, how far it is, what is left.

The same numbers often come by several ways: a Trainer prints them, writes them into its state and into an
event file. Each way is kept apart, and of a quantity the one that has most points is shown.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from glasshouse.watching import lines, trainer_state
from glasshouse.watching.points import (
    EPOCH,
    EVAL_LOSS,
    LOSS,
    MAX_STEP,
    RATE,
    TOKENS,
    TOKENS_SEC,
    TOTAL,
    Point,
    Work,
    number_of,
    total_of,
)
from glasshouse.watching.record import Gpu, Part, WatchRecord
from glasshouse.watching.tensorboard import EventFile
from glasshouse.watching.wandb import RunFile

MAX_POINTS = 2000  # of a curve; of more each other one
MAX_SOURCES = 64
MAX_CURVES, MAX_OTHERS = 64, 40  # of all sources; of quantities that are not known by their name
_KNOWN = frozenset({LOSS, EVAL_LOSS, RATE, "grad_norm", EPOCH, TOKENS, TOKENS_SEC})
PRINTED, NOTED, STATE = "what it printed", "the session", "trainer_state.json"
_PENDING = 64 << 10  # of a line that does not end
_RATES = 60  # records over which the speed is taken


@dataclass
class Curve:
    """(x, value) in the order they came; x is the step, or the number of the point where none is said."""

    xs: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    stepped: bool = True
    count: int = 0
    _stride: int = 1

    def add(self, step: int | None, value: float) -> None:
        """Take a point; one of an earlier step begins again there, as a resumed training does."""
        self.count += 1
        self.stepped = self.stepped and step is not None
        x = float(self.count if step is None else step)
        if step is not None and self.stepped:
            while self.xs and self.xs[-1] >= x:
                self.xs.pop()
                self.values.pop()
        if self.count % self._stride:
            return
        self.xs.append(x)
        self.values.append(value)
        if len(self.xs) > MAX_POINTS:
            self.xs, self.values = self.xs[1::2], self.values[1::2]
            self._stride *= 2

    @property
    def last(self) -> float | None:
        """The newest value."""
        return self.values[-1] if self.values else None


@dataclass(frozen=True)
class Now:
    """How it stands by the newest record. None: not known.

    done, total: optimizer steps, or what its progress bar counts (by_bar). left_sec: to the end, as fast as
    of late. tokens_sec: tokens a second.
    """

    number: int
    at: float
    elapsed_sec: float
    done: float | None
    total: float | None
    by_bar: bool
    per_sec: float | None
    left_sec: float | None
    tokens_sec: float | None
    next_checkpoint_sec: float | None
    gpus: tuple[Gpu, ...]
    values: Mapping[str, float]  # the newest of each curve that is shown


class _Lines:
    """Whole lines of a source, as bytes come; after a gap from the next beginning of one."""

    def __init__(self) -> None:
        self._at = 0
        self._pending = b""
        self._torn = False

    def feed(self, part: Part) -> list[str]:
        if part.begin != self._at:
            self._pending, self._torn = b"", part.begin > 0
        self._at = part.end
        *whole, self._pending = (self._pending + part.data).split(b"\n")
        if self._torn and whole:
            del whole[0]
            self._torn = False
        self._pending = self._pending[:_PENDING]
        return [line.decode("utf-8", "replace") for line in whole]


@dataclass(frozen=True)
class Brought:
    """What one record brought: lines that the job printed, and points by where they come from."""

    lines: tuple[str, ...]
    points: tuple[tuple[str, Point], ...]


class Watched:
    """Takes a launch's records in their order. `total_steps`: what was asked for, where that was a number."""

    def __init__(self, total_steps: float | None = None) -> None:
        self._total = total_steps
        self._curves: dict[str, dict[str, Curve]] = {}  # by source, by name
        self._files: dict[str, EventFile | RunFile | _Lines] = {}
        self._noted = _Lines()
        self._bar: lines.Bar | None = None
        self._steps: deque[tuple[float, float]] = deque(maxlen=_RATES)  # seconds, steps by then
        self._tokens: deque[tuple[float, float]] = deque(maxlen=_RATES)
        self._log_at = 0
        self._state_step = -1
        self._work = Work()
        self._others = self._count = 0  # curves
        self.last: WatchRecord | None = None
        self.unfinished = ""  # the line that is not ended

    def take(self, record: WatchRecord) -> Brought:
        """Take one record."""
        self.last, self.unfinished, self._work = record, "", Work()
        said: list[str] = []
        found: list[tuple[str, Point]] = []
        for part in record.parts:
            if part.kind == "log":
                said += (printed := self._printed(part))
                found += self._of(PRINTED, self._each(lines.from_printed, printed, 8))
            elif part.kind == "bar":
                self.unfinished = lines.plain(part.data.decode("utf-8", "replace"))
                self._see_bar(self.unfinished)
            elif part.kind == "notes":
                found += self._of(NOTED, self._each(lines.from_json, self._noted.feed(part), 32))
            elif part.kind == "tail":
                found += self._of(STATE, self._state(part))
            else:
                found += self._of(part.name, self._grown(part))
        for source, one in found:
            self._add(source, one)
        self._measure(record)
        return Brought(tuple(said), tuple(found))

    def _printed(self, part: Part) -> list[str]:
        said = [lines.plain(line) for line in part.data.decode("utf-8", "replace").split("\n")[:-1]]
        for line in said:
            self._see_bar(line)
        if part.begin > self._log_at:
            said.insert(0, f"[{part.begin - self._log_at} bytes that it printed did not come]")
        elif part.size > len(part.data):
            said.insert(0, f"[{part.size - len(part.data)} bytes that it printed were left out]")
        self._log_at = part.end
        return said

    def _see_bar(self, line: str) -> None:
        """Take note of a progress bar, unless it is a shorter one inside another: of an evaluation."""
        new, old = lines.bar(line), self._bar
        if new is not None and (old is None or new.total >= old.total or old.done >= old.total):
            self._bar = new

    def _grown(self, part: Part) -> Iterable[Point | None]:
        if part.name not in self._files:
            if len(self._files) >= MAX_SOURCES:
                del self._files[next(iter(self._files))]
            last = part.name.rpartition("/")[2]
            self._files[part.name] = (
                RunFile() if last.endswith(".wandb") else EventFile() if "tfevents" in last else _Lines()
            )
        reader = self._files[part.name]
        if isinstance(reader, _Lines):
            return self._each(lines.from_json, reader.feed(part), 32)
        return reader.feed(part.begin, part.data, self._work)

    def _state(self, part: Part) -> list[Point]:
        """Of a Trainer's state what it had not had before: each has the whole history."""
        found, total = trainer_state.read(part.data, self._work)
        self._total = total or self._total
        new = [one for one in found if one.step is not None and one.step > self._state_step]
        self._state_step = max((one.step or 0 for one in new), default=self._state_step)
        return new

    def _each(
        self, read: Callable[[str], Point | None], said: Iterable[str], size: int
    ) -> Iterator[Point | None]:
        """Read lines as long as there is work left for it: one for so many characters of a line."""
        for line in said:
            if not self._work.spend(1 + min(len(line), lines.MAX_LINE) // size):
                return
            yield read(line)

    def _of(self, source: str, found: Iterable[Point | None]) -> list[tuple[str, Point]]:
        """What of it there is work left for."""
        kept = list[tuple[str, Point]]()
        for one in found:
            if one is None:
                continue
            if not self._work.spend(3 * len(one.values)):
                break
            kept.append((source, one))
        return kept

    def _add(self, source: str, one: Point) -> None:
        own = self._curves.get(source, {})
        for name, value in one.values.items():
            if name == TOTAL:
                self._total = total_of(value) or self._total
            elif name in own:
                own[name].add(one.step, value)
            elif self._count < MAX_CURVES and (name in _KNOWN or self._others < MAX_OTHERS):
                self._count, self._others = self._count + 1, self._others + (name not in _KNOWN)
                own[name] = Curve()
                own[name].add(one.step, value)
        if own:
            self._curves[source] = own

    def _measure(self, record: WatchRecord) -> None:
        if record.steps and (steps := number_of(record.steps[0], 1, MAX_STEP)) is not None:
            self._steps.append((record.elapsed_sec, steps))
        elif (loss := self.curve(LOSS)) is not None and loss.stepped:
            self._steps.append((record.elapsed_sec, loss.xs[-1]))
        if (tokens := self.curve(TOKENS)) is not None and tokens.last is not None:
            self._tokens.append((record.elapsed_sec, tokens.last))

    def curve(self, name: str) -> Curve | None:
        """The curve of a quantity from the source that has most of it; None where none has any."""
        having = [(own[name], source) for source, own in self._curves.items() if name in own and own[name].xs]
        best = max(having, key=lambda one: (one[0].count, one[0].stepped, one[1] != PRINTED), default=None)
        return None if best is None else best[0]

    @property
    def shown(self) -> dict[str, Curve]:
        """The curves by name: the loss first, then what is known by name, then others beside a loss."""
        known = [LOSS, EVAL_LOSS, RATE, "grad_norm", TOKENS_SEC]
        trained = [own for own in self._curves.values() if any(_is_loss(name) for name in own)]
        others = [name for own in trained for name in own if name not in (*known, EPOCH, TOKENS)]
        names = dict.fromkeys([*known, *sorted(others)])
        found = {name: self.curve(name) for name in names}
        return {name: one for name, one in found.items() if one is not None}

    @property
    def now(self) -> Now | None:
        """How it stands; None before the first record."""
        record = self.last
        if record is None:
            return None
        per_sec = _slope(self._steps)
        done, total, by_bar = self._steps[-1][1] if self._steps else None, self._total, False
        loss = self.curve(LOSS)
        if total is not None and loss is not None and loss.stepped:
            done = max(done or 0.0, loss.xs[-1])  # one that went on from an earlier run counts from there
        left = None
        if total is not None and done is not None and per_sec:
            left = number_of(max(0.0, total - done) / per_sec, 0, 1e11)
        elif total is None and self._bar is not None and self._bar.total > 1:
            done, total, left, by_bar = self._bar.done, self._bar.total, self._bar.left_sec, True
        values = {name: one.last for name, one in self.shown.items() if one.last is not None}
        if (epoch := self.curve(EPOCH)) is not None and epoch.last is not None:
            values[EPOCH] = epoch.last
        return Now(
            record.number, record.at, record.elapsed_sec, done, total, by_bar, per_sec, left,
            values.get(TOKENS_SEC, _slope(self._tokens)), record.next_checkpoint_sec, record.gpus, values,
        )  # fmt: skip


def _is_loss(name: str) -> bool:
    return name == LOSS or name.endswith("_loss")


def _slope(seen: Sequence[tuple[float, float]]) -> float | None:
    """Of what is counted, how much a second; None where that is not seen."""
    if len(seen) < 2:
        return None
    (began, first), (ended, last) = seen[0], seen[-1]
    return number_of((last - first) / (ended - began), 0) if ended > began and last > first else None
