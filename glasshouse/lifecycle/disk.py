"""How much may be written to this machine's disk, where a run's folder lies.

What proves a release, and the row itself, are written there last: room for them is always left.
"""

from __future__ import annotations

import shutil
from pathlib import Path

KEEP_FREE_BYTES = 1 << 30  # or a tenth, where that is less


def room(folder: Path, *, last: bool = False) -> int:
    """Bytes that may be written beneath `folder`, which exists.

    What keeps coming leaves a tenth of the disk free, KEEP_FREE_BYTES at most. `last`: what comes once, and
    with nothing after it, leaves a tenth of what is free. Raises OSError.
    """
    disk = shutil.disk_usage(folder)
    return usable(disk.free) if last else max(disk.free - min(KEEP_FREE_BYTES, disk.total // 10), 0)


def usable(free: int) -> int:
    """What of so many free bytes may be taken by what comes last."""
    return free - min(KEEP_FREE_BYTES, free // 10)
