"""A run's payload and its sealed package: made in their turn, or in a thread while a rented machine boots.

Nothing in a package depends on the machine that it goes to, but for the wheels that a project needs: such a
package is sealed when the machine has said what it has. What was seen of the pod is in the reference that
its evidence is held against, and the broker learns of the package only once the pod was looked at.
"""

from __future__ import annotations

import io
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from glasshouse.canonical import b64u
from glasshouse.codes import Code
from glasshouse.errors import GlasshouseError, RentalOver, UsageError, unexpected
from glasshouse.lifecycle.live_run import LiveRun, Run
from glasshouse.lifecycle.meter import Meter
from glasshouse.records import keys
from glasshouse.runtime.params import MARKER_BYTES, MARKER_FILE
from glasshouse.sealing.container import fresh_payload_key, seal_package
from glasshouse.sealing.memory import overwrite
from glasshouse.workloads.package import Payload, Resumed, bring, go_on_from, prepare

_LOOK_SEC = 0.5  # how often a wait looks whether the sweep is to end, or the rental is over


class _Stopped(Exception):
    """The run has ended otherwise: nobody waits for the package any more."""


@dataclass(frozen=True)
class Sealed:
    """What `RunFolder.package` holds. `seconds` are what sealing took, overlapped or not.

    `key` is the payload key: whoever has registered it overwrites it. `markers` is the small package that
    protected legs get beside it, under the same key, so that one grant opens both; "" and b"" without such.
    """

    manifest_hash: str
    key: bytearray = field(repr=False)
    markers: bytes = field(repr=False)
    markers_hash: str
    seconds: float


Resume = Callable[[], AbstractContextManager[Resumed]]


class Packer:
    """Makes the payload and the package of one run. A context manager: leaving it ends its thread and waits
    for that, forgets the key, and notes a failure that nobody was told of.

    `launches`: protected slots; without any, no markers are made. `resume` opens what the run goes on from,
    if anything (lifecycle/resumed.py), until it is sealed. What it fails with is a StepFailed with
    seal-failed, or a fault that is no error of ours, such as a full disk.
    """

    def __init__(self, live: LiveRun, resume: Resume | None = None) -> None:
        self._live, self._resume = live, resume
        self.launches = sum(1 for slot in live.run.schedule if slot.lifecycle)
        self._payload: Payload | None = None
        self._sealed: Sealed | None = None
        self._thread: threading.Thread | None = None
        self._stop, self._done = threading.Event(), threading.Event()
        self._error: BaseException | None = None
        self._told = False
        self._held = ExitStack()  # what it goes on from, while it is to be sealed

    def begin(self) -> None:
        """Make both in a thread, from now on. What is hashed, encrypted and drawn there lets go of the
        interpreter's lock.
        """
        self._thread = threading.Thread(target=self._ahead, name="packer", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise what the thread failed with, if it has."""
        if self._error is not None:
            self._told = True
            raise self._error

    def payload(self) -> Payload:
        """The payload with its weights made, here or by the thread, whose end is waited for."""
        self._wait()
        if self._payload is None:
            self._payload = self._prepare()
        return self._payload

    def bring(self, wheels: Sequence[Path], unpacked_bytes: int) -> Payload:
        """Return the payload with these wheels, before it is sealed."""
        with self._live.step(Code.SEAL_FAILED):
            self._payload = bring(self.payload(), wheels, unpacked_bytes)
        return self._payload

    def sealed(self) -> Sealed:
        """The package, likewise."""
        payload = self.payload()
        if self._sealed is None:
            self._sealed = self._seal(payload)
        return self._sealed

    def stop(self) -> None:
        """Tell the thread to end within a chunk or a tensor, and do not wait for it."""
        self._stop.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self._thread is not None and self._thread.ident is not None:
            self._thread.join()
        self._held.close()
        if self._sealed is not None:
            overwrite(memoryview(self._sealed.key))
        failed = self._error
        if failed is not None and not self._told:
            # Whatever else the run ends with came beside it.
            why = failed.line() if isinstance(failed, GlasshouseError) else unexpected(failed)
            self._live.fail(Code.SEAL_FAILED, f"error: {why}", getattr(failed, "exit_code", 1))

    def _ahead(self) -> None:
        try:
            self._go_on()
            self._payload = self._prepare()
            if not self._payload.needs:
                self._sealed = self._seal(self._payload)
        except BaseException as error:  # noqa: BLE001 -- it is raised where somebody waits for the package
            if not self._stop.is_set():
                self._error = error
        finally:
            self._done.set()

    def _go_on(self) -> None:
        if self._stop.is_set():
            raise _Stopped

    def _wait(self) -> None:
        if self._thread is None:
            return
        if not self._done.is_set():
            with self._live.step(Code.SEAL_FAILED, "waiting for the package to be sealed"):
                while not self._done.wait(_LOOK_SEC):
                    self._live.check_stopped()
                    if time.monotonic() >= self._live.rental.deadline:
                        raise RentalOver
                self.check()
        self.check()

    def _prepare(self) -> Payload:
        with self._live.step(Code.SEAL_FAILED, "preparing the payload", meanwhile=self._thread is not None):
            payload = prepare(self._live.run.spec)
            payload.weights.make(self._go_on)  # for both arms: no part of what sealing costs
            if self._resume is not None:
                payload = go_on_from(self._held.enter_context(self._resume()), payload)
        return payload

    def _seal(self, payload: Payload) -> Sealed:
        ahead, screen = self._thread is not None, self._live.screen
        run, key = self._live.run.id, fresh_payload_key()
        try:
            with self._live.step(Code.SEAL_FAILED, "sealing the package", meanwhile=ahead):
                began = time.monotonic()
                markers, markers_hash = _markers(run, key) if self.launches else (b"", "")
                with self._live.folder.package.open("xb") as out:
                    manifest_hash = seal_package(
                        out,
                        payload_key=key,
                        files=payload.files,
                        tensors=payload,
                        extra={
                            "builder": payload.builder,
                            "ownerPublicKey": b64u(b"".join(keys.owner_publics())),
                            # Of the digests on which both arms must agree.
                            "matchSalt": b64u(secrets.token_bytes(32)),
                            "run": run,
                        },
                        progress=Meter("sealing", screen.progress_meanwhile if ahead else screen.progress),
                        check=self._go_on,
                        padded=self._live.run.spec.payload == "private",
                    )
                self._held.close()
                seconds = time.monotonic() - began
                return Sealed(manifest_hash, key, markers, markers_hash, seconds)
        except BaseException:
            overwrite(memoryview(key))
            raise


def _markers(run: str, key: bytearray) -> tuple[bytes, str]:
    """Seal what a residue search looks for, and stands nowhere else; (the small package, its manifest hash).

    Apart from the payload, so that a raw leg, which opens that, never has them in its memory.
    """
    out = io.BytesIO()
    files = {MARKER_FILE: secrets.token_bytes(MARKER_BYTES)}
    digest = seal_package(out, payload_key=key, files=files, tensors=(), extra={"run": run})
    return out.getvalue(), digest


def key_for_raw_legs(run: Run, key: bytearray) -> bytearray:
    """Copy the payload key for the raw slots of a run, before the broker takes it; empty without such slots.

    The one way to it beside a grant. A private payload has none: UsageError, though no such run is planned.
    """
    if all(slot.lifecycle for slot in run.schedule):
        return bytearray()
    if run.spec.payload != "public":
        raise UsageError(
            "no raw leg opens a private payload", field="payload", value=run.spec.payload,
            remedy="give payload=public, or order=protected-only",
        )  # fmt: skip
    return bytearray(key)
