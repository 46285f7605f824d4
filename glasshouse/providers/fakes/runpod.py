"""A fake of RunPod's REST API v2: catalogue, pods, logs. Tests hold it against the OpenAPI document."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from glasshouse.providers.fakes.faults import FaultPlan
from glasshouse.providers.fakes.server import FakeServer
from glasshouse.providers.fakes.service import RUNPOD_PREFIX, STALL_SEC, Answer, FakeService, Request
from glasshouse.providers.fakes.state import FakeCloud, FakePod, Sold, part_of

GPUS: Final = {
    "NVIDIA H100 80GB HBM3": Sold(2.99, "NVIDIA H100 80GB HBM3", 80),
    "NVIDIA H100 PCIe": Sold(2.39, "NVIDIA H100 PCIe", 80),
    "NVIDIA H200": Sold(3.99, "NVIDIA H200", 141),
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": Sold(
        1.79, "NVIDIA RTX PRO 6000 Blackwell Server Edition", 96
    ),
    "NVIDIA RTX A4000": Sold(0.25, "NVIDIA RTX A4000", 16),
    "NVIDIA GeForce RTX 4090": Sold(0.69, "NVIDIA GeForce RTX 4090", 24),
    "NVIDIA GeForce RTX 3090": Sold(0.46, "NVIDIA GeForce RTX 3090", 24),
}
PLACES: Final = ("FAKE-A-1", "FAKE-B-1")
_STATUS: Final = {
    "assigning": "PROVISIONING",
    "starting": "STARTING",
    "running": "RUNNING",
    "exited": "EXITED",
    "error": "ERROR",
}
_REFUSALS: Final = {
    402: ("Payment Required", "insufficient balance"),
    404: ("Not Found", "pod not found"),
    410: ("Gone", "this endpoint has been retired"),
}
_FIELDS: Final = {
    "name", "image", "gpu", "cpu", "cloud", "disk", "mounts", "ports", "env", "startSsh", "startJupyter",
    "templateId", "dataCenterIds", "args", "registry", "globalNetworking",
}  # fmt: skip


def problem(status: int, title: str, detail: str, **extra: Any) -> Answer:
    """A problem document (RFC 9457)."""
    return Answer(status, {"title": title, "status": status, "detail": detail, **extra})


class FakeRunPod:
    """`FakeApi` for RunPod."""

    prefix = RUNPOD_PREFIX
    error_type = "application/problem+json"

    def __init__(self, cloud: FakeCloud) -> None:
        self.cloud = cloud

    def refuse(self, status: int) -> Answer:
        """A problem document."""
        title, detail = _REFUSALS[status]
        return problem(status, title, detail)

    def refuse_key(self) -> Answer:
        """401, as documented."""
        return problem(401, "Unauthorized", "invalid bearer token")

    def route(self, request: Request) -> Answer:
        """Find the operation."""
        parts = request.path.strip("/").split("/")
        match (request.method, *parts):
            case ("GET", "catalog", "gpus"):
                return self._catalog(request)
            case ("GET", "pods"):
                return self._list()
            case ("POST", "pods"):
                return self._create(request)
            case ("GET", "pods", pod_id):
                return self._look_up(pod_id)
            case ("DELETE", "pods", pod_id):
                return self._delete(pod_id)
            case ("GET", "pods", pod_id, "logs"):
                return self._with(pod_id, lambda pod: self._logs(pod, request.query.get("source")))
        return problem(404, "Not Found", "no such operation")

    def _with(self, pod_id: str, then: Callable[[FakePod], Answer]) -> Answer:
        pod = self.cloud.get(pod_id)
        return then(pod) if pod is not None else self.refuse(404)

    def _look_up(self, pod_id: str) -> Answer:
        pod = self.cloud.looked_up(pod_id)
        return Answer(200, self._pod(pod)) if pod is not None else self.refuse(404)

    def _catalog(self, request: Request) -> Answer:
        if "include" in request.query and "product" not in request.query:
            return problem(400, "Bad Request", "include=AVAILABILITY requires product")
        gpus = [
            {
                "id": name,
                "name": name.removeprefix("NVIDIA "),
                "pool": None,
                "manufacturer": "NVIDIA",
                "memory": sold.memory_gb,
                "secure": True,
                "community": True,
                "price": {
                    "secure": self.cloud.price(sold.usd),
                    "community": self.cloud.price(round(sold.usd * 0.8, 2)),
                },
                "maxCount": {"secure": 8, "community": 4},
                "availability": "HIGH",
                "dataCenters": [
                    {"id": place, "name": f"Simulated {place}", "availability": level}
                    for place, level in zip(PLACES, ("HIGH", "LOW"), strict=True)
                ],
            }
            for name, sold in GPUS.items()
        ]
        return Answer(200, {"gpus": gpus})

    def _list(self) -> Answer:
        if self.cloud.take("list-410"):
            return self.refuse(410)
        listed, more, headers = part_of(self.cloud, self.cloud.listed())
        pods = [self._pod(pod) for pod in listed]
        if self.cloud.take("list-cursor"):  # the API documents no pages
            pods, more = pods[: len(pods) // 2], {**more, "nextCursor": "b2Zmc2V0OjI1"}
        return Answer(200, {"pods": pods, **more}, headers=headers)

    def _create(self, request: Request) -> Answer:
        body = request.body
        take = self.cloud.take
        refusals = {
            "create-timeout": Answer(0, cut=True, delay=STALL_SEC),
            "create-5xx": Answer(500, text="Internal Server Error"),
            "create-429": Answer(429, text="too many requests"),
            "create-429-wait": Answer(
                429,
                {"title": "Too Many Requests", "status": 429, "detail": "rate limit exceeded"},
                headers={"Retry-After": "1"},
            ),
            "create-capacity": problem(400, "Bad Request", "There are no instances currently available"),
            "create-forbidden": problem(403, "Forbidden", "access denied"),
            "create-balance": self.refuse(402),
            "create-invalid": problem(
                422, "Unprocessable Entity", "validation failed", errors=["$.disk: too small"]
            ),
        }
        for kind, refusal in refusals.items():
            if take(kind):
                return refusal
        wrong = _violations(body)
        if wrong:
            return problem(422, "Unprocessable Entity", "validation failed", errors=wrong)
        gpu = body["gpu"]["id"]
        if gpu not in GPUS:
            return problem(400, "Bad Request", f"gpu type {gpu} could not be placed")
        wanted = body.get("dataCenterIds") or list(PLACES)
        places = [place for place in PLACES if place in wanted]
        if not places:
            return problem(400, "Bad Request", "no such data center")
        pod_id = secrets.token_hex(7)
        pod = self.cloud.create(
            pod_id,
            body["name"],
            gpu=gpu,
            gpus=body["gpu"].get("count", 1),
            usd=GPUS[gpu].usd,
            place=places[0],
            device=GPUS[gpu].device,
            command=body.get("args") or None,
            env={**body.get("env", {}), "RUNPOD_POD_ID": pod_id},
            facts={"body": body},
            late=request.late,
        )
        if take("create-timeout-created"):
            return Answer(0, cut=True, delay=STALL_SEC, made=pod)
        if take("create-5xx-created"):
            return Answer(502, text="<html>bad gateway</html>")
        if self.cloud.shows_late(pod):
            return Answer(504, text="upstream request timeout")
        if take("create-garbage-created"):
            return Answer(201, text='{"id": ')
        return Answer(201, self._pod(pod), made=pod)

    def _delete(self, pod_id: str) -> Answer:
        if self.cloud.take("delete-5xx"):
            return problem(500, "Internal Server Error", "could not reach the machine")
        if not self.cloud.destroy(pod_id):
            return self.refuse(404)
        if self.cloud.take("delete-drop"):
            return Answer(0, cut=True)
        return Answer(204)

    def _logs(self, pod: FakePod, source: str | None) -> Answer:
        lines: list[tuple[str, str]] = []
        if source in (None, "system"):
            lines += [("system", line) for line in pod.system_log]
        if source in (None, "container") and pod.container is not None:
            lines += [("container", line) for line in pod.container.log]
        stream = []
        for number, (origin, line) in enumerate(lines):
            moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            event = {"ts": moment, "source": origin, "line": line}
            stream += [f"id: {moment}/{number:012d}", f"data: {json.dumps(event)}", ""]
        return Answer(200, stream=stream)

    def _pod(self, pod: FakePod) -> dict[str, Any]:
        body = pod.facts.get("body", {})
        port = pod.container.port if pod.container is not None and pod.phase == "running" else 0
        direct = {
            "host": "127.0.0.1",
            "port": port,
            "username": "root",
            "command": f"ssh root@127.0.0.1 -p {port}",
        }
        begun = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        listens = pod.phase == "running" and not pod.foreign and not pod.facts.get("unmapped")
        if listens and not port:
            direct |= {"port": 9, "command": "ssh root@127.0.0.1 -p 9"}  # mapped, and nothing behind it
        return {
            "id": pod.id,
            "name": pod.name,
            "image": body.get("image", "simulated"),
            "args": body.get("args", ""),
            "disk": body.get("disk", 20),
            "ports": body.get("ports", []),
            "env": body.get("env", {}),
            "registry": None,
            "status": _STATUS[pod.phase],
            "actions": ["stop", "restart", "terminate"],
            "mounts": {},
            "gpu": {"id": pod.gpu, "count": pod.gpus},
            "cloud": body.get("cloud", "SECURE"),
            "dataCenterId": None if pod.phase == "assigning" else pod.place,
            "cudaVersion": None,
            "ssh": {"proxy": None, "direct": direct if listens else None},
            "template": None,
            "cost": 0.0 if pod.phase == "exited" else self.cloud.price(pod.usd),
            "locked": False,
            "globalNetworking": {"enabled": False},
            "runtime": {} if pod.phase == "running" else None,
            "createdAt": begun,
            "startedAt": None,
        }


def _violations(body: Any) -> list[str]:
    """What the contract forbids in a create, as far as our client could get it wrong."""
    if not isinstance(body, dict):
        return ["$: not an object"]
    wrong = [f"$: additional properties '{name}' not allowed" for name in sorted(body.keys() - _FIELDS)]
    if not body.get("name") or not body.get("image"):
        wrong.append("$: name and image are required")
    if not isinstance(body.get("gpu"), dict) or not body["gpu"].get("id"):
        wrong.append("$.gpu: required")
    if not isinstance(body.get("env", {}), dict) or not all(
        isinstance(value, str) for value in body.get("env", {}).values()
    ):
        wrong.append("$.env: strings only")
    return wrong


def serve_runpod(
    *, faults: FaultPlan | None = None, boot_sec: float = 0.3, key: str | None = None, port: int = 0
) -> FakeServer:
    """Start a fake RunPod; use it as a context manager, or close it."""
    cloud = FakeCloud(faults=faults, boot_sec=boot_sec)
    return FakeServer(FakeService(FakeRunPod(cloud), key), port=port)
