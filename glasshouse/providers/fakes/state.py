"""The machines of one fake account: what exists, what it bills, and every exchange about it."""

from __future__ import annotations

import shlex
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from glasshouse.errors import ProviderError
from glasshouse.providers.fakes.container import Container
from glasshouse.providers.fakes.faults import FaultPlan

Phase = Literal["assigning", "starting", "running", "exited", "error"]
# How long the list hides a machine: less, and more, than a client with short times waits for it.
LATE_SEC = {"create-5xx-created-late": 0.15, "create-5xx-created-later": 0.5}


@dataclass(frozen=True)
class Sold:
    """One GPU type as a fake provider sells it: USD an hour for one, and what nvidia-smi calls it."""

    usd: float
    device: str
    memory_gb: int


@dataclass(frozen=True)
class Exchange:
    """One request and its answer, without headers; bodies as parsed, None when empty."""

    method: str
    path: str
    query: dict[str, str]
    request: Any
    status: int
    answer: Any


@dataclass
class FakePod:
    """One machine. Times are monotonic seconds; `facts` holds what only one API knows."""

    id: str
    name: str
    gpu: str
    gpus: int
    usd: float
    place: str
    created: float
    phase: Phase = "assigning"
    message: str = ""
    shown_from: float = 0.0
    destroyed: float | None = None
    foreign: bool = False
    container: Container | None = None
    system_log: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


class FakeCloud:
    """State behind one fake API. Thread-safe; close it, and every container and folder ends."""

    def __init__(self, *, faults: FaultPlan | None = None, boot_sec: float = 0.3) -> None:
        self.faults = faults if faults is not None else FaultPlan()
        self.boot_sec = boot_sec
        self.container: type[Container] = Container  # tests put one with another SSH server in its place
        self.exchanges: list[Exchange] = []
        self.lock = threading.RLock()
        self._pods: dict[str, FakePod] = {}
        self._root = Path(tempfile.mkdtemp(prefix="glasshouse-fake-"))
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []

    def close(self) -> None:
        """Destroy everything and remove the folder. Idempotent."""
        self._closing.set()
        for thread in self._threads:
            thread.join(30.0)
        for pod in list(self._pods.values()):
            if pod.container is not None:
                pod.container.stop()
        shutil.rmtree(self._root, ignore_errors=True)

    def create(
        self, pod_id: str, name: str, *, gpu: str, gpus: int, usd: float, place: str, device: str,
        command: str | None, env: Mapping[str, str], facts: Mapping[str, Any],
    ) -> FakePod:  # fmt: skip
        """Make a machine that boots by itself. `command` is a shell command line; None: the image's own
        start.
        """
        now = time.monotonic()
        if self.faults.take("wrong-gpu"):
            gpu, device = f"{gpu} MIG 1g.10gb", f"{device} MIG 1g.10gb"
        if self.faults.take("price-high"):
            usd *= 10
        pod = FakePod(pod_id, name, gpu, gpus, usd * gpus, place, now, facts=dict(facts))
        pod.facts["unmapped"] = self.faults.take("boot-no-port")
        ignored = self.faults.take("start-ignored")
        with self.lock:
            self._pods[pod_id] = pod
        thread = threading.Thread(
            target=self._bring_up, args=(pod, device, None if ignored else command, dict(env)), daemon=True,
            name=f"boot-{pod_id}",
        )  # fmt: skip
        self._threads.append(thread)
        thread.start()
        return pod

    def shows_late(self, pod: FakePod) -> bool:
        """Whether a fault struck that hides a new machine from the list for a while."""
        for kind, seconds in LATE_SEC.items():
            if self.faults.take(kind):
                pod.shown_from = time.monotonic() + seconds
                return True
        return False

    def add_foreign(self, name: str, *, gpu: str = "someone else's", usd: float = 1.0) -> FakePod:
        """A running machine of the account that is none of ours; destroying it is a failure of the client."""
        with self.lock:
            number = 900000 + len(self._pods)
            pod = FakePod(
                str(number), name, gpu, 1, usd, "elsewhere", time.monotonic(), phase="running", foreign=True
            )
            self._pods[pod.id] = pod
            return pod

    def get(self, pod_id: str) -> FakePod | None:
        """A machine that exists."""
        with self.lock:
            pod = self._pods.get(pod_id)
            return pod if pod is not None and pod.destroyed is None else None

    def living(self) -> list[FakePod]:
        """What exists, whatever the list shows."""
        with self.lock:
            return [pod for pod in self._pods.values() if pod.destroyed is None]

    def listed(self) -> list[FakePod]:
        """What the list shows now."""
        hides = self.faults.take("list-hides")
        with self.lock:
            now = time.monotonic()
            living = [pod for pod in self._pods.values() if pod.destroyed is None and pod.shown_from <= now]
        return [pod for pod in living if pod.foreign or not hides]

    def destroy(self, pod_id: str) -> bool:
        """End a machine; False when there is none."""
        pod = self.get(pod_id)
        if pod is None:
            return False
        with self.lock:
            pod.destroyed = time.monotonic()
        if pod.container is not None:
            pod.container.stop()
        return True

    def exit_pod(self, pod_id: str) -> None:
        """Let a machine's container exit, as between two legs; it still exists and bills."""
        pod = self.get(pod_id)
        if pod is None:
            raise KeyError(pod_id)
        with self.lock:
            pod.phase, pod.message = "exited", "container exited with code 137"
        if pod.container is not None:
            pod.container.halt()

    def snapshot(self) -> dict[str, Any]:
        """Everything a test or a person wants to know, as JSON."""
        with self.lock:
            now = time.monotonic()
            ours = [pod for pod in self._pods.values() if not pod.foreign]
            billed = [((pod.destroyed or now) - pod.created, pod.usd) for pod in ours]
            spans = sorted([(pod.created, 1) for pod in ours] + [(pod.destroyed or now, -1) for pod in ours])
            running = most = 0
            for _, change in spans:
                running += change
                most = max(most, running)
            return {
                "simulated": True,
                "created": len(ours),
                "active": sum(pod.destroyed is None for pod in ours),
                "mostAtOnce": most,
                "billingSec": round(sum(seconds for seconds, _ in billed), 3),
                "usd": round(sum(seconds * usd / 3600 for seconds, usd in billed), 6),
                "foreign": sum(pod.foreign for pod in self._pods.values()),
                "foreignActive": sum(pod.foreign and pod.destroyed is None for pod in self._pods.values()),
                "requests": len(self.exchanges),
                "faults": self.faults.struck(),
                "pods": [
                    {"id": pod.id, "name": pod.name, "phase": pod.phase, "active": pod.destroyed is None}
                    for pod in self._pods.values()
                ],
            }

    def _bring_up(self, pod: FakePod, device: str, command: str | None, env: dict[str, str]) -> None:
        take = self.faults.take
        if self._closing.wait(self.boot_sec * 0.4) or take("boot-unassigned"):
            return
        self._phase(pod, "starting", "pulling image")
        if self._closing.wait(self.boot_sec * 0.6) or take("boot-stuck"):
            return
        if take("boot-error"):
            self._phase(pod, "error", "Error: manifest unknown: no such image")
            return
        if take("boot-exit"):
            self._phase(pod, "exited", "container exited with code 1")
            return
        if take("boot-vanish"):
            with self.lock:
                pod.destroyed = time.monotonic()
            return
        container = self.container(self._root / pod.id, pod.id, name=pod.name, gpu=device, gpus=pod.gpus)
        log = "empty" if take("log-empty") else "lies" if take("log-lies") else "true"
        try:
            container.start(
                None if command is None else shlex.split(command), env, ssh=not take("boot-no-ssh"), log=log
            )
        except (ProviderError, OSError, ValueError) as error:
            container.stop()
            self._phase(pod, "error", f"Error: {type(error).__name__} while starting")
            return
        with self.lock:
            if pod.destroyed is None and not self._closing.is_set():
                pod.container = container
                self._phase(pod, "running", "success, running")
                return
        container.stop()  # destroyed while it started

    def _phase(self, pod: FakePod, phase: Phase, message: str) -> None:
        with self.lock:
            if pod.destroyed is None:
                pod.phase, pod.message = phase, message
                pod.system_log.append(message)
