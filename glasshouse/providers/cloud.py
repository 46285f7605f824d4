"""Renting from a paid provider: the story that RunPod and Vast.ai share.

    check config -> keys -> for at most two machines:
        create (never repeated blindly: list by name, adopt or destroy; what returned no id stays in doubt)
        boot   (cloud_boot.py: phase deadlines, failed states, GPU and price as asked, host key)
      a machine that fails is destroyed; only proof of zero allows the one replacement, elsewhere
    -> Allocation

What differs between the providers is behind `CloudApi` (cloud_api.py). What is known of creates is in
creates.py, release and its proof in cloud_release.py, prices and caps in money.py.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx

from glasshouse import paths, spec
from glasshouse.codes import Code
from glasshouse.errors import ProviderError, UsageError
from glasshouse.providers import cloud_release, hostkeys, money
from glasshouse.providers.base import (
    UNWATCHED,
    Afford,
    Allocation,
    Endpoint,
    Progress,
    ReleaseProof,
    Waits,
    none_beside,
)
from glasshouse.providers.clock import Clock
from glasshouse.providers.cloud_api import Candidate, CloudApi, Machine, Rental, explain
from glasshouse.providers.cloud_boot import as_asked, boot
from glasshouse.providers.cloud_http import ApiError, CloudHttp, Credential, Timing, again
from glasshouse.providers.creates import Creates, refused
from glasshouse.retry import RetryPolicy, retry

# Faults of a machine, not of the request: another machine may do better.
REPLACEABLE: Final = (Code.BOOT_FAILED, Code.BOOT_TIMEOUT, Code.HOST_KEY_MISMATCH, Code.SSH_UNREACHABLE)


class Cloud:
    """`Provider` over one paid API. A context manager: leaving it closes connections and releases nothing."""

    def __init__(self, api: CloudApi, config: spec.CloudProvider) -> None:
        self.api = api
        self._config = config
        self._creates: dict[str, Creates] = {}  # by allocation name
        self._strange: set[str] = set()  # allocations of whose creates nobody knows
        self._key_refused: set[str] = set()  # allocations whose last release ended so

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
        return tuple(sorted(self._creates.get(name, Creates()).ids))

    def doubtful_until(self, name: str) -> float:
        """When no create for `name` is in doubt any more; 0.0 without any."""
        return self._creates.get(name, Creates()).doubtful_until

    def note(self, name: str) -> str:
        """What another process's release has to know beside that: what the account held before."""
        return self._creates.get(name, Creates()).note()

    def check(self, spec: spec.RunSpec) -> None:
        """Refuse what config asks for and this provider cannot rent. Raises UsageError."""
        self._wanted(spec)
        self.api.check()

    def allocate(
        self, name: str, spec: spec.RunSpec, progress: Progress, afford: Afford = none_beside
    ) -> Allocation:
        """Rent one machine named `name` (`gh-<run>-<nonce>`). Raises UsageError, ProviderError.

        On failure something may be left, and `release(name, None)` must follow.
        """
        cloud_release.check_name(name)
        self.check(spec)
        gpu, ceiling = self._wanted(spec)
        self._creates[name] = Creates()
        waits = Waits(progress)
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
            rental = Rental(name, label, spec, gpu, ceiling, keys, progress, afford, latest)
            machine = self._create(rental, frozenset(avoid))
            try:
                as_asked(self.api, machine, rental)
                machine, endpoint = boot(self.api, machine, rental, self._config)
                self._alone(rental, machine)
            except ProviderError as error:
                progress(f"{error.what}; destroying it")
                place = machine.place or self._place(machine.id)
                cleared = self._clear(name, waits)
                # Without proof of zero a replacement could be the second machine that bills.
                if error.code in REPLACEABLE and cleared.proof == "zero" and place is not None:
                    replaceable.append(error)
                    avoid.add(place)
                raise
            return self._allocation(machine, name, endpoint)

        try:
            return retry(
                rent,
                RetryPolicy(tries=money.ATTEMPTS, deadline=latest),
                on=ProviderError,
                when=lambda error: error in replaceable,
                between=lambda _: progress(f"{self.api.label}: one replacement, elsewhere"),
                monotonic=self.api.http.clock.monotonic,
                sleep=self.api.http.clock.sleep,
            )
        except ProviderError as error:
            if not replaceable or error.code in (*REPLACEABLE, Code.OUTCOME_UNKNOWN):
                raise
            raise first_cause(replaceable[0], error) from error

    def taken_away(self, name: str) -> bool:
        """Whether the provider says that what was created for `name` is stopped, or there no longer.

        False also where it says nothing that can be read.
        """
        ids = self.known_ids(name)
        try:
            found = [self.api.machine(machine_id) for machine_id in ids]
        except ApiError:
            return False
        return bool(ids) and all(each is None or each.state in ("failed", "gone") for each in found)

    def reopen(self, name: str, endpoint: Endpoint) -> Endpoint:  # noqa: ARG002  machines keep their place
        """The machine's address of then; whatever else answers there now has another host key."""
        return endpoint

    def release(
        self,
        name: str,
        allocation_id: str | None,
        doubt_until: float | None = None,
        waits: Waits = UNWATCHED,
        note: str | None = None,
    ) -> ReleaseProof:
        """Destroy everything named `name` and prove that none is left; never raises for remote faults."""
        own = self._creates.get(name)
        if own is not None and not own.sent and allocation_id is None:
            # Refused before any create, a key that may not even list is no reason to fear for a machine.
            proof = ReleaseProof("zero", 0, "nothing was asked of the provider but what can be rented")
        else:
            # What another process asked for, nobody knows who is not told.
            strange = doubt_until is None and (own is None or name in self._strange)
            if strange:
                self._strange.add(name)
            known = (own or Creates()).seen(filter(None, (allocation_id or "").split(",")))
            self._creates[name] = known.noted(note, doubt_until)
            proof = self._clear(name, waits, strange=strange)
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
        return tuple(
            each for each in found if each.name.casefold().startswith(prefix) and each.state != "gone"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.api.http.close()

    def __repr__(self) -> str:
        return f"<Cloud {self.api.kind}>"

    def _clear(
        self, name: str, waits: Waits, keep: str | None = None, *, strange: bool = False
    ) -> ReleaseProof:
        """One release. Where the last one ended with the key refused, it is not insisted a second time."""

        def found(machine_id: str) -> None:
            self._creates[name] = self._creates[name].seen([machine_id])
            waits.found(machine_id)
            waits.progress(f"{self.api.label}: a machine of this run has come to light; destroying it")

        released = cloud_release.Release(
            self.api,
            name,
            self._creates[name],
            lag_sec=self._lag_sec,
            strange_sec=self._doubt_sec if strange else None,
            keep=keep,
            insist=name not in self._key_refused,
            waits=replace(waits, found=found),
        ).run()
        self._creates[name] = released.creates
        (self._key_refused.add if released.key_refused else self._key_refused.discard)(name)
        return released.proof

    def _doubt_sec(self) -> float:
        """How long a create that was not answered may yet make a machine."""
        return min(self._config.doubt_sec, self.api.http.timing.doubt_sec)

    def _lag_sec(self) -> float:
        """How long lists, look-ups and refusals may be behind what they tell of."""
        return min(self._config.lag_sec, self.api.http.timing.lag_sec)

    def _alone(self, rental: Rental, machine: Machine) -> None:
        """A create that returned no id may have made a machine after all: see that none is beside this one.

        Until that is certain nothing is begun that pays: waiting costs minutes of this machine, a second one
        that nobody looks for would cost hours.
        """
        if not self._creates[rental.name].unclear_until:
            return
        if self._clear(rental.name, Waits(rental.progress), keep=machine.id).proof != "zero":
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
        """Create one machine, trying candidates in turn.

        At most one of ours exists at any moment, and besides as many as are in doubt and the cap holds for.
        """
        api = self.api
        try:
            candidates = api.candidates(rental, avoid)
        except ApiError as error:
            raise explain(api, "asking what can be rented", error) from None
        if candidates:
            self._look_before(rental)
        last: ApiError | None = None
        for candidate in candidates:
            try:
                return again(
                    functools.partial(self._create_once, rental, candidate),
                    lambda: replace(api.http.timing.retries(api.http.timing.creates), deadline=rental.latest),
                    api.http.clock,
                )
            except ApiError as error:
                last = error  # 400, 403 and the like: this candidate is out
                if error.status in (401, 402, 404, 422):
                    raise explain(api, "creating", error) from None
                if api.http.clock.monotonic() >= rental.latest:
                    break
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

    def _look_before(self, rental: Rental) -> None:
        """Note what the account holds before the first create, so that what comes later can be told from it.

        Where that cannot be read nothing is rented: its end could not be proven either.
        """
        creates = self._creates[rental.name]
        if creates.before is not None:
            return
        try:
            listed = self.api.machines()
        except ApiError as error:
            raise explain(self.api, "listing machines, before one is rented", error) from None
        before = cloud_release.before(listed, rental.name, self.api.http.clock.now())
        self._creates[rental.name] = replace(creates, before=before)

    def _create_once(self, rental: Rental, candidate: Candidate, _: int) -> Machine:
        """Send one create; return its machine, or one that an earlier create made although its answer said
        otherwise.

        Raises ApiError where none is to be seen, and ProviderError where that cannot be known.
        """
        api, name, clock = self.api, rental.name, self.api.http.clock
        late = self._room(rental)
        if late is not None:
            return late
        # Until its answer says otherwise, also when interrupted. Whoever listens writes it down first.
        self._creates[name] = self._creates[name].sending(clock.now(), self._doubt_sec())
        rental.progress(f"{api.label}: renting {rental.gpu} ({candidate.text})")
        try:
            machine = api.create(rental, candidate)
        except ApiError as error:
            failure = error
        else:
            made = self._creates[name].made(machine.id, clock.now(), self._lag_sec())
            if machine.id in made.ids:
                self._creates[name] = made
                rental.progress(f"{api.label}: created")
                return machine
            failure = ApiError(0, "an answer that names a machine which was there before")
        left = self._creates[name].seen(filter(None, [failure.created_id]))
        if failure.created_id in left.ids:
            # It exists, and nobody promised that it is whole, the only one or even labelled: it goes.
            self._creates[name] = left.unclear(clock.now(), self._lag_sec(), refused=True)
            rental.progress(f"{api.label}: {failure.message}; destroying what it made")
            if self._clear(name, Waits(rental.progress)).proof != "zero":
                raise ProviderError(f"{api.label}: a failed create left a machine", code=Code.OUTCOME_UNKNOWN)
            raise failure
        clear = refused(failure)
        seconds = self._lag_sec() if clear else self._doubt_sec()
        self._creates[name] = self._creates[name].unclear(clock.now(), seconds, refused=clear)
        rental.progress(f"{api.label}: no machine yet ({failure})")
        # After a refusal one look; what was not answered may well be there in a moment, and is adopted.
        adopted = self._adopt(rental, clock.now() + (0.0 if clear else api.http.timing.settle_sec), failure)
        if adopted is None:
            raise failure
        return adopted

    def _room(self, rental: Rental) -> Machine | None:
        """Wait until one more create may go out: beside doubtful ones only where the cap holds for all, and
        only so many of them are unanswered as `provider.max_doubts` says.

        Returns a machine that came to be meanwhile. Raises ProviderError where nobody can see.
        """
        creates, now = self._creates[rental.name], self.api.http.clock.now()
        beside = creates.open(now, "not", "refused")
        if not beside:
            return None
        if creates.open(now, "not") < self._config.max_doubts and rental.afford(beside):
            return None
        return self._adopt(rental, creates.unclear_until, None)

    def _adopt(self, rental: Rental, until: float, refusal: ApiError | None) -> Machine | None:
        """Look until then (Unix seconds), at least once, for what a create made whose answer was no id.

        Raises ProviderError when that cannot be read: then nothing more may be created.
        """
        api, timing, name, clock = self.api, self.api.http.timing, rental.name, self.api.http.clock
        alike = ""  # what was listed that may be ours: the next list may leave it out
        while True:
            at = clock.now()
            strange = ""
            try:
                listed = [each for each in api.machines() if each.state != "gone"]
                found = [each for each in listed if each.name == rental.label]
                if words := cloud_release.stranger(listed, name, self._creates[name]):
                    alike = words
                    self._creates[name] = replace(self._creates[name], strange_at=at)
                if alike and at < self._creates[name].strange_at + self._lag_sec():
                    strange = alike
                elif cloud_release.emptied(listed, self._creates[name]):
                    strange = cloud_release.EMPTIED
            except ApiError as unread:
                if refusal is not None and unread.status == refusal.status == 401:
                    raise explain(api, "creating", refusal) from None
                if at >= until or not unread.transient:
                    raise ProviderError(
                        f"{api.label}: whether a create happened cannot be read: {unread}",
                        code=Code.OUTCOME_UNKNOWN,
                    ) from None
                found = []  # the last look is the one that must go well
            found = [each for each in found if each.id not in self._creates[name].gone]
            if found:
                self._creates[name] = self._creates[name].seen(each.id for each in found)
                if len(found) == 1 and found[0].state != "failed":
                    rental.progress(f"{api.label}: the create went through after all; adopting its machine")
                    return found[0]
                rental.progress(f"{api.label}: destroying what creates made after all")
                if self._clear(name, Waits(rental.progress)).proof != "zero":
                    raise ProviderError(
                        f"{api.label}: a create made more than it should", code=Code.OUTCOME_UNKNOWN
                    )
                return None
            if at >= until and strange:
                raise ProviderError(f"{api.label}: {strange}", code=Code.OUTCOME_UNKNOWN)
            if at >= until:
                if refusal is None:
                    self._creates[name] = replace(self._creates[name], told=at)
                return None
            if refusal is None:
                left = round(until - at)
                rental.progress(
                    f"{api.label}: no further create goes out while one that was asked for may yet appear: "
                    f"waiting {left // 60} min {left % 60:02d} s more"
                )
            often = timing.watch_sec if refusal is None else min(timing.poll_sec, timing.settle_sec / 3)
            clock.sleep(min(often, until - at))

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


def first_cause(first: ProviderError, then: ProviderError) -> ProviderError:
    """What is told of a machine that failed, and of which no replacement was to be had."""
    what, code = f"{first.what}; and no other was to be had ({then.what})", first.code
    return ProviderError(what, code=code, remedy=first.remedy)


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
