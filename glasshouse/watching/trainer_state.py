"""The log history out of the end of a Trainer's trainer_state.json (transformers/trainer_callback.py).

Only its end comes, so it is no JSON: objects without others in them are looked for, and single fields behind
them.
"""

from __future__ import annotations

import re

from glasshouse.watching.lines import from_json
from glasshouse.watching.points import Point

MAX_BYTES = 64 << 10
_ENTRY = re.compile(r"\{[^{}]{1,4000}\}")
_FIELD = re.compile(r'"(max_steps|num_train_epochs|global_step|epoch)"\s*:\s*([0-9.eE+-]{1,30})')


def read(data: bytes) -> tuple[list[Point], dict[str, float]]:
    """The entries that have a step; and of the whole run its steps and epochs, where they stand there."""
    text = data[-MAX_BYTES:].decode("utf-8", "replace")
    points = []
    for entry in _ENTRY.finditer(text):
        one = from_json(entry[0])
        if one is not None and one.step is not None:
            points.append(one)
    said = {}
    for name, value in _FIELD.findall(_ENTRY.sub("", text)):
        try:
            said[name] = float(value)
        except ValueError:
            continue
    return points, said
