"""An interruptible machine that is taken away, and the run that goes on for it on another.

Each replacement is a run of its own, with a plan, a machine and a row. None begins before the machine before
is proven gone, and there are `model.max_resumes` of them at most, for which the money was set aside before
the first began.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from glasshouse.codes import Code
from glasshouse.errors import GlasshouseError
from glasshouse.lifecycle.continued import Origin
from glasshouse.lifecycle.finish import Recorded
from glasshouse.lifecycle.live_run import LiveRun
from glasshouse.lifecycle.run_folder import RunFolder
from glasshouse.lifecycle.screen import Screen
from glasshouse.measurement.schedule import left_of
from glasshouse.providers.base import Provider
from glasshouse.providers.cloud import Cloud
from glasshouse.providers.money import machines
from glasshouse.spec import RunSpec


def note_taken_away(live: LiveRun, provider: Provider) -> None:
    """Of a job that did not go well: ask the provider whether it took the machine away, and note that."""
    ended_well = not live.ending.failures and not live.ending.exit_code
    if ended_well or machines(live.run.spec) == 1 or not isinstance(provider, Cloud):
        return
    if live.rental.endpoint is None:
        return  # none came up: that is another failure
    if provider.taken_away(live.run.allocation):
        live.fail(Code.MACHINE_TAKEN_AWAY, f"{provider.kind} took the machine away", 3)


@dataclass
class Replacing:
    """The runs that go on for one whose machine was taken away. spec, overrides: of the latest of them."""

    spec: RunSpec
    overrides: list[str]
    screen: Screen
    number: int = 0

    def after(self, outcome: Recorded) -> bool:
        """Whether another run takes the place of one that ended so; `spec` and `overrides` are then its."""
        most = machines(self.spec) - 1
        reasons = outcome.record.reasons
        if not most or Code.MACHINE_TAKEN_AWAY not in reasons or Code.INTERRUPTED in reasons:
            return False
        why = ""
        if outcome.alarm or outcome.in_doubt:
            why = "it is not proven that nothing is left of the one before"
        elif self.number == most:
            why = f"model.max_resumes={most} is used up"
        else:
            try:
                self.overrides, self.spec = _further(outcome, self.spec, self.overrides, self.screen)
            except GlasshouseError as error:
                why = error.line()
        if why:
            self.screen.warn(f"no other machine takes its place: {why}")
            return False
        self.number += 1
        said = f"another machine takes its place ({self.number} of at most {most}: model.max_resumes)"
        self.screen.headline(said)
        return True


def _further(
    outcome: Recorded, spec: RunSpec, overrides: Sequence[str], screen: Screen
) -> tuple[list[str], RunSpec]:
    """From where it goes on: the newest good checkpoint at home, or what the run before began with."""
    folder = Path(outcome.folder)
    # By its number: a later one that was countersigned may have gone with the machine.
    continues = Origin(folder, RunFolder(folder).saved(), None).newest_good(spec.policy)
    if continues is None:
        screen.warn("no checkpoint of it came home: it begins where the run before began")
        return list(overrides), spec
    further = spec.model_copy(update={"continues": continues})
    left_of(further)
    kept = [word for word in overrides if not word.startswith("from=")]
    return [*kept, f"from={outcome.run}@{continues.number}"], further
