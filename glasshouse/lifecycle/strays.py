"""Machines with names of ours that the journal does not hold open: it was lost, or somebody else runs them.

The journal is what a crash leaves; this is for when the journal itself is gone (a dead disk, another
home), and for machines that came back after they were proven gone. Whose they are only a person can say, so
they are listed, and ended one at a time by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from glasshouse.errors import GlasshouseError, UsageError, unexpected
from glasshouse.providers.cloud import Cloud
from glasshouse.providers.cloud_release import is_ours
from glasshouse.providers.journal import Journal
from glasshouse.providers.registry import open_provider
from glasshouse.spec import CloudProvider


@dataclass(frozen=True)
class Stray:
    """A machine that may be billing. `id` None: the provider could not be asked; `detail` says why.

    `proof`: what the release ended with, if it was ended; otherwise None.
    """

    provider: str
    name: str
    id: str | None
    detail: str
    proof: str | None = None


def find(configs: Iterable[CloudProvider]) -> list[Stray]:
    """List what these providers hold under names of ours, less what the journal holds open."""
    with Journal() as journal:
        known = {entry.name for entry in journal.open_entries()}
    return [stray for config in configs for stray in _at(config, known)]


def end(configs: Iterable[CloudProvider], name: str) -> Stray:
    """Destroy the stray called `name` and prove it gone. Raises UsageError when there is none."""
    for config in configs:
        for stray in find([config]):
            if stray.name == name:
                with open_provider(config) as provider:
                    proof = provider.release(name, stray.id)
                return Stray(config.kind, name, stray.id, f"{proof.proof}: {proof.detail}", proof.proof)
    raise UsageError(
        "no such stray machine", field="--stray", value=name,
        remedy="`glasshouse reap` lists them; what the journal holds it reaps itself",
    )  # fmt: skip


def _at(config: CloudProvider, known: set[str]) -> Iterator[Stray]:
    try:
        with open_provider(config) as provider:
            assert isinstance(provider, Cloud)
            for machine in provider.find_ours():
                if not any(is_ours(machine.name, name) for name in known):
                    yield Stray(config.kind, machine.name, machine.id, f"{machine.state}: {machine.said}")
    except GlasshouseError as error:
        yield Stray(config.kind, "-", None, error.line())
    except Exception as error:  # noqa: BLE001  the other providers are asked all the same
        yield Stray(config.kind, "-", None, unexpected(error))
