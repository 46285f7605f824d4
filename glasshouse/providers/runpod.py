"""RunPod over its REST API v2 (https://api.runpod.io/v2, OpenAPI 3.1), without the vendor's SDK.

Facts the code rests on: the list has no name filter and no pages; `ssh.direct` is null until port 22 is
mapped; `cost` is 0.0 for a stopped pod although its disk bills, so it proves nothing; there is no idempotency
key and no machine id, so a replacement avoids the data centre. `args` replaces the image's start command
(bootscript.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

import httpx

from glasshouse import spec
from glasshouse.codes import Code
from glasshouse.errors import ProviderError, UsageError
from glasshouse.providers import bootscript, money
from glasshouse.providers.clock import Clock
from glasshouse.providers.cloud import Cloud, open_cloud
from glasshouse.providers.cloud_api import Address, Candidate, Machine, Rental, State, check_whole, stated
from glasshouse.providers.cloud_http import ApiError, CloudHttp, Credential, Timing

KEY_VARIABLE: Final = "RUNPOD_API_KEY"
_STATES: Final[dict[str, State]] = {
    "PROVISIONING": "assigning",
    "STARTING": "starting",
    "RUNNING": "running",
    "EXITED": "failed",  # a pod that stops while it should boot never runs by itself; its disk bills on
    "ERROR": "failed",
    "TERMINATED": "gone",
}
_TIERS: Final = {"secure": "SECURE", "community": "COMMUNITY"}
_STOCK: Final = ("HIGH", "MEDIUM", "LOW")
_FINGERPRINT: Final = re.compile(r"SHA256:[A-Za-z0-9+/]{43}(?![A-Za-z0-9+/])")


def open_runpod(
    config: spec.CloudProvider,
    *,
    environ: Mapping[str, str] | None = None,
    timing: Timing | None = None,
    clock: Clock | None = None,
    transport: httpx.BaseTransport | None = None,
) -> Cloud:
    """Open the provider; the key comes from RUNPOD_API_KEY. Raises UsageError."""
    key = Credential(KEY_VARIABLE, environ)
    return open_cloud(
        RunPodApi, config, key, message_of=_message, timing=timing, clock=clock, transport=transport
    )


class RunPodApi:
    """`CloudApi` for RunPod."""

    kind = "runpod"
    label = "RunPod"
    console_page = "https://console.runpod.io/pods"

    def __init__(self, config: spec.CloudProvider, http: CloudHttp) -> None:
        self._config = config
        self.http = http

    def check(self) -> None:
        """Refuse what the API cannot express. Raises UsageError."""
        if self._config.interruptible:
            raise UsageError(
                "RunPod's API v2 has no interruptible pods", field="provider.interruptible", value=True,
                remedy="use provider=vastai, or leave it out",
            )  # fmt: skip
        if self._config.tier not in _TIERS:
            raise UsageError(
                "not a tier of RunPod", field="provider.tier", value=self._config.tier,
                remedy=f"one of {', '.join(_TIERS)}",
            )  # fmt: skip

    def candidates(self, rental: Rental, avoid: frozenset[str]) -> list[Candidate]:
        """Data centres to try; "" leaves it to the scheduler, when none is asked for and none to be avoided.

        The catalogue orders and prices but reserves nothing: an unreadable one does not stop a first attempt.
        """
        count = rental.run.gpu.count
        regions = [part.strip() for part in (self._config.region or "").split(",") if part.strip()]
        try:
            centres, usd = self._listed(rental.gpu, count)
        except ApiError as error:
            if not error.transient:
                raise
            centres = ()
        else:
            if usd is not None and usd * count > rental.ceiling + 1e-6:
                raise ProviderError(
                    f"RunPod lists {rental.gpu} at {usd * count:.2f} USD an hour, "
                    f"accepted are {rental.ceiling:.2f}",
                    code=Code.PRICE_ABOVE_CEILING,
                    remedy="raise gpu.max_usd_per_hour if that is fine",
                )
        if not regions and avoid:
            regions = list(centres)
        elif not regions:
            return [Candidate("", "any data centre")]
        return [Candidate(region, region) for region in regions if region not in avoid]

    def _listed(self, gpu: str, count: int) -> tuple[tuple[str, ...], float | None]:
        """Data centres that have this GPU, those with most of it first, and its price in USD an hour."""
        params: dict[str, str | int] = {
            "include": "AVAILABILITY",
            "product": "POD",
            "count": count,
            "cloud": _TIERS[self._config.tier],
        }
        body = self.http.read("GET", "catalog/gpus", params=params).body
        gpus = body.get("gpus") if isinstance(body, dict) else None
        if not isinstance(gpus, list):
            raise ApiError(0, "a catalogue without gpus")
        for entry in gpus:
            if isinstance(entry, dict) and entry.get("id") == gpu:
                price, places = entry.get("price"), entry.get("dataCenters")
                usd = price.get(self._config.tier) if isinstance(price, dict) else None
                stock = [
                    each for each in (places if isinstance(places, list) else []) if isinstance(each, dict)
                ]
                stock = [each for each in stock if each.get("availability") in _STOCK]
                stock.sort(key=lambda each: _STOCK.index(each["availability"]))
                centres = tuple(str(each.get("id")) for each in stock)
                return centres, usd if isinstance(usd, int | float) else None
        raise ProviderError(
            f"RunPod's catalogue has no GPU called exactly {gpu}",
            code=Code.GPU_UNKNOWN,
            remedy="check gpu.provider_names.runpod",
        )

    def create(self, rental: Rental, candidate: Candidate) -> Machine:
        """POST /pods once. The pod's environment holds the throwaway host key: never print a pod."""
        body: dict[str, Any] = {
            "name": rental.label,
            "image": self._config.image,
            "gpu": {"id": rental.gpu, "count": rental.run.gpu.count},
            "cloud": _TIERS[self._config.tier],
            "disk": self._config.disk_gb,
            "ports": ["22/tcp"],
            "startSsh": True,
            "args": bootscript.runpod_start(money.dead_man_sec(rental.run)),
            "env": {
                "PUBLIC_KEY": rental.keys.client_public,
                "GLASSHOUSE_HOST_KEY": rental.keys.host_private_b64,
                "GLASSHOUSE_HOST_PUBLIC": rental.keys.host_public,
            },
        }
        if candidate.id:
            body["dataCenterIds"] = [candidate.id]
        return self._machine(self.http.send("POST", "pods", body=body).body)

    def machines(self) -> list[Machine]:
        """GET /pods. Members of clusters are asked for too: they count in the account's total."""
        reply = self.http.read("GET", "pods", params={"includeClusterPods": "true"})
        pods = reply.body.get("pods") if isinstance(reply.body, dict) else None
        if not isinstance(pods, list):
            raise ApiError(0, "a list without pods")
        check_whole(reply, len(pods))
        return [self._machine(pod) for pod in pods]

    def machine(self, machine_id: str) -> Machine | None:
        """GET /pods/{id}; 404 means that it does not exist."""
        try:
            return self._machine(self.http.read("GET", f"pods/{quote(machine_id, safe='')}").body)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def destroy(self, machine_id: str) -> bool | None:
        """DELETE /pods/{id} once. The document knows one answer that accepts it, 204: no other says so."""
        try:
            return self.http.send("DELETE", f"pods/{quote(machine_id, safe='')}").status == 204 or None
        except ApiError as error:
            if error.status not in (404, 410):
                raise
            return False

    def log_fingerprints(self, machine_id: str) -> frozenset[str]:
        """GET /pods/{id}/logs: the fingerprints that the start script printed in the container's log."""
        return frozenset(_FINGERPRINT.findall("\n".join(self._log(machine_id, "container", 1000))))

    def failure(self, machine: Machine) -> str:
        """The state, and the last lines of the pod's system log."""
        try:
            tail = self._log(machine.id, "system", 20)[-2:]
        except ApiError:
            tail = []
        return self.http.clean(stated([machine.said, *tail]))

    def _log(self, machine_id: str, source: str, tail: int) -> list[str]:
        path = f"pods/{quote(machine_id, safe='')}/logs"
        lines = []
        for line in self.http.stream_lines(path, {"source": source, "tail": tail}):
            if not line.startswith("data:"):
                continue
            try:
                event = json.loads(line[5:])
            except (ValueError, RecursionError):
                continue
            if isinstance(event, dict) and isinstance(event.get("line"), str):
                lines.append(event["line"])
        return lines

    def _machine(self, pod: object) -> Machine:
        """Read what we use of a pod; anything that could hide a machine of ours is an error, not a guess."""
        if (
            not isinstance(pod, dict)
            or not isinstance(pod.get("id"), str)
            or not isinstance(pod.get("name"), str)
        ):
            raise ApiError(0, "a pod without id and name")
        status = str(pod.get("status"))
        found = pod.get("gpu")
        gpu: dict[str, Any] = found if isinstance(found, dict) else {}
        cost, place = pod.get("cost"), pod.get("dataCenterId")
        return Machine(
            id=pod["id"],
            name=pod["name"],
            state=_STATES.get(status, "starting"),  # an unknown state counts as one that bills
            said=self.http.clean(status, 40),
            gpu=gpu.get("id") if isinstance(gpu.get("id"), str) else None,
            gpus=gpu.get("count", 1) if isinstance(gpu.get("count", 1), int) else None,
            usd_per_hour=float(cost) if isinstance(cost, int | float) else None,
            place=place if isinstance(place, str) else None,
            addresses=_direct(pod.get("ssh")),
        )


def _direct(ssh: object) -> tuple[Address, ...]:
    """The mapped port 22. The proxy is no way in: it forwards no ports and has no file transfer."""
    direct = ssh.get("direct") if isinstance(ssh, dict) else None
    if not isinstance(direct, dict):
        return ()
    host, port, user = direct.get("host"), direct.get("port"), direct.get("username")
    if (
        not isinstance(host, str)
        or not isinstance(port, int)
        or not isinstance(user, str)
        or not 0 < port < 65536
    ):
        return ()
    return (Address(host, port, user),)


def _message(body: Any) -> str:
    """The words in a problem document (RFC 9457): `detail`, and each of `errors`."""
    if not isinstance(body, dict):
        return str(body or "")
    errors = body.get("errors")
    return stated([body.get("detail") or body.get("title"), *(errors if isinstance(errors, list) else [])])
