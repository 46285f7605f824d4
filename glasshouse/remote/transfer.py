"""Files to and from a pod, resumable, and compared with a digest once.

That is BLAKE2b on both ends, unless somebody else compares: a sealed package is authenticated chunk by chunk
where it is opened, and outputs have their SHA-256 in an event that the pod signed. To hash those here as well
took a third of a transfer and told nobody more.

What the pod says in a transfer is held against the only forms it may have, every wait has an end, and nothing
is read past what was announced. Whether the pod keeps what it says it has taken, no transfer can tell: who
opens the file there finds out.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import math
import os
import re
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import paramiko

from glasshouse.codes import Code
from glasshouse.errors import NoRoom, OutcomeUnknown, RemoteError
from glasshouse.remote import receive_script, send_script
from glasshouse.remote.channel import disk_full, receive_into, session
from glasshouse.remote.connection import Link

if TYPE_CHECKING:
    from hashlib import blake2b

# Bytes done, bytes in total. Sending, the first call says what of an earlier try the pod has.
TransferProgress = Callable[[int, int], None]
STALL_SECONDS = 60.0  # without the far side taking or giving a byte
SLOWEST = 250e3  # bytes a second: the slowest link that is still waited for
_READ = 1 << 20
# Bytes written to a file at once: of more the kernel makes large pages in its cache, and on a virtual machine
# that gives back what it does not use, these come from the host anew: four times the processor time.
_WRITE = 1 << 17
_WORDS_SECONDS = 5.0  # for what an end that ended wrote to stderr
_LINE = 100  # bytes of a line in the conversation, at most
_HOLDS = re.compile(rb"([0-9]{1,20}) ([0-9a-f]{64})\n")
_OFFERS = re.compile(rb"([0-9]{1,20}) ([0-9]{1,20})\n")
_PACKET_FRAME = 64  # bytes that paramiko keeps of a packet for what frames the data


def send_file(
    link: Link,
    python: str,
    data: bytes | Path,
    path: str,
    *,
    mode: int,
    checked: bool,
    request_timeout: float,
    progress: TransferProgress | None,
) -> None:
    """Put `data` at `path` on the pod, making its folder (0700) when missing.

    checked: compare a digest of all bytes; without it, their number alone. What an interrupted transfer of
    the same file left is verified and continued in either case. Raises OutcomeUnknown when the connection
    dies or stalls, RemoteError when the pod refuses or cannot be believed, or the bytes arrive damaged.
    """
    with io.BytesIO(data) if isinstance(data, bytes) else data.open("rb") as source:
        size = source.seek(0, os.SEEK_END)
        source.seek(0)
        script = Path(receive_script.__file__).read_text(encoding="utf-8")
        argv = [python, "-I", "-S", "-c", script, path, str(size), f"{mode:o}", f"{checked:d}"]
        with session(link, argv, request_timeout) as channel:
            patience = STALL_SECONDS + size / 100e6  # it hashes what is there before it speaks
            start, hasher = _agree(channel, source, path, size=size, patience=patience)
            channel.settimeout(STALL_SECONDS)
            hashed = hasher.update if checked else None
            sent = _stream(channel, source, done=start, size=size, hashed=hashed, progress=progress)
            _finish(channel, hasher.hexdigest() if checked else "", path, whole=sent == size)


def _agree(
    channel: paramiko.Channel,
    source: io.BytesIO | io.BufferedReader,
    path: str,
    *,
    size: int,
    patience: float,
) -> tuple[int, blake2b]:
    """Compare what is already there with our own prefix; leave `source` and the hash where sending starts."""
    line = _line(channel, patience)
    said = _HOLDS.fullmatch(line)
    if said is None:
        raise _unheard(channel, line, path, "take")
    have, digest = int(said[1]), said[2].decode("ascii")
    if have > size:
        raise _strange(path, "it says that it has more of the file than there is")
    hasher = receive_script.digest_of_upload()
    left = have
    while left and (piece := source.read(min(left, _READ))):
        hasher.update(piece)
        left -= len(piece)
    if hasher.hexdigest() == digest:
        channel.sendall(b"a")
        return have, hasher
    source.seek(0)
    channel.sendall(b"r")
    return 0, receive_script.digest_of_upload()


def _stream(
    channel: paramiko.Channel,
    source: io.BytesIO | io.BufferedReader,
    *,
    done: int,
    size: int,
    hashed: Callable[[memoryview], None] | None,
    progress: TransferProgress | None,
) -> int:
    """Send from `done` to `size`; hash on a thread beside, since encryption takes as long as hashing.

    Returns how many bytes have gone in all: fewer than `size` where the far side no longer reads.
    """
    # Whole packets: what is left over of a piece costs both ends as much as a full one.
    packet = min(channel.out_max_packet_size - _PACKET_FRAME, _READ)
    if progress is not None:
        progress(done, size)
    # One is sent while the other is still being hashed.
    buffers = [memoryview(bytearray(_READ // packet * packet)) for _ in range(2)]
    hashing: Future[None] | None = None
    with ThreadPoolExecutor(1) as pool:
        while done < size and (count := source.readinto(buffers[0][: size - done])):
            piece = buffers[0][:count]
            buffers.reverse()
            if hashing is not None:
                hashing.result()
            hashing = None if hashed is None else pool.submit(hashed, piece)
            until = time.monotonic() + _patience(count)
            for start in range(0, count, packet):
                try:
                    _send(channel, bytes(piece[start : start + packet]), until)
                except TimeoutError:
                    raise
                except OSError:
                    return done  # the far side stopped reading: its exit status says why
            done += count
            if progress is not None:
                progress(done, size)
    return done


def _send(channel: paramiko.Channel, data: bytes, until: float) -> None:
    """As `sendall`, but a far side that opens its window byte by byte has until then (monotonic seconds)."""
    while data:
        if time.monotonic() > until:
            raise TimeoutError("the pod takes next to nothing")
        data = data[channel.send(data) :]


def _patience(size: int) -> float:
    """Seconds in which `size` bytes must have come or gone: on any link worth waiting for they have."""
    return STALL_SECONDS + size / SLOWEST


def _finish(channel: paramiko.Channel, digest: str, path: str, *, whole: bool) -> None:
    with contextlib.suppress(OSError):  # it may have ended already: what it said tells why
        _send(channel, digest.encode("ascii"), time.monotonic() + STALL_SECONDS)
        channel.shutdown_write()
    line = _line(channel, STALL_SECONDS)
    if line != b"done\n":
        raise _unheard(channel, line, path, "take")
    if channel.recv(1):
        raise _strange(path, "it goes on after its last word")
    channel.status_event.wait(STALL_SECONDS)
    if channel.exit_status != 0:
        raise _refused(channel, path, "take")
    if not whole:
        raise _strange(path, "it says that it has a file of which it took a part")


def _unheard(channel: paramiko.Channel, line: bytes, path: str, what: str) -> RemoteError:
    """The error for a line that is none of those it may be; a line cut short says that the far end ended."""
    if line.endswith(b"\n") or len(line) == _LINE:
        return _strange(path, "it answered with something else")
    return _refused(channel, path, what)


def _strange(path: str, what: str) -> RemoteError:
    return RemoteError(
        f"the pod cannot be believed about a file: {what}",
        field="path",
        value=path,
        remedy="take another machine, or find out what on this one answers in our receiver's place",
    )


def _refused(channel: paramiko.Channel, path: str, what: str) -> RemoteError:
    """Say why the pod's end ended; `what` it was to do with the file."""
    channel.status_event.wait(STALL_SECONDS)
    code = channel.exit_status
    if code in (-1, 3):
        return OutcomeUnknown("the connection died while a file was on its way")
    if code == 4:
        return RemoteError(
            "a file arrived damaged", field="path", value=path, remedy="send it again", code=Code.FILE_DAMAGED
        )
    if code in (126, 127):
        return RemoteError(
            "the pod has no such interpreter",
            remedy="give in provider.python= the path of Python 3.11 or later there",
            code=Code.PYTHON_UNUSABLE,
        )
    if code == 0:
        return _strange(path, "its end ended well and did not say so")
    reason, until = b"", time.monotonic() + _WORDS_SECONDS
    channel.settimeout(_WORDS_SECONDS)
    with contextlib.suppress(TimeoutError):  # something may hold it open
        while (
            len(reason) < 400
            and time.monotonic() < until
            and (piece := channel.recv_stderr(400 - len(reason)))
        ):
            reason += piece
    lines = reason.decode("utf-8", "replace").split("\n")
    return RemoteError(
        f"the pod could not {what} a file ({lines[0] or f'exit {code}'})",
        field="path",
        value=path,
        remedy="check space and permissions there",
        code=disk_full(lines[0]),
    )


def receive_file(
    link: Link,
    python: str,
    path: str,
    target: Path,
    *,
    max_bytes: int,
    sha256: str | None,
    request_timeout: float,
    progress: TransferProgress | None,
) -> None:
    """Write the file `path` of the pod to `target` (0600); resume TARGET.part; verify; rename.

    sha256: of the whole file (64 hex), where somebody signed it; else the pod hashes what it sends. Raises
    OutcomeUnknown when the connection dies or stalls (then the part stays for the next try), NoRoom when the
    disk here is full (then it does not), RemoteError when
    the file cannot be read, is larger than `max_bytes` or becomes shorter meanwhile, when the bytes arrive
    damaged, and when the pod cannot be believed.
    """
    part = target.with_name(target.name + ".part")
    with os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b") as file:
        new = receive_script.digest_of_upload if sha256 is None else hashlib.sha256
        hasher = new()
        while before := file.read(_READ):
            hasher.update(before)
        resumed = file.tell()
        script = Path(send_script.__file__).read_text(encoding="utf-8")
        argv = [python, "-I", "-S", "-c", script, path, str(resumed), str(max_bytes), f"{sha256 is None:d}"]
        with session(link, argv, request_timeout) as channel, ThreadPoolExecutor(1) as pool:
            patience = STALL_SECONDS + resumed / 100e6  # it hashes what we have, too
            channel.shutdown_write()
            size, done = _announced(channel, path, resumed=resumed, patience=patience)
            channel.settimeout(patience)
            if size > max_bytes:
                raise RemoteError("a file on the pod is larger than allowed", field="bytes", value=size)
            if done != resumed:
                file.seek(0)
                file.truncate()
                hasher, resumed = new(), 0

            def keep(piece: memoryview) -> None:
                try:
                    for start in range(0, len(piece), _WRITE):
                        file.write(piece[start : start + _WRITE])
                    file.flush()
                except OSError as error:
                    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                        raise
                    part.unlink(missing_ok=True)  # what must still be written needs the room more
                    raise NoRoom("the disk here is full", field="folder", value=target.parent) from error
                hasher.update(piece)

            # One fills while the other is kept.
            views = [memoryview(bytearray(_READ)) for _ in range(2)]
            keeping: Future[None] | None = None
            while done < size and (piece := _gather(channel, views[0][: size - done])):
                views.reverse()
                done += len(piece)
                if keeping is not None:
                    keeping.result()
                keeping = pool.submit(keep, piece)  # beside the next piece's decryption
                if progress is not None:
                    progress(done, size)
            if keeping is not None:
                keeping.result()
            digest = sha256
            if digest is None:
                digest = bytes(_gather(channel, memoryview(bytearray(64)))).decode("ascii", "replace")
            if done < size or len(digest) < 64:
                raise _short(channel, path, part)
    if hasher.hexdigest() != digest:
        part.unlink()
        if resumed and sha256 is not None:  # perhaps only what was there before: once more, all of it
            receive_file(
                link, python, path, target, max_bytes=max_bytes, sha256=sha256,
                request_timeout=request_timeout, progress=progress,
            )  # fmt: skip
            return
        raise RemoteError(
            "a file came back damaged",
            field="file",
            value=target.name,
            remedy="fetch it again",
            code=Code.FILE_DAMAGED,
        )
    part.replace(target)


def _announced(channel: paramiko.Channel, path: str, *, resumed: int, patience: float) -> tuple[int, int]:
    """Read (size, offset) from the sender's first line; the offset is what was asked for, or 0."""
    line = _line(channel, patience)
    said = _OFFERS.fullmatch(line)
    if said is None:
        raise _unheard(channel, line, path, "give")
    size, offset = int(said[1]), int(said[2])
    if offset not in (0, resumed) or offset > size:
        raise _strange(path, "it begins where nobody asked it to")
    return size, offset


def _short(channel: paramiko.Channel, path: str, part: Path) -> RemoteError:
    """Say why fewer bytes came than were announced."""
    channel.status_event.wait(STALL_SECONDS)
    if channel.exit_status == -1:
        return OutcomeUnknown("the connection died while a file was fetched")
    if channel.exit_status != 0:
        return _refused(channel, path, "give")
    part.unlink()  # what the pod said behind the file's end may stand in it
    return RemoteError(
        "a file on the pod became shorter while it was fetched",
        field="path",
        value=path,
        remedy="fetch it again when nothing writes to it",
        code=Code.FILE_DAMAGED,
    )


def _line(channel: paramiko.Channel, patience: float) -> bytes:
    """Read up to a newline, _LINE bytes or the end, for so many seconds in all."""
    line, until = b"", time.monotonic() + patience
    while not line.endswith(b"\n") and len(line) < _LINE:
        channel.settimeout(max(until - time.monotonic(), 0.001))
        if not (byte := channel.recv(1)):
            break
        line += byte
    return line


def _gather(channel: paramiko.Channel, view: memoryview) -> memoryview:
    """Fill `view`, and return what of it was filled: less at the end of the output."""
    done, until = 0, math.inf
    while done < view.nbytes and (count := receive_into(channel, view[done:])):
        done += count
        now = time.monotonic()
        until = min(until, now + _patience(view.nbytes))  # the channel has a time-out for the first byte
        if done < view.nbytes and now > until:
            raise TimeoutError("the pod gives next to nothing")
    return view[:done]
