"""One rental from create to proven gone, on a simulated clock, at a fake that misbehaves as a seed says.

The client is whole: retries, adoption, boot, release, over httpx. The fake is the one that the other tests
meet over loopback; its requests come through httpx's transport seam. Two things are replaced. A machine has
no container: it "runs" when its time has come. And instead of an SSH handshake `hostkeys.shown_host_key`
answers which host key that machine would show, or that nothing listens there.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import asyncssh
import httpx

from glasshouse import spec as specs
from glasshouse.errors import ProviderError
from glasshouse.providers import hostkeys
from glasshouse.providers.base import Proof, Waits
from glasshouse.providers.cloud import Cloud
from glasshouse.providers.cloud_http import Timing
from glasshouse.providers.fakes.clock import SimulatedClock
from glasshouse.providers.fakes.container import Container
from glasshouse.providers.fakes.faults import FaultPlan
from glasshouse.providers.fakes.runpod import FakeRunPod
from glasshouse.providers.fakes.service import FakeService
from glasshouse.providers.fakes.state import FakeCloud, FakePod
from glasshouse.providers.fakes.transport import FakeTransport
from glasshouse.providers.fakes.vastai import FakeVast

from .chaos import REQUEST_SEC, Drawn, Stop, draw
from .cloud_kit import NAME, OPEN, VARIABLE, rented_spec

BOOT_SEC = 20.0  # of a machine of the fake
BOOT_DEADLINE_SEC = 240.0
REAP_AFTER_SEC = (0.0, *[60.0] * 12, 120.0, 300.0, 600.0, 1200.0, 3600.0)  # the first is the watchdog
# From when everything has recovered and the release has begun: by when zero must be proven.
ZERO_WITHIN_SEC = 480.0  # an insisting release, what answers lag, and the next reap
ZERO_AFTER_DOUBT_SEC = 780.0
LONG_AFTER_SEC = 3600.0  # by when all that a create or a delete set going has happened
OTHERS = (
    "someone-elses",
    "gh-20260101-000000-abcdee-0123abcd",
    "gh-20260101-000000-fedcba-89abcdef",
    "",
)  # a run of another's among them
OWN = (NAME, f"{NAME}-r2")
STRANGE_KEY = asyncssh.generate_private_key("ssh-ed25519")


_COUNT = re.compile(r"[0-9]+")
CREATE = re.compile(r"(POST .*/pods|PUT .*/asks/[0-9]+/)\Z")


class Killed(BaseException):
    """The controller is no more; nothing of it runs on, not even what cleans up."""


@dataclass(frozen=True)
class Proven:
    """What one release ended with, `at` seconds of the clock."""

    by: str
    at: float
    proof: Proof
    detail: str


@dataclass
class Outcome:
    """What a seed came to."""

    drawn: Drawn
    proofs: list[Proven] = field(default_factory=list)
    ended: str = ""  # how the allocation did: ok, a reason code, killed, interrupted
    released_from: float = 0.0  # seconds of the clock, when it was given back or its controller was gone
    left: list[FakePod] = field(default_factory=list)  # of ours, long after
    others: list[str] = field(
        default_factory=list
    )  # names of machines of others that were ended, or asked to
    most_at_once: int = 0
    misled: bool = False  # by a list before the first create that lacked what was there
    doubled: int = 0  # machines that the provider made beside those that it was asked for
    requests: int = 0
    deleted: set[str] = field(default_factory=set)  # ids that a DELETE was sent for
    log: list[str] = field(default_factory=list)

    @property
    def zero(self) -> Proven | None:
        """The proof that ended it, if there was one."""
        return self.proofs[-1] if self.proofs and self.proofs[-1].proof == "zero" else None


class SimulatedContainer(Container):
    """A container that runs nothing; it knows which host key its SSH server would show."""

    _ports = itertools.count(20_000)

    def __init__(self, place: Path, mark: str, *, name: str, gpu: str, gpus: int) -> None:
        super().__init__(place, mark, name=name, gpu=gpu, gpus=gpus)
        self._port = 0
        self.shown = ""

    @property
    def port(self) -> int:
        """Its port; 0 while nothing listens."""
        return self._port

    def start(
        self, command: Sequence[str] | None, env: Mapping[str, str], *, ssh: bool = True, log: str = "true"
    ) -> None:
        """Take the host key out of the create call, as the start script would."""
        given = env.get("GLASSHOUSE_HOST_PUBLIC") or _HOST_PUBLIC.findall(" ".join(command or ()))
        key = (given if isinstance(given, str) else "".join(given[:1])) if command is not None else ""
        strange = STRANGE_KEY.export_public_key().decode("ascii").strip()
        self.shown = key or " ".join(strange.split()[:2])
        if log != "empty":
            told = self.shown if log == "true" else " ".join(_LYING)
            self.log.append(f"256 {hostkeys.fingerprint(told)} root@simulated (ED25519)")
        self._port = next(self._ports) if ssh else 0

    def halt(self) -> None:
        """Nothing listens any more."""
        self._port = 0

    stop = halt


_HOST_PUBLIC = re.compile(r"HP='?(ssh-ed25519 [A-Za-z0-9+/=]+)")
_LYING = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode("ascii").split()[:2]


class _Stopping(httpx.BaseTransport):
    """Stops its controller as drawn, by calling `stop`: in mid-wait, or before it hears an answer."""

    def __init__(
        self, inner: httpx.BaseTransport, clock: SimulatedClock, drawn: Stop, stop: Callable[[], None]
    ) -> None:
        self._inner, self._clock, self._drawn, self._stop = inner, clock, drawn, stop
        self._number, self._creates = 0, 0
        if drawn.by == "second":
            self._alarm(drawn.number)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Pass the request on."""
        if self._drawn.by == "create" and CREATE.search(f"{request.method} {request.url.path}"):
            self._creates += 1
            if self._creates == 1:
                self._alarm(self._clock.monotonic() + self._drawn.number)
        answer = self._inner.handle_request(request)
        self._number += 1
        if self._drawn.by == "request" and self._number == self._drawn.number:
            self._stop()
        return answer

    def _alarm(self, moment: float) -> None:
        self._clock.alarm, self._clock.alarm_at = self._stop, moment


# httpx parses the same few addresses for every request: half of a simulated rental's time.
_parsed = functools.lru_cache(maxsize=4096)(httpx._urlparse.urlparse)


class Simulation:
    """A fake provider, its clock, and the processes that meet it.

    `settings` replace those of the provider in the run's spec.
    """

    def __init__(self, drawn: Drawn, **settings: float) -> None:
        self.drawn = drawn
        self.clock = SimulatedClock()
        self.cloud = FakeCloud(
            faults=FaultPlan(drawn.faults), boot_sec=BOOT_SEC, clock=self.clock, folder=Path("no-folder")
        )
        self.cloud.container = SimulatedContainer
        api = (
            FakeRunPod(self.cloud)
            if drawn.kind == "runpod"
            else FakeVast(self.cloud, page_size=drawn.page_size)
        )
        self.service = FakeService(api)
        usual = {"boot_deadline_sec": BOOT_DEADLINE_SEC, "request_timeout_sec": REQUEST_SEC}
        self.spec = rented_spec(drawn.kind, f"http://127.0.0.1:1{api.prefix}", **(usual | settings))
        self.others = {pod.id: pod for pod in map(self.cloud.add_foreign, OTHERS)}
        self.outcome = Outcome(drawn)
        self.ids, self.doubt_until, self.note = "", 0.0, ""  # what the journal holds
        self.releasing = self.stopped = False

    def run(self) -> Outcome:
        """Rent, use, release; then as often as it takes, and for some hours at most, reap."""
        with probed(self.clock, self.cloud):
            try:
                self._controller()
            except Killed:
                self.outcome.ended = "killed"
                self.outcome.released_from = self.clock.monotonic()
            self.clock.alarm, self.stopped = None, False
            for number, seconds in enumerate(REAP_AFTER_SEC):
                if self.outcome.zero:
                    break
                self.clock.sleep(seconds)
                with self._client() as client:
                    self._release(client, "watchdog" if number == 0 else "reap", self.doubt_until)
            self.clock.sleep(LONG_AFTER_SEC)
        return self._judged()

    def _controller(self) -> None:
        """What run.py and lifecycle/finish.py do, as far as the machine is concerned."""
        outcome = self.outcome
        with self._client(self.drawn.stop) as client:

            def keep() -> None:
                self.note = client.note(NAME)
                self.doubt_until = client.doubtful_until(NAME)
                self.ids = ",".join(client.known_ids(NAME)) or self.ids

            def progress(line: str) -> None:
                keep()
                self._say(line)

            try:
                try:
                    client.allocate(NAME, self.spec, progress, lambda beside: beside <= self.drawn.beside)
                finally:
                    keep()
                outcome.ended = "ok"
                self.clock.sleep(self.drawn.used_sec)
            except ProviderError as error:
                outcome.ended = str(error.code)
                self._say(f"allocation failed: {error.what}")
            except KeyboardInterrupt:
                outcome.ended = "interrupted"
                self._say("interrupted")
            self.releasing = True
            outcome.released_from = self.clock.monotonic()
            self._release(client, "controller", None)

    def _release(self, client: Cloud, by: str, doubt_until: float | None) -> None:
        waits = Waits(self._say, lambda: self.stopped)
        note = None if doubt_until is None else self.note
        proof = client.release(NAME, self.ids or None, doubt_until, waits, note)
        self._say(f"{by}: {proof.proof}: {proof.detail}")
        self.outcome.proofs.append(Proven(by, self.clock.monotonic(), proof.proof, proof.detail))

    def _stop(self) -> None:
        """Kill the controller, or press Ctrl-C: a release hears that, and ends only its wait."""
        assert self.drawn.stop is not None
        if self.drawn.stop.how == "killed":
            raise Killed
        if not self.releasing:
            raise KeyboardInterrupt
        self.stopped = True

    def _client(self, stop: Stop | None = None) -> Cloud:
        assert isinstance(self.spec.provider, specs.CloudProvider)
        transport: httpx.BaseTransport = FakeTransport(self.service)
        if stop is not None:
            transport = _Stopping(transport, self.clock, stop, self._stop)
        return OPEN[self.drawn.kind](
            self.spec.provider, environ={VARIABLE[self.drawn.kind]: self.service.key}, timing=Timing(),
            clock=self.clock, transport=transport,
        )  # fmt: skip

    def _say(self, line: str) -> None:
        """Note a line; of those that only count down, the first."""
        if self.outcome.log and _COUNT.sub("", self.outcome.log[-1][10:]) == _COUNT.sub("", line):
            return
        self.outcome.log.append(f"{self.clock.monotonic():8.1f}  {line}")

    def _judged(self) -> Outcome:
        outcome, deletes = self.outcome, set()
        for exchange in self.cloud.exchanges:
            if exchange.method == "DELETE":
                deletes.add(exchange.path.rstrip("/").rpartition("/")[2])
        outcome.deleted = deletes
        outcome.left = [pod for pod in self.cloud.living() if not pod.foreign]
        living = {pod.id for pod in self.cloud.living()}
        outcome.others = [pod.name for key, pod in self.others.items() if key not in living or key in deletes]
        ours = [pod for pod in self.cloud.made() if not pod.foreign]
        before = json.loads(self.note)["before"]["ids"] if self.note else self.others
        outcome.misled = not self.others.keys() <= set(before)
        outcome.doubled = sum(pod.answered == "with another's id" for pod in ours)
        # Of a create that told no id, and under a name that is not ours: nothing says that we may end it.
        untold = [pod for pod in ours if pod.answered not in ("truly", "hang") and pod.name not in OWN]
        outcome.others += [pod.name for pod in untold if pod.id in deletes]
        outcome.most_at_once = self.cloud.snapshot()["mostAtOnce"]
        outcome.requests = len(self.cloud.exchanges)
        self.cloud.close()
        return outcome


@contextmanager
def probed(clock: SimulatedClock, fake: FakeCloud) -> Iterator[None]:
    """Ask the fake's machines for their host keys, by address, as an SSH handshake would."""

    def shown_host_key(host: str, port: int, timeout: float) -> str | None:
        for pod in fake.living():
            if isinstance(pod.container, SimulatedContainer) and pod.container.port == port:
                return pod.container.shown
        clock.sleep(0.1)  # refused
        return None

    with (
        mock.patch.object(hostkeys, "shown_host_key", shown_host_key),
        mock.patch.object(httpx._urls, "urlparse", _parsed),
    ):
        yield


def violations(outcome: Outcome) -> list[str]:
    """What a seed broke, in words; empty: nothing."""
    wrong, drawn = [], outcome.drawn
    if outcome.zero and outcome.left:
        wrong.append(f"proven zero, and {len(outcome.left)} of ours left")
    if outcome.others:
        wrong.append(f"machines of others touched: {outcome.others}")
    if outcome.most_at_once > 1 + drawn.beside + outcome.doubled:
        wrong.append(f"{outcome.most_at_once} machines of ours at once")
    by = max(drawn.recovered_at, outcome.released_from) + (
        ZERO_WITHIN_SEC if drawn.truthful else ZERO_AFTER_DOUBT_SEC
    )
    if outcome.misled or any(pod.name not in OWN for pod in outcome.left):
        return wrong  # only a person can tell whose a machine is
    if outcome.zero is None or outcome.zero.at > by:
        wrong.append(f"not proven zero by second {by:.0f}, when all had recovered")
    return wrong


def report(outcome: Outcome) -> str:
    """What a seed broke, what it drew, what happened, and how to see it again."""
    drawn = outcome.drawn
    lines = [
        f"{drawn.kind}, seed {drawn.seed}: {'; '.join(violations(outcome)) or 'nothing broken'}", str(drawn),
        *outcome.log,
        *(f"          left: {pod.id} {pod.name} of a create answered {pod.answered}" for pod in outcome.left),
        f"again: python -m tests.providers.simulation {drawn.kind} {drawn.seed}",
    ]  # fmt: skip
    return "\n".join(lines)


def simulate(drawn: Drawn, **settings: float) -> Outcome:
    """Run one seed."""
    return Simulation(drawn, **settings).run()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        os.environ["GLASSHOUSE_HOME"] = home
        print(report(simulate(draw(sys.argv[1], int(sys.argv[2])))))
