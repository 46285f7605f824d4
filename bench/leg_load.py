"""One sealed load by the processes of a leg; sealed_load.py starts it and holds the clock.

    python bench/leg_load.py PACKAGE MANIFEST_HASH THREADS     the key in hex on stdin, then a byte to begin

Says on stdout: `r` once the custodian has its pages and waits, as it does for a grant; `t` once the trainer,
forked from the custodian, has begun to read the opened package; then the number of pages that it has read.
No torch is in any of these processes, as none is in a custodian.
"""

from __future__ import annotations

import mmap
import os
import sys

from glasshouse.sealing.container import open_package, reserve


def main() -> int:
    path, digest, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    key = bytes.fromhex(os.read(0, 64).decode())
    custodian = os.fork()
    if custodian == 0:
        try:
            reserved = reserve(path, threads=threads)
            assert reserved is not None
            os.write(1, b"r")
            os.read(0, 1)
            package = open_package(reserved, payload_key=key, manifest_hash=digest, threads=threads)
            if os.fork() == 0:
                assert package.region[0] + package.region[-1] >= 0  # read, whatever they are
                os.write(1, b"t")
                found = memoryview(package.region)[:: mmap.PAGESIZE].tobytes()
                os.write(1, str(len(found)).encode())
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(custodian, 0)[1])


if __name__ == "__main__":
    sys.exit(main())
