"""Vast.ai over its REST API (https://console.vast.ai/api), without the vendor's SDK.

Facts the code rests on: an offer is searched (POST /v0/bundles/) and taken (PUT /v0/asks/{id}/); some error
replies to that name a contract all the same; the v0 list answers 410, so the v1 list is read page by page;
429 may be plain text without Retry-After; a bad key may be a 404 `auth_error`, which is not "gone".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

import httpx

from glasshouse import spec
from glasshouse.errors import UsageError
from glasshouse.providers import bootscript, money
from glasshouse.providers.clock import Clock
from glasshouse.providers.cloud import Cloud, open_cloud
from glasshouse.providers.cloud_api import (
    Address,
    Candidate,
    Machine,
    Rental,
    State,
    check_whole,
    count,
    stated,
)
from glasshouse.providers.cloud_http import ApiError, CloudHttp, Credential, Reply, Timing

KEY_VARIABLE: Final = "VAST_API_KEY"
MIN_RELIABILITY: Final = 0.98
MAX_CANDIDATES: Final = 5
PAGE: Final = 25  # the API's largest page
MAX_PAGES: Final = 200
_PAGING: Final = frozenset({"next_token", "total_instances", "instances_found"})
USER: Final = "root"
_STATES: Final[dict[str, State]] = {
    "": "assigning",
    "created": "assigning",
    "scheduling": "assigning",
    "loading": "starting",
    "rebooting": "starting",
    "running": "running",
    "exited": "failed",
    "unknown": "failed",
    "offline": "failed",
    "stopped": "failed",
    "frozen": "failed",
}
# secure: data centres that Vast.ai verified; verified: any verified host; community: anyone.
_TIERS: Final[dict[str, dict[str, Any]]] = {
    "secure": {"verified": {"eq": True}, "datacenter": {"eq": True}},
    "verified": {"verified": {"eq": True}},
    "community": {},
}


def open_vastai(
    config: spec.CloudProvider,
    *,
    environ: Mapping[str, str] | None = None,
    timing: Timing | None = None,
    clock: Clock | None = None,
    transport: httpx.BaseTransport | None = None,
) -> Cloud:
    """Open the provider; the key comes from VAST_API_KEY. Raises UsageError."""
    key = Credential(KEY_VARIABLE, environ)
    return open_cloud(
        VastApi, config, key, message_of=_message, timing=timing, clock=clock, transport=transport
    )


class VastApi:
    """`CloudApi` for Vast.ai."""

    kind = "vastai"
    label = "Vast.ai"
    console_page = "https://cloud.vast.ai/instances/"

    def __init__(self, config: spec.CloudProvider, http: CloudHttp) -> None:
        self._config = config
        self.http = http
        self._bids: dict[str, float] = {}

    def check(self) -> None:
        """Refuse what the API cannot express. Raises UsageError."""
        if self._config.tier not in _TIERS:
            raise UsageError(
                "not a tier of Vast.ai", field="provider.tier", value=self._config.tier,
                remedy=f"one of {', '.join(_TIERS)}",
            )  # fmt: skip

    def candidates(self, rental: Rental, avoid: frozenset[str]) -> list[Candidate]:
        """Offers, cheapest first. The filter is JSON, so nothing needs escaping; every answer is checked."""
        regions = [part.strip() for part in (self._config.region or "").split(",") if part.strip()]
        query: dict[str, Any] = {
            "type": "bid" if self._config.interruptible else "on-demand",
            "limit": 50,
            "order": [["dph_total", "asc"]],
            "allocated_storage": self._config.disk_gb,
            "rentable": {"eq": True},
            "rented": {"eq": False},
            "gpu_name": {"eq": rental.gpu},
            "num_gpus": {"eq": rental.run.gpu.count},
            "dph_total": {"lte": rental.ceiling},
            "disk_space": {"gte": self._config.disk_gb},
            "direct_port_count": {"gte": 1},
            "reliability2": {"gte": MIN_RELIABILITY},
            "duration": {"gte": money.rental_deadline_sec(rental.run)},
            **_TIERS[self._config.tier],
        }
        if regions:
            query["geolocation"] = {"in": regions}
        if avoid:
            query["machine_id"] = {"notin": sorted(int(machine) for machine in avoid if machine.isdigit())}
        listed = self._read("POST", "v0/bundles/", body=query).rows(
            "offers", "a search result without offers"
        )
        offers = [offer for offer in map(_Offer.read, listed) if offer is not None]
        found = sorted(
            (offer.usd_per_hour, str(offer.id))
            for offer in offers
            if offer.gpu == rental.gpu
            and offer.gpus == rental.run.gpu.count
            and 0 < offer.usd_per_hour <= rental.ceiling + 1e-6
            and str(offer.machine) not in avoid
        )
        self._bids = {offer: min(rental.ceiling, cost * 1.2) for cost, offer in found}
        return [Candidate(offer, f"{cost:.2f} USD an hour") for cost, offer in found[:MAX_CANDIDATES]]

    def create(self, rental: Rental, candidate: Candidate) -> Machine:
        """PUT /v0/asks/{id}/ once. `onstart` holds the throwaway host key: never print an instance."""
        dead_man = money.dead_man_sec(rental.run)
        body: dict[str, Any] = {
            "client_id": "me",
            "image": self._config.image,
            "disk": self._config.disk_gb,
            "label": rental.label,
            "env": {},
            "runtype": "ssh_direc ssh_proxy",
            "onstart": bootscript.vast_onstart(
                rental.keys, dead_man, self._config.base_url, self._config.python
            ),
            "cancel_unavail": True,  # rather an error now than a machine that waits for capacity
        }
        if self._config.interruptible:
            body["price"] = round(self._bids[candidate.id], 4)
        try:
            path = f"v0/asks/{quote(candidate.id, safe='')}/"
            answer = _Answer.read(self.http.send("PUT", path, body=body))
        except ApiError as error:
            raise _mapped(error, gone=400) from None  # an offer that is gone: try the next
        contract = answer.members.get("new_contract")
        if not isinstance(contract, int):
            raise ApiError(0, "a create without a contract")
        return Machine(
            id=str(contract),
            name=rental.label,
            state="assigning",
            said="",
            gpu=None,
            gpus=None,
            usd_per_hour=None,
            place=None,
        )

    def machines(self) -> list[Machine]:
        """GET /v1/instances/, every page. A page that repeats, or a count that does not fit, is an error."""
        found: dict[str, Machine] = {}
        token: str | None = None
        totals: list[object] = []  # as each page states them
        for _ in range(MAX_PAGES):
            params: dict[str, str | int] = {"limit": PAGE}
            if token is not None:
                params["after_token"] = token
            answer = self._read("GET", "v1/instances/", params=params)
            instances = answer.rows("instances", "a list without instances")
            page = {machine.id: machine for machine in map(self._machine, instances)}
            check_whole(answer.reply, len(found | page), followed=_PAGING)
            following = answer.members.get("next_token")
            if following and (not page.keys() - found.keys() or following == token):
                raise ApiError(0, "a list whose pages repeat")
            found |= page
            totals.append(answer.members.get("total_instances"))
            if not following:
                # On a single page, how many were found is how many there are.
                totals += [answer.members.get("instances_found")] if token is None else []
                total = max((stated for each in totals if (stated := count(each)) is not None), default=0)
                if total > len(found):
                    raise ApiError(0, f"a list with {len(found)} of {total} instances")
                return list(found.values())
            token = str(following)
        raise ApiError(0, "a list without end")

    def machine(self, machine_id: str) -> Machine | None:
        """GET /v0/instances/{id}/; 404 (not `auth_error`) or an empty answer: it does not exist."""
        try:
            members = self._read("GET", f"v0/instances/{quote(machine_id, safe='')}/").members
        except ApiError as error:
            if error.status == 404:
                return None
            raise
        if "instances" not in members:
            raise ApiError(0, "an answer without an instance")
        if members.get("errors"):
            raise ApiError(0, "an answer with errors")
        instance = members["instances"]
        if isinstance(instance, list):
            instance = instance[0] if instance else None
        return None if not instance else self._machine(instance)

    def destroy(self, machine_id: str) -> bool | None:
        """DELETE /v0/instances/{id}/ once."""
        try:
            _Answer.read(self.http.send("DELETE", f"v0/instances/{quote(machine_id, safe='')}/", body={}))
        except ApiError as error:
            mapped = _mapped(error, gone=error.status)
            if mapped.status not in (404, 410):
                raise mapped from None
            return False
        return True

    def log_fingerprints(self, machine_id: str) -> frozenset[str]:  # noqa: ARG002  the protocol's
        """None: Vast.ai's log is a file fetched from elsewhere, and its start prints no fingerprints."""
        return frozenset()

    def failure(self, machine: Machine) -> str:
        """`actual_status` and `status_msg` say why."""
        return machine.said

    def _read(
        self, method: str, path: str, *, body: Any = None, params: Mapping[str, str | int] | None = None
    ) -> _Answer:
        """Send what is harmless to repeat; a bad key comes out as 401, whatever it came in as."""
        try:
            return _Answer.read(self.http.read(method, path, body=body, params=params))
        except ApiError as error:
            raise _mapped(error, gone=error.status) from None

    def _machine(self, instance: object) -> Machine:
        """Read what we use of an instance; what could hide a machine of ours is an error, not a guess."""
        if not isinstance(instance, dict) or not isinstance(instance.get("id"), int):
            raise ApiError(0, "an instance without id")
        status, said = str(instance.get("actual_status") or ""), str(instance.get("status_msg") or "")
        state: State = _STATES.get(status, "starting")
        if state in ("assigning", "starting") and said.lower().startswith("error"):
            state = "failed"  # the container never starts, and the status does not say so
        label, gpu, gpus = instance.get("label"), instance.get("gpu_name"), instance.get("num_gpus")
        cost, place = instance.get("dph_total"), instance.get("machine_id")
        return Machine(
            id=str(instance["id"]),
            name=label if isinstance(label, str) else "",
            state=state,
            said=self.http.clean(stated([status or "provisioning", said])),
            gpu=gpu if isinstance(gpu, str) else None,
            gpus=gpus if isinstance(gpus, int) else None,
            usd_per_hour=float(cost) if isinstance(cost, int | float) else None,
            place=str(place) if isinstance(place, int) else None,
            addresses=_addresses(
                (instance.get("public_ipaddr"), instance.get("ports")),
                (instance.get("ssh_host"), instance.get("ssh_port")),
            ),
        )


def _addresses(direct: tuple[object, object], proxy: tuple[object, object]) -> tuple[Address, ...]:
    """The mapped port 22 first (host and ports), then the provider's SSH proxy, which passes TCP through."""
    found = []
    host, ports = direct
    mapped = ports.get("22/tcp") if isinstance(ports, dict) else None
    first = mapped[0] if isinstance(mapped, list) and mapped else None
    port = first.get("HostPort") if isinstance(first, dict) else None
    if isinstance(host, str) and host.strip() and str(port).isdecimal():
        found.append((host.strip(), int(str(port))))
    through, port = proxy
    if isinstance(through, str) and through and str(port).isdecimal():
        found.append((through, int(str(port))))
    return tuple(Address(host, port, USER) for host, port in found if 0 < port < 65536)


@dataclass(frozen=True)
class _Answer:
    """A 2xx answer: an object that does not say `success: false`, and the reply that it came in."""

    members: dict[str, Any]
    reply: Reply

    @classmethod
    def read(cls, reply: Reply) -> _Answer:
        """Read it. Raises ApiError for anything else, with the contract that a refusal may name."""
        body = reply.body
        if not isinstance(body, dict):
            raise ApiError(0, "an answer that is not an object")
        if body.get("success") is False:
            contract = body.get("new_contract")
            created = str(contract) if isinstance(contract, int) else None
            raise ApiError(400, _message(body), created_id=created)
        return cls(body, reply)

    def rows(self, name: str, without: str) -> list[object]:
        """The member that is a list; ApiError says what an answer `without` it is."""
        found = self.members.get(name)
        if not isinstance(found, list):
            raise ApiError(0, without)
        return found


@dataclass(frozen=True)
class _Offer:
    """One offer, as far as it decides; what is missing or of another type fits no rental."""

    id: int
    gpu: object
    gpus: object
    usd_per_hour: float
    machine: object

    @classmethod
    def read(cls, value: object) -> _Offer | None:
        """Read it; None for one without an id or a price."""
        if not isinstance(value, dict):
            return None
        number, cost = value.get("id"), value.get("dph_total")
        if not isinstance(number, int) or not isinstance(cost, int | float):
            return None
        return cls(number, value.get("gpu_name"), value.get("num_gpus"), float(cost), value.get("machine_id"))


def _mapped(error: ApiError, *, gone: int) -> ApiError:
    """Sort out Vast.ai's 404 and 410: a bad key becomes 401, anything else the status `gone`."""
    if error.status not in (404, 410):
        return error
    status = 401 if "auth_error" in error.message else gone
    return ApiError(status, error.message, retry_after=error.retry_after, created_id=error.created_id)


def _message(body: Any) -> str:
    """`error` and `msg` (some answers have `message`); endpoints leave out either."""
    if not isinstance(body, dict):
        return str(body or "")
    return stated([body.get("error"), body.get("msg") or body.get("message")])
