"""The folder of one run: where its files lie, how they are written, and how a torn one is repaired.

    run.json           what another process needs to finish the run (private)
    parts/             the bundle's files, each written when its fact is learnt; gone once the run is recorded
    bundle/            the evidence, whole and signed; there once the run is recorded
    outputs/           what legs sealed for the owner
    controller.log     what was shown while the run went on (private, see screen.py)
    watchdog.log       what the watchdog said
    lock               held by the process that works on the run

A controller can die between any two writes, and a pod can answer with anything. Neither may keep a registered
plan from ending as a row: from what is there, `glasshouse reap` writes the excluded row.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from glasshouse.canonical import canonical_json
from glasshouse.codes import Code
from glasshouse.errors import UsageError
from glasshouse.records.bundle import NAME
from glasshouse.records.keys import atomic_write
from glasshouse.remote.endpoint import Endpoint, HostKey, HostKeySource
from glasshouse.schema import Launch, Written
from glasshouse.spec import Arm, RunSpec

_ARMS: dict[str, Arm] = {"raw": "raw", "protected": "protected"}
_LEG = re.compile(r"s(\d{3})-(raw|protected)(?:-l([1-9]\d{0,2}))?\Z")


class SavedEndpoint(BaseModel):
    """Where a run's pod answers, for whoever comes after a dead controller. It names the key's file.

    host_keys are known_hosts lines, of the only keys that the pod may show.
    """

    model_config = ConfigDict(strict=True, frozen=True, alias_generator=to_camel, validate_by_name=True)

    host: str
    port: int
    user: str
    key_path: str
    host_key_source: HostKeySource
    host_keys: tuple[str, ...]
    python: str
    workdir: str

    @classmethod
    def of(cls, endpoint: Endpoint | None) -> SavedEndpoint | None:
        """What is kept of an endpoint; None of one whose host key is not known."""
        if endpoint is None or not endpoint.host_key.lines:
            return None
        return cls(
            host=endpoint.host,
            port=endpoint.port,
            user=endpoint.user,
            key_path=str(endpoint.key_path),
            host_key_source=endpoint.host_key.source,
            host_keys=endpoint.host_key.lines,
            python=endpoint.python,
            workdir=endpoint.workdir,
        )

    def endpoint(self) -> Endpoint:
        """The endpoint again."""
        return Endpoint(
            host=self.host,
            port=self.port,
            user=self.user,
            key_path=Path(self.key_path),
            host_key=HostKey(self.host_key_source, self.host_keys),
            python=self.python,
            workdir=self.workdir,
        )


class SavedLaunch(BaseModel):
    """A protected launch, for whoever follows it after a dead controller. `process`: its pid on the machine;
    started_at: Unix seconds; timings: seconds by phase, of what came before it.
    """

    model_config = ConfigDict(
        strict=True, frozen=True, alias_generator=to_camel, validate_by_name=True, allow_inf_nan=False
    )

    slot: int
    launch: int
    process: int
    started_at: float
    timings: dict[str, float]


class SavedRun(BaseModel):
    """run.json. started_at, rented_at and unattended_until are Unix seconds; name is the allocation's;
    controller is as glasshouse.host names a process, "" in folders of older versions. salt: of what the run
    publishes as digests (32 bytes, base64url): with it whoever finishes the run goes on hiding alike.
    """

    model_config = ConfigDict(
        strict=True, frozen=True, alias_generator=to_camel, validate_by_name=True, allow_inf_nan=False
    )

    run: str
    name: str
    allocation_id: str | None
    failures: tuple[str, ...]
    started_at: float
    overrides: tuple[str, ...]
    simulated: bool
    rented_at: float | None
    spec: RunSpec
    endpoint: SavedEndpoint | None = None
    controller: str = ""
    unattended_until: float = 0.0
    launched: SavedLaunch | None = None
    salt: Annotated[str, Field(pattern=r"^[A-Za-z0-9_\-]{43}$")] | None = None


class RunFolder:
    """The files of one run, under `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def parts(self) -> Path:
        """Where the bundle's files gather until it is written whole."""
        return self.path / "parts"

    @property
    def bundle(self) -> Path:
        """Folder of the evidence bundle; there once the run is recorded."""
        return self.path / "bundle"

    @property
    def outputs(self) -> Path:
        """Where the legs' sealed outputs are brought; they are the owner's, and no part of the bundle."""
        return self.path / "outputs"

    def sealed(self, leg: str, launch: int, name: str) -> Path:
        """Where a file that launch `launch` of leg `leg` left on the pod as `name` lies here."""
        return self.outputs / f"{leg}-{launch}-{name}"

    @property
    def package(self) -> Path:
        """The sealed package, until the run is recorded."""
        return self.path / "package.sealed"

    @property
    def log(self) -> Path:
        """What was shown while the run went on."""
        return self.path / "controller.log"

    def has(self, name: str) -> bool:
        """Whether this file of the bundle was written."""
        return (self.parts / name).exists()

    def write(self, name: str, value: Written) -> None:
        """Write a file of the bundle from the model by which it is read."""
        self.write_bytes(name, value.to_bytes())

    def write_json(self, name: str, value: object) -> None:
        """Write a file of the bundle whose fields are not ours to choose, such as a pod's own report."""
        self.write_bytes(name, canonical_json(value))

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file of the bundle; a reader sees the old bytes or the new."""
        path = self.parts / name
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, data)

    def save(self, run: SavedRun) -> None:
        """Write run.json."""
        state = run.model_dump(mode="json", by_alias=True)
        atomic_write(self.path / "run.json", canonical_json(state), mode=0o600)

    def saved(self) -> SavedRun:
        """Read run.json. Raises UsageError where it is none of this version of the program."""
        try:
            return SavedRun.model_validate_json((self.path / "run.json").read_bytes())
        except (OSError, ValidationError) as error:
            raise UsageError(
                "not a run folder", field="run", value=self.path, remedy="give a folder under runs/"
            ) from error

    def mend(self, code: str) -> None:
        """Drop torn and foreign files of the bundle to be; give every launch that has no launch.json one that
        says it failed with `code`.
        """
        for path in sorted(self.parts.rglob("*")):
            if path.is_file() and NAME.match(str(path.relative_to(self.parts))) is None:
                path.unlink()
            elif path.suffix == ".jsonl":
                data = path.read_bytes()
                whole = data[: data.rfind(b"\n") + 1]
                if whole != data:
                    atomic_write(path, whole)
                if not whole:
                    path.unlink()
        for leg in self._legs():
            if not (leg / "launch.json").exists():
                self._write_failed(leg, code)

    def strip(self) -> None:
        """Keep of every launch only that it failed: its files do not make evidence.

        The last resort, when a bundle of the files as they are would not verify.
        """
        for leg in self._legs():
            shutil.rmtree(leg)
            leg.mkdir()
            self._write_failed(leg, Code.EVIDENCE_UNUSABLE)

    def _legs(self) -> list[Path]:
        legs = self.parts / "legs"
        return [path for path in sorted(legs.iterdir()) if _LEG.match(path.name)] if legs.exists() else []

    def _write_failed(self, leg: Path, code: str) -> None:
        match = _LEG.match(leg.name)
        assert match is not None
        failed = Launch(
            slot=int(match[1]),
            arm=_ARMS[match[2]],
            launch=int(match[3] or 1),
            status="failed",
            code=code,
            timings={},
            raw_files_removed=None,
            started_at=round(leg.stat().st_mtime, 3),
            ended_at=round(time.time(), 3),
        )
        self.write(f"legs/{leg.name}/launch.json", failed)


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
