"""A user's own project as a payload: the files that go along, the command, and what its environment holds."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from glasshouse import paths
from glasshouse.canonical import canonical_json
from glasshouse.errors import UsageError
from glasshouse.host import read_regular
from glasshouse.runtime.comes_back import WHOLE
from glasshouse.runtime.params import JOB_FILE, WHEELS_FOLDER
from glasshouse.sealing.layout import TensorSpec
from glasshouse.sealing.tree import INDEX_NAME, read_tree
from glasshouse.spec import Gpu, ProjectModel
from glasshouse.workloads.command import Command, decide, is_installed
from glasshouse.workloads.dependencies import Dependencies, read_dependencies
from glasshouse.workloads.folder import IGNORE_FILE, Selection, select
from glasshouse.workloads.folder_lines import comes_back, lines, shown
from glasshouse.workloads.imports import wanted
from glasshouse.workloads.outlook import asks_for, choice_line

RUNS = Path("runs")
# Where a folder of results is named, but for the command; more or larger ones are not searched for it.
_TEXTS = (".py", ".yaml", ".yml", ".json", ".toml", ".cfg", ".ini")
_MAX_TEXTS, _MAX_TEXT_BYTES = 2000, 1 << 20
# What a confined job needs to be told, and what the pod decides for itself.
_NOT_OURS = frozenset({"HOME", "TMPDIR", "PATH", "LD_PRELOAD", "LD_LIBRARY_PATH"})


@dataclass(frozen=True)
class Project:
    """What was found: before anything is rented, and again when it is sealed."""

    selection: Selection
    command: Command
    environment: Mapping[str, str]
    warnings: tuple[str, ...]
    modules: tuple[str, ...]  # top-level ones that it imports and does not bring
    needs: Dependencies = field(default_factory=Dependencies)

    @property
    def lines(self) -> list[str]:
        """What goes along and what does not, and what may go wrong, for the terminal."""
        ranks = [f"starting {self.command.ranks} processes there"] if self.command.ranks > 1 else []
        back = comes_back(self.selection.outputs)
        return [*lines(self.selection), back, *choice_line(self.needs), *ranks, *self.warnings]


def look(model: ProjectModel, gpu: Gpu) -> Project:
    """Find out what a project is. Raises UsageError for what could not be run, or not be sealed."""
    apart = [RUNS.resolve(), paths.state_dir(), paths.keys_dir()]
    selection = select(
        model.folder, outputs=model.outputs, include=model.include, data=model.data, apart=apart
    )
    needs = read_dependencies(selection.files, model.requirements, selection.folder)
    if any(name.partition("/")[0] == WHEELS_FOLDER for name in selection.names):
        raise UsageError(
            "the project has a folder where wheels are put", field="model.folder", value=WHEELS_FOLDER,
            remedy=f"rename it, or name it in {IGNORE_FILE}",
        )  # fmt: skip
    decision = decide(
        model.command,
        selection,
        gpu.count,
        named=bool(gpu.provider_names),
        installed=lambda name: asks_for(needs, name) or is_installed(name),
    )
    modules = wanted(selection.files, decision.command)
    warnings = (*decision.warnings, *_unnamed(selection, model.command))
    return Project(selection, decision.command, _environment(model.env), warnings, modules, needs)


def packed(
    project: Project, wheels: Sequence[Path] = ()
) -> tuple[dict[str, bytes], Iterable[tuple[TensorSpec, memoryview]]]:
    """Return the small files of its package, and its tree of files as tensors. wheels: they go with them."""
    files = [(file.name, file.path) for file in project.selection.files]
    tree = read_tree([*files, *((f"{WHEELS_FOLDER}/{path.name}", path) for path in wheels)])
    job = {
        "command": project.command.to_json(),
        "environment": dict(project.environment),
        "outputs": project.selection.outputs,
    }
    return {JOB_FILE: canonical_json(job), INDEX_NAME: tree.index}, tree.tensors


def _unnamed(selection: Selection, command: Sequence[str]) -> Iterable[str]:
    """A warning where neither the command nor a source or settings file names the outputs' folder."""
    if selection.outputs == WHOLE:
        return
    name = re.escape(os.fsencode(selection.outputs.rpartition("/")[2]))
    word = re.compile(rb"(?<!\w)" + name + rb"(?!\w)")
    quoted = re.compile(rb"[\"'/]" + name + rb"[\"'/]")  # in code the bare word is a variable's, as a rule
    if any(word.search(os.fsencode(item)) for item in command):
        return
    texts = [file for file in selection.files if file.link is None and not file.from_data]
    texts = [file for file in texts if file.name.endswith(_TEXTS) and file.size <= _MAX_TEXT_BYTES]
    if len(texts) > _MAX_TEXTS:
        return  # not looked for, so nothing is said
    for file in texts:
        try:
            text = read_regular(file.path, _MAX_TEXT_BYTES)
        except OSError:
            return
        if (quoted if file.name.endswith(".py") else word).search(text):
            return
    yield (
        f"neither the command nor a source or settings file names {shown(selection.outputs)}: "
        "results that are written elsewhere are lost (model.outputs)"
    )


def _environment(names: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in names:
        if name in _NOT_OURS or not name.isidentifier():
            raise UsageError(
                "not a variable that can be passed on", field="model.env", value=name, remedy="leave it out"
            )
        value = os.environ.get(name)
        if value is None:
            raise UsageError("not set here", field="model.env", value=name, remedy=f"export {name}=... first")
        found[name] = value
    return found
