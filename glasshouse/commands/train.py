"""Train your own project as it is, as a private job: sealed, run in memory, its files brought back.

  glasshouse train FOLDER [NAME=VALUE ...] -- COMMAND          provider=local: this machine
  glasshouse train . -- python train.py --lr=3e-4
  glasshouse train . gpu=h100 model.max_hours=10 -- torchrun --nproc-per-node=gpu train.py
  glasshouse train --plan . gpu=h100 model.max_hours=10 -- python train.py    what it costs; rents nothing

A job goes on where this terminal is closed: `glasshouse watch RUN` shows it, and `glasshouse from=RUN` goes
on from its last sealed checkpoint where its machine is lost.

What stands behind -- is yours and passed on untouched. It is the short form of `glasshouse model=project
model.folder=FOLDER model.outputs=. NAME=VALUE ... -- COMMAND`: every file that the command makes or changes
in its folder comes back, sealed to you. model.outputs=DIR narrows that to one folder.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from glasshouse import config
from glasshouse.commands import plan
from glasshouse.commands import run as run_command
from glasshouse.commands.records import RUNS
from glasshouse.conf_files import options
from glasshouse.errors import UsageError
from glasshouse.runtime.comes_back import WHOLE

EXAMPLE = "glasshouse train FOLDER -- python train.py"
# `name=`, as settings begin; a folder whose name has such a beginning is given as ./NAME.
_SETTING = re.compile(r"[+~]{0,2}[A-Za-z_][A-Za-z0-9_./@:]*=")
_OURS = {
    "model": "FOLDER is what is trained: leave it out",
    "model.folder": "FOLDER says it: leave it out",
    "model.command": f"give it behind --: {EXAMPLE}",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "overrides", nargs="*", metavar="FOLDER [NAME=VALUE ...]", help="your project, and settings of a run"
    )
    parser.add_argument(
        "--plan", action="store_true", help="say what it would do and cost at most; rent nothing"
    )
    parser.add_argument(
        "--yes", action="store_true", help="go on to the ceiling without asking, if it will not do"
    )
    parser.add_argument("-m", "--multirun", action="store_true", help="a job for each of several values")
    parser.add_argument("--out", type=Path, default=RUNS, metavar="DIR", help="where run folders go (runs)")
    parser.remedy = f"what is the command's own stands behind --: {EXAMPLE}"  # type: ignore[attr-defined]


def run(args: argparse.Namespace) -> int:
    """Run the job, or print its plan; the exit code is the run's."""
    own = config.command_words(args.command)
    given = args.overrides[: len(args.overrides) - len(own)]  # cli put the command's behind them
    for word in [*given, *args.command]:
        if any("\ud800" <= char <= "\udfff" for char in word):
            raise UsageError(
                "not UTF-8", field="argument", value=word, remedy="rename it, or go there and say ."
            )
    conf = args.workspace.conf
    args.overrides = [*job_words(given, models=options("model", conf), command=bool(args.command)), *own]
    if args.plan:
        args.against = None
        return plan.run(args)
    args.cfg, args.again = None, True  # the same settings are another job where the project changed
    return run_command.run(args)


def job_words(given: Sequence[str], *, models: Sequence[str] = (), command: bool = True) -> list[str]:
    """The settings that a folder and its settings stand for. Raises UsageError.

    models: names of models, which cannot be trained by this command yet. command: whether there is one.
    """
    folders = [word for word in given if not _SETTING.match(word)]
    settings = [word for word in given if _SETTING.match(word)]
    _check_model(folders, settings, models, command=command)
    if not folders or not folders[0]:
        raise UsageError("no folder", field="folder", value='""' if folders else "nothing", remedy=EXAMPLE)
    folder, *more = folders
    if not command:
        shown = " ".join(more) or "python train.py"
        what, value = ("a command without --", more[0]) if more else ("no command to run", "nothing")
        remedy = f"give it behind --: glasshouse train {folder} -- {shown}"
        raise UsageError(what, field="command", value=value, remedy=remedy)
    if more:
        raise UsageError(
            "neither the folder nor a setting", field="argument", value=more[0],
            remedy=f"one folder, settings as NAME=VALUE, the command behind --: {EXAMPLE}",
        )  # fmt: skip
    for word in settings:
        name, _, value = word.lstrip("+~").partition("=")
        if name in _OURS:
            raise UsageError("not a setting of this command", field=name, value=value, remedy=_OURS[name])
    outputs = [] if any(_name(word) == "model.outputs" for word in settings) else [f"model.outputs={WHOLE}"]
    return ["model=project", *config.folder_words(folder), *outputs, *settings]


def _check_model(
    folders: Sequence[str], settings: Sequence[str], models: Sequence[str], *, command: bool
) -> None:
    """Refuse what trains one of our models on the user's data: that comes later."""
    first = folders[0] if folders else ""
    a_model = first in models and not Path(first).is_dir()
    data = any(_name(word) == "data" for word in settings)
    if not command and (a_model or data):
        raise UsageError(
            "our models cannot be trained on data of yours yet", field="train", value=first or "data",
            remedy=f"bring a training script: {EXAMPLE}",
        )  # fmt: skip


def _name(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]
