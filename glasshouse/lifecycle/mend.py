"""Make the parts of an unfinished run fit for a bundle.

A controller can die between any two writes, and a pod can answer with anything. Neither may keep
a registered plan from ending as a row.
"""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

from glasshouse.canonical import canonical_json
from glasshouse.records.bundle import NAME
from glasshouse.records.keys import atomic_write

_LEG = re.compile(r"s(\d{3})-(raw|protected)(?:-l(\d{1,3}))?\Z")


def mend(parts: Path, code: str) -> None:
    """Drop torn and foreign files; give every launch without one a launch.json that failed with `code`."""
    for path in sorted(parts.rglob("*")):
        if path.is_file() and NAME.match(str(path.relative_to(parts))) is None:
            path.unlink()
        elif path.suffix == ".jsonl":
            data = path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            if whole != data:
                atomic_write(path, whole)
            if not whole:
                path.unlink()
    for folder in _legs(parts):
        if not (folder / "launch.json").exists():
            _write_launch(folder, code)


def strip(parts: Path) -> None:
    """Keep of every leg only that it failed: its files do not make evidence.

    The last resort, when a bundle of the parts as they are would not verify.
    """
    for folder in _legs(parts):
        shutil.rmtree(folder)
        folder.mkdir()
        _write_launch(folder, "evidence-unusable")


def _legs(parts: Path) -> list[Path]:
    legs = parts / "legs"
    return [path for path in sorted(legs.iterdir()) if _LEG.match(path.name)] if legs.exists() else []


def _write_launch(folder: Path, code: str) -> None:
    match = _LEG.match(folder.name)
    assert match is not None
    now = round(time.time(), 3)
    launch: dict[str, object] = {
        "slot": int(match[1]),
        "arm": match[2],
        "launch": int(match[3] or 1),
        "status": "failed",
        "code": code,
        "timings": {},
        "rawFilesRemoved": None,
        "startedAt": round(folder.stat().st_mtime, 3),
        "endedAt": now,
    }
    atomic_write(folder / "launch.json", canonical_json(launch))
