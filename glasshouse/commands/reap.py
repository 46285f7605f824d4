"""Finish what a killed controller left: bring home what its job sealed, release its machine, prove that
nothing is left, record the run.

  glasshouse reap --dry-run    say what would be done
  glasshouse reap              do it
  glasshouse reap --stop RUN   also a run that goes on: its command is asked to end, as by Ctrl-C
  glasshouse reap --now        without fetching sealed outputs first
  glasshouse reap --elsewhere  also what controllers on other hosts left, in a journal shared with them
  glasshouse reap --other-key  with another API key than the one that rented, of the same account
  glasshouse reap --stray NAME end a machine that the journal does not know

Providers whose key is in the environment are also asked for machines with names of ours that the journal
does not hold open. One whose whole name stands in it came after it was proven gone, and is ended. Any other
is listed and left alone until you name it: its journal was lost or is another one, or a colleague runs it.

A private job goes on without its controller (model.unattended). Its machine is asked: one whose job goes on
is left alone, and it is said until when; of one whose job has ended all is fetched, then it is released, and
the row says that nobody had watched. With --stop RUN --now it is destroyed at once.

Of any other, where a leg had sealed outputs on its machine, they are fetched first, for five minutes at most
and never past the time that was budgeted for its rental; other machines are destroyed meanwhile. Then it is
destroyed, whatever came.

While a create may yet make a machine, reap goes on looking and shows the time left. Ctrl-C ends that wait.

Exit code 4 when something may still be running: of the journal's, or a machine that is not known here and
whose name begins like one of this program; also when it is interrupted. 3 when a provider could not be asked,
or a controller that was to end its run does not answer (with --now one that is stopped is killed).
1 when a job had ended without its controller and its row is excluded.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import asdict
from pathlib import Path

from glasshouse import config
from glasshouse.commands.terminal import emit, say, table
from glasshouse.errors import CleanupNotProven, GlasshouseError, ProviderError
from glasshouse.lifecycle import strays
from glasshouse.lifecycle.reap import Reaped, Wishes, reap_all
from glasshouse.lifecycle.screen import Screen
from glasshouse.lifecycle.waiting import uninterrupted
from glasshouse.providers.journal import Journal
from glasshouse.providers.registry import KEY_VARIABLES
from glasshouse.spec import CloudProvider

CLEAN_UP_NOT_PROVEN = CleanupNotProven.exit_code
LONGEST_CELL = 120  # characters of a detail that stands in the table


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    parser.add_argument(
        "--now", action="store_true", help="destroy at once: fetch no sealed outputs that lie on a machine"
    )
    parser.add_argument(
        "--stop", metavar="RUN", help="end this run, also where it goes on without its controller; no other"
    )
    parser.add_argument(
        "--elsewhere", action="store_true", help="also runs of other hosts, of which you know that they ended"
    )
    parser.add_argument(
        "--other-key",
        action="store_true",
        help="the key in the environment is a new one of the account that rented",
    )
    parser.add_argument(
        "--stray", metavar="NAME", help="destroy this machine, which the journal does not know"
    )


def run(args: argparse.Namespace) -> int:
    """Reap every dead allocation in the journal, and list what it does not know."""
    try:
        return _run(args)
    except KeyboardInterrupt:
        # Before the journal was gone through: what it holds may be there, and may be billing.
        raise CleanupNotProven(
            "interrupted before anything was proven", remedy="run `glasshouse reap` again"
        ) from None


def _run(args: argparse.Namespace) -> int:
    screen = Screen(quiet=args.json)
    if args.stray is not None:
        return _end(args.stray, conf=args.workspace.conf, json=args.json)
    wishes = Wishes(args.dry_run, args.elsewhere, args.other_key, args.now, args.stop)
    found = reap_all(screen, wishes)
    there = [] if args.stop is not None else _there(args, screen)
    found += [_returned(stray) for stray in there if stray.ours]
    unknown = [stray for stray in there if not stray.ours]
    code = max((_code(item) for item in found), default=0)
    if any(stray.id is None for stray in unknown):
        code = max(code, ProviderError.exit_code)
    if any(stray.id is not None for stray in unknown):
        code = CLEAN_UP_NOT_PROVEN
    if args.json:
        allocations, others = [asdict(item) for item in found], [asdict(stray) for stray in unknown]
        emit({"ok": code == 0, "allocations": allocations, "strays": others})
        return code
    if found:
        _tell_reaped(found)
    else:
        say(_nothing_open())
    _tell_others(unknown)
    if not unknown and args.stop is None and (kinds := _asked()):
        say(f"no other machine with a name of ours: {', '.join(kinds)}")
    return code


def _tell_reaped(found: list[Reaped]) -> None:
    """Say what became of each allocation; what is too long for a table stands beneath it, and what is left
    alone in a line.
    """
    alone = [item for item in found if item.state == "unattended"]
    found = [item for item in found if item not in alone]
    long = [item for item in found if len(item.detail) > LONGEST_CELL]
    rows = [
        [
            item.state,
            item.proof or "-",
            item.provider,
            item.name,
            "see below" if item in long else item.detail,
        ]
        for item in found
    ]
    if rows:
        say(table(["state", "left", "provider", "allocation", "detail"], rows))
    for item in alone:
        say(f"run {item.run} at {item.provider}: {item.detail}")
    for item in long:
        say(f"{item.name}: {item.detail}")


def _nothing_open() -> str:
    """What it means that the journal holds nothing open."""
    with Journal() as journal:
        (count, first), where = journal.extent(), journal.where
    if first is None:
        text = (
            f"the journal at {where} knows of no allocation: if another one was lost, nothing is known here"
        )
        variables = " or ".join(KEY_VARIABLES.values())
        return text if _asked() else f"{text}, and no provider was asked (without {variables})"
    since = time.strftime("%Y-%m-%d", time.gmtime(first))
    held = f"{count} since {since}, in {where}"
    return f"nothing to reap: every allocation in the journal is proven gone ({held})"


def _tell_others(unknown: list[strays.Stray]) -> None:
    """Say what providers show beside the journal, and which could not be asked."""
    shown = [stray for stray in unknown if stray.id is not None]
    if shown:
        say("machines with names of ours that are not this journal's to end; they may be billing:")
        rows = [[stray.provider, stray.name, stray.id, stray.detail] for stray in shown]
        say(table(["provider", "machine", "id", "detail"], rows))
        say("whose they are cannot be known here: a lost journal's, another journal's, or a colleague's")
        say("to end one: glasshouse reap --stray NAME")
    for stray in unknown:
        if stray.id is None:
            whose = "what providers have" if stray.provider == "-" else f"what {stray.provider} has"
            say(f"{whose} under names of ours is not known: {stray.detail}")


def _there(args: argparse.Namespace, screen: Screen) -> list[strays.Stray]:
    """What providers show and no open entry names; where that cannot be asked, why."""
    try:
        places = _paid(args.workspace.conf)
        if not places:
            return []
        kinds = ", ".join(sorted({place.kind for place in places}))
        with screen.phase(f"asking {kinds} for other machines with names of ours"):
            if args.dry_run:
                return strays.find(places, elsewhere=args.elsewhere)
            with uninterrupted(screen) as waits:
                return strays.end_ours(places, waits, elsewhere=args.elsewhere)
    except GlasshouseError as error:
        return [strays.Stray("-", "-", None, error.line())]


def _returned(stray: strays.Stray) -> Reaped:
    """A machine of an allocation that was proven gone before."""
    state = "would-reap" if stray.proof is None else "reaped"
    detail = f"it is there although it was proven gone; {stray.detail}"
    return Reaped(stray.name, stray.name, stray.provider, state, stray.proof, detail)


def _paid(conf: Path) -> list[CloudProvider]:
    """Settings of every paid provider whose key is in the environment, and of where this journal rented
    lately.
    """
    loaded = [config.load([f"provider={kind}", "gpu=a4000"], conf=conf).provider for kind in _asked()]
    found = [provider for provider in loaded if isinstance(provider, CloudProvider)]
    with Journal() as journal:
        places = {(provider.kind, provider.base_url) for provider in found}
        return found + [each for each in strays.lately(journal) if (each.kind, each.base_url) not in places]


def _asked() -> list[str]:
    """The paid providers that can be asked: their key is in the environment."""
    return [kind for kind, variable in KEY_VARIABLES.items() if os.environ.get(variable)]


def _end(name: str, *, conf: Path, json: bool) -> int:
    with uninterrupted(Screen(quiet=json)) as waits:
        ended = strays.end(_paid(conf), name, waits)
    good = ended.proof == "zero"
    if json:
        emit({"ok": good, "strays": [asdict(ended)]})
    else:
        say(f"{ended.provider}: {ended.name} ({ended.id}): {ended.detail}")
    return 0 if good else CLEAN_UP_NOT_PROVEN


def _code(item: Reaped) -> int:
    if item.state == "silent":
        return ProviderError.exit_code
    settled = item.state in ("live", "elsewhere", "would-reap", "unattended", "stopping")
    if not settled and item.proof != "zero":
        return CLEAN_UP_NOT_PROVEN
    return 1 if item.by_itself and item.status == "excluded" else 0
