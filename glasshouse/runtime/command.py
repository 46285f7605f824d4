"""The command of a project, as the controller decided it (workloads/command.py) and the pod runs it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from glasshouse.runtime.ranks import MAX_RANKS

Kind = Literal["file", "module", "code", "entry"]

MAX_ARGUMENTS: Final = 4096
MAX_COMMAND_BYTES: Final = 128 << 10
MAX_VARIABLES: Final = 32
_VARIABLE: Final = re.compile(r"[A-Z][A-Z0-9_]{0,63}\Z")
_MODULE: Final = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*\Z")
_ENTRY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")


@dataclass(frozen=True)
class Command:
    """What is run in the project's folder.

    kind and target: a `file` by its relative POSIX path in the project, a `module` by its dotted name, `code`
    itself, or an `entry`, the name of a console script that an installed distribution brings. arguments: what
    its sys.argv[1:] will be. ranks: processes that run it, one a GPU, with what torchrun would put into their
    environment. environment: names and values of variables, by which a launcher hands on what it was told.

    Raises ValueError or TypeError for what is none of this.
    """

    kind: Kind
    target: str
    arguments: tuple[str, ...] = ()
    ranks: int = 1
    environment: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        words = [self.target, *self.arguments, *(word for pair in self.environment for word in pair)]
        if any(type(word) is not str for word in words):
            raise TypeError("a command is made of strings")
        if any("\0" in word for word in words):
            raise ValueError("a command holds a NUL character")
        if (
            len(self.arguments) > MAX_ARGUMENTS
            or sum(len(word.encode()) for word in words) > MAX_COMMAND_BYTES
        ):
            raise ValueError("a command is too long")
        if self.kind not in get_args(Kind) or not _fits(self.kind, self.target):
            raise ValueError("a command's target is not of its kind")
        if type(self.ranks) is not int or not 1 <= self.ranks <= MAX_RANKS:
            raise ValueError("a command's ranks are no small number")
        if len(self.environment) > MAX_VARIABLES or not all(
            _VARIABLE.match(name) for name, _ in self.environment
        ):
            raise ValueError("a command's environment holds other than plain names")

    def to_json(self) -> dict[str, Any]:
        """Return an object that JSON can hold."""
        return {
            "kind": self.kind,
            "target": self.target,
            "arguments": list(self.arguments),
            "ranks": self.ranks,
            "environment": dict(self.environment),
        }

    @classmethod
    def from_json(cls, value: object) -> Command:
        """Read what `to_json` made. Raises TypeError or ValueError for anything else."""
        if not isinstance(value, dict) or set(value) != set(_FIELDS):
            raise ValueError("a command has other fields")
        if not isinstance(value["arguments"], list) or not isinstance(value["environment"], dict):
            raise TypeError("a command's arguments or environment are not of their type")
        made = {"arguments": tuple(value["arguments"]), "environment": tuple(value["environment"].items())}
        return cls(**{**value, **made})


_FIELDS: Final = ("kind", "target", "arguments", "ranks", "environment")


def _fits(kind: str, target: str) -> bool:
    if kind == "module":
        return _MODULE.match(target) is not None
    if kind == "entry":
        return _ENTRY.match(target) is not None
    if kind == "code":
        return True
    return not target.startswith("/") and all(part not in ("", ".", "..") for part in target.split("/"))
