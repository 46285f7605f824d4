"""A run's payload and its sealed package: made in their turn, or in a thread while a rented machine boots.

Nothing in a package depends on the machine that it goes to. What was seen of the pod is in the reference that
its evidence is held against, and the broker learns of the package only once the pod was looked at.
"""

from __future__ import annotations

import secrets
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from glasshouse.canonical import b64u
from glasshouse.codes import Code
from glasshouse.errors import GlasshouseError, RentalOver, unexpected
from glasshouse.lifecycle.live_run import LiveRun
from glasshouse.lifecycle.meter import Meter
from glasshouse.records import keys
from glasshouse.sealing.container import fresh_payload_key, seal_package
from glasshouse.sealing.grant import kem_public_bytes
from glasshouse.sealing.memory import overwrite
from glasshouse.workloads.package import Payload, prepare

_LOOK_SEC = 0.5  # how often a wait looks whether the sweep is to end, or the rental is over


class _Stopped(Exception):
    """The run has ended otherwise: nobody waits for the package any more."""


@dataclass(frozen=True)
class Sealed:
    """What `RunFolder.package` holds, `salt` too. `seconds` are what sealing took, overlapped or not.

    `key` is the payload key: whoever has registered it overwrites it.
    """

    manifest_hash: str
    key: bytearray = field(repr=False)
    salt: bytes = field(repr=False)
    seconds: float


class Packer:
    """Makes the payload and the package of one run. A context manager: leaving it ends its thread and waits
    for that, forgets the key, and notes a failure that nobody was told of.

    `launches`: protected slots; without any, nothing is sealed. What it fails with is a StepFailed with
    seal-failed, or a fault that is no error of ours, such as a full disk.
    """

    def __init__(self, live: LiveRun) -> None:
        self._live = live
        self.launches = sum(1 for slot in live.run.schedule if slot.lifecycle)
        self._payload: Payload | None = None
        self._sealed: Sealed | None = None
        self._thread: threading.Thread | None = None
        self._stop, self._done = threading.Event(), threading.Event()
        self._error: BaseException | None = None
        self._told = False

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
            if self.launches:
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
            words = "waiting for the package to be sealed" if self.launches else "waiting for the payload"
            with self._live.step(Code.SEAL_FAILED, words):
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
        return payload

    def _seal(self, payload: Payload) -> Sealed:
        ahead, screen = self._thread is not None, self._live.screen
        salt, key = secrets.token_bytes(32), fresh_payload_key()
        try:
            with self._live.step(Code.SEAL_FAILED, "sealing the package", meanwhile=ahead):
                began = time.monotonic()
                with self._live.folder.package.open("xb") as out:
                    manifest_hash = seal_package(
                        out,
                        payload_key=key,
                        # The marker exists nowhere but in the sealed package: what scans look for.
                        files={**payload.files, "marker": secrets.token_bytes(32)},
                        tensors=payload,
                        extra={
                            "builder": payload.builder,
                            "ownerPublicKey": b64u(kem_public_bytes(keys.owner_key())),
                            "matchSalt": b64u(salt),
                            "run": self._live.run.id,
                        },
                        progress=Meter("sealing", screen.progress_meanwhile if ahead else screen.progress),
                        check=self._go_on,
                        padded=self._live.run.spec.payload == "private",
                    )
                return Sealed(manifest_hash, key, salt, time.monotonic() - began)
        except BaseException:
            overwrite(memoryview(key))
            raise
