"""The resolved difference between conf/ as it is and conf/ at a git revision, as Markdown for a review."""

from __future__ import annotations

import io
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from glasshouse import config
from glasshouse.errors import UsageError
from glasshouse.providers.money import cost_ceiling, rental_deadline_sec

MAX_CONF_BYTES = 64 << 20
# A line of `git ls-tree -l`: ordinary files only.
_FILE = re.compile(r"100(?:644|755) blob (?P<object>[0-9a-f]{40,64}) +(?P<size>\d+)\t(?P<path>[^\0]+)")


@dataclass(frozen=True)
class Bounds:
    """What a cell takes at most."""

    hours: float
    max_usd: float

    def words(self) -> str:
        """Both, for people."""
        return f"{self.hours:.2f} h, {self.max_usd:.2f} USD"


@dataclass(frozen=True)
class Resolved:
    """What the overrides of a cell resolve to: settings by dotted name.

    bounds: None where they make no valid spec under today's rules.
    """

    settings: Mapping[str, JsonValue]
    bounds: Bounds | None


@dataclass(frozen=True)
class Change:
    """A setting that resolves differently; None on a side that does not have it."""

    setting: str
    before: JsonValue
    after: JsonValue


@dataclass(frozen=True)
class CellDifference:
    """One cell on both sides; None on a side that does not have it."""

    name: str
    then: Resolved | None
    now: Resolved | None

    @property
    def change(self) -> str:
        """Added, removed or kept."""
        return "added" if self.then is None else "removed" if self.now is None else "kept"

    @property
    def settings(self) -> tuple[Change, ...]:
        """Settings that differ, by name, of a cell that both sides have."""
        if self.then is None or self.now is None:
            return ()
        old, new = self.then.settings, self.now.settings
        return tuple(
            Change(name, old.get(name), new.get(name))
            for name in sorted({*old, *new})
            if (name in old) != (name in new) or old[name] != new[name]  # absent is not null
        )

    def heading(self) -> str:
        """What became of the cell, in words."""
        if self.change != "kept":
            return self.change
        count = len(self.settings)
        return {0: "no setting differs", 1: "1 setting differs"}.get(count, f"{count} settings differ")


@dataclass(frozen=True)
class Difference:
    """What resolves differently. unresolved: why nothing resolves at `against`, if so."""

    against: str
    unresolved: str | None
    cells: tuple[CellDifference, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the document of `plan --against --json`."""
        return {
            "against": self.against,
            "unresolved": self.unresolved,
            "cells": [
                {
                    "overrides": cell.name.split(),
                    "change": cell.change,
                    "settings": [asdict(item) for item in cell.settings],
                    "before": _bounds_json(cell.then),
                    "after": _bounds_json(cell.now),
                }
                for cell in self.cells
            ],
        }

    def markdown(self) -> str:
        """Return what a review shows."""
        lines = [f"## Plan against `{self.against}`", ""]
        if self.unresolved is not None:
            lines += [f"There the overrides do not resolve: {_code(self.unresolved)}", ""]
        for cell in self.cells:
            before, after = (
                "-" if side is None or side.bounds is None else side.bounds.words()
                for side in (cell.then, cell.now)
            )
            lines.append(f"### {_code(cell.name or 'defaults')}: {cell.heading()}")
            lines += ["", f"At most: {before} before, {after} after.", ""]
            if cell.settings:
                lines += ["| setting | before | after |", "| --- | --- | --- |"]
                lines += [
                    f"| `{item.setting}` | {_code(item.before)} | {_code(item.after)} |"
                    for item in cell.settings
                ]
                lines.append("")
        return "\n".join(lines).rstrip()


def difference(overrides: Sequence[str], ref: str, *, sweep: bool, conf: Path) -> Difference:
    """Resolve `overrides` by `conf` now and at `ref`; return the difference.

    Cells are matched by their overrides. Raises UsageError for a revision git does not know and for
    overrides that do not resolve here; that they do not resolve at `ref` is part of the difference.
    """
    conf = conf.resolve()  # `--conf .` has no name to ask git for
    with tempfile.TemporaryDirectory(prefix="glasshouse-conf-") as folder:
        _checkout(conf, ref, Path(folder))
        now = _cells(overrides, sweep, conf)
        try:
            then, failed = _cells(overrides, sweep, Path(folder) / conf.name), None
        except UsageError as error:
            then, failed = {}, error.line()
    names = [*now, *(name for name in then if name not in now)]
    cells = tuple(CellDifference(name, then.get(name), now.get(name)) for name in names)
    return Difference(ref, failed, cells)


def _checkout(conf: Path, ref: str, folder: Path) -> None:
    """Write the files of conf/ at `ref` into `folder`, without touching the working tree."""
    if ref.startswith("-"):
        raise UsageError(
            "not a git revision", field="against", value=ref, remedy="give a branch, tag or commit"
        )
    listing = _git(conf.parent, ref, ["ls-tree", "-r", "-z", "-l", f"{ref}^{{commit}}", "--", conf.name])
    files = [_FILE.fullmatch(line) for line in listing.decode("utf-8", "replace").split("\0") if line]
    plain = [(found["path"], found["object"], int(found["size"])) for found in files if found]
    wrong = ""
    if not plain:
        wrong = f"it has no {conf.name}/"
    elif sum(size for _, _, size in plain) > MAX_CONF_BYTES:
        wrong = f"its {conf.name}/ is too large"
    elif any(".." in Path(path).parts for path, _, _ in plain):
        wrong = f"its {conf.name}/ names files outside"
    if wrong:
        raise UsageError("git cannot read conf/ there", field="against", value=ref, remedy=wrong)
    names = "".join(f"{name}\n" for _, name, _ in plain)
    contents = io.BytesIO(_git(conf.parent, ref, ["cat-file", "--batch"], names.encode()))
    for path, _, size in plain:
        contents.readline()  # "<object> blob <size>"
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(contents.read(size))
        contents.read(1)  # the newline after each


def _git(folder: Path, ref: str, words: Sequence[str], sent: bytes = b"") -> bytes:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], input=sent, capture_output=True, check=False, timeout=60
        )
    except FileNotFoundError as error:
        raise UsageError("git is not installed", field="against", value=ref, remedy="install git") from error
    if done.returncode != 0:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["look at the repository"]
        raise UsageError("git cannot read conf/ there", field="against", value=ref, remedy=lines[-1])
    return done.stdout


def _cells(overrides: Sequence[str], sweep: bool, conf: Path) -> dict[str, Resolved]:
    swept = sweep or config.wants_sweep(overrides, conf=conf)
    cells = config.expand(overrides, conf=conf) if swept else [list(overrides)]
    found = {}
    for cell in cells:
        values = config.resolved(cell, conf=conf)
        try:
            spec = config.validate(values)
            bounds = Bounds(rental_deadline_sec(spec) / 3600, cost_ceiling(spec))
        except UsageError:
            bounds = None
        found[" ".join(cell)] = Resolved(dict(_flat(values)), bounds)
    return found


def _flat(values: Mapping[str, JsonValue], prefix: str = "") -> Iterator[tuple[str, JsonValue]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _bounds_json(side: Resolved | None) -> dict[str, float] | None:
    if side is None or side.bounds is None:
        return None
    return {"hours": side.bounds.hours, "maxUsd": side.bounds.max_usd}


def _code(value: JsonValue) -> str:
    text = "nothing" if value is None else str(value)
    return "`" + text.replace("`", "'").replace("|", "\\|").replace("\n", " ") + "`"
