"""Numbers out of what a training writes or prints, line by line: objects of JSON, printed dicts, `loss 1.23`,
and progress bars.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from glasshouse.watching.points import LOSS, Point, moment, named, number_of, point

MAX_LINE = 16 << 10
MAX_PLAIN = 4000  # characters of a line that is shown
_PRINTED = 2 << 10
# ECMA-48, 5.4 (CSI), 5.6 (OSC, DCS and the like) and what xterm adds; one that is cut off at the end, too.
_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]?"
    r"|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?"
    r"|\x1b[ -/]*[0-~]?"
)
MOVES = re.compile(r"\x1b\[[0-9;]*[ABEFHSTf]")  # to another line: what follows stands there
_DEPTH, _ITEMS = 3, 200
_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
_PAIR = re.compile(rf"""['"]([A-Za-z0-9_./ -]{{1,80}})['"]\s*:\s*['"]?({_NUMBER})['"]?\s*(?=[,}}])""")
_WORDS = (
    r"(?:train(?:ing)?|eval|val(?:id(?:ation)?)?|test)?[ _/]?loss|lr|learning[ _]rate|global[ _]step|step|"
    r"iter(?:ation)?|epoch|grad[ _]norm|tok(?:ens)?(?:/s(?:ec)?|[ _]per[ _]sec(?:ond)?)"
)
_SAID = re.compile(
    rf"(?<![A-Za-z0-9_])({_WORDS})\s{{0,3}}(?:=|:|is)?\s{{0,3}}\[?({_NUMBER})(?![\w.])(?:\s?/\s?(\d{{1,15}}))?",
    re.IGNORECASE,
)
_MANY = r"(\d{1,15}(?:\.\d+)?[kMG]?)"
_BAR = re.compile(
    rf"(?<!\d){_MANY}/{_MANY} \[([\d:]{{4,12}})<([\d:]{{4,12}}|\?), *"
    r"([\d.]{1,12}|\?) ?(\w{0,12}/s|s/\w{1,12})"
)
_SCALE = {"k": 1e3, "M": 1e6, "G": 1e9}


def plain(line: str) -> str:
    """A line without colours, movements of the cursor, and other sequences that begin with an escape.

    What else no terminal should get is seen to where it is shown (errors.harmless).
    """
    return _ESCAPES.sub("", line)[:MAX_PLAIN]


@dataclass(frozen=True)
class Bar:
    """What a progress bar (tqdm's) says: how many of how many, and its guess at what is left (seconds)."""

    done: float
    total: float
    left_sec: float | None
    text: str


def from_json(line: str) -> Point | None:
    """The numbers of a line that is an object of JSON, those of objects in it under both names."""
    if len(line) > MAX_LINE or not line.startswith("{"):
        return None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return None if not isinstance(value, dict) else from_object(value)


def from_object(value: dict[str, object]) -> Point | None:
    """The same of an object that was read already."""
    found: list[tuple[str, object]] = []

    def gather(part: dict[str, object], above: str, depth: int) -> None:
        for name, one in part.items():
            if len(found) >= _ITEMS:
                return
            if isinstance(one, dict) and depth < _DEPTH:
                gather(one, f"{above}{name}/", depth + 1)
            else:
                found.append((f"{above}{name}", one))

    gather(value, "", 1)
    clock = ("time", "timestamp", "_timestamp", "wall_time")
    time = next((moment(one) for name, one in found if name in clock), None)
    return point(((name, one) for name, one in found if name not in clock), time)


def from_printed(line: str) -> Point | None:
    """The numbers of a printed line that speaks of a loss; None for any other line."""
    line = line[:_PRINTED].strip()
    if "oss" not in line.lower():
        return None
    if line.startswith("{") and (found := from_json(line)) is not None:
        return found if _of_loss(found) else None
    pairs: list[tuple[str, object]] = list(_PAIR.findall(line)) if "{" in line else []
    if not pairs:
        for word, value, most in _SAID.findall(line):
            pairs.append((word, value))
            if most and named(word) == "step":
                pairs.append(("total_steps", most))
    one = point(pairs)
    return one if one is not None and _of_loss(one) else None


def _of_loss(found: Point) -> bool:
    return any(name == LOSS or name.endswith("_loss") for name in found.values)


def bar(line: str) -> Bar | None:
    """What a progress bar on this line says; None where there is none."""
    found = _BAR.search(line[:_PRINTED])
    if found is None:
        return None
    done, total = (_scaled(found[at]) for at in (1, 2))
    if not 0 <= done <= total or total <= 0:
        return None
    return Bar(done, total, number_of(_seconds(found[4]), 0, 1e11), line[:_PRINTED].strip())


def _scaled(text: str) -> float:
    return float(text.rstrip("kMG")) * _SCALE.get(text[-1], 1.0)


def _seconds(text: str) -> float | None:
    total = 0.0
    for part in text.split(":"):
        if not part.isdigit():
            return None
        total = total * 60 + int(part)
    return total
