"""From a reachable pod to a sealed package on it: steps 3 and 4 of a run."""

from __future__ import annotations

import json
import os
import secrets
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from pydantic import ValidationError

from glasshouse import schema
from glasshouse.attestation.broker import Broker
from glasshouse.attestation.operator import RemoteBroker
from glasshouse.attestation.server import serve
from glasshouse.attestation.store import Store
from glasshouse.canonical import canonical_json
from glasshouse.codes import Code
from glasshouse.errors import LegError, OutcomeUnknown, RemoteError, UsageError
from glasshouse.lifecycle.live_run import LiveRun, public_allocation
from glasshouse.lifecycle.meter import Meter
from glasshouse.lifecycle.observe import Observed, check_gpu, observe
from glasshouse.lifecycle.packer import Packer, Sealed
from glasshouse.lifecycle.pod_python import prepare_python
from glasshouse.lifecycle.room import check_room
from glasshouse.lifecycle.screen import Screen
from glasshouse.providers.base import Allocation
from glasshouse.records import keys
from glasshouse.remote.endpoint import HostKeySource
from glasshouse.remote.pod import Pod
from glasshouse.retry import RetryPolicy, retry
from glasshouse.runtime.archive import build_archive
from glasshouse.schema import fields_of
from glasshouse.sealing.memory import overwrite
from glasshouse.workloads.imports import distribution
from glasshouse.workloads.package import Payload

UPLOAD = RetryPolicy(tries=4)
MODULES_SHOWN = 8
_MODULES = "import importlib.metadata as m, json; print(json.dumps(sorted(m.packages_distributions())))"
UPLOAD_GAIN = 1 << 20  # bytes that a try must bring, or it counts as one that brought nothing


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
    payload: Payload
    raw: RawWeights
    manifest_hash: str
    package: str
    salt: bytes
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def public_allocation(self) -> str:
        """The digest by which results name the allocation."""
        return public_allocation(self.allocation.name)


@contextmanager
def prepared(live: LiveRun, pod: Pod, allocation: Allocation, packer: Packer) -> Iterator[Ready]:
    """Look at the pod, start a broker, seal unless that is done, and upload; yield what the slots need.

    Nothing is sent before the pod was looked at. The payload key exists here only between sealing and
    registration with the broker.
    """
    with live.step(Code.POD_SETUP_FAILED, "looking at the pod"):
        root = _pod_root(pod, allocation)
        archive, python, seen = _equipped(live, pod, allocation, root)

    with ExitStack() as until:
        payload = packer.payload()
        if payload.modules:
            _tell_lacking(live, pod, python, payload.modules)
        if payload.scratch_bytes:
            with live.step(Code.SCRATCH_TOO_SMALL):
                check_room(pod, payload.scratch_bytes, live.run.spec.provider.kind)
        with live.step(Code.SEAL_FAILED):
            broker, broker_port = until.enter_context(_key_broker(live))
        manifest_hash, package, salt = "", "", secrets.token_bytes(32)
        timings: dict[str, float] = {}
        if packer.launches:
            package = f"{root}/package.sealed"
            sealed = packer.sealed()
            manifest_hash, salt = sealed.manifest_hash, sealed.salt
            with live.step(Code.SEAL_FAILED), _timed(timings, "sealSec"):
                _register(live, broker, sealed, packer.launches)
            timings["sealSec"] += sealed.seconds  # in full, also where a machine booted meanwhile
            words = f"uploading {live.folder.package.stat().st_size / 1e6:.1f} MB of ciphertext"
            with live.step(Code.UPLOAD_FAILED, words), _timed(timings, "uploadSec"):
                upload(pod, live.folder.package, package, live.screen)
        raw = RawWeights(payload)
        until.callback(raw.close)
        yield Ready(
            pod=pod,
            allocation=allocation,
            root=root,
            python=python,
            archive=archive,
            observed=seen,
            broker=broker,
            broker_port=broker_port,
            payload=payload,
            raw=raw,
            manifest_hash=manifest_hash,
            package=package,
            salt=salt,
            timings=timings,
        )


def _tell_lacking(live: LiveRun, pod: Pod, python: str, modules: Sequence[str]) -> None:
    """Say which modules a project imports that the pod's Python seems not to have, before it is uploaded.

    The pod is asked for all that it has: what a project needs says what it does. A warning, since a project
    may do without, and an installation may not say what it brings.
    """
    said = pod.run([python, "-I", "-c", _MODULES], timeout=60)
    try:
        there = set(json.loads(said.stdout))
    except (ValueError, TypeError):
        return
    lacking = [module for module in modules if module not in there]
    if lacking:
        names = ", ".join(f"{module} ({distribution(module)})" for module in lacking[:MODULES_SHOWN])
        more = f" and {len(lacking) - MODULES_SHOWN} more" if len(lacking) > MODULES_SHOWN else ""
        live.screen.warn(f"imported, and not found among the packages of the machine's Python: {names}{more}")


def _equipped(live: LiveRun, pod: Pod, allocation: Allocation, root: str) -> tuple[str, str, Observed]:
    """Send the runtime, look at the pod, write allocation.json; (the archive and the interpreter there, what
    was seen).
    """
    spec, given = live.run.spec, allocation.endpoint.python
    data, digest = build_archive()
    archive = f"{root}/runtime-{digest}.zip"
    pod.put(data, archive)
    seen = observe(pod, archive, given)
    # The GPU before anything that takes minutes: no installation mends a wrong one.
    gpu_model = check_gpu(spec, seen)
    python = prepare_python(pod, given, root, spec, simulated=live.rental.simulated)
    if python != given:
        seen = observe(pod, archive, python)
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


def upload(pod: Pod, source: Path, path: str, screen: Screen) -> None:
    """Send the sealed package; where the connection dies on the way, go on from what arrived.

    It gives up only after tries that brought next to nothing there: a pod that takes one byte a try is not
    served for ever. No digest is compared: the package's reader
    authenticates every chunk of it, and its length.
    """
    meter = Meter("uploading", screen.progress)
    arrived, fruitful = 0, 0

    def reconnect(_: OutcomeUnknown) -> None:
        screen.warn("connection lost while uploading; reconnecting, and going on from what arrived")
        pod.reconnect()

    def put(_: int) -> None:
        begun = False

        def progress(done: int, total: int) -> None:
            nonlocal begun, arrived, fruitful
            if not begun and done >= arrived + UPLOAD_GAIN:
                arrived, fruitful = done, fruitful + 1
            begun = True
            meter(done, total)

        pod.put(source, path, checked=False, progress=progress)

    def policy() -> RetryPolicy:
        return replace(UPLOAD, tries=UPLOAD.tries + fruitful)

    retry(put, policy, on=OutcomeUnknown, between=reconnect)


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
    """Hand the payload key to the broker, for as many grants as there may be launches, and forget it here."""
    run = live.run
    try:
        most = launches * (1 + run.spec.policy.launch_retries)
        broker.register_payload(run.id, sealed.manifest_hash, sealed.key, max_grants=most)
    finally:
        overwrite(memoryview(sealed.key))


class RawWeights:
    """The weights in the clear, in one file here, as raw legs get them; written for the first of them."""

    def __init__(self, payload: Payload) -> None:
        self._payload = payload
        self._file: IO[bytes] | None = None
        self._index: list[dict[str, Any]] = []

    def made(self) -> tuple[Path, list[dict[str, Any]]]:
        """(the file, where each tensor lies in it). Raises OSError where it cannot be written."""
        if self._file is None:
            index = []
            file = tempfile.NamedTemporaryFile(prefix="glasshouse-raw-")  # noqa: SIM115 -- close() ends it
            try:
                # One tensor at a time: base weights may be larger than memory.
                for spec, view in self._payload:
                    described = {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}
                    index.append({**described, "offset": file.tell(), "nbytes": view.nbytes})
                    file.write(view)
                    file.write(bytes(-file.tell() % 64))
                file.flush()
            except BaseException:
                file.close()
                raise
            self._file, self._index = file, index
        return Path(self._file.name), self._index

    def close(self) -> None:
        """Remove the file."""
        if self._file is not None:
            self._file.close()


def put_raw_files(ready: Ready, folder: str) -> None:
    """Place the workload in the clear in `folder`: what the raw leg discloses."""
    weights, index = ready.raw.made()
    ready.pod.put(weights, f"{folder}/weights.bin")
    for name, data in ready.payload.files.items():
        ready.pod.put(data, f"{folder}/{name}")
    described = {"builder": ready.payload.builder, "tensors": index}
    ready.pod.put(canonical_json(described), f"{folder}/index.json")
