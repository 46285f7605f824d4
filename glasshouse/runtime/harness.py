"""The measured part of a leg, identical in both arms.

Imports the workload from memory, builds a session, warms up and undoes that (warmup.py), times one stretch
between device synchronisations, and reports. Nothing here knows whether it runs protected or raw.

What a workload is, session.py says.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import mmap
import struct
import sys
import time
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glasshouse.canonical import domain_hash, parse_json
from glasshouse.codes import Code
from glasshouse.errors import LegError
from glasshouse.runtime import gpus, machine, resume
from glasshouse.runtime.blinding import LISTED, UNITS, blinded
from glasshouse.runtime.cadence import report_every
from glasshouse.runtime.forecast import Forecast
from glasshouse.runtime.ranks import RankedSession
from glasshouse.runtime.ranks import build as build_ranks
from glasshouse.runtime.results import LegResult
from glasshouse.runtime.session import SESSION_PARTS, Report, Session, Stretch, Tensor
from glasshouse.runtime.warmup import Beginning
from glasshouse.runtime.wipe import Places
from glasshouse.sealing.memory import address_of

CURVE_POINTS = 100
DELAY_CHUNK_SEC = 0.1
# Names inside a package, as workloads/package.py writes them.
SOURCE_FILE = "workload.py"
CONFIG_FILE = "config.json"
DATA_PREFIX = "data."


def import_workload(source: bytes | memoryview) -> types.ModuleType:
    """Execute workload source as a module that exists in memory only."""
    module = types.ModuleType("glasshouse_workload")
    module.__file__ = f"<sealed:{SOURCE_FILE}>"
    # Registered under its name, as an import would: dataclasses and pickle look modules up there.
    sys.modules[module.__name__] = module
    code = compile(bytes(source), module.__file__, "exec", dont_inherit=True)
    exec(code, module.__dict__)  # noqa: S102 -- running the owner's code is the purpose; it is authenticated
    return module


@dataclass(frozen=True)
class Workload:
    """What is trained, as it lies in memory: files by name, tensors by name as (spec, bytes).

    region: the memory in which they lie, if it is one; no session's to overwrite.
    """

    files: Mapping[str, bytes | memoryview]
    tensors: Mapping[str, Any]
    builder: str
    region: mmap.mmap | None = None

    @property
    def places(self) -> Places:
        """Where it lies, as (address, bytes)."""
        return () if self.region is None else ((address_of(self.region), len(self.region)),)

    def build(self, device: str) -> Session:
        """Import the source and make a session.

        `build` is a built-in's function build(config, tensors, device); any other name is a class
        of the user's, called with (params, files, device), files holding only the user's own data.
        Raises LegError: cuda-unavailable where there is a GPU that cannot be used, workload-not-callable,
        workload-lacks-...
        """
        gpus.require_cuda(device)  # in each rank by itself: CUDA that was opened does not survive a fork
        module = import_workload(self.files[SOURCE_FILE])
        config = parse_json(bytes(self.files[CONFIG_FILE]))
        session: Session
        if self.builder == "build":
            session = module.build(config, self.tensors, device)
        else:
            data = {
                name.removeprefix(DATA_PREFIX): view
                for name, view in self.files.items()
                if name.startswith(DATA_PREFIX)
            }
            maker = getattr(module, self.builder, None)
            if not callable(maker):
                raise LegError("the workload's entry is nothing to call", code=Code.WORKLOAD_NOT_CALLABLE)
            session = maker(config, data, device)
        for part in SESSION_PARTS:
            if not hasattr(session, part):
                code = Code(f"workload-lacks-{part.replace('_', '-')}")
                raise LegError(f"the session has no {part}", code=code)
        resume.restore(session, self.files)
        return session


def run(
    workload: Workload,
    *,
    stretch: Stretch,
    device: str,
    allocation: str,
    salt: bytes,
    report: Report,
    ranks: int = 1,
    blind: bytes,
    allow: Collection[str] = (),
    kept: Callable[[Session], Session] = lambda session: session,
    ended: Callable[[], bool] = lambda: False,
    forecast: Forecast | None = None,
) -> tuple[Session, LegResult]:
    """Build the session, warm up and undo that, measure; return it with the leg's result.

    kept: what is trained with, given the session: one that writes checkpoints of it (checkpointing.py).
    ended: asked before each unit whether to stop there. forecast: of a job, told of its steps.

    Raises LegError(Code.NON_FINITE_LOSS) when a loss is not finite, Code.WARMUP_NOT_UNDONE, and
    Code.STEPS_NOT_WHOLE_UNITS where it is to end inside a unit and its session has no run_steps().
    """
    began = time.monotonic()
    cpu_began = time.process_time()

    def make() -> Session:
        return workload.build(device)

    def begin(session: Session) -> Beginning:
        return Beginning(session, make, lambda tensors: tensor_digest(tensors, salt), workload.places)

    session: Session = build_ranks(make, ranks, report, begin) if ranks > 1 else make()
    parts = callable(getattr(session, "run_steps", None))
    if stretch.steps is not None and stretch.steps % session.steps_per_unit and not parts:
        raise LegError("the steps are no whole number of units", code=Code.STEPS_NOT_WHOLE_UNITS)
    initial = tensor_digest(session.trainable(), salt)
    begins_digest = _begins(session, initial, salt)
    session.synchronize()
    setup_sec = time.monotonic() - began
    report("progress", {"phase": "setup", "elapsedSec": setup_sec, "units": 0})
    if forecast is not None and stretch.steps is not None:
        report = forecast.of_units(report, session.steps_per_unit, stretch.steps)

    undone: int | None = None
    if stretch.warmup_sec > 0:
        held = [session]
        del session  # what warms up is held in one place: a second session may need its memory
        session, undone = _warmed(held, begin, stretch.warmup_sec, report)
    machine_start = machine.identity(allocation, blind)
    losses: list[list[float]] = []
    throughput: list[list[float]] = []
    cpu_start = time.process_time()
    device_type = str(next(iter(session.trainable().values())).device.type)
    with machine.Telemetry(on_gpu=device_type == "cuda") as telemetry:
        units, elapsed = _stretch(
            kept(session),
            stretch.measured_sec,
            stretch.steps,
            delay_pct=stretch.delay_pct,
            report=report,
            phase="measure",
            losses=losses,
            throughput=throughput,
            ended=ended,
        )
    cpu_sec = time.process_time() - cpu_start
    machine_end = machine.identity(allocation, blind)
    final_loss = _finite(session.loss())
    outputs = session.trainable()
    digest, size = export_digest(outputs)
    output_digest = tensor_digest(outputs, salt)
    result = LegResult(
        unit=session.unit if session.unit in UNITS else "units",
        units=units,
        steps=round(units * session.steps_per_unit),
        elapsed_sec=elapsed,
        setup_sec=setup_sec,
        warmup_sec=stretch.warmup_sec,
        warmup_units=0,  # of what is returned: the warm-up was undone
        delay_pct=stretch.delay_pct,
        final_loss=final_loss,
        loss_curve=_thin(losses),
        throughput_curve=_thin(throughput),
        initial_digest=begins_digest,
        output_digest=output_digest,
        output_differs=initial != output_digest,
        output_sha256=digest,
        output_bytes=size,
        unit_info=blinded(
            "unitInfo",
            {**session.info, "ranks": ranks} if ranks > 1 else session.info,
            blind,
            allow,
            LISTED,
        ),
        machine_start=machine_start,
        machine_end=machine_end,
        cpu_sec=cpu_sec,
        total_cpu_sec=time.process_time() - cpu_began,
        device=device_type,
        telemetry=telemetry.samples,
        workload_digest=workload_digest(workload.files, salt),
        undone_units=undone,
    )
    return session, result


def _begins(session: Session, initial: str, salt: bytes) -> str:
    """Digest of what both arms must begin with: the weights, and the data where the session gives them."""
    given = session.given() if hasattr(session, "given") else {}
    begins = {**{f"given.{name}": tensor for name, tensor in given.items()}, **session.trainable()}
    return tensor_digest(begins, salt) if given else initial


def _warmed(
    held: list[Session], begin: Callable[[Session], Beginning], seconds: float, report: Report
) -> tuple[Session, int]:
    """Warm up; return a session that stands where this one stood before, and how many units were undone."""
    session = held.pop()
    if isinstance(session, RankedSession):
        with session.warming():
            units, _ = _stretch(session, seconds, None, report=report, phase="warmup")
        return session, round(units)
    with begin(session) as begun:
        units, _ = _stretch(session, seconds, None, report=report, phase="warmup")
        del session
        return begun.undone(), round(units)


def _stretch(
    session: Any,
    seconds: float | None,
    steps: int | None,
    *,
    report: Report,
    phase: str,
    delay_pct: float = 0.0,
    losses: list[list[float]] | None = None,
    throughput: list[list[float]] | None = None,
    ended: Callable[[], bool] = lambda: False,
) -> tuple[int | float, float]:
    """Run units until `seconds` passed, exactly `steps` are done or `ended()`; return (units, seconds).

    The clock starts and stops on an idle device, so units counted are units finished. The last one may be a
    part, where steps are counted. Losses are read about CURVE_POINTS times, not every unit, because reading
    one stalls the device.
    """
    session.synchronize()
    start = time.monotonic()
    units = 0
    whole, rest = (None, 0) if steps is None else divmod(steps, session.steps_per_unit)
    every = (seconds or 60.0) / CURVE_POINTS
    next_point = start + every
    next_report = start + report_every(0.0)
    chunk_start = start
    while True:
        now = time.monotonic()
        over = now - start >= (seconds or 0.0) if whole is None else units >= whole
        if over and not rest:
            break
        if ended():  # of what is done, nobody asks
            rest = 0
            break
        if over:
            break
        session.run_unit()
        units += 1
        if delay_pct and time.monotonic() - chunk_start >= DELAY_CHUNK_SEC:
            chunk_start = _delay(session, chunk_start, delay_pct)
        now = time.monotonic()
        if losses is not None and throughput is not None and now >= next_point:
            # Six digits draw the same curve; the final loss is kept as it is.
            losses.append([units, float(f"{_finite(session.loss()):.6g}")])
            throughput.append([round(now - start, 4), units])
            next_point = time.monotonic() + every
        if now >= next_report:
            body = {"phase": phase, "elapsedSec": round(now - start, 3), "units": units}
            report("progress", body)
            next_report = now + report_every(now - start)
    if rest:
        session.run_steps(rest)
    if delay_pct:
        _delay(session, chunk_start, delay_pct)
    session.synchronize()
    done = units + rest / session.steps_per_unit if rest else units
    return done, time.monotonic() - start


def _delay(session: Session, since: float, delay_pct: float) -> float:
    """The positive control: sleep a known share of the time worked, on an idle device; return the time."""
    session.synchronize()
    time.sleep((time.monotonic() - since) * delay_pct / 100.0)
    return time.monotonic()


def _finite(loss: float) -> float:
    if not math.isfinite(loss):
        raise LegError("the loss is not finite", code=Code.NON_FINITE_LOSS)
    return loss


def _thin(points: list[list[float]]) -> list[list[float]]:
    while len(points) > CURVE_POINTS:
        points = points[1::2]
    return points


def workload_digest(files: Mapping[str, bytes | memoryview], salt: bytes) -> str:
    """Salted digest over the workload's files (code, config, data), by name: what both arms ran."""
    parts = [salt]
    for name in sorted(files):
        parts += [name.encode(), hashlib.sha256(files[name]).digest()]
    return domain_hash("glasshouse/workload/v1", parts).hex()


def tensor_bytes(tensor: Tensor) -> tuple[memoryview, Tensor]:
    """A memory view of a tensor's bytes on the host; no copy when it is there and contiguous."""
    host = tensor.detach().contiguous().cpu()
    size = host.numel() * host.element_size()
    if size == 0:
        return memoryview(b""), host
    return memoryview((ctypes.c_char * size).from_address(host.data_ptr())).cast("B"), host


def wipe_copy(tensor: Tensor, host: Tensor) -> None:
    """Overwrite what tensor_bytes copied to the host; a tensor that lay there already stays as it is."""
    if host.data_ptr() != tensor.data_ptr():
        ctypes.memset(host.data_ptr(), 0, host.numel() * host.element_size())


def dtype_name(tensor: Tensor) -> str:
    """A tensor's dtype as containers name it: "float32", "bfloat16", ..."""
    return str(tensor.dtype).removeprefix("torch.")


def tensor_digest(tensors: Mapping[str, Tensor], salt: bytes) -> str:
    """Salted digest over named tensors: name, dtype, shape and bytes, length-prefixed."""
    parts = [salt]
    for name, tensor in tensors.items():
        view, host = tensor_bytes(tensor)
        described = f"{name}|{dtype_name(host)}|{list(host.shape)}"
        parts += [described.encode(), hashlib.sha256(view).digest()]
        wipe_copy(tensor, host)
    return domain_hash("glasshouse/tensors/v1", parts).hex()


# In the order in which the reference writer lays tensors out: by type, then by name.
SAFETENSORS_DTYPES = {
    "int64": "I64",
    "float64": "F64",
    "float32": "F32",
    "int32": "I32",
    "bfloat16": "BF16",
    "float16": "F16",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


def safetensors_layout(tensors: Mapping[str, tuple[str, Sequence[int], int]]) -> tuple[bytes, list[str]]:
    """The head of a safetensors file (length and JSON) and the order of its tensors.

    `tensors` maps a name to (dtype as "float32", shape, bytes). The same bytes as the reference
    library's `save_file` writes, so that a digest of ours is the digest of a file that anyone can
    make. Format: safetensors README, "Format"; order: `prepare` in safetensors/src/tensor.rs.
    """
    kinds = list(SAFETENSORS_DTYPES)
    order = sorted(tensors, key=lambda name: (kinds.index(tensors[name][0]), name.encode()))
    header: dict[str, Any] = {}
    offset = 0
    for name in order:
        dtype, shape, size = tensors[name]
        header[name] = {
            "dtype": SAFETENSORS_DTYPES[dtype],
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, order


def export_digest(tensors: Mapping[str, Tensor]) -> tuple[str, int]:
    """SHA-256 and size of the safetensors file of `tensors`, without writing it."""
    described = {
        name: (dtype_name(tensor), list(tensor.shape), tensor.numel() * tensor.element_size())
        for name, tensor in tensors.items()
    }
    head, order = safetensors_layout(described)
    digest = hashlib.sha256(head)
    for name in order:
        view, host = tensor_bytes(tensors[name])
        digest.update(view)
        wipe_copy(tensors[name], host)
    return digest.hexdigest(), len(head) + sum(size for _, _, size in described.values())
