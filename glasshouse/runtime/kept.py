"""The supervisor's side of a keeper: its ciphertext becomes files of the leg's folder, each with its event.

    checkpoints/000001.sealed    the newest, and one before it (looking.kept)
    watch/000001.sealed          the newest MAX_WATCH_FILES

A file has its name once it has the size and the digest that the keeper said, and its event follows. What the
keeper says is checked like anybody's word, and one that says anything else, hangs or dies is ended; the leg
goes on without it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import select
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from glasshouse.canonical import MAX_SAFE_INTEGER
from glasshouse.errors import LegError
from glasshouse.runtime import looking
from glasshouse.runtime.channel import Channel, ChannelClosedError, Message
from glasshouse.runtime.params import SAID
from glasshouse.runtime.residue import Needle, Scannable, ScannedProcess, ServingProcess
from glasshouse.runtime.results import Keeping
from glasshouse.sealing.packing import write_all

END_SEC = 15.0  # for a keeper to end when told to, whatever it is doing
ONE_MORE_SEC = 45.0  # and for the checkpoint of the end, of a session (keeper.LAST_SEC, and a disk)
STEP_SEC = 60.0  # for a message that has to follow, and for bytes that were announced
FOLDERS = {"checkpoint": "checkpoints", "watch": "watch"}
EVENTS = {"checkpoint": "checkpoint-sealed", "watch": "watched"}
MAX_BYTES = {"checkpoint": 64 << 30, "watch": 128 << 10}
MAX_NUMBER = {"checkpoint": 20_000, "watch": 100_000}  # an event each, of which a bundle has so many
MAX_WATCH_FILES = 4096
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_READ = 1 << 20
_STATES = ("whole", "unmarked")


class BrokenKeeperError(Exception):
    """A keeper has said what none of ours says."""


def sealed_name(number: int) -> str:
    """The name of the file with this number."""
    return f"{number:06d}.sealed"


class _Part:
    """A file on its way: what came of it, which is thrown away where it cannot be written."""

    def __init__(self, kind: str, number: int, place: Path) -> None:
        self.kind, self.number, self.size = kind, number, 0
        self._place = place
        self._partial = place.with_name(f"{place.name}.partial")
        self._digest = hashlib.sha256()
        self.written = False
        with contextlib.suppress(OSError):
            place.parent.mkdir(mode=0o700, exist_ok=True)
            self._file = self._partial.open("wb", buffering=0)
            self.written = True

    def feed(self, data: bytes) -> None:
        """Take what came next."""
        self.size += len(data)
        if self.size > MAX_BYTES[self.kind]:
            raise BrokenKeeperError
        self._digest.update(data)
        if self.written:
            try:
                write_all(self._file, data)
            except OSError:  # the disk is full, as a rule: it is not to be filled by what is of no use
                self.drop()

    def drop(self) -> None:
        """Remove it. Idempotent."""
        if self.written:
            self.written = False
            self._file.close()
            with contextlib.suppress(OSError):
                self._partial.unlink()

    def named(self, sha256: str) -> bool:
        """Give it its name; False where it could not be written. Raises BrokenKeeperError for other bytes."""
        if self._digest.hexdigest() != sha256:
            raise BrokenKeeperError
        if self.written:
            try:
                self._file.close()
                self._partial.rename(self._place)
            except OSError:
                self.drop()
                return False
        return self.written


class Kept(threading.Thread):
    """Serves one keeper in a thread of its own, until `end` or until it is gone.

    `event` appends one to the leg's chain, and `log` takes lines for the job's owner.
    """

    def __init__(
        self,
        channel: Channel,
        pipe: int,
        folder: Path,
        event: Callable[[str, Mapping[str, Any]], None],
        log: Callable[[bytes], None],
    ) -> None:
        super().__init__(name="kept", daemon=True)
        self._channel, self._pipe, self._folder = channel, pipe, folder
        self._event, self._log = event, log
        self._wake, self._waker = os.pipe()
        self._signing = threading.Lock()
        self._closed = False  # nothing is signed any more
        self._stopping = self._one_more = False
        self._part: _Part | None = None
        self._next = dict.fromkeys(FOLDERS, 1)
        self._missed = dict.fromkeys(FOLDERS, 0)
        self._states: dict[int, str] = {}
        self._scannable: Scannable | None = None
        self._marker: bytearray | None = None  # once it has ended its work
        self.pid: int | None = None

    def run(self) -> None:
        """Take what it seals."""
        try:
            self._meet()
            while self._marker is None:
                self._serve()
        except (ChannelClosedError, LegError, OSError, BrokenKeeperError):
            pass  # `end` and `kill` see to what is left of it
        finally:
            part, self._part = self._part, None
            if part is not None:
                part.drop()

    def end(self, needles: list[Needle], *, one_more: bool = False) -> tuple[Keeping, list[Needle], int]:
        """Have it end its work, if `one_more` after one more checkpoint of what is there by now; search its
        memory for `needles`, reap it. What became of it, and what was found: none where it could not be
        searched, since it is gone then; and how many regions were unread.
        """
        self._one_more = one_more
        os.write(self._waker, b"e")
        self.join(END_SEC + (ONE_MORE_SEC if one_more else 0.0))
        died = not self.is_alive() and self._marker is None
        self.close()
        found, unread = list[Needle](), 0
        if not self.is_alive() and self._marker is not None:
            with contextlib.suppress(ChannelClosedError, LegError, OSError):
                found, unread = self._searched(needles, self._marker)
                self._channel.send("exit")
        ended: Literal["asked", "killed", "died"] = "asked" if found else "died" if died else "killed"
        code = self._reap(asked=bool(found))
        if self._scannable is not None:
            self._scannable.close()
        made = self._next["checkpoint"] - 1
        missed = self._missed["checkpoint"]
        if ended != "asked":
            why = "ended by itself" if ended == "died" else "did not end when told to"
            self._say(f"the process that seals checkpoints {why}; sealed before that: {made}")
        elif missed:
            self._say(
                f"checkpoints that could not be made, sealed or written to disk: {missed}; sealed: {made}"
            )
        return Keeping(code, ended, made, missed), found, unread

    def close(self) -> None:
        """Sign nothing any more; what is on its way is dropped. For whichever way a leg ends. Idempotent."""
        with self._signing:
            self._closed = True

    def kill(self) -> None:
        """End it at once; it is reaped with whatever else is left below the supervisor. Idempotent."""
        self.close()
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    @property
    def how(self) -> str | None:
        """How its memory was read; None: it was not."""
        return None if self._scannable is None else self._scannable.how

    def _say(self, line: str) -> None:
        self._log(f"{SAID}{line}\n".encode())

    def _meet(self) -> None:
        descriptors = self._channel.receive_descriptors()
        if len(descriptors) == 2:
            self._scannable = ScannedProcess(*descriptors)
        else:
            self._scannable = ServingProcess(self._channel, lambda: STEP_SEC)
        body = self._channel.expect("hardened", STEP_SEC).body
        pid = body.get("pid")
        if type(pid) is not int or pid < 2:
            raise BrokenKeeperError
        try:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except (ChildProcessError, OverflowError) as error:  # none of ours
            raise BrokenKeeperError from error
        self.pid = pid
        if body.get("dumpable") != 0 or body.get("no_new_privs") is not True:
            raise BrokenKeeperError

    def _serve(self) -> None:
        ready, _, _ = select.select([self._channel.fileno(), self._pipe, self._wake], [], [])
        if self._wake in ready and not self._stopping:
            os.read(self._wake, 1)
            self._stopping = True
            self._channel.send("stop", {"oneMore": self._one_more})
        if self._channel.fileno() in ready or (self._pipe in ready and self._part is None):
            # What a pipe holds was announced before it was written: whoever sees the bytes first waits.
            self._hear(self._channel.receive(STEP_SEC))
        elif self._pipe in ready:
            self._drain()

    def _drain(self) -> None:
        data = os.read(self._pipe, _READ)
        if not data:
            raise ChannelClosedError("end of stream")
        if self._part is None:
            raise BrokenKeeperError
        self._part.feed(data)

    def _hear(self, said: Message) -> None:
        kind, body = said.body.get("kind"), said.body
        if said.kind == "ended":
            if not 16 <= len(said.raw) <= 64:
                raise BrokenKeeperError
            self._marker = said.raw
        elif said.kind == "given-up":
            part, self._part = self._arrived(body), None
            part.drop()
        elif kind not in FOLDERS:
            raise BrokenKeeperError
        elif said.kind == "missed":
            self._missed[kind] += 1
        elif said.kind == "sealing" and self._part is None and body.get("number") == self._next[kind]:
            place = self._folder / FOLDERS[kind] / sealed_name(self._next[kind])
            self._part = _Part(kind, self._next[kind], place)
        elif said.kind == "sealed":
            self._take(kind, body)
        else:
            raise BrokenKeeperError

    def _arrived(self, body: Mapping[str, Any]) -> _Part:
        """The file on its way, once all bytes of it that were said to have been written have come."""
        part, size = self._part, body.get("bytes")
        if part is None or type(size) is not int or not 0 <= size <= MAX_BYTES[part.kind]:
            raise BrokenKeeperError
        until = time.monotonic() + STEP_SEC
        while part.size < size:
            had = part.size
            if not select.select([self._pipe], [], [], max(0.0, until - time.monotonic()))[0]:
                raise BrokenKeeperError
            self._drain()
            until = time.monotonic() + STEP_SEC if part.size > had else until
        if part.size != size:
            raise BrokenKeeperError
        return part

    def _take(self, kind: str, body: Mapping[str, Any]) -> None:
        shown = checked(kind, self._next[kind], body)
        part = self._arrived(body)
        if part.kind != kind:
            raise BrokenKeeperError
        if self._stopping and not self._one_more and kind == "checkpoint":
            self._part = None  # told to end before it had said this: nothing comes of it
            part.drop()
            return
        number = part.number
        if number > MAX_NUMBER[kind] or not part.named(shown["ciphertextSha256"]):
            self._part = None
            part.drop()
            self._missed[kind] += 1
            self._channel.send("not-kept")
            return
        self._part = None
        with self._signing:
            if self._closed:
                self._remove(kind, number)
                return
            self._event(EVENTS[kind], shown)
        self._next[kind] += 1
        if kind == "checkpoint":
            self._states[number] = shown["state"]
            stay = looking.kept(self._states)
            for old in set(self._states) - stay:
                del self._states[old]
                self._remove(kind, old)
        else:
            self._remove(kind, number - MAX_WATCH_FILES)
        self._channel.send("kept")

    def _remove(self, kind: str, number: int) -> None:
        if number > 0:
            with contextlib.suppress(OSError):
                (self._folder / FOLDERS[kind] / sealed_name(number)).unlink()

    def _searched(self, needles: list[Needle], marker: bytearray) -> tuple[list[Needle], int]:
        assert self._scannable is not None
        sought = [*(Needle(each.klass, each.data) for each in needles), Needle("keeper-marker", marker)]
        for needle, count in zip(sought, self._scannable.scan(sought).counts, strict=True):
            needle.positive_control = count
        self._channel.send("wipe")
        self._channel.expect("wiped", STEP_SEC)
        scan = self._scannable.scan(sought)
        for needle, count in zip(sought, scan.counts, strict=True):
            needle.after = count
        return sought, scan.unreadable_regions

    def _reap(self, *, asked: bool) -> int | None:
        """Its exit code, negative for a signal; None where there was none of it, or it cannot be ended."""
        if self.pid is None:
            return None
        until = time.monotonic() + END_SEC
        if not asked:
            os.kill(self.pid, signal.SIGKILL)
        while time.monotonic() < until:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            if found:
                self.pid = None
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        self.kill()
        return None


def checked(kind: str, number: int, body: Mapping[str, Any]) -> dict[str, Any]:
    """What of a keeper's word on one sealed file goes into its event. Raises BrokenKeeperError."""
    size, digest = body.get("bytes"), body.get("ciphertextSha256")
    right = (
        body.get("number") == number
        and type(body.get("number")) is int
        and type(size) is int
        and 0 < size <= MAX_BYTES[kind]
        and _is_digest(digest)
    )
    shown = {"number": number, "bytes": size, "ciphertextSha256": digest}
    if kind == "checkpoint":
        steps, state, plain = body.get("steps"), body.get("state"), body.get("plaintextSha256")
        counted = steps is None or (type(steps) is int and 0 <= steps <= MAX_SAFE_INTEGER)
        right = right and counted and state in _STATES and _is_digest(plain)
        shown |= {"plaintextSha256": plain, "state": state, "steps": steps}
    if not right:
        raise BrokenKeeperError
    return shown


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and _DIGEST.match(value) is not None
