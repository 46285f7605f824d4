"""Receive one file on the pod, resumable: `python -I -S -c SOURCE PATH SIZE MODE CHECKED` there.

It writes PATH.part, and renames it to PATH once all SIZE bytes are there; where CHECKED is `1`, only if their
digest matched too. Conversation, on stdin and stdout: it says `<bytes already there> <their digest>`; the
sender answers `a` (append after those) or `r` (from the start), sends the bytes and, where CHECKED is `1`,
the digest of all of them in hex; it says `done`.

Exit 3: the sender went away, the part is kept. Exit 4: damaged, or what lies there has another length by now,
and the part is removed. Exit 5: the machine refused, with the reason on stderr. Standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import sys
import time
from pathlib import Path

PIECE = 1 << 20


def digest_of_upload() -> hashlib.blake2b:
    """Start the digest that both ends compare: 256 bits of BLAKE2b.

    Nothing records it, so it need not be SHA-256, which takes 1.5 times as long on processors without
    instructions for it.
    """
    return hashlib.blake2b(digest_size=32)


def _open(part: Path) -> int:
    """Open the part file for this process alone."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(part, flags, 0o600)
    for _ in range(50):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            time.sleep(0.1)
    # The receiver of a connection that never ended still holds it: leave it that inode, and take a fresh one.
    os.close(descriptor)
    part.unlink(missing_ok=True)
    descriptor = os.open(part, flags, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def _widen_stdin() -> None:
    # A pipe holds 64 KiB, and the SSH server wakes, writes and opens its window for each of these: that costs
    # twice its work, and the sender's too. Stdin may be no pipe; a user's share of pipe memory is limited.
    with contextlib.suppress(OSError):
        fcntl.fcntl(0, fcntl.F_SETPIPE_SZ, PIECE)


def receive(path: Path, size: int, mode: int, *, checked: bool) -> int:
    """Hold the conversation; return the exit status."""
    _widen_stdin()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    descriptor = _open(part)
    hasher = digest_of_upload()
    have = os.fstat(descriptor).st_size
    if have > size:
        os.ftruncate(descriptor, 0)
        have = 0
    view = memoryview(bytearray(PIECE))
    while count := os.readv(descriptor, [view]):
        hasher.update(view[:count])
    sys.stdout.write(f"{have} {hasher.hexdigest()}\n")
    sys.stdout.flush()
    answer = os.read(0, 1)
    if answer not in (b"a", b"r"):
        return 3
    if answer == b"r":
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        hasher, have = digest_of_upload(), 0
    while have < size:
        count = os.readv(0, [view[: min(PIECE, size - have)]])
        if not count:
            return 3
        if checked:
            hasher.update(view[:count])
        if os.fstat(descriptor).st_size != have:  # cut off meanwhile: what is written now would leave a hole
            part.unlink(missing_ok=True)
            return 4
        written = 0
        while written < count:
            written += os.write(descriptor, view[written:count])
        have += count
    digest = b"" if checked else hasher.hexdigest().encode()
    while len(digest) < 64 and (piece := os.read(0, 64 - len(digest))):
        digest += piece
    if len(digest) < 64:
        return 3
    mine, there = os.fstat(descriptor), part.lstat()
    if not os.path.samestat(mine, there):
        return 4  # another receiver took its place
    if mine.st_size != size or hasher.hexdigest().encode() != digest:
        part.unlink()
        return 4
    os.fchmod(descriptor, mode)
    part.replace(path)
    sys.stdout.write("done\n")
    return 0


if __name__ == "__main__":
    try:
        size, mode = int(sys.argv[2]), int(sys.argv[3], 8)
        sys.exit(receive(Path(sys.argv[1]), size, mode, checked=sys.argv[4] == "1"))
    except OSError as error:
        sys.stderr.write(f"{error.strerror}\n")
        sys.exit(5)
