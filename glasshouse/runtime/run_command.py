"""The command of a project, run in this process: what `python` does with a FILE, -m or -c, without exec.

What holds for all: standard input is empty, the current folder is the project's, `__main__` is a module of
its own, tracebacks show the project's frames alone and with their source. Where the interpreter is started
for a file, the file's folder comes first among the places of modules; otherwise the current folder does.
"""

from __future__ import annotations

import atexit
import importlib
import os
import runpy
import shutil
import site
import sys
import threading
import traceback
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from glasshouse.runtime.command import Command
from glasshouse.runtime.steps import Counter

INTERRUPTED = 130  # of an uncaught KeyboardInterrupt, as a shell would say it
_INSTALLED = ("site-packages", "dist-packages")
_STAY = sys.stdlib_module_names | {"glasshouse", "__main__"}


@dataclass(frozen=True)
class Site:
    """Where packages lie that came along with a project: their modules, and the programs that they bring."""

    modules: Path
    programs: Path


def run(
    command: Command,
    place: Path,
    environment: Mapping[str, str],
    packages: Site | None = None,
    counter: Counter | None = None,
) -> int:
    """Run it in this process to its end; return the exit code. For a forked child that exits afterwards.

    `environment`: what is added to this process's, what a launcher hands on included. `counter`: of steps.
    """
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    sys.stdin = open(0, closefd=False, encoding="utf-8")  # noqa: SIM115  as long as the process
    os.chdir(place)
    os.environ.update(environment)
    # What it starts by name is what an activated environment would give it.
    brought = [] if packages is None else [str(packages.programs)]
    places = dict.fromkeys((*brought, str(Path(sys.prefix) / "bin"), str(Path(sys.executable).parent)))
    os.environ["PATH"] = os.pathsep.join([*places, os.environ.get("PATH", os.defpath)])
    if sys.prefix != sys.base_prefix:
        os.environ["VIRTUAL_ENV"] = sys.prefix
    # The runtime's own archive is no place for a project to find modules in.
    sys.path[:] = [path for path in sys.path if not path.endswith(".zip") or path.startswith(sys.base_prefix)]
    if packages is not None:
        _install(packages.modules)
    if counter is not None:
        counter.begin()
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = main
    code = 0
    try:
        _start(command, place, main)
    except SystemExit as stop:
        code = _exit_code(stop)
    except KeyboardInterrupt as error:
        _show(error)
        code = INTERRUPTED
    except BaseException as error:  # noqa: BLE001  whatever the project raised, as an interpreter ends with it
        _show(error)
        code = 1
    return _finish(code, counter)


def _install(modules: Path) -> None:
    """Put what came along behind the standard library and before the machine's own packages; programs that
    the project starts find it by their environment.
    """
    before = list(sys.path)
    site.addsitedir(str(modules))  # its .pth files count, too
    added = [path for path in sys.path if path not in before]
    own = (number for number, path in enumerate(before) if Path(path).name in _INSTALLED)
    first = next(own, len(before))
    sys.path[:] = [*before[:first], *added, *before[first:]]
    importlib.invalidate_caches()
    # What this process has loaded of the machine's own, the project is to get of what it brought.
    brought = {path.name.partition(".")[0] for path in modules.iterdir()} - _STAY
    for name in [name for name in sys.modules if name.partition(".")[0] in brought]:
        del sys.modules[name]
    others = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(modules), *([others] if others else [])])


def _start(command: Command, place: Path, main: types.ModuleType) -> None:
    if command.kind == "module":
        sys.path.insert(0, str(place))
        sys.argv = [command.target, *command.arguments]
        runpy._run_module_as_main(command.target)  # type: ignore[attr-defined]  # what `python -m` calls
        return
    if command.kind == "code":
        sys.path.insert(0, "")
        sys.argv = ["-c", *command.arguments]
        exec(compile(command.target, "<string>", "exec", dont_inherit=True), main.__dict__)  # noqa: S102
        return
    path = place / command.target if command.kind == "file" else _entry(command.target)
    sys.path.insert(0, str(path.parent) if command.kind == "file" else str(place))
    sys.argv = [command.target if command.kind == "file" else str(path), *command.arguments]
    main.__file__ = str(path)
    # As the interpreter reads it: the file's own encoding, and its lines where a traceback looks for them.
    exec(compile(path.read_bytes(), str(path), "exec", dont_inherit=True), main.__dict__)  # noqa: S102


def _entry(name: str) -> Path:
    """A console entry point's script. Raises SystemExit with words where there is none of Python."""
    found = shutil.which(name)  # where `run` has put what an activated environment would have
    if found is None:
        raise SystemExit(f"{name}: no such command on this machine")
    with Path(found).open("rb") as stream:
        first = stream.readline(200)
    if not first.startswith(b"#!") or b"python" not in first:
        raise SystemExit(f"{name}: no Python script, and nothing else is run here")
    return Path(found)


def _exit_code(stop: SystemExit) -> int:
    if stop.code is None:
        return 0
    if isinstance(stop.code, int):
        return stop.code & 0xFF
    print(stop.code, file=sys.stderr)  # noqa: T201  as an interpreter does
    return 1


def _show(error: BaseException) -> None:
    """Print a traceback without the frames of this module, through the project's own hook if it set one."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals.get("__name__") in (__name__, "runpy"):
        trace = trace.tb_next
    shown = error.with_traceback(trace)
    try:
        sys.excepthook(type(shown), shown, trace)
    except Exception:  # noqa: BLE001  a hook that fails must not hide what it was called for
        traceback.print_exception(type(shown), shown, trace)


def _finish(code: int, counter: Counter | None) -> int:
    """What an interpreter does last: wait for threads, call what was registered, flush; then count."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # waits for the threads that are no daemons
        atexit._run_exitfuncs()
    except SystemExit as stop:
        code = _exit_code(stop)
    except BaseException:  # noqa: BLE001  as an interpreter: printed, and the exit code stays
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            code = code or 120  # what an interpreter exits with when its output cannot be written
    if counter is not None:
        counter.finish()
    return code
