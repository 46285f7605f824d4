"""What the tests of the paid providers share: a spec, a fake server with its client, a look over SSH."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncssh

from glasshouse import spec as specs
from glasshouse.providers.base import Afford, Allocation, none_beside
from glasshouse.providers.cloud import Cloud
from glasshouse.providers.cloud_http import Timing
from glasshouse.providers.fakes.runpod import serve_runpod
from glasshouse.providers.fakes.server import FakeServer
from glasshouse.providers.fakes.vastai import serve_vastai
from glasshouse.providers.runpod import open_runpod
from glasshouse.providers.vastai import open_vastai
from tests.specs import make_spec

NAME = "gh-20260101-000000-abcdef-0123abcd"
KINDS = ("runpod", "vastai")
VARIABLE = {"runpod": "RUNPOD_API_KEY", "vastai": "VAST_API_KEY"}
OPEN = {"runpod": open_runpod, "vastai": open_vastai}
GPU_NAME = {"runpod": "NVIDIA RTX A4000", "vastai": "RTX A4000"}
FAST = Timing(
    poll_sec=0.02, watch_sec=0.02,
    backoff_sec=0.01, backoff_max_sec=0.03, settle_sec=0.25, missing_sec=0.1, proof_gap_sec=0.02,
    release_sec=1.2, doubt_sec=0.4, lag_sec=0.2, key_grace_sec=0.2, log_sec=0.4, reads=4, creates=2,
)  # fmt: skip


def rented_spec(
    kind: str, url: str = "http://127.0.0.1:1/v2", *, gpu: Any = None, **provider: Any
) -> specs.RunSpec:
    """A short run on one rented GPU; keywords go into provider, `gpu` replaces fields of the GPU."""
    settings = {
        "kind": kind,
        "base_url": url,
        "image": "example/pytorch@sha256:" + "ab" * 32,
        "boot_deadline_sec": 3.0,
        "request_timeout_sec": 0.4,
    }
    card = {
        "name": "a4000",
        "provider_names": dict(GPU_NAME),
        "max_usd_per_hour": {"runpod": 0.3, "vastai": 0.2},
    }
    return make_spec(provider=settings | provider, gpu=card | (gpu or {}), measure={"burn_in_slots": 1})


@dataclass
class Rented:
    """A fake server and our client of it, in one test."""

    kind: str
    server: FakeServer
    provider: Cloud
    spec: specs.RunSpec
    said: list[str] = field(default_factory=list)

    def allocate(self, name: str = NAME, afford: Afford = none_beside) -> Allocation:
        return self.provider.allocate(name, self.spec, self.said.append, afford)

    def again(self) -> Cloud:
        """The client of another process: it remembers no create."""
        assert isinstance(self.spec.provider, specs.CloudProvider)
        environ = {VARIABLE[self.kind]: self.server.key}
        timing = self.provider.api.http.timing
        return OPEN[self.kind](self.spec.provider, environ=environ, timing=timing)

    def state(self) -> dict[str, Any]:
        return self.server.cloud.snapshot()

    def faults(self, *kinds: str, times: int = 1) -> None:
        for kind in kinds:
            self.server.cloud.faults.add(kind, times)


@contextmanager
def rented(
    kind: str, *, boot_sec: float = 0.05, timing: Timing | None = FAST, **settings: Any
) -> Iterator[Rented]:
    """Serve a fake provider and open our client of it."""
    serve = serve_runpod if kind == "runpod" else serve_vastai
    with serve(boot_sec=boot_sec) as server:
        spec = rented_spec(kind, server.base_url, **settings)
        assert isinstance(spec.provider, specs.CloudProvider)
        with OPEN[kind](spec.provider, environ={VARIABLE[kind]: server.key}, timing=timing) as provider:
            yield Rented(kind, server, provider, spec)


def over_ssh(allocation: Allocation, command: str) -> str:
    """Run one command on the pod, with the pinned host key and the per-rental login key only."""
    endpoint = allocation.endpoint
    assert endpoint.host_key.lines is not None

    async def go() -> str:
        known = asyncssh.import_known_hosts("\n".join(endpoint.host_key.lines or ()) + "\n")
        async with asyncssh.connect(
            endpoint.host, endpoint.port, username=endpoint.user, client_keys=[str(endpoint.key_path)],
            known_hosts=known, config=None, agent_path=None,
        ) as connection:  # fmt: skip
            result = await connection.run(command, check=True)
            return str(result.stdout)

    return asyncio.run(go())


def openapi_document() -> Path | None:
    """RunPod's OpenAPI document: GLASSHOUSE_RUNPOD_OPENAPI, else beside the checkout; None without either."""
    named = os.environ.get("GLASSHOUSE_RUNPOD_OPENAPI")
    beside = Path(__file__).resolve().parents[2].parent / "shared/reference/runpod-openapi-v2.json"
    found = Path(named) if named else beside
    return found if found.is_file() else None
