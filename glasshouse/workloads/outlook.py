"""What becomes of a project's requirements and imports on a machine, as far as anybody knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from glasshouse.workloads.dependencies import CHOICE, NONE, Dependencies
from glasshouse.workloads.imports import distribution
from glasshouse.workloads.installed import Installed
from glasshouse.workloads.requirement import holds
from glasshouse.workloads.wheels import has_already

FEW: Final = 8
NOT_KNOWN: Final = "what the machine has is not known, and is asked before anything is uploaded"


@dataclass(frozen=True)
class Outlook:
    """provided: names of requirements that the machine meets, to_send: of the others, which are fetched with
    what they need. lacking: top-level modules that are imported and that neither brings. Where nobody knows
    what the machine has, all requirements are in to_send and known is False.
    """

    source: str
    known: bool
    provided: tuple[str, ...]
    to_send: tuple[str, ...]
    lacking: tuple[str, ...]
    list_source: str = ""

    def lines(self) -> list[str]:
        """One or two lines, for people."""
        told = [f"requirements: {self._requirements()}"]
        if self.lacking:
            what = "neither there nor asked for" if self.known else "not asked for"
            end = "" if self.known else "; whether the machine has it is not known"
            told.append(f"imported, and {what}: {lacking_words(self.lacking)}{end}")
        return told

    def _requirements(self) -> str:
        if not self.source:
            return "none are read" + ("" if self.known else f"; {NOT_KNOWN}")
        if not self.known:
            return f"{self.source} asks for {few(self.to_send) or 'nothing'}; {NOT_KNOWN}"
        parts = []
        if self.provided:
            parts.append(f"the machine has {few(self.provided)} ({self.list_source})")
        if self.to_send:
            parts.append(f"to be sent with what they need: {few(self.to_send)}")
        return f"{self.source}: {'; '.join(parts) or 'nothing'}"

    def as_json(self) -> dict[str, Any]:
        """The same for programs; provided is null where nobody knows."""
        return {
            "source": self.source,
            "known": self.known,
            "provided": list(self.provided) if self.known else None,
            "toSend": list(self.to_send),
            "lacking": list(self.lacking),
        }


def outlook(needs: Dependencies, modules: Sequence[str], machine: Installed | None) -> Outlook:
    """Look ahead. modules: top-level ones that the project imports and does not bring."""
    asked = {canonicalize_name(item.name): item for item in map(Requirement, needs.requirements)}
    if machine is not None:
        asked = {name: item for name, item in asked.items() if holds(item, machine.target.environment)}
    there = set() if machine is None else {
        name for name, item in asked.items() if has_already(needs, item, machine.packages)
    }  # fmt: skip
    lacking = [
        name
        for name in modules
        if not asks_for(needs, name) and (machine is None or name not in machine.modules)
    ]
    return Outlook(
        source=needs.source,
        known=machine is not None,
        provided=tuple(sorted(there)),
        to_send=tuple(sorted(asked.keys() - there)),
        lacking=tuple(lacking),
        list_source="" if machine is None else machine.source,
    )


def asks_for(needs: Dependencies, module: str) -> bool:
    """Whether a requirement names the distribution that brings a module, as far as its name tells."""
    names = {canonicalize_name(Requirement(item).name) for item in needs.requirements}
    return bool(names & {canonicalize_name(name) for name in (distribution(module), module) if name})


def choice_line(needs: Dependencies) -> list[str]:
    """Which file was read, and what it asks for."""
    if not needs.source:
        return []
    names = tuple(dict.fromkeys(Requirement(item).name for item in needs.requirements))
    return [f"needs, by {needs.source}: {few(names) or 'nothing'} ({CHOICE}={NONE} ignores it)"]


def lacking_words(modules: Sequence[str]) -> str:
    """Modules, each with what an index calls its distribution where that has another name."""
    return few([
        name if (called := distribution(name)) in (None, name) else f"{name} ({called})" for name in modules
    ])  # fmt: skip


def few(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    return ", ".join(names[:FEW]) + (f" and {len(names) - FEW} more" if len(names) > FEW else "")
