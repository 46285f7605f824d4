"""What a run accumulates: its folder, its bundle in the making, its failures.

Every fact goes to a file of the run folder when it is learnt, not at the end: a controller that
is killed leaves a folder from which `glasshouse reap` writes the excluded row.
"""

from __future__ import annotations

import base64
import fcntl
import math
import os
import secrets
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from glasshouse.canonical import canonical_json, parse_json, sha256_hex
from glasshouse.errors import UsageError
from glasshouse.lifecycle.ui import Screen
from glasshouse.measurement.schedule import Slot, build_schedule
from glasshouse.records.keys import atomic_write
from glasshouse.spec import RunSpec


def new_run_id(now: float | None = None) -> str:
    """Return `yyyymmdd-hhmmss-xxxxxx` in UTC; the end is random, so two sweeps never collide."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now if now is not None else time.time()))
    return f"{stamp}-{base64.b32encode(secrets.token_bytes(5)).decode().lower()[:6]}"


@dataclass
class RunContext:
    """One run on the controller. `failures` are reason codes outside any leg, in order."""

    spec: RunSpec
    run: str
    name: str  # of the allocation: gh-<run>-<nonce>
    folder: Path
    screen: Screen
    schedule: tuple[Slot, ...]
    phase: str = "journal-failed"  # reason code of whatever fails now and brings none of its own
    failures: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)  # for the terminal only, never in the bundle
    allocation_id: str | None = None
    exit_code: int = 0
    started: float = field(default_factory=time.time)
    overrides: list[str] = field(default_factory=list)
    simulated: bool = False  # a fake provider answered
    rented_at: float | None = None  # Unix seconds, before the create call of a paid provider
    deadline: float = math.inf  # monotonic seconds: by then, all that was budgeted has been used up
    alarm: str = ""  # the loud last line, when clean-up is not proven

    @property
    def parts(self) -> Path:
        """Where the bundle's files gather until it is written whole."""
        return self.folder / "parts"

    @property
    def bundle(self) -> Path:
        """Folder of the evidence bundle; there once the run is recorded."""
        return self.folder / "bundle"

    def leg_folder(self, slot: Slot, launch: int) -> Path:
        """Folder among the parts for one launch; retries and refused launches carry their number."""
        suffix = "" if launch == 1 else f"-l{launch}"
        return self.parts / "legs" / f"{leg_id(slot)}-{slot.arm}{suffix}"

    def write(self, relative: str, value: Any) -> None:
        """Write one canonical JSON file of the bundle, atomically."""
        path = self.parts / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, canonical_json(value))

    def fail(self, code: str, message: str = "", exit_code: int = 1) -> None:
        """Note why this run cannot be verified; it goes on to release and record. `message` is shown last."""
        if code not in self.failures:
            self.failures.append(code)
        if message:
            self.messages.append(message)
        self.exit_code = max(self.exit_code, exit_code)
        self.save()

    def save(self) -> None:
        """Write run.json: what another process needs to finish this run."""
        state = {
            "run": self.run,
            "name": self.name,
            "allocationId": self.allocation_id,
            "failures": self.failures,
            "startedAt": self.started,
            "overrides": self.overrides,
            "simulated": self.simulated,
            "rentedAt": self.rented_at,
            "spec": self.spec.model_dump(mode="json"),
        }
        atomic_write(self.folder / "run.json", canonical_json(state), mode=0o600)


def leg_id(slot: Slot) -> str:
    """Return the leg's id, `s000`."""
    return f"s{slot.index:03d}"


def create(spec: RunSpec, out: Path, screen: Screen, overrides: list[str]) -> RunContext:
    """Make the run folder `out/<run>/`."""
    run = new_run_id()
    name = f"gh-{run}-{secrets.token_hex(4)}"
    folder = out / run
    try:
        (folder / "parts").mkdir(parents=True)
    except OSError as error:
        raise UsageError(
            f"cannot make the run folder: {error.strerror}",
            field="folder",
            value=folder,
            remedy="choose another with --out",
        ) from error
    context = RunContext(spec, run, name, folder, screen, build_schedule(spec), overrides=overrides)
    context.save()
    return context


def reopen(folder: Path, screen: Screen) -> RunContext:
    """Read a run folder that another process left unfinished. Raises UsageError."""
    try:
        state = parse_json((folder / "run.json").read_bytes())
        spec = RunSpec.model_validate_json(canonical_json(state["spec"]))
        context = RunContext(spec, state["run"], state["name"], folder, screen, build_schedule(spec))
        context.allocation_id = state["allocationId"]
        context.failures = list(state["failures"])
        context.started = float(state["startedAt"])
        context.overrides = list(state["overrides"])
        context.simulated = bool(state["simulated"])
        context.rented_at = state["rentedAt"]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            "not a run folder", field="run", value=folder, remedy="give a folder under runs/"
        ) from error
    return context


def slot_dict(slot: Slot) -> dict[str, Any]:
    """Return a slot as it stands in the plan."""
    return asdict(slot)


def public_allocation(name: str) -> str:
    """Return the digest under which an allocation is named in results: same machine, no id."""
    return sha256_hex(b"glasshouse/allocation/v1" + name.encode())


class RunLock:
    """Held by the process that works on a run folder, so that `reap` leaves live runs alone."""

    def __init__(self, folder: Path) -> None:
        self._descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def take(self, *, wait: bool = False) -> bool:
        """Take the lock; False when another process holds it."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Let go."""
        os.close(self._descriptor)
