"""What a job's owner watches: what is new since the last look, as bytes, for the keeper to seal.

Followed are files that people's tools write anyway (kind_of), what the job printed, what a built-in session
notes, the optimizer steps that its processes counted, and the GPUs. Nothing is parsed here: the bytes are
what the job wrote, and are read at home (glasshouse/watching).

A record is never larger than MAX_BYTES, and its container is padded to the smallest size: all of a run have
one size, whatever is in them, which grows only by a wrapped key for each further key of the owner's. It is
compressed, and what finds no room comes with the next, or, of what runs away, is left out: a record says from
where to where each part is.

    b"GHWATCH1" then zlib of: one line of JSON (the head, see `_head`), and behind it the parts' bytes
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glasshouse.runtime import gpus
from glasshouse.runtime.ring import Ring

MAGIC = b"GHWATCH1"
MAX_BYTES = 48 << 10  # of a record; its container is of the smallest padded size
MAX_PLAIN_BYTES = 512 << 10  # of what one decompresses to
MAX_PARTS = 64
LOG_RING_BYTES, NOTES_RING_BYTES = 256 << 10, 64 << 10

_RAW = (256 << 10, 128 << 10, 64 << 10, 32 << 10)  # of the parts, tried in turn; the last fits incompressible
_LOG_SHARE = 0.4
_NOTES = 8 << 10
_BAR = 2 << 10  # of a line that is not ended yet
_TAIL = 24 << 10  # of a file that is written anew each time
_FILES, _ENTRIES, _DEPTH, _LOOK_SEC = 24, 20_000, 12, 2.0
_RUNS_AWAY = 4 << 20  # behind by so much, a file is followed from near its end
_NAME = 200
_REMEMBERED = 500
_UNWATCHED = {".git", "__pycache__", "node_modules", ".glasshouse-wheels"}
_GPU_FIELDS = {
    "utilization.gpu": "utilPct",
    "memory.used": "memMib",
    "memory.total": "memTotalMib",
    "power.draw": "powerW",
    "temperature.gpu": "tempC",
}


def kind_of(name: str) -> str | None:
    """How a file of this name is followed: as it grows, by its end (it is written anew), or not at all."""
    if name == "trainer_state.json":
        return "tail"
    if name.endswith((".jsonl", ".wandb")) or "tfevents" in name:
        return "append"
    return None


@dataclass
class Watch:
    """What is watched, and how far. Paths and rings are there before the job begins.

    folder: the job's; None where there is none. log: what it printed. notes: JSON lines of a session of ours.
    steps: what each process counted, by now. on_gpu: whether it may train on the machine's GPUs.
    """

    folder: Path | None = None
    log: Ring | None = None
    notes: Ring | None = None
    steps: Callable[[], Sequence[int | None]] | None = None
    on_gpu: bool = True
    number: int = 0
    _began: float = field(default_factory=time.monotonic)
    _since: float = field(default_factory=time.time)
    # How far: of each file its inode and where to read on, of one written anew its size and time of change.
    files: dict[str, tuple[int, ...]] = field(default_factory=dict)
    log_at: int = 0
    notes_at: int = 0
    line: bytes = b""  # of the log: the beginning of one that is not ended
    _smi: gpus.NvidiaSmi | None = None

    def __post_init__(self) -> None:
        self._smi = gpus.nvidia_smi() if self.on_gpu else None


@dataclass
class _Part:
    """Bytes of one source: `begin` and `end` are positions in it, `size` what it has in all.

    Of the log, lines that are overwritten are left out: `size` is what its new lines had without the cut.
    """

    name: str
    kind: str
    begin: int
    end: int
    size: int
    data: bytes
    path: str = ""  # as the file system has it
    status: os.stat_result | None = None


def collect(state: Watch, next_checkpoint_sec: float | None = None) -> bytes:
    """Return what is new, at most MAX_BYTES of it, and remember how far that was. Raises nothing.

    next_checkpoint_sec: until the next one falls due; None: none does.

    Takes a few seconds at most, where a driver hangs ten once.
    """
    state.number += 1
    try:
        return _collect(state, next_checkpoint_sec)
    except Exception as error:  # noqa: BLE001 -- whatever a job puts into its folder, its training goes on
        return _packed({**_when(state), "fault": type(error).__name__}, [])


def _collect(state: Watch, next_checkpoint_sec: float | None) -> bytes:
    waiting = None if next_checkpoint_sec is None else round(next_checkpoint_sec, 1)
    head = {**_head(state), "nextCheckpointSec": waiting}
    found, head["more"] = _found(state)
    new_log = _log_parts(state)
    notes = _notes_part(state)
    for room in _RAW:
        parts = [*notes, *_cut_log(new_log, int(room * _LOG_SHARE))]
        parts += _read(state, found, room - sum(len(part.data) for part in parts), MAX_PARTS - len(parts))
        record = _packed(head, parts)
        if len(record) <= MAX_BYTES:
            break
    else:
        parts, record = [], _packed({**head, "fault": "too-large"}, [])
    _remember(state, parts, new_log)
    return record


def _when(state: Watch) -> dict[str, Any]:
    """Which record it is, and when it was made: seconds, `at` by the machine's clock."""
    return {
        "number": state.number,
        "at": round(time.time(), 3),
        "elapsedSec": round(time.monotonic() - state._began, 3),
    }


def _head(state: Watch) -> dict[str, Any]:
    """What is known without looking at the job's files."""
    steps = None if state.steps is None else [count for count in state.steps() if count is not None]
    return {
        **_when(state),
        "steps": steps,
        "gpus": _gpus(state),
    }


def _gpus(state: Watch) -> list[dict[str, str]]:
    if state._smi is None:
        return []
    rows = state._smi.query(tuple(_GPU_FIELDS))
    return [{_GPU_FIELDS[name]: value[:40] for name, value in row.items()} for row in rows[:64]]


def _packed(head: dict[str, Any], parts: list[_Part]) -> bytes:
    listed = [
        {
            "name": part.name,
            "kind": part.kind,
            "from": part.begin,
            "to": part.end,
            "size": part.size,
            "bytes": len(part.data),
        }
        for part in parts
    ]
    line = json.dumps({**head, "parts": listed}, ensure_ascii=True).encode()
    plain = b"".join([line, b"\n", *(part.data for part in parts)])
    return MAGIC + zlib.compress(plain, 6)


# What the job printed.


def _notes_part(state: Watch) -> list[_Part]:
    if state.notes is None:
        return []
    begin, data = state.notes.read(state.notes_at)
    whole = data[: data.rfind(b"\n") + 1]
    if not whole:
        return []
    end = begin + len(whole)
    return [_Part("", "notes", begin, end, end, whole[-_NOTES:])]


def _log_parts(state: Watch) -> _Part | None:
    """The lines that were printed since: of one that a progress bar overwrote, what it came to."""
    if state.log is None:
        return None
    begin, data = state.log.read(state.log_at)
    end = begin + len(data)
    if begin == state.log_at:
        data = state.line + data
    *lines, last = data.split(b"\n")
    said = b"".join(_overwritten(line) + b"\n" for line in lines)
    return _Part("", "log", begin, end, end, said + _overwritten(last)[-_BAR:])


def _overwritten(line: bytes) -> bytes:
    """What a terminal shows of a line in the end."""
    return line.rstrip(b"\r").rpartition(b"\r")[2]


def _cut_log(part: _Part | None, room: int) -> list[_Part]:
    """The log's last lines that find room, and the line that is not ended, as a part of its own."""
    if part is None:
        return []
    at = part.data.rfind(b"\n") + 1
    lines, last = part.data[:at], part.data[at:]
    said = len(lines)
    if said > room:
        lines = lines[-room:]
        lines = lines[lines.find(b"\n") + 1 :]
    parts = [_Part("", "log", part.begin, part.end, said, lines)] if lines else []
    return [*parts, _Part("", "bar", part.end, part.end, part.size, last)] if last else parts


# The job's files.


def _found(state: Watch) -> tuple[list[tuple[str, os.stat_result]], int]:
    """The followed files that changed since the job began, newest last; and how many more there are."""
    if state.folder is None or not state.folder.is_dir():
        return [], 0
    found, looked, until = [], 0, time.monotonic() + _LOOK_SEC
    for path, folders, names, folder in os.fwalk(state.folder, follow_symlinks=False):
        below = os.path.relpath(path, state.folder)
        depth = 0 if below == "." else below.count(os.sep) + 1
        folders[:] = [] if depth >= _DEPTH else [name for name in folders if name not in _UNWATCHED]
        looked += len(names) + len(folders) + 1
        for name in names:
            if kind_of(name) is None:
                continue
            with contextlib.suppress(OSError):
                status = os.stat(name, dir_fd=folder, follow_symlinks=False)
                # What was sent along keeps its old time until the job writes to it.
                if stat.S_ISREG(status.st_mode) and status.st_mtime >= state._since - 1:
                    found.append((name if below == "." else f"{below}/{name}", status))
        if looked > _ENTRIES or time.monotonic() > until:
            break
    found.sort(key=lambda item: item[1].st_mtime_ns)
    return found[-_FILES:], max(0, len(found) - _FILES)


def _read(state: Watch, found: list[tuple[str, os.stat_result]], room: int, most: int) -> list[_Part]:
    """What is new in these files: where all of it finds no room, each gets its share."""
    waiting = [
        (status.st_size - begin, name, status)
        for name, status in found[-max(most, 0) :]
        if (begin := _next(state, name, status)) < status.st_size
    ]
    waiting.sort(key=lambda item: item[0])
    parts = []
    for place, (behind, name, status) in enumerate(waiting):
        share = min(max(0, room) // (len(waiting) - place), behind)
        end = kind_of(_last(name)) == "tail" or behind > _RUNS_AWAY
        begin = status.st_size - (share if end else behind)
        data = _bytes_of(state.folder, name, status.st_ino, begin, share)
        if data:
            room -= len(data)
            shown = name.encode("utf-8", "replace").decode()[-_NAME:]
            part = _Part(shown, kind_of(_last(name)) or "", begin, begin + len(data), status.st_size, data)
            part.path, part.status = name, status
            parts.append(part)
    return parts


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _next(state: Watch, name: str, status: os.stat_result) -> int:
    """Where to read on; a file's size where nothing in it is new."""
    known = state.files.get(name)
    if kind_of(_last(name)) == "tail":
        new = known != (status.st_ino, status.st_size, status.st_mtime_ns)
        return max(0, status.st_size - _TAIL) if new else status.st_size
    if known is None or known[0] != status.st_ino or known[1] > status.st_size:
        return 0
    return known[1]


def _bytes_of(folder: Path | None, name: str, inode: int, begin: int, count: int) -> bytes:
    """Read of a regular file beneath a folder; no link is followed, whatever the job moves meanwhile."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    *above, last = name.split("/")
    with contextlib.ExitStack() as until:
        try:
            place = os.open(folder or "", flags | os.O_DIRECTORY)
            until.callback(os.close, place)
            for each in above:
                place = os.open(each, flags | os.O_DIRECTORY, dir_fd=place)
                until.callback(os.close, place)
            file = os.open(last, flags, dir_fd=place)
            until.callback(os.close, file)
            status = os.fstat(file)
            same = stat.S_ISREG(status.st_mode) and status.st_ino == inode
            return os.pread(file, count, begin) if same and count > 0 else b""
        except OSError:
            return b""


def _remember(state: Watch, parts: list[_Part], log: _Part | None) -> None:
    """Go on behind what this record has."""
    for part in parts:
        if part.kind == "notes":
            state.notes_at = part.end
        elif part.status is not None:
            status = part.status
            tail = part.kind == "tail"
            state.files[part.path] = (
                (status.st_ino, status.st_size, status.st_mtime_ns) if tail else (status.st_ino, part.end)
            )
    if log is not None:
        state.log_at, state.line = log.end, log.data.rpartition(b"\n")[2]
    while len(state.files) > _REMEMBERED:
        del state.files[next(iter(state.files))]
