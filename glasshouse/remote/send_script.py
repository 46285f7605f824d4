"""Send one file from the pod, resumable: `python -I -S -c SOURCE PATH OFFSET LIMIT CHECKED` there.

On stdout it says `<size> <offset>` and a newline, then gives the bytes from that offset and, where CHECKED is
`1`, the BLAKE2b digest (256 bits, hex) of all SIZE bytes. Of a file larger than LIMIT it gives the first line
alone; an OFFSET past the end counts as 0. Exit 5: the machine refused, with the reason on stderr. Standard
library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor

PIECE = 1 << 20


def send(path: str, offset: int, limit: int, *, checked: bool) -> None:
    """Write to stdout what the module's docstring says."""
    with contextlib.suppress(OSError):  # as in receive_script: a pipe of 64 KiB costs both ends
        fcntl.fcntl(1, fcntl.F_SETPIPE_SZ, PIECE)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    size = os.fstat(descriptor).st_size
    offset = offset if offset <= size else 0
    _write(memoryview(f"{size} {offset}\n".encode()))
    if size > limit:
        return
    view = memoryview(bytearray(PIECE))
    if not checked:
        position = os.lseek(descriptor, offset, os.SEEK_SET)
        while position < size and (count := os.readv(descriptor, [view[: min(PIECE, size - position)]])):
            _write(view[:count])
            position += count
        return
    hasher, position = hashlib.blake2b(digest_size=32), 0
    with ThreadPoolExecutor(1) as pool:  # hashing takes about as long as writing: beside each other
        while position < size and (count := os.readv(descriptor, [view[: min(PIECE, size - position)]])):
            hashed = pool.submit(hasher.update, view[:count])
            if position + count > offset:
                _write(view[max(0, offset - position) : count])
            hashed.result()
            position += count
    _write(memoryview(hasher.hexdigest().encode()))


def _write(view: memoryview) -> None:
    while view:
        view = view[os.write(1, view) :]


if __name__ == "__main__":
    try:
        send(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), checked=sys.argv[4] == "1")
    except OSError as error:
        sys.stderr.write(f"{error.strerror}\n")
        sys.exit(5)
