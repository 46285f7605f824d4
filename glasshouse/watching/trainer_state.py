"""The log history out of the end of a Trainer's trainer_state.json (transformers/trainer_callback.py).

Only its end comes, so it is no JSON: objects without others in them are looked for, and single fields behind
them.
"""

from __future__ import annotations

import re

from glasshouse.watching.lines import from_json
from glasshouse.watching.points import Point, Work, total_of

MAX_BYTES = 64 << 10
_ENTRY = re.compile(r"\{[^{}]{1,4000}\}")
_FIELD = re.compile(r'"(max_steps)"\s*:\s*([0-9.eE+-]{1,30})')


def read(data: bytes, work: Work | None = None) -> tuple[list[Point], float | None]:
    """The entries that have a step; and how many steps the whole run is to make, where it stands there."""
    work = work or Work()
    text = data[-MAX_BYTES:].decode("utf-8", "replace")
    points = []
    for entry in _ENTRY.finditer(text):
        if not work.spend():
            break
        one = from_json(entry[0])
        if one is not None and one.step is not None:
            points.append(one)
    said = [total_of(number) for _, number in _FIELD.findall(_ENTRY.sub("", text))]
    return points, next((one for one in reversed(said) if one is not None), None)
