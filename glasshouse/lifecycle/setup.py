"""From a reachable pod to a sealed package on it, for legs of both arms: steps 3 and 4 of a run."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from glasshouse import schema
from glasshouse.attestation.broker import Broker
from glasshouse.attestation.operator import RemoteBroker
from glasshouse.attestation.server import serve
from glasshouse.attestation.store import Store
from glasshouse.codes import Code
from glasshouse.errors import LegError, RemoteError, RentalOver, UsageError
from glasshouse.lifecycle.follow import carry
from glasshouse.lifecycle.live_run import LiveRun, public_allocation
from glasshouse.lifecycle.meter import Meter
from glasshouse.lifecycle.observe import Observed, check_gpu, observe
from glasshouse.lifecycle.packer import Packer, Sealed, key_for_raw_legs
from glasshouse.lifecycle.pod_python import prepare_python
from glasshouse.lifecycle.room import check_room
from glasshouse.lifecycle.screen import Screen
from glasshouse.lifecycle.supply import FETCH_SEC, Supply
from glasshouse.providers.base import Allocation
from glasshouse.records import keys
from glasshouse.remote.endpoint import HostKeySource
from glasshouse.remote.pod import Pod
from glasshouse.runtime.archive import build_archive
from glasshouse.schema import fields_of
from glasshouse.sealing.memory import overwrite
from glasshouse.spec import ProjectModel, RunSpec
from glasshouse.workloads.installed import ASK_SEC, MAX_ANSWER_BYTES, SCRIPT, read_answer
from glasshouse.workloads.outlook import lacking_words
from glasshouse.workloads.package import Payload

# In a process of its own, which it leaves without a network; hardened as the trainer is by then.
_NETWORK = """
import sys
sys.path.insert(0, sys.argv[1])
from glasshouse.runtime.confine import no_network
from glasshouse.runtime.linux import harden
harden()
print(no_network())
"""


@dataclass
class Ready:
    """A pod with everything on it that legs need."""

    pod: Pod
    allocation: Allocation
    root: str  # the pod folder, absolute
    python: str  # the pod's interpreter
    archive: str
    observed: Observed
    broker: Broker | RemoteBroker
    broker_port: int
    manifest_hash: str
    package: str
    markers: str  # the small package beside it, "" where no slot is protected
    markers_hash: str
    raw_key: bytearray = field(repr=False)  # opens the package in raw slots; empty without such
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def public_allocation(self) -> str:
        """The digest by which results name the allocation."""
        return public_allocation(self.allocation.name)


@contextmanager
def prepared(
    live: LiveRun, pod: Pod, allocation: Allocation, packer: Packer, supply: Supply
) -> Iterator[Ready]:
    """Look at the pod, start a broker, seal unless that is done, and upload; yield what the slots need.

    Nothing is sent before the pod was looked at. The payload key exists here only between sealing and
    registration with the broker; where raw slots disclose the payload anyway, a copy for them to the end.
    """
    with live.step(Code.POD_SETUP_FAILED, "looking at the pod"):
        root = _pod_root(pod, allocation)
        archive, python, seen = _equipped(live, pod, allocation, root)

    with ExitStack() as until:
        ranks = packer.payload().ranks
        if ranks > 1:
            with live.step(Code.RANKS_CANNOT_MEET):
                gpus_for(live.run.spec, ranks, seen)
                _meeting(live.run.spec, ranks, pod, [python, "-I", "-c", _NETWORK, archive])
        payload = _supplied(live, pod, python, packer, supply)
        if payload.scratch_bytes:
            with live.step(Code.SCRATCH_TOO_SMALL):
                check_room(pod, payload.scratch_bytes, live.run.spec.provider.kind)
        with live.step(Code.SEAL_FAILED):
            broker, broker_port = until.enter_context(_key_broker(live))
        package, markers = f"{root}/package.sealed", f"{root}/markers.sealed"
        timings: dict[str, float] = {}
        sealed = packer.sealed()
        with live.step(Code.SEAL_FAILED), _timed(timings, "sealSec"):
            raw_key = key_for_raw_legs(live.run, sealed.key)
            until.callback(overwrite, raw_key)
            _register(live, broker, sealed, packer.launches)
        timings["sealSec"] += sealed.seconds  # in full, also where a machine booted meanwhile
        words = f"uploading {live.folder.package.stat().st_size / 1e6:.1f} MB of ciphertext"
        with live.step(Code.UPLOAD_FAILED, words), _timed(timings, "uploadSec"):
            if sealed.markers:
                upload(pod, sealed.markers, markers, live.screen)
            upload(pod, live.folder.package, package, live.screen)
        yield Ready(
            pod=pod,
            allocation=allocation,
            root=root,
            python=python,
            archive=archive,
            observed=seen,
            broker=broker,
            broker_port=broker_port,
            manifest_hash=sealed.manifest_hash,
            package=package,
            markers=markers if sealed.markers else "",
            markers_hash=sealed.markers_hash,
            raw_key=raw_key,
            timings=timings,
        )


def _supplied(live: LiveRun, pod: Pod, python: str, packer: Packer, supply: Supply) -> Payload:
    """Fetch what a project needs and the pod's Python lacks, and say what it imports that is in neither,
    before it is uploaded.

    The pod is asked for all that it has: what a project needs says what it does. What is imported is a
    warning, since a project may do without, and an installation may not say what it brings.
    """
    payload = packer.payload()
    project = payload.project
    if project is None or not (payload.needs or project.modules):
        return payload
    with live.step(Code.DEPENDENCIES_UNMET):
        said = pod.run([python, "-I", "-c", SCRIPT], timeout=ASK_SEC, max_output=MAX_ANSWER_BYTES)
        try:
            machine = read_answer(said.stdout)
        except (ValueError, UsageError) as error:
            if not payload.needs:
                return payload
            if isinstance(error, UsageError):
                raise
            raise RemoteError(
                "the pod does not say what its Python has", field="exit", value=said.exit,
                remedy="give an image, or an interpreter, whose Python works",
            ) from error  # fmt: skip
    there = machine.modules
    if payload.needs:
        with live.step(Code.DEPENDENCIES_UNMET, "fetching what the project needs"):
            left = live.rental.deadline - time.monotonic()  # nothing of pip's ends by the connection's end
            brought = supply.fetch(machine, live.screen.progress, timeout_sec=max(1.0, min(FETCH_SEC, left)))
            if time.monotonic() >= live.rental.deadline:
                raise RentalOver
        live.screen.say(brought.line)
        if brought.wheels:
            payload = packer.bring(brought.wheels, brought.nbytes)
            there |= brought.modules
    if lacking := [module for module in project.modules if module not in there]:
        words = "imported, and not found among the packages of the machine's Python"
        words += ", nor of what is sent" if payload.needs else ""
        live.screen.warn(f"{words}: {lacking_words(lacking)}")
    return payload


def gpus_for(spec: RunSpec, ranks: int, seen: Observed) -> None:
    """See that a project's processes have a GPU each, where the machine has any. Raises LegError."""
    if spec.gpu.name != "cpu" and 0 < len(seen.gpus) < ranks:
        raise LegError(
            f"the command starts {ranks} processes, one a GPU, and the machine has {len(seen.gpus)}",
            code=Code.GPU_NOT_AS_ASKED,
            remedy="start as many as it has, or give gpu=cpu",
        )


def _meeting(spec: RunSpec, ranks: int, pod: Pod, asking: list[str]) -> None:
    """See that a project's processes can meet, before any of it is sent. Raises LegError.

    The answer is what the leg will find, which refuses by itself where none came.
    """
    if isinstance(spec.model, ProjectModel) and spec.model.network == "open":
        return
    said = pod.run(asking, timeout=60)
    if said.stdout.decode("utf-8", "replace").strip() in ("seccomp", "none"):
        raise LegError(
            f"the machine allows no network namespace (provider={spec.provider.kind}), so the {ranks} "
            "processes that the command starts could not meet",
            code=Code.RANKS_CANNOT_MEET,
            remedy="take a machine that allows one, or start one process; with model.network=open they meet "
            "on the machine's own loopback, and the job reaches the network",
        )


def _equipped(live: LiveRun, pod: Pod, allocation: Allocation, root: str) -> tuple[str, str, Observed]:
    """Send the runtime, look at the pod, write allocation.json; (the archive and the interpreter there, what
    was seen).
    """
    spec, given = live.run.spec, allocation.endpoint.python
    data, digest = build_archive()
    archive = f"{root}/runtime-{digest}.zip"
    pod.put(data, archive)
    seen = observe(pod, archive, given, live.run.salt)
    # The GPU before anything that takes minutes: no installation mends a wrong one.
    gpu_model = check_gpu(spec, seen)
    python = prepare_python(pod, given, root, spec, simulated=live.rental.simulated)
    if python != given:
        seen = observe(pod, archive, python, live.run.salt)
    if seen.archive_sha256 != digest:
        raise LegError("the runtime archive on the pod is not the one sent", code=Code.RUNTIME_ALTERED)
    found = describe(live, allocation, gpu_model=gpu_model, source=pod.host_key.source, seen=seen)
    live.folder.write("allocation.json", found)
    return archive, python, seen


@contextmanager
def _timed(timings: dict[str, float], name: str) -> Iterator[None]:
    """Book the seconds that this takes, if it goes well."""
    began = time.monotonic()
    yield
    timings[name] = time.monotonic() - began


def named_broker() -> int | None:
    """The port in GLASSHOUSE_BROKER, if it is set. Raises UsageError when that is none."""
    given = os.environ.get("GLASSHOUSE_BROKER", "")
    if not given:
        return None
    if not (given.isascii() and given.isdigit() and len(given) < 6 and 0 < int(given) < 65536):
        raise UsageError(
            "not a port of this machine's loopback",
            field="GLASSHOUSE_BROKER",
            value=given,
            remedy="give the port at which `glasshouse broker` listens, or unset it",
        )
    return int(given)


@contextmanager
def _key_broker(live: LiveRun) -> Iterator[tuple[Broker | RemoteBroker, int]]:
    """The run's key broker and its port here: one of its own, or the one that GLASSHOUSE_BROKER names."""
    port = named_broker()
    if port is not None:
        ring = keys.load_keyring()
        yield RemoteBroker(port, keys.operator_key(), lambda kid: ring.find(kid, "broker").public), port
        return
    store = Store(f"sqlite:///{live.folder.path / 'broker.db'}", secrets.token_bytes(32))
    with store:
        broker = Broker(store, keys.broker_key())
        with serve(broker) as server:
            yield broker, server.port


def upload(pod: Pod, source: bytes | Path, path: str, screen: Screen) -> None:
    """Send a sealed package; where the connection dies on the way, go on from what arrived.

    No digest is compared: the package's reader authenticates every chunk of it, and its length.
    """
    meter = Meter("uploading", screen.progress)
    there = 0  # as the pod says at the beginning of a try: what was sent since may not have arrived

    def put() -> None:
        nonlocal there
        begun = False

        def progress(done: int, total: int) -> None:
            nonlocal begun, there
            there, begun = (there if begun else done), True
            meter(done, total)

        pod.put(source, path, checked=False, progress=progress)

    lost = "connection lost while uploading; reconnecting, and going on from what arrived"
    carry(pod, put, arrived=lambda: there, lost=lambda: screen.warn(lost))


def _pod_root(pod: Pod, allocation: Allocation) -> str:
    """Make the pod folder, named after the allocation, readable by its user only; return its real path."""
    script = 'umask 077; mkdir -p -- "$1/$2" && cd -- "$1/$2" && pwd -P'
    said = pod.check(
        ["sh", "-c", script, "sh", allocation.endpoint.workdir, allocation.name], "making the pod folder"
    )
    return said.decode("utf-8").strip()


def describe(
    live: LiveRun,
    allocation: Allocation,
    *,
    gpu_model: str | None,
    source: HostKeySource,
    seen: Observed | None = None,
) -> schema.Allocation:
    """Return allocation.json; without the machine, while nobody has looked at it.

    Raises RemoteError where provider or machine describe it in a form that has no place in a bundle.
    """
    digest = public_allocation(allocation.name)
    try:
        return schema.Allocation(
            provider=live.run.spec.provider.kind,
            gpu_model=gpu_model or allocation.gpu_model,
            instance_id=allocation.instance_id,
            tier=allocation.tier,
            host_key_source=source,
            image_digest=allocation.image_digest,
            usd_per_hour=allocation.usd_per_hour,
            allocation_id_sha256=digest,
            machine=None if seen is None else seen.machine(digest),
            rented_at=live.rental.rented_at,
        )
    except ValidationError as error:
        raise RemoteError(
            "the machine is described in a form that cannot be recorded",
            field="fields",
            value=fields_of(error),
            remedy="take another machine",
        ) from error


def _register(live: LiveRun, broker: Broker | RemoteBroker, sealed: Sealed, launches: int) -> None:
    """Hand the payload key to the broker, for as many grants as there may be launches, and forget it here.

    Without protected launches there is nobody to grant it to.
    """
    run = live.run
    try:
        most = launches * (1 + run.spec.policy.launch_retries)
        if launches:
            broker.register_payload(run.id, sealed.manifest_hash, sealed.key, max_grants=most)
    finally:
        overwrite(memoryview(sealed.key))
