"""The steps of an installation: locked packages, torch, then this project. Standard library only."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from lockfile import CPU, LOCK, Entry, chosen, read
from pip_run import Failed, Pip, module
from pip_run import environment as pip_environment
from torch_build import Choice, Mistake, choose, driver_cuda, pinned

ROOT = Path(__file__).resolve().parents[1]
# The one package that has no wheel: built here, by the locked setuptools.
ONLY_SOURCE = "antlr4-python3-runtime"


def install(environment: Path, groups: Sequence[str], wanted: str, index: str) -> int:
    """Install; returns an exit code. `wanted` is TORCH=, `index` PyTorch's folder of indexes."""
    began = time.monotonic()
    locked = read(LOCK)
    known = {group for entry in locked for group in entry.groups.split()}
    for group in groups:
        if group not in known:
            return _stop(
                2, f"no such group (group={group}): give any of {' '.join(sorted(known - {'build'}))}"
            )
    python = environment / "bin" / "python"
    if not python.exists() or not any(environment.glob("lib/*/site-packages/pip")):
        done = subprocess.run(
            [*module(sys.executable, "venv"), str(environment)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            lines = (done.stdout + done.stderr).strip().splitlines()[-3:]
            return _stop(2, f"no environment could be made ({environment}): {' '.join(lines)}")
    pip = Pip(python, environment / "install.log")
    say(f"installing into {environment} for {', '.join(groups) or 'base'} (all that pip says: {pip.log})")
    try:
        _install(pip, locked, groups, wanted, index)
    except Mistake as mistake:
        return _stop(2, str(mistake))
    except Failed as failed:
        sys.stderr.write("".join(f"  pip: {line}\n" for line in failed.reason))
        return _stop(3, f"installing failed: {failed.remedy} (all that pip said: {pip.log})")
    say(f"  installed in {time.monotonic() - began:.0f} s")
    return 0


def _install(pip: Pip, locked: Sequence[Entry], groups: Sequence[str], wanted: str, index: str) -> None:
    folder = pip.log.parent
    builders = [entry for entry in locked if "build" in entry.groups.split()]
    _listed(pip, folder / "build.txt", builders, "what builds", [])
    # No isolation, so that nothing comes in but what is locked; a wheel first, which an old pip must be told.
    built = ["--no-build-isolation", "--use-pep517", "--only-binary", ":all:", "--no-binary", ONLY_SOURCE]
    _listed(pip, folder / "locked.txt", chosen(locked, groups), "packages", built)
    if "train" in groups and (wanted or not _has_torch(pip, pinned(CPU))):
        _torch(pip, choose(pip, wanted, index, driver_cuda(), say), folder)
    pip.install(["--no-deps", "--no-build-isolation", "-e", str(ROOT)], "glasshouse")
    _agreed(pip)


def _torch(pip: Pip, choice: Choice, folder: Path) -> None:
    say(f"  {choice.line}")
    if choice.locked:
        _listed(pip, folder / "torch-needs.txt", choice.locked, "what torch needs", [])
    path = folder / "torch.txt"
    path.write_text(
        "".join(line.text() if isinstance(line, Entry) else f"{line}\n" for line in choice.requirements),
        encoding="utf-8",
    )
    # By force, since pip takes any build of a version for the one that is asked for.
    words = ["--no-deps", "--force-reinstall", "-r", str(path)]
    pip.install(words, "torch", index=choice.index)
    if choice.resolve:
        pip.install(["-r", str(path)], "what this torch needs", index=choice.index)


def _has_torch(pip: Pip, version: str) -> bool:
    """Whether this environment has that torch already, in whatever build: it is not chosen again."""
    ask = "import importlib.metadata as m; print(m.version('torch').partition('+')[0])"
    done = subprocess.run([str(pip.python), "-I", "-c", ask], check=False, capture_output=True, text=True)
    return done.stdout.strip() == version


def _listed(pip: Pip, path: Path, entries: Iterable[Entry], what: str, words: Sequence[str]) -> None:
    entries = list(entries)
    path.write_text("".join(entry.text() for entry in entries), encoding="utf-8")
    pip.install(["--require-hashes", "--no-deps", *words, "-r", str(path)], what, len(entries))


def _agreed(pip: Pip) -> None:
    """Everything that a package asks for is there: what was left out of a list shows here, not in a run."""
    done = subprocess.run(
        [*module(pip.python, "pip"), "check", "--disable-pip-version-check"],
        capture_output=True, text=True, check=False, env=pip_environment(),
    )  # fmt: skip
    if done.returncode != 0:
        raise Failed(
            (done.stdout + done.stderr).splitlines(), "the lists and the packages disagree: `make lock`"
        )


def say(line: str) -> None:
    """One line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _stop(code: int, line: str) -> int:
    sys.stderr.write(f"error: {line}\n")
    return code
