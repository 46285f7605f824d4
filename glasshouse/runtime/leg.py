"""A protected leg's state, and how it ends: kill, remove, seal the log, write the result file.

Kept apart from the supervisor's story so that the end does not depend on how far the story came.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from glasshouse.canonical import canonical_json, record_json
from glasshouse.codes import Code
from glasshouse.errors import LegError, SealError
from glasshouse.remote.sweep_script import remove
from glasshouse.runtime import disclosure
from glasshouse.runtime.events import EventWriter
from glasshouse.runtime.exec_watch import ExecWatch
from glasshouse.runtime.guard import scratch_prefix
from glasshouse.runtime.kept import Kept
from glasshouse.runtime.linux import SHM, is_tmpfs
from glasshouse.runtime.params import LaunchParams
from glasshouse.runtime.peers import Peers
from glasshouse.runtime.residue import Needle
from glasshouse.runtime.results import Keeping, NeedleReport, ProtectedEnd, RawEnd
from glasshouse.runtime.ring import Ring
from glasshouse.runtime.strays import kill_strays
from glasshouse.sealing.outputs import seal_outputs
from glasshouse.sealing.packing import write_all

LOG_HEAD_BYTES = 1 << 20
LOG_TAIL_BYTES = 3 << 20  # the larger part: how a long job ended is what its owner looks for


class KeptLog:
    """The beginning and the end of what the trainer wrote; what lay between is counted and let go.

    One thread may feed it while another reads it. `ring`: where whoever watches reads it as it comes.
    """

    def __init__(self, head: int = LOG_HEAD_BYTES, tail: int = LOG_TAIL_BYTES) -> None:
        self.ring: Ring | None = None
        self._most_head, self._most_tail = head, tail
        self._head, self._tail = bytearray(), bytearray()
        self._left_out = 0
        self._changing = threading.Lock()

    def feed(self, part: bytes) -> None:
        """Take what was written next."""
        with self._changing:
            if self.ring is not None:
                self.ring.write(part)
            room = self._most_head - len(self._head)
            self._head += part[:room]
            self._tail += part[room:]
            if (excess := len(self._tail) - self._most_tail) > 0:
                del self._tail[:excess]
                self._left_out += excess

    def text(self) -> bytes:
        """Return what was kept; where something was let go, a line in its place says how much."""
        with self._changing:
            gap = b"\n[%d bytes of the log were left out here]\n" % self._left_out if self._left_out else b""
            return bytes(self._head) + gap + bytes(self._tail)

    def __bool__(self) -> bool:
        return bool(self._head or self._tail)


class LegState:
    """What a leg accumulates, so that its end can be written from wherever it stopped."""

    def __init__(self, launch: LaunchParams, folder: Path) -> None:
        self.launch = launch
        self.folder = folder
        self.started = time.monotonic()
        self.deadline = self.started + launch.deadline_sec
        self.scratch = scratch_folder(launch)
        descriptor = os.open(
            folder / "events.jsonl", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600
        )
        self.event_key: Ed25519PrivateKey | None = None
        self.events_descriptor = descriptor
        self.events: EventWriter | None = None
        self.status = "failed"
        self.code: Code | None = Code.RUNTIME_ERROR
        self.reason_codes: list[str] = []
        self.timings: dict[str, float] = {}
        self.children: set[int] = set()
        self.peers = Peers()  # whose death ends the leg
        self.exits: dict[str, int] = {}
        self.needles: list[NeedleReport] = []  # as recorded: classes and counts, no bytes
        self.live_needles: list[Needle] = []
        self.unscanned = 0
        self.scanned = True
        self.scanned_by: dict[str, str] = {}  # role -> how its memory was read
        self.owner_public = b""
        self.log = KeptLog()
        # Events as they were before they were cut for publication, by kind; empty of a public job.
        self.withheld: dict[str, Any] = {}
        self.drains: list[threading.Thread] = []  # read the trainer's pipes to their ends
        self.execs: ExecWatch | None = None  # until it said what it counted
        self.kept: Kept | None = None  # until its keeper has ended
        self.keeping: Keeping | None = None
        self._signing = threading.Lock()  # the keeper's thread appends events, too

    def remaining(self) -> float:
        """Seconds to the leg's deadline; LegError once it passed."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise LegError("the leg's deadline passed", code=Code.LEG_DEADLINE)
        return left

    def event(self, kind: str, body: object) -> None:
        """Append an event, where there is a chain yet; `body` is a record or an object of JSON data."""
        said = record_json(body)
        with self._signing:
            if self.launch.private:
                cut = disclosure.shown(kind, said)
                if cut != said:
                    self.withheld[kind] = said
                said = cut
            if self.events is not None:
                self.events.append(kind, said)

    def count_execs(self) -> None:
        """Append how many programs a project started, once, where one began: its processes are gone."""
        watch, self.execs = self.execs, None
        if watch is not None and (found := watch.stop()) is not None:
            self.event("execs-counted", found)

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Book the seconds spent inside under `name`."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.timings[name] = round(time.monotonic() - began, 6)


def scratch_folder(launch: LaunchParams) -> Path:
    """Name the per-run folder the trainer may write: on tmpfs where there is one."""
    base = SHM  # a tmpfs that is per boot and never swapped to a file of ours
    if not (base.is_dir() and is_tmpfs(base) and os.access(base, os.W_OK)):
        base = Path(launch.leg_dir)
    return base / f"{scratch_prefix(launch)}{secrets.token_hex(4)}"


def end(leg: LegState) -> None:
    """Kill what is left, remove the scratch folder, seal the log, write the result file."""
    if leg.kept is not None:
        leg.kept.kill()
    for pid in leg.children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(LegError):
        kill_strays()
    for drain in leg.drains:  # every writer is gone; what they wrote last is the traceback
        drain.join(timeout=5)
    removed = remove(leg.scratch)
    if leg.code is not None and leg.events is not None:
        with contextlib.suppress(ValueError, OSError, LegError):
            leg.count_execs()
            leg.event("failed", {"code": leg.code, "tmpfsRemoved": removed})
    head = leg.events.head if leg.events else None
    count = leg.events.count if leg.events else 0
    if leg.owner_public and (leg.log or leg.withheld):
        _seal_log(leg)
    # Last of all: after this nothing can be signed in the leg's name.
    if leg.events is not None:
        leg.events.destroy_key()
    leg.event_key = None
    ended = ProtectedEnd(
        arm="protected",
        status=leg.status,
        code=leg.code,
        reason_codes=leg.reason_codes,
        events_head=head,
        event_count=count,
        timings=leg.timings,
    )
    write_result(leg.folder, ended)


def _seal_log(leg: LegState) -> None:
    context = leg.launch.sealed_under
    with contextlib.suppress(SealError, OSError, ValueError), (leg.folder / "log.sealed").open("xb") as out:
        files = {"trainer.log": leg.log.text()}
        if leg.withheld:
            files["events.json"] = canonical_json(leg.withheld)
        seal_outputs(
            out,
            owner_public=leg.owner_public,
            context=context,
            files=files,
            tensors=(),
            padded=leg.launch.private,
        )


def write_result(folder: Path, result: ProtectedEnd | RawEnd) -> None:
    """Write result.json by atomic rename: it is there whole or not at all."""
    partial = folder / "result.json.partial"
    with partial.open("xb") as stream:
        stream.write(canonical_json(record_json(result)))
        stream.flush()
        os.fsync(stream.fileno())
    partial.rename(folder / "result.json")


def drain_log(descriptor: int, log: KeptLog) -> None:
    """Read a pipe to its end into `log`."""
    with os.fdopen(descriptor, "rb", buffering=0) as stream:
        while part := stream.read(1 << 16):
            log.feed(part)


class OutputDrain(threading.Thread):
    """Reads sealed outputs from a pipe into a new file, in a thread of its own.

    The pipe's end is no sign that they are whole: a process of the workload's may hold it open, or
    write to it. What the sealer said it wrote is.
    """

    def __init__(self, descriptor: int, path: Path) -> None:
        super().__init__(name="outputs", daemon=True)
        with contextlib.suppress(OSError):  # a pipe of 64 KiB costs both ends a switch for each of them
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, 1 << 20)
        self._descriptor = descriptor
        self._path = path
        self._digest = hashlib.sha256()
        self._size = 0
        self._changed = threading.Condition()
        self._ended = self._taken = False

    def run(self) -> None:
        """Copy until the pipe ends or the disk is full; discard what comes after take()."""
        with (
            contextlib.suppress(OSError),
            os.fdopen(self._descriptor, "rb", buffering=0) as stream,
            self._path.open("xb", buffering=0) as out,
        ):
            while part := stream.read(1 << 20):
                with self._changed:
                    if self._taken:
                        continue
                    write_all(out, part)
                    self._digest.update(part)
                    self._size += len(part)
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def take(self, size: int, sha256: str, timeout: float) -> None:
        """Wait until `size` bytes are on disk; raise LegError("outputs-altered") if they are others."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._size >= size, timeout)
            self._taken = True
            if self._size != size or self._digest.hexdigest() != sha256:
                raise LegError("the outputs are not what was sealed", code=Code.OUTPUTS_ALTERED)
