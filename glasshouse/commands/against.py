"""The resolved difference between conf/ as it is and conf/ at a git revision, as Markdown for a review."""

from __future__ import annotations

import io
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glasshouse import config
from glasshouse.errors import UsageError
from glasshouse.providers.money import cost_ceiling, rental_deadline_sec

MAX_CONF_BYTES = 64 << 20
# A line of `git ls-tree -l`: ordinary files only.
_FILE = re.compile(r"100(?:644|755) blob (?P<object>[0-9a-f]{40,64}) +(?P<size>\d+)\t(?P<path>[^\0]+)")


def difference(overrides: Sequence[str], ref: str, *, sweep: bool, conf: Path) -> tuple[str, dict[str, Any]]:
    """Resolve `overrides` by `conf` now and at `ref`; return the difference as Markdown and as JSON values.

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
    cells = []
    for name in [*now, *(name for name in then if name not in now)]:
        old, new = then.get(name), now.get(name)
        cells.append(
            {
                "overrides": name.split(),
                "change": "added" if old is None else "removed" if new is None else "kept",
                "settings": _changed(old or {}, new or {}) if old is not None and new is not None else [],
                "before": _bounds(old),
                "after": _bounds(new),
            }
        )
    document = {"against": ref, "unresolved": failed, "cells": cells}
    return _markdown(ref, failed, cells), document


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


def _cells(overrides: Sequence[str], sweep: bool, conf: Path) -> dict[str, dict[str, Any]]:
    swept = sweep or config.wants_sweep(overrides, conf=conf)
    cells = config.expand(overrides, conf=conf) if swept else [list(overrides)]
    return {" ".join(cell): config.resolved(cell, conf=conf) for cell in cells}


def _bounds(values: Mapping[str, Any] | None) -> dict[str, float] | None:
    """Hours and dollars at most; None where the values make no valid spec under today's rules."""
    if values is None:
        return None
    try:
        spec = config.validate(values)
        return {"hours": rental_deadline_sec(spec) / 3600, "maxUsd": cost_ceiling(spec)}
    except UsageError:
        return None


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[dict[str, Any]]:
    before, after = _flat(old), _flat(new)
    return [
        {"setting": key, "before": before.get(key), "after": after.get(key)}
        for key in sorted({*before, *after})
        if before.get(key, _flat) != after.get(key, _flat)  # a value that no setting has: absent is not null
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _markdown(ref: str, failed: str | None, cells: Sequence[Mapping[str, Any]]) -> str:
    lines = [f"## Plan against `{ref}`", ""]
    if failed is not None:
        lines += [f"There the overrides do not resolve: {_code(failed)}", ""]
    for cell in cells:
        lines.append(f"### {_code(' '.join(cell['overrides']) or 'defaults')}: {_heading(cell)}")
        lines += ["", _bounds_line(cell), ""]
        if cell["settings"]:
            lines += ["| setting | before | after |", "| --- | --- | --- |"]
            lines += [
                f"| `{item['setting']}` | {_code(item['before'])} | {_code(item['after'])} |"
                for item in cell["settings"]
            ]
            lines.append("")
    return "\n".join(lines).rstrip()


def _heading(cell: Mapping[str, Any]) -> str:
    if cell["change"] != "kept":
        return str(cell["change"])
    count = len(cell["settings"])
    return {0: "no setting differs", 1: "1 setting differs"}.get(count, f"{count} settings differ")


def _bounds_line(cell: Mapping[str, Any]) -> str:
    def words(bounds: Mapping[str, float] | None) -> str:
        return "-" if bounds is None else f"{bounds['hours']:.2f} h, {bounds['maxUsd']:.2f} USD"

    return f"At most: {words(cell['before'])} before, {words(cell['after'])} after."


def _code(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return "`" + text.replace("`", "'").replace("|", "\\|").replace("\n", " ") + "`"
