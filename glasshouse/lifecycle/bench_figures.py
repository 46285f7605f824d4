"""What bench/lifecycle.py measured on this machine, kept for `glasshouse plan` in the state folder.

Whatever else lies there is as good as nothing: a plan says then that the cost is not known.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from glasshouse import paths
from glasshouse.measurement.expected_cost import Figures, parse

NAME = "bench-fixed-cost.json"
MAX_BYTES = 64 << 10


def read() -> Figures | None:
    """Figures of this machine; None where there are none, or none that can be read. Makes no folder."""
    data = _bytes_of(paths.state_path() / NAME)
    return None if data is None else parse(data)


def write(figures: Figures) -> Path:
    """Put figures in the place of earlier ones; return the file. Raises UsageError, OSError."""
    from glasshouse.records.keys import atomic_write  # noqa: PLC0415  libraries that a plan does not need

    path = paths.state_dir() / NAME
    atomic_write(path, figures.model_dump_json(indent=1).encode() + b"\n", mode=0o600)
    return path


def published_figures() -> Figures | None:
    """Figures of published rows, where this machine has none: once the rows span sizes of payload.

    None until then. It states what was measured and fits nothing.
    """
    return None


def _bytes_of(path: Path) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # nor wait for a FIFO's writer
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return None
            data = file.read(MAX_BYTES + 1)
    except OSError:
        return None
    return data if len(data) <= MAX_BYTES else None
