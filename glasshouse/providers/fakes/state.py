"""The machines of one fake account: what exists, what it bills, and every exchange about it."""

from __future__ import annotations

import shlex
import shutil
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from glasshouse.errors import ProviderError
from glasshouse.providers.fakes.clock import LivingClock, Steps, WallClock
from glasshouse.providers.fakes.container import Container
from glasshouse.providers.fakes.faults import Fault, FaultPlan

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
    """One machine. Times are the clock's monotonic seconds; `facts` holds what only one API knows.

    `created` and `destroyed` may lie ahead: a create, or a delete, that was accepted and takes its time.
    `answered` says what the create's caller was told: "truly", or the form that came in its place.
    """

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
    answered: str = "truly"
    container: Container | None = None
    system_log: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


class FakeCloud:
    """State behind one fake API. Thread-safe; close it, and every container and folder ends.

    `folder`: where containers put theirs; None: a temporary one.
    """

    def __init__(
        self,
        *,
        faults: FaultPlan | None = None,
        boot_sec: float = 0.3,
        clock: LivingClock | None = None,
        folder: Path | None = None,
    ) -> None:
        self.faults = faults if faults is not None else FaultPlan()
        self.boot_sec = boot_sec
        self.clock: LivingClock = clock if clock is not None else WallClock()
        self.container: type[Container] = Container  # tests put one with another SSH server in its place
        self.exchanges: list[Exchange] = []
        self.lock = threading.RLock()
        self._began = self.clock.monotonic()
        self._pods: dict[str, FakePod] = {}
        self._was_listed = False
        self._made_folder = folder is None
        self._folder = Path(tempfile.mkdtemp(prefix="glasshouse-fake-")) if folder is None else folder

    def close(self) -> None:
        """Destroy everything and remove the folder. Idempotent."""
        self.clock.close()
        for pod in list(self._pods.values()):
            if pod.container is not None:
                pod.container.stop()
        if self._made_folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    def take(self, kind: str) -> Fault | None:
        """The fault of this kind that strikes now, if one does."""
        return self.faults.take(kind, self.clock.monotonic() - self._began)

    def create(
        self, pod_id: str, name: str, *, gpu: str, gpus: int, usd: float, place: str, device: str,
        command: str | None, env: Mapping[str, str], facts: Mapping[str, Any], late: float = 0.0,
    ) -> FakePod:  # fmt: skip
        """Make a machine, `late` seconds from now, that boots by itself.

        `command` is a shell command line; None: the image's own start.
        """
        if self.take("wrong-gpu"):
            gpu, device = f"{gpu} MIG 1g.10gb", f"{device} MIG 1g.10gb"
        if self.take("price-high"):
            usd *= 10
        created = self.clock.monotonic() + late
        pod = FakePod(pod_id, self._called(name), gpu, gpus, usd * gpus, place, created, facts=dict(facts))
        pod.facts["unmapped"] = bool(self.take("boot-no-port"))
        ignored = self.take("start-ignored")
        if (doubles := self.take("create-doubles")) is not None:
            number = str(int(pod_id) + 5_000_000) if pod_id.isdecimal() else f"{pod_id}d"
            second = replace(pod, id=number, name=name, created=created + doubles.amount)
            second.answered = "with another's id"
            second.facts, second.system_log = {**facts, "offer": None}, []
            with self.lock:
                self._pods[number] = second
            self.clock.start(self._bring_up(second, device, command, dict(env), late + doubles.amount))
        with self.lock:
            self._pods[pod_id] = pod
        self.clock.start(self._bring_up(pod, device, None if ignored else command, dict(env), late))
        return pod

    def _called(self, name: str) -> str:
        """What a new machine is called that was asked for under this name."""
        if self.take("name-longer"):
            return f"{name}-migration"
        if self.take("name-cut"):
            return name[:-4]
        return "" if self.take("name-none") else name

    def shows_late(self, pod: FakePod) -> bool:
        """Whether a fault struck that hides a new machine from the list for a while."""
        for kind, seconds in LATE_SEC.items():
            if self.take(kind):
                pod.shown_from = self.clock.monotonic() + seconds
                return True
        return False

    def add_foreign(self, name: str, *, gpu: str = "someone else's", usd: float = 1.0) -> FakePod:
        """A running machine of the account that is none of ours; destroying it is a failure of the client."""
        with self.lock:
            number = 900000 + len(self._pods)
            now = self.clock.monotonic()
            pod = FakePod(str(number), name, gpu, 1, usd, "elsewhere", now, phase="running", foreign=True)
            self._pods[pod.id] = pod
            return pod

    def get(self, pod_id: str) -> FakePod | None:
        """A machine that exists."""
        with self.lock:
            pod = self._pods.get(pod_id)
            return pod if pod is not None and self._exists(pod) else None

    def living(self) -> list[FakePod]:
        """What exists, whatever the list shows."""
        with self.lock:
            return [pod for pod in self._pods.values() if self._exists(pod)]

    def made(self) -> list[FakePod]:
        """Whatever exists, existed or will."""
        with self.lock:
            return list(self._pods.values())

    def listed(self) -> list[FakePod]:
        """What the list shows now."""
        with self.lock:
            shown = [pod for pod in self._pods.values() if self._shown(pod, "list", pod.shown_from)]
        if self._seems_empty():
            return []
        self._was_listed = True
        hides = self.take("list-hides") or self._flaps("list-flaps")
        found = [pod for pod in shown if pod.foreign or not hides]
        if self.take("list-doubles"):  # side by side, and the first again at the end, as when pages shift
            found = [pod for pod in found for _ in range(2)] + found[:1]
        return found

    def looked_up(self, pod_id: str) -> FakePod | None:
        """What a look-up of one machine shows now."""
        with self.lock:
            pod = self._pods.get(pod_id)
        if pod is None:
            return None
        hides = self.take("look-hides") or self._flaps("look-flaps")
        shown = self._shown(pod, "look") and (pod.foreign or not hides) and not self._seems_empty()
        pod.facts["hidden"] = not shown
        return pod if shown else None

    def price(self, usd: float) -> float:
        """What a price is by now, in USD an hour."""
        moved = self.take("price-moves")
        return round(usd * (moved.amount if moved else 1.0), 4)

    def destroy(self, pod_id: str) -> bool:
        """End a machine, unless that is only said; False when there is none."""
        pod = self.get(pod_id)
        if pod is None or self._seems_empty():
            return False
        if self.take("delete-noop") or (pod.facts.get("hidden") and self.take("delete-ignored")):
            return True
        slow = self.take("delete-slow")
        with self.lock:
            moment = self.clock.monotonic() + (slow.amount if slow else 0.0)
            pod.destroyed = min(moment, pod.destroyed or moment)
        if pod.container is not None:
            pod.container.stop()
        return True

    def _seems_empty(self) -> bool:
        return self._was_listed and self.take("account-empty") is not None

    def _exists(self, pod: FakePod) -> bool:
        now = self.clock.monotonic()
        return pod.created <= now and (pod.destroyed is None or now < pod.destroyed)

    def _shown(self, pod: FakePod, by: Literal["list", "look"], shown_from: float = 0.0) -> bool:
        """Whether a reading by list or look-up, which may be behind, knows of this machine."""
        lags, stale = self.take(f"{by}-lags"), self.take(f"{by}-stale")
        now, begin = self.clock.monotonic(), pod.created + (lags.amount if lags and not pod.foreign else 0.0)
        ended = pod.destroyed is not None and pod.destroyed + (stale.amount if stale else 0.0) <= now
        return max(begin, shown_from) <= now and not ended

    def _flaps(self, kind: str) -> bool:
        flaps = self.take(kind)
        return (
            flaps is not None and (self.clock.monotonic() - self._began) % (2 * flaps.amount) < flaps.amount
        )

    def exit_pod(self, pod_id: str) -> None:
        """Let a machine's container exit, as between two legs; it still exists and bills."""
        pod = self.get(pod_id)
        if pod is None:
            raise KeyError(pod_id)
        with self.lock:
            pod.phase, pod.message = "exited", "container exited with code 137"
        if pod.container is not None:
            pod.container.halt()

    def take_away(self, pod_id: str) -> None:
        """Stop a machine because somebody else pays more for it; it still exists, until it is destroyed."""
        self.exit_pod(pod_id)
        with self.lock:
            pod = self._pods[pod_id]
            pod.message, pod.facts["outbid"] = "outbid", True

    def snapshot(self) -> dict[str, Any]:
        """Everything a test or a person wants to know, as JSON."""
        with self.lock:
            now = self.clock.monotonic()
            ours = [pod for pod in self._pods.values() if not pod.foreign]
            spans = [(pod.created, now if pod.destroyed is None else min(now, pod.destroyed)) for pod in ours]
            billed = [(end - begin, pod.usd) for (begin, end), pod in zip(spans, ours, strict=True)]
            changes = sorted([(begin, 1) for begin, _ in spans] + [(end, -1) for _, end in spans])
            running = most = 0
            for _, change in changes:
                running += change
                most = max(most, running)
            return {
                "simulated": True,
                "created": len(ours),
                "active": sum(map(self._exists, ours)),
                "mostAtOnce": most,
                "billingSec": round(sum(seconds for seconds, _ in billed), 3),
                "usd": round(sum(seconds * usd / 3600 for seconds, usd in billed), 6),
                "foreign": sum(pod.foreign for pod in self._pods.values()),
                "foreignActive": sum(pod.foreign and self._exists(pod) for pod in self._pods.values()),
                "requests": len(self.exchanges),
                "faults": self.faults.struck(),
                "pods": [
                    {"id": pod.id, "name": pod.name, "phase": pod.phase, "active": self._exists(pod)}
                    for pod in self._pods.values()
                ],
            }

    def _bring_up(
        self, pod: FakePod, device: str, command: str | None, env: dict[str, str], late: float
    ) -> Steps:
        take = self.take
        yield late + self.boot_sec * 0.4
        if take("boot-unassigned"):
            return
        self._phase(pod, "starting", "pulling image")
        yield self.boot_sec * 0.6
        if take("boot-stuck"):
            return
        if take("boot-error"):
            self._phase(pod, "error", "Error: manifest unknown: no such image")
            return
        if take("boot-exit"):
            self._phase(pod, "exited", "container exited with code 1")
            return
        if take("boot-vanish"):
            with self.lock:
                pod.destroyed = self.clock.monotonic()
            return
        container = self.container(self._folder / pod.id, pod.id, name=pod.name, gpu=device, gpus=pod.gpus)
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
            if pod.destroyed is None:
                pod.container = container
                self._phase(pod, "running", "success, running")
                return
        container.stop()  # destroyed while it started

    def _phase(self, pod: FakePod, phase: Phase, message: str) -> None:
        with self.lock:
            if pod.destroyed is None:
                pod.phase, pod.message = phase, message
                pod.system_log.append(message)


def part_of(cloud: FakeCloud, pods: list[FakePod]) -> tuple[list[FakePod], dict[str, Any], dict[str, str]]:
    """What of a list is shown, and by what members and header fields it says that it is not all."""
    error = {"errors": [{"message": "one region could not be read"}]} if cloud.take("list-errors") else {}
    link = {"Link": '<https://fake.invalid/?page=2>; rel="next"'} if cloud.take("list-link") else {}
    return [pod for pod in pods if pod.foreign or not (error or link)], error, link
