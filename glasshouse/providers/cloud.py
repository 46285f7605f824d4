"""Renting from a paid provider: the story that RunPod and Vast.ai share.

    check config -> keys -> for at most two machines:
        create (never repeated blindly: list by name, adopt or destroy)
        boot   (cloud_boot.py: phase deadlines, failed states, GPU and price as asked, host key)
      a machine that fails is destroyed; only proof of zero allows the one replacement, elsewhere
    -> Allocation

What differs between the providers is behind `CloudApi` (cloud_api.py). Release and its proof are in
cloud_release.py, prices and caps in money.py.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx

from glasshouse import paths, spec
from glasshouse.codes import Code
from glasshouse.errors import ProviderError, UsageError
from glasshouse.providers import cloud_release, hostkeys, money
from glasshouse.providers.base import Allocation, Endpoint, Progress, ReleaseProof
from glasshouse.providers.clock import Clock
from glasshouse.providers.cloud_api import Candidate, CloudApi, Machine, Rental, explain
from glasshouse.providers.cloud_boot import as_asked, boot
from glasshouse.providers.cloud_http import ApiError, CloudHttp, Credential, Timing, again
from glasshouse.retry import RetryPolicy, retry

# Faults of a machine, not of the request: another machine may do better.
REPLACEABLE: Final = (Code.BOOT_FAILED, Code.BOOT_TIMEOUT, Code.HOST_KEY_MISMATCH, Code.SSH_UNREACHABLE)


@dataclass
class _Creates:
    """What became of this process's own create calls for one allocation."""

    ids: set[str] = field(default_factory=set)  # that the provider gave us
    sent: bool = False
    under_way: bool = False  # the last one may yet make a machine: its answer was lost, or not awaited
    doubtful: bool = False  # one gave no clear answer; that nothing came of it was seen, but only for a while


class Cloud:
    """`Provider` over one paid API. A context manager: leaving it closes connections and releases nothing."""

    def __init__(self, api: CloudApi, config: spec.CloudProvider) -> None:
        self.api = api
        self._config = config
        self._creates: dict[str, _Creates] = {}  # by allocation name, of those that this object rented
        self._known: dict[str, set[str]] = {}  # ids that others told us of, by allocation name

    @property
    def kind(self) -> str:
        """The name used in config."""
        return self.api.kind

    @property
    def simulated(self) -> bool:
        """Whether the answers come from a fake provider."""
        return self.api.http.simulated

    def known_ids(self, name: str) -> tuple[str, ...]:
        """The provider's ids of all that was created for `name`, for the journal and the last line."""
        own = self._creates.get(name)
        return tuple(sorted(self._known.get(name, set()) | (own.ids if own else set())))

    def check(self, spec: spec.RunSpec) -> None:
        """Refuse what config asks for and this provider cannot rent. Raises UsageError."""
        self._wanted(spec)
        self.api.check()

    def allocate(self, name: str, spec: spec.RunSpec, progress: Progress) -> Allocation:
        """Rent one machine named `name` (`gh-<run>-<nonce>`). Raises UsageError, ProviderError.

        On failure something may be left, and `release(name, None)` must follow.
        """
        cloud_release.check_name(name)
        self.check(spec)
        gpu, ceiling = self._wanted(spec)
        self._creates[name] = _Creates()
        avoid: set[str] = set()
        # One that could not boot within what is left of the budget would be rented for nothing.
        latest = (
            self.api.http.clock.monotonic()
            + money.rental_deadline_sec(spec)
            - spec.provider.boot_deadline_sec
        )
        replaceable: list[ProviderError] = []

        def rent(attempt: int) -> Allocation:
            label = name if attempt == 1 else f"{name}-r{attempt}"
            keys = hostkeys.make_keys(keys_folder(name))
            rental = Rental(name, label, spec, gpu, ceiling, keys, progress)
            machine = self._create(rental, frozenset(avoid))
            try:
                as_asked(self.api, machine, rental)
                machine, endpoint = boot(self.api, machine, rental, self._config)
                self._alone(rental, machine)
            except ProviderError as error:
                progress(f"{self.api.label}: {error.what}; destroying it")
                place = machine.place or self._place(machine.id)
                cleared = self._clear(name, machine.id)
                # Without proof of zero a replacement could be the second machine that bills.
                if error.code in REPLACEABLE and cleared.proof == "zero" and place is not None:
                    replaceable.append(error)
                    avoid.add(place)
                raise
            return self._allocation(machine, name, endpoint)

        return retry(
            rent,
            RetryPolicy(tries=money.ATTEMPTS, deadline=latest),
            on=ProviderError,
            when=lambda error: error in replaceable,
            between=lambda _: progress(f"{self.api.label}: one replacement, elsewhere"),
            monotonic=self.api.http.clock.monotonic,
            sleep=self.api.http.clock.sleep,
        )

    def release(self, name: str, allocation_id: str | None) -> ReleaseProof:
        """Destroy everything named `name` and prove that none is left; never raises for remote faults."""
        own = self._creates.get(name)
        if own is not None and not own.sent and allocation_id is None:
            # Refused before any create, a key that may not even list is no reason to fear for a machine.
            proof = ReleaseProof("zero", 0, "nothing was asked of the provider but what can be rented")
        else:
            proof = self._clear(name, allocation_id)
        if proof.proof == "zero":
            hostkeys.remove_keys(keys_folder(name))
        return proof

    def find_ours(self, prefix: str = "gh-") -> tuple[Machine, ...]:
        """Machines whose name begins with `prefix`, for `reap`. Raises UsageError, ProviderError."""
        if not re.fullmatch(r"gh-[A-Za-z0-9\-]{0,90}", prefix):
            raise UsageError(
                "not a prefix of our names", field="prefix", value=prefix, remedy="begin with gh-"
            )
        try:
            found = self.api.machines()
        except ApiError as error:
            raise explain(self.api, "listing machines", error) from None
        return tuple(each for each in found if each.name.startswith(prefix) and each.state != "gone")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.api.http.close()

    def __repr__(self) -> str:
        return f"<Cloud {self.api.kind}>"

    def _clear(self, name: str, machine_id: str | None, keep: str | None = None) -> ReleaseProof:
        if machine_id is not None:
            self._known.setdefault(name, set()).update(machine_id.split(","))
        own = self._creates.get(name)
        # What another process had under way when it died, nobody knows.
        under_way = own is None or own.under_way
        known = frozenset(self.known_ids(name))
        return cloud_release.release(self.api, name, known, under_way=under_way, keep=keep)

    def _alone(self, rental: Rental, machine: Machine) -> None:
        """A create that gave no answer may have made a machine after all, later than was waited for it."""
        if not self._creates[rental.name].doubtful:
            return
        if self._clear(rental.name, None, keep=machine.id).proof != "zero":
            raise ProviderError(
                f"{self.api.label}: whether a create made a second machine", code=Code.OUTCOME_UNKNOWN
            )

    def _wanted(self, run: spec.RunSpec) -> tuple[str, float]:
        gpu = run.gpu.provider_names.get(self.kind)
        if gpu is None:
            raise UsageError(
                f"{self.api.label}'s name of this GPU is not in conf/gpu",
                field=f"gpu.provider_names.{self.kind}",
                value=run.gpu.name,
                remedy="add it, exactly as the provider spells it",
            )
        money.cost_ceiling(run)  # refuses a missing price
        ceiling = money.price(run)
        assert ceiling is not None
        return gpu, ceiling

    def _create(self, rental: Rental, avoid: frozenset[str]) -> Machine:
        """Create one machine, trying candidates in turn; at most one of ours exists at any moment."""
        api, own = self.api, self._creates[rental.name]
        try:
            candidates = api.candidates(rental, avoid)
        except ApiError as error:
            raise explain(api, "asking what can be rented", error) from None
        last: ApiError | None = None
        for candidate in candidates:
            try:
                return again(
                    functools.partial(self._create_once, rental, candidate, own),
                    lambda: api.http.timing.retries(api.http.timing.creates),
                    api.http.clock,
                )
            except ApiError as error:
                last = error  # 400, 403 and the like: this candidate is out
                if error.status in (401, 402, 404, 422):
                    raise explain(api, "creating", error) from None
        if last is None:
            raise ProviderError(
                f"{api.label} has no {rental.gpu} within {rental.ceiling:.2f} USD an hour",
                code=Code.NO_CAPACITY,
                remedy="try later, another gpu=, or raise gpu.max_usd_per_hour",
            )
        if last.transient:
            raise explain(api, "creating", last)
        raise ProviderError(
            f"{api.label} refused every {rental.gpu}: {last}",
            code=Code.NO_CAPACITY,
            remedy="try later, or another gpu=",
        )

    def _create_once(self, rental: Rental, candidate: Candidate, own: _Creates, _: int) -> Machine:
        """Send one create; return its machine, also where that was made although the answer was lost.

        Raises ApiError where it made none, and ProviderError where that cannot be known.
        """
        rental.progress(f"{self.api.label}: renting {rental.gpu} ({candidate.text})")
        own.sent = own.under_way = True  # until its answer says otherwise, also when interrupted
        try:
            machine = self.api.create(rental, candidate)
        except ApiError as error:
            failure = error
        else:
            own.ids.add(machine.id)
            own.under_way = False
            rental.progress(f"{self.api.label}: created")  # whoever listens writes the id down
            return machine
        own.under_way = uncertain(failure)
        own.doubtful = own.doubtful or own.under_way
        adopted = self._after_refusal(rental, failure)
        own.under_way = False
        if adopted is None:
            raise failure
        rental.progress(f"{self.api.label}: the create went through after all; adopting its machine")
        return adopted

    def _after_refusal(self, rental: Rental, error: ApiError) -> Machine | None:
        """After a create that did not clearly succeed: adopt what it made, or show that it made nothing.

        Raises ProviderError when that cannot be read: then nothing more may be created.
        """
        api, timing, name = self.api, self.api.http.timing, rental.name
        if error.created_id is not None:
            # It exists, and nobody promised that it is whole or even labelled: it goes.
            if self._clear(name, error.created_id).proof != "zero":
                raise ProviderError(f"{api.label}: a failed create left a machine", code=Code.OUTCOME_UNKNOWN)
            return None
        # A clear refusal needs one look; after no answer the machine may take a while to show.
        end = api.http.clock.monotonic() + (timing.settle_sec if uncertain(error) else 0.0)
        while True:
            try:
                found = [
                    each for each in api.machines() if each.name == rental.label and each.state != "gone"
                ]
            except ApiError as unread:
                if unread.status == error.status == 401:
                    raise explain(api, "creating", error) from None
                raise ProviderError(
                    f"{api.label}: whether a create happened cannot be read: {unread}",
                    code=Code.OUTCOME_UNKNOWN,
                ) from None
            if found:
                self._creates[name].ids.update(each.id for each in found)
                if len(found) == 1 and found[0].state != "failed":
                    return found[0]
                if self._clear(name, None).proof != "zero":
                    raise ProviderError(
                        f"{api.label}: a create made more than it should", code=Code.OUTCOME_UNKNOWN
                    )
                return None
            if api.http.clock.monotonic() >= end:
                return None
            api.http.clock.sleep(min(timing.poll_sec, timing.settle_sec / 3))

    def _place(self, machine_id: str) -> str | None:
        try:
            machine = self.api.machine(machine_id)
        except ApiError:
            return None
        return machine.place if machine is not None else None

    def _allocation(self, machine: Machine, name: str, endpoint: Endpoint) -> Allocation:
        digest = re.search(r"@(sha256:[0-9a-f]{64})\Z", self._config.image)
        return Allocation(
            provider=self.kind,
            id=machine.id,
            name=name,
            endpoint=endpoint,
            gpu_model=machine.gpu,
            instance_id=machine.id,
            # A fake provider can never yield a row that passes for measured.
            tier="simulated" if self.simulated else self._config.tier,
            image_digest=digest[1] if digest else "",
            usd_per_hour=machine.usd_per_hour,
        )


def uncertain(error: ApiError) -> bool:
    """Whether a create that ended so may have made a machine, now or in a moment."""
    return error.transient and error.status != 429


def open_cloud(
    make_api: Callable[[spec.CloudProvider, CloudHttp], CloudApi],
    config: spec.CloudProvider,
    key: Credential,
    *,
    message_of: Callable[[Any], str],
    timing: Timing | None,
    clock: Clock | None = None,
    transport: httpx.BaseTransport | None = None,
) -> Cloud:
    """Open one paid API. `message_of` finds the provider's words in an error document. Raises UsageError."""
    http = CloudHttp(
        config.base_url,
        key,
        message_of=message_of,
        timeout_sec=config.request_timeout_sec,
        timing=timing,
        clock=clock,
        transport=transport,
    )
    return Cloud(make_api(config, http), config)


def keys_folder(name: str) -> Path:
    """Where a rental's client key lies until its release is proven."""
    return paths.state_dir() / "rentals" / name
