"""One record as it came out of its seal: read within bounds. What wrote it: runtime/watched.py."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from typing import Any

from glasshouse.runtime.watched import MAGIC, MAX_BYTES, MAX_PARTS, MAX_PLAIN_BYTES
from glasshouse.watching.points import number_of

KINDS = ("log", "bar", "notes", "append", "tail")
MAX_GPUS, MAX_RANKS = 64, 1024


class RecordError(ValueError):
    """This is no record."""


@dataclass(frozen=True)
class Part:
    """Bytes from position `begin` to `end` of a source, which had `size` by then.

    kind: of the log its lines (`log`) and the line that is not ended (`bar`); lines that a built-in noted
    (`notes`); of a file what it grew by (`append`), or its end (`tail`).
    """

    name: str
    kind: str
    begin: int
    end: int
    size: int
    data: bytes


@dataclass(frozen=True)
class Gpu:
    """What a GPU's driver said: per cent, MiB, watts, degrees Celsius; None where it said nothing."""

    util_pct: float | None
    mem_mib: float | None
    mem_total_mib: float | None
    power_w: float | None
    temp_c: float | None


@dataclass(frozen=True)
class WatchRecord:
    """at: Unix seconds by the machine's clock. elapsed_sec: since the job began. steps: of each process."""

    number: int
    at: float
    elapsed_sec: float
    next_checkpoint_sec: float | None
    steps: tuple[int, ...]
    gpus: tuple[Gpu, ...]
    parts: tuple[Part, ...]
    fault: str = ""


def read(data: bytes) -> WatchRecord:
    """Read a record. Raises RecordError, and nothing else."""
    if len(data) > MAX_BYTES or not data.startswith(MAGIC):
        raise RecordError("not of this form")
    try:
        expanded = zlib.decompressobj()
        plain = expanded.decompress(data[len(MAGIC) :], MAX_PLAIN_BYTES)
        if not expanded.eof or expanded.unused_data.strip(b" "):  # the keeper fills it up
            raise RecordError("too large, or not whole")
        line, _, rest = plain.partition(b"\n")
        head = json.loads(line)
    except (zlib.error, ValueError, RecursionError) as error:
        raise RecordError("its content cannot be read") from error
    if not isinstance(head, dict):
        raise RecordError("its head is none")
    steps, gpus = head.get("steps"), head.get("gpus")
    return WatchRecord(
        number=_count(head.get("number")),
        at=_seconds(head.get("at")),
        elapsed_sec=_seconds(head.get("elapsedSec")),
        next_checkpoint_sec=number_of(head.get("nextCheckpointSec"), 0, 1e11),
        steps=tuple(map(_count, steps[:MAX_RANKS])) if isinstance(steps, list) else (),
        gpus=tuple(map(_gpu, gpus[:MAX_GPUS])) if isinstance(gpus, list) else (),
        parts=_parts(head.get("parts"), rest),
        fault=str(head.get("fault", ""))[:80],
    )


def _parts(listed: object, rest: bytes) -> tuple[Part, ...]:
    if not isinstance(listed, list) or len(listed) > MAX_PARTS:
        raise RecordError("its list of parts is none")
    found, at = [], 0
    for one in listed:
        if not isinstance(one, dict) or one.get("kind") not in KINDS or not isinstance(one.get("name"), str):
            raise RecordError("a part of it is not described")
        count = _count(one.get("bytes"))
        if count > len(rest) - at:
            raise RecordError("a part of it is missing")
        begin, end, size = (_count(one.get(name)) for name in ("from", "to", "size"))
        found.append(Part(one["name"][:1000], one["kind"], begin, end, size, rest[at : at + count]))
        at += count
    if at != len(rest):
        raise RecordError("it has more than its parts")
    return tuple(found)


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise RecordError("a count of it is none")
    return value


def _seconds(value: object) -> float:
    number = number_of(value, 0, 1e11)
    if number is None or isinstance(value, str):
        raise RecordError("a time of it is none")
    return number


def _gpu(value: Any) -> Gpu:
    if not isinstance(value, dict):
        return Gpu(None, None, None, None, None)
    util, used, total, power = (
        number_of(value.get(name), 0, 1e9) for name in ("utilPct", "memMib", "memTotalMib", "powerW")
    )
    return Gpu(util, used, total, power, number_of(value.get("tempC"), -300, 1e4))
