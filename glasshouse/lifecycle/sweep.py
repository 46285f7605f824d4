"""A sweep whose cells run in processes of a launcher: one word that reaches them all, and what they left.

    OUT/.sweeps/<id>/lock   held by the process that began the sweep, for as long as it lives
    OUT/.sweeps/<id>/stop   why every cell is to end: the operator's wish
    OUT/.sweeps/<id>/hold   why no cell may rent any more: a clean-up that is not proven

Files, since launchers share nothing else on this host and on others: OUT is where all of them write runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from glasshouse.errors import CleanupNotProven, UsageError, harmless
from glasshouse.lifecycle.run_folder import RunLock
from glasshouse.providers.journal import Entry, Journal

GIVEN_BACK_SEC = 600.0  # how long is waited for watchdogs that give back what killed cells held
IDLE_SEC = 5.0  # nobody works on a run for so long: its watchdog is gone as well
SAID_EVERY_SEC = 10.0
_LOOK_SEC = 0.5


@dataclass(frozen=True)
class Sweep:
    """One sweep, as all of its processes see it. Launchers pickle it. `host`: where it was begun."""

    folder: Path
    host: str

    def stop(self, why: str) -> None:
        """Let every cell end and give back what it holds. The first reason stays."""
        self._write("stop", why)

    def hold(self, why: str) -> None:
        """Let no cell rent any more; those that have a machine go on."""
        self._write("hold", why)

    def stopped(self) -> str:
        """Why every cell is to end; "" while the sweep goes on."""
        why = self._read("stop")
        return why or ("the process that began the sweep is gone" if self.abandoned() else "")

    def held(self, journal: Journal) -> str:
        """Why no cell may rent any more; "" while they may."""
        for entry in self.left(journal):
            if entry.proof not in (None, "zero"):
                self.hold(f"{entry.name} may be left")
        return self._read("hold")

    def left(self, journal: Journal) -> tuple[Entry, ...]:
        """What cells of this sweep hold, or left and nobody has proven gone."""
        return tuple(one for one in journal.open_entries() if one.detail.get("sweep") == str(self.folder))

    def _write(self, name: str, why: str) -> None:
        # A folder that is gone says it as well.
        with contextlib.suppress(OSError), (self.folder / name).open("x", encoding="utf-8") as file:
            file.write(why)

    def _read(self, name: str) -> str:
        try:
            return (self.folder / name).read_text(encoding="utf-8") or "asked for"
        except OSError:
            return ""

    def abandoned(self) -> bool:
        """Whether the process that began the sweep is gone."""
        try:
            descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            # Removed at its end; or this is another host, which may share no folder with that one.
            return socket.gethostname() == self.host
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:  # held; or a file system without locks, which cannot tell
            return False
        finally:
            os.close(descriptor)
        return True


_at_work = threading.Lock()
_leaving: list[threading.Thread] = []


@contextmanager
def in_worker(sweep: Sweep, parent: int) -> Iterator[None]:
    """Run a cell in a launcher's worker; in process `parent`, which began the sweep, as any other code.

    A worker ignores Ctrl-C: one that it ends between two cells takes its whole pool with it, and the parent
    is asked as well. Where the parent is gone, the worker ends with its cell: joblib's would wait for ever.
    """
    if os.getpid() == parent:
        yield
        return
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not _leaving:
        _leaving.append(threading.Thread(target=_leave, args=(sweep,), name="sweep-orphan", daemon=True))
        _leaving[0].start()
    with _at_work:
        yield


def _leave(sweep: Sweep) -> None:
    """End this process when the sweep's parent was killed; one that ends by itself removes the folder."""
    while sweep.folder.exists():
        if sweep.abandoned() and (sweep.folder / "lock").exists():
            with _at_work:
                os._exit(1)
        time.sleep(_LOOK_SEC)


@contextmanager
def begun(out: Path) -> Iterator[Sweep]:
    """Begin a sweep whose runs go to `out`, an absolute path. Raises UsageError where nothing can be written.

    On the way out, however it ends: wait for what its cells left, and raise CleanupNotProven where that is
    not proven gone; else KeyboardInterrupt where it was stopped.
    """
    folder = out / ".sweeps" / f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True)
        lock = RunLock(folder)
        lock.take(wait=True)
    except OSError as error:
        raise UsageError(
            f"cannot make the sweep's folder: {error.strerror}", field="folder", value=folder,
            remedy="choose another with --out",
        ) from error  # fmt: skip
    sweep = Sweep(folder, socket.gethostname())
    try:
        try:
            with _told(sweep):
                yield sweep
        except BaseException as error:
            sweep.stop(type(error).__name__)  # whatever goes on in spite of it
            _settle(sweep)
            raise
        _settle(sweep)
        if sweep._read("stop"):
            raise KeyboardInterrupt
    except CleanupNotProven:
        raise  # and the folder stays: whoever still holds something is to see that it ends
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    else:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        lock.close()


@contextmanager
def _told(sweep: Sweep) -> Iterator[None]:
    """Let the first Ctrl-C or SIGTERM stop the cells, and the next one the launcher itself."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def heard(_signal: int, _frame: FrameType | None) -> None:
        if sweep._read("stop"):
            raise KeyboardInterrupt
        sweep.stop("interrupted")
        _say("interrupted: the cells give back what they hold; once more leaves that to their watchdogs")

    before = [(number, signal.signal(number, heard)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _settle(sweep: Sweep) -> None:
    """Wait while watchdogs give back what cells left. Raises CleanupNotProven where that is not proven."""
    idle: dict[str, float] = {}
    end, said = time.monotonic() + GIVEN_BACK_SEC, 0.0
    with Journal() as journal:
        left = sweep.left(journal)
        try:
            while time.monotonic() < end and [entry for entry in left if _in_work(entry, idle)]:
                if time.monotonic() - said >= SAID_EVERY_SEC:
                    said = time.monotonic()
                    _say(f"watchdogs give back {_names(left)}; waiting for the proof")
                time.sleep(0.2)
                left = sweep.left(journal)
        except KeyboardInterrupt:
            pass  # then it is said as it stands
        left = sweep.left(journal)
    if left:
        raise CleanupNotProven(
            f"CLEAN-UP NOT PROVEN: {_names(left)}: cells of this sweep ended before it was proven",
            remedy="it may still cost money until `glasshouse reap` says that nothing is left",
        )


def _in_work(entry: Entry, idle: dict[str, float]) -> bool:
    """Whether somebody still works on the run of this entry, or only just ceased to."""
    if entry.proof is not None:
        return False  # a release has ended, and proven nothing
    try:
        lock = RunLock(Path(str(entry.detail.get("folder", ""))))
    except OSError:
        return False
    try:
        busy = not lock.take()
    finally:
        lock.close()
    if busy:
        idle.pop(entry.name, None)
        return True
    return time.monotonic() - idle.setdefault(entry.name, time.monotonic()) < IDLE_SEC


def _names(entries: tuple[Entry, ...]) -> str:
    return ", ".join(
        f"{entry.name} at {entry.provider}, id {entry.allocation_id or 'not known'}" for entry in entries
    )


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{harmless(text)}\n")
        sys.stderr.flush()
