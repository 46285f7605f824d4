"""A fake of Vast.ai's API: offers, contracts, the paged v1 list, the retired v0 list."""

from __future__ import annotations

import operator
import secrets
import shlex
from collections.abc import Callable
from typing import Any, Final

from glasshouse.providers.fakes.faults import FaultPlan
from glasshouse.providers.fakes.server import FakeServer
from glasshouse.providers.fakes.service import STALL_SEC, VAST_PREFIX, Answer, FakeService, Request
from glasshouse.providers.fakes.state import FakeCloud, FakePod, Sold, part_of

GPUS: Final = {
    "H100 SXM": Sold(2.1, "NVIDIA H100 80GB HBM3", 80),
    "H200": Sold(2.9, "NVIDIA H200", 141),
    "RTX PRO 6000 S": Sold(1.1, "NVIDIA RTX PRO 6000 Blackwell Server Edition", 96),
    "RTX A4000": Sold(0.12, "NVIDIA RTX A4000", 16),
    "RTX 4090": Sold(0.35, "NVIDIA GeForce RTX 4090", 24),
    "RTX 3090": Sold(0.18, "NVIDIA GeForce RTX 3090", 24),
}
HOSTS: Final = tuple(range(101, 109))
_STATUS: Final[dict[str, str | None]] = {
    "assigning": None,
    "starting": "loading",
    "running": "running",
    "exited": "exited",
    "error": "loading",  # Vast.ai keeps saying loading; only status_msg tells
}
_REFUSALS: Final = {
    402: ("insufficient_credit", "Your account lacks credit"),
    404: ("no_such_instance", "Instance not found"),
    410: ("gone", "this endpoint has been retired"),
}
_OPERATORS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "eq": operator.eq,
    "neq": operator.ne,
    "lt": operator.lt,
    "lte": operator.le,
    "gt": operator.gt,
    "gte": operator.ge,
    "in": lambda value, options: value in options,
    "notin": lambda value, options: value not in options,
}
_NOT_FILTERS: Final = {"type", "limit", "order", "allocated_storage"}


def failure(status: int, error: str, msg: str, **extra: Any) -> Answer:
    """Vast.ai's usual error document."""
    return Answer(status, {"success": False, "error": error, "msg": msg, **extra})


class FakeVast:
    """`FakeApi` for Vast.ai. `page_size` caps the list's pages, so that a few machines need several."""

    prefix = VAST_PREFIX
    error_type = "application/json"

    def __init__(self, cloud: FakeCloud, page_size: int = 2) -> None:
        self.cloud = cloud
        self._page_size = page_size

    def refuse(self, status: int) -> Answer:
        """An error document."""
        return failure(status, *_REFUSALS[status])

    def refuse_key(self) -> Answer:
        """A bad key is a 404 here."""
        return failure(404, "auth_error", "Invalid user key")

    def route(self, request: Request) -> Answer:
        """Find the operation."""
        parts = request.path.strip("/").split("/")
        match (request.method, *parts):
            case ("POST", "v0", "bundles"):
                return self._search(request.body)
            case ("PUT", "v0", "asks", ask):
                return self._create(ask, request)
            case ("GET", "v0", "instances"):
                return self.refuse(410)
            case ("GET", "v1", "instances"):
                return self._list(request)
            case ("GET", "v0", "instances", number):
                pod = self.cloud.looked_up(number)
                return self.refuse(404) if pod is None else Answer(200, {"instances": self._instance(pod)})
            case ("DELETE", "v0", "instances", number):
                return self._delete(number)
        return Answer(404, text="Not Found")

    def _offers(self) -> list[dict[str, Any]]:
        return [
            {
                "id": 5000 + 10 * kind + rank,
                "machine_id": host,
                "gpu_name": name,
                "num_gpus": 1,
                "dph_total": self.cloud.price(sold.usd * (1 + rank / 20)),
                "rentable": True,
                "rented": False,
                "verified": True,
                "datacenter": True,
                "direct_port_count": 16,
                "reliability2": 0.995,
                "duration": 30 * 86400.0,
                "disk_space": 500.0,
                "geolocation": "US",
            }
            for kind, (name, sold) in enumerate(GPUS.items())
            for rank, host in enumerate(HOSTS)
        ]

    def _taken(self) -> set[int]:
        """Offers whose machine is rented now; a destroyed contract puts its offer back."""
        return {pod.facts["offer"] for pod in self.cloud.living() if pod.facts.get("offer")}

    def _search(self, body: Any) -> Answer:
        if not isinstance(body, dict):
            return failure(400, "invalid_args", "not an object")
        taken = self._taken()
        found = []
        for offer in self._offers():
            if offer["id"] in taken:
                continue
            for name, tests in body.items():
                if name in _NOT_FILTERS:
                    continue
                if name not in offer or not isinstance(tests, dict):
                    return failure(400, "invalid_args", f"unknown filter {name}")
                if not all(_OPERATORS[test](offer[name], value) for test, value in tests.items()):
                    break
            else:
                found.append(offer)
        return Answer(200, {"success": True, "offers": found[: int(body.get("limit", 100))]})

    def _create(self, ask: str, request: Request) -> Answer:
        body = request.body
        take = self.cloud.take
        refusals = {
            "create-timeout": Answer(0, cut=True, delay=STALL_SEC),
            "create-5xx": Answer(500, text="Internal Server Error"),
            "create-429": Answer(429, text="API requests too frequent: endpoint threshold=4.0"),
            "create-429-wait": Answer(429, text="API requests too frequent", headers={"Retry-After": "1"}),
            "create-capacity": failure(410, "no_such_ask", f"Instance type by id {ask} is not available"),
            "create-forbidden": failure(403, "forbidden", "not allowed on this host"),
            "create-balance": self.refuse(402),
            "create-invalid": failure(422, "invalid_args", "disk too small"),
        }
        for kind, refusal in refusals.items():
            if take(kind):
                return refusal
        offer = next((each for each in self._offers() if str(each["id"]) == ask), None)
        if offer is None or offer["id"] in self._taken():
            return failure(404, "no_such_ask", f"Instance type by id {ask} is not available")
        if (
            not isinstance(body, dict)
            or not body.get("image")
            or not isinstance(body.get("disk"), int | float)
        ):
            return failure(400, "invalid_args", "image and disk are required")
        if len(str(body.get("onstart") or "")) + len(str(body.get("args") or "")) > 4096:
            return failure(400, "invalid_args", "onstart and args are longer than 4096 characters")
        number, broken = 30_000_000 + secrets.randbelow(1_000_000), take("create-contract")
        sold = GPUS[offer["gpu_name"]]
        pod = self.cloud.create(
            str(number),
            # A contract out of an error is not even labelled.
            "" if broken else str(body.get("label") or ""),
            gpu=offer["gpu_name"],
            gpus=1,
            usd=offer["dph_total"],
            place=str(offer["machine_id"]),
            device=sold.device,
            command=shlex.join(["bash", "-c", str(body.get("onstart") or "true")]),
            env={"CONTAINER_ID": str(number), "CONTAINER_API_KEY": self.container_key},
            facts={"body": body, "offer": None if broken else offer["id"]},
            late=request.late,
        )
        if broken:
            return failure(400, "error", "could not start the container", new_contract=number)
        if take("create-timeout-created"):
            return Answer(0, cut=True, delay=STALL_SEC, made=pod)
        if take("create-5xx-created"):
            return Answer(502, text="<html>bad gateway</html>")
        if self.cloud.shows_late(pod):
            return Answer(504, text="upstream request timeout")
        if take("create-garbage-created"):
            return Answer(200, text='{"success": tr')
        return Answer(200, {"success": True, "new_contract": number}, made=pod)

    container_key = "unset"

    def _list(self, request: Request) -> Answer:
        if self.cloud.take("list-410"):
            return self.refuse(410)
        pods, more_said, headers = part_of(self.cloud, self.cloud.listed())
        limit = min(int(request.query.get("limit", 25)), self._page_size)
        begin = int(request.query.get("after_token") or 0)
        total = len({pod.id for pod in pods})
        if self.cloud.take("list-short"):
            pods = pods[:0]
        if self.cloud.take("list-repeats"):
            page, following = pods[:limit], str(begin + limit)
        else:
            page = pods[begin : begin + limit]
            more = begin + limit < len(pods) or (begin < len(pods) and self.cloud.take("list-cursor"))
            following = str(begin + limit) if more else ""
        return Answer(
            200,
            {
                "success": True,
                "instances_found": len(page),
                "total_instances": total,
                "next_token": following or None,
                "instances": [self._instance(pod) for pod in page],
                **more_said,
            },
            headers=headers,
        )

    def _delete(self, number: str) -> Answer:
        if self.cloud.take("delete-5xx"):
            return Answer(500, text="Internal Server Error")
        if not self.cloud.destroy(number):
            return self.refuse(404)
        if self.cloud.take("delete-drop"):
            return Answer(0, cut=True)
        return Answer(200, {"success": True})

    def _instance(self, pod: FakePod) -> dict[str, Any]:
        port = pod.container.port if pod.container is not None and pod.phase == "running" else 0
        mapped = pod.phase == "running" and not pod.foreign and not pod.facts.get("unmapped")
        return {
            "id": int(pod.id),
            "label": pod.name or None,
            "actual_status": _STATUS[pod.phase],
            "intended_status": "stopped" if pod.facts.get("outbid") else "running",
            "cur_state": "stopped" if pod.facts.get("outbid") else "running",
            "status_msg": pod.message or None,
            "gpu_name": pod.gpu,
            "num_gpus": pod.gpus,
            "dph_total": self.cloud.price(pod.usd),
            "machine_id": int(pod.place) if pod.place.isdigit() else 1,
            "onstart": pod.facts.get("body", {}).get("onstart"),
            # Vast.ai maps the port at once; the first address is wrong here, as it is at hosts behind a NAT.
            "public_ipaddr": "127.0.0.1" if mapped else None,
            "ports": {"22/tcp": [{"HostIp": "0.0.0.0", "HostPort": "9"}]} if mapped else None,  # noqa: S104  data
            "ssh_host": None if pod.facts.get("unmapped") else "127.0.0.1",
            "ssh_port": port or 9,
        }


def serve_vastai(
    *, faults: FaultPlan | None = None, boot_sec: float = 0.3, key: str | None = None, port: int = 0,
    page_size: int = 2,
) -> FakeServer:  # fmt: skip
    """Start a fake Vast.ai; use it as a context manager, or close it."""
    api = FakeVast(FakeCloud(faults=faults, boot_sec=boot_sec), page_size)
    service = FakeService(api, key)
    api.container_key = service.key
    return FakeServer(service, port=port)
