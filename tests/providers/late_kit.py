"""A paid provider that answers late, on a simulated clock: minutes of doubt pass in milliseconds.

Its machines exist from the moment that a create makes them until they are destroyed; what lists, look-ups and
creates say of that is up to each test. The client above it is the real one, down to its HTTP library.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from glasshouse import spec as specs
from glasshouse.providers import hostkeys
from glasshouse.providers.base import Afford, Allocation, none_beside
from glasshouse.providers.clock import Clock
from glasshouse.providers.cloud import Cloud
from tests.providers.cloud_kit import GPU_NAME, NAME, OPEN, VARIABLE, rented_spec

KEY = "key-of-a-late-provider"
HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJvY"
START = 1_800_000_000.0


class SimulatedClock(Clock):
    """Time passes by waits, and by as much as each request takes."""

    def __init__(self) -> None:
        self.passed = 0.0

    def now(self) -> float:
        return START + self.passed

    def monotonic(self) -> float:
        return self.passed

    def sleep(self, seconds: float) -> None:
        self.passed += max(0.0, seconds)


@dataclass
class Made:
    """One machine: when it came to be and went, in seconds of the clock."""

    name: str
    since: float
    gone: float | None = None

    def exists(self, at: float) -> bool:
        return self.since <= at and (self.gone is None or self.gone > at)


@dataclass
class Late(httpx.BaseTransport):
    """The provider. `creates`: what each create in turn answers and makes, (status, seconds until its machine
    exists or None for none); the last one stands for all that follow. `hides`: whether list and look-ups hide
    a machine so many seconds after it came to be; `delete_hides`: whether DELETE then has none such, too.
    `list_sec`: what the list takes beyond `answer_sec`. `refuses_from`: when the key is revoked. `ignores`:
    whether DELETE of a machine of that age says yes and does nothing. `doubles`: so many seconds after each
    create that answers with an id, a second machine of that name exists. `shown_as`: what becomes of names.
    `others`: names of machines that are none of ours, by id. `empty`: whether at that second of the clock the
    account seems to hold nothing. `names`: the id of another's machine that creates are answered with, and
    `success`: whether that answer says that it went well. `beside`: what else the list's answer has, and
    `list_headers`.
    """

    kind: str
    clock: SimulatedClock
    creates: list[tuple[int, float | None]] = field(default_factory=lambda: [(200, 0.0)])
    hides: Callable[[float], bool] = lambda _: False
    delete_hides: bool = False
    answer_sec: float = 0.1
    list_sec: float = 0.0
    refuses_from: float = float("inf")
    list_fails: tuple[float, float] = (0.0, 0.0)  # from when until when it answers 503
    ignores: Callable[[float], bool] = lambda _: False
    doubles: float | None = None
    shown_as: Callable[[str], str] = lambda name: name
    others: dict[str, str] = field(default_factory=dict)
    empty: Callable[[float], bool] = lambda _: False
    names: str | None = None
    success: bool = True
    beside: dict[str, Any] = field(default_factory=dict)
    list_headers: dict[str, str] = field(default_factory=dict)
    made: dict[str, Made] = field(default_factory=dict)
    sent: list[tuple[float, str, str]] = field(default_factory=list)  # when, method, path

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        began, path = self.clock.passed, request.url.path
        self.sent.append((began, request.method, path))
        listing = path.endswith(("/pods", "/v1/instances/"))
        takes = self.answer_sec + (self.list_sec if listing and request.method == "GET" else 0.0)
        limit = request.extensions["timeout"]["read"]
        self.clock.sleep(min(takes, limit))
        if takes > limit:
            raise httpx.ReadTimeout("slow", request=request)
        if self.clock.passed > self.refuses_from:
            return self._answer(401, {"detail": "no such key", "error": "auth_error"})
        body = json.loads(request.content) if request.content.strip() else None
        if request.method in ("POST", "PUT") and not path.endswith("/bundles/"):
            return self._create(body)
        if path.endswith("/bundles/"):
            return self._answer(200, {"offers": [self._offer(number) for number in range(5)]})
        if path.endswith("/catalog/gpus"):
            return self._answer(200, {"gpus": [{"id": GPU_NAME["runpod"], "price": {}, "dataCenters": []}]})
        if listing and self.list_fails[0] <= began < self.list_fails[1]:
            return self._answer(503, {"detail": "maintenance"})
        if listing:
            shown = [key for key in self.made if self._shown(key)]
            others = [] if self.empty(self.clock.passed) else list(self.others)
            answer = self._answer(200, self._list(shown + others) | self.beside)
            answer.headers.update(self.list_headers)
            return answer
        key = path.rstrip("/").rpartition("/")[2]
        if request.method == "DELETE":
            there = key in self.made and self.made[key].exists(self.clock.passed)
            if not there or (self.delete_hides and not self._shown(key)) or self.empty(self.clock.passed):
                return self._answer(404, {"detail": "none", "error": "no_such_instance"})
            if not self.ignores(self.clock.passed - self.made[key].since):
                self.made[key].gone = self.clock.passed
            return self._answer(*((204, None) if self.kind == "runpod" else (200, {"success": True})))
        if key not in self.made or not self._shown(key):
            return self._answer(404, {"detail": "none", "error": "no_such_instance"})
        one = self._machine(key)
        return self._answer(200, one if self.kind == "runpod" else {"instances": one})

    @property
    def alive(self) -> int:
        """Machines that exist, or that will come to be by themselves."""
        return sum(each.gone is None for each in self.made.values())

    @property
    def most(self) -> int:
        """The most machines that existed at any moment."""
        moments = [each.since for each in self.made.values()]
        return max((sum(each.exists(at) for each in self.made.values()) for at in moments), default=0)

    def asked_for(self) -> list[float]:
        """When each create was sent."""
        posts = ("POST", "/pods") if self.kind == "runpod" else ("PUT", "/")
        return [at for at, method, path in self.sent if method == posts[0] and path.endswith(posts[1])]

    def deletes(self) -> list[float]:
        return [at for at, method, _ in self.sent if method == "DELETE"]

    def _shown(self, key: str) -> bool:
        one, now = self.made[key], self.clock.passed
        return one.exists(now) and not self.hides(now - one.since) and not self.empty(now)

    def _create(self, body: Any) -> httpx.Response:
        status, delay = self.creates.pop(0) if len(self.creates) > 1 else self.creates[0]
        key = str(1000 + len(self.made)) if self.kind == "vastai" else f"pod{len(self.made)}"
        if delay is not None:
            self.made[key] = Made(body.get("name") or body.get("label"), self.clock.passed + delay)
        if status == 200:
            if self.doubles is not None:
                name, since = self.made[key].name, self.clock.passed + self.doubles
                self.made[str(2000 + len(self.made))] = Made(name, since)
            key = self.names or key
            if self.kind == "runpod":
                return self._answer(200, self._machine(key))
            return self._answer(200, {"success": self.success, "new_contract": int(key)})
        return self._answer(status, {"detail": "refused", "error": "refused", "msg": "refused"})

    def _list(self, keys: list[str]) -> Any:
        shown = [self._machine(key) for key in keys]
        if self.kind == "runpod":
            return {"pods": shown}
        return {"instances": shown, "total_instances": len(shown), "next_token": None}

    def _machine(self, key: str) -> dict[str, Any]:
        name = self.others[key] if key in self.others else self.shown_as(self.made[key].name)
        gpu = GPU_NAME[self.kind]
        if self.kind == "runpod":
            direct = {"host": "127.0.0.1", "port": 22, "username": "root"}
            return {
                "id": key, "name": name, "status": "RUNNING", "gpu": {"id": gpu, "count": 1}, "cost": 0.25,
                "dataCenterId": "A-1", "ssh": {"direct": direct},
            }  # fmt: skip
        return {
            "id": int(key), "label": name, "actual_status": "running", "gpu_name": gpu, "num_gpus": 1,
            "dph_total": 0.1, "machine_id": 7, "ssh_host": "127.0.0.1", "ssh_port": 22,
        }  # fmt: skip

    def _offer(self, number: int) -> dict[str, Any]:
        gpu = GPU_NAME["vastai"]
        return {"id": number, "gpu_name": gpu, "num_gpus": 1, "dph_total": 0.1, "machine_id": number}

    def _answer(self, status: int, body: Any) -> httpx.Response:
        return httpx.Response(status, json=body)


@dataclass
class LateRental:
    """A late provider with our client of it."""

    kind: str
    server: Late
    provider: Cloud
    spec: specs.RunSpec
    said: list[str] = field(default_factory=list)

    @property
    def clock(self) -> SimulatedClock:
        return self.server.clock

    def allocate(self, afford: Afford = none_beside) -> Allocation:
        return self.provider.allocate(NAME, self.spec, self.said.append, afford)

    def again(self) -> Cloud:
        """The client of another process."""
        return open_late(self.server, self.spec)


def open_late(server: Late, spec: specs.RunSpec) -> Cloud:
    """Our client of a late provider, with the waiting times of a real one."""
    assert isinstance(spec.provider, specs.CloudProvider)
    environ = {VARIABLE[server.kind]: KEY}
    return OPEN[server.kind](spec.provider, environ=environ, clock=server.clock, transport=server)


@contextmanager
def late(
    kind: str, monkeypatch: pytest.MonkeyPatch, *, settings: dict[str, Any] | None = None, **plan: Any
) -> Iterator[LateRental]:
    """Open a client of a provider that answers late; every machine shows the host key that we made.

    `settings` replace those of the provider in the run's spec.
    """
    keys = hostkeys.make_keys

    def known(folder: Any) -> hostkeys.RentalKeys:
        made = keys(folder)
        return hostkeys.RentalKeys(made.client_path, made.client_public, HOST_KEY, made.host_private_b64)

    monkeypatch.setattr(hostkeys, "make_keys", known)
    monkeypatch.setattr(hostkeys, "shown_host_key", lambda *_: HOST_KEY)
    if "creates" in plan:
        plan["creates"] = list(plan["creates"])  # each used up as it is answered
    server = Late(kind, SimulatedClock(), **plan)
    usual: dict[str, Any] = {"boot_deadline_sec": 900.0, "request_timeout_sec": 30.0}
    spec = rented_spec(kind, "https://late.invalid/v2", **(usual | (settings or {})))
    with open_late(server, spec) as provider:
        yield LateRental(kind, server, provider, spec)
