"""What a paid provider looks like to the rest: machines, candidates, its calls, its errors."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from glasshouse import spec
from glasshouse.codes import Code
from glasshouse.errors import ProviderError
from glasshouse.providers.base import Afford, Progress, none_beside
from glasshouse.providers.cloud_http import ApiError, CloudHttp, Reply
from glasshouse.providers.hostkeys import RentalKeys

# Members of a list's answer, in small letters alone, that say that it is not all.
_PART = re.compile(
    r"^(errors?|failures?|warnings?|problems?|unavailable|incomplete|partial|istruncated|truncated)$"
    r"|^next(page|token|pagetoken|link|url|uri|href|offset|key|start|marker)?$"
    r"|cursor|continuation|^has(more|next)|^morep|^more$|pagetoken|^after$"
)
_COUNT = re.compile(
    r"(total|count|(total|instances|pods|items|results)(count|total|items|results|pods|instances))"
)
_PAGES = re.compile(r"(total|num|last)?pages?(count|total)?|lastpage")
_DEPTH = 3  # members within members that are looked into; an answer of a list is no deeper

State = Literal["assigning", "starting", "running", "failed", "gone"]


@dataclass(frozen=True)
class Address:
    """One way to reach a machine's SSH server."""

    host: str
    port: int
    user: str


@dataclass(frozen=True)
class Machine:
    """One machine as its provider describes it.

    `said` is the provider's own word for the state with its message, cleaned. `place` is what a replacement
    avoids: a data centre, or a host machine.
    """

    id: str
    name: str
    state: State
    said: str
    gpu: str | None
    gpus: int | None
    usd_per_hour: float | None
    place: str | None
    addresses: tuple[Address, ...] = ()


@dataclass(frozen=True)
class Candidate:
    """One thing to try to create: a data centre, or an offer. `id` means something to its provider only."""

    id: str
    text: str


@dataclass(frozen=True)
class Rental:
    """One attempt to rent for allocation `name`, which the provider sees as `label`.

    `ceiling` is in USD an hour. After `latest` (monotonic seconds) no create is sent: what it made could not
    boot within the budget.
    """

    name: str
    label: str
    run: spec.RunSpec
    gpu: str
    ceiling: float
    keys: RentalKeys
    progress: Progress
    afford: Afford = none_beside
    latest: float = math.inf


class CloudApi(Protocol):
    """What a paid provider can do; every call raises ApiError when it cannot be done or read."""

    @property
    def kind(self) -> str:
        """The name used in config."""

    @property
    def label(self) -> str:
        """The name a person reads."""

    @property
    def console_page(self) -> str:
        """Where a person sees what is rented."""

    @property
    def http(self) -> CloudHttp:
        """The client, for its waiting times."""

    def check(self) -> None:
        """Refuse what this provider cannot rent, before anything is asked of it. Raises UsageError."""

    def candidates(self, rental: Rental, avoid: frozenset[str]) -> list[Candidate]:
        """What to try, best first, each within the price ceiling. Raises ProviderError for a refusal."""

    def create(self, rental: Rental, candidate: Candidate) -> Machine:
        """Ask for one machine, once."""

    def machines(self) -> list[Machine]:
        """Every machine of the account, from every page."""

    def machine(self, machine_id: str) -> Machine | None:
        """One machine; None when the provider says that it does not exist."""

    def destroy(self, machine_id: str) -> bool | None:
        """Ask once for the end of one machine; False when the answer is that there is none of this id, None
        when it says neither that nor that the end is accepted.
        """

    def log_fingerprints(self, machine_id: str) -> frozenset[str]:
        """Host-key fingerprints that the machine's start printed, read over TLS; empty without any."""

    def failure(self, machine: Machine) -> str:
        """The provider's own words on why a machine failed, cleaned."""


def explain(api: CloudApi, doing: str, error: ApiError) -> ProviderError:
    """Turn a final ApiError into the one-line error a person reads."""
    by_status = {
        401: (Code.AUTH, "check the API key"),
        402: (Code.BALANCE, "add credit to the account"),
        403: (Code.AUTH, "this key has no access to that"),
        429: (Code.RATE_LIMITED, "wait, or run fewer jobs at once"),
    }
    code, remedy = by_status.get(
        error.status, (Code.PROVIDER_UNAVAILABLE if error.transient else Code.REJECTED, "")
    )
    return ProviderError(f"{api.label}: {doing}: {error}", code=code, remedy=remedy)


def check_whole(reply: Reply, rows: int, *, followed: frozenset[str] = frozenset()) -> None:
    """Raise ApiError for a list that says itself that it is not all: by its status or header, by a member
    that tells of errors, of a further page or of more than its `rows`, or by one of these inside a member.

    `followed`: members that the provider documents for its pages, and that the caller goes by.
    """
    if reply.status != 200 or reply.continued or (count(reply.total) or 0) > rows:
        raise ApiError(0, f"a list that is not whole (status {reply.status})")
    _check_members(reply.body, rows, followed, _DEPTH)


def _check_members(found: object, rows: int, followed: frozenset[str], depth: int) -> None:
    if not isinstance(found, dict) or depth < 0:
        return
    for name, value in found.items():
        word = re.sub(r"[^a-z]", "", name.lower())
        number = count(value) or 0
        if name in followed or not value:
            continue
        if (
            _PART.search(word)
            or (_COUNT.fullmatch(word) and number > rows)
            or (_PAGES.fullmatch(word) and number > 1)
        ):
            raise ApiError(0, f"a list that is not whole ({name[:40]})")
        _check_members(value, rows, followed, depth - 1)


def count(value: object) -> int | None:
    """A number of rows, also where it comes as a string or with a point; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return math.ceil(float(value))
    except (ValueError, OverflowError):
        return None


def stated(value: Iterable[object]) -> str:
    """Join what a provider said about a state, leaving out what it left empty."""
    return ": ".join(str(part) for part in value if part)
