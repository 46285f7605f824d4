"""The lists of exact versions in locks/: read them, choose from them, write them. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "locks"
LOCK = FOLDER / "lock.txt"
CPU = FOLDER / "torch-cpu.txt"
CUDA = FOLDER / "torch-cuda.txt"
_PIN = re.compile(r"(?P<name>[a-z0-9-]+)==(?P<version>[^\s;\\]+)(?:\s*;\s*(?P<marker>[^\\]*?))?\s*\\?$")


@dataclass(frozen=True)
class Entry:
    """One line: `name==version ; marker`, its files' hashes ("sha256:..."), and the groups that it is for."""

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]
    groups: str = ""

    @property
    def pin_of(self) -> str:
        """`name==version`."""
        return f"{self.name}=={self.version}"

    @property
    def pin(self) -> str:
        """The line as pip reads it, without hashes."""
        return f"{self.pin_of} ; {self.marker}" if self.marker else self.pin_of

    def marked(self, groups: str) -> Entry:
        """The same, for these groups (words, separated by spaces)."""
        return replace(self, groups=groups)

    def text(self) -> str:
        """The entry as it stands in a list."""
        lines = [self.pin, *(f"    --hash={value}" for value in self.hashes)]
        note = f"    # for {self.groups}\n" if self.groups else ""
        return " \\\n".join(lines) + "\n" + note


def read(path: Path) -> list[Entry]:
    """All entries of a list; ValueError for a line that is none."""
    entries: list[Entry] = []
    for number, raw in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        line = raw.strip().removesuffix("\\").strip()
        if raw.startswith("    --hash=") and entries:
            last = entries[-1]
            entries[-1] = replace(last, hashes=(*last.hashes, line.removeprefix("--hash=")))
        elif raw.startswith("    # for ") and entries:
            entries[-1] = entries[-1].marked(line.removeprefix("# for "))
        elif not line or line.startswith("#"):
            continue
        elif (found := _PIN.fullmatch(raw)) is not None:
            entries.append(Entry(found["name"], found["version"], found["marker"] or "", ()))
        else:
            raise ValueError(f"{path.name} line {number}: not a pinned requirement: {raw[:80]}")
    return entries


def chosen(entries: Sequence[Entry], groups: Iterable[str]) -> list[Entry]:
    """What these groups need; `base` is always among it."""
    wanted = {"base", *groups}
    return [entry for entry in entries if wanted & set(entry.groups.split())]


def text_of(entries: Iterable[Entry]) -> str:
    """A list's text."""
    return "".join(entry.text() for entry in entries)
