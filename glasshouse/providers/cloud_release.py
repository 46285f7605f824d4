"""Destroy what is ours at a paid provider, and prove that none of it is left.

The proof reads the whole list and every machine that we know of, twice. `zero` needs all of those reads to
succeed and to agree; one that fails makes it `unknown`. Where a create may still be under way (its caller was
interrupted or killed), the looks go on for longer than it could take to show. Only machines whose name is
the allocation's own are ever destroyed, and ids out of our own creates that cannot be read; other names are
left alone. One that we created and that now carries another name is left alone too, but never called zero.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from glasshouse.errors import ProviderError
from glasshouse.providers.base import ReleaseProof
from glasshouse.providers.cloud_api import CloudApi, Machine
from glasshouse.providers.cloud_http import ApiError
from glasshouse.remote.sweep_script import NAME


def check_name(name: str) -> None:
    """Raise ProviderError for what is no allocation name: "" would match every machine of the account."""
    if NAME.match(name) is None:
        raise ProviderError("not an allocation name", field="name", value=name)


def is_ours(found: str, name: str) -> bool:
    """Whether a machine called `found` belongs to allocation `name`: the name itself, or a replacement's."""
    return found == name or found.startswith(f"{name}-")


@dataclass
class _Look:
    """One reading of everything: what is ours, how many machines the account has, what failed."""

    ours: dict[str, Machine]
    total: int | None
    failed: str
    unread: set[str] = field(default_factory=set)  # ids out of our creates, of which nothing could be learnt


def release(
    api: CloudApi, name: str, known: frozenset[str], *, under_way: bool = False, keep: str | None = None
) -> ReleaseProof:
    """Destroy allocation `name`, of which the ids `known` came from our own create calls.

    Insists for `timing.release_sec`; never raises for remote faults. `under_way`: a create may have been sent
    whose answer nobody had, so nothing to be seen proves nothing for `timing.orphan_sec`. `keep`: an id that
    stays, and of which the proof says nothing.
    """
    check_name(name)
    clock = api.http.clock
    known_ids = set(known)
    end: float | None = None
    attempt = 0
    proven: list[float] = []
    clean_since = 0.0
    last = _Look({}, None, "")
    while True:
        attempt += 1
        look = _look(api, name, known_ids - {keep}, known)
        look.ours.pop(keep or "", None)
        known_ids |= set(look.ours)
        # Read after the first request: only then is it known whether this is a fake, with short times.
        end = clock.monotonic() + api.http.timing.release_sec if end is None else end
        for machine_id in sorted(look.unread.union(look.ours)):
            look.failed = _destroy(api, machine_id) or look.failed
        if not look.ours and not look.failed:
            clean_since = clean_since if proven else clock.monotonic()
            proven = [*proven[:1], clock.now()]
            quiet_sec = api.http.timing.orphan_sec if under_way else 0.0
            if len(proven) == 2 and clock.monotonic() - clean_since >= quiet_sec:
                return _zero(look, proven)
            clock.sleep(api.http.timing.proof_gap_sec)
            continue
        proven, last = [], look
        if clock.monotonic() >= end:
            return _not_proven(api, last)
        clock.sleep(min(api.http.timing.backoff_sec * 2 ** min(attempt, 5), api.http.timing.backoff_max_sec))


def _look(api: CloudApi, name: str, ids: set[str], created: frozenset[str]) -> _Look:
    look = _Look({}, None, "")
    try:
        listed = [machine for machine in api.machines() if machine.state != "gone"]
        look.total = len(listed)
        look.ours = {machine.id: machine for machine in listed if is_ours(machine.name, name)}
    except ApiError as error:
        look.failed = f"the list cannot be read: {error}"
    for machine_id in sorted(ids):
        try:
            machine = api.machine(machine_id)
        except ApiError as error:
            look.failed = f"a machine cannot be read: {error}"
            if machine_id in created:
                look.unread.add(machine_id)
            continue
        if machine is None or machine.state == "gone":
            # The list may lag behind; it must agree before this counts as zero.
            continue
        if is_ours(machine.name, name) or (not machine.name and machine_id in created):
            look.ours[machine_id] = machine
        elif machine_id in created:
            look.failed = "a machine that was created for this run is there under another name"
    return look


def _destroy(api: CloudApi, machine_id: str) -> str:
    try:
        api.destroy(machine_id)
    except ApiError as error:
        return f"destroying failed: {error}"
    return ""


def _zero(look: _Look, moments: list[float]) -> ReleaseProof:
    return ReleaseProof(
        proof="zero", active=0, detail="the whole list and every known machine, read twice: none of ours",
        account_total=look.total, checked_at=tuple(round(moment, 3) for moment in moments),
    )  # fmt: skip


def _not_proven(api: CloudApi, look: _Look) -> ReleaseProof:
    """`nonzero` when the last look saw something of ours, else `unknown`. The public detail holds no id."""
    page = f"look at {api.console_page}"
    if look.ours:
        states = ", ".join(sorted({machine.said for machine in look.ours.values()}))
        return ReleaseProof(
            proof="nonzero", active=len(look.ours),
            detail=f"{len(look.ours)} of ours still there ({states}): {page}",
            account_total=look.total, checked_at=(round(api.http.clock.now(), 3),),
        )  # fmt: skip
    return ReleaseProof(
        proof="unknown", active=None, detail=f"{look.failed}: {page}", account_total=look.total,
        checked_at=(round(api.http.clock.now(), 3),),
    )  # fmt: skip
