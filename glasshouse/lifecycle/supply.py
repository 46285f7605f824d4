"""What a project needs and the machine does not have: fetched here, to be sealed with the project.

Where the machine's Python is known beforehand, this happens before anything is rented, so that what cannot be
had is said then; the machine itself is asked in any case, and what it says counts.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from packaging.utils import parse_wheel_filename

from glasshouse.errors import UsageError
from glasshouse.lifecycle.screen import Screen
from glasshouse.runtime.wheel import read_wheels
from glasshouse.spec import RunSpec
from glasshouse.workloads.dependencies import Dependencies
from glasshouse.workloads.folder_lines import size_words
from glasshouse.workloads.installed import Installed, known_machine
from glasshouse.workloads.outlook import few, outlook
from glasshouse.workloads.wheels import fetch

FETCH_SEC: Final = 1800.0


@dataclass(frozen=True)
class Brought:
    """Wheels for one machine. modules: the top-level ones in them. nbytes: of their contents, unpacked."""

    wheels: tuple[Path, ...]
    modules: frozenset[str]
    nbytes: int
    line: str


class Supply:
    """The wheels of one run's project, fetched once for each machine that is asked about. A context manager:
    leaving it removes them; what pip keeps in its cache stays there.
    """

    def __init__(self, needs: Dependencies) -> None:
        self._needs = needs
        self._place: tempfile.TemporaryDirectory[str] | None = None
        self._found: list[tuple[Installed, Brought]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._place is not None:
            self._place.cleanup()

    def fetch(
        self, machine: Installed, say: Callable[[str], None], *, timeout_sec: float = FETCH_SEC
    ) -> Brought:
        """Fetch what `machine` lacks. Raises UsageError that names what cannot be had; GlasshouseError.

        timeout_sec: of each of pip's parts in it.
        """
        for known, brought in self._found:
            if known == machine:
                return brought
        try:
            wheels, named = self._fetched(machine, say, timeout_sec)
            contents = read_wheels(wheels)
        except OSError as error:
            raise UsageError(
                f"cannot keep wheels here: {error.strerror}",
                field="TMPDIR",
                value=tempfile.gettempdir(),
                remedy="make room there, or name another folder",
            ) from error
        modules = frozenset[str]().union(*(found.modules for found in contents))
        line = _line(self._needs, wheels, machine, named)
        brought = Brought(wheels, modules, sum(found.nbytes for found in contents), line)
        self._found.append((machine, brought))
        return brought

    def _fetched(
        self, machine: Installed, say: Callable[[str], None], timeout_sec: float
    ) -> tuple[tuple[Path, ...], list[str]]:
        """The wheels, and the names that nobody but the machine asks for."""
        if self._place is None:
            self._place = tempfile.TemporaryDirectory(prefix="glasshouse-needs-", ignore_cleanup_errors=True)
        folder = Path(self._place.name, secrets.token_hex(4))
        folder.mkdir()
        named = list[str]()
        wheels = fetch(
            self._needs, machine.target, folder, provided=machine.packages, extras=machine.extras,
            say=say, say_named=named.extend, timeout_sec=timeout_sec,
        )  # fmt: skip
        return wheels, named


def fetched_ahead(supply: Supply, spec: RunSpec, screen: Screen) -> None:
    """Fetch before anything is rented, where the machine is known. Raises as Supply.fetch does."""
    machine = known_machine(spec.provider)
    if machine is not None:
        with screen.phase("fetching what the project needs"):
            supply.fetch(machine, screen.progress)


def _line(needs: Dependencies, wheels: Sequence[Path], machine: Installed, named: Sequence[str]) -> str:
    sent, other = [], []
    for path in wheels:
        name, version, _, _ = parse_wheel_filename(path.name)
        sent.append(f"{name} {version}")
        if name in machine.packages:
            other.append(f"{name} {machine.packages[name]}")
    parts = []
    if there := outlook(needs, (), machine).provided:
        parts.append(f"the machine has {few(there)}")
    if sent:
        size = size_words(sum(path.stat().st_size for path in wheels))
        count = f"{len(sent)} wheel{'' if len(sent) == 1 else 's'}"
        parts.append(f"sealed with the project: {few(sent)} ({count}, {size})")
    if named:
        parts.append(f"of these the machine's own list names {few(named)}, as needed for an extra")
    if other:
        parts.append(f"in place of the machine's {few(other)}")
    return f"needs: {'; '.join(parts) or 'nothing that applies there'}"
