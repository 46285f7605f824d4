"""One launch of one slot: its names and folders, what the pod is told of it, what the broker is to expect."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

from glasshouse.attestation.appraise import Reference
from glasshouse.lifecycle.live_run import LiveRun
from glasshouse.lifecycle.setup import Ready
from glasshouse.providers import money
from glasshouse.runtime import params
from glasshouse.runtime.session import Stretch
from glasshouse.schema import Slot
from glasshouse.spec import Job, ProjectModel, RunSpec

MIN_JOB_SHARE = 0.5  # of what is left for a leg, where that is less than what saving and sealing may take


@dataclass(frozen=True)
class Leg:
    """A launch of a slot. `launch` counts from 1, `root` is the pod folder, `label` is for the screen."""

    slot: Slot
    launch: int
    root: str
    label: str

    @property
    def id(self) -> str:
        """Of the slot, as tokens and events name it: `s000`."""
        return f"s{self.slot.index:03d}"

    @property
    def pod_folder(self) -> str:
        """Where the launch leaves its files on the pod."""
        return f"{self.root}/legs/{self.id}-{self.launch}"

    @property
    def raw_folder(self) -> str:
        """What the workload of a raw launch may write to on the pod."""
        return f"{self.root}/raw/{self.id}-{self.launch}"

    @property
    def folder(self) -> str:
        """Name in the bundle of the launch's folder; a later launch's carries its number."""
        suffix = "" if self.launch == 1 else f"-l{self.launch}"
        return f"legs/{self.id}-{self.slot.arm}{suffix}"

    def file(self, name: str) -> str:
        """Name in the bundle of one of the launch's files."""
        return f"{self.folder}/{name}"


@dataclass
class Notes:
    """What a launch leaves behind beside its result. `timings` are in seconds.

    `reason_codes`: everything that broker and pod gave as a reason. `raw_files_removed`: of a raw leg, once
    that was tried: what its workload wrote is gone.
    """

    timings: dict[str, float] = field(default_factory=dict)
    reason_codes: set[str] = field(default_factory=set)
    raw_files_removed: bool | None = None


def leg_deadline_sec(live: LiveRun, slot: Slot) -> float:
    """How long a launch may take, in seconds: as it was budgeted, and never past the whole rental."""
    own = money.leg_deadline_sec(live.run.spec, slot)
    return max(1.0, min(own, live.rental.deadline - time.monotonic()))


def job_sec(spec: RunSpec, deadline_sec: float) -> float:
    """Seconds after which a job is asked to end; 0.0 for a run that measures.

    It is asked so early that it can save, and its outputs can be sealed, before the leg's own deadline: that
    one throws everything away, and what boot and upload took of a rental brings it nearer.
    """
    ceiling = money.ceiling_sec(spec)
    if ceiling is None:
        return 0.0
    after = money.JOB_GRACE_SEC + spec.measure.leg_deadline_extra_sec
    return min(ceiling, max(deadline_sec - after, MIN_JOB_SHARE * deadline_sec))


def checkpointing(spec: RunSpec) -> dict[str, Any]:
    """What a private job's launch is told of its checkpoints; of any other run nothing, and none are made."""
    if spec.payload != "private" or not isinstance(spec.model, Job):
        return {}
    return {
        "checkpoint_sec": spec.model.checkpoint_min * 60.0,
        "checkpoint_ready": spec.model.checkpoint_ready or "",
        "watch_sec": spec.model.watch_sec,
    }


def returns_outputs(live: LiveRun, slot: Slot) -> bool:
    """Whether a protected slot's outputs come home: the last one's, of the others their digests."""
    return slot.index == max(each.index for each in live.run.schedule if each.lifecycle)


def _params(live: LiveRun, ready: Ready, leg: Leg, arm: str) -> params.LaunchParams:
    """What a launch of either arm is told."""
    slot, spec = leg.slot, live.run.spec
    deadline_sec = leg_deadline_sec(live, slot)
    return params.LaunchParams(
        arm=arm,
        run=live.run.id,
        leg=leg.id,
        launch=leg.launch,
        leg_dir=leg.pod_folder,
        allocation=ready.allocation.name,
        public_allocation=ready.public_allocation,
        salt=live.run.salt,
        allow=list(spec.publication.allow),
        stretch=Stretch(slot.warmup_sec, slot.measured_sec, slot.steps, slot.delay_pct),
        device="cpu" if spec.gpu.name == "cpu" else "auto",
        deadline_sec=deadline_sec,
        ranks=spec.gpu.count,
        manifest_hash=ready.manifest_hash,
        package=ready.package,
        private=spec.payload == "private",
        job=spec.workload == "project",
        job_sec=job_sec(spec, deadline_sec),
        network_open=isinstance(spec.model, ProjectModel) and spec.model.network == "open",
        **checkpointing(spec),
    )


def raw_params(live: LiveRun, ready: Ready, leg: Leg) -> params.LaunchParams:
    """Return what a raw launch is given on its standard input."""
    given = _params(live, ready, leg, "raw")
    return replace(given, raw_dir=leg.raw_folder, secret=bytearray(ready.raw_key))


def protected_params(
    live: LiveRun, ready: Ready, leg: Leg, *, ticket: bytes, broker_port: int
) -> params.LaunchParams:
    """Return what a protected launch is given on its standard input. `broker_port`: on the pod's loopback."""
    spec = live.run.spec
    return replace(
        _params(live, ready, leg, "protected"),
        secret=bytearray(ticket),
        broker_public=ready.broker.public_bytes,
        broker_port=broker_port,
        allocation_id=ready.allocation.id,
        image_digest=ready.allocation.image_digest,
        markers=ready.markers,
        markers_hash=ready.markers_hash,
        anti_debug_profile=spec.policy.anti_debug_profile,
        require_landlock=spec.policy.require_landlock,
        require_confined_reads=spec.policy.require_confined_reads,
        refuse_execs=spec.policy.refuse_execs,
    )


def reference(live: LiveRun, ready: Ready, leg: Leg) -> Reference:
    """Return what the evidence of a protected launch must say, as far as this side saw it for itself."""
    seen = ready.observed
    return Reference(
        run=live.run.id,
        leg=leg.id,
        launch=leg.launch,
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
        host_key=ready.pod.host_key.source,
    )
