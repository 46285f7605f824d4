"""The command line: which command, its arguments, and one line for whatever goes wrong.

Each command is a module in commands/ with `arguments(parser)` and `run(args) -> exit code`, imported
only when it is called, so that `--help` loads neither Hydra nor torch. Without a command it is `run`.

Exit codes: 0 fine, 1 ran but excluded or failed verification, 2 usage or config, 3 provider or remote,
4 clean-up not proven, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import json
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from glasshouse import extras
from glasshouse.conf_files import GROUPS, options
from glasshouse.errors import GlasshouseError, UsageError, one_line, unexpected
from glasshouse.paths import Workspace

COMMANDS = {
    "train": "your own training project: sealed, run in memory, its files brought back; from=RUN goes on",
    "run": "one run, as without a command; `run --json` prints its record",
    "plan": "what a run or sweep would do, take and cost at most; rents nothing, needs no key",
    "runs": "the runs in runs/, with status and overhead",
    "show": "one run: figures, checks, caveats, curves",
    "verify": "recompute a run's record from its evidence, offline",
    "open": "open what protected legs sealed for you",
    "watch": "a private job as it goes on: curves, speed, GPUs, what is left",
    "logs": "what a private job printed; -f as it goes on",
    "reap": "finish what a killed controller left; prove that nothing is left running",
    "doctor": "what this machine can and cannot do, each line with its remedy",
    "tamper": "attack the key broker in every known way, each beside an honest control",
    "broker": "the key broker as a service of its own",
    "keys": "the public keys trusted here, and this machine's own",
    "ledger": "the ledger of plans and rows: list, checkpoint, check",
    "publish": "verify runs and publish them, ready for review",
    "unpublish": "retract a published row; its page stays, with the reason",
    "supersede": "say which published row takes the place of another, and why",
    "pages": "write the site's generated pages to a folder",
}
# What the base install lacks. `run` asks by itself: it also prints settings, which needs nothing.
NEEDS = {
    "open": "run",
    "watch": "run",
    "logs": "run",
    "reap": "run",
    "tamper": "run",
    "broker": "run",
    "pages": "site",
}
COMPOSES = {"train", "run", "plan", "doctor", "reap"}  # what reads settings
TAKE_COMMAND = {"train", "run", "plan", "doctor"}  # what stands behind -- is the user's own command
INTERRUPTED, TERMINATED = 130, 143


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is a UsageError, so that it takes one line like every other."""

    remedy = "see --help"

    def error(self, message: str) -> NoReturn:
        """Raise UsageError with argparse's sentence."""
        raise UsageError(message, field="command", value=self.prog, remedy=self.remedy)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; `argv` excludes the program's name. Returns the exit code, raises nothing.

    With GLASSHOUSE_DEBUG=1 an unexpected exception is raised, with its traceback.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    os.umask(os.umask(0o022) | 0o022)  # nobody else writes what we wrote, whatever was inherited
    try:
        with _ending_cleanly():
            code = _dispatch(words)
        sys.stdout.flush()  # here, where a reader that left is understood
        return code
    except GlasshouseError as error:
        return _fail(error.line(), error.exit_code, words)
    except _Terminated:
        return _fail("terminated", TERMINATED, words)
    except SystemExit as stop:  # argparse, after --help; or what a library or a workload ends with
        if stop.code is None or isinstance(stop.code, int):
            return int(stop.code or 0)
        return _fail(str(stop.code), 1, words)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED, words)
    except Exception as error:  # the last line of defence: a person gets a line, never a traceback
        if os.environ.get("GLASSHOUSE_DEBUG") == "1":
            raise
        if isinstance(error, ModuleNotFoundError) and (known := extras.lacking(error)) is not None:
            return _fail(known.line(), known.exit_code, words)
        if isinstance(error, BrokenPipeError) and _reader_left():
            return 1
        line = f"{unexpected(error)}: a fault of Glasshouse; GLASSHOUSE_DEBUG=1 shows where"
        return _fail(line, 1, words)


@contextmanager
def _ending_cleanly() -> Iterator[None]:
    """Let SIGTERM unwind what a command opened, as Ctrl-C does; a run has handlers of its own."""
    # Elsewhere than in the main thread none arrives, and whoever ignores it was started so.
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Terminated(SystemExit):
    """SIGTERM came."""


def _terminated(_signal: int, _frame: FrameType | None) -> None:
    raise _Terminated(TERMINATED)


def _reader_left() -> bool:
    """Whether stdout has no reader any more (`| head`); a broken pipe may also be another one."""
    # Asked of the pipe itself: after a failed write there may be nothing left to flush.
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)  # macOS tells nothing to whoever asks for nothing
    if not any(happened & (select.POLLERR | select.POLLHUP) for _, happened in poll.poll(0)):
        return False
    # Point it elsewhere, or Python complains again at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _fail(line: str, code: int, words: Sequence[str]) -> int:
    line = one_line(line)  # also what a library or a workload ends with
    sys.stderr.write(f"error: {line}\n")
    if "--json" in _ours(words):
        sys.stdout.write(json.dumps({"ok": False, "error": line, "exitCode": code}) + "\n")
    return code


def _ours(words: Sequence[str]) -> list[str]:
    """The words before the first `--`: the rest is a command of the user's, passed on untouched."""
    return list(words[: words.index("--")] if "--" in words else words)


def _dispatch(words: list[str]) -> int:
    first = words[0] if words else ""
    if first in ("-h", "--help"):
        sys.stdout.write(_help())
        return 0
    if first == "--version":
        from glasshouse.commands import version  # noqa: PLC0415  it loads all that defines a format

        return version.show(words[1:])
    name = "run"
    if first in COMMANDS:
        name, words = first, words[1:]
    elif first and "=" not in first and not first.startswith(("-", "~")):
        close = difflib.get_close_matches(first, COMMANDS, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UsageError(
            "unknown command",
            field="command",
            value=first,
            remedy=f"{hint}choose one of {', '.join(COMMANDS)}",
        )
    if name in NEEDS:
        extras.require(NEEDS[name])
    module = importlib.import_module(f"glasshouse.commands.{name}")
    parser = Parser(
        prog=f"glasshouse {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    parser.set_defaults(conf=None)
    if name in COMPOSES:
        parser.add_argument(
            "--conf", type=Path, metavar="DIR", help="settings from this folder, like conf/ of the repository"
        )
    module.arguments(parser)
    # Intermixed, since overrides and options come in any order: plan gpu=h100 --json duration=60
    ours = _ours(words) if name in TAKE_COMMAND else words
    args = parser.parse_intermixed_args(ours)
    args.command = words[len(ours) + 1 :]
    if name in TAKE_COMMAND and args.command:
        from glasshouse.config import command_words  # noqa: PLC0415  Hydra is loaded where it is needed

        args.overrides += command_words(args.command)
    args.workspace = Workspace.find(args.conf)  # the one place where it is found for a command
    return int(module.run(args))


def _help() -> str:
    width = max(map(len, COMMANDS))
    workspace = Workspace.find()
    conf, shown = workspace.conf, "conf/" if workspace.source else f"{workspace.conf}/"
    commands = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    lines = []
    for group in GROUPS:
        names = options(group, conf)
        if group == "experiment":
            names = [f"{len(names)} files in {shown}{group}, each opening with the command that runs it"]
        lines.append(f"  {group:<{width}}  {', '.join(names)}")
    groups = "\n".join(lines)
    return f"""\
Train on rented GPUs under an attested lifecycle, and measure what the protection costs.

  glasshouse train FOLDER [NAME=VALUE ...] -- python train.py --lr=3e-4
                                      your own project, sealed and run as it is; its files come back
  glasshouse [-m] [NAME=VALUE ...]    one measuring run; with -m a sweep over comma-separated values
  glasshouse COMMAND [--help]         `python -m glasshouse` is the same program

commands (each with --json):
{commands}

config groups (NAME=VALUE; {shown} holds what each one is, --conf DIR takes another):
{groups}

settings, for example: duration=60 order=protected-first repeat=0,1,2 measure.blocks=12 spend.max_usd=20
`glasshouse --cfg job [NAME=VALUE ...]` prints all of them as they resolve.
"""
