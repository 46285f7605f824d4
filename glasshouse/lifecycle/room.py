"""Whether a machine's memory holds a project's files, asked on the machine before any of them is sent.

They lie in its shared memory, which has a size of its own (64 MB in a container, if nobody says otherwise)
and takes its bytes from the memory that there is. No create call that we use has a field for either: RunPod's
refuses what its document does not name, Vast.ai shares both out by the part of the machine that one rents.
"""

from __future__ import annotations

import re

from glasshouse.codes import Code
from glasshouse.errors import LegError
from glasshouse.remote.pod import Pod
from glasshouse.runtime.linux import SHM

# Of each line what is asked for: the file system of the scratch folder; what the machine could give without
# swapping; and what the container may have in all, in either version of control groups.
_LOOK = (
    'df -Pk -- "$1" | tail -n 1 | sed "s/^/shm /"; sed -n "s/^MemAvailable: */memory /p" /proc/meminfo; '
    'for file in memory.max memory/memory.limit_in_bytes; do sed "s/^/limit /" "/sys/fs/cgroup/$file"; done '
    "2>/dev/null; :"
)
_SHM = re.compile(r"^shm \S+ +[0-9]{1,15} +[0-9]{1,15} +([0-9]{1,15}) ", re.MULTILINE)  # KiB that are free
_AVAILABLE = re.compile(r"^memory ([0-9]{1,15}) kB$", re.MULTILINE)
_LIMIT = re.compile(r"^limit ([0-9]{1,19})$", re.MULTILINE)  # bytes; there may be none, or the word max


def check_room(pod: Pod, needed: int, provider: str) -> None:
    """See that the machine holds `needed` bytes of a project's files in memory. Raises LegError.

    What a machine does not say is not held against it: the leg itself writes nowhere else, and says so.
    """
    said = pod.run(["sh", "-c", _LOOK, "sh", str(SHM)], max_output=1 << 14)
    shm, memory = free(said.stdout.decode("utf-8", "replace"))
    if shm is not None and shm < needed:
        raise LegError(
            f"the machine's shared memory has {shm / 1e6:.0f} MB free (provider={provider}), the project "
            f"needs {needed / 1e6:.0f} MB there and room for what it writes",
            code=Code.SCRATCH_TOO_SMALL,
            remedy="take a machine with more shared memory, or leave files out",
        )
    if memory is not None and memory < needed:
        raise LegError(
            f"the machine has {memory / 1e6:.0f} MB of memory for us (provider={provider}), the project's "
            f"files alone take {needed / 1e6:.0f} MB of it",
            code=Code.SCRATCH_TOO_SMALL,
            remedy="take a machine with more memory, or leave files out",
        )


def free(text: str) -> tuple[int | None, int | None]:
    """Bytes free in shared memory, and of memory, as a machine said; None of what it did not say."""
    shm = _SHM.search(text)
    held = [int(found) << 10 for found in _AVAILABLE.findall(text)]
    held += [int(found) for found in _LIMIT.findall(text)]
    return None if shm is None else int(shm[1]) << 10, min(held, default=None)
