"""One slot of the schedule: launch a leg on the pod, follow it to its result, record everything.

Every launch, also a refused or failed one, leaves a folder in the bundle.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from glasshouse.attestation.appraise import Reference
from glasshouse.attestation.evidence import parse_evidence
from glasshouse.canonical import b64u, b64u_decode, canonical_json, parse_json
from glasshouse.errors import (
    AttestationError,
    GlasshouseError,
    LegError,
    OutcomeUnknown,
    RemoteError,
    RentalOver,
)
from glasshouse.lifecycle.context import RunContext, leg_id
from glasshouse.lifecycle.follow import EventLog, Pace, follow
from glasshouse.lifecycle.setup import Ready, put_raw_files
from glasshouse.lifecycle.view import read_progress
from glasshouse.measurement.schedule import Slot
from glasshouse.providers import money
from glasshouse.records import keys
from glasshouse.remote.pod import Pod
from glasshouse.schema import Result

_T = TypeVar("_T")
MAX_OUTPUT_BYTES = 64 << 30
POD_TIMINGS = ("attestSec", "unsealSec", "sealOutputsSec", "zeroizeSec")  # what only the pod can time
TRANSPORT_CODES = frozenset({"broker-unreachable", "malformed-answer", "start-unknown"})


def leg_deadline_sec(context: RunContext, slot: Slot) -> float:
    """How long a launch may take, in seconds: as it was budgeted, and never past the whole rental."""
    own = money.leg_deadline_sec(
        context.spec, warmup_sec=slot.warmup_sec, measured_sec=slot.measured_sec, steps=slot.steps
    )
    return max(1.0, min(own, context.deadline - time.monotonic()))


def run_slot(context: RunContext, ready: Ready, slot: Slot, label: str) -> dict[str, Any]:
    """Run one slot, with new launches where only the transport failed; return its leg result.

    Raises LegError with the last launch's reason code, and RentalOver.
    """
    attempts = 1 + (context.spec.policy.launch_retries if slot.lifecycle else 0)
    for launch in range(1, attempts + 1):
        if time.monotonic() >= context.deadline:
            raise RentalOver
        launched = _Launch(context, ready, slot, launch, label)
        try:
            return launched.run()
        except LegError as error:
            retry = launched.codes & TRANSPORT_CODES or error.code in TRANSPORT_CODES
            if launch == attempts or not retry:
                raise
            context.screen.warn(f"{label}: {error.code}; launching once more with a new ticket")
            with contextlib.suppress(RemoteError):
                ready.pod.reconnect()
    raise LegError("no launch was made", code="runtime-error")


def on_live_connection(pod: Pod, step: Callable[[], _T], lost: Callable[[], None]) -> _T:
    """Do what is harmless to repeat: on a new connection, where the old one has died since the last leg."""
    try:
        return step()
    except OutcomeUnknown:
        lost()
        pod.reconnect()
        return step()


class _Launch:
    """One launch of a slot and what it left behind."""

    def __init__(self, context: RunContext, ready: Ready, slot: Slot, launch: int, label: str) -> None:
        self.context = context
        self.ready = ready
        self.slot = slot
        self.launch = launch
        self.label = label
        self.leg = leg_id(slot)
        self.leg_dir = f"{ready.root}/legs/{self.leg}-{launch}"
        self.raw_dir = f"{ready.root}/raw/{self.leg}-{launch}"
        self.folder = context.leg_folder(slot, launch)
        self.folder.mkdir(parents=True)
        self.began = time.monotonic()
        self.timings: dict[str, float] = {}
        self.codes: set[str] = set()
        self.log = EventLog(
            self.folder,
            keys.operator_key(),
            run=context.run,
            leg=self.leg,
            launch=launch,
            interval=context.spec.measure.head_interval_sec,
        )
        self.raw_removed: bool | None = None
        self.last_progress: dict[str, Any] = {}
        quiet = None if slot.measured_sec is None else slot.warmup_sec + slot.measured_sec
        self.pace = Pace(context.spec.measure.head_interval_sec, quiet)

    def run(self) -> dict[str, Any]:
        """Launch, follow, collect; launch.json is written whatever happens."""
        started = time.time()
        status, code = "failed", "interrupted"
        try:
            result = self._protected() if self.slot.lifecycle else self._raw()
            status, code = "complete", ""
            return result
        except LegError as error:
            code = error.code
            raise
        except RentalOver:
            code = RentalOver.code
            raise
        except RemoteError as error:
            code = "pod-unreachable"
            raise LegError(error.what, code=code) from error
        except GlasshouseError:
            code = "runtime-error"
            raise
        finally:
            self.timings["totalSec"] = time.monotonic() - self.began
            name = f"legs/{self.folder.name}/launch.json"
            self.context.write(
                name,
                {
                    "slot": self.slot.index,
                    "arm": self.slot.arm,
                    "launch": self.launch,
                    "status": status,
                    "code": code or None,
                    "timings": {key: round(value, 6) for key, value in self.timings.items()},
                    "rawFilesRemoved": self.raw_removed,
                    "startedAt": round(started, 3),
                    "endedAt": round(time.time(), 3),
                },
            )

    # --- the two arms -------------------------------------------------------------------

    def _protected(self) -> dict[str, Any]:
        ready = self.ready
        if self.launch == 1 and ready.timings:
            # Sealing and uploading happen once a run; they are booked on its first protected launch.
            self.timings.update(ready.timings)
            ready.timings.clear()
        reference = self._reference()
        self.context.write(f"legs/{self.folder.name}/reference.json", reference.to_dict())
        ticket = ready.broker.issue_ticket(reference, self.context.spec.policy)
        params = {
            **self._params("protected"),
            "broker_public": b64u(ready.broker.public_bytes),
            "allocation_id": ready.allocation.id,
            "image_digest": ready.allocation.image_digest,
            "manifest_hash": ready.manifest_hash,
            "package": ready.package,
            "anti_debug_profile": self.context.spec.policy.anti_debug_profile,
            "require_landlock": self.context.spec.policy.require_landlock,
            "private": self.context.spec.payload == "private",
        }
        try:
            with contextlib.ExitStack() as until:
                forward = ready.pod.forward_remote
                port = self._begin(lambda: until.enter_context(forward(ready.broker_port)))
                self._start({**params, "broker_port": port}, ticket)
                answer = self._follow("events.jsonl", self._on_events)
        finally:
            self._save_exchange()
        self.codes |= set(answer.get("reasonCodes", []))
        said = answer.get("timings", {})
        self.timings.update({name: said[name] for name in POD_TIMINGS if name in said})
        if answer["status"] != "complete":
            raise self._failed("protected", answer)
        if answer.get("eventsHead") != self.log.head or answer.get("eventCount") != self.log.count:
            raise LegError("the events fetched are not all there were", code="event-chain-broken")
        began = time.monotonic()
        self._fetch_outputs()
        self.timings["fetchSec"] = time.monotonic() - began
        return self._trained()

    def _raw(self) -> dict[str, Any]:
        ready = self.ready
        began = time.monotonic()
        self._begin(lambda: put_raw_files(ready, self.raw_dir))
        self.timings["uploadSec"] = time.monotonic() - began
        self._start({**self._params("raw"), "raw_dir": self.raw_dir})
        try:
            answer = self._follow("progress.jsonl", self._on_progress)
        finally:
            with contextlib.suppress(RemoteError):
                script = 'rm -rf -- "$1" "$1-scratch"; test ! -e "$1" && test ! -e "$1-scratch"'
                self.raw_removed = ready.pod.run(["sh", "-c", script, "sh", self.raw_dir]).exit == 0
        if answer["status"] != "complete":
            raise self._failed("raw", answer)
        if not self.raw_removed:
            raise LegError("the raw leg's files could not be removed", code="raw-files-left")
        result = _readable(answer.get("result"))
        self.context.write(f"legs/{self.folder.name}/result.json", result)
        return result

    # --- parts --------------------------------------------------------------------------

    def _params(self, arm: str) -> dict[str, Any]:
        slot = self.slot
        return {
            "arm": arm,
            "run": self.context.run,
            "leg": self.leg,
            "launch": self.launch,
            "leg_dir": self.leg_dir,
            "allocation": self.ready.allocation.name,
            "public_allocation": self.ready.public_allocation,
            "stretch": {
                "warmup_sec": slot.warmup_sec,
                "measured_sec": slot.measured_sec,
                "steps": slot.steps,
                "delay_pct": slot.delay_pct,
            },
            "ranks": self.context.spec.gpu.count,
            "device": "cpu" if self.context.spec.gpu.name == "cpu" else "auto",
            "deadline_sec": leg_deadline_sec(self.context, slot),
            "salt": b64u(self.ready.salt),
        }

    def _reference(self) -> Reference:
        ready, seen = self.ready, self.ready.observed
        return Reference(
            run=self.context.run,
            leg=self.leg,
            launch=self.launch,
            allocation_id=ready.allocation.id,
            container_id=seen.container_id,
            manifest_hash=ready.manifest_hash,
            runtime_sha256=seen.archive_sha256,
            interpreter_sha256=seen.interpreter_sha256,
            python_version=seen.python_version,
            distributions_sha256=seen.distributions_sha256,
            boot_id=seen.boot_id,
            pid_namespace=seen.pid_namespace,
            image_digest=ready.allocation.image_digest,
            gpu_name=seen.gpus[0][0] if seen.gpus else None,
            host_key_source=ready.pod.host_key_source,
        )

    def _begin(self, step: Callable[[], _T]) -> _T:
        warn = self.context.screen.warn
        return on_live_connection(
            self.ready.pod,
            step,
            lambda: warn(f"{self.label}: connection lost before its launch; reconnecting"),
        )

    def _start(self, params: dict[str, Any], ticket: bytes = b"") -> None:
        began = time.monotonic()
        argv = [self.ready.python, "-I", self.ready.archive, "launch", self.leg_dir]
        try:
            # The ticket travels on stdin: never argv, never the environment, never a file.
            said = self.ready.pod.run(argv, input=canonical_json(params) + b"\n" + ticket, timeout=60)
        except OutcomeUnknown as error:
            raise LegError("the connection died while launching", code="start-unknown") from error
        if said.exit != 0:
            raise LegError("the runtime did not start on the pod", code="runtime-not-started")
        self.timings["startSec"] = time.monotonic() - began

    def _follow(self, followed: str, on_data: Any) -> dict[str, Any]:
        return follow(
            self.ready.pod,
            self.leg_dir,
            followed=followed,
            pace=self.pace,
            # Beyond the pod's own deadline, so that its reason wins over ours.
            deadline=time.monotonic() + leg_deadline_sec(self.context, self.slot) + 30,
            on_data=on_data,
            warn=self.context.screen.warn,
        )

    def _on_events(self, data: bytes) -> None:
        if not self.log.open and data:
            exchange = self._exchange()
            if exchange is not None and exchange["grant"]:
                claims = parse_evidence(exchange["evidence"])
                self.log.begin(b64u_decode(claims["event_key"]), exchange["grant"])
                # At once: events without their exchange are worth nothing if this process dies now.
                self._save_exchange()
        for event in self.log.feed(data):
            self._show(event["type"], event["body"])

    def _on_progress(self, data: bytes) -> None:
        for line in data.splitlines():
            with contextlib.suppress(ValueError):
                self._show("progress", parse_json(line))
        if not data:
            self._show("", {})

    def _show(self, kind: str, body: Any) -> None:
        if kind == "progress":
            self.last_progress = read_progress(body)
            self.pace.ready()
        elif kind == "trained":
            self.pace.measured()
        shown = self.last_progress
        phase = {"measure": "measuring", "warmup": "warming up", "setup": "setting up"}.get(
            str(shown.get("phase")), kind.replace("-", " ") or "starting"
        )
        if shown.get("phase") not in ("warmup", "measure"):
            # Nothing to count yet: that time passes is all there is to say.
            waited = time.monotonic() - self.began
            self.context.screen.progress(f"{self.label}: {phase}, {waited:.0f} s so far")
            return
        elapsed, units = shown["elapsedSec"], shown["units"]
        if self.slot.block is not None or self.slot.burn_in:  # no peeking before the design is done
            self.context.screen.progress(f"{self.label}: {phase}", plain=False)
            return
        rate = f", {units / elapsed:.1f} /s" if units and elapsed > 0 else ""
        self.context.screen.progress(f"{self.label}: {phase} {elapsed:.0f} s, {units} units{rate}")

    def _exchange(self) -> dict[str, Any] | None:
        try:
            return self.ready.broker.exchange(self.context.run, self.leg, self.launch)
        except (AttestationError, KeyError):
            return None

    def _save_exchange(self) -> None:
        exchange = self._exchange()
        if exchange is not None:
            self.context.write(f"legs/{self.folder.name}/exchange.json", exchange)
            self.codes |= set(exchange.get("reasonCodes") or [])

    def _fetch_outputs(self) -> None:
        """Bring sealed outputs home, into the run folder beside the bundle (they are the owner's)."""
        for name in ("outputs.sealed", "log.sealed"):
            self._fetch(name, name)

    def _failed(self, arm: str, answer: dict[str, Any]) -> LegError:
        """The leg's error, with its log fetched and the way to read it: codes alone mend no workload."""
        code = str(answer.get("code") or "runtime-error")
        remedy = ""
        with contextlib.suppress(RemoteError, OSError):
            if arm == "raw":
                # It disclosed its payload anyway; the run folder is its owner's, and no part of the bundle.
                log = self._fetch("runtime.log", "raw.log")
                if log is not None and log.stat().st_size:
                    remedy = f"its log is {log}"
            elif self._fetch("log.sealed", "log.sealed") is not None:
                remedy = f"its log is sealed for you: glasshouse open {self.context.folder}"
        return LegError(f"the {arm} leg failed", code=code, remedy=remedy)

    def _fetch(self, name: str, as_name: str) -> Path | None:
        """Bring one file of the leg home, beside the bundle; None where there is none."""
        source = f"{self.leg_dir}/{name}"
        if not self.ready.pod.exists(source):
            return None
        target = self.context.folder / "outputs"
        target.mkdir(exist_ok=True)
        place = target / f"{self.leg}-{self.launch}-{as_name}"
        self.ready.pod.fetch_file(source, place, max_bytes=MAX_OUTPUT_BYTES)
        return place

    def _trained(self) -> dict[str, Any]:
        for line in (self.folder / "events.jsonl").read_bytes().splitlines():
            event = parse_json(line)
            if event["type"] == "trained":
                return _readable(event["body"].get("result"))
        raise LegError("the events hold no result", code="protected-incomplete")


def _readable(result: Any) -> dict[str, Any]:
    """Return a leg's result as the pod gave it; LegError("result-malformed") where none can be read in it."""
    if not isinstance(result, dict) or Result.read(canonical_json(result)) is None:
        raise LegError("the leg's result cannot be read", code="result-malformed")
    return result
