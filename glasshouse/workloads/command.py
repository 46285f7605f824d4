"""What a project's command is: the words behind `--`, decided before anything is rented.

`python FILE`, `python -m MODULE`, `python -c CODE`, `torchrun`, `accelerate launch`, or the name of a
console script. The pod does not run the words: it forks the processes that train from one that has the
project in its memory, so nothing of it need lie on a disk, and no shell, other interpreter or launcher of
ranks has a part in it. Nothing of the user's is executed here.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from glasshouse.errors import UsageError
from glasshouse.runtime.command import Command, Kind
from glasshouse.workloads import launchers
from glasshouse.workloads.folder import IGNORE_FILE, Selection

FIELD: Final = launchers.FIELD
POSSIBLE: Final = (
    "give python FILE, python -m MODULE, python -c CODE, torchrun, accelerate launch, or an installed "
    "command's name"
)
_PYTHON: Final = ("python", "python3")
_OTHER_PYTHON: Final = re.compile(r"(?:.*/)?(?:python|pypy)[0-9.]*t?\Z", re.DOTALL)
_ENTRY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
# What starts a command that may be possible by itself.
_STARTERS: Final = frozenset(
    {
        *("env", "exec", "nohup", "nice", "time", "timeout", "sudo", "xargs"),
        *("uv", "uvx", "poetry", "pipenv", "pdm", "hatch", "rye", "pixi", "conda", "mamba", "micromamba"),
    }
)
# Shells, builders, launchers with ranks of their own, other interpreters: the pod starts none of them.
_REFUSED: Final = _STARTERS | {
    *("bash", "sh", "zsh", "dash", "fish", "ksh", "csh", "tcsh", "cd", "source"),
    *("make", "cmake", "just", "ninja", "tox", "nox", "docker", "podman", "singularity"),
    *("deepspeed", "horovodrun", "mpirun", "mpiexec", "srun", "sbatch", "ray", "jupyter", "ipython"),
    *("pip", "pip3", "pipx", "git", "node", "npm", "npx"),
    *("perl", "ruby", "Rscript", "julia", "java", "cargo"),
}
_LAUNCH_MODULES: Final = {
    "torch.distributed.run": "torchrun",
    "accelerate.commands.launch": "accelerate-launch",
}

__all__ = ["Command", "Decision", "decide"]


@dataclass(frozen=True)
class Decision:
    """The command, and what the user should read about it, one line each."""

    command: Command
    warnings: tuple[str, ...] = ()


def is_installed(module: str) -> bool:
    """Whether a top-level module can be imported here; it is not."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def decide(
    words: Sequence[str],
    selection: Selection,
    gpus: int = 1,
    *,
    named: bool = True,
    installed: Callable[[str], bool] = is_installed,
) -> Decision:
    """Decide. gpus, named: what is known of the machine's (launchers.Gpus). installed: answers for a
    top-level module.

    Raises UsageError, field `command` or `gpu.count`, for what cannot be run.
    """
    if not words:
        raise UsageError("no command", field=FIELD, value='""', remedy="give one: -- python train.py")
    for word in words:
        if "\0" in word or not _is_utf8(word):
            raise UsageError("a word is not UTF-8", field=FIELD, value=word, remedy="give text")
    decision = _Deciding(selection, launchers.Gpus(gpus, named), installed).program(list(words))
    return Decision(decision.command, (*decision.warnings, *_local_paths(decision.command, selection.folder)))


@dataclass(frozen=True)
class _Deciding:
    selection: Selection
    gpus: launchers.Gpus
    installed: Callable[[str], bool]

    def program(self, words: list[str]) -> Decision:
        first, rest = words[0], words[1:]
        if first in _PYTHON:
            return self._python(first, rest)
        if first == "torchrun":
            return self._launched(launchers.torchrun(rest, self.gpus))
        if first in ("accelerate", "accelerate-launch"):
            if first == "accelerate" and rest[:1] != ["launch"]:
                raise UsageError(
                    "of accelerate only launch is possible", field=FIELD, value=" ".join(words[:2]),
                    remedy="give accelerate launch FILE",
                )  # fmt: skip
            return self._launched(launchers.accelerate(rest[first == "accelerate" :], self.gpus))
        remedy = POSSIBLE
        if _OTHER_PYTHON.match(first):
            remedy = f"say python: the machine's own is used ({' '.join(['python', *rest[:1]])} ...)"
        elif _name(first) in self.selection.names and first.endswith(".py"):
            remedy = f"did you mean python {first}?"
        elif "=" in first:
            remedy = "set variables in the script; " + POSSIBLE
        elif first in _STARTERS and (python := [word for word in rest if word in (*_PYTHON, "torchrun")]):
            remedy = f"give the words from {python[0]} on"
        elif first not in _REFUSED and _ENTRY.match(first) and not first.endswith((".py", ".sh")):
            return Decision(Command("entry", first, tuple(rest)))
        raise UsageError("such a command is not possible for now", field=FIELD, value=first, remedy=remedy)

    def _python(self, first: str, words: list[str]) -> Decision:
        while words and words[0].startswith("-") and words[0] != "-":
            word = words.pop(0)
            if word == "--":
                break
            if word.startswith("-m"):
                module = word[2:] or (words.pop(0) if words else "")
                return self._module(module, words)
            if word.startswith("-c") and (word[2:] or words):
                return self._made("code", word[2:] or words.pop(0), words, 1, None)
            if not set(word[1:]) <= set("uB"):  # output is passed on as it comes; no bytecode is written
                remedy = "leave it out: the interpreter runs already when the project is opened"
                if word.startswith("-c"):
                    remedy = "give the code behind it"
                elif word.startswith("-W"):
                    remedy = "call warnings.filterwarnings in the script"
                raise UsageError(
                    "this option of python is not possible", field=FIELD, value=word, remedy=remedy
                )
        if not words:
            raise UsageError(
                "python is given no file", field=FIELD, value=first, remedy="give one: -- python train.py"
            )
        return self._file(words[0], words[1:])

    def _launched(self, launch: launchers.Launch) -> Decision:
        target, arguments = launch.words[0], launch.words[1:]
        make = self._module if launch.module else self._file
        made = make(target, arguments, launch.processes, launch.environment)
        return Decision(made.command, (*launch.warnings, *made.warnings))

    def _file(
        self,
        word: str,
        arguments: Sequence[str],
        ranks: int = 1,
        environment: Mapping[str, str] | None = None,
    ) -> Decision:
        folder, names = self.selection.folder, self.selection.names
        name = _name(_inside(word, folder))
        if name in names and not name.endswith(".ipynb"):
            return self._made("file", name, arguments, ranks, environment)
        what, remedy = "the file is not in the project", f"files are named from {folder.name} on"
        close = difflib.get_close_matches(name, [item for item in names if item.endswith(".py")], n=1)
        close = (
            close
            or [item for item in sorted(names) if item.rpartition("/")[2] == name.rpartition("/")[2]][:1]
        )
        if name.endswith(".ipynb"):
            what, remedy = "a notebook is no program", "export it as a .py file"
        elif name and (folder / name).is_dir():
            what, remedy = (
                "a folder is no program",
                f"name a file in it, or python -m {name.replace('/', '.')}",
            )
        elif (folder / name).is_file() and not name.startswith(".."):
            what = "the file does not go along"
            remedy = f"name it in model.include, and not in {IGNORE_FILE}"
        elif close:
            remedy = f"did you mean {close[0]}?"
        raise UsageError(what, field=FIELD, value=word, remedy=remedy)

    def _module(
        self,
        name: str,
        arguments: Sequence[str],
        ranks: int = 1,
        environment: Mapping[str, str] | None = None,
    ) -> Decision:
        if name in _LAUNCH_MODULES and ranks == 1:
            return self.program([_LAUNCH_MODULES[name], *arguments])
        if name == "torch.distributed.launch":
            raise UsageError("an old launcher", field=FIELD, value=f"-m {name}", remedy="give torchrun")
        if name.endswith(".py") or not all(part.isidentifier() for part in name.split(".")):
            remedy = "give a dotted name, such as package.train"
            if name.endswith(".py"):
                remedy = f"give -m {name.removesuffix('.py').replace('/', '.')}, or python {name}"
            raise UsageError("not a module's name", field=FIELD, value=name or "-m", remedy=remedy)
        names, path = self.selection.names, name.replace(".", "/")
        if f"{path}.py" in names or f"{path}/__main__.py" in names:
            return self._made("module", name, arguments, ranks, environment)
        top = name.partition(".")[0]
        if f"{top}.py" in names or any(item.startswith(f"{top}/") and item.endswith(".py") for item in names):
            known = {_dotted(item) for item in names if item.startswith(f"{top}/") and item.endswith(".py")}
            close = difflib.get_close_matches(name, sorted(known), n=1)
            remedy = (
                f"did you mean {close[0]}?" if close else f"give {path}/__main__.py, or name a module in it"
            )
            raise UsageError("the project has no such module", field=FIELD, value=f"-m {name}", remedy=remedy)
        made = self._made("module", name, arguments, ranks, environment)
        if self.installed(top):
            return made
        warning = f"{top} is neither in the project nor installed here: the machine must have it"
        return Decision(made.command, (warning,))

    def _made(
        self,
        kind: Kind,
        target: str,
        arguments: Sequence[str],
        ranks: int,
        environment: Mapping[str, str] | None,
    ) -> Decision:
        try:
            return Decision(
                Command(kind, target, tuple(arguments), ranks, tuple((environment or {}).items()))
            )
        except ValueError as error:
            value = "-c" if kind == "code" else target
            raise UsageError(str(error), field=FIELD, value=value, remedy="shorten it") from error


def _name(word: str) -> str:
    return posixpath.normpath(word) if word else word


def _inside(word: str, folder: Path) -> str:
    """A path as the project names it, where it is one of this machine that leads into the folder."""
    if not os.path.isabs(word):  # noqa: PTH117  of a word
        return word
    path = Path(os.path.realpath(Path(word).parent)) / Path(word).name
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else word


def _dotted(name: str) -> str:
    return name.removesuffix(".py").removesuffix("/__main__").removesuffix("/__init__").replace("/", ".")


def _is_utf8(word: str) -> bool:
    try:
        word.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _local_paths(command: Command, folder: Path) -> list[str]:
    """Warnings of arguments that name something on this machine, which the rented one will not have."""
    found = []
    for word in command.arguments:
        path = word.rpartition("=")[2]
        if path.startswith("/") and not path.startswith("/dev/") and os.path.exists(path):  # noqa: PTH110
            real = Path(path).resolve()
            remedy = "name it in model.data, and as data/NAME in the command"
            if real.is_relative_to(folder):
                remedy = f"in the command say {real.relative_to(folder).as_posix()}"
            found.append(f"{path} is a path of this machine: {remedy}")
    return found
