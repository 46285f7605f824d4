"""What every provider gives: an allocation, and afterwards proof that none of ours is left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, Self

from glasshouse.remote.endpoint import Endpoint, HostKey, HostKeySource
from glasshouse.spec import RunSpec

__all__ = [
    "UNWATCHED",
    "Afford",
    "Allocation",
    "Endpoint",
    "HostKey",
    "HostKeySource",
    "Progress",
    "Proof",
    "Provider",
    "ReleaseProof",
    "Waits",
    "none_beside",
    "unrented",
]

Proof = Literal["zero", "nonzero", "unknown"]
Progress = Callable[[str], None]  # one short line for the person who waits
# Whether the cap holds for this many machines beside the one that is budgeted.
Afford = Callable[[int], bool]


def none_beside(_: int) -> bool:
    """The cap holds for one machine."""
    return False


@dataclass(frozen=True)
class Waits:
    """How a release may wait for the end of a doubt: `progress` shows the time left, `stopped` says whether
    the person who waits has had enough. `found` is told each id of ours that came to light, before its
    DELETE: whoever keeps a journal writes it down there.
    """

    progress: Progress = lambda _: None
    stopped: Callable[[], bool] = lambda: False
    found: Callable[[str], None] = lambda _: None


UNWATCHED = Waits()


@dataclass(frozen=True)
class Allocation:
    """One machine (or one folder on a machine that is not rented), from create to proven gone.

    `id` is the provider's own id and stays private; `instance_id` is what may be published. `gpu_model` is
    what the provider declares, None where nobody declares one. `image_digest` is "" unless created by
    `@sha256:`.
    """

    provider: str
    id: str
    name: str
    endpoint: Endpoint
    gpu_model: str | None
    instance_id: str | None
    tier: str | None
    image_digest: str
    usd_per_hour: float | None


def unrented(kind: str, name: str, endpoint: Endpoint) -> Allocation:
    """An allocation that nobody charges for: its name is its only id, and nobody declares a GPU."""
    return Allocation(
        provider=kind,
        id=name,
        name=name,
        endpoint=endpoint,
        gpu_model=None,
        instance_id=None,
        tier=None,
        image_digest="",
        usd_per_hour=None,
    )


@dataclass(frozen=True)
class ReleaseProof:
    """What was found after a release, looked at twice.

    zero: nothing of ours is left. nonzero: `active` things (machines, processes, folders) are. unknown:
    nobody could look, or a create of ours may yet make a machine, until `doubt_until` (Unix seconds; None
    where nothing is in doubt; it is for whoever looks again, and not recorded). `account_total` counts all
    machines of a paid account, ours or not; it proves nothing and is only recorded. `processes_left` and
    `folder_removed` are None where the whole machine is gone. `checked_at` holds Unix seconds of each look.
    """

    proof: Proof
    active: int | None
    detail: str
    account_total: int | None = None
    processes_left: int | None = None
    folder_removed: bool | None = None
    checked_at: tuple[float, ...] = ()
    doubt_until: float | None = None


class Provider(Protocol):
    """Rent one machine at a time; a context manager whose exit stops helpers but releases nothing."""

    @property
    def kind(self) -> str:
        """The name used in config: local, ssh, runpod, vastai."""

    @property
    def simulated(self) -> bool:
        """Whether the answers so far came from a fake provider."""

    def check(self, spec: RunSpec) -> None:
        """Refuse what is known beforehand not to be rentable here, asking nobody. Raises UsageError."""

    def known_ids(self, name: str) -> tuple[str, ...]:
        """The provider's own ids of all that this object created for `name`."""

    def doubtful_until(self, name: str) -> float:
        """Until when what this object asked for may yet make a machine for `name`, in Unix seconds; 0.0
        where nothing is in doubt.
        """

    def note(self, name: str) -> str:
        """What a release by another process has to be told beside that, in words of this provider's own; ""
        where there is nothing.
        """

    def allocate(
        self, name: str, spec: RunSpec, progress: Progress, afford: Afford = none_beside
    ) -> Allocation:
        """Create what `name` (`gh-<run>-<nonce>`) will be known by. Raises UsageError, ProviderError.

        `progress` is called before each create is sent and after each answer, when `known_ids`, `note` and
        `doubtful_until` have changed: whoever keeps a journal writes them down there. A create goes out
        beside k doubtful ones only where `afford(k)`.
        """

    def reopen(self, name: str, endpoint: Endpoint) -> Endpoint:
        """Where the pod of `name` answers another process, after `allocate` gave a dead one `endpoint`.

        It trusts no host key that this one does not, but one that this process made itself. Raises
        ProviderError, UsageError. Released by the same object.
        """

    def release(
        self,
        name: str,
        allocation_id: str | None,
        doubt_until: float | None = None,
        waits: Waits = UNWATCHED,
        note: str | None = None,
    ) -> ReleaseProof:
        """Destroy it, also from another process and with `allocation_id` unknown (several: with commas
        between); never raises for remote faults. `doubt_until`: until when another process's creates may yet
        make a machine, in Unix seconds; None where nobody knows what was asked for. `note`: what that process
        was given as `note`, None where it kept none.
        """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
