"""One run, or with -m a sweep: rent, protect, measure, prove, record.

  python -m glasshouse                                      provider=local, model=mlp, a short duration
  python -m glasshouse -m gpu=h100,pro6000 duration=1800    a sweep; every cell is checked and budgeted first
  python -m glasshouse -m order=raw-first,protected-first hydra/launcher=joblib hydra.launcher.n_jobs=2

`glasshouse --help` shows the other commands and the config groups.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml  # type: ignore[import-untyped]  # PyYAML ships no types

from glasshouse import config
from glasshouse.commands.records import RUNS
from glasshouse.commands.terminal import emit, say
from glasshouse.errors import UsageError
from glasshouse.extras import require
from glasshouse.paths import Workspace
from glasshouse.spec import LocalProvider, LoraModel, RunSpec

if TYPE_CHECKING:
    from glasshouse.lifecycle.sweep import Sweep


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("overrides", nargs="*", metavar="NAME=VALUE", help="see glasshouse --help")
    parser.add_argument("-m", "--multirun", action="store_true", help="a sweep over comma-separated values")
    parser.add_argument(
        "--again", action="store_true", help="with -m: also repeat cells that a verified run covers"
    )
    parser.add_argument("--yes", action="store_true", help="ask nothing: a job goes on to its ceiling")
    parser.add_argument("--cfg", choices=["job"], help="print the settings as they resolve, and run nothing")
    parser.add_argument("--out", type=Path, default=RUNS, metavar="DIR", help="where run folders go (runs)")


def run(args: argparse.Namespace) -> int:
    """Run the cell or the cells; the exit code is the highest of theirs."""
    overrides: list[str] = args.overrides
    workspace: Workspace = args.workspace
    conf = workspace.conf
    if args.cfg:
        return _print_settings(overrides, conf, args.out, as_json=args.json)
    require("run", "a run")
    # Only now: to print settings, and to be told what is missing, the base install is enough.
    from glasshouse.lifecycle.resume import unfinished  # noqa: PLC0415
    from glasshouse.lifecycle.sweep import begun  # noqa: PLC0415
    from glasshouse.providers.budget import reserved  # noqa: PLC0415
    from glasshouse.run import run_sweep  # noqa: PLC0415

    if not args.multirun and not config.wants_sweep(overrides, conf=conf):
        cells = [
            (config.spelled_out(overrides, runs=args.out), config.load(overrides, conf=conf, runs=args.out))
        ]
        _require_training(cells[0][1])
        with reserved([cells[0][1]]) as key:
            return run_sweep(cells, out=args.out, as_json=args.json, asks=not args.yes, reservation=key)
    # Every cell is resolved, validated and budgeted before the first one starts, whoever launches them.
    cells = [
        (config.spelled_out(cell, runs=args.out), config.load(cell, conf=conf, runs=args.out))
        for cell in config.expand(overrides, conf=conf)
    ]
    for _, spec in cells:
        _require_training(spec)
    if len(cells) == 1:
        sys.stderr.write("-m, but no setting has several values (NAME=A,B): a sweep of one cell\n")
    launcher = config.launcher(overrides, conf=conf)
    left, skipped = (cells, []) if args.again else unfinished(cells, args.out)
    specs = [spec for _, spec in left]
    if launcher == config.BASIC:
        with reserved(specs) as key:
            return run_sweep(
                left, out=args.out, as_json=args.json, asks=not args.yes, skipped=skipped, reservation=key
            )
    if args.json:
        raise UsageError(
            "--json cannot join the output of several processes",
            field="hydra/launcher",
            value=launcher,
            remedy="drop --json, or use hydra/launcher=basic",
        )
    if any(spec.continues is not None for _, spec in cells):
        raise UsageError(
            "a launcher's processes begin anew", field="hydra/launcher", value=launcher,
            remedy="go on from a checkpoint with hydra/launcher=basic",
        )  # fmt: skip
    out = args.out.resolve()
    with reserved(specs) as key, begun(out) as sweep, _workers_apart(launcher):
        return max(config.launch(overrides, _RunCell(out, args.again, key, sweep, os.getpid()), conf=conf))


@contextmanager
def _workers_apart(launcher: str) -> Iterator[None]:
    """Keep the modules of the working folder from joblib's workers, which start with that folder first.

    They are told where this process finds modules. Workers of other launchers are not, and may need it.
    """
    before = os.environ.get("PYTHONSAFEPATH")
    if launcher != "joblib" or before:
        yield
        return
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        del os.environ["PYTHONSAFEPATH"]
        if before is not None:
            os.environ["PYTHONSAFEPATH"] = before


@dataclass(frozen=True)
class _RunCell:
    """What a launcher's worker calls; a class, since a launcher pickles it."""

    out: Path
    again: bool
    reservation: str | None
    sweep: Sweep
    parent: int  # the process that began the sweep

    def __call__(self, spec: RunSpec, overrides: list[str]) -> int:
        from glasshouse.lifecycle.resume import unfinished  # noqa: PLC0415  as above
        from glasshouse.lifecycle.sweep import in_worker  # noqa: PLC0415
        from glasshouse.providers.journal import Journal  # noqa: PLC0415
        from glasshouse.run import run_sweep  # noqa: PLC0415

        with in_worker(self.sweep, self.parent):
            cells = [(overrides, spec)]
            left, skipped = (cells, []) if self.again else unfinished(cells, self.out)
            with Journal() as journal:
                why = left and (self.sweep.stopped() or (spec.paid and self.sweep.held(journal)))
            if why:
                sys.stderr.write(f"not started: {' '.join(overrides) or 'defaults'}: {why}\n")
                return 0
            return run_sweep(
                left, out=self.out, skipped=skipped, reservation=self.reservation, sweep=self.sweep
            )


def _require_training(spec: RunSpec) -> None:
    """Refuse a run that this very Python would have to train, and cannot."""
    if isinstance(spec.provider, LocalProvider) and spec.provider.python is None:
        lora = ("transformers", "peft", "safetensors") if isinstance(spec.model, LoraModel) else ()
        require("train", "a run on this machine", only=("torch", *lora))


def _print_settings(overrides: list[str], conf: Path, runs: Path, *, as_json: bool) -> int:
    values = config.load(overrides, conf=conf, runs=runs).model_dump(mode="json")
    if as_json:
        emit(values)
    else:
        say(yaml.safe_dump(values, sort_keys=False, allow_unicode=True).rstrip())
    return 0
