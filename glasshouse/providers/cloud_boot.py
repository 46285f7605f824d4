"""From created to reachable: phase deadlines, failed states, GPU and price as asked, the host key.

Everything here raises a ProviderError with a reason code (cloud_api.CODES) and the provider's own words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from glasshouse import spec
from glasshouse.codes import Code
from glasshouse.errors import ProviderError
from glasshouse.providers import hostkeys
from glasshouse.providers.base import Endpoint, HostKey, HostKeySource
from glasshouse.providers.cloud_api import Address, CloudApi, Machine, Rental, explain
from glasshouse.providers.cloud_http import ApiError

WORKDIR: Final = ".glasshouse"  # under the login's home
SSH_SHARE: Final = 0.35  # of the boot deadline: running, but no SSH by then, never gets one
ASSIGN_SHARE: Final = 0.5  # of the boot deadline: no machine assigned by then
UNREAD_SHARE: Final = 0.25  # of the boot deadline: what was read before that says nothing of the end


def boot(
    api: CloudApi, machine: Machine, rental: Rental, config: spec.CloudProvider
) -> tuple[Machine, Endpoint]:
    """Wait until the machine runs and its SSH server shows a key; return it with its endpoint."""
    deadline = config.boot_deadline_sec
    clock = api.http.clock
    begun, said = clock.monotonic(), ""
    there = seen = begun  # when it was last shown, or could not be read; when its state was last read
    running_since: float | None = None
    while True:
        found = _look(api, machine)
        now = clock.monotonic()
        waited = now - begun
        there = there if found is None else now
        seen = seen if found is machine else now
        if now - there > api.http.timing.missing_sec:
            raise ProviderError(f"{api.label}: the machine vanished while it booted", code=Code.BOOT_FAILED)
        if found is not None:
            machine = found
            said = machine.said
            # At each look: whoever listens may have to end the wait.
            rental.progress(f"{api.label}: {said or machine.state} after {waited:.0f} s")
            as_asked(api, machine, rental)
            if machine.state == "running":
                running_since = running_since if running_since is not None else waited
                if machine.addresses:
                    left = min(deadline * SSH_SHARE, max(deadline - waited, deadline * 0.1))
                    return machine, reach(api, machine, rental, config, left)
                if waited - running_since > deadline * SSH_SHARE:
                    raise ProviderError(
                        f"{api.label}: runs, but has no address for SSH", code=Code.SSH_UNREACHABLE
                    )
        if waited > deadline or (machine.state == "assigning" and waited > deadline * ASSIGN_SHARE):
            if begun + waited - seen > deadline * UNREAD_SHARE:
                raise ProviderError(
                    f"{api.label}: the machine's state could not be read for {begun + waited - seen:.0f} s, "
                    f"after {said or machine.state}",
                    code=Code.PROVIDER_UNAVAILABLE,
                )
            raise ProviderError(
                f"{api.label}: still {said or machine.state} after {waited:.0f} s",
                code=Code.BOOT_TIMEOUT,
                remedy="try again, or raise provider.boot_deadline_sec",
            )
        clock.sleep(api.http.timing.poll_sec)


def _look(api: CloudApi, machine: Machine) -> Machine | None:
    """Read the machine's state; unreadable for now counts as unchanged, since the deadline still runs."""
    try:
        found = api.machine(machine.id)
    except ApiError as error:
        if not error.transient:
            raise explain(api, "reading the machine's state", error) from None
        return machine
    if found is not None and found.state in ("failed", "gone"):
        raise ProviderError(f"{api.label}: {api.failure(found)}", code=Code.BOOT_FAILED)
    return found


def as_asked(api: CloudApi, machine: Machine, rental: Rental) -> None:
    """The GPU is exactly the one asked for (MIG slices share prefixes), and not dearer than accepted."""
    count = rental.run.gpu.count
    if machine.gpu is None and machine.state == "running":
        raise ProviderError(f"{api.label}: does not say which GPU runs", code=Code.GPU_MISMATCH)
    if machine.gpu is not None and (machine.gpu, machine.gpus) != (rental.gpu, count):
        raise ProviderError(
            f"{api.label}: got {machine.gpus} x {machine.gpu}, asked for {count} x {rental.gpu}",
            code=Code.GPU_MISMATCH,
        )
    if machine.usd_per_hour is not None and machine.usd_per_hour > rental.ceiling + 1e-6:
        raise ProviderError(
            f"{api.label}: costs {machine.usd_per_hour:.2f} USD an hour, accepted are {rental.ceiling:.2f}",
            code=Code.PRICE_ABOVE_CEILING,
            remedy="raise gpu.max_usd_per_hour if that is fine",
        )


@dataclass(frozen=True)
class _Shown:
    address: Address
    key: str


def reach(
    api: CloudApi, machine: Machine, rental: Rental, config: spec.CloudProvider, limit: float
) -> Endpoint:
    """Find an address that answers within `limit` seconds, and where trust in its host key comes from.

    In this order: the key that we made; a fingerprint in the provider's log; first use, only
    when no log vouches for any key. A log that vouches for another key is never overruled.
    """
    timing, clock = api.http.timing, api.http.clock
    begun = clock.monotonic()
    first_seen: float | None = None
    vouched: frozenset[str] = frozenset()
    while True:
        shown: list[_Shown] = []
        for address in machine.addresses:
            key = hostkeys.shown_host_key(address.host, address.port, min(10.0, limit))
            if key == rental.keys.host_public:
                return _endpoint(_Shown(address, key), "created", rental, config)
            if key is not None:
                shown.append(_Shown(address, key))
        now = clock.monotonic()
        if shown:
            first_seen = first_seen or now
            vouched = vouched or _fingerprints(api, machine.id)
            for each in shown:
                if hostkeys.fingerprint(each.key) in vouched:
                    return _endpoint(each, "provider-log", rental, config)
            if not vouched and now - first_seen > min(timing.key_grace_sec, limit * 0.8):
                return _endpoint(shown[0], "first-use", rental, config)
        if now - begun > limit:
            if not shown:
                raise ProviderError(
                    f"{api.label}: runs, but no SSH server answers", code=Code.SSH_UNREACHABLE
                )
            raise ProviderError(
                f"{api.label}: SSH shows the key {hostkeys.fingerprint(shown[0].key)}, "
                "which is neither ours nor in the machine's log",
                code=Code.HOST_KEY_MISMATCH,
            )
        rental.progress(f"{api.label}: runs; waiting for its SSH server")
        clock.sleep(min(timing.poll_sec, 2.0))
        found = _look(api, machine)  # a container that exits while SSH is awaited never gets one
        machine = found if found is not None and found.addresses else machine


def _fingerprints(api: CloudApi, machine_id: str) -> frozenset[str]:
    try:
        return api.log_fingerprints(machine_id)
    except ApiError:
        return frozenset()


def _endpoint(shown: _Shown, source: HostKeySource, rental: Rental, config: spec.CloudProvider) -> Endpoint:
    address = shown.address
    where = address.host if address.port == 22 else f"[{address.host}]:{address.port}"
    return Endpoint(
        host=address.host,
        port=address.port,
        user=address.user,
        key_path=rental.keys.client_path,
        host_key=HostKey(source, (f"{where} {shown.key}",)),
        python=config.python,
        workdir=WORKDIR,
    )
