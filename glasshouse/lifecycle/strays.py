"""Machines with names of ours that the journal does not hold open: it was lost, or somebody else runs them.

The journal is what a crash leaves. This is for when the journal itself is gone (a dead disk, another home),
and for machines that came after they were proven gone. One whose whole name stands in this journal, or a
replacement's of it, is ours once its controller is gone, and `reap` ends it. Whose any other is only a person
can say: they are listed, and ended one at a time by name.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from glasshouse.errors import GlasshouseError, UsageError, unexpected
from glasshouse.lifecycle.waiting import journaling
from glasshouse.providers import accounts
from glasshouse.providers.base import UNWATCHED, Waits
from glasshouse.providers.cloud import Cloud
from glasshouse.providers.cloud_release import is_ours, owner
from glasshouse.providers.journal import Entry, Journal
from glasshouse.providers.registry import KEY_VARIABLES, open_provider
from glasshouse.spec import CloudProvider

LOOK_AGAIN_SEC = 86400.0  # how long after its proof an allocation's provider is asked again, wherever it is


@dataclass(frozen=True)
class Stray:
    """A machine that may be billing. `id` None: the provider could not be asked; `detail` says why.

    `proof`: what the release ended with, if it was ended; otherwise None. `ours`: this journal knows its
    whole name, and its controller runs nowhere.
    """

    provider: str
    name: str
    id: str | None
    detail: str
    proof: str | None = None
    ours: bool = False


def find(configs: Iterable[CloudProvider], *, elsewhere: bool = False) -> list[Stray]:
    """List what these providers hold under names of ours, less what the journal holds open.

    In a shared journal a controller on another host counts as alive, unless `elsewhere`.
    """
    with Journal() as journal:
        return [stray for config in configs for stray in _at(config, journal, elsewhere=elsewhere)]


def lately(journal: Journal) -> list[CloudProvider]:
    """The settings, each once, of paid providers at which something was rented that is not proven gone, or
    was so less than LOOK_AGAIN_SEC ago; only those whose key is in the environment.
    """
    entries = [*journal.open_entries(), *journal.closed_since(time.time() - LOOK_AGAIN_SEC)]
    found: dict[tuple[str, str], CloudProvider] = {}
    for entry in entries:
        variable = KEY_VARIABLES.get(entry.provider)
        if variable is None or not os.environ.get(variable):
            continue
        try:
            config = TypeAdapter(CloudProvider).validate_python(entry.detail.get("provider"))
        except ValidationError:  # of another version of this program
            continue
        found.setdefault((config.kind, config.base_url), config)
    return list(found.values())


def end(configs: Iterable[CloudProvider], name: str, waits: Waits = UNWATCHED) -> Stray:
    """Destroy the stray called `name` and prove it gone. Raises UsageError when there is none."""
    for config in configs:
        for stray in find([config]):
            if stray.name == name and stray.id is not None:
                return _end(config, stray, waits)
    raise UsageError(
        "no such stray machine", field="--stray", value=name,
        remedy="`glasshouse reap` lists them; what the journal holds it reaps itself",
    )  # fmt: skip


def end_ours(configs: Iterable[CloudProvider], waits: Waits, *, elsewhere: bool) -> list[Stray]:
    """As `find`; those that are ours are destroyed, and their allocation is closed by the proof."""
    found = []
    for config in configs:
        for stray in find([config], elsewhere=elsewhere):
            try:
                found.append(_end(config, stray, waits) if stray.ours else stray)
            except GlasshouseError as error:
                found.append(Stray(stray.provider, stray.name, stray.id, error.line(), "unknown", ours=True))
    return found


def _end(config: CloudProvider, stray: Stray, waits: Waits) -> Stray:
    """Release it under its allocation's name. One that stands in the journal is open there until then."""
    name = owner(stray.name)
    with Journal() as journal, open_provider(config) as provider:
        entry = journal.find(name) if stray.ours else None
        if entry is not None:
            accounts.seen(entry, journal)
            waits = journaling(waits, journal, name, entry.allocation_id)
            waits.found(stray.id or "")
            journal.closed(name, "nonzero")
        # Of a stray nothing was asked for that is not there; of ours, what the journal says.
        doubt_until = (entry.doubt_until or 0.0) if entry is not None else 0.0
        proof = provider.release(name, stray.id, doubt_until, waits, None if entry is None else entry.note)
        if entry is not None:
            journal.closed(name, proof.proof)
    return Stray(config.kind, stray.name, stray.id, f"{proof.proof}: {proof.detail}", proof.proof, stray.ours)


def _at(config: CloudProvider, journal: Journal, *, elsewhere: bool) -> Iterator[Stray]:
    try:
        with open_provider(config) as provider:
            assert isinstance(provider, Cloud)
            machines = provider.find_ours()
        known = [entry.name for entry in journal.open_entries()]
        for machine in machines:
            if any(is_ours(machine.name, name) for name in known):
                continue
            detail = f"{machine.state}: {machine.said}"
            entry = journal.find(owner(machine.name))
            ours = entry is not None and entry.provider == config.kind and _over(entry, journal, elsewhere)
            if entry is not None and not ours:
                detail += "; its controller goes on: reap again when that has ended"
            yield Stray(config.kind, machine.name, machine.id, detail, ours=ours)
    except GlasshouseError as error:
        yield Stray(config.kind, "-", None, error.line())
    except Exception as error:  # noqa: BLE001  the other providers are asked all the same
        yield Stray(config.kind, "-", None, unexpected(error))


def _over(entry: Entry, journal: Journal, elsewhere: bool) -> bool:
    """Whether the controller that rented it runs on no host, as far as can be known here."""
    return not entry.controller_alive and (entry.controller_here or elsewhere or not journal.shared)
